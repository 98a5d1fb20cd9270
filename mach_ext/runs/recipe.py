"""The default rules of a training: the solver, sizes and settings that a dataset gets if none are given."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

from mach_ext import data, nn, svm, training
from mach_ext.distributed import Ranks
from mach_ext.distributed.part import ModelPart
from mach_ext.runs.arguments import as_real, plain, spell
from mach_ext.training.loop import fit_part

log = logging.getLogger("mach_ext")

SETTINGS = tuple(training.Hyperparameters.__dataclass_fields__)
REALS = tuple(
    name for name, each in training.Hyperparameters.__dataclass_fields__.items() if "float" in str(each.type)
)
FOR_SVM = ("C", "quantization_step")  # arguments that only support vector machines have


@dataclass(frozen=True)
class Recipe:
    """The arguments of a training. None leaves a choice to the default rules.

    Attributes:
        num_repetitions, num_buckets, hidden_size, encoder, merge: As in `MACH`.
        feature_dropout, hidden_dropout: As in `MACH`.
        seed: Seed of the label hash, the weights and the batches.
        svm: True: linear MACH with a support vector machine for each bucket. False: gradient training. None:
            a race decides, or the number of documents of a label.
        C: Misclassification cost of each support vector machine.
        quantization_step: Support vector machines are saved with weights rounded to multiples of this step.
        label_names: Whether names of rare labels are learnt from as documents. None: if they tell something.
        repetitions_at_a_time: As in `fit`.
        resume: Continue from the last checkpoint.
        hyperparameters: Further arguments of `fit`. Those that are None count as not given.
    """

    num_repetitions: int | None = None
    num_buckets: int | None = None
    hidden_size: Any = None
    encoder: str | None = None
    merge: str | None = None
    feature_dropout: float = 0.0
    hidden_dropout: float = 0.0
    seed: int = 0
    svm: bool | None = None
    C: float | None = None
    quantization_step: float | None = None
    label_names: bool | None = None
    repetitions_at_a_time: int | None = None
    resume: bool = False
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the arguments, and converts numbers to Python's own."""
        for name in self.hyperparameters:
            if name not in SETTINGS:
                known = ", ".join(name for name in SETTINGS if name != "seed")
                raise TypeError(f"train: unknown argument {name!r}; hyper-parameters: {known}")
        own = ("num_repetitions", "num_buckets", "hidden_size", "seed", "repetitions_at_a_time", "svm")
        numbers = {name: plain(getattr(self, name)) for name in own}
        numbers |= {name: as_real(getattr(self, name)) for name in FOR_SVM}
        settings = {
            name: as_real(value) if name in REALS else plain(value)
            for name, value in self.hyperparameters.items()
        }
        for name, value in {**numbers, "hyperparameters": settings}.items():
            object.__setattr__(self, name, value)
        for name in ("svm", "label_names"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise TypeError(
                    f"train: {spell(name)} must be None, True or False, got {getattr(self, name)!r}"
                )
        for name in FOR_SVM:
            if (value := getattr(self, name)) is not None and not _is_above_0(value):
                rule = "must be None or a finite number above 0"
                raise ValueError(f"train: {spell(name)} {rule}, got {value!r}")
        if self.svm and (given := self._for_gradients()):
            raise ValueError(f"{spell('svm')} takes no {', '.join(map(spell, given))}")

    def _for_gradients(self) -> list[str]:
        """Returns the given arguments that only gradient training can use."""
        names = [name for name in SETTINGS if self.hyperparameters.get(name) is not None]
        names += [name for name in ("encoder", "repetitions_at_a_time") if getattr(self, name) is not None]
        names += [name for name in ("hidden_dropout", "feature_dropout") if getattr(self, name)]
        return names

    @property
    def is_linear(self) -> bool:
        """Whether the arguments ask for a model without hidden layers."""
        size = self.hidden_size
        return size is not None and not any(size if isinstance(size, (tuple, list)) else (size,))

    @property
    def may_be_svm(self) -> bool:
        """Whether no argument rules out support vector machines."""
        return self.svm is not False and self.hidden_size is None and not self._for_gradients()

    def check_names(self, dataset: data.Dataset) -> None:
        """Checks that names of labels can be learnt from if they are asked for.

        Raises:
            ValueError: The dataset has none, or has dense features.
        """
        if self.label_names and dataset.label_names is None:
            raise ValueError(
                f"{spell('label_names', value=True)} needs names of labels, and the data has none"
            )
        if self.label_names and dataset.num_dense:
            raise ValueError(f"{spell('label_names', value=True)} is for data without dense features")

    def with_names(self, dataset: data.Dataset) -> Recipe:
        """Returns the recipe with the choice whether names of labels are learnt from."""
        recipe = replace(self, label_names=data.names_tell(dataset)) if self.label_names is None else self
        if recipe.label_names and (count := len(recipe.learnt(dataset)) - len(dataset.train)):
            without = spell("label_names", value=False)
            log.info(
                "names of labels with few documents that are learnt from, too: %s (%s: none)",
                f"{count:,}", without,
            )  # fmt: skip
        return recipe

    def with_solver(self, dataset: data.Dataset, device: str) -> Recipe:
        """Returns the recipe with a solver chosen for a dataset.

        Raises:
            ValueError: An argument of support vector machines is given, but the solver is another.
        """
        recipe = self
        if (
            self.svm is None
            and not self._for_gradients()
            and self.hidden_size is None
            and str(device) == "cpu"
        ):
            prefer = svm.prefer_svm(dataset.train.Y, dataset.num_features + dataset.num_dense)
            recipe = replace(self, svm=prefer)
            if prefer:
                other = spell("svm", value=False)
                log.info(
                    "labels have many documents, so support vector machines are trained (%s: a hidden layer)",
                    other,
                )
        recipe.check_solver()
        return recipe

    def check_solver(self) -> None:
        """Checks the arguments that only support vector machines have, once the solver is chosen.

        Raises:
            ValueError: One is given, and the solver is another.
        """
        for name in FOR_SVM:
            if getattr(self, name) is not None and not self.svm:
                raise ValueError(f"{spell(name)} is an option of support vector machines, see {spell('svm')}")

    def continued(self, checkpoint: dict[str, Any]) -> Recipe:
        """Returns the recipe with what was not given as a checkpoint has it, so that it is not chosen anew.

        Args:
            checkpoint: The record of a checkpoint of `fit` or of `fit_svm`.
        """
        if self.svm and "solver" not in checkpoint:
            return self  # which a checkpoint of `fit` refuses
        model, settings = checkpoint["model"], checkpoint.get("hyperparameters", {})
        sizes = ("num_repetitions", "num_buckets", "hidden_size", "encoder", "merge")
        taken: dict[str, Any] = {
            name: model[name] for name in sizes if getattr(self, name) is None and name in model
        }
        may_be_svm = self.svm is not False and not self._for_gradients()
        may_be_svm &= self.hidden_size is None or self.is_linear
        if may_be_svm and (solver := checkpoint.get("solver")):
            taken.pop("encoder", None)  # which a linear model has not
            usual = None if solver["C"] == 1 else solver["C"]  # so that the record stays that of the run
            return replace(self, svm=True, C=self.C or usual, **taken)
        hyperparameters = dict(self.hyperparameters)
        if "encoder" not in settings:  # else it is a checkpoint of fine-tuning, whose rates are its own
            for name in SETTINGS:  # tau is chosen at the end, seed is an argument of its own
                if name in settings and hyperparameters.get(name) is None and name not in ("tau", "seed"):
                    hyperparameters[name] = settings[name]
        return replace(self, svm=bool(self.svm), hyperparameters=hyperparameters, **taken)

    def model(self, dataset: data.Dataset) -> nn.MACH:
        """Returns a new model of the requested sizes. Default sizes follow from the dataset."""
        return nn.MACH(**self.configuration(dataset))

    def part(self, dataset: data.Dataset, ranks: Ranks) -> ModelPart:
        """Returns the part of such a model that this process trains. Rank 0 chooses the sizes for all."""
        if ranks.size == 1:
            return ModelPart.alone(self.model(dataset))
        return ModelPart.new(ranks.broadcast(self.configuration(dataset)), ranks)

    def configuration(self, dataset: data.Dataset) -> dict[str, Any]:
        """Returns the arguments of a new model, as `MACH.configuration` does."""
        sizes, hidden_size = default_sizes(dataset), self.hidden_size
        encoder = _given_or(self.encoder, "shared")
        if isinstance(hidden_size, (int, float)):
            hidden_size = (hidden_size,)
        if self.svm:
            hidden_size = hidden_size or (0,)
            sizes |= svm.default_svm_sizes(dataset.num_labels)
        elif hidden_size is None:
            hidden_size, encoder = (sizes["hidden_size"],), _given_or(self.encoder, sizes["encoder"])
        return {
            "num_features": dataset.num_features,
            **({"num_dense": dataset.num_dense} if dataset.num_dense else {}),
            "num_labels": dataset.num_labels,
            "num_repetitions": _given_or(self.num_repetitions, sizes["num_repetitions"]),
            "num_buckets": _given_or(self.num_buckets, sizes["num_buckets"]),
            "hidden_size": list(hidden_size) if any(hidden_size) else 0,
            "encoder": encoder,
            "merge": _given_or(self.merge, "mean_logprob" if self.svm else "mean_logit"),
            "seed": self.seed,
            "feature_dropout": self.feature_dropout,
            "hidden_dropout": self.hidden_dropout if any(hidden_size) else 0.0,
        }

    def settings(self) -> dict[str, Any]:
        """Returns the arguments for the record of the run."""
        given = {name: getattr(self, name) for name in FOR_SVM} if self.svm else self.fit_arguments()
        chosen = {"svm": bool(self.svm), "label_names": bool(self.label_names)}
        return chosen | {name: value for name, value in given.items() if value is not None}

    def fit_arguments(self) -> dict[str, Any]:
        """Returns the hyper-parameters in the order of `Hyperparameters`."""
        given = {**self.hyperparameters, "seed": self.seed}
        return {name: given.get(name) for name in SETTINGS}

    def train(
        self,
        part: ModelPart,
        dataset: data.Dataset,
        output: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> training.Progress:
        """Trains a model of this recipe on a dataset, or the part of it that this process holds.

        Args:
            part: The part, as `part` returns it.
            dataset: The dataset.
            output: A folder for checkpoints and the best model. Support vector machines have one model, which
                is there at the end.
            progress: Show progress bars on standard error.
        """
        if self.svm:
            return self._solve(part, dataset, output, progress and part.ranks.is_first)
        return self._fit(part, dataset, output, progress)

    def learnt(self, dataset: data.Dataset) -> data.Split:
        """Returns what is learnt from: train, with names of rare labels if they are to be learnt from."""
        return data.with_label_names(dataset) if self.label_names else dataset.train

    def _solve(
        self, part: ModelPart, dataset: data.Dataset, output: Any, progress: bool
    ) -> training.Progress:
        """Trains support vector machines."""
        started = time.monotonic()
        C, train = _given_or(self.C, 1.0), self.learnt(dataset)
        options = {"C": C, "output": output, "resume": self.resume, "progress": progress}
        options["quantization_step"] = self.quantization_step
        svm.fit_svm(part, train.documents, train.Y, **options)
        return training.Progress(seconds=time.monotonic() - started, history=[{"solver": "svm", "C": C}])

    def _fit(self, part: ModelPart, dataset: data.Dataset, output: Any, progress: bool) -> training.Progress:
        """Trains by gradients."""
        train, dev, settings = self.learnt(dataset), dataset.dev, self.fit_arguments()
        if settings["epochs"] is None:
            settings["epochs"] = default_sizes(dataset)["epochs"]
        splits = (
            train.documents,
            train.Y,
            None if dev is None else dev.documents,
            None if dev is None else dev.Y,
        )
        options: dict[str, Any] = {
            "resume": self.resume, "repetitions_at_a_time": self.repetitions_at_a_time, "progress": progress
        }  # fmt: skip
        filtered = None if dev is None else dev.filtered
        if part.is_alone:
            X, Y, X_dev, Y_dev = splits
            return training.fit(
                part.model, X, Y, X_dev, Y_dev, filtered_dev=filtered, output=output, **options, **settings
            )
        chosen = training.Hyperparameters.of(part.model, **settings)
        return fit_part(part, (*splits, filtered), chosen, output, **options)


def _is_above_0(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < math.inf


def not_none(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that are given."""
    return {name: value for name, value in values.items() if value is not None}


def _given_or(value: Any, default: Any) -> Any:
    """Returns a value, or the default if it is None."""
    return default if value is None else value


def default_sizes(dataset: data.Dataset) -> dict[str, Any]:
    """Returns sizes and epochs for a dataset, used if none are given."""
    columns = dataset.num_features + dataset.num_dense
    return training.default_sizes(len(dataset.train), columns, dataset.num_labels)
