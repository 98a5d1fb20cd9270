"""Vectors of numbers that are grouped by document."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(indptr: Tensor) -> Tensor:
    """Returns the document of each entry."""
    lengths = indptr.diff().long()
    return torch.repeat_interleave(torch.arange(len(lengths), device=indptr.device), lengths)


def norms(v: Tensor, rows: Tensor, N: int, p: float) -> Tensor:  # [N]
    """Returns the norm of each document's entries, for p = 1 or 2."""
    total = v.new_zeros(N).index_add_(0, rows, v.abs() if p == 1 else v.square())
    return total if p == 1 else total.sqrt()


def rank_in_rows(key: Tensor, rows: Tensor) -> Tensor:
    """Returns positions ordered by document, and within each document by falling key."""
    falling = key.sort(descending=True, stable=True).indices
    return falling[rows[falling].sort(stable=True).indices]


def first_of_rows(order: Tensor, rows: Tensor, N: int) -> Tensor:
    """Returns the first position of each document that has any. `order` must keep documents together."""
    start = torch.ones_like(order, dtype=torch.bool)
    start[1:] = rows[order[1:]] != rows[order[:-1]]
    return order[start]
