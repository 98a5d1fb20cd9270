"""Threat models: what an attacker may change of a document, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext.attack._rows import first_of_rows, norms, rank_in_rows
from mach_ext.attack._threat_checks import change_outside, in_ball
from mach_ext.attack._threat_model import Step, ThreatModel
from mach_ext.data import HybridMatrix


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
        return in_ball(change, self.norm, epsilon)


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
        new = np.diff(change_outside(X, change).indptr).max(initial=0)
        return in_ball(change, self.norm, epsilon) and bool(new <= self.m)


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
        return _along(g, rows, N, size)


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


@dataclass(frozen=True)
class Embedding(ThreatModel):
    """The dense features of a document may change within a ball of radius epsilon. Its words stay.

    It is for models with dense features (`mach_ext.MACH(num_dense=E)`), such as sentence embeddings. epsilon
    is in the units of the dense features as they were given, before the model centres and scales them. So
    0.1 is a tenth of an embedding of length 1, whatever the model.

    Attributes:
        norm: `math.inf`: each dense feature may change by at most epsilon. 2: the Euclidean length of the
            change is at most epsilon.

    Raises:
        ValueError: `norm` is another number, or `nonnegative` is True.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> Y = scipy.sparse.eye(6, format="csr")  # document i has label i
        >>> X = mach_ext.data.HybridMatrix(Y, np.eye(6, 4, dtype=np.float32))
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0, num_dense=4)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model, "embedding(l2)").perturb(X, Y, epsilon=0.5)
        >>> perturbed.norms["l2"].round(3).tolist()
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    """

    nonnegative: bool = False
    norm: float = math.inf

    name = "embedding"

    def __post_init__(self) -> None:
        """Checks the norm."""
        if self.norm not in (2, math.inf):
            raise ValueError(f"Embedding: norm must be 2 or math.inf, got {self.norm!r}")
        if self.nonnegative:
            raise ValueError("Embedding: nonnegative must be False, because dense features have both signs")

    def __str__(self) -> str:
        """Returns the name, with the norm if it is 2."""
        return f"{self.name}(l2)" if self.norm == 2 else self.name

    def step(self, g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
        """Returns the step of a given size that increases a linear function with gradient g the most.

        Args:
            g: Gradient [nnz].
            rows: Document of each value [nnz].
            N: Number of documents.
            size: Size of the step in the norm of the ball.

        Example:
            >>> import torch
            >>> from mach_ext.attack import Embedding
            >>> g, rows = torch.tensor([3.0, -4.0]), torch.tensor([0, 0])
            >>> Embedding().step(g, rows, 1, size=0.5), Embedding(norm=2).step(g, rows, 1, size=0.5)
            (tensor([ 0.5000, -0.5000]), tensor([ 0.3000, -0.4000]))
        """
        return _along(g, rows, N, size) if self.norm == 2 else super().step(g, rows, N, size)

    def _changeable(self, X: Any, adversarial: Any) -> tuple[Any, Any]:
        """Returns the dense features of both documents. None and None: the words have changed."""
        if not isinstance(X, HybridMatrix):
            raise TypeError(
                "Embedding.holds: documents must be a HybridMatrix, whose dense features have their own "
                f"units, got {type(X).__name__}"
            )
        same = (X.sparse != adversarial.sparse).nnz == 0
        return (X.dense.astype(np.float64), adversarial.dense.astype(np.float64)) if same else (None, None)

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        """Returns whether a change is within this threat model."""
        return in_ball(change, self.norm, epsilon)


def _along(g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
    """Returns the step of a Euclidean length along a gradient g [nnz]."""
    scale = (size / norms(g.double(), rows, N, 2.0)).nan_to_num(0.0, posinf=0.0)
    return (g.double() * scale[rows]).to(g.dtype)


_THREATS: dict[str, type[ThreatModel]] = {
    t.name: t for t in (Dense, Support, Insert, L2, L1, Delete, Embedding)
}
_NORMS = {"linf": math.inf, "l2": 2.0}


def threat_model(text: str | ThreatModel, nonnegative: bool | None = None) -> ThreatModel:
    """Returns the threat model of a name.

    Args:
        text: "dense", "support", "insert", "insert(10)", "l2", "l1", "delete", "embedding" or
            "embedding(l2)". A threat model is returned unchanged.
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
    argument = rest.removesuffix(")") if rest.endswith(")") else ""
    options: dict[str, Any] = {} if nonnegative is None else {"nonnegative": nonnegative}
    if name == "insert" and argument.isdecimal():
        options["m"] = int(argument)
    elif name == "embedding" and argument in _NORMS:
        options["norm"] = _NORMS[argument]
    elif name not in _THREATS or parenthesis:
        known = ", ".join((*_THREATS, "embedding(l2)"))
        raise ValueError(f"threat model must be one of {known}, or as insert(10), got {text!r}")
    return _THREATS[name](**options)
