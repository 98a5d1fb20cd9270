"""Random noise of the same threat model and size, the control that attacks are compared with."""

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
    """The control: FGSM's step along noise in place of the gradient, of the same size, always taken.

    Args:
        words: The control of `Greedy`: of `Insert(m)` m new features alone, the document's own stay.
        Others: as `FGSM`, but `keep_best`, which is False.
    """

    name = "random"

    def __init__(self, *args: Any, words: bool = False, **options: Any) -> None:
        super().__init__(*args, keep_best=False, **options)
        self.words = words

    def _check_threat(self, op: str) -> None:
        pass

    def _direction(self, start: int, gradient: Tensor) -> Direction:
        return Direction(self._layer, None, len(gradient), self.seed + start)

    def _slope(self, batch: Batch, direction: Direction) -> Tensor:
        x = batch.x
        generator = torch.Generator(x.device).manual_seed(direction.seed)
        slope = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        if not isinstance(self.threat_model, Insert):
            return slope
        own = torch.zeros_like(slope) if self.words else slope
        return torch.where(batch.x == 0, slope.abs(), own)  # new features are really added

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: Targets, grid: list[float]
    ) -> list[Batch]:
        if isinstance(self.threat_model, Delete):
            generator = torch.Generator(x.device).manual_seed(self.seed + start)
            order = rank_in_rows(torch.rand(x.shape, generator=generator, device=x.device), rows_of(indptr))
            rank = torch.empty_like(order)
            rank[order] = torch.arange(len(order), device=x.device) - indptr[rows_of(indptr)]
            clean_loss = self._loss(self._layer.first(x, indices, indptr), goal)
            clean = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            return [self._choose(clean, clean, torch.where(rank < e, 0.0, x), goal) for e in grid]
        return super()._batch(start, x, indices, indptr, goal, grid)
