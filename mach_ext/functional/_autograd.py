"""Helpers that the autograd functions of this package share."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor


def first_order(backward: Any) -> Any:
    """Mark a backward pass that is not itself differentiable, so that create_graph=True raises an error.

    PyTorch's `once_differentiable` raises no error if the incoming gradient is a constant, as that of a
    loss is.
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
    """Make matrix products run in the dtype of their arguments, even under autocast.

    Args:
        device: The device of the arguments.

    Returns:
        A context manager.

    Example:
        >>> import torch
        >>> from mach_ext.functional import own_precision
        >>> a = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     narrow = a @ a
        ...     with own_precision(a.device):
        ...         own = a @ a
        >>> narrow.dtype, own.dtype
        (torch.bfloat16, torch.float32)
    """
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def needs_grad(*args: Any) -> bool:
    """Return whether autograd will need a gradient to any of the arguments."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
