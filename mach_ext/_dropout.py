"""Dropout that a call can switch on or off, or draw from a generator of its own."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn


class PartOfMasks(NamedTuple):
    """A generator for a part of a model. It draws the masks of all repetitions, and the part takes its own.

    Every part then drops what the whole model would drop.
    """

    generator: torch.Generator
    repetitions: range
    num_repetitions: int  # of the whole model

    def draw(self, t: Tensor, p: float) -> Tensor:
        """Return the mask of hidden units by repetition [N, R, H], or of what all parts have."""
        if t.dim() != 3:
            return torch.empty_like(t).bernoulli_(1 - p, generator=self.generator)
        N, _, H = t.shape
        whole = t.new_empty(N, self.num_repetitions, H).bernoulli_(1 - p, generator=self.generator)
        return whole[:, self.repetitions.start : self.repetitions.stop]


# Whether to drop. None depends on the module's mode. A generator drops, and draws the masks.
Dropout: TypeAlias = bool | torch.Generator | PartOfMasks | None
_DROPPED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def drop(t: Tensor, p: float, dropout: Dropout, training: bool) -> Tensor:
    """Set entries of t to 0 with probability p, if `dropout` says so. With None, `training` decides."""
    if t.dtype not in _DROPPED:  # The operators refuse all other dtypes.
        return t
    if isinstance(dropout, (torch.Generator, PartOfMasks)):
        if p == 0:
            return t
        if isinstance(dropout, PartOfMasks):
            kept = dropout.draw(t, p)
        else:  # On the CPU these are the bits of nn.functional.dropout for a global generator in this state.
            whole = torch.empty_like(t, memory_format=torch.contiguous_format)
            kept = whole.bernoulli_(1 - p, generator=dropout)
        return t * kept.div_(1 - p)
    if not (dropout is None or isinstance(dropout, bool)):
        kind = type(dropout).__name__
        raise TypeError(f"MACH: dropout must be None, a bool or a torch.Generator, got {kind}")
    return nn.functional.dropout(t, p, training if dropout is None else dropout)
