"""The numbers of an explanation. Charts and pages read them, and `Explanation` offers these as methods."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Attributions:
    """What an `Explanation` holds; its docstring describes each attribute."""

    features: NDArray[np.int64]
    feature_names: list[str]
    values: NDArray[np.float32]
    baselines: NDArray[np.float32]
    labels: NDArray[np.int64]
    label_names: list[str]
    scores: NDArray[np.float64]
    baseline_scores: NDArray[np.float64]
    attributions: NDArray[np.float64]
    delta: NDArray[np.float64]
    score: str
    scale: str
    model_scores: NDArray[np.float64]
    model_scale: str
    method: str
    n_steps: int = 0
    rival: int | None = None
    text: str | None = field(default=None, repr=False)

    def row(self, label: int | None = None) -> int:
        """Where a label (None: the first) is in `labels`. ValueError: it was not explained."""
        if label is None:
            return 0
        at = np.flatnonzero(self.labels == label)
        if not at.size:
            raise ValueError(f"Explanation: label {label} must be one of {self.labels.tolist()}")
        return int(at[0])

    def top(self, n: int = 10, label: int | None = None) -> list[tuple[str, float]]:
        """The n features of largest absolute attribution, as (name, attribution); ties: lowest id first."""
        row = self.attributions[self.row(label)]
        order = np.argsort(-np.abs(row), kind="stable")[:n]
        return [(self.feature_names[i], float(row[i])) for i in order]
