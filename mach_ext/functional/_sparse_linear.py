"""Products of sparse documents and a dense weight."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import memory_errors
from mach_ext.functional._autograd import first_order, needs_grad
from mach_ext.functional._checks import (
    check_activation,
    check_bias,
    check_contents,
    check_documents,
    check_float32_or_64,
    check_tensor,
)


@memory_errors("pass fewer documents at a time")
def sparse_linear(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [D, M]
    bias: Tensor | None = None,  # [M]
    activation: str | None = None,
    sparse_grad: bool = False,
    *,
    validate: bool = True,
) -> Tensor:  # [N, M]
    """Multiply sparse documents by a dense weight: `act(X @ weight + bias)` for the CSR matrix X [N, D].

    `values`, `weight` and `bias` get gradients. Sums run over a row's non-zeros in their order, so the result
    does not depend on the number of threads.

    Args:
        values: Non-zeros, float32 or float64, [nnz].
        indices: Feature of each non-zero, [nnz], unique within a row.
        indptr: Start of each row, [N + 1].
        weight: [D, M] in the dtype of `values`. With float32 values it may also be bfloat16, and on CUDA
            float16. It then has no gradient.
        bias: [M] or None.
        activation: None or "relu".
        sparse_grad: If true, the weight's gradient is a sparse COO tensor of the rows that occur, unique and
            ascending. `mach_ext.optim` takes it. If false, the gradient is dense.
        validate: False skips the check of the contents.

    Returns:
        [N, M] in the dtype of `values`.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, a device or the contents are wrong, or the activation is unknown.

    Example:
        >>> import torch, mach_ext
        >>> values, indices, indptr = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
        >>> weight = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
        >>> mach_ext.functional.sparse_linear(values, indices, indptr, weight)
        tensor([[ 7., 70.]])
    """
    op = "sparse_linear"
    relu = activation == "relu"
    refused = None
    # A separate check of a single document would take as long as the product. On the CPU the operator checks
    # in the same call. Python validates again only after a failure, to produce a helpful message.
    try:
        known = (relu or activation is None) and (bias is None or bias.dtype is values.dtype)
        if known and values.is_cpu and weight.dim() == 2 and not torch.compiler.is_compiling():
            if needs_grad(values, weight, bias):
                return run_sparse_linear(values, indices, indptr, weight, bias, relu, sparse_grad, validate)
            return _ops.sparse_linear_now(values, indices, indptr, weight, bias, relu, None, validate)
    except Exception as error:
        refused = error
    check_documents(op, values, indices, indptr)
    check_tensor(op, "weight", weight, 2, values)
    check_bias(op, bias, weight.shape[1:], values)
    check_activation(op, activation)
    check_contents(op, values, indices, indptr, weight.shape[0], validate)
    if refused is not None:
        raise refused
    return run_sparse_linear(values, indices, indptr, weight, bias, relu, sparse_grad)


def run_sparse_linear(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    weight: Tensor,  # [R, D, M] or [D, M]
    bias: Tensor | None,  # [R, M] or [M]
    relu: bool,
    sparse_grad: bool,
    check: bool = False,  # documents, on CPU
) -> Tensor:  # [N, R, M] or [N, M]
    """Run `sparse_linear` on checked arguments, by autograd if a gradient is needed.

    `check` makes the operator check the documents, on the CPU.
    """
    if bias is not None:
        bias = bias.to(values.dtype)
    if not needs_grad(values, weight, bias):
        return _ops.sparse_linear(values, indices, indptr, weight, bias, relu, None, check)
    if weight.requires_grad:
        check_float32_or_64("sparse_linear", "weight", weight)
    out: Tensor = _SparseLinear.apply(values, indices, indptr, weight, bias, relu, sparse_grad, check)
    return out


def _weight_gradient(
    grad: Tensor,  # [N, R, M]
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    shape: torch.Size,  # of the weight: [R, D, M] or [D, M]
    sparse: bool,
    order: _ops.FeatureOrder | None,
) -> Tensor:
    num_features = shape[-2]
    if not sparse:
        return _ops.sparse_linear_grad_weight(grad, values, indices, indptr, num_features, order).view(shape)
    rows, grads = _ops.sparse_linear_grad_rows(grad, values, indices, indptr, num_features, order)
    return row_sparse_tensor(rows, grads, shape)


def row_sparse_tensor(
    rows: Tensor,  # [U] features that occur, ascending
    grads: Tensor,  # [R, U, M]
    shape: torch.Size,
) -> Tensor:
    """Return a COO tensor of `shape` ([R, D, M] or [D, M]) with the given rows in every repetition."""
    R, U, M = grads.shape
    at = rows.repeat(R).unsqueeze(0)
    if len(shape) == 3:
        at = torch.cat((torch.arange(R, device=rows.device).repeat_interleave(U).unsqueeze(0), at))
    return torch.sparse_coo_tensor(
        at, grads.reshape(R * U, M), shape, is_coalesced=True, check_invariants=False
    )


def feature_order(indices: Tensor, indptr: Tensor, weight: Tensor) -> _ops.FeatureOrder | None:
    """Return the order that the forward pass, the backward pass and all repetitions share.

    Its sizes depend on the data. It is therefore None under `torch.compile`, and on CUDA it waits for the
    device.
    """
    if torch.compiler.is_compiling():
        return None
    return _ops.feature_order(indices, indptr, weight.shape[-2])


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, values, indices, indptr, weight, bias, relu, sparse_grad, check
    ):
        # On CUDA only the backward pass uses the order. A dense gradient needs no order, and so no wait for
        # its size.
        needs_order = ctx.needs_input_grad[3] and not indices.is_cuda
        order = feature_order(indices, indptr, weight) if needs_order else None
        out = _ops.sparse_linear(values, indices, indptr, weight, bias, relu, order, check)
        ctx.save_for_backward(values, indices, indptr, weight, out if relu else None, *(order or ()))
        ctx.sparse_grad = sparse_grad
        ctx.bias_shape = None if bias is None else bias.shape
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        values, indices, indptr, weight, out, *order = ctx.saved_tensors
        grad = grad.contiguous() if out is None else torch.where(out > 0, grad, 0)
        if weight.dim() == 2:
            grad = grad.unsqueeze(1)  # [N, R, M]
        needs_values, _, _, needs_weight, needs_bias = ctx.needs_input_grad[:5]
        grad_values = grad_weight = grad_bias = None
        if needs_values:
            stacked = weight if weight.dim() == 3 else weight.unsqueeze(0)  # [R, D, M]
            grad_values = _ops.sparse_linear_grad_values(grad, indices, indptr, stacked)
        if needs_weight:
            grad_weight = _weight_gradient(
                grad, values, indices, indptr, weight.shape, ctx.sparse_grad,
                _ops.FeatureOrder(*order) if order else None,
            )  # fmt: skip
        if needs_bias:
            grad_bias = grad.sum(0).view(ctx.bias_shape)
        return grad_values, None, None, grad_weight, grad_bias, None, None, None
