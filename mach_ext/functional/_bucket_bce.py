"""The training loss of all buckets, one repetition at a time."""

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
from mach_ext.functional._repetitions import bucket_bce_by_repetition, of_repetition
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
    repetition r, so two labels in a bucket count once. The repetitions are computed in turn. [N, B] is held,
    and never [N, R, B]. Gradients are computed in the same pass.

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

    The logits are z[n, r] = X[n] @ weight[r] + bias[r]. The repetitions are computed in turn.

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

    The gradients are computed beside the loss, so that no logits outlive their repetition.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, label_indices, label_indptr, buckets):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad[:3]
        N, R = hidden.shape[0], weight.shape[0]
        grad_hidden, grad_weight, grad_bias = (
            torch.zeros_like(t) if need else None
            for t, need in zip((hidden, weight, bias), needs, strict=True)
        )

        def logits(r: int) -> Tensor:  # [N, B]
            h, w = of_repetition(hidden, r), weight[r]
            return h @ w if bias is None else torch.addmm(bias[r], h, w)

        loss = hidden.new_zeros((), dtype=torch.float64)
        # The scale is 1 / R and not 1 / (N R). Under torch.compile, a number that depends on N would make a
        # new graph for every N.
        args = (buckets, label_indices, label_indptr, 1 / R, any(needs))
        with own_precision(hidden.device):
            for r, z, losses in bucket_bce_by_repetition(logits, *args):
                loss += losses.sum()
                if grad_hidden is not None:
                    of_repetition(grad_hidden, r).addmm_(z, weight[r].T)
                if grad_weight is not None:
                    torch.mm(of_repetition(hidden, r).T, z, out=grad_weight[r])
                if grad_bias is not None:
                    torch.sum(z, 0, out=grad_bias[r])
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
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        grad_weight: Tensor | None = None
        rows: Tensor | None = None

        def logits(r: int) -> Tensor:  # [N, B]
            b = None if bias is None else bias[r : r + 1]
            return _ops.sparse_linear(*X, weight[r : r + 1], b, False, order)[:, 0]

        loss = values.new_zeros((), dtype=torch.float64)
        # The scale is 1 / R for the reason given in _BucketBCE.
        args = (buckets, label_indices, label_indptr, 1 / R, needs_values or needs_weight or needs_bias)
        for r, z, losses in bucket_bce_by_repetition(logits, *args):
            loss += losses.sum()
            grad = z.unsqueeze(1)  # [N, 1, B]
            if grad_values is not None:
                grad_values += _ops.sparse_linear_grad_values(grad, indices, indptr, weight[r : r + 1])
            if needs_weight and sparse_grad:
                rows, grads = _ops.sparse_linear_grad_rows(grad, *X, weight.shape[1], order)
                if grad_weight is None:  # as many rows in every repetition
                    grad_weight = grads.new_empty(R, *grads.shape[1:])
                grad_weight[r] = grads[0]
            elif needs_weight:
                if grad_weight is None:
                    grad_weight = torch.empty_like(weight)
                grad_weight[r] = _ops.sparse_linear_grad_weight(grad, *X, weight.shape[1], order)[0]
            if grad_bias is not None:
                torch.sum(z, 0, out=grad_bias[r])
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
