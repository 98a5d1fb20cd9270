"""Vectors of numbers that are grouped by documents."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(indptr: Tensor) -> Tensor:
    lengths = indptr.diff().long()
    return torch.repeat_interleave(torch.arange(len(lengths), device=indptr.device), lengths)


def norms(v: Tensor, rows: Tensor, N: int, p: float) -> Tensor:  # [N]
    total = v.new_zeros(N).index_add_(0, rows, v.abs() if p == 1 else v.square())
    return total if p == 1 else total.sqrt()


def rank_in_rows(key: Tensor, rows: Tensor) -> Tensor:
    """Positions, documents in their order, each one's by falling key."""
    falling = key.sort(descending=True, stable=True).indices
    return falling[rows[falling].sort(stable=True).indices]


def first_of_rows(order: Tensor, rows: Tensor, N: int) -> Tensor:
    """Of positions in which documents keep together, the first one of each that has any."""
    start = torch.ones_like(order, dtype=torch.bool)
    start[1:] = rows[order[1:]] != rows[order[:-1]]
    return order[start]
