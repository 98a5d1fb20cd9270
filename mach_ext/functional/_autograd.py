"""What the autograd functions of this package share."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor


def first_order(backward: Any) -> Any:
    """Marks a backward that is not itself differentiable: create_graph=True gets an error, not wrong numbers.

    (PyTorch's once_differentiable lets it pass where the incoming gradient is a constant, as a loss's is.)
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "mach_ext: second derivatives are not implemented; call backward without create_graph=True"
            )
        return backward(ctx, *grads)

    return checked


def own_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in their arguments' own dtype: what follows wants it, autocast or not."""
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def needs_grad(*args: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
