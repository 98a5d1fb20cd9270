"""Label scores merged from bucket scores: those of chosen labels, and the k best."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import memory_errors
from mach_ext.functional._autograd import first_order, needs_grad
from mach_ext.functional._checks import (
    FLOATS,
    as_int,
    check_answer,
    check_kind,
    check_scores,
    labels_by_document,
    widen,
)
from mach_ext.hashing import LabelHash


@memory_errors("pass fewer documents at a time or fewer labels")
def merge_scores(
    scores: Tensor,  # [N, R, B]
    hash: LabelHash,
    labels: Tensor,  # [N, m] or [m]
    merge: str = "mean",
    *,
    validate: bool = True,
) -> Tensor:  # [N, m]
    """Return the scores of chosen labels, merged from their R bucket scores.

    * "mean" is (s_0 + ... + s_{R-1}) / R. The sum is added in this order in the scores' own dtype, and
      followed by one IEEE division.
    * "min" is the smallest score.
    * "median" is the middle score. For even R it is the mean of the middle two.

    NaN in any repetition gives NaN. The gradient of "min" and "median" goes to the chosen repetitions, to the
    lowest r among equals.

    Args:
        scores: Bucket scores [N, R, B] of any kind, such as logits or probabilities. float32 or float64.
            bfloat16 and float16 are widened to float32.
        hash: Label hash with R repetitions and B buckets.
        labels: [m], the same for every document, or [N, m]. int32 or int64.
        merge: "mean", "min" or "median".
        validate: False skips the check that labels are in [0, L).

    Returns:
        [N, m].

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: A shape, a device, a label or the merge is not valid.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash.from_buckets([[0, 1, 1], [1, 0, 1]])
        >>> scores = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> mach_ext.functional.merge_scores(scores, hash, torch.tensor([0, 2]))
        tensor([[2.0000, 2.5000]])
    """
    op = "merge_scores"
    scores = widen(scores)
    check_scores(op, scores, hash, merge)
    labels = labels_by_document(op, labels, scores.shape[0], hash, validate)
    return check_answer(_merge_scores(scores, hash.buckets, labels, merge), hash, validate)


@memory_errors("pass fewer documents at a time or lower k")
def merge_topk(
    scores: Tensor,  # [N, R, B]
    hash: LabelHash,
    k: int,
    merge: str = "mean",
) -> tuple[Tensor, Tensor]:  # [N, k], [N, k]
    """Return the k best labels of each document over all L, exactly, without ever holding [N, L].

    Labels and values equal, bit for bit, a brute-force search over all labels by the definition in
    `merge_scores`. Larger values come first. Of equal values, the smaller label comes first. -0 equals +0,
    and NaN comes after every number. The result does not depend on threads, batch size or device. The values
    are differentiable.

    Args:
        scores: [N, R, B], float32 or float64. bfloat16 and float16 are widened to float32.
        hash: Label hash with R repetitions and B buckets.
        k: The number of labels, from 0 to L.
        merge: "mean", "min" or "median".

    Returns:
        Values [N, k] and labels [N, k] (int64).

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: A shape, a device, `k` or the merge is not valid.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash.from_buckets([[0, 1, 1], [1, 0, 1]])
        >>> scores = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> mach_ext.functional.merge_topk(scores, hash, k=2)
        (tensor([[2.5000, 2.0000]]), tensor([[2, 0]]))
    """
    return topk_of(widen(scores), None, hash, k, merge)


def topk_of(
    scores: Tensor, extremes: _ops.Extremes | None, hash: LabelHash, k: int, merge: str
) -> tuple[Tensor, Tensor]:
    """Implement `merge_topk`. `extremes` are those of the scores, if they are known."""
    op = "merge_topk"
    check_scores(op, scores, hash, merge)
    k = as_int(op, "k", k)
    if not 0 <= k <= hash.num_labels:
        raise ValueError(f"{op}: k must be in 0 ... L={hash.num_labels}, got {k}")
    index = _label_index(hash) if scores.dtype == torch.float32 else None
    if needs_grad(scores):
        values, labels = _MergeTopK.apply(scores, hash.buckets, index, k, merge)
        return values, labels
    return _ops.merge_topk(scores, hash.buckets, index, k, merge, extremes=extremes)


def _label_index(hash: LabelHash) -> tuple[Tensor, Tensor, Tensor] | None:
    return hash.label_index()


# This is the effect of torch.compiler.assume_constant_result. That function first imports torch._dynamo,
# which takes a second, and fails if there is no writable folder for temporary files.
_label_index._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _merge_scores(scores: Tensor, buckets: Tensor, labels: Tensor, merge: str) -> Tensor:
    args = (scores, buckets, labels, merge)
    out: Tensor = _MergeScores.apply(*args) if needs_grad(scores) else _ops.merge_scores(*args)
    return out


@memory_errors("pass fewer documents at a time or fewer labels")
def merge_repetitions(logits: Tensor, merge: str) -> Tensor:
    """Merge label scores over the repetitions, as `merge_scores` does, to the bit.

    Args:
        logits: [N, m, R], the scores of m labels in each repetition.
        merge: "mean", "min" or "median".

    Returns:
        [N, m].

    Raises:
        TypeError: `logits` has a wrong type or dtype.
        ValueError: `logits` has a wrong shape.

    Example:
        >>> import torch
        >>> from mach_ext.functional import merge_repetitions
        >>> merge_repetitions(torch.tensor([[[1.0, 4.0, 2.0]]]), "median")
        tensor([[2.]])
    """
    logits = widen(logits)
    check_kind("merge_repetitions", "logits", logits, 3, FLOATS)
    N, m, R = logits.shape
    each = torch.arange(m, device=logits.device)
    buckets = each.int().expand(R, m).contiguous()
    return _merge_scores(logits.transpose(1, 2).contiguous(), buckets, each.expand(N, m), merge)


class _MergeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, buckets, labels, merge):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(scores, buckets, labels)
        ctx.merge = merge
        return _ops.merge_scores(scores, buckets, labels, merge)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        scores, buckets, labels = ctx.saved_tensors
        return _ops.merge_scores_grad(grad, scores, buckets, labels, ctx.merge), None, None, None


class _MergeTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, buckets, index, k, merge):  # type: ignore[no-untyped-def]
        values, labels = _ops.merge_topk(scores, buckets, index, k, merge)
        ctx.save_for_backward(scores, buckets, labels)
        ctx.mark_non_differentiable(labels)
        ctx.merge = merge
        return values, labels

    @staticmethod
    @first_order
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        scores, buckets, labels = ctx.saved_tensors
        return _ops.merge_scores_grad(grad, scores, buckets, labels, ctx.merge), None, None, None, None
