"""FGSM: one step along the gradient. The other attacks are built on it."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext.attack._base import Attack
from mach_ext.attack._batch import Batch, restore_others
from mach_ext.attack._dense import Direction, Entries, best_new_features, sign_pass
from mach_ext.attack._rows import rows_of
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import Dense, Insert, round_down


class FGSM(Attack):
    """One step along the gradient at the clean document (Goodfellow et al. 2015), to the edge of the set.

    A document whose loss that does not raise stays as it is, unless `keep_best` is False.

    Args:
        model: Used in eval mode.
        threat_model: An object, or a name as of `threat_model`.
        goal: One of `GOALS`.
        k: Top k of goals "own", "positive", "negative"; None: 5. With fewer labels None is L, or L - 1 for
            the latter two, which need a label outside the top k.
        keep_best: False: the step is taken whatever it does.
        seed: Of noise.
        batch_size: Documents at a time; None: as many as keep the first layer within 64 MiB, at most 1,024.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> Y = scipy.sparse.csr_matrix(([1, 1, 1], ([0, 1, 2], [7, 80, 450])), (3, 500))
        >>> found = mach_ext.attack.FGSM(model, threat_model="dense").perturb(X, Y, epsilon=0.01)
        >>> bool((found.loss >= found.clean_loss).all()), found.to_csr().nnz > 200
        (True, True)
    """

    name = "fgsm"

    def _direction(self, start: int, gradient: Tensor) -> Direction:
        return Direction(self._layer, gradient, len(gradient))

    def _slope(self, batch: Batch, direction: Direction) -> Tensor:
        """The direction at the entries of a batch."""
        assert direction.gradient is not None
        return self._layer.to_values(direction.gradient, batch.indices, batch.indptr)

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: Targets, grid: list[float]
    ) -> list[Batch]:
        clean_loss, gradient = self._gradient(self._layer.first(x, indices, indptr), goal)
        direction = self._direction(start, gradient)
        if isinstance(self.threat_model, Dense):
            clean = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            vertex = self._dense_vertex(clean, direction)
            return [self._dense_step(clean, vertex, goal, epsilon) for epsilon in grid]
        if isinstance(self.threat_model, Insert):
            x, indices, indptr = self._with_new(x, indices, indptr, direction, self.threat_model.m)
        clean = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
        slope = self._slope(clean, direction)
        return [self._sparse_step(clean, slope, goal, epsilon) for epsilon in grid]

    # -------------------------------------------------------------- the document's own (and m new) features

    def _with_new(
        self, x: Tensor, indices: Tensor, indptr: Tensor, direction: Direction, m: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """CSR arrays with m features more of value 0 in each document, behind its own."""
        rows = rows_of(indptr)
        new = best_new_features(direction, Entries(rows, indices), m, self.threat_model.nonnegative)
        N = len(indptr) - 1
        positions = torch.arange(len(x), device=x.device) + m * rows
        added = indptr[1:, None] + m * torch.arange(N, device=x.device)[:, None]
        added = (added + torch.arange(m, device=x.device)).flatten()
        values = x.new_zeros(len(x) + N * m)
        columns = indices.new_empty(len(values))
        values[positions], columns[positions], columns[added] = x, indices, new.flatten()
        return values, columns, indptr + m * torch.arange(N + 1, device=x.device)

    def _sparse_step(self, clean: Batch, slope: Tensor, goal: Targets, epsilon: float) -> Batch:
        N, rows = len(clean.indptr) - 1, clean.rows
        moved = self.threat_model.vertex(clean.x, slope, rows, N, epsilon) if epsilon else clean.x
        best = self._choose(clean, clean, moved, goal)
        return self._improve(clean, best, goal, epsilon) if epsilon else best

    def _choose(self, clean: Batch, best: Batch, values: Tensor, goal: Targets) -> Batch:
        """Of each document the better of two: the best so far or these values."""
        loss = self._loss(self._layer.first(values, clean.indices, clean.indptr), goal)
        better = self._is_better(loss, best.loss)
        return Batch(
            clean.start, clean.x, torch.where(better[clean.rows], values, best.values), clean.indices,
            clean.indptr, torch.where(better, loss, best.loss), clean.loss,
        )  # fmt: skip

    def _improve(self, clean: Batch, best: Batch, goal: Targets, epsilon: float) -> Batch:
        return best  # FGSM is done

    # ------------------------------------------------------------------------------------- every feature

    def _dense_vertex(self, clean: Batch, direction: Direction) -> tuple[Direction, Tensor, Tensor, Tensor]:
        entries = Entries(clean.rows, clean.indices)
        nonnegative = self.threat_model.nonnegative
        return direction, *sign_pass(direction, self._layer, entries, nonnegative)

    def _own_change(self, clean: Batch, direction: Direction, own: Tensor, epsilon: float) -> Tensor | None:
        """Where values may not fall below 0: what the document's own features do beside their sign."""
        if not self.threat_model.nonnegative:
            return None
        slope = self._slope(clean, direction)
        falling = (own == 0) & (slope < 0)
        return torch.where(falling, -clean.x.clamp(max=epsilon), torch.zeros_like(clean.x))

    def _dense_step(
        self, clean: Batch, vertex: tuple[Direction, Tensor, Tensor, Tensor], goal: Targets, epsilon: float
    ) -> Batch:
        direction, offset, counts, own = vertex
        N = len(clean.indptr) - 1
        size = clean.x.new_full((N,), round_down(epsilon, clean.x.dtype))
        change = self._own_change(clean, direction, own, epsilon)
        values = clean.x if change is None else clean.x + change
        whole = Batch(
            clean.start, clean.x, values, clean.indices, clean.indptr, clean.loss, clean.loss,
            [(size, direction)], offset, size, counts,
            torch.zeros(N, dtype=torch.int64, device=own.device).index_add_(0, clean.rows, (own != 0).long()),
        )  # fmt: skip
        whole.loss = self._loss(self._dense_first(whole), goal)
        better = self._is_better(whole.loss, clean.loss)
        best = restore_others(whole, better, clean.loss)
        return self._improve_dense(clean, whole, best, goal, epsilon) if epsilon else best

    def _dense_first(self, batch: Batch) -> Tensor:
        return batch.add_offset(self._layer.first(batch.values, batch.indices, batch.indptr))

    def _improve_dense(self, clean: Batch, step: Batch, best: Batch, goal: Targets, epsilon: float) -> Batch:
        return best
