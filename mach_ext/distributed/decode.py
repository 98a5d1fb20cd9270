"""Exact decoding on several ranks: each finds the best of its own labels, and the best of all are merged.

Every rank has the bucket scores of all repetitions, but the label hash of a range of labels alone. The ranks
exchange k candidates for each document. The result is the same to the bit as that of one process.

Example:
    >>> import torch, mach_ext
    >>> from mach_ext.distributed.decode import best_of, candidates
    >>> from mach_ext.distributed.ranks import share
    >>> from mach_ext.merges import MODEL_MERGES
    >>> hash = mach_ext.LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6)
    >>> scores, merge = torch.rand(2, 6, 50), MODEL_MERGES["mean_logit"]
    >>> found = []
    >>> for rank in range(4):  # each rank does this for its own labels
    ...     labels = share(1000, rank, 4)
    ...     found.append(candidates(scores, hash.part(labels), labels.start, 5, merge))
    >>> values, labels = (torch.cat(parts, dim=1) for parts in zip(*found))
    >>> best_of(values, labels, k=5)[1].equal(merge.topk(scores, hash, k=5)[1])
    True
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mach_ext import functional as F
from mach_ext._memory import memory_errors
from mach_ext.distributed.ranks import Ranks, share
from mach_ext.functional._checks import FLOATS, check_kind, widen
from mach_ext.hashing import LabelHash
from mach_ext.merges import Merge

__all__ = ["best_of", "candidates", "gather_logits", "sharded_topk"]


@memory_errors("pass fewer documents at a time or lower k")
def candidates(
    scores: Tensor,  # [N, R, B]
    hash_of_range: LabelHash | None,
    first_label: int,
    k: int,
    merge: Merge,
    *,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:  # [N, c], [N, c]
    """Return the best labels of a range of labels, which are numbered as all labels are.

    Args:
        scores: Bucket logits of all repetitions, [N, R, B].
        hash_of_range: The label hash of the range, as `LabelHash.part` returns it. None is an empty range.
        first_label: The first label of the range.
        k: The number of labels, at least 0. A smaller range gives all of its labels.
        merge: The merge of the model, an entry of `mach_ext.merges.MODEL_MERGES`.
        overwrite: Let the transform of the merge overwrite the scores.

    Returns:
        Values [N, c] and labels [N, c] (int64), best first. c is the smaller of k and the size of the range.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: A shape, a device, `first_label` or `k` is not valid.

    Example:
        >>> import torch, mach_ext
        >>> from mach_ext.distributed.decode import candidates
        >>> from mach_ext.merges import MODEL_MERGES
        >>> hash = mach_ext.LabelHash.from_buckets([[0, 1, 1], [1, 0, 1]])
        >>> scores = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> candidates(scores, hash.part(range(1, 3)), 1, 5, MODEL_MERGES["mean_logit"])
        (tensor([[2.5000, 1.5000]]), tensor([[2, 1]]))
    """
    op = "candidates"
    first_label, k = F.as_int(op, "first_label", first_label), F.as_int(op, "k", k)
    for name, number in (("first_label", first_label), ("k", k)):
        if number < 0:
            raise ValueError(f"{op}: {name} must be at least 0, got {number}")
    if hash_of_range is None:
        scores = widen(scores)
        check_kind(op, "scores", scores, 3, FLOATS)
        shape = len(scores), 0
        return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)
    k = min(k, hash_of_range.num_labels)
    values, labels = merge.topk(scores, hash_of_range, k, overwrite=overwrite)
    return values, labels + first_label


@memory_errors("pass fewer documents at a time or lower k")
def best_of(values: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of each document's candidates, in the order of `mach_ext.functional.merge_topk`.

    Larger values come first. Of equal values, the smaller label comes first. -0 equals +0, and NaN comes
    after every number. The values keep their bits.

    Args:
        values: [N, C], in any order.
        labels: [N, C], the label of each value. No label of a document comes twice.
        k: The number of labels, from 0 to C.

    Returns:
        Values [N, k] and labels [N, k], best first.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or `k` is not valid.

    Example:
        >>> import torch
        >>> from mach_ext.distributed.decode import best_of
        >>> best_of(torch.tensor([[0.5, 2.0, 0.5]]), torch.tensor([[9, 4, 3]]), k=2)
        (tensor([[2.0000, 0.5000]]), tensor([[4, 3]]))
    """
    op = "best_of"
    check_kind(op, "values", values, 2, FLOATS)
    check_kind(op, "labels", labels, 2, (torch.int64,))
    if labels.shape != values.shape:
        expected, given = list(values.shape), list(labels.shape)
        raise ValueError(f"{op}: labels must be {expected} like values, got {given}")
    k = F.as_int(op, "k", k)
    if not 0 <= k <= values.shape[1]:
        raise ValueError(f"{op}: k must be in 0 ... C={values.shape[1]}, got {k}")
    # Ascending keys put NaN last. 0 - x is +0 for both zeros, and there is one NaN, because a GPU sorts bits.
    keys = (0 - values).masked_fill_(values.isnan(), math.nan)
    by_label = labels.argsort(dim=1)
    by_key = keys.gather(1, by_label).argsort(dim=1, stable=True)[:, :k]
    best = by_label.gather(1, by_key)
    return values.gather(1, best), labels.gather(1, best)


