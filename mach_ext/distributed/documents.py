"""Prediction with the documents shared among ranks, each of which has the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext.distributed.ranks import Ranks, current_ranks
from mach_ext.nn import AnyMACH, own_precision, predict_batch

Arrays = tuple[NDArray[Any], ...]  # each [N, k]


def by_documents(
    ranks: Ranks, predict: Callable[[Any, int], Arrays], batch_size: int
) -> Callable[[Any, int], Arrays]:
    """Return a function that predicts as `predict` does, with the documents shared among the ranks.

    All ranks call it with the same documents, and all get all answers. A rank takes whole batches, because
    BLAS may sum in another order for a batch of another size. So the answers have the bits of one process.

    Args:
        ranks: The ranks.
        predict: A function of documents [N, D] and k that returns arrays [N, k].
        batch_size: The number of documents that `predict` takes at a time.

    Example:
        >>> import numpy as np
        >>> from mach_ext.distributed import Ranks
        >>> from mach_ext.distributed.documents import by_documents
        >>> predict = by_documents(Ranks(), lambda X, k: (X[:, :k],), batch_size=2)
        >>> predict(np.arange(6).reshape(3, 2), 1)[0].tolist()
        [[0], [2], [4]]
    """
    if ranks.size == 1:
        return predict

    def shared(X: Any, k: int) -> Arrays:
        N = X.shape[0]
        own = ranks.share(math.ceil(N / batch_size))
        rows = X[min(N, own.start * batch_size) : min(N, own.stop * batch_size)]
        parts = ranks.collect(predict(rows, k))
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    return shared


def shared_by_documents(
    model: AnyMACH, predict: Callable[[Any, int], Arrays]
) -> Callable[[Any, int], Arrays]:
    """Return `by_documents` of a function that predicts by a model, for the ranks that work together now."""
    size = predict_batch(model.num_repetitions, model.num_buckets, own_precision(model) == "int8")
    return by_documents(current_ranks(), predict, size)
