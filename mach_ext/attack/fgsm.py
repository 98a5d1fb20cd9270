"""FGSM takes a single step along the gradient. The other attacks are built on it."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext.attack._base import Attack
from mach_ext.attack._batch import Batch, restore_others
from mach_ext.attack._dense import Direction, Entries, best_new_features, sign_pass
from mach_ext.attack._rows import rows_of
from mach_ext.attack._threat_checks import round_down
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import Dense, Insert


class FGSM(Attack):
    """The fast gradient sign method: a single step along the gradient at the clean document.

    The source is Goodfellow et al., 2015, "Explaining and Harnessing Adversarial Examples". The step ends at
    the edge of the set that the threat model allows. If the step does not increase a document's loss, the
    document is left unchanged, unless `keep_best` is False.

    Args:
        model: The model. It is used in eval mode. A `mach_ext.MACHHead` is attacked on its hidden units [N,
            H] or, with `encoder`, on the inputs of the encoder.
        threat_model: A threat model or its name, as in `mach_ext.attack.threat_model`. None: "support". For a
            head, a name allows values below 0, because hidden units and embeddings have both signs.
        goal: One of `GOALS`.
        k: Size of the top k in the goals "own", "positive" and "negative". None: 5, or L if there are fewer
            labels. For "positive" and "negative" it is at most L - 1, because a label must be outside the top
            k.
        keep_best: False: the step is always taken.
        seed: Seed of noise.
        batch_size: Number of documents at a time. None: as many as keep the first layer within 64 MiB, at
            most 1,024. With `encoder`, inputs of 2^20 numbers in all, at most 256.
        encoder: A differentiable callable from inputs [N, ...] to the hidden units of a head. Its modules are
            in eval mode meanwhile. With it, "dense", "l2" and "l1" change all entries, and "support" those
            that are not 0.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model, threat_model="support").perturb(X, Y, epsilon=0.5)
        >>> model.predict(X, 1)[1].ravel().tolist(), perturbed.predict(1)[1].ravel().tolist()
        ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 5])
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5 * 8, 16))
        >>> head = mach_ext.MACHHead(16, 6, num_repetitions=8, num_buckets=4)
        >>> embeddings = torch.randn(6, 5, 8)  # six texts of five tokens
        >>> mach_ext.attack.FGSM(head, "l2", encoder=encoder).perturb(embeddings, Y, 0.1).inputs.shape
        torch.Size([6, 5, 8])
    """

    name = "fgsm"

    def _direction(self, start: int, gradient: Tensor) -> Direction:
        """Returns the direction of the step over all features."""
        return Direction(self._layer, gradient, len(gradient))

    def _slope(self, batch: Batch, direction: Direction) -> Tensor:
        """Returns the direction at the entries of a batch."""
        assert direction.gradient is not None
        return self._layer.to_values(direction.gradient, batch.indices, batch.indptr)

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: Targets, grid: list[float]
    ) -> list[Batch]:
        """Perturbs a batch of documents at each size of the grid."""
        clean_loss, gradient = self._gradient(self._layer.first(x, indices, indptr), goal)
        direction = self._direction(start, gradient)
        if self._layer.is_sparse and isinstance(self.threat_model, Dense):
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
        """Returns CSR arrays in which each document has m more features of value 0, behind its own."""
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
        """Takes the step on the document's own features and on new ones."""
        if not epsilon:
            return clean
        threat = self._part.on(self.threat_model, clean.indices)
        moved = threat.vertex(clean.x, slope, clean.rows, len(clean.indptr) - 1, epsilon)
        best = self._choose(clean, clean, moved, goal)
        return self._improve(clean, best, goal, epsilon)

    def _choose(self, clean: Batch, best: Batch, values: Tensor, goal: Targets) -> Batch:
        """Returns for each document the better of the best so far and these values."""
        loss = self._loss(self._layer.first(values, clean.indices, clean.indptr), goal)
        better = self._is_better(loss, best.loss)
        return Batch(
            clean.start, clean.x, torch.where(better[clean.rows], values, best.values), clean.indices,
            clean.indptr, torch.where(better, loss, best.loss), clean.loss,
        )  # fmt: skip

    def _improve(self, clean: Batch, best: Batch, goal: Targets, epsilon: float) -> Batch:
        """Improves the best documents further. FGSM does nothing here."""
        return best

    # ------------------------------------------------------------------------------------- every feature

    def _dense_vertex(self, clean: Batch, direction: Direction) -> tuple[Direction, Tensor, Tensor, Tensor]:
        """Returns the direction, with the offset, the counts and the signs of its step on all features."""
        entries = Entries(clean.rows, clean.indices)
        nonnegative = self.threat_model.nonnegative
        return direction, *sign_pass(direction, self._layer, entries, nonnegative)

    def _own_change(self, clean: Batch, direction: Direction, own: Tensor, epsilon: float) -> Tensor | None:
        """Returns how the own features change beside their sign, because values must not fall below 0."""
        if not self.threat_model.nonnegative:
            return None
        slope = self._slope(clean, direction)
        falling = (own == 0) & (slope < 0)
        return torch.where(falling, -clean.x.clamp(max=epsilon), torch.zeros_like(clean.x))

    def _dense_step(
        self, clean: Batch, vertex: tuple[Direction, Tensor, Tensor, Tensor], goal: Targets, epsilon: float
    ) -> Batch:
        """Takes the step on all features."""
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
        """Returns the first layer of a batch with its offset."""
        return batch.add_offset(self._layer.first(batch.values, batch.indices, batch.indptr))

    def _improve_dense(self, clean: Batch, step: Batch, best: Batch, goal: Targets, epsilon: float) -> Batch:
        """Improves the best documents further. FGSM does nothing here."""
        return best
