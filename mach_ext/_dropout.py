"""Dropout that a call can switch on or off, or draw by a generator of its own."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

# Whether to drop: None, as the module's mode says; False, not; True; or drawn by a generator of one's own.
Dropout: TypeAlias = bool | torch.Generator | None
_DROPPED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def drop(t: Tensor, p: float, dropout: Dropout, training: bool) -> Tensor:
    """Entries of t are 0 with probability p, where `dropout` or, with None, `training` says so."""
    if t.dtype not in _DROPPED:  # which operators refuse
        return t
    if isinstance(dropout, torch.Generator):
        if p == 0:
            return t
        # On the CPU the bits of nn.functional.dropout, had the global generator this state.
        kept = torch.empty_like(t).bernoulli_(1 - p, generator=dropout)
        return t * kept.div_(1 - p)
    if not (dropout is None or isinstance(dropout, bool)):
        kind = type(dropout).__name__
        raise TypeError(f"MACH: dropout must be None, a bool or a torch.Generator, got {kind}")
    return nn.functional.dropout(t, p, training if dropout is None else dropout)
