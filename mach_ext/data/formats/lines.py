"""Lines of text files in UTF-8, and the numbers in them."""

from __future__ import annotations

import re

from mach_ext._memory import memory_errors
from mach_ext.data.files import PathLike
from mach_ext.data.sources import iter_lines


@memory_errors("free memory first, or split the data", "data.read_lines")
def read_lines(path: PathLike) -> list[str]:
    """Lines of a UTF-8 text file, plain or .gz, .xz, .bz2.

    Raises:
        ValueError: not UTF-8.
    """
    lines = []
    for number, line in iter_lines(path):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = decode_line(line, f"{path}, line {number}")  # for the words
        lines.append(text.removesuffix("\n").removesuffix("\r"))
    return lines


def number_of(text: str) -> int | None:
    """The number that a text writes in ASCII digits; -1 for any other number, None for what is none."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return int(text) if len(text) < 19 else -1
    return -1 if re.fullmatch(r"[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?", text) else None


def decode_line(line: bytes, where: str) -> str:
    """The text of a line; `where` starts the message.

    Raises:
        ValueError: not UTF-8; with the byte and its place in the line.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x}, byte {error.start + 1} of the line"
        raise ValueError(f"{where}: text must be UTF-8, got byte {byte}") from None
