"""Numbers: a decimal text's nearest float32, integers below a limit, ``column:value`` tokens."""

from __future__ import annotations

import re
import struct
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from . import Refused


def float32_bits(value: float) -> int | None:
    """A double, rounded to float32; None where it is too large."""
    try:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        return None


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def is_count(bits: int) -> bool:
    """Whether a label may have this number: it is whole and not negative, so no weight."""
    value = float_of(bits)
    return value >= 0 and value == int(value)


@lru_cache(100_000)
def nearest_float32(text: str) -> float | None:
    """The float32 nearest to a decimal text, ties to even; None where it is too large."""
    mantissa, _, exponent = text.lower().partition("e")
    digits = Decimal(mantissa)
    sign = -1.0 if digits.is_signed() else 1.0
    if digits == 0:
        return sign * 0.0
    power = (whole(exponent.lstrip("+-")) or 0) * (-1 if exponent.startswith("-") else 1)
    if abs(digits.adjusted() + power) > 60:
        return sign * 0.0 if digits.adjusted() + power < 0 else None
    exact = abs(Fraction(digits)) * Fraction(10) ** power
    top = exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** top > exact:
        top -= 1  # now 2^top <= exact < 2^(top + 1)
    step = max(top - 23, -149)
    value = round(exact / Fraction(2) ** step) * 2.0**step  # a Fraction rounds ties to even
    return sign * value if value < 2.0**128 else None


def whole(text: str) -> int | None:
    """A non-negative integer, at most 10^18; None where there is anything but digits."""
    if not re.fullmatch("[0-9]+", text):
        return None
    digits = text.lstrip("0")
    return int(digits or "0") if len(digits) <= 18 else 10**18


def integer(text: str, limit: int, line: int) -> int:
    """A non-negative integer below `limit`."""
    value = whole(text)
    if value is None or value >= limit:
        raise Refused(line)
    return value


def pairs(tokens: list[str], limit: int, line: int) -> dict[int, int]:
    """``column:value`` tokens; the values of a column are summed in double, then rounded once."""
    values: dict[int, list[float]] = {}
    for token in tokens:
        column, colon, number = token.partition(":")
        if not colon or not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", number):
            raise Refused(line)
        value = nearest_float32(number)
        if value is None:
            raise Refused(line)
        values.setdefault(integer(column, limit, line), []).append(value)
    row = {}
    for column_id, (first, *more) in values.items():
        for value in more:
            first += value
        bits = float32_bits(first)
        if bits is None:
            raise Refused(line)
        row[column_id] = bits
    return row
