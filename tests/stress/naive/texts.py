"""Lines of text, and names of columns."""

from __future__ import annotations

from . import Refused
from .numbers import whole

# What is decided in one place only, here: may a list of names hold column numbers for some lines only?
SOME_NAMES_WITHOUT_ID_ARE_REFUSED = True


def read_lines(data: bytes) -> list[str]:
    lines = []
    parts = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, part in enumerate(parts[:-1] if parts[-1] == b"" else parts, start=1):
        try:
            lines.append(part.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            raise Refused(number) from None
    return lines


def read_names(data: bytes, count: int | None) -> list[str]:
    lines = [line.partition("\t") for line in read_lines(data)]
    ids = [whole(head) if tab else None for head, tab, _ in lines]
    names = [name or head for head, _, name in lines]
    numbers = [i for i in ids if i is not None]
    wrong_count = count is not None and count != len(lines)
    if numbers and len(numbers) == len(ids):
        base = 0 if 0 in numbers else 1
        placed: dict[int, str] = {}
        for line, (column, name) in enumerate(zip(numbers, names, strict=True), start=1):
            if column - base >= len(lines) or column in placed:
                raise Refused(line, *[None] * wrong_count)
            placed[column] = name
        names = [placed[column] for column in sorted(placed)]
    elif SOME_NAMES_WITHOUT_ID_ARE_REFUSED and numbers and max(numbers) <= len(ids):
        raise Refused(ids.index(None) + 1, *[None] * wrong_count)
    if wrong_count:
        raise Refused(None)
    return names
