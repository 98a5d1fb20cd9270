"""How messages name an argument: as in Python, or as the flag of the command line that stands for it."""

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
    """Makes the messages of this thread name arguments as flags inside the block.

    Args:
        flags: Arguments whose flag has another name than the argument.
    """
    token = _flags.set(flags)
    try:
        yield
    finally:
        _flags.reset(token)


def spell(name: str, op: str = "", value: bool | None = None) -> str:
    """Returns an argument as the caller writes it.

    Args:
        name: The argument's name in Python.
        op: The function of the argument. Messages in Python begin with it.
        value: For an argument that is a switch, its value.

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
    """Returns a training as the caller writes it."""
    return f'mach_ext.train("{dataset}")' if _flags.get() is None else f"mach-ext train --dataset {dataset}"


def takes_text(columns: data.Columns, what: str) -> None:
    """Refuses texts for a model of vectors. The message says what Python callers can pass instead.

    The command line has its own message with its flags.

    Raises:
        ValueError: The model has no vectorizer.
    """
    if columns.vectorizer is None and _flags.get() is None:
        raise ValueError(
            f"{what}: the model was trained on vectors, not on text; predict(X=...) and predict(file=...) "
            "take vectors, explain(sample_id=...) a document of the dataset"
        )


def check_device(name: str | torch.device) -> None:
    """Refuses a device that is neither the CPU nor a usable GPU.

    Raises:
        ValueError: The device does not exist, or this build or machine has no operators for it.
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
    """Returns a NumPy number or array as Python's own, for JSON."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def as_real(value: Any) -> Any:
    """Returns a number as a float, as on the command line. Other values are returned unchanged."""
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    with contextlib.suppress(OverflowError):
        return float(value)
    return value


def as_path(name: str, value: Any, op: str = "") -> Path:
    """Returns a checked path.

    Raises:
        TypeError: The value is neither a string nor a path.
        ValueError: The value is empty, which would mean the current folder.
    """
    argument = spell(name, op)
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument} must be a string or a path, got {type(value).__name__}")
    if not os.fspath(value):
        raise ValueError(f"{argument} must not be empty")
    return Path(value)


def as_propensity(value: Any) -> tuple[float, float] | None:
    """Returns A and B of the propensity model. Their values are checked later.

    Raises:
        ValueError: The value is not two numbers.
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
