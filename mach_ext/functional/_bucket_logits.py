"""Logits of all buckets, from hidden units or from sparse documents."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext._memory import memory_errors
from mach_ext.functional._autograd import first_order, needs_grad, own_precision
from mach_ext.functional._bucket_forward import rounded_bucket_logits
from mach_ext.functional._checks import (
    check_bias,
    check_buckets_weight,
    check_contents,
    check_documents,
    check_float32_or_64,
    check_precision,
    check_tensor,
    widen,
)
from mach_ext.functional._sparse_linear import run_sparse_linear, sparse_linear


@memory_errors("pass fewer documents at a time")
def bucket_logits(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
    *,
    precision: str = "float32",
) -> Tensor:  # [N, R, B]
    """Return the bucket logits of the R classifiers: `hidden @ weight[r] + bias[r]` for every r.

    Args:
        hidden: [N, H], shared by the repetitions, or [N, R, H] of independent encoders. bfloat16 and float16
            are widened to the dtype of `weight`. If that is narrow as well, they are widened to float32.
        weight: [R, H, B] in the dtype of `hidden`, or in bfloat16. On CUDA float16 is also allowed. A narrow
            weight is widened one repetition at a time, and has no gradient.
        bias: [R, B] or None.
        precision: "float32" multiplies in the dtype of `hidden` after widening. "bfloat16" rounds float32
            hidden units and weights to bfloat16 and adds their products up in float32. Gradients are those of
            the rounded product. GPUs from compute capability 8.0 on compute all repetitions in one kernel, if
            H is a multiple of 8. A float32 weight is rounded in every call, which moves 6 bytes for each
            weight. The CPU computes the same numbers, but saves no time. [default: "float32"]

    Returns:
        [N, R, B] in the dtype of `hidden` after widening. In memory the repetitions come first: it is a view
        of [R, N, B]. With `precision="bfloat16"` the documents may come first.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, a device or the precision is wrong.

    Example:
        >>> import torch, mach_ext
        >>> hidden, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> mach_ext.functional.bucket_logits(hidden, weight, torch.tensor([[0.5, -0.5]]))
        tensor([[[1.5000, 1.5000]]])
    """
    op = "bucket_logits"
    hidden = widen(hidden, weight)
    check_buckets_weight(op, hidden, weight, bias)
    check_precision(op, precision, hidden, weight)
    R = weight.shape[0]
    by_repetition = hidden.expand(R, -1, -1) if hidden.dim() == 2 else hidden.transpose(0, 1)  # [R, N, H]
    if bias is not None:
        bias = bias.to(hidden.dtype)
    if needs_grad(weight):
        check_float32_or_64(op, "weight", weight)
    if precision == "bfloat16":
        return rounded_bucket_logits(hidden, weight, bias)
    if weight.dtype != hidden.dtype:
        logits: Tensor = _WideningLogits.apply(by_repetition, weight)
        if bias is not None:
            logits = logits + bias.unsqueeze(1)
    elif needs_grad(hidden, weight, bias):
        logits = _BucketLogits.apply(by_repetition, weight, bias)
    else:
        logits = _bucket_logits(by_repetition, weight, bias)
    return logits.transpose(0, 1)


@memory_errors("pass fewer documents at a time")
def bucket_forward(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    encoder_weight: Tensor | None,  # [D, H], [D, R * H] or None
    encoder_bias: Tensor | None,  # [H], [R * H] or None
    bucket_weight: Tensor,  # [R, H, B]; linear MACH: [R, D, B]
    bucket_bias: Tensor | None,  # [R, B]
    sparse_grad: bool = False,
    *,
    validate: bool = True,
    precision: str = "float32",
) -> Tensor:  # [N, R, B]
    """Return bucket logits of sparse documents: `sparse_linear` with relu, then `bucket_logits`.

    Args:
        values: Non-zeros of the documents, as in `sparse_linear`.
        indices: As in `sparse_linear`.
        indptr: As in `sparse_linear`.
        encoder_weight: [D, H] for a shared encoder, or [D, R * H] for independent encoders. Unit h of
            repetition r is then column r * H + h. None is linear MACH, where `bucket_weight` takes the
            documents.
        encoder_bias: [H], [R * H] or None.
        bucket_weight: [R, H, B]. Without an encoder, [R, D, B].
        bucket_bias: [R, B] or None.
        sparse_grad: As in `sparse_linear`, for the weight that takes the documents.
        validate: As in `sparse_linear`.
        precision: As in `bucket_logits`. The product with the documents is not rounded. Without an encoder
            "bfloat16" rounds `bucket_weight` alone, which then gets no gradient. [default: "float32"]

    Returns:
        [N, R, B].

    Raises:
        TypeError: As in `sparse_linear` and `bucket_logits`.
        ValueError: As in `sparse_linear` and `bucket_logits`.

    Example:
        >>> import torch, mach_ext
        >>> X = torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1])
        >>> mach_ext.functional.bucket_forward(*X, None, None, torch.ones(2, 3, 4), None).shape
        torch.Size([1, 2, 4])
    """
    op = "bucket_forward"
    check_documents(op, values, indices, indptr)
    check_tensor(op, "bucket_weight", bucket_weight, 3, values)
    check_precision(op, precision, values, bucket_weight)
    if encoder_weight is None:
        if encoder_bias is not None:
            raise ValueError(f"{op}: encoder_bias without encoder_weight (linear MACH has no encoder)")
        check_bias(op, bucket_bias, (bucket_weight.shape[0], bucket_weight.shape[2]), values, "bucket_bias")
        check_contents(op, values, indices, indptr, bucket_weight.shape[1], validate)
        if precision == "bfloat16":
            if needs_grad(bucket_weight):
                raise ValueError(
                    f"{op}: precision bfloat16 has no gradient to bucket_weight without an encoder; "
                    "call it under torch.no_grad()"
                )
            bucket_weight = bucket_weight.bfloat16()
        return run_sparse_linear(values, indices, indptr, bucket_weight, bucket_bias, False, sparse_grad)
    R, H = bucket_weight.shape[0], bucket_weight.shape[1]
    check_tensor(op, "encoder_weight", encoder_weight, 2, values)
    if encoder_weight.shape[1] not in (H, R * H):
        raise ValueError(
            f"{op}: encoder_weight must be [D, H={H}] or [D, R*H={R * H}] to match bucket_weight "
            f"{list(bucket_weight.shape)}, got {list(encoder_weight.shape)}"
        )
    hidden = sparse_linear(
        values, indices, indptr, encoder_weight, encoder_bias, "relu", sparse_grad, validate=validate
    )
    if encoder_weight.shape[1] != H:
        hidden = hidden.unflatten(1, (R, H))
    return bucket_logits(hidden, bucket_weight, bucket_bias, precision=precision)


def _bucket_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with own_precision(hidden.device):
        if bias is None:
            return torch.bmm(hidden, weight)
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight)


class _BucketLogits(torch.autograd.Function):
    """The product of hidden [R, N, H] and weight [R, H, B], plus bias [R, B] or None: [R, N, B].

    Its derivatives are those that autograd would compute, second derivatives included. But autocast has no
    effect on the backward pass either.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(hidden, weight)
        return _bucket_logits(hidden, weight, bias)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        hidden, weight = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad
        with own_precision(grad.device):
            return (
                torch.bmm(grad, weight.mT) if needs_hidden else None,
                torch.bmm(hidden.mT, grad) if needs_weight else None,
                grad.sum(1) if needs_bias else None,
            )


class _WideningLogits(torch.autograd.Function):
    """The product of hidden [R, N, H] and a narrower weight [R, H, B]: [R, N, B].

    The weight is widened one repetition at a time.
    """

    @staticmethod
    def forward(ctx, hidden, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight)
        with own_precision(hidden.device):
            return torch.stack([h @ w.to(h.dtype) for h, w in zip(hidden, weight, strict=True)])

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (weight,) = ctx.saved_tensors
        with own_precision(grad.device):
            return torch.stack([g @ w.to(g.dtype).T for g, w in zip(grad, weight, strict=True)]), None
