"""What to call: `certify`, `margin_bounds`, and the check of a threat model that both begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_errors
from mach_ext.attack.threats import Dense, ThreatModel, threat_model
from mach_ext.certify._bounds import Bounds
from mach_ext.certify._curve import Curve
from mach_ext.certify.result import Certificate
from mach_ext.data import check_columns, check_labels
from mach_ext.nn import MACH, checked_k, evaluating


def check(model: MACH, threat: str | ThreatModel, op: str = "certify") -> ThreatModel:
    """The threat model; raises TypeError or ValueError where it can't be certified for this model."""
    if not isinstance(model, MACH):
        raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
    threat = threat_model(threat)
    if isinstance(threat, Dense) and not model.is_linear:
        raise ValueError(
            f"{op}: threat model dense is certified for linear MACH (hidden_size=0) only: it moves every "
            f"hidden unit by up to epsilon times the sum of its D={model.num_features} absolute weights, and "
            "bounds are vacuous at every useful epsilon; support, insert(m), l1, l2, delete are certified"
        )
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        names = ", ".join(sorted(map(str, dtypes)))
        raise TypeError(
            f"{op}: parameters must be float32 or float64, model.float() makes them so, got {names}"
        )
    return threat


@memory_errors("pass fewer documents at a time, or lower k or candidates")
def certify(
    model: MACH,
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
    """Which right labels of the top k stay there, whatever a threat model allows: proven, not tried.

    Exact for linear MACH with merge `mean_logit`, to rounding: a top-1 label is certified or some document
    within the threat set, found and tried, takes it from the top. With hidden layers, and for ranks below
    the first, a lower bound. A tie counts as overtaken, but where two labels share all their buckets: the
    lower number stays first. epsilon = 0 is the clean document.

    Memory: float64 tables [n, R, B] of a document's n features, 128 MiB of them where one does not need more;
    labels are swept in pieces, or, where they are many, by exact decoding of a table of bounds first.

    Args:
        model: Used in eval mode.
        X, Y: Documents [N, D] and true labels [N, L], SciPy sparse matrices.
        epsilons: Sizes, of delete numbers of words.
        threat_model: As of `mach_ext.attack`; dense for linear MACH only.
        k: Labels of the top that are looked at; None: 5, or L where there are fewer labels.
        candidates: With hidden layers so many labels, of those that bounds with common slopes don't exclude,
            are bounded one by one; with more of them nothing is shown for the label.
        zero: Also finds the epsilon at which each certified P@k' reaches zero, by bisection.
        progress: Shows a bar.

    Raises:
        TypeError, ValueError: As of `check`; epsilon < 0; k not in 1 ... L; X or Y of other shape.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> Y = scipy.sparse.csr_matrix(([1, 1, 1], ([0, 1, 2], model.predict(X, 1)[1][:, 0])), (3, 500))
        >>> certificate = mach_ext.certify.certify(model, X, Y, [0, 1e-6, 10], zero=False)
        >>> certificate.precision(1).tolist()
        [1.0, 1.0, 0.0]
    """
    op = "certify"
    threat = check(model, threat_model, op)
    k, candidates = checked_k(op, k, model.num_labels), F.as_int(op, "candidates", candidates)
    if candidates < 1:
        raise ValueError(f"{op}: candidates must be at least 1, got {candidates}")
    X = _documents(op, model, X)
    Y = check_labels(Y, f"{op}: Y")
    if Y.shape != (X.shape[0], model.num_labels):
        raise ValueError(f"{op}: Y must be [N, L] = [{X.shape[0]}, {model.num_labels}], got shape {Y.shape}")
    if not len(epsilons):
        raise ValueError(f"{op}: epsilons must be at least one number")
    for epsilon in epsilons:
        threat.check(op, X, epsilon)
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
    return Certificate(str(threat), grid, labels, correct, overtakers, attained, zeros)


@memory_errors("pass fewer documents at a time")
def margin_bounds(
    model: MACH, X: Any, pairs: Any, epsilon: float, *, threat_model: str | ThreatModel = "support"
) -> NDArray[np.float64]:
    """Lower bounds [N] of the lead of label pairs[n, 0] over pairs[n, 1], in the model's own scores.

    Over all documents of the threat set around document n, and of the scores as the model computes them.
    Exact for linear MACH with merge `mean_logit`, to rounding. -inf where float32 might overflow.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> scores, labels = model.predict(X, 2)
        >>> bounds = mach_ext.certify.margin_bounds(model, X, labels, 0.01)
        >>> bool((bounds <= scores[:, 0] - scores[:, 1]).all())
        True

    Raises:
        TypeError, ValueError: As of `certify`; pairs must be labels [N, 2].
    """
    op = "margin_bounds"
    threat = check(model, threat_model, op)
    X = _documents(op, model, X)
    threat.check(op, X, epsilon)
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
    X = check_columns(X, f"{op}: X", model.num_features)
    if not (X.data != 0).all():
        X = X.copy()
        X.eliminate_zeros()
    return X
