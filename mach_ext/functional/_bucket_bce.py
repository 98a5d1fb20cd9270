"""The training loss of all buckets, a group of repetitions at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import memory_errors
from mach_ext.functional._autograd import first_order, own_precision
from mach_ext.functional._checks import (
    check_answer,
    check_bias,
    check_buckets_weight,
    check_contents,
    check_documents,
    check_float32_or_64,
    check_hash,
    check_label_csr,
    check_tensor,
    widen,
)
from mach_ext.functional._products import Group, Targets, bce_of_group
from mach_ext.functional._repetitions import group_size, groups, of_group
from mach_ext.functional._sparse_linear import feature_order, row_sparse_tensor
from mach_ext.hashing import LabelHash


@memory_errors("pass fewer documents at a time")
def bucket_bce(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
    label_indices: Tensor,  # [label nnz]
    label_indptr: Tensor,  # [N + 1]
    hash: LabelHash,
    *,
    validate: bool = True,
) -> Tensor:  # scalar
    """Return MACH's loss: binary cross-entropy of all buckets, summed over B, averaged over N and R.

    ```text
    loss = 1 / (N R) * sum_{n, r} ( sum_b softplus(z[n, r, b]) - sum_{b in P(n, r)} z[n, r, b] )
    ```

    z is `bucket_logits(hidden, weight, bias)`. P(n, r) is the *set* of buckets of document n's labels in
    repetition r, so two labels in a bucket count once. The repetitions are computed in groups, so a large
    [N, R, B] is never held. A group of several has at most 64 MiB of logits on CUDA, and 512 KiB on the CPU.
    Gradients are computed in the same pass.

    Args:
        hidden: As in `bucket_logits`.
        weight: As in `bucket_logits`, but float32 or float64.
        bias: As in `bucket_logits`, but float32 or float64.
        label_indices: Labels of the documents in CSR form, [label nnz], int32 or int64.
        label_indptr: Start of the labels of each document, [N + 1], int32 or int64.
        hash: Label hash with R repetitions and B buckets.
        validate: False skips the check of the labels.

    Returns:
        A scalar in the dtype of `weight`.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: Shapes, devices or labels are not valid.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> hidden, weight = torch.zeros(1, 3), torch.zeros(4, 3, 50)
        >>> Y = torch.tensor([7]), torch.tensor([0, 1])
        >>> mach_ext.functional.bucket_bce(hidden, weight, None, *Y, hash)  # 50 log 2
        tensor(34.6574)
    """
    op = "bucket_bce"
    hidden = widen(hidden, weight)
    check_buckets_weight(op, hidden, weight, bias)
    check_float32_or_64(op, "weight", weight)
    if bias is not None:
        check_float32_or_64(op, "bias", bias)
    check_hash(op, hash, weight.shape[0], weight.shape[2], hidden.device)
    labels = check_label_csr(op, label_indices, label_indptr, hidden.shape[0], hidden.device, hash, validate)
    loss: Tensor = _BucketBCE.apply(hidden, weight, bias, *labels, hash.buckets)
    return check_answer(loss, hash, validate)


@memory_errors("pass fewer documents at a time")
def linear_bucket_bce(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [R, D, B]
    bias: Tensor | None,  # [R, B]
    label_indices: Tensor,  # [label nnz]
    label_indptr: Tensor,  # [N + 1]
    hash: LabelHash,
    sparse_grad: bool = False,
    *,
    validate: bool = True,
) -> Tensor:  # scalar
    """Return the loss of `bucket_bce` for linear MACH, computed from the sparse documents.

    The logits are z[n, r] = X[n] @ weight[r] + bias[r]. The repetitions are computed as in `bucket_bce`.

    Args:
        values: Non-zeros of the documents, as in `sparse_linear`.
        indices: As in `sparse_linear`.
        indptr: As in `sparse_linear`.
        weight: [R, D, B] in the dtype of `values`.
        bias: [R, B] in the dtype of `values`, or None.
        label_indices: As in `bucket_bce`.
        label_indptr: As in `bucket_bce`.
        hash: As in `bucket_bce`.
        sparse_grad: If true, the weight's gradient is a sparse COO tensor over (r, feature) of the features
            that occur. These are unique and ascending.
        validate: False skips the check of the documents and the labels.

    Returns:
        A scalar in the dtype of `values`.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: Shapes, devices or contents are not valid.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> X = torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1])
        >>> Y = torch.tensor([7]), torch.tensor([0, 1])
        >>> mach_ext.functional.linear_bucket_bce(*X, torch.zeros(4, 3, 50), None, *Y, hash)  # 50 log 2
        tensor(34.6574)
    """
    op = "linear_bucket_bce"
    check_documents(op, values, indices, indptr)
    check_tensor(op, "weight", weight, 3, values)
    check_float32_or_64(op, "weight", weight)
    R, D, B = weight.shape
    check_bias(op, bias, (R, B), values)
    if bias is not None:
        check_float32_or_64(op, "bias", bias)
    check_contents(op, values, indices, indptr, D, validate)
    check_hash(op, hash, R, B, values.device)
    N = indptr.shape[0] - 1
    labels = check_label_csr(op, label_indices, label_indptr, N, values.device, hash, validate)
    loss: Tensor = _LinearBucketBCE.apply(
        values, indices, indptr, weight, bias, *labels, hash.buckets, sparse_grad
    )
    return check_answer(loss, hash, validate)


class _BucketBCE(torch.autograd.Function):
    """The autograd function of `bucket_bce`.

    The gradients are computed beside the loss, so that no logits outlive their group.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, label_indices, label_indptr, buckets):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        N, (R, _, B) = hidden.shape[0], weight.shape
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = weight.new_empty(weight.shape) if needs_weight else None
        grad_bias = bias.new_empty(bias.shape) if needs_bias else None
        loss = hidden.new_zeros((), dtype=torch.float64)
        # The scale is 1 / R and not 1 / (N R). Under torch.compile, a number that depends on N would make a
        # new graph for every N.
        scale = 1 / R if needs_hidden or needs_weight or needs_bias else None
        targets = Targets(buckets, label_indices, label_indptr, scale)
        with own_precision(hidden.device):
            for at in groups(R, group_size(N, B, hidden.element_size(), hidden.device)):
                group = Group(of_group(hidden, at), weight[at])
                outputs = (group.new_logits(hidden.dtype), None, _slice(grad_bias, at))
                gradient, losses = bce_of_group(group, _slice(bias, at), targets, at, *outputs)
                loss += losses.sum()
                if grad_hidden is not None:
                    group.add_grad_hidden(gradient, of_group(grad_hidden, at))
                if grad_weight is not None:
                    group.write_grad_weight(gradient, grad_weight[at])
        ctx.num_documents = N
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return (loss / (N * R)).to(hidden.dtype)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad / ctx.num_documents
        return *(None if g is None else grad * g for g in ctx.saved_tensors), None, None, None


