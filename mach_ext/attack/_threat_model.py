"""The base of threat models, and the step of `PGD`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext.attack._rows import norms
from mach_ext.attack._threat_checks import (
    change_of,
    change_outside,
    check_epsilon,
    in_ball,
    negative_values,
    to_float64,
)
from mach_ext.data import HybridMatrix

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

        The numbers of both matrices are compared in float64, up to its rounding. Of a `HybridMatrix` only the
        words may have changed. With `Embedding` only the dense features may have changed.

        Args:
            X: Clean documents [N, D], a SciPy, NumPy or torch matrix, or a `mach_ext.data.HybridMatrix`.
            adversarial: Changed documents, in the same form.
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
        X, adversarial = self._changeable(X, adversarial)
        if X is None:
            return False
        X, adversarial = to_float64(X), to_float64(adversarial)
        change = change_of(X, adversarial, self.nonnegative)
        return change is not None and self._holds(X, change, epsilon)

    def _changeable(self, X: Any, adversarial: Any) -> tuple[Any, Any]:
        """Returns the words of both documents. None and None: the dense features have changed."""
        if not isinstance(X, HybridMatrix):
            return X, adversarial
        same = np.array_equal(X.dense, adversarial.dense)
        return (X.sparse, adversarial.sparse) if same else (None, None)

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        """Returns whether a change is within this threat model. It is not checked for negative values."""
        return in_ball(change, self.norm, epsilon) and not change_outside(X, change).nnz
