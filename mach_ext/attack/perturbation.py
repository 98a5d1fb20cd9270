"""Perturbations: the results of attacks, kept as changes of the clean documents."""

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
from mach_ext.attack._batch import Batch, joined, joined_targets
from mach_ext.attack._dense import Entries, sign_pass
from mach_ext.attack._layer import Layer
from mach_ext.attack._models import attacked_model
from mach_ext.attack._part import changed_part, without_zeros
from mach_ext.attack._rows import norms
from mach_ext.attack._scaling import Scaling
from mach_ext.attack._threat_checks import in_ball
from mach_ext.attack.threats import Embedding, ThreatModel
from mach_ext.data import HybridMatrix
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, check_scores, checked_k, evaluating, predict_batch


class Perturbation:
    """Adversarial documents, kept as changes of X and written out only if asked for.

    Attributes:
        X: The clean documents [N, D], canonical CSR. For a model with dense features they are joined, as
            `mach_ext.MACH.join` returns them.
        epsilon: The size of the change.
        threat_model: What the attacker may change.
        loss, clean_loss: Loss of each adversarial and clean document [N], float64. The attack raises it.
        targets: For targeted goals, the label that is to leave or enter [N]. -1: none. None for other goals.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.FGSM(model).perturb(X, Y, epsilon=0.5)
        >>> perturbed
        Perturbation(N=6, support, epsilon=0.5)
        >>> perturbed.clean_loss[:2].round(2).tolist(), perturbed.loss[:2].round(2).tolist()
        ([1.96, 2.16], [10.3, 9.99])
    """

    def __init__(
        self, model: MACH, threat: ThreatModel, X: Any, epsilon: float, batches: list[Batch], given: Any
    ) -> None:
        """Joins the batches of an attack. `given` are the documents as the user passed them."""
        self.model, self.threat_model, self.X, self.epsilon = model, threat, X, epsilon
        self._batches, self._given = batches, given
        self._part = changed_part("Perturbation", model, threat)
        self._scaling = Scaling.of(model)
        self.loss, self.clean_loss = joined(batches, "loss"), joined(batches, "clean_loss")
        self.targets = joined_targets(batches)

    def __repr__(self) -> str:
        """Returns the number of documents, the threat model and epsilon."""
        return f"Perturbation(N={self.X.shape[0]}, {self.threat_model}, epsilon={self.epsilon:g})"

    # ---------------------------------------------------------------- what the model makes of it

    def _first(self, layer: Layer, batch: Batch) -> Tensor:
        """Returns the first layer of a batch's adversarial documents."""
        values = batch.values.to(layer.dtype)
        if layer.model is not self.model and self._scaling is not None:
            dense = batch.indices >= self.model.num_features
            other = Scaling.of(layer.model)
            assert other is not None
            values = values.clone()
            values[dense] = other.join(self._scaling.raw(values[dense])).to(layer.dtype)
        first = layer.first(values, batch.indices, batch.indptr)
        if batch.offset is None:
            return first
        if layer.model is self.model:
            return batch.add_offset(first)
        entries = Entries(batch.rows, batch.indices)
        # The other model has another weight, so the offset of the same signs is computed again.
        for weight, direction in batch.directions:
            offset, _, _ = sign_pass(direction, layer, entries, self.threat_model.nonnegative)
            first += offset * weight[:, None, None].to(layer.dtype)
        return first

    def _layer(self, model: MACH | MACHHead | None) -> Layer:
        """Returns the first layer of this model or another."""
        model = self.model if model is None else attacked_model("Perturbation", model)
        ours, theirs = ((m.num_features, m.num_dense) for m in (self.model, model))
        if ours != theirs:
            must, got = "D={} features", "{}"
            if ours[1] or theirs[1]:
                must, got = f"{must} and E={{}} dense ones", f"{got} and {{}}"
            raise ValueError(f"Perturbation: model must have {must.format(*ours)}, got {got.format(*theirs)}")
        return Layer("Perturbation", model)

    @memory_errors("perturb fewer documents at a time")
    def hidden(self, model: MACH | MACHHead | None = None) -> Tensor:
        """Returns the last hidden layer of the adversarial documents, [N, H] or [N, R, H].

        Args:
            model: Another model. None: the attacked model.

        Raises:
            ValueError: The model is linear MACH, or its number of features differs.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=16)
            >>> mach_ext.attack.FGSM(model).perturb(X, Y, epsilon=0.1).hidden().shape
            torch.Size([6, 16])
        """
        layer = self._layer(model)
        if layer.model.is_linear:
            raise ValueError("Perturbation.hidden: linear MACH (hidden_size=0) has no hidden layer")
        none = torch.empty(0, *layer.shape, dtype=layer.dtype, device=layer.device)
        with evaluating(layer.model):
            parts = [layer.hidden(self._first(layer, batch)) for batch in self._batches]
            return torch.cat(parts or [layer.hidden(none)])

    @memory_errors("perturb fewer documents at a time or lower k")
    def predict(
        self, k: int | None = None, model: MACH | MACHHead | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns the top k of the adversarial documents.

        Args:
            k: Size of the top k. None: 5, or L if there are fewer labels.
            model: Another model or head, to see whether the attack transfers. None: the attacked one.

        Returns:
            Scores [N, k], float32, and labels [N, k], int64.

        Raises:
            ValueError: k is out of range, or the model's number of features differs.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> perturbed = mach_ext.attack.FGSM(model).perturb(X, Y, epsilon=0.5)
            >>> scores, labels = perturbed.predict(k=2)
            >>> labels[0].tolist(), model.predict(X[0], 2)[1][0].tolist()
            ([1, 0], [0, 5])
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
        """Yields the change [N, T] of each tile of features, including changes of the base."""
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
        """Norms of each document's change, and numbers of features, by name [N].

        "linf", "l2" and "l1" are norms. With `Embedding` they are in the units of epsilon. "added" and
        "removed" count sparse features that appear and disappear.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> norms = mach_ext.attack.FGSM(model).perturb(X, Y, epsilon=0.5).norms
            >>> norms["l2"].round(2).tolist(), norms["added"].tolist()
            ([0.71, 0.71, 0.71, 0.71, 0.71, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        """
        parts = [self._batch_norms(batch) for batch in self._batches]
        names = ("linf", "l2", "l1", "added", "removed")
        return {name: np.concatenate([p[name] for p in parts] or [np.empty(0)]) for name in names}

    def _batch_norms(self, batch: Batch) -> dict[str, NDArray[np.float64]]:
        """Returns the norms of a batch."""
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
            change, rows = (batch.values.double() - batch.x.double()).abs() / self._part.scale, batch.rows
            zero, is_word = change.new_zeros(N), batch.indices < self.model.num_features
            measures = {
                "linf": zero.scatter_reduce(0, rows, change, "amax"),
                "l2": norms(change, rows, N, 2.0),
                "l1": norms(change, rows, N, 1.0),
                "added": zero.index_add(0, rows, (is_word & (batch.x == 0) & (batch.values != 0)).double()),
                "removed": zero.index_add(0, rows, (is_word & (batch.x != 0) & (batch.values == 0)).double()),
            }
        return {name: t.cpu().double().numpy() for name, t in measures.items()}

    @memory_errors("perturb fewer documents at a time")
    def to_csr(self, max_bytes: int = 1 << 30) -> Any:
        """Writes the adversarial documents as canonical SciPy CSR [N, D].

        With epsilon 0 the result has the same bits and dtype as X. If X has duplicates, it has their sums.
        For a model with dense features the documents are joined, [N, D + E]. `to_hybrid` writes both kinds.

        Args:
            max_bytes: The largest accepted size in bytes, if all features are changed.

        Raises:
            ValueError: All features are changed, and N x D numbers with their columns take more than
                `max_bytes`.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> mach_ext.attack.FGSM(model).perturb(X, Y, epsilon=0.5).to_csr()[0].toarray().round(2)
            array([[0.5, 0.9, 0. , 0. , 0. , 0. ]], dtype=float32)
        """
        if self.epsilon == 0 and isinstance(self._given, HybridMatrix):
            return self.X.copy()
        if self.epsilon == 0:
            clean = scipy.sparse.csr_matrix(self._given, copy=True)
            clean.sum_duplicates()  # the sums may not fit this dtype
            return clean if clean.nnz == self._given.nnz else self.X.copy()
        N, D = self.X.shape
        if any(batch.directions for batch in self._batches) and max_bytes < 8 * N * D:
            raise ValueError(
                f"Perturbation.to_csr: N x D = {N} x {D} numbers take {8 * N * D:,} bytes, more than "
                f"max_bytes={max_bytes:,}; predict(), hidden() and norms do not need them"
            )
        if any(batch.directions for batch in self._batches):
            advice = "perturb fewer documents at a time, or lower max_bytes"
            check_memory("Perturbation.to_csr: documents of all features", 8 * N * D, advice, N=N, D=D)
        blocks = [self._block(batch) for batch in self._batches]
        return scipy.sparse.vstack(blocks, format="csr") if blocks else self.X.copy()

    def _block(self, batch: Batch) -> Any:
        """Returns the adversarial documents of a batch as CSR."""
        N, D = len(batch.indptr) - 1, self.X.shape[1]
        arrays = (t.cpu().numpy() for t in (batch.values, batch.indices, batch.indptr))
        if not batch.directions:
            block = scipy.sparse.csr_matrix(tuple(arrays), (N, D), copy=True)
            block.sort_indices()
            return without_zeros(block, self.model.num_features)
        return scipy.sparse.hstack([after for _, after in self._tiles(batch)], format="csr")

    def _tiles(self, batch: Batch) -> Iterator[tuple[Any, Any]]:
        """Yields documents before and after the change, CSR, by tiles of features."""
        documents = self.X[batch.start : batch.start + len(batch.indptr) - 1].tocsc()
        nothing = torch.empty(0, dtype=torch.int64)
        for begin, end, change in self._changes(batch):
            before = documents[:, begin:end]
            x, change = torch.from_numpy(before.toarray()), change.cpu()
            moved = self.threat_model.project(x, x + change, nothing, len(x), self.epsilon)
            yield before, scipy.sparse.csr_matrix(torch.where(change == 0, x, moved).numpy())

    @memory_errors("perturb fewer documents at a time")
    def to_hybrid(self) -> HybridMatrix:
        """Writes the adversarial documents of a model with dense features, as they are before the model.

        Its dense features are neither centred nor scaled. What the attack left as it is has the bits of X, if
        X was a `mach_ext.data.HybridMatrix`. Changed dense features are float32, or float64 if X has float64.
        Their rounding does not lead out of the threat model. The model's answers to this matrix are those of
        `predict` up to rounding.

        Raises:
            ValueError: The model takes no dense features.

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> Y = scipy.sparse.eye(6, format="csr")  # document i has label i
            >>> X = mach_ext.data.HybridMatrix(Y, np.eye(6, 4, dtype=np.float32))
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0, num_dense=4)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> perturbed = mach_ext.attack.FGSM(model, "embedding").perturb(X, Y, epsilon=0.5)
            >>> perturbed.to_hybrid().dense[0].tolist()
            [0.5, 0.5, 0.5, 0.5]
        """
        if self._scaling is None:
            raise ValueError("Perturbation.to_hybrid: the model takes no dense features; use to_csr()")
        given, D = self._given if isinstance(self._given, HybridMatrix) else None, self.model.num_features
        if given is not None and self.epsilon == 0:
            return given
        if isinstance(self.threat_model, Embedding):
            dense = [self._dense(batch)[1] for batch in self._batches]
            words = self.X[:, :D] if given is None else given.sparse
            return HybridMatrix(words, torch.cat(dense).numpy() if dense else np.empty((0, self._scaling.E)))
        words = self.to_csr()[:, :D]
        return HybridMatrix(words, self._scaling.raw_rows(self.X) if given is None else given.dense)

    def _dense(self, batch: Batch) -> tuple[Tensor, Tensor]:  # [n, E], [n, E]
        """Returns the dense features of a batch before and after the change, as they are before the model."""
        assert self._scaling is not None
        rows = slice(batch.start, batch.start + len(batch.indptr) - 1)
        at = self._part.contains(batch.indices)
        change = (batch.values[at].double() - batch.x[at].double()).cpu() / self._part.scale
        if isinstance(self._given, HybridMatrix):
            given = np.asarray(self._given.dense[rows])
            before = torch.from_numpy(given.astype(np.float64 if given.dtype == np.float64 else np.float32))
        else:
            before = torch.from_numpy(self._scaling.raw_rows(self.X[rows]))
        x = before.flatten()
        of = torch.arange(len(before)).repeat_interleave(self._scaling.E)
        moved = (x.double() + change).to(x.dtype)
        after = self.threat_model.project(x, moved, of, len(before), self.epsilon)
        return before, after.view_as(before)

    def _holds_beside(self, adversarial: Any) -> bool:
        """Returns whether the joined documents, and those before the model, are within the threat model."""
        D, threat = self.model.num_features, self.threat_model
        if not isinstance(threat, Embedding):
            same = (self.X[:, D:] != adversarial[:, D:]).nnz == 0
            return bool(same and threat.holds(self.X[:, :D], adversarial[:, :D], self.epsilon))
        before, after = (X[:, D:].toarray().astype(np.float64) for X in (self.X, adversarial))
        change = scipy.sparse.csr_matrix((after - before) / self._part.scale)
        within = np.isfinite(change.data).all() and in_ball(change, threat.norm, self.epsilon)
        if not within or (self.X[:, :D] != adversarial[:, :D]).nnz:
            return False
        given = self._given
        return not isinstance(given, HybridMatrix) or threat.holds(given, self.to_hybrid(), self.epsilon)

    @memory_errors("perturb fewer documents at a time")
    def changes(self, n: int) -> list[tuple[int, float, float]]:
        """Returns the changes of document n as a list of feature, old value and new value.

        The numbers D, D + 1 and so on are those of dense features. Their values are as they were given, not
        centred and scaled.

        Args:
            n: Number of the document.

        Raises:
            ValueError: n is out of range.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> perturbed = mach_ext.attack.FGSM(model).perturb(X, Y, epsilon=0.5)
            >>> [(feature, round(old, 2), round(new, 2)) for feature, old, new in perturbed.changes(0)]
            [(0, 1.0, 0.5), (1, 0.4, 0.9)]
        """
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
        if isinstance(self.threat_model, Embedding):
            old_row, new_row = (dense[row].tolist() for dense in self._dense(batch))
            D = self.model.num_features
            return [(D + e, a, b) for e, (a, b) in enumerate(zip(old_row, new_row, strict=True)) if a != b]
        arrays = (batch.indices[own].tolist(), batch.x[own].tolist(), batch.values[own].tolist())
        return sorted((f, a, b) for f, a, b in zip(*arrays, strict=True) if a != b)

    def holds(self) -> bool:
        """Returns whether every document is within the threat model.

        `Dense` limits each feature by itself. So its documents are checked in tiles of features, in the
        memory of a tile. The model's answers use sums of sign matrices, not the numbers that are written out.
        So these sums must also stay within rounding of epsilon.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> mach_ext.attack.FGSM(model, "insert(2)").perturb(X, Y, epsilon=0.5).holds()
            True
        """
        threat, dense = self.threat_model, [batch for batch in self._batches if batch.directions]
        if self._scaling is not None:
            return self._holds_beside(self.to_csr())
        if not dense:
            return threat.holds(self.X, self.to_csr(), self.epsilon)
        limit = self.epsilon * (1 + 1e-6)
        weights = [torch.stack([weight for weight, _ in batch.directions]) for batch in dense]
        if any(bool((weight.abs().sum(0) > limit).any()) for weight in weights):
            return False
        tiles = (tile for batch in dense for tile in self._tiles(batch))
        return all(threat.holds(before, after, self.epsilon) for before, after in tiles)
