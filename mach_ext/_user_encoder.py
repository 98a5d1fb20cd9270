"""The encoder of a user in front of a head: its modules in eval mode, checks of its inputs and outputs."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import scipy  # scipy.sparse is loaded at its first use, which takes 0.2 s
import torch
from torch import Tensor, nn

from mach_ext._model_checks import values_dtype
from mach_ext.head import MACHHead

Encoder: TypeAlias = Callable[[Tensor], Tensor]  # [N, ...] -> [N, H], or [N, R, H]
_HALVES = (torch.bfloat16, torch.float16)
# Hidden units of the same input may differ by this share of their length. Half precision stays below it, and
# dropout far above.
_SAME = 0.02


def check_encoder(op: str, model: Any, encoder: Any) -> None:
    """Refuse an encoder that is not callable, or that stands before something else than a head."""
    if not isinstance(model, MACHHead):
        raise TypeError(
            f"{op}: model must be a mach_ext.MACHHead if encoder is given, got {type(model).__name__}"
        )
    if not callable(encoder):
        raise TypeError(
            f"{op}: encoder must be a callable such as a torch.nn.Module, got {type(encoder).__name__}"
        )


@contextlib.contextmanager
def in_eval_mode(*callables: Any) -> Iterator[None]:
    """Put the modules of callables into eval mode for a while.

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
    """Return the modules that a callable is known to use.

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


def check_inputs(op: str, head: Any, X: Any, name: str = "X") -> Tensor:  # [N, ...]
    """Return inputs of an encoder as a dense tensor of floats. Its memory may be the user's.

    A NumPy array gets the head's dtype, because the encoder gives that dtype and NumPy's own is float64.

    Raises:
        TypeError: The argument is not a dense tensor or NumPy array of floating-point numbers.
    """
    if not isinstance(X, (np.ndarray, Tensor)) or (isinstance(X, Tensor) and X.layout != torch.strided):
        given = _name(X.layout) if isinstance(X, Tensor) else type(X).__name__
        hint = f"; pass {name}.toarray()" if scipy.sparse.issparse(X) else ""
        raise TypeError(
            f"{op}: {name} must be a dense torch.Tensor or a NumPy array [N, ...], got {given}{hint}"
        )
    is_float = X.dtype.kind == "f" if isinstance(X, np.ndarray) else X.is_floating_point()
    if not is_float:
        raise TypeError(
            f"{op}: {name} must be floating-point numbers, got {_name(X.dtype)}; for token ids, pass their "
            "embeddings, and an encoder that starts from these"
        )
    if isinstance(X, np.ndarray):
        with np.errstate(over="ignore"):  # Infinities are refused by name.
            native = np.ascontiguousarray(X, f"f{values_dtype(head).itemsize}")
        X = torch.from_numpy(native if native.flags.writeable else native.copy())
    inputs: Tensor = X.detach()
    return inputs


def check_finite_inputs(op: str, inputs: Tensor, name: str = "X") -> None:  # [N, ...]
    """Refuse inputs that are NaN or infinite."""
    is_bad = ~inputs.flatten(1).isfinite().all(1) if inputs.dim() > 1 else ~inputs.isfinite()
    if bool(is_bad.any()):
        row = int(is_bad.flatten().nonzero()[0])
        raise ValueError(f"{op}: {name}, row {row}: values must be finite, got NaN or infinity")


def check_output(op: str, head: MACHHead, given: Any, N: int) -> Tensor:  # [N, H] or [N, R, H]
    """Return what an encoder gave for N inputs, if the head takes it.

    Raises:
        TypeError: The encoder does not return floating-point numbers that the head takes.
        ValueError: It returns another shape, or numbers on another device.
    """
    R, H, device = head.num_repetitions, head.in_features, head.bucket_bias.device
    expected, shape = ((N, R, H), f"[{N=}, {R=}, {H=}]") if head.per_repetition else ((N, H), f"[{N=}, {H=}]")
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{op}: encoder must return hidden units {shape} as a torch.Tensor, got {type(given).__name__}"
        )
    if tuple(given.shape) != expected:
        raise ValueError(f"{op}: encoder must return hidden units {shape}, got {list(given.shape)}")
    dtype = values_dtype(head)
    if given.dtype not in (dtype, *_HALVES):
        raise TypeError(
            f"{op}: encoder must return hidden units in {_name(dtype)} like the head, or in half "
            f"precision, got {_name(given.dtype)}"
        )
    if given.device != device:
        raise ValueError(
            f"{op}: encoder must return hidden units on {device} like the head, got {given.device}"
        )
    hidden: Tensor = given
    return hidden


def check_finite_hidden(op: str, hidden: Tensor) -> None:
    """Refuse hidden units that are NaN or infinite."""
    finite = hidden.detach().isfinite()
    if not bool(finite.all()):
        raise ValueError(
            f"{op}: encoder must return finite hidden units, got {int((~finite).sum())} of "
            f"{finite.numel()} numbers NaN or infinite"
        )


def check_repeatable(op: str, hidden: Tensor, again: Tensor, what: str = "hidden units") -> None:
    """Refuse an encoder that gave other hidden units for an input when it was asked again."""
    if float((hidden - again).double().norm()) > _SAME * float(again.double().norm()):
        raise ValueError(
            f"{op}: encoder must return the same {what} for an input each time, got others the second "
            "time; call eval() on the modules that it uses, and let no input of a batch depend on the others"
        )


def _name(kind: Any) -> str:
    return str(kind).removeprefix("torch.")
