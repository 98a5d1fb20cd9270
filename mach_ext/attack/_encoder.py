"""The encoder of a user: any callable from inputs to hidden units, and its modules in eval mode."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Encoder: TypeAlias = Callable[[Tensor], Tensor]  # [N, ...] -> [N, H], or [N, R, H]


@contextlib.contextmanager
def in_eval_mode(*callables: Any) -> Iterator[None]:
    """Puts the modules of callables into eval mode for a while.

    The flags are set one by one, because `train()` would not give each module its former mode back.
    """
    modules = [module for each in callables for root in modules_of(each) for module in root.modules()]
    training = [module for module in dict.fromkeys(modules) if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def modules_of(encoder: Any) -> list[nn.Module]:
    """Returns the modules that a callable is known to use.

    These are the callable itself, the owner of a method, the arguments of a partial function, and what a
    function refers to by a name.
    """
    if isinstance(encoder, nn.Module):
        return [encoder]
    if isinstance(encoder, functools.partial):
        parts = [encoder.func, *encoder.args, *encoder.keywords.values()]
        return [module for part in parts for module in modules_of(part)]
    owner = getattr(encoder, "__self__", None if inspect.isroutine(encoder) else encoder)
    used = [owner, *getattr(owner, "__dict__", {}).values()]
    function = getattr(encoder, "__func__", encoder)
    if inspect.isfunction(function):
        with contextlib.suppress(ValueError):  # A name of an enclosing function has no value yet.
            names = inspect.getclosurevars(function)
            used += [*names.nonlocals.values(), *names.globals.values()]
    return [part for part in used if isinstance(part, nn.Module)]


def check_hidden(
    op: str, given: Any, expected: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Checks what an encoder returns. Half precision is widened.

    Args:
        op: How messages call the function.
        given: What the encoder returned.
        expected: The shape: (N, H), or (N, R, H).
        dtype: The dtype of the head's products.
        device: The head's device.
    """
    names = "[N={}, H={}]" if len(expected) == 2 else "[N={}, R={}, H={}]"
    shape = names.format(*expected)
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{op}: encoder must return a torch.Tensor of hidden units {shape}, got {type(given).__name__}"
        )
    hidden: Tensor = given
    if tuple(hidden.shape) != expected:
        raise ValueError(f"{op}: encoder must return hidden units {shape}, got {list(hidden.shape)}")
    if hidden.device != device:
        raise ValueError(
            f"{op}: encoder must return hidden units on {device} like the head, got {hidden.device}"
        )
    if hidden.dtype in (torch.bfloat16, torch.float16):
        hidden = hidden.to(dtype)
    if hidden.dtype != dtype:
        own, other = (str(kind).removeprefix("torch.") for kind in (dtype, hidden.dtype))
        raise TypeError(f"{op}: encoder must return {own} like the head, got {other}")
    if not bool(hidden.detach().isfinite().all()):
        raise ValueError(f"{op}: encoder must return finite hidden units, got NaN or infinity")
    return hidden
