"""The precision of a step: products in it, and the copy of the weight that takes the documents."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import check_room

# Elements of a weight that are rounded to its copy at a time: what lies in between takes little memory.
ROUNDED_TOGETHER = 1 << 22


def product_dtype(master: torch.dtype, precision: str) -> torch.dtype:
    """Of what goes into the products of a step, for weights of the dtype `master`."""
    return master if precision == "float32" else torch.bfloat16


class RowsCopy:
    """The weight that takes the documents, in the precision of the products: itself, or its copy."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.copy: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The weight for the products of a step; it has no gradient."""
        if weight.dtype == self.dtype:
            return weight.detach()
        if self.copy is None:
            self.copy = weight.detach().to(self.dtype)
        return self.copy


def round_rows(weight: Tensor, rounded: Tensor, order: _ops.FeatureOrder) -> None:
    """The rows [., M] of the copy that a step has changed."""
    if rounded.dtype != weight.dtype:
        for rows in order.features.split(max(1, ROUNDED_TOGETHER // weight.shape[-1])):
            rounded[rows] = weight.detach()[rows].to(rounded.dtype)


def add_product(term: Tensor | None, a: Tensor, b: Tensor, out: Tensor) -> None:
    """term + a b -> out, float32 (or float64); a and b are of the run's precision."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out) if term is None else torch.addmm(term, a, b, out=out)
        return
    if not a.is_cuda:
        check_room()  # without, oneDNN crashes
        product = torch.mm(a, b)
    elif term is out:
        product = torch.mm(a, b, out_dtype=out.dtype)
    else:  # in place. (What addmm takes with another out_dtype has changed between releases.)
        product = torch.mm(a, b, out_dtype=out.dtype, out=out)
    if term is not None:
        torch.add(term, product, out=out)
    elif product is not out:
        out.copy_(product)
