"""The readers once more, in plain Python: one line, one token, one digit after another.

Every reader takes the bytes of a file and returns plain lists, or raises `Refused`. Values are the bits of a
float32, so that 0.0 and -0.0 differ. Nothing here is shared with `mach_ext`.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from typing import NamedTuple

MAX = 2**31 - 1
ANY = -1  # line


class Refused(Exception):
    """The file breaks a rule. `lines`: the line numbers of which one must be named; None: no line."""

    def __init__(self, *lines: int | None, files: tuple[str, ...] = ()):
        self.lines, self.files = lines, files


class Table(NamedTuple):
    """Documents: {column: float32 bits} and the labels of each, and the numbers of columns D and L."""

    rows: list[dict[int, int]]
    labels: list[set[int]]
    columns: int
    num_labels: int


def unpack(name: str, data: bytes) -> bytes:
    """Decompresses by suffix. The whole file must consist of whole streams; zeros may follow one."""
    new = {"xz": lzma.LZMADecompressor, "bz2": bz2.BZ2Decompressor}.get(name.rpartition(".")[2])
    try:
        if name.endswith(".gz"):
            return gzip.decompress(data)
        if new is None:
            return data
        parts = []
        while data or not parts:
            stream = new()
            parts.append(stream.decompress(data))
            if not stream.eof:
                raise EOFError
            data = stream.unused_data.lstrip(b"\0")
        return b"".join(parts)
    except Exception:  # a reader by blocks may meet a line that the damage broke before it meets the damage
        raise Refused(None, ANY, files=(name,)) from None
