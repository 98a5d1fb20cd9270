"""Lines of UTF-8 text files, and the numbers in them."""

from __future__ import annotations

import re

from mach_ext._memory import memory_errors
from mach_ext.data.files import PathLike
from mach_ext.data.sources import iter_lines


@memory_errors("free memory first, or split the data", "data.read_lines")
def read_lines(path: PathLike) -> list[str]:
    r"""Reads the lines of a UTF-8 text file. The ends of lines and a byte order mark are removed.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.

    Raises:
        ValueError: A line is not UTF-8.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.formats import read_lines
        >>> _ = Path("labels.txt").write_bytes(b"cat\r\nwild dog\n")
        >>> read_lines("labels.txt")
        ['cat', 'wild dog']
    """
    lines = []
    for number, line in iter_lines(path):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = decode_line(line, f"{path}, line {number}")  # raises a ValueError with a helpful message
        lines.append(text.removesuffix("\n").removesuffix("\r"))
    return lines


def number_of(text: str) -> int | None:
    """Returns the number that a text writes in ASCII digits.

    The result is -1 for any other number, such as a negative or decimal one. It is None for a text that is
    not a number.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return int(text) if len(text) < 19 else -1
    return -1 if re.fullmatch(r"[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?", text) else None


def decode_line(line: bytes, where: str) -> str:
    """Decodes a line of UTF-8 text.

    Args:
        line: The line.
        where: The beginning of the error message.

    Raises:
        ValueError: The line is not UTF-8. The message has the byte and its place in the line.

    Example:
        >>> from mach_ext.data import decode_line
        >>> decode_line("größer".encode(), "words.txt, line 1")
        'größer'
        >>> decode_line("größer".encode("latin-1"), "words.txt, line 1")
        Traceback (most recent call last):
        ...
        ValueError: words.txt, line 1: text must be UTF-8, got byte 0xf6, byte 3 of the line
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x}, byte {error.start + 1} of the line"
        raise ValueError(f"{where}: text must be UTF-8, got byte {byte}") from None
