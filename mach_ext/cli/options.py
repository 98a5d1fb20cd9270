"""Options that commands share, the parser, and the types of its arguments."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mach_ext import attack
from mach_ext._terminal import escaped
from mach_ext.data.parsing import quote


class Parser(argparse.ArgumentParser):
    """Errors with the usage of the subcommand that has the fault, and with the nearest right spelling."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = nearest(flag, self._option_string_actions) if flag.startswith("-") else ""
            self.error(f"unknown argument {quote(unknown[0])}{hint}")
        return namespace, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = nearest(str(value), action.choices or ())
            raise argparse.ArgumentError(action, error.message + hint) from None

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own passes over a stream that fails


def nearest(given: str, known: Iterable[Any]) -> str:
    near = difflib.get_close_matches(given.replace("_", "-"), map(str, known), 1)
    return f"; did you mean {near[0]}?" if near else ""


_INT32 = 2**31 - 1
_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_CHANGE = 1e17  # float32 holds the square of 30 times as much, where the curve ends


def positive(text: str) -> int:
    return integer(text, 1)


def natural(text: str) -> int:
    return integer(text, 0)


def threads(text: str) -> int:
    return integer(text, 1, 4096)


def seed(text: str) -> int:
    return integer(text, 0, 2**63 - 1)


def steps(text: str) -> int:
    return integer(text, 1, 65536)  # the nodes of the quadrature take time that grows with the square


def integer(text: str, minimum: int, maximum: int = _INT32) -> int:
    digits = re.fullmatch(r"([+-]?)0*([0-9]+)", text)
    value = minimum - 1
    if digits is not None:
        value = int(digits[1] + digits[2][:30])  # no number of 30 digits is allowed, whatever follows
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}, got {quote(text)}")
    if value > maximum:
        raise argparse.ArgumentTypeError(f"must be a whole number of at most {maximum}, got {quote(text)}")
    return value


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def number(text: str) -> float:
    """A number in ASCII digits; NaN for any other text, infinite where float64 is too small for it."""
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def real(rule: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """A type of numbers for which `allowed` holds, which the `rule` says in words."""

    def real(text: str) -> float:
        value = number(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"must be a number {rule}, got {quote(text)}")
        return value

    return real


share = real("in [0, 1)", lambda value: 0 <= value < 1)
rate = real(f"within 0 and {_FLOAT32:.2g}", lambda value: 0 <= value <= _FLOAT32)
above_0 = real(f"above 0 and at most {_FLOAT32:.2g}", lambda value: 0 < value <= _FLOAT32)
cost = real("within 1e-06 and 1e+06", lambda value: 1e-6 <= value <= 1e6)
tau = real("within 0 and 100", lambda value: 0 <= value <= 100)


def hidden_sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(natural(part) for part in text.split(","))
    if len(sizes) > 2 or (len(sizes) == 2 and 0 in sizes):
        raise argparse.ArgumentTypeError(f"must be 0, a size or two sizes above 0, got {quote(text)}")
    return sizes


def path(text: str) -> Path:
    return Path(nonempty(text))


def nonempty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def sizes_of_changes(text: str) -> list[float]:
    sizes = [number(part) for part in text.split(",")]
    if not all(0 <= size <= _LARGEST_CHANGE for size in sizes):
        rule = f"must be numbers >= 0 and at most {_LARGEST_CHANGE:g}, with commas between"
        raise argparse.ArgumentTypeError(f"{rule}, got {quote(text)}")
    return sizes


def threat(text: str) -> str:
    try:
        attack.threat_model(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_model_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-path",
        type=path,
        default=None,
        metavar="DIR",
        help="run folder (default: the newest in runs/)",
    )


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--svmlight-base", type=natural, choices=(0, 1), default=None,
        help="number of the first feature in svmlight files (what the model keeps; in training 1 where no "
        "file has a feature 0)",
    )  # fmt: skip


def add_propensity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--propensity", type=propensity, default=None, metavar="A,B",
        help="constants of PSP (by the dataset's name: 0.6,2.6 for Amazon's, 0.5,0.4 for Wikipedia's, else "
        "0.55,1.5)",
    )  # fmt: skip


def propensity(text: str) -> tuple[float, float]:
    parts = [number(part) for part in text.split(",")]
    A, B = parts if len(parts) == 2 else (math.nan, math.nan)
    if not (0 <= A < math.inf and 0 < B < math.inf):
        raise argparse.ArgumentTypeError(f"must be two numbers A,B with A >= 0 and B > 0, got {quote(text)}")
    return A, B


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", default=False, help="replace the model that is in the folder"
    )
