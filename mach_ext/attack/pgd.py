"""PGD: several steps along gradients, each of them back into the set of the threat model."""

from __future__ import annotations

import math
from typing import Any

import torch

from mach_ext import functional as F
from mach_ext.attack._batch import Batch, merge_batches
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import ROUNDING, Step, round_down


class PGD(FGSM):
    """Several steps, each back into the set; the best point is kept, FGSM's and the clean one among them.

    The first run starts from the clean document, others (`restarts`) from random points. Over all features
    (`Dense`) there is one run, from FGSM's point, and steps are conditional gradients (Frank-Wolfe):
    x + (1 - a) * change + a * eps * sign(gradient) with a = 2 / (t + 2), which stays inside without a
    projection, so that a change remains a sum of few sign matrices. `L1` takes them, too, towards the
    vertices of its set.

    Args:
        steps: Of each run.
        step_size: As a part of epsilon; None: 2.5 / steps. Not of `Dense` and `L1`.
        restarts: Runs from random points, beside the first. Not for `Dense`.
        keep_best: False: the last point is kept, whatever it does.
        Others: as `FGSM`.
    """

    name = "pgd"

    def __init__(
        self, *args: Any, steps: int = 10, step_size: float | None = None, restarts: int = 0, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        steps, restarts = F.as_int("PGD", "steps", steps), F.as_int("PGD", "restarts", restarts)
        if steps < 0 or restarts < 0:
            raise ValueError(f"PGD: steps and restarts must be >= 0, got {steps} and {restarts}")
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f"PGD: step_size must be above 0, got {step_size}")
        self.steps, self.restarts = steps, restarts
        self.step_size = 2.5 / max(1, steps) if step_size is None else step_size

    def _improve(self, clean: Batch, best: Batch, goal: Targets, epsilon: float) -> Batch:
        N, rows, layer, threat = len(clean.indptr) - 1, clean.rows, self._layer, self.threat_model
        generator = torch.Generator(rows.device).manual_seed(self.seed + clean.start)
        for run in range(1 + self.restarts):
            values = clean.x
            if run:
                noise = torch.rand(values.shape, generator=generator, device=rows.device, dtype=values.dtype)
                values = threat.project(clean.x, clean.x + (2 * noise - 1) * epsilon, rows, N, epsilon)
            for t in range(self.steps):
                first = layer.first(values, clean.indices, clean.indptr)
                _, gradient = self._gradient(first, goal)
                slope = layer.to_values(gradient, clean.indices, clean.indptr)
                step = Step(t, self.step_size * epsilon)
                values = threat.advance(clean.x, values, slope, rows, N, epsilon, step)
                best = self._choose(clean, best, values, goal)
        return best

    def _improve_dense(self, clean: Batch, step: Batch, best: Batch, goal: Targets, epsilon: float) -> Batch:
        now = step
        for t in range(1, self.steps + 1):
            a = 2 / (t + 2)
            _, gradient = self._gradient(self._dense_first(now), goal)
            direction, offset, _, own = self._dense_vertex(clean, self._direction(clean.start, gradient))
            size = round_down(epsilon, clean.x.dtype)
            change = self._own_change(clean, direction, own, epsilon)
            toward = clean.x if change is None else clean.x + change
            assert now.offset is not None
            assert now.scale is not None
            directions = [(weight * (1 - a), d) for weight, d in now.directions]
            directions.append((clean.x.new_full((direction.N,), a * size * (1 - ROUNDING)), direction))
            now = Batch(
                clean.start, clean.x, now.values * (1 - a) + toward * a if change is not None else clean.x,
                clean.indices, clean.indptr, clean.loss, clean.loss, directions,
                now.offset * (now.scale * (1 - a))[:, None, None] + offset * (a * size),
                torch.ones_like(now.scale),
            )  # fmt: skip
            now.loss = self._loss(self._dense_first(now), goal)
            best = merge_batches(now, best, self._is_better(now.loss, best.loss))
        return best
