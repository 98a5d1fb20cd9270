"""PGD takes several steps along gradients, and each step ends inside the threat model's set."""

from __future__ import annotations

import math
from typing import Any

import torch

from mach_ext import functional as F
from mach_ext.attack._batch import Batch, merge_batches
from mach_ext.attack._threat_checks import round_down
from mach_ext.attack._threat_model import ROUNDING, Step
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import Targets


class PGD(FGSM):
    """Projected gradient descent: several steps, each projected into the threat model's set.

    The best point is kept, including FGSM's point and the clean document. The first run starts from the clean
    document. Other runs (`restarts`) start from random points.

    `Dense` has a single run, which starts from FGSM's point. Its steps are conditional gradients
    (Frank-Wolfe): x + (1 - a) * change + a * eps * sign(gradient) with a = 2 / (t + 2). They stay inside the
    set without a projection, and the change remains a sum of few sign matrices. `L1` also takes such steps,
    towards the vertices of its set. With `encoder`, `Dense` takes the same steps as `Support`.

    Args:
        *args: As in `FGSM`.
        steps: Number of steps in each run.
        step_size: Size of a step as a fraction of epsilon. None: 2.5 / steps. `L1` ignores it, and so does
            `Dense` without `encoder`.
        restarts: Number of further runs from random points. `Dense` without `encoder` ignores it.
        **options: As in `FGSM`. With `keep_best=False` the last point is kept, whatever its loss.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> fgsm = mach_ext.attack.FGSM(model, "insert(2)").perturb(X, Y, epsilon=0.3)
        >>> pgd = mach_ext.attack.PGD(model, "insert(2)", steps=10).perturb(X, Y, epsilon=0.3)
        >>> bool((pgd.loss >= fgsm.loss).all())
        True
    """

    name = "pgd"

    def __init__(
        self, *args: Any, steps: int = 10, step_size: float | None = None, restarts: int = 0, **options: Any
    ) -> None:
        """Makes the attack. The class describes the arguments."""
        super().__init__(*args, **options)
        steps, restarts = F.as_int("PGD", "steps", steps), F.as_int("PGD", "restarts", restarts)
        if steps < 0 or restarts < 0:
            raise ValueError(f"PGD: steps and restarts must be >= 0, got {steps} and {restarts}")
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f"PGD: step_size must be above 0, got {step_size}")
        self.steps, self.restarts = steps, restarts
        self.step_size = 2.5 / max(1, steps) if step_size is None else step_size

    def _improve(self, clean: Batch, best: Batch, goal: Targets, epsilon: float) -> Batch:
        """Improves the best documents in several runs."""
        N, rows, layer = len(clean.indptr) - 1, clean.rows, self._layer
        threat = self._part.on(self.threat_model, clean.indices)
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
        """Improves the best documents by conditional gradients over all features."""
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
