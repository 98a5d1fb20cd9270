"""How messages name an argument: as Python does, or as the flag of the command line that stands for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import torch

from mach_ext import _ops

_flags: ContextVar[Mapping[str, str] | None] = ContextVar("flags", default=None)


@contextlib.contextmanager
def use_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Inside, messages of this thread name arguments as flags.

    Args:
        flags: Arguments whose flag has another name than the argument.
    """
    token = _flags.set(flags)
    try:
        yield
    finally:
        _flags.reset(token)


def spell(name: str, op: str = "", value: bool | None = None) -> str:
    """An argument as the caller writes it.

    Args:
        name: The argument's name in Python.
        op: The function it belongs to, which messages of Python's door begin with.
        value: For an argument that is a switch: which way it is turned.

    Example:
        >>> from mach_ext.runs.arguments import use_flags, spell
        >>> spell("output", "train"), spell("svm", value=False)
        ('train: output', 'svm=False')
        >>> with use_flags({}):
        ...     spell("output", "train"), spell("svm", value=False)
        ('--output', '--no-svm')
    """
    flags = _flags.get()
    if flags is None:
        text = name if value is None else f"{name}={value}"
        return f"{op}: {text}" if op else text
    flag = flags.get(name, "--" + name.replace("_", "-"))
    return flag if value is not False else f"--no-{flag.removeprefix('--')}"


def check_device(name: str | torch.device) -> None:
    """Refuses a device that is neither the CPU nor a GPU which the operators can use.

    Raises:
        ValueError: No such device, or this build or this machine has nothing for it.
    """
    argument = spell("device")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{argument} must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{argument} must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{argument} {name}: this PyTorch ({torch.__version__}) sees no CUDA GPU")
    if device.type == "cuda" and _ops.CUDA_FAULT:
        raise ValueError(f"{argument} {name}: there are no CUDA operators: {_ops.CUDA_FAULT}")
