"""Logits of the buckets of chosen labels, without computing any other bucket."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import memory_errors
from mach_ext.functional._autograd import first_order, needs_grad
from mach_ext.functional._checks import (
    check_answer,
    check_bias,
    check_buckets_weight,
    check_contents,
    check_documents,
    check_hash,
    check_tensor,
    labels_by_document,
    widen,
)
from mach_ext.hashing import LabelHash


@memory_errors("pass fewer documents at a time or fewer labels")
def label_logits(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
    hash: LabelHash,
    labels: Tensor,  # [m] or [N, m]
    *,
    validate: bool = True,
) -> Tensor:  # [N, m, R]
    """Return the logits of the R buckets of chosen labels, without computing any other bucket.

    The cost is N * m * R * H, whatever L and B are. The result equals `bucket_logits` gathered at the labels'
    buckets.

    Args:
        hidden: As in `bucket_logits`.
        weight: As in `bucket_logits`.
        bias: As in `bucket_logits`.
        hash: Label hash with R repetitions and B buckets.
        labels: [m], the same for every document, or [N, m]. int32 or int64.
        validate: False skips the check that labels are in [0, L).

    Returns:
        [N, m, R]. The mean over R is the labels' score by mean logit.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: A shape, a device or a label is not valid.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> hidden, weight, labels = torch.ones(2, 3), torch.ones(4, 3, 50), torch.tensor([7, 9])
        >>> mach_ext.functional.label_logits(hidden, weight, None, hash, labels).shape
        torch.Size([2, 2, 4])
    """
    op = "label_logits"
    hidden = widen(hidden, weight)
    check_buckets_weight(op, hidden, weight, bias)
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    check_hash(op, hash, weight.shape[0], weight.shape[2], hidden.device)
    labels = labels_by_document(op, labels, hidden.shape[0], hash, validate)
    args = (hidden, weight, bias, hash.buckets, labels)
    out: Tensor = _LabelLogits.apply(*args) if needs_grad(*args) else _ops.label_logits(*args)
    return check_answer(out, hash, validate)


@memory_errors("pass fewer documents at a time or fewer labels")
def linear_label_logits(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [R, D, B]
    bias: Tensor | None,  # [R, B]
    hash: LabelHash,
    labels: Tensor,  # [m] or [N, m]
    *,
    validate: bool = True,
) -> Tensor:  # [N, m, R]
    """Return `label_logits` of linear MACH, computed from the sparse documents.

    Only the R * m buckets of the labels are computed. For the time of the call, nnz * m * R weights are held.

    Args:
        values: Non-zeros of the documents, as in `sparse_linear`.
        indices: As in `sparse_linear`.
        indptr: As in `sparse_linear`.
        weight: [R, D, B] in the dtype of `values`.
        bias: [R, B] in the dtype of `values`, or None.
        hash: As in `label_logits`.
        labels: As in `label_logits`.
        validate: False skips the check of the documents and the labels.

    Returns:
        [N, m, R].

    Raises:
        TypeError: As in `label_logits`.
        ValueError: As in `label_logits`, or the documents are not valid.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> X = torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1])
        >>> F = mach_ext.functional
        >>> F.linear_label_logits(*X, torch.ones(4, 3, 50), None, hash, torch.tensor([7])).shape
        torch.Size([1, 1, 4])
    """
    op = "linear_label_logits"
    check_documents(op, values, indices, indptr)
    check_tensor(op, "weight", weight, 3, values)
    R, D, B = weight.shape
    check_bias(op, bias, (R, B), values)
    check_contents(op, values, indices, indptr, D, validate)
    check_hash(op, hash, R, B, values.device)
    N = indptr.shape[0] - 1
    labels = labels_by_document(op, labels, N, hash, validate)
    # Without validation, any index may come. An index out of range reads entry 0 and adds 0. Its result is
    # replaced by NaN at the end.
    features = indices.long()
    known_label, known = (labels >= 0) & (labels < hash.num_labels), (features >= 0) & (features < D)
    position = torch.arange(len(values), device=values.device)
    document = torch.searchsorted(indptr.long().contiguous(), position, right=True).sub(1).clamp(0, N - 1)
    asked = hash.buckets[:, labels.where(known_label, 0)].long().permute(1, 2, 0)  # [N, m, R]
    unknown_bucket = (asked < 0) | (asked >= B)
    asked = asked.masked_fill(unknown_bucket, 0)
    repetition = torch.arange(R, device=values.device)
    terms = weight[repetition, features.where(known, 0)[:, None, None], asked[document]].to(values.dtype)
    out = values.new_zeros(asked.shape)
    out = out.index_add(0, document, values.where(known, 0)[:, None, None] * terms)
    if bias is not None:
        out = out + bias[repetition, asked]
    unknown = torch.zeros(N, dtype=torch.int64, device=values.device).index_add(0, document, (~known).long())
    out = out.masked_fill((~known_label | (unknown > 0)[:, None])[:, :, None] | unknown_bucket, float("nan"))
    return check_answer(out, hash, validate)


class _LabelLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, buckets, labels):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(hidden, weight, buckets, labels)
        return _ops.label_logits(hidden, weight, bias, buckets, labels)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = grad_weight = grad_bias = None
        if needs_hidden:
            grad_hidden = _ops.label_logits_grad_hidden(grad, *ctx.saved_tensors)
        if needs_weight or needs_bias:
            grad_weight, grad_bias = _ops.label_logits_grad_weight(grad, *ctx.saved_tensors)
        return grad_hidden, grad_weight, grad_bias if needs_bias else None, None, None
