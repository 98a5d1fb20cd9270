"""Messages of usage errors: what is wrong, and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import typer

from mach_ext._terminal import quote

# The base class of usage errors. Old releases of Typer import it from click. New releases contain click.
UsageError: Any = typer.BadParameter.__mro__[1]


def nearest(given: str, known: Iterable[str]) -> str:
    """Returns a hint at the known name that is nearest to the given name, or an empty string.

    Example:
        >>> from mach_ext.cli.usage import nearest
        >>> nearest("--learnin-rat", ["--learning-rate", "--tau"])
        '; did you mean --learning-rate?'
    """
    names = {each.strip("-"): each for each in known}  # the dashes would make any two short names alike
    words = given.strip("-")
    near = difflib.get_close_matches(words.replace("_", "-"), names, 1)
    if not near:
        near = difflib.get_close_matches(words, names, 1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def fault(error: Any) -> str:
    """Returns what is wrong with the arguments: the option, the rule and the given value."""
    if hasattr(error, "possibilities"):  # the option is unknown
        known = [
            name
            for option in error.ctx.command.get_params(error.ctx)
            if not getattr(option, "hidden", False)
            for name in (*option.opts, *option.secondary_opts)
        ]
        return f"unknown option {quote(error.option_name)}{nearest(error.option_name, known)}"
    if name := getattr(error, "option_name", None):  # a value is missing, or there is one too many
        return f"{name} {error.message.removeprefix(f'Option {name!r} ').rstrip('.')}"
    option = getattr(error, "param", None)
    if option is None:
        return str(error.message)
    name = "/".join(option.opts)
    return f"{name} {error.message}" if error.message else f"{name} is required"


def usage(error: Any) -> str:
    """Returns the usage of the command with the error, and how to see the help of this command."""
    lines = [] if error.ctx is None else [error.ctx.get_usage()]
    if error.ctx is not None:
        lines.append(f"Try '{error.ctx.command_path} --help' for help.")
    return "\n".join(lines)
