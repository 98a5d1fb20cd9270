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

ROUNDING = 1e-7  # how far inside what rounded sums must not exceed


@dataclass(frozen=True)
class Step:
    """One of the steps of `PGD`."""

    number: int  # from 0
    size: float  # in the norm of the ball


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may do to a document x: which features, and how far.

    With `nonnegative` values stay >= 0, as term weights are; documents with negative values are refused then.
    `epsilon` is the radius of a ball around x, or for `Delete` a number of words.
    """

    nonnegative: bool = True

    name = ""
    norm = math.inf  # of the ball

    def __str__(self) -> str:
        return self.name

    def check(self, op: str, X: Any, epsilon: float) -> None:
        """Raises ValueError where the threat model doesn't fit documents X or epsilon."""
        if not (isinstance(epsilon, (int, float, np.number)) and 0 <= epsilon < math.inf):
            raise ValueError(f"{op}: epsilon must be a number >= 0, got {epsilon!r}")
        if self.nonnegative and X.nnz and X.data.min() < 0:
            row = int(np.searchsorted(X.indptr, np.argmin(X.data), side="right")) - 1
            raise ValueError(
                f"{op}: threat model {self} keeps values >= 0, but X has {X.data.min():g} in row {row}: "
                f"{type(self).__name__}(nonnegative=False) is for such features"
            )

    def bounds(self, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """Lowest and highest values, float64, of features whose values are x, each by itself."""
        low, high = x.double() - epsilon, x.double() + epsilon
        return (low.clamp(min=0) if self.nonnegative else low), high

    def project(self, x: Tensor, y: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """Values y moved into the set around x; L2 and L1: on a straight line to x. Rounding stays inside."""
        low, high = self.bounds(x, epsilon)
        inside = y.double().clamp(low, high)
        if self.norm != math.inf:
            size = norms(inside - x.double(), rows, N, self.norm)
            shrink = (epsilon * (1 - ROUNDING) / size).clamp(max=1)  # 0 / 0 and eps / 0: nothing to shrink
            shrink = shrink.nan_to_num(1.0)
            inside = x.double() + (inside - x.double()) * shrink[rows]
        near = inside.to(x.dtype)
        beyond = (near.double() - x.double()).abs() > (inside - x.double()).abs()
        return torch.where(beyond, near.nextafter(x), near)

    def step(self, g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
        """The step of a given size, in the norm of the ball, that the gradient g rises most along."""
        return g.sign() * size

    def vertex(self, x: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """The point of the set in which FGSM ends: the step of size epsilon, projected."""
        return self.project(x, x + self.step(g, rows, N, epsilon), rows, N, epsilon)

    def advance(
        self, x: Tensor, now: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float, step: Step
    ) -> Tensor:
        """PGD's point after `now`: a step of a given size, projected."""
        return self.project(x, now + self.step(g, rows, N, step.size), rows, N, epsilon)

    def holds(self, X: Any, adversarial: Any, epsilon: float) -> bool:
        """Whether documents `adversarial` are within this threat model around X, every one of them.

        In float64, to its rounding; of what the numbers in the two matrices are.
        """
        X, adversarial = _to_float64(X), _to_float64(adversarial)
        change = adversarial - X
        change.eliminate_zeros()
        if self.nonnegative and adversarial.data.min(initial=0) < 0:
            return False
        return bool(np.isfinite(change.data).all()) and self._holds(X, change, epsilon)

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        return _in_ball(change, self.norm, epsilon) and not _change_outside(X, change).nnz


@dataclass(frozen=True)
class Dense(ThreatModel):
    """Every feature by at most epsilon (L-inf), also those that the document lacks. Not a small change: it
    adds up to D non-zeros and has L2 norm up to epsilon * sqrt(D). Values may fall below 0 by default."""

    nonnegative: bool = False

    name = "dense"

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        return _in_ball(change, self.norm, epsilon)


@dataclass(frozen=True)
class Support(ThreatModel):
    """The document's own features, each by at most epsilon (L-inf)."""

    name = "support"


@dataclass(frozen=True)
class Insert(ThreatModel):
    """As `Support`, and at most m features more, of at most epsilon."""

    m: int = 5

    name = "insert"

    def __str__(self) -> str:
        return f"insert({self.m})"

    def check(self, op: str, X: Any, epsilon: float) -> None:
        super().check(op, X, epsilon)
        max_m = X.shape[1] - int(np.diff(X.indptr).max(initial=0))
        if not 0 <= self.m <= max_m:
            raise ValueError(
                f"{op}: threat model {self}: m must be in 0 ... {max_m}, what a document of X lacks of its "
                f"D={X.shape[1]} features, got {self.m}"
            )

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        new = np.diff(_change_outside(X, change).indptr).max(initial=0)
        return _in_ball(change, self.norm, epsilon) and bool(new <= self.m)


@dataclass(frozen=True)
class L2(ThreatModel):
    """The document's own features, within a Euclidean ball."""

    name = "l2"
    norm = 2.0

    def step(self, g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
        scale = (size / norms(g.double(), rows, N, 2.0)).nan_to_num(0.0, posinf=0.0)
        return (g.double() * scale[rows]).to(g.dtype)


@dataclass(frozen=True)
class L1(ThreatModel):
    """The document's own features, by epsilon in all: the few that count most take it."""

    name = "l1"
    norm = 1.0

    def vertex(self, x: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """By falling gradient, each feature as far as it may go, until epsilon is used up."""
        low, high = self.bounds(x, epsilon)
        room = torch.where(g > 0, high - x.double(), torch.where(g < 0, x.double() - low, 0.0))
        order = rank_in_rows(g.abs(), rows)
        used = room[order].cumsum(0) - room[order]  # by features before it, all documents'
        first = first_of_rows(torch.arange(len(rows), device=rows.device), rows, N)
        start = used.new_zeros(N)
        start[rows[first]] = used[first]
        left = (epsilon - (used - start[rows])).clamp(min=0)  # `order` keeps documents together: same rows
        move = torch.empty_like(room)
        move[order] = torch.minimum(room[order], left)
        return self.project(x, (x.double() + g.sign() * move).to(x.dtype), rows, N, epsilon)

    def advance(
        self, x: Tensor, now: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float, step: Step
    ) -> Tensor:
        """A conditional gradient (Frank-Wolfe): a part of the way to the vertex, which never sticks at a
        bound, as steps along the largest gradient do."""
        to = self.vertex(x, g, rows, N, epsilon)
        return self.project(x, now + 2 / (step.number + 2) * (to - now), rows, N, epsilon)


@dataclass(frozen=True)
class Delete(ThreatModel):
    """At most epsilon words are removed, and nothing else. For `Greedy`."""

    nonnegative: bool = False

    name = "delete"
    norm = 0.0

    def check(self, op: str, X: Any, epsilon: float) -> None:
        super().check(op, X, epsilon)
        if epsilon != int(epsilon):
            raise ValueError(f"{op}: epsilon of threat model {self} must be a number of words, got {epsilon}")

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        kept = X + change
        kept.eliminate_zeros()
        same = abs(kept - X.multiply(kept != 0)).max() == 0
        return bool(same and np.diff(change.indptr).max(initial=0) <= epsilon)


_THREATS: dict[str, type[ThreatModel]] = {t.name: t for t in (Dense, Support, Insert, L2, L1, Delete)}


def threat_model(text: str | ThreatModel, nonnegative: bool | None = None) -> ThreatModel:
    """A threat model from its name: "dense", "support", "insert" or "insert(10)", "l2", "l1", "delete".

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


def _to_float64(X: Any) -> Any:
    """CSR of float64; duplicates are summed as that, not in a small dtype of their own."""
    return scipy.sparse.csr_matrix(scipy.sparse.coo_matrix(X).astype(np.float64))


def _in_ball(change: Any, norm: float, epsilon: float) -> bool:
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
    """The part of a change at features where X is 0."""
    outside = scipy.sparse.csr_matrix(change - change.multiply(X != 0))
    outside.eliminate_zeros()
    return outside


def round_down(epsilon: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is not above epsilon."""
    near = torch.tensor(epsilon, dtype=dtype)
    if near.double().item() > epsilon:
        near = near.nextafter(near.new_tensor(0.0))
    return float(near)
