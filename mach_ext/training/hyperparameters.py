"""The hyper-parameters of a run: `Hyperparameters` and the values that its fields may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mach_ext._deprecation import renamed_argument, warn_renamed
from mach_ext.nn import MACH

OPTIMIZERS = ("adam", "adagrad")
SCHEDULES = ("linear", "constant")
PRECISIONS = ("float32", "tf32", "bfloat16")
METRICS = tuple(f"{name}@{k}" for name in ("P", "nDCG") for k in (1, 3, 5))
LEAST_EPS = 1e-20  # of Adam. Divided by R it must stay above 0 in float32, or a gradient of 0 gives NaN.


@dataclass(frozen=True)
class Hyperparameters:
    """What decides the result of a run. A resumed run must have the same hyper-parameters.

    Attributes:
        epochs: Passes over the documents.
        batch_size: Documents in a step.
        optimizer: "adam" or "adagrad". Steps are row-sparse for the weight that takes the documents.
        learning_rate: Learning rate of everything but the encoder's rows.
        encoder_learning_rate: Learning rate of the weight that takes the documents, if there is a hidden
            layer. The rate of that weight is for documents of length 1, with a hidden layer or without. `fit`
            divides the rate by the median length of the documents and multiplies eps by it. So 8 X with an
            eighth of the first weight takes the same steps as X with the weight itself.
        encoder_eps: Adam's eps for that weight. With Adam's usual 1e-8, the row of a rare feature moves as
            far as that of a frequent feature. It then learns its few documents by heart. If eps is far above
            the root of the second moment, the steps are those of SGD with momentum, as large as the evidence.
            docs/results/accuracy.md shows what this gains. Gradients are means over the documents, so eps and
            rate are for a batch of 256. Independent encoders get 1 / R of it, as they get 1 / R of the loss.
        schedule: "linear" lowers the rates to 0 over the run. "constant" keeps them.
        seed: Seed of the order of the documents and of dropout.
        patience: Stop after so many epochs without a better dev metric. None never stops early. A lower loss
            at the same metric does not count as better.
        metric: The dev metric that picks the best epoch. Of epochs with equal metrics the epoch of the lowest
            training loss is kept, and of these the earliest.
        gradient_threshold: For hidden layers, on the CPU only. A negative bucket of probability p =
            sigmoid(z) has the gradient p / (N R), and most p are tiny. Gradients with p below this number
            enter the backward pass together, as a rank-one matrix. It has their sums over buckets and over
            documents, and costs almost nothing. 0, the default, computes each gradient. The loss and the
            gradient of the bucket biases stay exact. For this number p, entries of the gradient to a
            document's hidden units are off by at most 2 p B max |bucket_weight| / (N R). Those of
            bucket_weight's gradient are off by at most 2 p max |hidden| / R. 0.01 keeps 3 to 5 % of the
            entries on wordnet (R=16, B=1000). A GPU multiplies dense matrices faster than it could leave
            entries out.
        precision: The precision of the products of a step. "bfloat16" rounds weights, hidden units and the
            logits' gradient for the products. The sums are float32, but on the CPU the result of a dense
            product is bfloat16 as well. Weights and moments stay float32, so that small steps are not lost.
            The weight that takes the documents has a bfloat16 copy beside it. "tf32" is for a GPU and models
            with a hidden layer. It lets the tensor cores round the factors of the float32 products of a step
            to 10 bits. "float32" does what PyTorch is set to, which is full float32 by default.
        tau: Strength of the logit adjustment (`MACH.adjust_logits`). The model gets the adjustment at the end
            and for its dev metrics. Training runs without it. 0 means no adjustment. None takes 1 / sqrt(n),
            at most 0.5, where n is the mean number of documents of the labels that occur. With 200 validation
            documents or more, the tau with the best mean of P@1, P@3 and P@5 on them is taken in the end.
            Models that do not rank by mean_logit take 0.
        dense_length: Length of the centred dense features of a typical document, relative to the median
            length of its sparse features. See `MACH.scale_dense`.
        dense_learning_rate: Learning rate of the rows of that weight that take dense features, such as
            embeddings. Adam's eps is that of the other rows. `fit` divides the rate by the median length of
            the sparse features. In a joined matrix, dense features have the rate of the others.
        eps: Adam's eps for everything but the encoder's rows, if there is a hidden layer. None takes the
            usual 1e-8. Where buckets are rarely positive, that makes the many steps down as long as the few
            steps up, however small their gradients are. Such buckets hardly learn, and more so the more
            buckets there are. Then 1e-5 is better. Repetitions get 1 / R of a given eps, as they get 1 / R of
            the loss.

    Example:
        >>> from mach_ext.training import Hyperparameters
        >>> settings = Hyperparameters(epochs=10, patience=2)
        >>> settings.epochs, settings.optimizer, settings.learning_rate
        (10, 'adam', 0.002)
    """

    epochs: int = 5
    batch_size: int = 256
    optimizer: str = "adam"
    learning_rate: float = 0.002
    encoder_learning_rate: float = 0.3
    encoder_eps: float = 1e-4
    schedule: str = "linear"
    seed: int = 0
    patience: int | None = None
    metric: str = "P@1"
    gradient_threshold: float = 0.0
    precision: str = "float32"
    tau: float | None = None
    dense_length: float = 1.0
    dense_learning_rate: float = 0.3
    eps: float | None = None

    @classmethod
    @renamed_argument("negligible_gradient", "gradient_threshold")
    def of(cls, model: MACH, **given: Any) -> Hyperparameters:
        """Return the defaults for a kind of model, with the given values in place of defaults.

        Linear models use Adagrad by default.

        Args:
            model: The model.
            **given: Fields of `Hyperparameters`. None means the default.

        Returns:
            The hyper-parameters.

        Raises:
            TypeError: A name is unknown, or the model's parameters have a wrong dtype.
            ValueError: A value is out of range or does not suit the model.

        Example:
            >>> import mach_ext
            >>> from mach_ext.training import Hyperparameters
            >>> linear = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=0)
            >>> Hyperparameters.of(linear, epochs=3).optimizer
            'adagrad'
        """
        defaults: dict[str, Any] = {}
        if model.is_linear:
            defaults = {"optimizer": "adagrad", "learning_rate": 0.5, "dense_learning_rate": 0.5}
        known = cls.__dataclass_fields__
        for name in given:
            if name not in known:
                raise TypeError(f"fit: unknown hyper-parameter {name!r}; known: {', '.join(known)}")
        settings = cls(**{**defaults, **{name: value for name, value in given.items() if value is not None}})
        if model.is_linear and settings.gradient_threshold > 0:
            raise ValueError("fit: gradient_threshold is for models with a hidden layer")
        _check_dtypes(model)
        device = model.bucket_bias.device
        if settings.gradient_threshold > 0 and device.type != "cpu":
            raise ValueError(f"fit: gradient_threshold is for models on the CPU, this one is on {device}")
        if settings.precision == "tf32" and model.is_linear:
            raise ValueError(
                "fit: precision tf32 is for the dense products of a hidden layer, not linear MACH"
            )
        if settings.precision == "tf32" and device.type != "cuda":
            raise ValueError(
                f"fit: precision tf32 needs a CUDA device, this model is on {device}; "
                "float32 and bfloat16 work on every device"
            )
        if settings.precision != "float32" and any(p.dtype != torch.float32 for p in model.parameters()):
            raise ValueError("fit: precision is for float32 models (their weights are the master copy)")
        if settings.tau and model.merge != "mean_logit":
            raise ValueError(f"fit: tau is for models that rank by mean_logit, this one by {model.merge}")
        return settings

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"fit: {name} must be an int of at least {least}, got {value!r}")
        if not (isinstance(self.dense_length, (int, float)) and 0 < self.dense_length < math.inf):
            raise ValueError(f"fit: dense_length must be finite and above 0, got {self.dense_length!r}")
        for name in ("learning_rate", "encoder_learning_rate", "dense_learning_rate"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"fit: {name} must be finite and not negative, got {value!r}")
        for name in ("encoder_eps", "eps"):
            value = getattr(self, name)
            if value is None and name == "eps":
                continue
            if not (isinstance(value, (int, float)) and LEAST_EPS <= value < math.inf):
                raise ValueError(f"fit: {name} must be finite and at least {LEAST_EPS}, got {value!r}")
        choices = (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"fit: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.gradient_threshold < 1:
            raise ValueError(f"fit: gradient_threshold must be in [0, 1), got {self.gradient_threshold}")
        if self.tau is not None and not (isinstance(self.tau, (int, float)) and 0 <= self.tau <= 100):
            raise ValueError(f"fit: tau must be None or within 0 and 100, got {self.tau!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"fit: patience must be None or at least 1, got {self.patience}")

    @property
    def negligible_gradient(self) -> float:
        """The former name of `gradient_threshold`, which works for one more release.

        Example:
            >>> import warnings
            >>> from mach_ext.training import Hyperparameters
            >>> with warnings.catch_warnings():
            ...     warnings.simplefilter("ignore", DeprecationWarning)
            ...     Hyperparameters(gradient_threshold=0.01).negligible_gradient
            0.01
        """
        warn_renamed("Hyperparameters.negligible_gradient", "gradient_threshold")
        return self.gradient_threshold

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rename `gradient_threshold`, which pickles of former releases hold under its former name."""
        former = {"negligible_gradient": "gradient_threshold"}
        self.__dict__.update({former.get(name, name): value for name, value in state.items()})


# `dataclass` writes `__init__`, so it can be decorated only afterwards.
Hyperparameters.__init__ = renamed_argument(  # type: ignore[method-assign]
    "negligible_gradient", "gradient_threshold"
)(Hyperparameters.__init__)


def _check_dtypes(model: MACH) -> None:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        given = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise TypeError(
            f"fit: parameters must be float32 or float64, all of one dtype, got {given}. Training in half "
            'precision keeps float32 weights: model.float(), and precision="bfloat16"'
        )
