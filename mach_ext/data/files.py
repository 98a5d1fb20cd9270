"""Files in and out: compression by suffix, and writing that is whole or not at all."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from .._memory import memory_shortage

PathLike: TypeAlias = "str | os.PathLike[str]"

COMPRESSIONS: dict[str, Any] = {".gz": gzip, ".xz": lzma, ".bz2": bz2}


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Turns a decompressor's complaint into a ValueError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if memory_shortage(error) is not None or (isinstance(error, OSError) and error.errno is not None):
            raise  # no such file, no permission, disk error
        kind = Path(path).suffix
        raise ValueError(f"{path}: the {kind} file must be whole and undamaged, got: {error}") from None


def suffix_of(path: PathLike) -> str:
    """What a file is, by its name: the last suffix but for that of a compression; "" where there is none."""
    return next((s for s in reversed(Path(path).suffixes) if s not in COMPRESSIONS), "")


class _Streams(io.RawIOBase):
    """Compressed streams, one after the other, to the end of the file; zeros may follow one.

    Python's own readers of .bz2 and .xz pass over anything else that follows a stream, and so lose in silence
    what stands behind a damaged place. Here it is an error.
    """

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self._file, self._decompressor = file, decompressor
        self._stream = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
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
        self._file.close()
        super().close()


def open_read(path: PathLike) -> BinaryIO:
    """Opens a file for reading bytes, decompressed by its suffix."""
    suffix = Path(path).suffix
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix not in COMPRESSIONS:
        return open(path, "rb")
    decompressor: Any = lzma.LZMADecompressor if suffix == ".xz" else bz2.BZ2Decompressor
    return cast(BinaryIO, io.BufferedReader(_Streams(open(path, "rb"), decompressor), 1 << 16))


def read_bytes(path: PathLike) -> bytes:
    """The whole file, decompressed by its suffix.

    Raises:
        ValueError: a compressed file is truncated or damaged.
    """
    with naming(path), open_read(path) as file:
        return file.read()


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A temporary name to write to; the file then appears under ``path``, whole or not at all.

    Example:
        >>> from mach_ext.data import atomic_path
        >>> with atomic_path("greeting.txt") as temporary:
        ...     _ = temporary.write_text("hello")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # whatever the writer gave it
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing bytes, compressed by its suffix; it appears whole or not at all.

    Example:
        >>> from mach_ext.data import atomic_write
        >>> with atomic_write("greeting.txt.gz") as file:
        ...     _ = file.write(b"hello")
    """
    module = COMPRESSIONS.get(Path(path).suffix)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if module is None:
            yield file
        else:
            with module.open(file, "wb") as compressed:
                yield compressed


def write_json(path: PathLike, record: Any) -> None:
    """Writes JSON, atomically; NaN, which JSON has not, as null."""
    with atomic_write(path) as file:
        file.write(json.dumps(_without_nan(record), indent=2, allow_nan=False).encode() + b"\n")


def _without_nan(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _without_nan(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_without_nan(value) for value in record]
    return None if isinstance(record, float) and record != record else record


@contextlib.contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary folder that takes this name when all went well and vanishes otherwise.

    Where another process was faster, its folder stays and this one's is dropped.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        with contextlib.suppress(FileExistsError):
            if not folder.exists():
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
