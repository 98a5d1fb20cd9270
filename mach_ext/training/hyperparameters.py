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
PRECISIONS = ("float32", "bfloat16")
METRICS = tuple(f"{name}@{k}" for name in ("P", "nDCG") for k in (1, 3, 5))


@dataclass(frozen=True)
class Hyperparameters:
    """What decides the result of a run. `--resume` insists that they are the same.

    Attributes:
        epochs: Passes over the documents.
        batch_size: Documents a step.
        optimizer: "adam" or "adagrad", with row-sparse steps for the weight that takes the documents.
        learning_rate: Of everything but the encoder's rows.
        encoder_learning_rate: Of the weight that takes the documents, if there is a hidden layer.
            The rate of that weight, with a hidden layer or without, is for documents of length 1: `fit`
            divides it by the median of their lengths and multiplies eps by it, so that 8 X and a first
            weight of an eighth take the steps of X and the weight.
        encoder_eps: Adam's eps for that weight. With Adam's usual 1e-8 the row of a rare feature moves as far
            as that of a frequent one, and so learns its few documents by heart. With an eps far above the
            root of its second moment the steps are those of SGD with momentum, as large as the evidence;
            docs/results/accuracy.md has what that is worth. Gradients are of the mean over documents: eps and rate
            are for a batch of 256. Independent encoders get 1 / R of it, as of the loss.
        schedule: "linear": rates fall to 0 over the run; "constant".
        seed: Of the order of the documents and of dropout.
        patience: Stop after so many epochs without a better dev metric; None: never. A lower loss at the same
            metric is no gain.
        metric: Which dev metric picks the best epoch. Of epochs with equal metrics the one of the lowest
            training loss is kept, of these the earliest.
        gradient_threshold: Hidden layers only. A negative bucket of probability p = sigmoid(z) has the
            gradient p / (N R), and most p are tiny. Those below this number go into the products of the
            backward pass all together, as one rank-one matrix with their sums over buckets and over
            documents, which costs next to nothing. 0, the default, computes each. The loss and the bucket
            biases' gradient stay exact; with p this number, entries of the gradient to a document's hidden
            units are off by at most 2 p B max |bucket_weight| / (N R), of bucket_weight's by 2 p max |hidden|
            / R. 0.01 keeps 3 to 5 % of the entries on wordnet (R=16, B=1000). On the CPU only: a GPU
            multiplies dense matrices faster than it could leave entries out.
        precision: Of what goes into the products of a step. "bfloat16" rounds weights, hidden units and the
            logits' gradient for them; the sums are float32 (on CPU the result of a dense product is bfloat16,
            too). Weights and moments stay float32, so that small steps are not lost; the weight that takes
            the documents has a bfloat16 copy beside it.
        tau: Of the logit adjustment that the model gets in the end, and for its dev metrics
            (`MACH.adjust_logits`); training goes without. 0: none. None: 1 / sqrt(n), at most 0.5, n being
            the mean number of documents of the labels that have any; 0 for models that don't rank by
            mean_logit.
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

    @classmethod
    @renamed_argument("negligible_gradient", "gradient_threshold")
    def of(cls, model: MACH, **given: Any) -> Hyperparameters:
        """Defaults for this kind of model (linear: Adagrad); what is given and not None replaces them."""
        defaults: dict[str, Any] = {}
        if model.is_linear:
            defaults = {"optimizer": "adagrad", "learning_rate": 0.5}
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
        for name in ("learning_rate", "encoder_learning_rate", "encoder_eps"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"fit: {name} must be finite and not negative, got {value!r}")
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
        """The former name of `gradient_threshold`, which works for one release."""
        warn_renamed("Hyperparameters.negligible_gradient", "gradient_threshold")
        return self.gradient_threshold

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of former releases have `gradient_threshold` under its former name."""
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
