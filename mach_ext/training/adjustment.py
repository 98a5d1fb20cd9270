"""The strength of the logit adjustment, chosen on validation documents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext.data.matrices import spaced_rows
from mach_ext.metrics import by_document
from mach_ext.training.evaluation import answers

TAUS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
FEWEST = 200  # validation documents; fewer leave the usual tau
MOST = 4000  # of them are asked, evenly spaced


def choose_tau(
    predictor: Any, adjust: Callable[[float], None], X: Any, Y: Any, filtered: Any, usual: float
) -> float:
    """Return the tau with the highest mean of P@1, P@3 and P@5 on validation documents.

    The usual tau stays unless another one is better by more than a standard error of the difference. With
    fewer than 200 documents it stays as well.

    Args:
        predictor: What predicts with the current adjustment.
        adjust: Gives the model the adjustment of a tau.
        X: Validation documents [N, D], SciPy CSR or a `HybridMatrix`.
        Y: Their labels [N, L], SciPy CSR.
        filtered: [N, L], non-zero where a label must not be answered, or None.
        usual: The tau of the rule.
    """
    if Y.shape[0] < FEWEST:
        return usual
    rows = spaced_rows(Y.shape[0], MOST)
    X, Y, filtered = X[rows], Y[rows], None if filtered is None else filtered[rows]
    scores = {}
    for tau in sorted({usual, *TAUS}):
        adjust(tau)
        scores[tau] = precisions(Y, answers(predictor, X, min(5, Y.shape[1]), filtered))
    best = max(scores, key=lambda tau: (scores[tau].mean(), -abs(tau - usual)))
    return best if is_ahead(scores[best], scores[usual]) else usual


def precisions(Y: Any, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of P@1, P@3 and P@5 of each document, [N].

    Args:
        Y: Labels [N, L], SciPy CSR.
        labels: The best labels [N, k] of each document, best first.
    """
    ks = [k for k in (1, 3, 5) if k <= labels.shape[1]]
    each: NDArray[np.float64] = by_document(Y, labels, ks).precision.mean(1)
    return each


def is_ahead(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Return whether the mean of the one is ahead by more than the standard error of the difference."""
    gain = one - other
    return bool(gain.mean() > gain.std() / math.sqrt(len(gain)))
