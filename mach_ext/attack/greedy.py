"""Greedy attacks on words: they delete or insert one word at a time."""

from __future__ import annotations

import math

from torch import Tensor

from mach_ext.attack._batch import Batch
from mach_ext.attack._rows import first_of_rows, rank_in_rows
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import Delete, Insert, round_down


class Greedy(FGSM):
    """Words, one at a time, that of the largest first-order effect, with the gradient taken anew each time.

    With `Delete()` epsilon words are removed; with `Insert(m)` m words of weight epsilon are added and the
    document's own are left alone. The best document on the way is kept.
    """

    name = "greedy"
    usual_threat = "delete"

    def _check_threat(self, op: str) -> None:
        if not isinstance(self.threat_model, (Delete, Insert)):
            raise ValueError(f"{op}: threat model must be delete or insert(m), got {self.threat_model}")

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: Targets, grid: list[float]
    ) -> list[Batch]:
        clean_loss = self._loss(self._layer.first(x, indices, indptr), goal)
        if isinstance(self.threat_model, Insert):
            clean = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            return [self._insert(clean, goal, epsilon, self.threat_model.m) for epsilon in grid]
        clean = best = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
        values, asked, by_count = x, {int(epsilon) for epsilon in grid}, {0: clean}
        for count in range(1, max(asked, default=0) + 1):
            first = self._layer.first(values, indices, indptr)
            _, gradient = self._gradient(first, goal)
            effect = -self._layer.to_values(gradient, indices, indptr) * values
            effect[values == 0] = -math.inf
            chosen = first_of_rows(rank_in_rows(effect, clean.rows), clean.rows, len(indptr) - 1)
            chosen = chosen[effect[chosen] > 0]
            if not len(chosen):  # nothing more helps, in any document
                break
            values = values.clone()
            values[chosen] = 0
            best = self._choose(clean, best, values, goal)
            if count in asked:
                by_count[count] = best
        # For a larger count best stays: more words would not have changed it.
        return [by_count.get(int(epsilon), best) for epsilon in grid]

    def _insert(self, clean: Batch, goal: Targets, epsilon: float, m: int) -> Batch:
        best, now = clean, clean
        size = round_down(epsilon, clean.x.dtype)
        for _ in range(m if epsilon else 0):
            first = self._layer.first(now.values, now.indices, now.indptr)
            _, gradient = self._gradient(first, goal)
            direction = self._direction(clean.start, gradient)
            wide = [
                self._with_new(v, now.indices, now.indptr, direction, 1)[0]
                for v in (now.x, now.values, best.values)
            ]
            _, indices, indptr = self._with_new(now.x, now.indices, now.indptr, direction, 1)
            new = indptr[1:] - 1
            slope = self._layer.to_values(gradient, indices, indptr)[new]
            values = wide[1].clone()
            values[new] = size * slope.sign().clamp(min=0 if self.threat_model.nonnegative else -1)
            last = Batch(clean.start, wide[0], wide[0], indices, indptr, clean.loss, clean.loss)
            best = Batch(clean.start, wide[0], wide[2], indices, indptr, best.loss, clean.loss)
            best = self._choose(last, best, values, goal)
            now = Batch(clean.start, wide[0], values, indices, indptr, clean.loss, clean.loss)
        return best
