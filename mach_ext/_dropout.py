"""Dropout that a call can switch on or off, or draw from a generator of its own."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

# Whether to drop. None depends on the module's mode. A generator drops, and draws the masks.
Dropout: TypeAlias = bool | torch.Generator | None
_DROPPED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def drop(t: Tensor, p: float, dropout: Dropout, training: bool) -> Tensor:
    """Set entries of t to 0 with probability p, if `dropout` says so. With None, `training` decides."""
    if t.dtype not in _DROPPED:  # The operators refuse all other dtypes.
        return t
    if isinstance(dropout, torch.Generator):
        if p == 0:
            return t
        # On the CPU these are the bits of nn.functional.dropout for a global generator in this state.
        kept = torch.empty_like(t).bernoulli_(1 - p, generator=dropout)
        return t * kept.div_(1 - p)
    if not (dropout is None or isinstance(dropout, bool)):
        kind = type(dropout).__name__
        raise TypeError(f"MACH: dropout must be None, a bool or a torch.Generator, got {kind}")
    return nn.functional.dropout(t, p, training if dropout is None else dropout)
