"""The optimiser of a run, whose rates follow the documents' length, and the schedule of the rates."""

from __future__ import annotations

from typing import Any, TypeAlias

from mach_ext import optim
from mach_ext._model_folder import named_weights
from mach_ext.distributed.part import ModelPart
from mach_ext.training.hyperparameters import Hyperparameters

RowOptimizer: TypeAlias = optim.SparseAdam | optim.SparseAdagrad


def make_optimizer(part: ModelPart, settings: Hyperparameters, length: float) -> RowOptimizer:
    """Return the optimiser of all parameters of a part of a model, for documents of this length."""
    model = part.model
    named = named_weights(model)
    linear, adam = model.is_linear, settings.optimizer == "adam"
    rows = named.pop("bucket_weight" if linear else "encoder_weight")
    rate = settings.learning_rate if linear else settings.encoder_learning_rate
    # Each repetition's loss counts 1 / R, and so do the gradients of its classifier and of its own encoder.
    # So a given eps is divided by R.
    R = part.num_repetitions
    groups: list[dict[str, Any]] = [
        {"params": list(named.values()), "lr": settings.learning_rate},
        {"params": [rows], "lr": rate / length},
    ]
    if adam and not linear:
        groups[1]["eps"] = settings.encoder_eps / (R if model.encoder == "independent" else 1)
        if settings.eps is not None:
            groups[0]["eps"] = settings.eps / R
    make = optim.SparseAdam if adam else optim.SparseAdagrad
    optimizer = make(groups[::-1] if linear else groups)  # Checkpoints number the states in this order.
    documents = optimizer.param_groups[0 if linear else 1]
    documents["eps"] *= length
    documents["dense_lr"] = settings.dense_learning_rate / length  # of the rows that take dense features
    return optimizer


class Schedule:
    """The learning rates of each step of a run."""

    def __init__(self, optimizer: RowOptimizer, settings: Hyperparameters, steps: int) -> None:
        self.optimizer, self.steps = optimizer, steps
        self.falls = settings.schedule == "linear"
        self.rates = [
            {name: group[name] for name in ("lr", "dense_lr") if name in group}
            for group in optimizer.param_groups
        ]

    def set_rates(self, step: int) -> None:
        """Give the optimiser the rates of a step, counted from 0."""
        if self.falls:
            left = 1 - step / self.steps
            for group, rates in zip(self.optimizer.param_groups, self.rates, strict=True):
                group.update({name: rate * left for name, rate in rates.items()})
