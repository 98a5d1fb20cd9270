"""Threat models: what an attacker may change of a document, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from mach_ext.attack._rows import first_of_rows, norms, rank_in_rows

ROUNDING = 1e-7  # relative distance to a bound, so that rounded sums do not exceed it


@dataclass(frozen=True)
class Step:
    """A step of `PGD`."""

    number: int  # counts from 0
    size: float  # in the norm of the threat model


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may do to a document x: which features may change, and how far.

    epsilon is the radius of a ball around x. For `Delete` it is a number of words.

    Attributes:
        nonnegative: True: values stay >= 0, as term weights are. Documents with negative values are refused.
        name: Name of the threat model, as in `threat_model`.
        norm: Norm of the ball.

    Example:
        >>> from mach_ext.attack import Insert, L2, Support
        >>> [str(threat) for threat in (Support(), Insert(m=10), L2(nonnegative=False))]
        ['support', 'insert(10)', 'l2']
    """

    nonnegative: bool = True

    name = ""
    norm = math.inf

    def __str__(self) -> str:
        """Returns the name."""
        return self.name

    def check(self, op: str, X: Any, epsilon: float) -> None:
        """Checks that the threat model fits documents and epsilon.

        Args:
            op: How messages call the function.
            X: Documents [N, D], SciPy CSR.
            epsilon: The size of the change.

        Raises:
            ValueError: It does not fit.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.attack import Support
            >>> Support().check("demo", sparse.csr_matrix([[0.5, 1.0]]), 0.1)
            >>> Support().check("demo", sparse.csr_matrix([[0.5, 1.0]]), -1)
            Traceback (most recent call last):
            ...
            ValueError: demo: epsilon must be a number >= 0, got -1
        """
        check_epsilon(op, epsilon)
        if self.nonnegative and X.nnz and X.data.min() < 0:
            row = int(np.searchsorted(X.indptr, np.argmin(X.data), side="right")) - 1
            raise negative_values(op, self, X.data.min(), row)

    def bounds(self, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """Returns the lowest and the highest value of each feature by itself, float64.

        Args:
            x: Values of features [nnz].
            epsilon: The size of the change.

        Example:
            >>> import torch
            >>> from mach_ext.attack import Support
            >>> low, high = Support().bounds(torch.tensor([0.5, 1.0]), epsilon=0.75)
            >>> low.tolist(), high.tolist()
            ([0.0, 0.25], [1.25, 1.75])
        """
        low, high = x.double() - epsilon, x.double() + epsilon
        return (low.clamp(min=0) if self.nonnegative else low), high

    def project(self, x: Tensor, y: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """Moves values y into the set around x. Rounding never leads out of the set.

        `L2` and `L1` move them on a straight line to x.

        Args:
            x: Clean values [nnz].
            y: Values to move [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            epsilon: The size of the change.

        Example:
            >>> import torch
            >>> from mach_ext.attack import Support
            >>> x, y = torch.tensor([0.5, 1.0]), torch.tensor([2.0, 1.5])
            >>> Support().project(x, y, rows=torch.tensor([0, 0]), N=1, epsilon=0.75)
            tensor([1.2500, 1.5000])
        """
        low, high = self.bounds(x, epsilon)
        inside = y.double().clamp(low, high)
        change = inside - x.double()
        if self.norm != math.inf:
            size = norms(change, rows, N, self.norm)
            shrink = (epsilon * (1 - ROUNDING) / size).clamp(max=1)  # 0 / 0 and eps / 0: nothing to shrink
            change = change * shrink.nan_to_num(1.0)[rows]
            inside = x.double() + change
        limit = (inside - x.double()).abs()
        if x.dtype == torch.float64:  # The sums x + change are rounded to this dtype, too.
            limit = torch.minimum(limit, change.abs().clamp(max=epsilon))
        near = inside.to(x.dtype)
        beyond = (near.double() - x.double()).abs() > limit
        return torch.where(beyond, near.nextafter(x), near)

    def step(self, g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
        """Returns the step of a given size that increases a linear function with gradient g the most.

        Args:
            g: Gradient [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            size: Size of the step in the norm of the threat model.

        Example:
            >>> import torch
            >>> from mach_ext.attack import L2, Support
            >>> g, rows = torch.tensor([3.0, -4.0]), torch.tensor([0, 0])
            >>> Support().step(g, rows, 1, size=0.5), L2().step(g, rows, 1, size=0.5)
            (tensor([ 0.5000, -0.5000]), tensor([ 0.3000, -0.4000]))
        """
        return g.sign() * size

    def vertex(self, x: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """Returns the point at which FGSM ends: the step of size epsilon, projected.

        Args:
            x: Clean values [nnz].
            g: Gradient [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            epsilon: The size of the change.

        Example:
            >>> import torch
            >>> from mach_ext.attack import Support
            >>> x, g = torch.tensor([0.5, 1.0]), torch.tensor([3.0, -4.0])
            >>> Support().vertex(x, g, rows=torch.tensor([0, 0]), N=1, epsilon=0.75)
            tensor([1.2500, 0.2500])
        """
        return self.project(x, x + self.step(g, rows, N, epsilon), rows, N, epsilon)

    def advance(
        self, x: Tensor, now: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float, step: Step
    ) -> Tensor:
        """Returns PGD's next point: a step from `now`, projected.

        Args:
            x: Clean values [nnz].
            now: Present values [nnz].
            g: Gradient at the present values [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            epsilon: The size of the change.
            step: Number and size of the step.

        Example:
            >>> import torch
            >>> from mach_ext.attack import Support
            >>> from mach_ext.attack.threats import Step
            >>> x, g, rows = torch.tensor([0.5, 1.0]), torch.tensor([3.0, -4.0]), torch.tensor([0, 0])
            >>> Support().advance(x, x, g, rows, N=1, epsilon=0.75, step=Step(number=0, size=0.25))
            tensor([0.7500, 0.7500])
        """
        return self.project(x, now + self.step(g, rows, N, step.size), rows, N, epsilon)

    def holds(self, X: Any, adversarial: Any, epsilon: float) -> bool:
        """Returns whether all documents `adversarial` are within this threat model around X.

        The numbers of both matrices are compared in float64, up to its rounding.

        Args:
            X: Clean documents [N, D], a SciPy, NumPy or torch matrix.
            adversarial: Changed documents [N, D], a SciPy, NumPy or torch matrix.
            epsilon: The size of the change.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.attack import Support
            >>> X = sparse.csr_matrix([[0.5, 1.0, 0.0]])
            >>> Support().holds(X, sparse.csr_matrix([[0.75, 1.0, 0.0]]), epsilon=0.25)
            True
            >>> Support().holds(X, sparse.csr_matrix([[0.5, 1.0, 0.25]]), epsilon=0.25)  # a new feature
            False
        """
        X, adversarial = _to_float64(X), _to_float64(adversarial)
        change = _change(self, X, adversarial)
        return change is not None and self._holds(X, change, epsilon)

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        """Returns whether a change is within this threat model. It is not checked for negative values."""
        return _in_ball(change, self.norm, epsilon) and not _change_outside(X, change).nnz


@dataclass(frozen=True)
class Dense(ThreatModel):
    """Every feature may change by at most epsilon (L-inf), including features that the document lacks.

    This is not a small change. It adds up to D non-zeros and has an L2 norm of up to epsilon * sqrt(D). By
    default values may fall below 0.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model, "dense").perturb(X, Y, epsilon=0.1)
        >>> perturbed.to_csr()[0].toarray().round(2)
        array([[ 0.9,  0.5,  0.1,  0.1, -0.1, -0.1]], dtype=float32)
    """

    nonnegative: bool = False

    name = "dense"

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        """Returns whether a change is within this threat model."""
        return _in_ball(change, self.norm, epsilon)


@dataclass(frozen=True)
class Support(ThreatModel):
    """Each of the document's own features may change by at most epsilon (L-inf).

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model, "support").perturb(X, Y, epsilon=0.5)
        >>> perturbed.to_csr()[0].toarray().round(2)
        array([[0.5, 0.9, 0. , 0. , 0. , 0. ]], dtype=float32)
    """

    name = "support"


@dataclass(frozen=True)
class Insert(ThreatModel):
    """The same as `Support`, and at most m new features of at most epsilon each.

    Attributes:
        m: The largest number of new features in a document.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model, "insert(2)").perturb(X, Y, epsilon=0.5)
        >>> perturbed.to_csr()[0].toarray().round(2)
        array([[0.5, 0.9, 0.5, 0.5, 0. , 0. ]], dtype=float32)
    """

    m: int = 5

    name = "insert"

    def __str__(self) -> str:
        """Returns the name with m."""
        return f"insert({self.m})"

    def check(self, op: str, X: Any, epsilon: float) -> None:
        """Checks that the threat model fits documents and epsilon.

        Args:
            op: How messages call the function.
            X: Documents [N, D], SciPy CSR.
            epsilon: The size of the change.

        Raises:
            ValueError: It does not fit. For example a document lacks fewer than m features.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.attack import Insert
            >>> Insert(m=1).check("demo", sparse.csr_matrix([[0.5, 1.0, 0.0]]), 0.1)
        """
        super().check(op, X, epsilon)
        max_m = X.shape[1] - int(np.diff(X.indptr).max(initial=0))
        if not 0 <= self.m <= max_m:
            raise ValueError(
                f"{op}: threat model {self}: m must be in 0 ... {max_m}, because a document of X lacks only "
                f"{max_m} of the D={X.shape[1]} features, got {self.m}"
            )

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        """Returns whether a change is within this threat model."""
        new = np.diff(_change_outside(X, change).indptr).max(initial=0)
        return _in_ball(change, self.norm, epsilon) and bool(new <= self.m)


@dataclass(frozen=True)
class L2(ThreatModel):
    """The document's own features may change within a Euclidean ball of radius epsilon.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model, "l2").perturb(X, Y, epsilon=0.5)
        >>> perturbed.norms["l2"].round(2).tolist()
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    """

    name = "l2"
    norm = 2.0

    def step(self, g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
        """Returns the step of a given Euclidean length along the gradient.

        Args:
            g: Gradient [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            size: Length of the step.

        Example:
            >>> import torch
            >>> from mach_ext.attack import L2
            >>> L2().step(torch.tensor([3.0, -4.0]), rows=torch.tensor([0, 0]), N=1, size=0.5)
            tensor([ 0.3000, -0.4000])
        """
        scale = (size / norms(g.double(), rows, N, 2.0)).nan_to_num(0.0, posinf=0.0)
        return (g.double() * scale[rows]).to(g.dtype)


@dataclass(frozen=True)
class L1(ThreatModel):
    """The document's own features may change by epsilon in all. An attack spends it on the few best features.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model, "l1").perturb(X, Y, epsilon=0.5)
        >>> perturbed.to_csr()[0].toarray().round(2)
        array([[0.5, 0.4, 0. , 0. , 0. , 0. ]], dtype=float32)
    """

    name = "l1"
    norm = 1.0

    def vertex(self, x: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """Returns the point at which FGSM ends.

        Features are changed in the order of falling gradient, each as far as allowed, until epsilon is used
        up.

        Args:
            x: Clean values [nnz].
            g: Gradient [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            epsilon: The size of the change.

        Example:
            >>> import torch
            >>> from mach_ext.attack import L1
            >>> x, g = torch.tensor([0.5, 1.0]), torch.tensor([3.0, -4.0])
            >>> L1().vertex(x, g, rows=torch.tensor([0, 0]), N=1, epsilon=0.75)
            tensor([0.5000, 0.2500])
        """
        low, high = self.bounds(x, epsilon)
        room = torch.where(g > 0, high - x.double(), torch.where(g < 0, x.double() - low, 0.0))
        order = rank_in_rows(g.abs(), rows)
        used = room[order].cumsum(0) - room[order]  # by all entries before this entry, over all documents
        first = first_of_rows(torch.arange(len(rows), device=rows.device), rows, N)
        start = used.new_zeros(N)
        start[rows[first]] = used[first]
        left = (epsilon - (used - start[rows])).clamp(min=0)  # `order` keeps documents together
        move = torch.empty_like(room)
        move[order] = torch.minimum(room[order], left)
        return self.project(x, (x.double() + g.sign() * move).to(x.dtype), rows, N, epsilon)

    def advance(
        self, x: Tensor, now: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float, step: Step
    ) -> Tensor:
        """Returns PGD's next point by a conditional gradient (Frank-Wolfe).

        It goes a part of the way to the vertex. Steps along the largest gradient would get stuck at a bound.

        Args:
            x: Clean values [nnz].
            now: Present values [nnz].
            g: Gradient at the present values [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            epsilon: The size of the change.
            step: Number of the step. Its size is ignored.

        Example:
            >>> import torch
            >>> from mach_ext.attack import L1
            >>> from mach_ext.attack.threats import Step
            >>> x, g, rows = torch.tensor([0.5, 1.0]), torch.tensor([3.0, -4.0]), torch.tensor([0, 0])
            >>> L1().advance(x, x, g, rows, N=1, epsilon=0.75, step=Step(number=2, size=0.25))
            tensor([0.5000, 0.6250])
        """
        to = self.vertex(x, g, rows, N, epsilon)
        return self.project(x, now + 2 / (step.number + 2) * (to - now), rows, N, epsilon)


@dataclass(frozen=True)
class Delete(ThreatModel):
    """At most epsilon words are removed, and nothing else changes. `Greedy` is the attack for it.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.Greedy(model, "delete").perturb(X, Y, epsilon=1)
        >>> perturbed.to_csr()[0].toarray().round(2)
        array([[0. , 0.4, 0. , 0. , 0. , 0. ]], dtype=float32)
    """

    nonnegative: bool = False

    name = "delete"
    norm = 0.0

    def check(self, op: str, X: Any, epsilon: float) -> None:
        """Checks that the threat model fits documents and epsilon.

        Args:
            op: How messages call the function.
            X: Documents [N, D], SciPy CSR.
            epsilon: The number of words.

        Raises:
            ValueError: It does not fit. For example epsilon is not a whole number.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.attack import Delete
            >>> Delete().check("demo", sparse.csr_matrix([[0.5, 1.0]]), 1.5)
            Traceback (most recent call last):
            ...
            ValueError: demo: epsilon of threat model delete must be a number of words, got 1.5
        """
        super().check(op, X, epsilon)
        if epsilon != int(epsilon):
            raise ValueError(f"{op}: epsilon of threat model {self} must be a number of words, got {epsilon}")

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        """Returns whether a change is within this threat model."""
        kept = X + change
        kept.eliminate_zeros()
        same = abs(kept - X.multiply(kept != 0)).max() == 0
        return bool(same and np.diff(change.indptr).max(initial=0) <= epsilon)


_THREATS: dict[str, type[ThreatModel]] = {t.name: t for t in (Dense, Support, Insert, L2, L1, Delete)}


def threat_model(text: str | ThreatModel, nonnegative: bool | None = None) -> ThreatModel:
    """Returns the threat model of a name.

    Args:
        text: "dense", "support", "insert", "insert(10)", "l2", "l1" or "delete". A threat model is returned
            unchanged.
        nonnegative: Whether values stay >= 0. None: the threat model's default.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> from mach_ext.attack import threat_model
        >>> threat_model("insert(3)")
        Insert(nonnegative=True, m=3)
    """
    if isinstance(text, ThreatModel):
        return text
    name, parenthesis, rest = str(text).partition("(")
    count = rest.removesuffix(")")
    if name not in _THREATS or (parenthesis and (name != "insert" or count == rest or not count.isdecimal())):
        known = ", ".join(_THREATS)
        raise ValueError(f"threat model must be one of {known}, or as insert(10), got {text!r}")
    options: dict[str, Any] = {} if nonnegative is None else {"nonnegative": nonnegative}
    if parenthesis:
        options["m"] = int(count)
    return _THREATS[name](**options)


def check_epsilon(op: str, epsilon: Any) -> None:
    """Refuses a size that is no number or negative."""
    if not (isinstance(epsilon, (int, float, np.number)) and 0 <= epsilon < math.inf):
        raise ValueError(f"{op}: epsilon must be a number >= 0, got {epsilon!r}")


def negative_values(op: str, threat: ThreatModel, value: float, row: int) -> ValueError:
    """Returns the error for a negative value where the threat model keeps values >= 0."""
    return ValueError(
        f"{op}: threat model {threat} keeps values >= 0, but X has {value:g} in row {row}; "
        f"use {type(threat).__name__}(nonnegative=False) for such features"
    )


def holds_on_all_entries(threat: ThreatModel, X: Any, adversarial: Any, epsilon: float) -> bool:
    """Returns whether matrices are within a threat model's ball. Entries that are 0 may change, too."""
    change = _change(threat, _to_float64(X), _to_float64(adversarial))
    return change is not None and _in_ball(change, threat.norm, epsilon)


def _change(threat: ThreatModel, X: Any, adversarial: Any) -> Any:
    """Returns the change of documents. None: it is not finite, or it leads to values that must not be < 0."""
    change = adversarial - X
    change.eliminate_zeros()
    is_negative = threat.nonnegative and adversarial.data.min(initial=0) < 0
    return None if is_negative or not np.isfinite(change.data).all() else change


def _to_float64(X: Any) -> Any:
    """Returns CSR of float64. Duplicates are summed in float64, not in a smaller dtype of their own."""
    return scipy.sparse.csr_matrix(scipy.sparse.coo_matrix(X).astype(np.float64))


def _in_ball(change: Any, norm: float, epsilon: float) -> bool:
    """Returns whether the change of every document is within a ball of radius epsilon."""
    rows = np.repeat(np.arange(change.shape[0]), np.diff(change.indptr))
    size = np.abs(change.data)
    if norm == math.inf:
        reached = size
    elif norm == 1:
        reached = np.bincount(rows, size, minlength=1)
    else:
        reached = np.sqrt(np.bincount(rows, size**2, minlength=1))
    return bool(reached.max(initial=0.0) <= epsilon * (1 + 1e-12))


def _change_outside(X: Any, change: Any) -> Any:
    """Returns the part of a change at features at which X is 0."""
    outside = scipy.sparse.csr_matrix(change - change.multiply(X != 0))
    outside.eliminate_zeros()
    return outside


def round_down(epsilon: float, dtype: torch.dtype) -> float:
    """Returns the largest number of the dtype that is not above epsilon."""
    near = torch.tensor(epsilon, dtype=dtype)
    if near.double().item() > epsilon:
        near = near.nextafter(near.new_tensor(0.0))
    return float(near)
