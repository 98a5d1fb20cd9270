"""The precision of a step: the dtype of its products, and the copy of the weight that takes the documents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from mach_ext import _ops

# So many elements of a weight are rounded to its copy at a time. Their temporaries take little memory.
ROUNDED_TOGETHER = 1 << 22


def product_dtype(master: torch.dtype, precision: str) -> torch.dtype:
    """Return the dtype of the products of a step, for weights of the dtype `master`."""
    return torch.bfloat16 if precision == "bfloat16" else master


@contextlib.contextmanager
def product_precision(precision: str) -> Iterator[None]:
    """Let the float32 products on a GPU use TF32 for a block, if this is the precision.

    PyTorch's setting is one for the whole process. Products of other threads use TF32 meanwhile, too.
    """
    settings = torch.backends.cuda.matmul
    if precision != "tf32" or settings.fp32_precision == "tf32":
        yield
        return
    former, settings.fp32_precision = settings.fp32_precision, "tf32"
    try:
        yield
    finally:
        settings.fp32_precision = former


class RowsCopy:
    """The weight that takes the documents in the precision of the products: itself, or a copy."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.copy: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        """Return the weight for the products of a step, without a gradient."""
        if weight.dtype == self.dtype:
            return weight.detach()
        if self.copy is None:
            self.copy = weight.detach().to(self.dtype)
        return self.copy


def round_rows(weight: Tensor, rounded: Tensor, order: _ops.FeatureOrder) -> None:
    """Update the rows [..., row, :] of the copy that a step has changed."""
    if rounded.dtype != weight.dtype:
        weight = weight.detach()
        length = weight.shape[-1] * weight.shape[:-2].numel()
        for rows in order.features.split(max(1, ROUNDED_TOGETHER // length)):
            rounded[..., rows, :] = weight[..., rows, :].to(rounded.dtype)
