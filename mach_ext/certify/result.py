"""`Certificate`: what `certify` returns, in ranks and in shares of P@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Certificate:
    """What `certify` found, for E sizes, N documents, the k labels of their clean top k.

    Attributes:
        threat_model: By name.
        epsilons: The sizes, ascending [E].
        labels: The clean top k [N, k].
        correct: Which of them are right [N, k].
        overtakers: How many labels could not be shown to stay behind this one, k for k or more [E, N, k]: its
            rank, from 0, is at most this. k for wrong labels.
        attained: The rank that it was seen to take in a perturbed document, k for k or more [E, N, k].
        zero: For k' = 1, 3, 5, k: the interval in which certified P@k' reaches zero: above zero at the
            first number (or -1), zero at the second (or inf where none was found); within 2 % by bisection,
            from the grid on. Without the documents that have no features, if these are all that may change.
    """

    threat_model: str
    epsilons: list[float]
    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]
    overtakers: NDArray[np.int64]
    attained: NDArray[np.int64]
    zero: dict[int, tuple[float, float]]

    def certified(self, k: int) -> NDArray[np.bool_]:  # [E, N, K]
        """Right labels that stay in the top k, whatever the change; k is at most that of `certify`."""
        return self.correct & (self.overtakers < self._within(k))

    def broken(self, k: int) -> NDArray[np.bool_]:  # [E, N, K]
        """Right labels of the clean top k that a change, found and tried on the model, takes out of it."""
        inside = self.correct & (np.arange(self.labels.shape[1]) < self._within(k))
        return np.asarray(inside & (self.attained >= k))

    def _within(self, k: int) -> int:
        """A checked k: beyond the labels that `certify` looked at, ranks are not known."""
        K = self.labels.shape[1]
        if not 1 <= k <= K:
            raise ValueError(f"Certificate: k must be in 1 ... {K}, the k of certify, got {k}")
        return k

    def precision(self, k: int) -> NDArray[np.float64]:  # [E]
        """Certified P@k at each size."""
        per_document = self.certified(k).sum(2) / k
        return np.asarray(per_document.mean(1) if per_document.shape[1] else np.zeros(len(self.epsilons)))

    def robust(self) -> NDArray[np.float64]:  # [E, 2]
        """P@1 under the worst changes is between these: certified, and what the documents tried leave."""
        left = (self.correct & ~self.broken(1))[:, :, 0]
        attained = left.mean(1) if left.shape[1] else np.zeros(len(left))
        return np.stack((self.precision(1), attained), 1)

    def as_dict(self, ks: Sequence[int] = (1, 3, 5)) -> dict[str, Any]:
        """{"threat_model", "documents", "sizes": [{"epsilon", "P@1", ..., "robust P@1": [low, high]}],
        "zero": {"P@1": [low, high], ...}}, JSON's numbers."""
        ks = [k for k in ks if k <= self.labels.shape[1]]
        curves = {f"P@{k}": self.precision(k) for k in ks}
        robust = self.robust()
        sizes = [
            {
                "epsilon": epsilon,
                **{name: float(curve[e]) for name, curve in curves.items()},
                "robust P@1": robust[e].tolist(),
            }
            for e, epsilon in enumerate(self.epsilons)
        ]
        zero = {f"P@{k}": [None if math.isinf(z) else z for z in self.zero[k]] for k in ks if k in self.zero}
        return {
            "threat_model": self.threat_model,
            "documents": len(self.labels),
            "sizes": sizes,
            "zero": zero,
        }
