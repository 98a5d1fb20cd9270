"""Mini-batches: rows of SciPy CSR matrices -> flat CSR tensors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext._memory import memory_errors


class Batch(NamedTuple):
    """Flat CSR of some documents (n of them) and of their labels."""

    values: Tensor  # [nnz] float32
    indices: Tensor  # [nnz] int32 or int64
    indptr: Tensor  # [n + 1]
    label_indices: Tensor  # [labels]
    label_indptr: Tensor  # [n + 1]
    rows: NDArray[np.int64]  # [n], row numbers of the documents


@memory_errors("free memory first, or split the data", "data.iter_batches")
def iter_batches(
    X: Any, Y: Any, batch_size: int, *, seed: int | None = None, epoch: int = 0, start: int = 0
) -> Iterator[Batch]:
    """Goes once through the documents.

    The order depends on (number of documents, seed, epoch) alone, so a run that was killed in the middle of
    an epoch goes on with ``start``. Nothing is checked here: see :func:`mach_ext.data.check_csr`.

    Args:
        X: features [N, D], SciPy CSR.
        Y: labels [N, L], SciPy CSR.
        batch_size: documents in a batch, the last one may have fewer.
        seed: of the shuffling; None keeps the order.
        epoch: which pass this is; each is shuffled differently.
        start: batches to skip.

    Raises:
        ValueError: batch_size below 1.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import iter_batches
        >>> X = Y = sparse.csr_matrix(sparse.eye(5, dtype="float32"))
        >>> [batch.indices.tolist() for batch in iter_batches(X, Y, 2)]
        [[0, 1], [2, 3], [4]]
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
        tensor = torch.from_numpy
        yield Batch(
            tensor(x.data), tensor(x.indices), tensor(x.indptr), tensor(y.indices), tensor(y.indptr), numbers
        )


def iter_on_device(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """The same tuples (or named tuples) with their tensors on `device`; on CPU nothing happens to them.

    For a GPU a thread is one tuple ahead: it takes it from `batches`, pins it and copies it on a stream of
    its own, so that slicing and copying hide behind the work on the tuple before.
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
                    t.record_stream(current)  # its memory is not reused before this stream is done with it
            yield batch
