"""Lines of text: names of columns, pairs of document and label."""

from __future__ import annotations

import re

from . import Refused
from .numbers import whole


def read_lines(data: bytes) -> list[str]:
    lines = []
    parts = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, part in enumerate(parts[:-1] if parts[-1] == b"" else parts, start=1):
        try:
            lines.append(part.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            raise Refused(number) from None
    return lines


def column_number(text: str) -> int | None:
    """A number of at most 18 digits; -1 for any other number, which is no column's; None for a text."""
    text = text.strip()
    if whole(text) is not None:
        return int(text) if len(text) <= 18 else -1
    return -1 if re.fullmatch(r"[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?", text) else None


def read_names(data: bytes, count: int | None) -> list[str]:
    """``name`` or ``number TAB name`` a line; numbers that could be columns' must be all of them, once."""
    lines = read_lines(data)
    blank = 0
    while lines and not lines[-1].strip():
        lines.pop()
        blank += 1
    parts = [line.partition("\t") for line in lines]
    numbers = [column_number(head) if tab else None for head, tab, _ in parts]
    names = [name or head for head, _, name in parts]
    found = [number for number in numbers if number is not None]
    if found and (None not in numbers or max(found) <= len(lines)):
        base = 0 if 0 in found else 1
        placed: dict[int, str] = {}
        for line, (number, name) in enumerate(zip(numbers, names, strict=True), start=1):
            if number is None or number in placed or not base <= number < base + len(lines):
                raise Refused(line)
            placed[number] = name
        names = [placed[number] for number in sorted(placed)]
    elif lines and not found:
        second = [column_number(name) if tab else None for _, tab, name in parts]
        if None not in second and sorted(second) in (
            list(range(len(lines))),
            list(range(1, len(lines) + 1)),
        ):
            raise Refused(1)  # the numbers stand on the wrong side
    if count is None or count == len(names):
        return names
    if not len(names) < count <= len(names) + blank:
        raise Refused(None)
    return names + [""] * (count - len(names))  # blank lines are names where there must be so many


def read_filter_pairs(data: bytes, rows: int, columns: int) -> list[set[int]]:
    """``document label`` a line; blank lines mean nothing."""
    found: list[set[int]] = [set() for _ in range(rows)]
    for number, line in enumerate(read_lines(data), start=1):
        pair = [column_number(token) for token in line.split()]
        if not pair:
            continue
        if len(pair) != 2 or None in pair or min(pair) < 0 or pair[0] >= rows or pair[1] >= columns:
            raise Refused(number)
        found[pair[0]].add(pair[1])
    return found
