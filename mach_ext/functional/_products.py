"""The matrix products of a group of repetitions, and the loss between them.

A parameter [R, H, B] is contiguous. What a GPU rounds of it for the products is bucket-major: the memory is
that of [G, B, H]. With hidden units that all repetitions share, a group is then a single classifier of G * B
buckets. Its logits, and the gradient to its hidden units, are one matrix product each. Other products are
batched.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import check_room
from mach_ext.functional._bucket_forward import rounded_weight
from mach_ext.functional._repetitions import of_group


class Targets(NamedTuple):
    """What the loss takes besides the logits."""

    buckets: Tensor  # [R, L] int32
    label_indices: Tensor  # [label nnz] int64
    label_indptr: Tensor  # [N + 1]
    scale: float | None  # factor of the gradient, or None where no gradient is needed


class Group:
    """A group of repetitions: its hidden units, its weight, and their products.

    Attributes:
        hidden: [N, H], or [N, G, H] of independent encoders.
        weight: [G, H, B] in the dtype of `hidden`, and in any order of memory.
    """

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        self.hidden, self.weight = hidden, weight
        # A single repetition is one product, whatever its order.
        self.is_one = len(weight) == 1 or (hidden.dim() == 2 and weight.mT.is_contiguous())
        if self.is_one and hidden.dim() == 3:
            self.hidden = hidden[:, 0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (N, G, B) of the logits."""
        G, _, B = self.weight.shape
        return len(self.hidden), G, B

    def new_logits(self, dtype: torch.dtype, memory: Tensor | None = None) -> Tensor:  # [N, G, B]
        """Return an uninitialised tensor in the order that the products take.

        Args:
            dtype: The dtype, unless memory is given.
            memory: A tensor of one dimension to take the memory from.
        """
        N, G, B = self.shape
        if memory is None:
            memory = self.hidden.new_empty(N * G * B, dtype=dtype)
        memory = memory[: N * G * B]
        return memory.view(N, G, B) if self.is_one else memory.view(G, N, B).transpose(0, 1)

    def logits(self, out: Tensor) -> Tensor:  # [N, G, B]
        """Write hidden @ weight to a tensor of `new_logits`, in its dtype, and return it."""
        if self.is_one:
            product(self.hidden, _as_one(self.weight), out.flatten(1))
        else:
            product(self._by_repetition, self.weight, out.transpose(0, 1))
        return out

    def add_grad_hidden(self, gradient: Tensor, grad_hidden: Tensor) -> None:
        """Add the gradient to `hidden`, for a gradient to the logits in a tensor of `new_logits`."""
        if self.is_one:
            if grad_hidden.dim() == 3:
                grad_hidden = grad_hidden[:, 0]
            add_product(gradient.flatten(1), _as_one(self.weight).T, grad_hidden)
        elif self.hidden.dim() == 3:
            add_product(gradient.transpose(0, 1), self.weight.mT, grad_hidden.transpose(0, 1))
        else:
            N, G, _ = self.shape
            terms = grad_hidden.new_empty(G, N, grad_hidden.shape[1])
            product(gradient.transpose(0, 1), self.weight.mT, terms)
            grad_hidden += terms.sum(0)

    def write_grad_weight(self, gradient: Tensor, grad_weight: Tensor) -> None:
        """Write the gradient to `weight` to a contiguous tensor of its shape."""
        if len(grad_weight) == 1:
            product(self.hidden.T, gradient[:, 0], grad_weight[0])
        else:
            product(self._by_repetition.mT, gradient.transpose(0, 1), grad_weight)

    @property
    def _by_repetition(self) -> Tensor:  # [G, N, H]
        if self.hidden.dim() == 2:
            return self.hidden.expand(len(self.weight), -1, -1)
        return self.hidden.transpose(0, 1)


def group_of(hidden: Tensor, weight: Tensor, at: slice, dtype: torch.dtype) -> Group:
    """Return a group of repetitions, whose weight is converted to the dtype of the products.

    On a GPU a converted weight is bucket-major. It costs as much as any other copy.

    Args:
        hidden: [N, H] or [N, R, H], in the dtype of the products.
        weight: [R, H, B].
        at: The repetitions of the group.
        dtype: The dtype of the products.
    """
    part = weight[at]
    if part.dtype != dtype:
        part = rounded_weight(part) if _is_on_gpu(part) and dtype == torch.bfloat16 else part.to(dtype)
    return Group(of_group(hidden, at), part)


def bce_of_group(
    group: Group,
    bias: Tensor | None,  # [G, B]
    targets: Targets,
    at: slice,
    logits: Tensor,  # [N, G, B] of new_logits, written to
    out: Tensor | None = None,  # [N, G, B] of new_logits in bfloat16, for the gradient
    grad_bias: Tensor | None = None,  # [G, B], overwritten
) -> tuple[Tensor, Tensor]:  # gradient [N, G, B], losses [N] float64
    """Return the gradient of a group's loss to its logits, and the loss of each document.

    The gradient is `out`, or it takes the place of the logits. Without one, the logits are returned.
    """
    table, labels = targets.buckets[at], (targets.label_indices, targets.label_indptr)
    z = group.logits(logits)
    losses = _ops.bucket_bce(z, bias, table, *labels, targets.scale, out, grad_bias)
    return (z if out is None else out), losses


def fused_bce_of_group(
    group: Group,
    bias: Tensor | None,  # [G, B]
    targets: Targets,
    at: slice,
    grad_bias: Tensor,  # [G, B], overwritten
) -> tuple[Tensor, Tensor]:  # gradient [N, G, B] in bfloat16, losses [N] float64
    """Return what `bce_of_group` returns, by a kernel that never writes the logits to memory."""
    labels, scale = (targets.label_indices, targets.label_indptr), targets.scale
    assert scale is not None
    gradient, losses, sums = _ops.bucket_forward_bce(
        group.hidden, group.weight, bias, targets.buckets[at], *labels, scale
    )
    grad_bias.copy_(sums)
    return gradient, losses


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a b to `out`, in the dtype of `out`. The factors may be narrower. All are 2-D, or all 3-D."""
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    if a.dtype == out.dtype:
        multiply(a, b, out=out)
    elif a.is_cuda:
        multiply(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(_wide_product(a, b, out.dtype))


def add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Add a b to `out`, as `product`."""
    if a.dtype == out.dtype:
        out.addmm_(a, b) if a.dim() == 2 else out.baddbmm_(a, b)
    else:  # addmm would do, but releases of PyTorch differ in what it takes with another out_dtype.
        out += _wide_product(a, b, out.dtype)


def _wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a b of narrow factors, on CUDA in a wider dtype. On the CPU the result is narrow."""
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    if a.is_cuda:
        return multiply(a, b, out_dtype=dtype)
    check_room()  # oneDNN crashes without memory for its buffers.
    return multiply(a, b)


def _as_one(t: Tensor) -> Tensor:
    """Return [G, H, B] as [H, G * B], a view: of one repetition, or of a bucket-major tensor."""
    return t[0] if len(t) == 1 else t.mT.flatten(0, 1).T


def _is_on_gpu(t: Tensor) -> bool:
    return t.is_cuda
