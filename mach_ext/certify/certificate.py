"""The functions that users call: `certify`, `margin_bounds`, and the check of a threat model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext import functional as F
from mach_ext._dense_features import joined_documents
from mach_ext._memory import check_memory, memory_errors
from mach_ext.attack._part import changed_part, unchanged_features, without_zeros
from mach_ext.attack.threats import Dense, ThreatModel, threat_model
from mach_ext.certify._bounds import Bounds
from mach_ext.certify._curve import Curve
from mach_ext.certify.result import Certificate
from mach_ext.data import check_labels
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, check_model, checked_k, evaluating


def check(model: MACH | MACHHead, threat: str | ThreatModel, op: str = "certify") -> ThreatModel:
    """Returns the threat model if it can be certified for this model.

    Args:
        model: The model, or a head, which is linear MACH on its hidden units.
        threat: A threat model or its name, as in `mach_ext.attack.threat_model`.
        op: How messages call the function.

    Raises:
        TypeError: `model` is no `MACH` and no `MACHHead`, or its parameters are neither float32 nor float64.
        ValueError: The threat model is "dense" and the model has hidden layers, or the name is unknown. Each
            repetition of the head has hidden units of its own. The threat model does not fit the model's
            features, as "embedding" without dense features.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> mach_ext.certify.check(model, "insert(3)")
        Insert(nonnegative=True, m=3)
    """
    model, threat = check_model(op, model), threat_model(threat)
    if isinstance(threat, Dense) and not model.is_linear and not model.num_dense:
        raise ValueError(
            f"{op}: threat model dense is certified for linear MACH (hidden_size=0) only: it moves every "
            f"hidden unit by up to epsilon times the sum of its D={model.num_columns} absolute weights, so "
            "bounds are vacuous at every useful epsilon; support, insert(m), l1, l2, delete are certified"
        )
    changed_part(op, model, threat)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        names = ", ".join(sorted(map(str, dtypes)))
        raise TypeError(
            f"{op}: parameters must be float32 or float64, which model.float() makes them, got {names}"
        )
    return threat


@memory_errors("pass fewer documents at a time, or lower k or candidates")
def certify(
    model: MACH | MACHHead,
    X: Any,
    Y: Any,
    epsilons: Sequence[float],
    *,
    threat_model: str | ThreatModel = "support",
    k: int | None = None,
    candidates: int = 1024,
    zero: bool = True,
    progress: bool = False,
) -> Certificate:
    """Finds which right labels of the top k provably stay there, whatever change the threat model allows.

    For linear MACH with merge `mean_logit` the result for the top label is exact up to rounding. Either the
    label is certified, or a document of the threat set takes it from the top. That document was found and
    tried. With hidden layers, and for lower ranks, the result is a lower bound.

    For a model with dense features, a certificate holds for changes of the words alone or, with "embedding",
    of the dense features alone. A text whose words change also has another embedding. So a certificate of
    words says nothing about such a text. `Certificate.unchanged` names the part that must stay.

    A label with the same score counts as overtaking. The exception is two labels that share all buckets,
    because the lower number stays first. epsilon = 0 is the clean document.

    Tables of float64 numbers [n, R, B] for a document's n features are in memory. They take 128 MiB unless a
    single document needs more. If there are many labels, a table of bounds is decoded first. Otherwise all
    labels are swept in pieces.

    Args:
        model: The model, or a head. It is used in eval mode.
        X: Documents [N, D], a SciPy, NumPy or torch matrix. For a model with dense features, a
            `mach_ext.data.HybridMatrix`. For a head, hidden units [N, H]. They may be negative, which needs a
            threat model such as `Support(nonnegative=False)`.
        Y: True labels [N, L], a SciPy, NumPy or torch matrix.
        epsilons: Sizes of the change. For "delete" they are numbers of words.
        threat_model: A threat model or its name, as in `mach_ext.attack`. "dense" works for linear MACH only.
        k: Number of top labels that are examined. None: 5, or L if there are fewer labels.
        candidates: With hidden layers, the largest number of labels that are bounded one by one. If more
            labels remain after the common slopes, nothing is certified for the label.
        zero: Also find by bisection the epsilon at which certified P@1, P@3, P@5 and P@k reach zero.
        progress: Show a progress bar.

    Returns:
        The certificate over all sizes.

    Raises:
        TypeError: As `check`.
        ValueError: As `check`, or an epsilon is negative, k is out of range, or X or Y has another shape.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> certificate = mach_ext.certify.certify(model, X, Y, [0, 0.3, 0.5], k=1, zero=False)
        >>> certificate.precision(1).round(2).tolist()
        [1.0, 1.0, 0.17]
    """
    op = "certify"
    model, threat = check_model(op, model), check(model, threat_model, op)
    k, candidates = checked_k(op, k, model.num_labels), F.as_int(op, "candidates", candidates)
    if candidates < 1:
        raise ValueError(f"{op}: candidates must be at least 1, got {candidates}")
    X = _documents(op, model, X)
    Y = check_labels(Y, f"{op}: Y")
    if Y.shape != (X.shape[0], model.num_labels):
        raise ValueError(f"{op}: Y must be [N, L] = [{X.shape[0]}, {model.num_labels}], got shape {Y.shape}")
    if not len(epsilons):
        raise ValueError(f"{op}: epsilons must be at least one number")
    changing = changed_part(op, model, threat).columns(X)
    for epsilon in epsilons:
        threat.check(op, changing, epsilon)
    grid = sorted({float(epsilon) for epsilon in epsilons})
    E, N = len(grid), X.shape[0]
    advice = "pass fewer documents or epsilons at a time, or lower k"
    check_memory(f"{op}: ranks of the labels", 16 * E * N * k, advice, epsilons=E, N=N, k=k)
    labels = model.predict(X, k)[1]
    correct = np.zeros(labels.shape, bool)
    for n in range(len(labels)):
        correct[n] = np.isin(labels[n], Y[n].indices)

    with evaluating(model):
        curve = Curve(Bounds(model, threat), X, labels, correct, candidates)
        overtakers, attained = curve.over(grid, progress)
        ranks = sorted({1, 3, 5, k} & set(range(k + 1))) if zero else ()
        zeros = {rank: curve.zero(rank, grid, overtakers) for rank in ranks}
    unchanged = unchanged_features(model, threat)
    return Certificate(str(threat), grid, labels, correct, overtakers, attained, zeros, unchanged)


@memory_errors("pass fewer documents at a time")
def margin_bounds(
    model: MACH | MACHHead,
    X: Any,
    pairs: Any,
    epsilon: float,
    *,
    threat_model: str | ThreatModel = "support",
) -> NDArray[np.float64]:
    """Returns lower bounds [N] of the lead of label pairs[n, 0] over label pairs[n, 1].

    The bound holds for all documents of the threat set around document n, and for scores as the model
    computes them. It is exact up to rounding for linear MACH with merge `mean_logit`. It is -inf if float32
    might overflow.

    Args:
        model: The model, or a head. It is used in eval mode.
        X: Documents [N, D], a SciPy, NumPy or torch matrix. For a model with dense features, a
            `mach_ext.data.HybridMatrix`. For a head, hidden units [N, H]. They may be negative, which needs a
            threat model such as `Support(nonnegative=False)`.
        pairs: Two labels for each document [N, 2].
        epsilon: The size of the change.
        threat_model: A threat model or its name, as in `mach_ext.attack`.

    Raises:
        TypeError: As `check`.
        ValueError: As `check`, or an argument is out of range or has another shape.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> scores, labels = model.predict(X, 2)
        >>> (scores[:, 0] - scores[:, 1]).round(2)  # leads of the top label on the clean documents
        array([1.07, 2.72, 2.34, 2.67, 1.64, 1.12], dtype=float32)
        >>> mach_ext.certify.margin_bounds(model, X, labels, epsilon=0.3).round(2)
        array([0.59, 1.93, 0.62, 1.96, 0.25, 0.85])
    """
    op = "margin_bounds"
    model, threat = check_model(op, model), check(model, threat_model, op)
    X = _documents(op, model, X)
    threat.check(op, changed_part(op, model, threat).columns(X), epsilon)
    pairs = np.asarray(pairs)
    if pairs.shape != (X.shape[0], 2) or pairs.dtype.kind not in "iu":
        raise ValueError(f"{op}: pairs must be labels [N, 2] = [{X.shape[0]}, 2], got shape {pairs.shape}")
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < model.num_labels):
        raise ValueError(f"{op}: pairs must be labels in [0, L={model.num_labels}), got {pairs.max()}")
    result = np.empty(len(pairs))
    with evaluating(model):
        bounds = Bounds(model, threat)
        for form in bounds.propagation.forms(X, range(X.shape[0]), float(epsilon)):
            t, other = pairs[form.n].tolist()
            result[form.n] = bounds.lead(form, t, other)
    return result


def _documents(op: str, model: MACH, X: Any) -> Any:
    """Returns documents as canonical CSR without stored zeros. All dense features are stored."""
    return without_zeros(joined_documents(f"{op}: X", model, X), model.num_features)
