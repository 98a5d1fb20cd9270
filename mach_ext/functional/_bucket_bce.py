"""The training loss of all buckets, a group of repetitions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import memory_errors
from mach_ext.functional._autograd import first_order, needs_grad, own_precision
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
    All groups take the same memory. Gradients are computed in the same pass if they are needed, and the
    backward pass gives them away. So they are held once.

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
    inputs = (hidden, weight, bias, *labels, hash.buckets)
    if needs_grad(hidden, weight, bias):
        loss: Tensor = _BucketBCE.apply(*inputs)
    else:
        total, _ = _loss_and_gradients((False, False, False), *inputs)
        loss = _mean(total, len(hidden), weight)
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
    inputs = (values, indices, indptr, weight, bias, *labels, hash.buckets)
    if needs_grad(values, weight, bias):
        loss: Tensor = _LinearBucketBCE.apply(sparse_grad, *inputs)
    else:
        total, _ = _linear_loss_and_gradients(False, (False, False, False), *inputs)
        loss = _mean(total, N, weight)
    return check_answer(loss, hash, validate)


class _BucketBCE(torch.autograd.Function):
    """The autograd function of `bucket_bce`.

    The gradients are computed beside the loss, so that no logits outlive their group.
    """

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        total, gradients = _loss_and_gradients(ctx.needs_input_grad[:3], *inputs)
        hidden, weight = inputs[:2]
        ctx.num_documents = len(hidden)
        _keep(ctx, gradients, inputs)
        return _mean(total, len(hidden), weight)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gradients = _take(ctx, lambda *inputs: _loss_and_gradients(ctx.needs_input_grad[:3], *inputs)[1])
        return *_scale(gradients, grad / ctx.num_documents), None, None, None


def _loss_and_gradients(
    needs: tuple[bool, bool, bool],  # whether hidden, weight and bias need a gradient
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    label_indices: Tensor,
    label_indptr: Tensor,
    buckets: Tensor,
) -> tuple[Tensor, list[Tensor | None]]:
    """Return N * R times the loss in float64, and N times its gradients."""
    N, (R, _, B) = hidden.shape[0], weight.shape
    grad_hidden = torch.zeros_like(hidden) if needs[0] else None
    grad_weight = weight.new_empty(weight.shape) if needs[1] else None
    grad_bias = None if bias is None or not needs[2] else bias.new_empty(bias.shape)
    total = hidden.new_zeros((), dtype=torch.float64)
    # The scale is 1 / R and not 1 / (N R). Under torch.compile, a number that depends on N would make a new
    # graph for every N.
    targets = Targets(buckets, label_indices, label_indptr, 1 / R if any(needs) else None)
    size = group_size(N, B, hidden.element_size(), hidden.device)
    # All groups take the same memory. What is freed between groups would not all go back to the system.
    memory = None if torch.compiler.is_compiling() else hidden.new_empty(N * min(size, R) * B)
    with own_precision(hidden.device):
        for at in groups(R, size):
            group = Group(of_group(hidden, at), weight[at])
            outputs = (group.new_logits(hidden.dtype, memory), None, _slice(grad_bias, at))
            gradient, losses = bce_of_group(group, _slice(bias, at), targets, at, *outputs)
            total += losses.sum()
            if grad_hidden is not None:
                group.add_grad_hidden(gradient, of_group(grad_hidden, at))
            if grad_weight is not None:
                group.write_grad_weight(gradient, grad_weight[at])
    return total, [grad_hidden, grad_weight, grad_bias]


class _LinearBucketBCE(torch.autograd.Function):
    """The autograd function of `linear_bucket_bce`: `sparse_linear` replaces the product with hidden."""

    @staticmethod
    def forward(ctx, sparse_grad, *inputs):  # type: ignore[no-untyped-def]
        needs = tuple(ctx.needs_input_grad[i] for i in _DIFFERENTIABLE)
        total, gradients = _linear_loss_and_gradients(sparse_grad, needs, *inputs)
        _, _, indptr, weight = inputs[:4]
        ctx.num_documents = len(indptr) - 1
        ctx.weight_shape, ctx.sparse_grad, ctx.needs = weight.shape, sparse_grad, needs
        _keep(ctx, gradients, inputs)
        return _mean(total, ctx.num_documents, weight)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        *gradients, rows = _take(
            ctx, lambda *inputs: _linear_loss_and_gradients(ctx.sparse_grad, ctx.needs, *inputs)[1]
        )
        grad_values, grad_weight, grad_bias = _scale(gradients, grad / ctx.num_documents)
        if rows is not None:
            assert grad_weight is not None
            grad_weight = row_sparse_tensor(rows, grad_weight, ctx.weight_shape)
        return None, grad_values, None, None, grad_weight, grad_bias, None, None, None


_DIFFERENTIABLE = (1, 4, 5)  # values, weight and bias among the arguments of _LinearBucketBCE


def _linear_loss_and_gradients(
    sparse_grad: bool,
    needs: tuple[bool, ...],  # whether values, weight and bias need a gradient
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *labels: Tensor,  # label_indices, label_indptr, buckets
) -> tuple[Tensor, list[Tensor | None]]:
    """Return N * R times the loss in float64, N times its gradients, and the rows of a sparse one."""
    N, R = indptr.shape[0] - 1, weight.shape[0]
    X, (label_indices, label_indptr, buckets) = (values, indices, indptr), labels
    order = feature_order(indices, indptr, weight)
    grad_values = torch.zeros_like(values) if needs[0] else None
    grad_bias = None if bias is None or not needs[2] else bias.new_empty(bias.shape)
    grad_weight: Tensor | None = None
    rows: Tensor | None = None

    total = values.new_zeros((), dtype=torch.float64)
    scale = 1 / R if any(needs) else None  # for the reason given in _loss_and_gradients
    for at in groups(R, group_size(N, weight.shape[2], values.element_size(), values.device)):
        grad = _ops.sparse_linear(*X, weight[at], _slice(bias, at), False, order)  # [N, G, B]
        targets = (buckets[at], label_indices, label_indptr)
        total += _ops.bucket_bce(grad, None, *targets, scale, None, _slice(grad_bias, at)).sum()
        if grad_values is not None:
            grad_values += _ops.sparse_linear_grad_values(grad, indices, indptr, weight[at])
        if needs[1] and sparse_grad:
            rows, grads = _ops.sparse_linear_grad_rows(grad, *X, weight.shape[1], order)
            if grad_weight is None:  # as many rows in every repetition
                grad_weight = grads.new_empty(R, *grads.shape[1:])
            grad_weight[at] = grads
        elif needs[1]:
            if grad_weight is None:
                grad_weight = torch.empty_like(weight)
            grad_weight[at] = _ops.sparse_linear_grad_weight(grad, *X, weight.shape[1], order)
    return total, [grad_values, grad_weight, grad_bias, rows]


# A weight's gradient is as large as the weight. So the backward pass gives away the gradients that the
# forward pass has computed, and scales them in place. They are computed again if the graph is kept for
# another backward pass. Under torch.compile a function may not change what it has saved.


def _keep(ctx: Any, gradients: list[Tensor | None], inputs: tuple[Any, ...]) -> None:
    """Keep the gradients, or under torch.compile save them."""
    ctx.is_compiled = torch.compiler.is_compiling()
    if ctx.is_compiled:
        ctx.save_for_backward(*gradients)
    else:
        ctx.gradients = gradients
        ctx.save_for_backward(*inputs)


def _take(ctx: Any, compute: Callable[..., list[Tensor | None]]) -> list[Tensor | None]:
    """Return the gradients, which are the caller's from now on unless the graph was compiled."""
    if ctx.is_compiled:
        return list(ctx.saved_tensors)
    gradients = vars(ctx).pop("gradients", None)  # in one step, because threads may share a graph
    return compute(*ctx.saved_tensors) if gradients is None else gradients


def _scale(gradients: list[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """Multiply the gradients by a factor, in place unless the graph is compiled or the factor is batched."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_legacy_batchedtensor(factor):
        return [None if gradient is None else factor * gradient for gradient in gradients]
    return [None if gradient is None else gradient.mul_(factor) for gradient in gradients]


def _mean(total: Tensor, num_documents: int, weight: Tensor) -> Tensor:
    """Return the loss from the sum over documents and repetitions."""
    return (total / (num_documents * len(weight))).to(weight.dtype)


def _slice(t: Tensor | None, at: slice) -> Tensor | None:
    return None if t is None else t[at]
