"""Random noise of the same threat model and size, as a control for attacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mach_ext.attack._batch import Batch
from mach_ext.attack._dense import Direction
from mach_ext.attack._rows import rank_in_rows, rows_of
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import Delete, Insert


class Random(FGSM):
    """The control: FGSM's step along random noise instead of the gradient, of the same size and always taken.

    The arguments are those of `FGSM` without `keep_best`, which is False, and `words`.

    Args:
        words: True: the control of `Greedy`. With `Insert(m)` only the m new features change.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> noisy = mach_ext.attack.Random(model).perturb(X, Y, epsilon=0.5)
        >>> noisy.predict(1)[1].ravel().tolist()  # the attack FGSM of the same size changes five labels
        [0, 2, 2, 3, 4, 5]
    """

    name = "random"

    def __init__(self, *args: Any, words: bool = False, **options: Any) -> None:
        """Makes the control.

        Args:
            *args: As in `FGSM`.
            words: True: the control of `Greedy`.
            **options: As in `FGSM`.
        """
        super().__init__(*args, keep_best=False, **options)
        self.words = words

    def _check_threat(self, op: str) -> None:
        """Accepts all threat models."""
        pass

    def _direction(self, start: int, gradient: Tensor) -> Direction:
        """Returns noise over all features."""
        return Direction(self._layer, None, len(gradient), self.seed + start)

    def _gradient(self, first: Tensor, goal: Targets) -> tuple[Tensor, Tensor]:
        """Returns the loss of each document, and in place of its gradient a tensor of that shape."""
        return self._loss(first, goal), first

    def _slope(self, batch: Batch, direction: Direction) -> Tensor:
        """Returns noise at the entries of a batch."""
        x = batch.x
        generator = torch.Generator(x.device).manual_seed(direction.seed)
        slope = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        if not isinstance(self.threat_model, Insert):
            return slope
        own = torch.zeros_like(slope) if self.words else slope
        return torch.where(batch.x == 0, slope.abs(), own)  # a positive slope adds a new feature

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: Targets, grid: list[float]
    ) -> list[Batch]:
        """Perturbs a batch of documents at each size of the grid."""
        if isinstance(self.threat_model, Delete):
            generator = torch.Generator(x.device).manual_seed(self.seed + start)
            free = self._part.contains(indices)
            key = torch.rand(x.shape, generator=generator, device=x.device).where(free, -1.0)
            order = rank_in_rows(key, rows_of(indptr))
            rank = torch.empty_like(order)
            rank[order] = torch.arange(len(order), device=x.device) - indptr[rows_of(indptr)]
            clean_loss = self._loss(self._layer.first(x, indices, indptr), goal)
            clean = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            return [self._choose(clean, clean, torch.where((rank < e) & free, 0.0, x), goal) for e in grid]
        return super()._batch(start, x, indices, indptr, goal, grid)
