"""Defaults that follow from the data: sizes of a model, SVMs or not, and tau of the logit adjustment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mach_ext.data import check_labels
from mach_ext.metrics import label_counts
from mach_ext.nn import MACH


def default_sizes(num_documents: int, num_features: int, num_labels: int) -> dict[str, Any]:
    """Sizes and epochs for N training documents, D features and L labels, where nothing else is known.

    R is 8; 16 with more than 16,384 labels, which share buckets most; 32 with fewer than 10,000 documents,
    where models differ most. B is the power of two next to L / 2, within 16 ... 2,048. Each repetition has an
    encoder of its own, of 256 units or, where all of them would take more than 3 x 10^8 floats (1.2 GB), of
    128; where those would, too (D above 146,000 with R = 16), they share one of 512. Epochs are as many as
    show about 225,000 documents, within 5 ... 10. Measured on four datasets: docs/results/accuracy.md.

    Example:
        >>> from mach_ext.training import default_sizes
        >>> default_sizes(num_documents=45_000, num_features=56_758, num_labels=4271)["num_buckets"]
        2048
    """
    R = 32 if num_documents < 10_000 else 16 if num_labels > 16_384 else 8
    buckets = 2 ** round(math.log2(max(num_labels, 2) / 2))
    own = next((H for H in (256, 128) if num_features * R * H <= 3e8), None)
    return {
        "num_repetitions": R,
        "num_buckets": min(max(buckets, 16), 2048),
        "hidden_size": own or 512,
        "encoder": "independent" if own else "shared",
        "epochs": min(max(round(225_000 / max(num_documents, 1)), 5), 10),
    }


def prefer_svm(Y: Any, num_features: int) -> bool:
    """Whether `mach-ext train` takes SVMs for labels Y [N, L] where nothing else is asked for.

    It does where labels have many documents: N is at least 10,000, a label that occurs has 32 documents on
    average, and the weights at `default_svm_sizes` are at most 3 x 10^8 floats (1.2 GB). Elsewhere hidden
    units, that labels share, were better, on each of the datasets of docs/results/accuracy.md.
    """
    Y = check_labels(Y, "prefer_svm: Y")
    sizes = default_svm_sizes(Y.shape[1])
    weights = num_features * sizes["num_repetitions"] * sizes["num_buckets"]
    present = max(1, int((label_counts(Y) > 0).sum()))
    return bool(Y.shape[0] >= 10_000 and Y.nnz >= 32 * present and weights <= 3e8)


def default_svm_sizes(num_labels: int) -> dict[str, int]:
    """R and B for `fit_svm`, where nothing else is known: docs/results/accuracy.md.

    R is 8, B the power of two next to L / 8, within 64 ... 2,048.

    Example:
        >>> from mach_ext.svm import default_svm_sizes
        >>> default_svm_sizes(num_labels=4271)
        {'num_repetitions': 8, 'num_buckets': 512}
    """
    buckets = 2 ** round(math.log2(max(num_labels, 2) / 8))
    return {"num_repetitions": 8, "num_buckets": min(max(buckets, 64), 2048)}


def default_tau(model: MACH, counts: np.ndarray[Any, Any]) -> float:
    """tau of the logit adjustment, for labels that have so many documents each [L]."""
    if model.merge != "mean_logit" or not counts.any():
        return 0.0
    return min(0.5, 1 / math.sqrt(counts[counts > 0].mean()))
