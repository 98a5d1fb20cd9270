"""Lines of text: names of columns, pairs of document and label."""

from __future__ import annotations

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


def short_whole(text: str) -> int | None:
    """A number of at most 18 digits; more are somebody else's."""
    text = text.strip()
    return whole(text) if len(text) <= 18 else None


def read_names(data: bytes, count: int | None) -> list[str]:
    """``name`` or ``number TAB name`` a line; numbers that could be columns' must be all of them, once."""
    lines = [line.partition("\t") for line in read_lines(data)]
    ids = [short_whole(head) if tab else None for head, tab, _ in lines]
    names = [name or head for head, _, name in lines]
    numbers = [i for i in ids if i is not None]
    if numbers and (len(numbers) == len(ids) or max(numbers) <= len(ids)):
        base = 0 if 0 in numbers else 1
        placed: dict[int, str] = {}
        for line, (column, name) in enumerate(zip(ids, names, strict=True), start=1):
            if column is None or column - base >= len(lines) or column in placed:
                raise Refused(line)
            placed[column] = name
        names = [placed[column] for column in sorted(placed)]
    if count is not None and count != len(lines):
        raise Refused(None)
    return names


def read_filter_pairs(data: bytes, rows: int, columns: int) -> list[set[int]]:
    """``document label`` a line; blank lines mean nothing."""
    found: list[set[int]] = [set() for _ in range(rows)]
    for number, line in enumerate(read_lines(data), start=1):
        pair = [short_whole(token) for token in line.split()]
        if not pair:
            continue
        if len(pair) != 2 or None in pair or pair[0] >= rows or pair[1] >= columns:
            raise Refused(number)
        found[pair[0]].add(pair[1])
    return found
