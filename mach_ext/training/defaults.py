"""Defaults that follow from the data: sizes of a model, SVMs or not, and tau of the logit adjustment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mach_ext.data import check_labels
from mach_ext.metrics import label_counts
from mach_ext.nn import MACH

MOST_FLOATS = 3e8  # of the encoders of a model by default, or of support vector machines: 1.2 GB


def default_sizes(num_documents: int, num_features: int, num_labels: int) -> dict[str, Any]:
    """Return sizes and epochs for N training documents, D features and L labels.

    R is 16. With fewer than 10,000 documents, where models differ most, R is 32, if D is at most 73,000. B is
    the power of two next to L / 2, within 16 and 2,048.

    Each repetition has an encoder of 256 units. If all encoders would take more than 3 x 10^8 floats (1.2
    GB), they have 128 units each. If those would also take more (D above 146,000), there are 8 repetitions
    with 128 units. If even those would (D above 293,000), 8 repetitions share an encoder of 512 units.

    The epochs show about 225,000 documents, within 5 and 10 epochs. The rules were measured on four datasets,
    shown in docs/results/accuracy.md.

    Args:
        num_documents: N, the number of training documents.
        num_features: D, the number of features. Dense features count as well.
        num_labels: L, the number of labels.

    Returns:
        `num_repetitions`, `num_buckets`, `hidden_size`, `encoder` and `epochs`.

    Example:
        >>> from mach_ext.training import default_sizes
        >>> default_sizes(num_documents=45_000, num_features=56_758, num_labels=4271)["num_buckets"]
        2048
    """
    most = 32 if num_documents < 10_000 else 16
    ways = [(most, 256), (most, 128), (16, 128), (8, 128)]
    own = next(((R, H) for R, H in ways if num_features * R * H <= MOST_FLOATS), None)
    R, H = own or (8, 512)
    buckets = 2 ** round(math.log2(max(num_labels, 2) / 2))
    return {
        "num_repetitions": R,
        "num_buckets": min(max(buckets, 16), 2048),
        "hidden_size": H,
        "encoder": "independent" if own else "shared",
        "epochs": min(max(round(225_000 / max(num_documents, 1)), 5), 10),
    }


def prefer_svm(Y: Any, num_features: int) -> bool:
    """Return whether `mach-ext train` trains SVMs by default for these labels.

    SVMs are the default if labels have many documents. N must be at least 10,000. A label that occurs must
    have 32 documents on average. The weights at `default_svm_sizes` must be at most 3 x 10^8 floats (1.2 GB).
    Elsewhere hidden units, which labels share, were better on each of the datasets in
    docs/results/accuracy.md.

    Args:
        Y: Labels [N, L], SciPy sparse.
        num_features: D, the number of features. Dense features count as well.

    Example:
        >>> import numpy as np, scipy.sparse
        >>> from mach_ext.svm import prefer_svm
        >>> Y = scipy.sparse.csr_matrix(np.eye(10)[np.arange(20_000) % 10])  # 2,000 documents a label
        >>> prefer_svm(Y, num_features=5000)
        True
    """
    Y = check_labels(Y, "prefer_svm: Y")
    sizes = default_svm_sizes(Y.shape[1])
    weights = num_features * sizes["num_repetitions"] * sizes["num_buckets"]
    present = max(1, int((label_counts(Y) > 0).sum()))
    return bool(Y.shape[0] >= 10_000 and Y.nnz >= 32 * present and weights <= MOST_FLOATS)


def default_svm_sizes(num_labels: int) -> dict[str, int]:
    """Return R and B for `fit_svm`, as measured in docs/results/accuracy.md.

    R is 8. B is the power of two next to L / 8, within 64 and 2,048.

    Args:
        num_labels: L, the number of labels.

    Returns:
        `num_repetitions` and `num_buckets`.

    Example:
        >>> from mach_ext.svm import default_svm_sizes
        >>> default_svm_sizes(num_labels=4271)
        {'num_repetitions': 8, 'num_buckets': 512}
    """
    buckets = 2 ** round(math.log2(max(num_labels, 2) / 8))
    return {"num_repetitions": 8, "num_buckets": min(max(buckets, 64), 2048)}


def default_tau(model: MACH, counts: np.ndarray[Any, Any]) -> float:
    """Return tau of the logit adjustment for labels with so many documents each, [L]."""
    if model.merge != "mean_logit" or not counts.any():
        return 0.0
    return min(0.5, 1 / math.sqrt(counts[counts > 0].mean()))
