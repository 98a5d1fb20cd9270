"""Opens files: decompresses them according to their suffix and accepts regular files only."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from mach_ext._deprecation import renamed_names
from mach_ext._memory import memory_shortage

PathLike: TypeAlias = "str | os.PathLike[str]"

COMPRESSIONS: dict[str, Any] = {".gz": gzip, ".xz": lzma, ".bz2": bz2}


@contextlib.contextmanager
def damage_errors(path: PathLike) -> Iterator[None]:
    """Turns a decompressor's exception into a ValueError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if memory_shortage(error) is not None or (isinstance(error, OSError) and error.errno is not None):
            raise  # no such file, no permission, disk error
        kind = Path(path).suffix
        raise ValueError(f"{path}: the {kind} file must be whole and undamaged, got: {error}") from None


def suffix_of(path: PathLike) -> str:
    """Returns the last suffix of a file's name without that of a compression, or "" if there is none."""
    return next((s for s in reversed(Path(path).suffixes) if s not in COMPRESSIONS), "")


class _Streams(io.RawIOBase):
    """Reads compressed streams one after the other, up to the end of the file.

    Zero bytes may follow a stream. Python's own readers of .bz2 and .xz ignore anything else that follows a
    stream. So they silently lose the data behind a damaged place. Here such data raise an error.
    """

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        """Wraps `file`. `decompressor` makes a decompressor for each stream."""
        self._file, self._decompressor = file, decompressor
        self._stream = decompressor()

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with decompressed bytes. Returns their number."""
        while True:
            block = b""
            if self._stream.eof:
                block = self._stream.unused_data.lstrip(b"\0")
                while not block:
                    if not (block := self._file.read(1 << 16)):
                        return 0
                    block = block.lstrip(b"\0")
                self._stream = self._decompressor()
            elif self._stream.needs_input and not (block := self._file.read(1 << 16)):
                raise EOFError("the file ends in the middle of compressed data")
            text = self._stream.decompress(block, len(buffer))
            if text:
                buffer[: len(text)] = text
                return len(text)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def open_read(path: PathLike) -> BinaryIO:
    """Opens a file for reading bytes and decompresses it according to its suffix."""
    suffix = Path(path).suffix
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix not in COMPRESSIONS:
        return open(path, "rb")
    decompressor: Any = lzma.LZMADecompressor if suffix == ".xz" else bz2.BZ2Decompressor
    return cast(BinaryIO, io.BufferedReader(_Streams(open(path, "rb"), decompressor), 1 << 16))


def open_file(path: PathLike) -> BinaryIO:
    """Opens a file that this package wrote. A pipe is refused, because reading from it could wait forever.

    Files that users name are opened by `sources.open_input`, which also accepts standard input.

    Raises:
        ValueError: The path is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_mode(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_mode(path: PathLike, mode: int) -> None:
    """Refuses everything but a regular file, according to its mode.

    Raises:
        ValueError: The path is a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"{path}: must be a regular file, got {kind}")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def delete_file(path: Path) -> None:
    """Deletes a file or a link. Nothing happens if it is gone already or if it is a folder."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        path.unlink()


__getattr__ = renamed_names(
    __name__,
    atomic_path="mach_ext.data.atomic.atomic_path",
    atomic_write="mach_ext.data.atomic.atomic_write",
    clear_temporaries="mach_ext.data.temporaries.clear_temporaries",
    lock_folder="mach_ext.data.locks.lock_folder",
    naming="mach_ext.data.files.damage_errors",
    new_folder="mach_ext.data.atomic.new_folder",
    without_nan="mach_ext.data.json_text.without_nan",
    write_json="mach_ext.data.json_text.write_json",
)
