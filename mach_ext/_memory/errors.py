"""Blocks and functions that turn a shortage of memory into a readable error."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from mach_ext._memory.shortage import NotEnoughMemory, memory_shortage, not_enough


class memory_advice:
    """A block that turns a shortage of memory into an error that says what would help.

    On the CPU the error is a `MemoryError`. On a GPU it is `torch.OutOfMemoryError`. If an operator of this
    package asked PyTorch for memory there, the original error only says which call failed.

    Args:
        op: The function that the user called.
        advice: What would help: "lower batch_size".
        model: Its device tells whose memory is short. None is the CPU.
        is_final: Keep `op` and `advice`, whatever function calls the block.
    """

    def __init__(self, op: str, advice: str, model: Any = None, is_final: bool = False) -> None:
        self.op, self.advice, self.model, self.is_final = op, advice, model, is_final

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            return
        translated: Any = _on_gpu(error, self.op, self.advice, self.model)
        translated = translated or _on_cpu(error, self.op, self.advice, self.is_final)
        if translated is not None:
            raise translated from None


def _on_cpu(error: BaseException, op: str, advice: str, is_final: bool = False) -> MemoryError | None:
    if isinstance(error, NotEnoughMemory) and error.is_final:
        return None
    shortage = memory_shortage(error)
    return None if shortage is None else not_enough(op, shortage, advice, is_final)


def _on_gpu(error: BaseException, op: str, advice: str, model: Any) -> torch.OutOfMemoryError | None:
    if model is None:
        return None
    text, device = str(error), model.bucket_bias.device
    asked = device.type == "cuda" and "aten::" in text and "API call failed" in text
    if not asked and not isinstance(error, torch.OutOfMemoryError):
        return None
    return torch.OutOfMemoryError(
        f"{op}: out of memory on {device}: {advice} (the model has R={model.num_repetitions} repetitions of "
        f"B={model.num_buckets} buckets; `mach-ext info` states what it takes). PyTorch says: {text}"
    )


_Function = TypeVar("_Function", bound=Callable[..., Any])


def memory_errors(advice: str, op: str | None = None) -> Callable[[_Function], _Function]:
    """Decorate a function so that it does what `memory_advice` does for a block.

    Args:
        advice: What would help: "lower batch_size".
        op: What the user calls the function. None is its own name.
    """

    def decorate(function: _Function) -> _Function:
        is_compiling, translate = torch.compiler.is_compiling, _on_cpu
        qualified = op or function.__qualname__.removesuffix(".__init__")

        def called(arguments: tuple[Any, ...]) -> str:  # A private base class gets the name of its subclass.
            if not qualified.startswith("_"):
                return qualified
            return f"{type(arguments[0]).__name__}.{function.__name__}"

        def call(*args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return function(*args, **kwargs)
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if (translated := translate(error, called(args), advice)) is None:
                    raise
                raise translated from None

        def generate(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                if (translated := translate(error, called(args), advice)) is None:
                    raise
                raise translated from None

        wrapper: Any = generate if inspect.isgeneratorfunction(function) else call
        # doctest uses the globals of a function to decide which module it belongs to.
        here = types.FunctionType(wrapper.__code__, function.__globals__, None, None, wrapper.__closure__)
        return functools.wraps(function)(here)  # type: ignore[return-value]

    return decorate
