"""Opens files for the readers. Compressed files and lines are read within limits."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import mach_ext._C as _C
from mach_ext._deprecation import renamed_names
from mach_ext._memory import memory_advice
from mach_ext.data.files import COMPRESSIONS, PathLike, check_mode, damage_errors, open_read

# A compressed file may unpack to FREE_BYTES or to MAX_EXPANSION times its size, whichever is more. Text with
# numbers shrinks to a third, and the most repetitive dataset to a hundredth. A zip bomb shrinks to a
# thousandth or less.
FREE_BYTES = 1 << 26
MAX_EXPANSION = 200

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_LINE: int = _C.MAX_LINE  # bytes of a line in any text file


def check_regular(path: PathLike) -> None:
    """Refuses everything but a regular file and standard input. Reading from another pipe could wait forever.

    Raises:
        ValueError: The path is a folder, a pipe, a socket or a device.
        OSError: The operating system reports an error. The message has the path.
    """
    status = os.stat(path)
    if not _is_standard_input(status):
        check_mode(path, status.st_mode)


def _is_standard_input(status: os.stat_result) -> bool:
    """Returns whether a file is this process's standard input."""
    try:
        return os.path.samestat(status, os.fstat(0))
    except OSError:  # standard input is closed
        return False


class _Bounded(io.RawIOBase):
    """A decompressed stream that raises an error when a file expands far more than real data do."""

    def __init__(self, file: BinaryIO, path: PathLike) -> None:
        """Wraps the decompressed stream of a file."""
        self._file, self._path = file, path
        self._limit = max(FREE_BYTES, MAX_EXPANSION * os.stat(path).st_size)
        self._count = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with decompressed bytes. Returns their number."""
        text = self._file.read(len(buffer))
        buffer[: len(text)] = text
        self._count += len(text)
        if self._count > self._limit:
            raise ValueError(
                f"{self._path}: must not unpack to more than {MAX_EXPANSION} times its size, got more than "
                f"{self._limit} bytes; unpack it by hand, and it is read whatever its size"
            )
        return len(text)

    def readall(self) -> bytes:
        """Reads all bytes that are left."""
        return b"".join(iter(lambda: self.read(1 << 20) or b"", b""))


def shortage_advice(path: PathLike) -> memory_advice:
    """Makes a block in which a shortage of memory raises an error that names the file."""
    return memory_advice(str(path), "free memory first, or split the data", is_final=True)


@contextlib.contextmanager
def open_input(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes and decompresses it according to its suffix.

    Raises:
        ValueError: The path is not a regular file, or a compressed file is damaged or expands too far.
        MemoryError: Memory does not suffice while the file is read. The message names the file.
    """
    check_regular(path)
    with damage_errors(path), shortage_advice(path), open_read(path) as file:
        if Path(path).suffix in COMPRESSIONS:
            yield cast(BinaryIO, io.BufferedReader(_Bounded(file, path), 1 << 16))
        else:
            yield file


def read_input(path: PathLike) -> bytes:
    """Reads a whole file, opened as in `open_input`."""
    with open_input(path) as file:
        return file.read()


def check_line(source: PathLike, number: int, length: int) -> None:
    """Refuses a line that is too long. `length` is in bytes, without the line feed.

    Raises:
        ValueError: The line is too long. The message has the source and the line's number.
    """
    if length > MAX_LINE:
        rule = f"a line must have at most {MAX_LINE} bytes"
        raise ValueError(f"{source}, line {number}: {rule}, got 'more'")


def iter_lines(path: PathLike) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a text file with their numbers, which start at 1.

    Lines keep their ends. A byte order mark is removed.

    Raises:
        ValueError: As `open_input`, or a line is too long.
    """
    with open_input(path) as file:
        read_line = functools.partial(file.readline, MAX_LINE + 1)
        for number, line in enumerate(iter(read_line, b""), start=1):
            if len(line) > MAX_LINE:
                check_line(path, number, len(line.removesuffix(b"\n")))
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line:
                yield number, line


__getattr__ = renamed_names(__name__, memory_named="mach_ext.data.sources.shortage_advice")
