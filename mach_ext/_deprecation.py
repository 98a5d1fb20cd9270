"""Former names, which work for one more release with a DeprecationWarning."""

from __future__ import annotations

import functools
import importlib
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def renamed_names(module: str, **names: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module with former names, such as `old="module.new"`.

    Args:
        module: The name of the module.
        **names: The new name, with its module, for each former name.

    Example:
        >>> from mach_ext._deprecation import renamed_names
        >>> __getattr__ = renamed_names(__name__, old="math.sqrt")
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", names[name])
        where, _, new = names[name].rpartition(".")
        return getattr(importlib.import_module(where), new)

    return __getattr__


def renamed_argument(old: str, new: str) -> Callable[[_Function], _Function]:
    """Decorate a function whose keyword argument `old` is now called `new`.

    Args:
        old: The former name.
        new: The new name.

    Raises:
        TypeError: A call passes both.

    Example:
        >>> from mach_ext._deprecation import renamed_argument
        >>> @renamed_argument("step", "quantization_step")
        ... def save(quantization_step=None):
        ...     return quantization_step
        >>> save(quantization_step=0.5)
        0.5
    """

    def decorate(function: _Function) -> _Function:
        warn = warn_renamed

        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}: {old} is now {new}; pass only {new}")
                warn(f"{function.__qualname__}: argument {old}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        # doctest uses the globals of a function to decide which module it belongs to.
        here = types.FunctionType(call.__code__, function.__globals__, None, None, call.__closure__)
        return functools.wraps(function)(here)  # type: ignore[return-value]

    return decorate


def warn_renamed(old: str, new: str) -> None:
    """Warn of a former name at the line that calls the calling function."""
    message = f"{old} is now called {new}; the next release removes the old name"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
