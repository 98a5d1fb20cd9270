"""Perturbations: what an attack returns, adversarial documents as changes of the clean ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import check_memory, memory_errors
from mach_ext.attack._batch import Batch
from mach_ext.attack._dense import Entries, sign_pass
from mach_ext.attack._layer import Layer
from mach_ext.attack._rows import norms
from mach_ext.attack.threats import ThreatModel
from mach_ext.nn import MACH, check_scores, checked_k, evaluating, predict_batch


class Perturbation:
    """Adversarial documents, as changes of X: written out only when asked for.

    Attributes:
        X, epsilon, threat_model: What it is a perturbation of, and how large it may be.
        loss, clean_loss: Of each document, [N] float64; what the attack raised.
        targets: Of targeted goals, the label that was to leave or enter, [N]; -1 where there is none.
    """

    def __init__(
        self, model: MACH, threat: ThreatModel, X: Any, epsilon: float, batches: list[Batch], given: Any
    ) -> None:
        self.model, self.threat_model, self.X, self.epsilon = model, threat, X, epsilon
        self._batches, self._given = batches, given

        def join(name: str) -> NDArray[Any]:
            parts = [getattr(batch, name).cpu().numpy() for batch in batches]
            return np.concatenate(parts) if parts else np.empty(0)

        self.loss, self.clean_loss = join("loss"), join("clean_loss")
        targeted = bool(batches) and batches[0].targets is not None
        self.targets: NDArray[Any] | None = join("targets") if targeted else None

    def __repr__(self) -> str:
        return f"Perturbation(N={self.X.shape[0]}, {self.threat_model}, epsilon={self.epsilon:g})"

    # ---------------------------------------------------------------- what the model makes of it

    def _first(self, layer: Layer, batch: Batch) -> Tensor:
        first = layer.first(batch.values.to(layer.dtype), batch.indices, batch.indptr)
        if batch.offset is None:
            return first
        if layer.model is self.model:
            return batch.add_offset(first)
        entries = Entries(batch.rows, batch.indices)  # the same signs through the other model's weight
        for weight, direction in batch.directions:
            offset, _, _ = sign_pass(direction, layer, entries, self.threat_model.nonnegative)
            first += offset * weight[:, None, None].to(layer.dtype)
        return first

    def _layer(self, model: MACH | None) -> Layer:
        model = self.model if model is None else model
        if model.num_features != self.X.shape[1]:
            raise ValueError(
                f"Perturbation: model must have D={self.X.shape[1]} features, got {model.num_features}"
            )
        return Layer("Perturbation", model)

    @memory_errors("perturb fewer documents at a time")
    def hidden(self, model: MACH | None = None) -> Tensor:
        """Hidden units of the adversarial documents that the bucket classifiers take, [N, H] or [N, R, H]."""
        layer = self._layer(model)
        if layer.model.is_linear:
            raise ValueError("Perturbation.hidden: linear MACH (hidden_size=0) has no hidden layer")
        none = torch.empty(0, *layer.shape, dtype=layer.dtype, device=layer.device)
        with evaluating(layer.model):
            parts = [layer.hidden(self._first(layer, batch)) for batch in self._batches]
            return torch.cat(parts or [layer.hidden(none)])

    @memory_errors("perturb fewer documents at a time or lower k")
    def predict(self, k: int | None = None, model: MACH | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores and labels [N, k] of the adversarial documents, by this model or another one (transfer).

        k None: 5, or all L labels where there are fewer.
        """
        layer = self._layer(model)
        k = checked_k("Perturbation.predict", k, layer.model.num_labels)
        N, batch_size = self.X.shape[0], predict_batch(layer.model.num_repetitions, layer.model.num_buckets)
        scores, labels = np.empty((N, k), np.float32), np.empty((N, k), np.int64)
        with evaluating(layer.model):
            for batch in self._batches:
                first = self._first(layer, batch)
                for begin in range(0, len(first), batch_size):
                    best, ids = layer.topk(first[begin : begin + batch_size], k)
                    check_scores("Perturbation.predict", layer.model, best)
                    at = slice(batch.start + begin, batch.start + begin + len(ids))
                    scores[at], labels[at] = best.cpu().numpy(), ids.cpu().numpy()
        return scores, labels

    # ------------------------------------------------------------------------------- what it is

    def _changes(self, batch: Batch) -> Iterator[tuple[int, int, Tensor]]:
        """The change [N, T] of tiles of features, with what the base differs by."""
        entries = Entries(batch.rows, batch.indices)
        first = batch.directions[0][1]
        for begin, end in first.tiles():
            total = torch.zeros(first.N, end - begin, dtype=first.layer.dtype, device=first.layer.device)
            for weight, direction in batch.directions:
                tile = direction.tile(begin, end)
                _ops.signs(tile, self.threat_model.nonnegative)
                total += tile * weight[:, None].to(total.dtype)
            positions, rows, columns = entries.within(begin, end)
            total[rows, columns] += batch.values[positions] - batch.x[positions]
            yield begin, end, total

    @property
    @memory_errors("perturb fewer documents at a time")
    def norms(self) -> dict[str, NDArray[np.float64]]:
        """Of the change of each document, [N] each: linf, l2, l1; non-zeros added and removed."""
        parts = [self._batch_norms(batch) for batch in self._batches]
        names = ("linf", "l2", "l1", "added", "removed")
        return {name: np.concatenate([p[name] for p in parts] or [np.empty(0)]) for name in names}

    def _batch_norms(self, batch: Batch) -> dict[str, NDArray[np.float64]]:
        N = len(batch.indptr) - 1
        if len(batch.directions) == 1 and batch.counts is not None and not self.threat_model.nonnegative:
            size, count = batch.directions[0][0].abs().double(), batch.counts.double()
            assert batch.own_counts is not None
            measures = {
                "linf": size * (count > 0),
                "l2": size * count.sqrt(),
                "l1": size * count,
                "added": (count - batch.own_counts) * (size > 0),
                "removed": torch.zeros(N),
            }
        elif batch.directions:
            measures = {
                n: torch.zeros(N, dtype=torch.float64) for n in ("linf", "l2", "l1", "added", "removed")
            }
            changed_own = torch.zeros(N, dtype=torch.float64)
            entries = Entries(batch.rows, batch.indices)
            for begin, end, change in self._changes(batch):
                size = change.abs().double().cpu()
                measures["linf"] = torch.maximum(measures["linf"], size.amax(1))
                measures["l2"] += size.square().sum(1)
                measures["l1"] += size.sum(1)
                measures["added"] += (size > 0).sum(1)
                positions, rows, columns = entries.within(begin, end)
                moved, x = change[rows, columns], batch.x[positions]
                changed_own.index_add_(0, rows.cpu(), ((moved != 0) & (x != 0)).cpu().double())
                gone = ((moved + x).abs() <= 1e-7 * x.abs()) & (x != 0)
                measures["removed"].index_add_(0, rows.cpu(), gone.cpu().double())
            measures["added"] -= changed_own
            measures["l2"] = measures["l2"].sqrt()
        else:
            change, rows = (batch.values.double() - batch.x.double()).abs(), batch.rows
            zero = change.new_zeros(N)
            measures = {
                "linf": zero.scatter_reduce(0, rows, change, "amax"),
                "l2": norms(change, rows, N, 2.0),
                "l1": norms(change, rows, N, 1.0),
                "added": zero.index_add(0, rows, ((batch.x == 0) & (batch.values != 0)).double()),
                "removed": zero.index_add(0, rows, ((batch.x != 0) & (batch.values == 0)).double()),
            }
        return {name: t.cpu().double().numpy() for name, t in measures.items()}

    @memory_errors("perturb fewer documents at a time")
    def to_csr(self, max_bytes: int = 1 << 30) -> Any:
        """The adversarial documents, SciPy CSR [N, D], canonical.

        For epsilon 0 the bits of X, in its dtype; where X has duplicates, their sums as the model takes them.

        Raises:
            ValueError: All features are changed, and N x D numbers and their columns take over max_bytes.
        """
        if self.epsilon == 0:
            clean = scipy.sparse.csr_matrix(self._given, copy=True)
            clean.sum_duplicates()  # in a dtype that may be too small for the sums
            return clean if clean.nnz == self._given.nnz else self.X.copy()
        N, D = self.X.shape
        if any(batch.directions for batch in self._batches) and max_bytes < 8 * N * D:
            raise ValueError(
                f"Perturbation.to_csr: N x D = {N} x {D} numbers take {8 * N * D:,} bytes, more than "
                f"max_bytes={max_bytes:,}; predict(), hidden() and norms need none of it"
            )
        if any(batch.directions for batch in self._batches):
            advice = "perturb fewer documents at a time, or lower max_bytes"
            check_memory("Perturbation.to_csr: documents of all features", 8 * N * D, advice, N=N, D=D)
        blocks = [self._block(batch) for batch in self._batches]
        return scipy.sparse.vstack(blocks, format="csr") if blocks else self.X.copy()

    def _block(self, batch: Batch) -> Any:
        N, D = len(batch.indptr) - 1, self.X.shape[1]
        arrays = (t.cpu().numpy() for t in (batch.values, batch.indices, batch.indptr))
        if not batch.directions:
            block = scipy.sparse.csr_matrix(tuple(arrays), (N, D), copy=True)
            block.sort_indices()
            block.eliminate_zeros()
            return block
        return scipy.sparse.hstack([after for _, after in self._tiles(batch)], format="csr")

    def _tiles(self, batch: Batch) -> Iterator[tuple[Any, Any]]:
        """Documents before and after, CSR, by tiles of features."""
        documents = self.X[batch.start : batch.start + len(batch.indptr) - 1].tocsc()
        nothing = torch.empty(0, dtype=torch.int64)
        for begin, end, change in self._changes(batch):
            before = documents[:, begin:end]
            x, change = torch.from_numpy(before.toarray()), change.cpu()
            moved = self.threat_model.project(x, x + change, nothing, len(x), self.epsilon)
            yield before, scipy.sparse.csr_matrix(torch.where(change == 0, x, moved).numpy())

    @memory_errors("perturb fewer documents at a time")
    def changes(self, n: int) -> list[tuple[int, float, float]]:
        """What became of document n: feature, old value, new value, by feature."""
        if not 0 <= n < self.X.shape[0]:
            raise ValueError(f"Perturbation.changes: n must be in [0, N={self.X.shape[0]}), got {n}")
        batch = next(b for b in reversed(self._batches) if b.start <= n)
        row = n - batch.start
        old = dict(zip(self.X[n].indices.tolist(), self.X[n].data.tolist(), strict=True))
        if batch.directions:
            moved: dict[int, float] = {}
            for begin, _, change in self._changes(batch):
                at = change[row].nonzero()[:, 0]
                moved.update(zip((at + begin).tolist(), change[row, at].tolist(), strict=True))
            return [(f, old.get(f, 0.0), old.get(f, 0.0) + by) for f, by in sorted(moved.items())]
        own = slice(int(batch.indptr[row]), int(batch.indptr[row + 1]))
        arrays = (batch.indices[own].tolist(), batch.x[own].tolist(), batch.values[own].tolist())
        return sorted((f, a, b) for f, a, b in zip(*arrays, strict=True) if a != b)

    def holds(self) -> bool:
        """Whether every document is within the threat model, by its numbers.

        Where all features are changed (`Dense`, which asks of each feature by itself), a tile of them at a
        time, in the memory of a tile; the model, whose answers are about the sum of sign matrices and not
        about the numbers written out, must stay within rounding of epsilon, too.
        """
        threat, dense = self.threat_model, [batch for batch in self._batches if batch.directions]
        if not dense:
            return threat.holds(self.X, self.to_csr(), self.epsilon)
        limit = self.epsilon * (1 + 1e-6)
        weights = [torch.stack([weight for weight, _ in batch.directions]) for batch in dense]
        if any(bool((weight.abs().sum(0) > limit).any()) for weight in weights):
            return False
        tiles = (tile for batch in dense for tile in self._tiles(batch))
        return all(threat.holds(before, after, self.epsilon) for before, after in tiles)
