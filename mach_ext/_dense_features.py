"""The dense features of a model: their center and scale, and how they join the sparse features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from mach_ext._memory import check_memory, memory_errors
from mach_ext.data import HybridMatrix, check_columns, check_csr, check_dense
from mach_ext.data.hybrid import JoinOverflow, mean_row, row_blocks
from mach_ext.data.matrices import Csr
from mach_ext.functional._checks import check_contents, check_documents, is_readable

SCALING = ("dense_center", "dense_scale", "dense_is_scaled")  # the buffers of a model with dense features
_LARGEST = float(np.finfo(np.float32).max)


class _DenseFeatures(nn.Module):
    """The part of `mach_ext.MACH` that knows its D sparse and E dense features.

    A document is a sparse row of D + E columns. The last E columns are the dense features, centred and
    scaled: `(dense - dense_center) * dense_scale`. The weight that takes the documents has D + E rows.
    """

    num_features: int
    num_dense: int
    # Buffers, if E > 0. They are float32 in a model of any dtype.
    dense_center: Tensor  # [E]
    dense_scale: Tensor  # [1]
    dense_is_scaled: Tensor  # [1], 1 if the center and the scale were chosen

    def _make_scaling(self) -> None:
        """Make the buffers of the center and the scale, which change nothing yet."""
        if self.num_dense:
            self.register_buffer("dense_center", torch.zeros(self.num_dense, dtype=torch.float32))
            self.register_buffer("dense_scale", torch.ones(1, dtype=torch.float32))
            self.register_buffer("dense_is_scaled", torch.zeros(1, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the buffers with the model, but keep their dtype.

        In half precision a center would be off by more than embeddings differ, and a scale could be infinite.
        """
        exact = {name: self._buffers[name] for name in SCALING if name in self._buffers}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            applied = self._buffers[name]
            if buffer is not None and applied is not None and applied.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(applied.device)
        return self

    @property
    def num_columns(self) -> int:
        """D + E, the number of rows of the weight that takes the documents.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, num_dense=3).num_columns
            13
        """
        return self.num_features + self.num_dense

    @property
    def is_scaled(self) -> bool:
        """Whether the center and the scale were chosen, by `scale_dense`, `fit` or `fit_svm`.

        `fit` and `fit_svm` then leave them as they are. A model that was first trained on a matrix of D + E
        columns keeps center 0 and scale 1.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, num_dense=3).is_scaled
            False
        """
        return bool(self.num_dense and self.dense_is_scaled)

    @torch.no_grad()
    def scale_dense(self, dense: ArrayLike, length: float = 1.0) -> None:
        """Choose center and scale so that these dense features have mean 0 and a given length.

        The center is the mean of the rows. One scale for all E features makes the root of the mean squared
        length of the centred rows equal to `length`. `fit` calls this method with the training documents. It
        leaves a model as it is that has a center already.

        Args:
            dense: [N, E], the dense features of the training documents.
            length: The length of a typical row. Rows of term weights have length 1.

        Raises:
            TypeError: `dense` is no matrix of real numbers.
            ValueError: The model takes no dense features. `dense` is not [N, E] with at least one row. The
                length is not above 0 and finite.

        Example:
            >>> import numpy as np, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, num_dense=2)
            >>> model.scale_dense(np.array([[1.0, 5.0], [3.0, 5.0]]))
            >>> model.dense_center, model.dense_scale
            (tensor([2., 5.]), tensor([1.]))
        """
        op = "MACH.scale_dense"
        checked = check_dense(dense, f"{op}: dense")
        if not self.num_dense:
            raise ValueError(f"{op}: the model takes no dense features (num_dense=0)")
        if checked.shape[1] != self.num_dense or not len(checked):
            raise ValueError(
                f"{op}: dense must have shape [N, E={self.num_dense}] with N at least 1, got {checked.shape}"
            )
        if not 0 < length < math.inf:
            raise ValueError(f"{op}: length must be above 0 and finite, got {length!r}")
        center, spread = _center_and_spread(checked)
        self.dense_center.copy_(torch.from_numpy(center))
        # Rows that are all equal have no spread. They join as zeros, whatever the scale.
        scale = length / spread if spread else math.inf
        self.dense_scale.fill_(scale if scale <= _LARGEST else 1.0)
        self.dense_is_scaled.fill_(1)

    def scale_for_training(self, X: Csr | HybridMatrix, length: float) -> None:
        """Choose center and scale for good, unless that was done before.

        Args:
            X: The training documents, checked. Those of a matrix [N, D + E] are taken as they are.
            length: As in `scale_dense`.

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> model = mach_ext.MACH(2, 20, num_repetitions=8, num_buckets=6, hidden_size=4, num_dense=1)
            >>> X = mach_ext.data.HybridMatrix(scipy.sparse.eye(2), np.array([[3.0], [5.0]]))
            >>> model.scale_for_training(X, length=2.0)
            >>> model.dense_center, model.dense_scale
            (tensor([4.]), tensor([2.]))
        """
        if not self.num_dense or self.is_scaled:
            return
        if isinstance(X, HybridMatrix):
            self.scale_dense(X.dense, length)
        else:
            self.dense_is_scaled.fill_(1)

    @memory_errors("pass fewer documents at a time")
    def join(self, X: Any) -> Csr:
        """Return documents as one sparse matrix, whose last E columns are the centred and scaled features.

        Every function that takes documents of this model takes this matrix as well. It must not be mistaken
        for a matrix of D + E columns that you stacked yourself. Dense features in such a matrix would be
        taken as centred and scaled already, without an error.

        Args:
            X: A `mach_ext.data.HybridMatrix` with D sparse and E dense features. A matrix [N, D + E] is taken
                as joined already.

        Returns:
            [N, D + E], canonical CSR float32.

        Raises:
            TypeError: `X` is no matrix.
            ValueError: `X` does not have the model's features.
            MemoryError: The matrix does not fit in memory.

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> model = mach_ext.MACH(2, 20, num_repetitions=8, num_buckets=6, hidden_size=4, num_dense=1)
            >>> X = mach_ext.data.HybridMatrix(scipy.sparse.eye(2), np.array([[3.0], [5.0]]))
            >>> model.scale_dense(X.dense)
            >>> model.join(X).toarray()
            array([[ 1.,  0., -1.],
                   [ 0.,  1.,  1.]], dtype=float32)
        """
        return joined_documents("MACH.join: X", self, X)

    def joined_rows(self, X: HybridMatrix) -> Csr:
        """Return rows of checked documents as one sparse matrix.

        Args:
            X: Documents with the model's features.

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> model = mach_ext.MACH(2, 20, num_repetitions=8, num_buckets=6, hidden_size=4, num_dense=1)
            >>> X = mach_ext.data.HybridMatrix(scipy.sparse.eye(2), np.array([[3.0], [5.0]]))
            >>> model.joined_rows(X[:1]).toarray()
            array([[1., 0., 3.]], dtype=float32)
        """
        return X.join(*_scaling_of(self))

    def join_tensors(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        dense: Tensor | None,  # [N, E]
        validate: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return documents in CSR form whose rows end with their centred and scaled dense features.

        The result is differentiable with respect to `values` and `dense`.

        Args:
            values: Non-zeros of the sparse features, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            dense: The dense features [N, E]. None: the documents are joined already.
            validate: As in `mach_ext.functional.sparse_linear`.

        Returns:
            Values, indices and indptr of [N, D + E].

        Raises:
            TypeError: `dense` is no dense tensor of floating-point numbers, or another argument has a wrong
                type.
            ValueError: The model takes no dense features. `dense` does not have the shape [N, E] or is on
                another device. The sparse features are not valid.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(2, 20, num_repetitions=8, num_buckets=6, hidden_size=4, num_dense=1)
            >>> X = torch.tensor([1.0, 1.0]), torch.tensor([0, 1]), torch.tensor([0, 1, 2])
            >>> model.join_tensors(*X, torch.tensor([[3.0], [5.0]]))
            (tensor([1., 3., 1., 5.]), tensor([0, 2, 1, 2]), tensor([0, 2, 4]))
        """
        if dense is None:
            return values, indices, indptr
        E = self.num_dense
        if not E:
            raise ValueError(
                "MACH: dense must be None, because the model takes no dense features (num_dense=0)"
            )
        check_documents("MACH", values, indices, indptr)
        check_contents("MACH", values, indices, indptr, self.num_features, validate)
        N = indptr.shape[0] - 1
        _check_dense_tensor(dense, (N, E), values, validate)
        scaled = (dense.to(values.dtype) - self.dense_center) * self.dense_scale
        shifts = E * torch.arange(N + 1, device=indptr.device, dtype=indptr.dtype)
        joined_indptr = indptr + shifts
        shift = torch.repeat_interleave(shifts[:-1], indptr.diff(), output_size=values.shape[0])
        of_sparse = torch.arange(values.shape[0], device=indptr.device, dtype=indptr.dtype) + shift
        columns = torch.arange(E, device=indptr.device, dtype=indptr.dtype)
        of_dense = (joined_indptr[1:, None] - E + columns).flatten()
        at = torch.cat((of_sparse, of_dense)).long()
        last = (self.num_features + columns).to(indices.dtype).repeat(N)
        place = torch.empty_like(at).scatter_(0, at, torch.arange(at.shape[0], device=at.device))
        joined_values = torch.cat((values, scaled.flatten())).index_select(0, place)
        joined_indices = torch.cat((indices, last)).index_select(0, place)
        return joined_values, joined_indices, joined_indptr


def checked_documents(what: str, model: Any, X: Any) -> Csr | HybridMatrix:
    """Return documents of a model after all checks: its D columns, or its D and E features.

    For a model with dense features, a matrix [N, D + E] is joined already.

    Raises:
        TypeError: X is no matrix.
        ValueError: X is not valid, or does not have the model's features.
    """
    D, E = model.num_features, model.num_dense
    if isinstance(X, HybridMatrix):
        if not E:
            raise ValueError(
                f"{what} must be a matrix of D={D} columns, because the model takes no dense features "
                f"(num_dense=0), got a HybridMatrix of {X.num_features} and {X.num_dense} columns"
            )
        if (X.num_features, X.num_dense) != (D, E):
            raise ValueError(
                f"{what} must have D={D} sparse and E={E} dense features, "
                f"got {X.num_features} and {X.num_dense}"
            )
        return X
    if not E:
        return check_columns(X, what, D)
    csr = check_csr(X, what)
    if csr.shape[1] != D + E:
        raise ValueError(
            f"{what} must be a mach_ext.data.HybridMatrix of D={D} sparse and E={E} dense features, or a "
            f"matrix of D + E={D + E} columns as MACH.join returns it, with the dense features centred and "
            f"scaled, got a matrix of shape {csr.shape}"
        )
    return csr


def joined_documents(what: str, model: Any, X: Any) -> Csr:
    """Return documents of a model after all checks, as one sparse matrix of D + E columns."""
    X = checked_documents(what, model, X)
    if not isinstance(X, HybridMatrix):
        return X
    advice, (N, _) = "pass fewer documents at a time", X.shape
    check_memory(f"{what}: documents with their dense features", 8 * X.nnz, advice, N=N, E=model.num_dense)
    return model.joined_rows(X)


class JoinedRows:
    """Checked documents whose rows are joined when they are taken, so that only a batch is in memory."""

    def __init__(self, model: Any, X: HybridMatrix) -> None:
        self.X, self.shape, self.scaling = X, X.shape, _scaling_of(model)

    def __getitem__(self, rows: Any) -> Csr:
        """Return some documents as one sparse matrix."""
        try:
            return self.X[rows].join(*self.scaling)
        except JoinOverflow as error:
            raise JoinOverflow(int(np.arange(len(self.X))[rows][error.row])) from None


def joined_when_taken(model: Any, X: Csr | HybridMatrix) -> Csr | JoinedRows:
    """Return checked documents whose rows, when they are taken, are a sparse matrix of D + E columns."""
    return JoinedRows(model, X) if isinstance(X, HybridMatrix) else X


def _scaling_of(model: Any) -> tuple[NDArray[Any], float]:
    """Return the center [E] and the scale of a model."""
    return model.dense_center.detach().cpu().numpy(), float(model.dense_scale)


def _center_and_spread(dense: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """Return the mean of the rows [E], and the root of the mean squared length of the centred rows.

    Both are those of the float32 numbers that models take. A second pass sums the squares, because a
    difference of two large sums would lose the spread.
    """
    center = mean_row(dense)
    squares = 0.0
    for block in row_blocks(dense):
        differences = np.asarray(dense[block], np.float32) - center.astype(np.float64)
        squares += float(np.vdot(differences, differences))
    return center, math.sqrt(squares / len(dense))


def _check_dense_tensor(dense: Any, shape: tuple[int, int], values: Tensor, validate: bool) -> None:
    """Refuse dense features of a batch that do not fit its sparse features."""
    if not isinstance(dense, Tensor) or dense.layout != torch.strided or not dense.is_floating_point():
        given = type(dense).__name__ if not isinstance(dense, Tensor) else f"{dense.dtype} {dense.layout}"
        raise TypeError(f"MACH: dense must be a dense tensor of floating-point numbers, got {given}")
    if tuple(dense.shape) != shape:
        raise ValueError(f"MACH: dense must have shape [N={shape[0]}, E={shape[1]}], got {list(dense.shape)}")
    if dense.device != values.device:
        raise ValueError(f"MACH: dense must be on {values.device} like values, got {dense.device}")
    if validate and is_readable(dense) and not bool((finite := dense.detach().isfinite().all(1)).all()):
        raise ValueError(
            f"MACH: dense must be finite, got other numbers in row {int((~finite).int().argmax())}"
        )
