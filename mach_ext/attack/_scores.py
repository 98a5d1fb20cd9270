"""Scores of an evaluation: metrics of each document, means with intervals, and rates of success."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mach_ext.metrics import by_document, without_filtered

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Truth:
    """The labels that predictions are compared with, and the metrics."""

    labels: Any  # [N, L + U], CSR
    filtered: Any  # [N, L], CSR, non-zero if a label must not count as an answer; or None
    inverse_propensity: NDArray[np.float64] | None  # [L + U], for PSP; None: no PSP
    ks: list[int]

    @property
    def names(self) -> list[str]:
        """The names of the metrics in results."""
        kinds = ("P", "nDCG", "PSP") if self.inverse_propensity is not None else ("P", "nDCG")
        return [f"{kind}@{k}" for kind in kinds for k in self.ks]

    @property
    def surplus(self) -> int:
        """How many more labels must be predicted, because filtered labels are dropped."""
        return 0 if self.filtered is None else int(np.diff(self.filtered.indptr).max(initial=0))

    def measure(self, predicted: NDArray[Any], rows: slice) -> NDArray[np.float64]:
        """Returns P and nDCG at each k of each document. For PSP also its numerators and denominators."""
        if self.filtered is not None:
            predicted = without_filtered(predicted, self.filtered[rows])
        scores = by_document(self.labels[rows], predicted, self.ks, self.inverse_propensity)
        parts = [scores.precision, scores.ndcg, scores.gain, scores.best_gain]
        return np.ascontiguousarray(np.concatenate([part for part in parts if part is not None], 1))


def summaries(
    tables: dict[_Key, NDArray[np.float64]], names: list[str], resamples: int, seed: int
) -> dict[_Key, dict[str, Any]]:
    """Returns the metrics of each table of `Truth.measure`.

    Intervals are the 2.5 and 97.5 % quantiles over resampled documents.
    """
    wide = np.concatenate(list(tables.values()), 1)
    N = len(wide)
    rng = np.random.default_rng(seed)
    totals = [wide.mean(0, keepdims=True)]
    for begin in range(0, resamples, 50):
        draws = rng.integers(0, N, (min(50, resamples - begin), N))
        weights = np.stack([np.bincount(draw, minlength=N) for draw in draws])
        totals.append(weights @ wide / N)
    sums = np.concatenate(totals)  # [1 + resamples, columns]
    results: dict[_Key, dict[str, Any]] = {}
    at = 0
    for key, table in tables.items():
        part, at = sums[:, at : at + table.shape[1]], at + table.shape[1]
        results[key] = _summary(part, names)
    return results


def _summary(sums: NDArray[np.float64], names: list[str]) -> dict[str, Any]:
    """Returns the metrics in the first row of `sums`, with intervals of the other rows."""
    num_ratios = sums.shape[1] - len(names)
    plain, above, below = np.split(sums, [len(names) - num_ratios, len(names)], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.concatenate((plain, above / below), 1)
    entry: dict[str, Any] = {}
    for j, name in enumerate(names):
        entry[name] = float(values[0, j])
        if len(values) > 1:
            low, high = np.quantile(values[1:, j], (0.025, 0.975))
            entry[f"{name} interval"] = [float(low), float(high)]
    return entry


def success_rate(outcomes: NDArray[Any], band: Any) -> dict[str, float]:
    """Returns the rate of success among the targets in a band.

    `outcomes` [2, N] holds targets and successes. A target of -1 means that there is none.
    """
    targets, success = outcomes
    inside = (targets >= 0) & np.asarray(band)[np.maximum(targets, 0)]
    count = int(inside.sum())
    return {"success": float(success[inside].mean()) if count else math.nan, "documents": count}
