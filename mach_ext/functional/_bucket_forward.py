"""Logits of all buckets from hidden units and weights that are rounded to bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext.functional._autograd import first_order, needs_grad, own_precision
from mach_ext.functional._repetitions import of_repetition


def rounded_bucket_logits(
    hidden: Tensor,  # [N, H] or [N, R, H] float32
    weight: Tensor,  # [R, H, B] float32 or bfloat16
    bias: Tensor | None,  # [R, B] float32
) -> Tensor:  # [N, R, B] float32
    """Return `hidden @ weight[r] + bias[r]` of operands rounded to bfloat16, summed in float32."""
    logits: Tensor = _RoundedLogits.apply(hidden, weight, bias)
    return logits


def rounded_weight(weight: Tensor) -> Tensor:  # [G, H, B]
    """Return a weight [G, H, B] in bfloat16, with the memory of [G, B, H], in which products take it."""
    # Without the second call, a row-major weight that is in bfloat16 already would stay as it is.
    return weight.mT.to(torch.bfloat16, memory_format=torch.contiguous_format).contiguous().mT


def takes_fused(weight: Tensor, dtype: torch.dtype) -> bool:
    """Return whether `_ops.bucket_forward` multiplies by this weight [G, H, B], rounded to this dtype.

    In memory the hidden units of a bucket start at a multiple of 16 bytes.
    """
    _, H, B = weight.shape
    return dtype == torch.bfloat16 and H % 8 == 0 and B > 0 and _ops.has_bucket_forward(weight.device)


def fused_scores(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
    transform: str,  # none, sigmoid, logsigmoid
) -> tuple[Tensor, _ops.Extremes] | None:
    """Return the transformed rounded logits [N, R, B] and their extremes, by a weight that `takes_fused`.

    None: a dtype is not the kernel's, or a gradient is recorded.
    """
    floats = (torch.float32, torch.bfloat16)
    if hidden.dtype != torch.float32 or weight.dtype not in floats or needs_grad(hidden, weight, bias):
        return None
    bias = None if bias is None else bias.float()
    return _ops.bucket_forward_extremes(hidden.bfloat16(), rounded_weight(weight), bias, transform)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the logits [N, R, B] in float32 of bfloat16 hidden units and weights."""
    if takes_fused(weight, weight.dtype):
        return _ops.bucket_forward(hidden, weight, bias)
    R = weight.shape[0]
    by_repetition = hidden.expand(R, -1, -1) if hidden.dim() == 2 else hidden.transpose(0, 1)  # [R, N, H]
    with own_precision(hidden.device):
        if hidden.is_cuda:
            logits = torch.bmm(by_repetition, weight, out_dtype=torch.float32)
        else:  # Products of two bfloat16 are exact in float32.
            logits = torch.stack([h.float() @ w.float() for h, w in zip(by_repetition, weight, strict=True)])
    if bias is not None:
        logits += bias.unsqueeze(1)
    return logits.transpose(0, 1)


class _RoundedLogits(torch.autograd.Function):
    """The autograd function of `rounded_bucket_logits`.

    The gradients are those of the product of the rounded operands. The rounding itself passes them on. They
    are products in float32 of the rounded operands and the gradient as it comes, one repetition at a time.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias):  # type: ignore[no-untyped-def]
        hidden, weight = hidden.bfloat16(), rounded_weight(weight)
        ctx.save_for_backward(hidden, weight)
        return _logits(hidden, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        hidden, weight = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad
        grad_hidden = grad.new_zeros(hidden.shape) if needs_hidden else None
        grad_weight = grad.new_empty(weight.shape) if needs_weight else None
        with own_precision(grad.device):
            for r in range(weight.shape[0]):
                g, h = grad[:, r], of_repetition(hidden, r)
                if grad_hidden is not None:
                    of_repetition(grad_hidden, r).addmm_(g, weight[r].float().T)
                if grad_weight is not None:
                    grad_weight[r] = h.float().T @ g
        return grad_hidden, grad_weight, grad.sum(0) if needs_bias else None