class _LinearBucketBCE(torch.autograd.Function):
    """The autograd function of `linear_bucket_bce`: `sparse_linear` replaces the product with hidden."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, values, indices, indptr, weight, bias, label_indices, label_indptr, buckets, sparse_grad
    ):
        needs_values, needs_weight, needs_bias = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        N, R = indptr.shape[0] - 1, weight.shape[0]
        X = (values, indices, indptr)
        order = feature_order(indices, indptr, weight)
        grad_values = torch.zeros_like(values) if needs_values else None
        grad_bias = bias.new_empty(bias.shape) if needs_bias else None
        grad_weight: Tensor | None = None
        rows: Tensor | None = None

        loss = values.new_zeros((), dtype=torch.float64)
        # The scale is 1 / R for the reason given in _BucketBCE.
        scale = 1 / R if needs_values or needs_weight or needs_bias else None
        for at in groups(R, group_size(N, weight.shape[2], values.element_size(), values.device)):
            grad = _ops.sparse_linear(*X, weight[at], _slice(bias, at), False, order)  # [N, G, B]
            labels = (buckets[at], label_indices, label_indptr)
            loss += _ops.bucket_bce(grad, None, *labels, scale, None, _slice(grad_bias, at)).sum()
            if grad_values is not None:
                grad_values += _ops.sparse_linear_grad_values(grad, indices, indptr, weight[at])
            if needs_weight and sparse_grad:
                rows, grads = _ops.sparse_linear_grad_rows(grad, *X, weight.shape[1], order)
                if grad_weight is None:  # as many rows in every repetition
                    grad_weight = grads.new_empty(R, *grads.shape[1:])
                grad_weight[at] = grads
            elif needs_weight:
                if grad_weight is None:
                    grad_weight = torch.empty_like(weight)
                grad_weight[at] = _ops.sparse_linear_grad_weight(grad, *X, weight.shape[1], order)
        ctx.num_documents = N
        ctx.weight_shape = weight.shape
        ctx.save_for_backward(grad_values, grad_weight, rows, grad_bias)
        return (loss / (N * R)).to(values.dtype)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad / ctx.num_documents
        grad_values, grad_weight, rows, grad_bias = ctx.saved_tensors
        grad_values, grad_weight, grad_bias = (
            None if g is None else grad * g for g in (grad_values, grad_weight, grad_bias)
        )
        if rows is not None:
            assert grad_weight is not None
            grad_weight = row_sparse_tensor(rows, grad_weight, ctx.weight_shape)
        return grad_values, None, None, grad_weight, grad_bias, None, None, None, None


def _slice(t: Tensor | None, at: slice) -> Tensor | None:
    return None if t is None else t[at]
