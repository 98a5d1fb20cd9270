"""Turns rows of SciPy CSR matrices into mini-batches of flat CSR tensors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext._memory import memory_errors
from mach_ext.data.hybrid import HybridMatrix


class Batch(NamedTuple):
    """The features and labels of n documents as flat CSR tensors.

    Row i of the features is `values[indptr[i]:indptr[i + 1]]` at the columns `indices[indptr[i]:indptr[i +
    1]]`.

    Attributes:
        values: Feature values [nnz], float32.
        indices: Feature columns [nnz], int32 or int64.
        indptr: Start of each document in `values` and `indices` [n + 1].
        label_indices: Label numbers [number of labels].
        label_indptr: Start of each document in `label_indices` [n + 1].
        rows: Row numbers of the documents in the matrices [n], int64.
        dense: Dense features of the documents [n, E], float32. None: the documents have none.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import iter_batches
        >>> X = sparse.csr_matrix([[0.0, 0.5], [1.0, 2.0]], dtype="float32")
        >>> batch = next(iter_batches(X, sparse.eye(2, format="csr"), batch_size=2))
        >>> batch.values, batch.indptr.tolist(), batch.label_indices.tolist()
        (tensor([0.5000, 1.0000, 2.0000]), [0, 1, 3], [0, 1])
    """

    values: Tensor  # [nnz] float32
    indices: Tensor  # [nnz] int32 or int64
    indptr: Tensor  # [n + 1]
    label_indices: Tensor  # [labels]
    label_indptr: Tensor  # [n + 1]
    rows: NDArray[np.int64]  # [n], row numbers of the documents
    dense: Tensor | None = None  # [n, E] float32


@memory_errors("free memory first, or split the data", "data.iter_batches")
def iter_batches(
    X: Any, Y: Any, batch_size: int, *, seed: int | None = None, epoch: int = 0, start: int = 0
) -> Iterator[Batch]:
    """Goes through the documents once, in batches.

    The order depends only on the number of documents, `seed` and `epoch`. So a run that was killed in the
    middle of an epoch can continue with `start`. The matrices are not checked here. See
    `mach_ext.data.check_csr`.

    Args:
        X: Features [N, D], SciPy CSR or `mach_ext.data.HybridMatrix`.
        Y: Labels [N, L], SciPy CSR.
        batch_size: Documents in a batch. The last batch may have fewer.
        seed: Seed of the shuffling. None: the documents keep their order.
        epoch: Number of this pass. Each pass is shuffled differently.
        start: Number of batches to skip.

    Yields:
        A `Batch`.

    Raises:
        ValueError: `batch_size` is below 1.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import iter_batches
        >>> X = Y = sparse.csr_matrix(sparse.eye(5, dtype="float32"))
        >>> [batch.indices.tolist() for batch in iter_batches(X, Y, 2)]
        [[0, 1], [2, 3], [4]]
        >>> [batch.rows.tolist() for batch in iter_batches(X, Y, 2, seed=0)]
        [[2, 4], [3, 0], [1]]
    """
    if batch_size < 1:
        raise ValueError(f"iter_batches: batch_size must be at least 1, got {batch_size}")
    rows = X.shape[0]
    order = None if seed is None else np.random.default_rng([seed, epoch]).permutation(rows)
    for first in range(start * batch_size, rows, batch_size):
        last = min(first + batch_size, rows)
        if order is None:
            numbers: NDArray[np.int64] = np.arange(first, last)
            x, y = X[first:last], Y[first:last]
        else:
            numbers = order[first:last]
            x, y = X[numbers], Y[numbers]
        tensor, dense = torch.from_numpy, None
        if isinstance(x, HybridMatrix):
            x, dense = x.sparse, tensor(np.array(x.dense, np.float32))
        csr = tensor(x.data), tensor(x.indices), tensor(x.indptr)
        yield Batch(*csr, tensor(y.indices), tensor(y.indptr), numbers, dense)


def iter_on_device(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yields the same tuples with their tensors on `device`. On a CPU the tuples pass through unchanged.

    On a GPU a thread prepares the next tuple. It takes the tuple from `batches`, pins its memory and copies
    it on a stream of its own. So slicing and copying happen while the GPU works on the tuple before.

    Args:
        batches: Tuples or named tuples. Entries that are not tensors are passed on as they are.
        device: Where the tensors go.

    Yields:
        Tuples of the same type.

    Example:
        >>> import torch
        >>> from scipy import sparse
        >>> from mach_ext.data import iter_batches, iter_on_device
        >>> X = Y = sparse.csr_matrix(sparse.eye(3, dtype="float32"))
        >>> device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        >>> [batch.indices.tolist() for batch in iter_on_device(iter_batches(X, Y, 2), device)]
        [[0, 1], [2]]
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def load() -> Any:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            moved = (
                t.pin_memory().to(device, non_blocking=True) if isinstance(t, Tensor) else t for t in batch
            )
            made = getattr(type(batch), "_make", tuple)(moved)
            return made, stream.record_event()

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        while (loaded := loading.result()) is not None:
            loading = pool.submit(load)
            batch, copied = loaded
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for t in batch:
                if isinstance(t, Tensor):
                    t.record_stream(current)  # the memory is not reused until this stream has finished
            yield batch
