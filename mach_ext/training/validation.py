"""Validation: the dev metrics of an epoch, the best epoch, and when a run stops early."""

from __future__ import annotations

from typing import Any

from mach_ext.nn import MACH
from mach_ext.training.documents import TrainingData
from mach_ext.training.evaluation import evaluate_model
from mach_ext.training.progress import Progress


class Validation:
    """The dev documents of a run, if there are any, and the order of its epochs."""

    def __init__(self, data: TrainingData, metric: str, patience: int | None) -> None:
        self.dev, self.filtered = data.dev, data.filtered_dev
        self.metric, self.patience = metric, patience

    def documents(self) -> tuple[Any, Any, Any]:
        """Return the dev documents, their labels, and what must not be answered for them."""
        assert self.dev is not None
        return *self.dev, self.filtered

    def metrics(self, model: MACH) -> dict[str, float]:
        """Return the metrics of the model on the dev documents."""
        X, Y, filtered = self.documents()
        return evaluate_model(model, X, Y, **({} if filtered is None else {"filtered": filtered}))

    def rank(self, entry: dict[str, Any]) -> tuple[float, float]:
        """Return an epoch's dev metric and, for ties, minus its loss.

        Without dev data the last epoch ranks first.
        """
        if self.dev is None:
            return float(entry["epoch"]), 0.0
        return entry["dev"][self.metric], -entry["loss"]

    def note_best(self, state: Progress) -> bool:
        """Return whether the last epoch is the best so far. If so, record it in `state`."""
        entry, kept = state.history[-1], state.best_epoch
        if kept is not None and not self.rank(entry) > self.rank(state.history[kept - 1]):
            return False
        state.best, state.best_epoch = self.rank(entry)[0], state.epoch
        return True

    def patience_is_out(self, state: Progress) -> bool:
        """Return whether the run has waited long enough for a better epoch.

        The waiting is counted from the first epoch of the best metric. Later epochs of the same metric are
        kept for their loss alone.
        """
        if self.patience is None or not state.history:
            return False
        first = max(state.history, key=lambda entry: self.rank(entry)[0])["epoch"]
        return bool(state.epoch - first >= self.patience)
