"""Parsers of option values. For a wrong text the usage error states the rule and the text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from mach_ext._terminal import quote
from mach_ext.cli.usage import nearest

_INT32 = 2**31 - 1
_FLOAT32 = 3.4028234663852886e38
_LARGEST_CHANGE = 1e17  # a curve of sizes ends at 30 times this size, whose square still fits into float32


def integer(minimum: int, maximum: int = _INT32) -> Callable[[str], int]:
    """Returns a parser of whole numbers within two bounds, in ASCII digits.

    Example:
        >>> from mach_ext.cli.values import integer
        >>> integer(1)("042")
        42
    """

    def parse(text: str) -> int:
        digits = re.fullmatch(r"([+-]?)0*([0-9]+)", text)
        value = minimum - 1
        if digits is not None:
            value = int(digits[1] + digits[2][:30])  # 30 digits are too many, whatever digits follow
        if value < minimum:
            raise typer.BadParameter(f"must be a whole number of at least {minimum}, got {quote(text)}")
        if value > maximum:
            raise typer.BadParameter(f"must be a whole number of at most {maximum}, got {quote(text)}")
        return value

    return parse


positive = integer(1)
natural = integer(0)
threads = integer(1, 4096)
seed = integer(0, 2**63 - 1)
steps = integer(1, 65536)  # the time to compute the quadrature grows with the square of the steps

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def number(text: str) -> float:
    """Returns a number that is written in ASCII digits.

    Any other text gives NaN. A number that is too large for float64 is infinite.
    """
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def real(rule: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """Returns a parser of numbers for which `allowed` is true. `rule` says the same in words."""

    def parse(text: str) -> float:
        value = number(text)
        if not allowed(value):
            raise typer.BadParameter(f"must be a number {rule}, got {quote(text)}")
        return value

    return parse


share = real("in [0, 1)", lambda value: 0 <= value < 1)
rate = real(f"within 0 and {_FLOAT32:.2g}", lambda value: 0 <= value <= _FLOAT32)
above_0 = real(f"above 0 and at most {_FLOAT32:.2g}", lambda value: 0 < value <= _FLOAT32)
eps = real(f"within 1e-20 and {_FLOAT32:.2g}", lambda value: 1e-20 <= value <= _FLOAT32)
cost = real("within 1e-06 and 1e+06", lambda value: 1e-6 <= value <= 1e6)
tau = real("within 0 and 100", lambda value: 0 <= value <= 100)


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Returns a parser that accepts only these words."""

    def parse(text: str) -> str:
        if text not in choices:
            rule = f"must be one of {', '.join(filter(None, choices))}"
            raise typer.BadParameter(f"{rule}; got {quote(text)}{nearest(text, choices)}")
        return text

    return parse


def hidden_sizes(text: str) -> tuple[int, ...]:
    """Parses the hidden units of one or two layers: `"256"`, `"512,256"`, or `"0"` for none."""
    sizes = tuple(natural(part) for part in text.split(","))
    if len(sizes) > 2 or (len(sizes) == 2 and 0 in sizes):
        raise typer.BadParameter(f"must be 0, a size or two sizes above 0, got {quote(text)}")
    return sizes


def base(text: str) -> int:
    """Parses the number of the first feature, 0 or 1."""
    if (value := natural(text)) > 1:
        raise typer.BadParameter(f"must be 0 or 1, got {quote(text)}")
    return value


def path(text: str) -> Path:
    """Parses a path that is not empty."""
    return Path(nonempty(text))


def nonempty(text: str) -> str:
    """Returns the text. An empty text is a usage error."""
    if not text:
        raise typer.BadParameter("must not be empty")
    return text


def sizes_of_changes(text: str) -> list[float]:
    """Parses sizes of changes, with commas between them."""
    sizes = [number(part) for part in text.split(",")]
    if not all(0 <= size <= _LARGEST_CHANGE for size in sizes):
        rule = f"must be numbers >= 0 and at most {_LARGEST_CHANGE:g}, with commas between"
        raise typer.BadParameter(f"{rule}, got {quote(text)}")
    return sizes


def threat(text: str) -> str:
    """Returns the name of a threat model. An unknown name is a usage error."""
    from mach_ext import attack

    try:
        attack.threat_model(text)
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("threat model ")) from None
    return text


def propensity(text: str) -> tuple[float, float]:
    """Parses the constants A and B of the propensity model."""
    parts = [number(part) for part in text.split(",")]
    A, B = parts if len(parts) == 2 else (math.nan, math.nan)
    if not (0 <= A < math.inf and 0 < B < math.inf):
        raise typer.BadParameter(f"must be two numbers A,B with A >= 0 and B > 0, got {quote(text)}")
    return A, B


class Derived:
    """A default that a rule decides later. --help shows the rule, and the command gets None.

    Example:
        >>> from mach_ext.cli.values import Derived, natural, reader
        >>> str(Derived("all cores")), reader(natural)(Derived("all cores"))
        ('all cores', None)
    """

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __str__(self) -> str:
        return self.rule


def derived(rule: str) -> Any:
    """Returns a `Derived` default. Its static type is Any, so that an option of any type accepts it."""
    return Derived(rule)


def reader(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Returns a parser that also accepts defaults, because Typer passes them to the parser, too."""

    def read(value: Any) -> Any:
        if isinstance(value, Derived):
            return None
        return parse(value) if isinstance(value, str) else value

    return read
