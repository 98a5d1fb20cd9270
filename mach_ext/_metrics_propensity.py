"""How many documents carry each label, and what follows: inverse propensities and frequency bands."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from mach_ext._memory import check_memory, memory_errors
from mach_ext._metrics_checks import Floats, Ints, check_k, check_truth


@memory_errors("pass fewer labels")
def inverse_propensity(Y_train: Any, A: float = 0.55, B: float = 1.5) -> Floats:
    """Return how much more each label should count, given how likely it is to be missing from labelled data.

    ```text
    q_l = 1 + C (N_l + B)^-A,  C = (ln N - 1) (B + 1)^A
    ```

    N is the number of training documents, and N_l of them carry label l. The source is Jain, Prabhu and
    Varma, Extreme Multi-label Loss Functions (KDD 2016). The usual values of A and B are 0.5 and 0.4 for
    Wikipedia-scale data. They are 0.6 and 2.6 for Amazon's data, and 0.55 and 1.5 for everything else.

    Args:
        Y_train: The labels of the **training** documents, a matrix [N, L].
        A: Exponent, >= 0.
        B: Offset of the counts, > 0.

    Returns:
        float64 [L], each >= 1. Rarer labels have larger values.

    Raises:
        TypeError: `Y_train` is no matrix.
        ValueError: N < 3 (C would be negative), A < 0, B <= 0, or A and B give a number that is not finite.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import inverse_propensity
        >>> inverse_propensity(sp.csr_array([[1, 0], [1, 0], [1, 1]])).round(4)
        array([1.0714, 1.0986])
    """
    truth = check_truth("inverse_propensity", "Y_train", Y_train)
    return inverse_propensity_of_counts(label_counts(truth), truth.shape[0], A, B)


@memory_errors("pass fewer labels")
def inverse_propensity_of_counts(
    counts: npt.ArrayLike, num_documents: int, A: float = 0.55, B: float = 1.5
) -> Floats:
    """Return the result of `inverse_propensity` from counts of documents in place of a matrix.

    Args:
        counts: N_l, the number of training documents of each label, [L].
        num_documents: N, the number of training documents.
        A: As for `inverse_propensity`.
        B: As for `inverse_propensity`.

    Returns:
        float64 [L], each >= 1.

    Raises:
        ValueError: As for `inverse_propensity`.

    Example:
        >>> from mach_ext.metrics import inverse_propensity_of_counts
        >>> inverse_propensity_of_counts([3, 1], num_documents=3).round(4)
        array([1.0714, 1.0986])
    """
    if num_documents < 3:
        raise ValueError(f"inverse_propensity: Y_train must have at least 3 documents, got {num_documents}")
    if not (math.isfinite(A) and A >= 0):
        raise ValueError(f"inverse_propensity: A must be finite and >= 0, got {A}")
    if not (math.isfinite(B) and B > 0):
        raise ValueError(f"inverse_propensity: B must be finite and > 0, got {B}")
    counts = np.asarray(counts)
    check_memory(
        "inverse_propensity: two numbers a label", 16 * counts.size, "pass fewer labels", L=counts.size
    )
    with np.errstate(all="ignore"):
        C = (math.log(num_documents) - 1) * np.float64(B + 1) ** A
        q: Floats = 1 + C * (counts + B) ** -A
    if not np.isfinite(q).all():
        raise ValueError(f"inverse_propensity: A and B must be small enough for float64, got A={A}, B={B}")
    return q


def propensity_constants(dataset: str) -> tuple[float, float]:
    """Return A and B of `inverse_propensity` that published figures of a dataset use.

    Amazon-670K, Amazon-3M and the LF-Amazon sets use 0.6 and 2.6. Wikipedia-500K, WikiLSHTC-325K and
    LF-WikiTitles use 0.5 and 0.4. All others use 0.55 and 1.5, such as AmazonCat-13K, Wiki10-31K and
    LF-WikiSeeAlso. The source is the evaluation scripts of pyxclib, DeepXML and AttentionXML.

    Args:
        dataset: Its name, in any spelling.

    Returns:
        A and B.

    Example:
        >>> from mach_ext.metrics import propensity_constants
        >>> propensity_constants("amazon-670k"), propensity_constants("Wiki10-31K")
        ((0.6, 2.6), (0.55, 1.5))
    """
    name = re.sub("[^a-z0-9]", "", dataset.lower())
    if "amazon" in name and "amazoncat" not in name:
        return 0.6, 2.6
    if "wiki" in name and "wiki10" not in name and "wikiseealso" not in name:
        return 0.5, 0.4
    return 0.55, 1.5


@memory_errors("pass fewer labels")
def label_frequency_bands(
    Y_train: Any, tail_max: int = 5, torso_max: int = 100
) -> dict[str, npt.NDArray[np.bool_]]:
    """Split the labels into head, torso and tail by how many training documents carry them.

    ```text
    tail: N_l <= tail_max (unseen labels too);  torso: tail_max < N_l <= torso_max;  head: N_l > torso_max
    ```

    The cuts are absolute counts because a learner depends on the number of examples. 5 examples are few in
    any dataset, so a band means the same in all of them. Cuts at equal shares of the label mass do not have
    this property. Thirds put labels with about 175 training documents into the tail on EURLEX57K, and with 13
    on TIBKAT. Masks from any other rule can be passed to `evaluate_by_band`.

    Args:
        Y_train: The labels of the **training** documents, a matrix [N, L].
        tail_max: The largest count in the tail, >= 0.
        torso_max: The largest count in the torso, > tail_max.

    Returns:
        `{"head": ..., "torso": ..., "tail": ...}`, booleans [L]. Every label is in exactly one band.

    Raises:
        TypeError: `Y_train` is no matrix, or a cut is not an integer.
        ValueError: The cuts are not 0 <= tail_max < torso_max.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import label_frequency_bands
        >>> Y_train = sp.csr_array([[1, 1, 0], [1, 1, 0], [1, 0, 0]])
        >>> {name: m.nonzero()[0].tolist() for name, m in label_frequency_bands(Y_train, 1, 2).items()}
        {'head': [0], 'torso': [1], 'tail': [2]}
    """
    truth = check_truth("label_frequency_bands", "Y_train", Y_train)
    tail_max = check_k("label_frequency_bands", "tail_max", tail_max, least=0)
    torso_max = check_k("label_frequency_bands", "torso_max", torso_max, least=tail_max + 1)
    return frequency_bands_of_counts(label_counts(truth), tail_max, torso_max)


@memory_errors("pass fewer labels")
def frequency_bands_of_counts(
    counts: npt.ArrayLike, tail_max: int = 5, torso_max: int = 100
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the result of `label_frequency_bands` from counts of documents in place of a matrix.

    Args:
        counts: N_l, the number of training documents of each label, [L].
        tail_max: As for `label_frequency_bands`.
        torso_max: As for `label_frequency_bands`.

    Returns:
        `{"head": ..., "torso": ..., "tail": ...}`, booleans [L].

    Example:
        >>> from mach_ext.metrics import frequency_bands_of_counts
        >>> frequency_bands_of_counts([3, 200, 50])["head"]
        array([False,  True, False])
    """
    counts = np.asarray(counts)
    tail, head = counts <= tail_max, counts > torso_max
    return {"head": head, "torso": ~head & ~tail, "tail": tail}


def label_counts(truth: Any) -> Ints:
    """Return the number of documents of each label, [L], of a CSR label matrix [N, L]."""
    L = truth.shape[1]
    check_memory("label_counts: a count for each label", 8 * L, "pass fewer labels", L=L)
    return np.bincount(truth.indices, minlength=truth.shape[1])
