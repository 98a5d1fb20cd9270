"""How messages name an argument: as Python does, or as the flag of the command line that stands for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mach_ext import _ops, data

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


def spell_training(dataset: str) -> str:
    """A training as the caller writes it."""
    return f'mach_ext.train("{dataset}")' if _flags.get() is None else f"mach-ext train --dataset {dataset}"


def takes_text(columns: data.Columns, what: str) -> None:
    """Refuses texts for a model of vectors, with what Python's door takes in their place.

    The command line has words of its own for it, with its flags.

    Raises:
        ValueError: The model has no vectorizer.
    """
    if columns.vectorizer is None and _flags.get() is None:
        raise ValueError(
            f"{what}: the model was trained on vectors, not on text; predict(X=...) and predict(file=...) "
            "take vectors, explain(sample_id=...) a document of the dataset"
        )


def check_device(name: str | torch.device) -> None:
    """Refuses a device that is neither the CPU nor a GPU which the operators can use.

    Raises:
        ValueError: No such device, or this build or this machine has nothing for it.
    """
    argument = spell("device")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"{argument} must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{argument} must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{argument} {name}: this PyTorch ({torch.__version__}) sees no CUDA GPU")
    if device.type == "cuda" and _ops.CUDA_FAULT:
        raise ValueError(f"{argument} {name}: there are no CUDA operators: {_ops.CUDA_FAULT}")


def plain(value: Any) -> Any:
    """A NumPy number or array as Python's own, which is what JSON takes."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def as_real(value: Any) -> Any:
    """A number as a float, as the command line has it; whatever else comes stays for others to refuse."""
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    with contextlib.suppress(OverflowError):
        return float(value)
    return value


def as_path(name: str, value: Any, op: str = "") -> Path:
    """A path that was given.

    Raises:
        TypeError: It is no string and no path.
        ValueError: It is empty, which would be the folder one is in.
    """
    argument = spell(name, op)
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument} must be a string or a path, got {type(value).__name__}")
    if not os.fspath(value):
        raise ValueError(f"{argument} must not be empty")
    return Path(value)


def as_propensity(value: Any) -> tuple[float, float] | None:
    """A and B of the propensity model, which are checked where they are used.

    Raises:
        ValueError: It is not two numbers.
    """
    if value is None:
        return None
    try:
        A, B = map(as_real, plain(value))
    except (TypeError, ValueError):
        A = B = None
    if not (isinstance(A, float) and isinstance(B, float)):
        raise ValueError(f"{spell('propensity')} must be two numbers A, B, got {value!r}")
    return A, B
