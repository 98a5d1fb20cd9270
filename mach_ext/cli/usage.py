"""Usage errors in words: what is wrong, and the nearest right spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import typer

from mach_ext._terminal import quote

# The base of usage errors. Older releases of Typer take it from click, newer ones carry a copy of click.
UsageError: Any = typer.BadParameter.__mro__[1]


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint at the known name that is nearest to a given one, or nothing.

    Example:
        >>> from mach_ext.cli.usage import nearest
        >>> nearest("--learnin-rat", ["--learning-rate", "--tau"])
        '; did you mean --learning-rate?'
    """
    near = difflib.get_close_matches(given.replace("_", "-"), known, 1)
    if not near:
        near = difflib.get_close_matches(given, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def fault(error: Any) -> str:
    """What is wrong with the arguments: the option, the rule and what came."""
    if hasattr(error, "possibilities"):  # there is no such option
        known = [
            name
            for option in error.ctx.command.get_params(error.ctx)
            if not getattr(option, "hidden", False)
            for name in (*option.opts, *option.secondary_opts)
        ]
        return f"unknown option {quote(error.option_name)}{nearest(error.option_name, known)}"
    option = getattr(error, "param", None)
    if option is None:
        return str(error.message)
    name = "/".join(option.opts)
    return f"{name} {error.message}" if error.message else f"{name} is required"


def usage(error: Any) -> str:
    """The usage of the command that has the fault, and how to see its help."""
    lines = [] if error.ctx is None else [error.ctx.get_usage()]
    if error.ctx is not None:
        lines.append(f"Try '{error.ctx.command_path} --help' for help.")
    return "\n".join(lines)