@torch.no_grad()
@memory_errors("pass fewer documents at a time or lower k")
def sharded_topk(
    ranks: Ranks,
    scores: Tensor,  # [N, R, B]
    hash_of_range: LabelHash | None,
    first_label: int,
    num_labels: int,
    k: int,
    merge: Merge,
    *,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:  # [N, k], [N, k]
    """Return the exact k best labels of each document, of which each rank has a range.

    All ranks call this function at the same time with the same scores, and all return the same. Values and
    labels equal, bit for bit, those of `Merge.topk` with the whole label hash and the same scores.

    On the CPU, PyTorch's sigmoid rounds a number in one of two ways, by its place in memory and the number of
    threads. So the scores must lie in memory as those of one process do. `gather_logits` sees to that.

    Args:
        ranks: The ranks that work together.
        scores: Bucket logits of all repetitions, [N, R, B], the same on all ranks.
        hash_of_range: The label hash of `share(num_labels, ranks.rank, ranks.size)`. None if that is empty.
        first_label: The first label of that range.
        num_labels: L, the number of all labels.
        k: The number of labels, from 0 to L.
        merge: The merge of the model, an entry of `mach_ext.merges.MODEL_MERGES`.
        overwrite: Let the transform of the merge overwrite the scores.

    Returns:
        Values [N, k] and labels [N, k] (int64), best first. They have no gradient.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: A shape, a device or `k` is not valid, or the range is not the share of this rank.

    Example:
        >>> import torch, mach_ext
        >>> from mach_ext.distributed import Ranks
        >>> from mach_ext.distributed.decode import sharded_topk
        >>> from mach_ext.merges import MODEL_MERGES
        >>> hash = mach_ext.LabelHash.from_buckets([[0, 1, 1], [1, 0, 1]])
        >>> scores = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> sharded_topk(Ranks(), scores, hash, 0, 3, 2, MODEL_MERGES["mean_logit"])
        (tensor([[2.5000, 2.0000]]), tensor([[2, 0]]))
    """
    op = "sharded_topk"
    num_labels, k = F.as_int(op, "num_labels", num_labels), F.as_int(op, "k", k)
    if not 0 <= k <= num_labels:
        raise ValueError(f"{op}: k must be in 0 ... L={num_labels}, got {k}")
    shares = [share(num_labels, rank, ranks.size) for rank in range(ranks.size)]
    count = 0 if hash_of_range is None else hash_of_range.num_labels
    own, given = shares[ranks.rank], range(first_label, first_label + count)
    if own != given:  # Two empty ranges are equal, wherever they start.
        raise ValueError(f"{op}: labels of rank {ranks.rank} must be its share {own}, got {given}")
    found = candidates(scores, hash_of_range, first_label, k, merge, overwrite=overwrite)
    sizes = [min(k, len(labels)) for labels in shares]
    values, labels = (ranks.gather(part, 1, sizes) for part in found)
    return best_of(values, labels, k)


@torch.no_grad()
@memory_errors("pass fewer documents at a time")
def gather_logits(
    ranks: Ranks,
    logits: Tensor,  # [N, R of this rank, B]
    num_repetitions: int,
    repetitions_first: bool = True,
) -> Tensor:  # [N, R, B]
    """Return the bucket logits of all repetitions, of which each rank has its share.

    Their layout in memory is that of one process. With as many threads, the transform of a merge therefore
    rounds each number in the same way as there.

    Args:
        ranks: The ranks that work together.
        logits: Bucket logits [N, r, B] of the r repetitions `share(num_repetitions, ranks.rank, ranks.size)`.
        num_repetitions: R.
        repetitions_first: Whether the repetitions come first in memory, as `bucket_logits` returns them on
            the CPU. If false, the documents do, as in linear MACH.

    Returns:
        [N, R, B], without a gradient.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: A shape is not valid.

    Example:
        >>> import torch
        >>> from mach_ext.distributed import Ranks
        >>> from mach_ext.distributed.decode import gather_logits
        >>> gather_logits(Ranks(), torch.zeros(5, 3, 4), num_repetitions=3).shape
        torch.Size([5, 3, 4])
    """
    op = "gather_logits"
    num_repetitions = F.as_int(op, "num_repetitions", num_repetitions)
    logits = widen(logits)
    check_kind(op, "logits", logits, 3, FLOATS)
    sizes = [len(share(num_repetitions, rank, ranks.size)) for rank in range(ranks.size)]
    if logits.shape[1] != sizes[ranks.rank]:
        expected = f"[N, {sizes[ranks.rank]}, B] on rank {ranks.rank}"
        raise ValueError(f"{op}: logits must be {expected}, got {list(logits.shape)}")
    whole = ranks.gather(logits.transpose(0, 1).contiguous(), 0, sizes).transpose(0, 1)
    return whole if repetitions_first else whole.contiguous()
