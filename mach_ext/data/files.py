"""Files in and out: compression by suffix, and writing that is whole or not at all."""

from __future__ import annotations

import bz2
import contextlib
import errno
import fcntl
import gzip
import io
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import threading
import time
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

    Python's own readers of .bz2 and .xz pass over anything else that follows a stream. What stands behind a
    damaged place is then lost in silence. Here it is an error.
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


# What is being written has a name that says nothing and that nobody can foresee; it always fits. Its writer
# holds a lock on it, so whoever gets that lock knows that the writer has died, in whatever container.
_TEMPORARY = re.compile(r"\.mach_ext-[0-9a-f]{16}\.tmp")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # which come without a name
_QUIET_SECONDS = 1.0  # for which a locked folder must show no save before it counts as one of a run


def open_file(path: PathLike) -> BinaryIO:
    """Opens a file of this package's own for reading. A pipe is refused, not waited for.

    Files that users name are opened by `sources.open_input`, which also takes standard input.

    Raises:
        ValueError: it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_mode(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_mode(path: PathLike, mode: int) -> None:
    """Refuses what is no regular file, by its mode.

    Raises:
        ValueError: a folder, a pipe, a socket or a device.
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


def _lock(descriptor: int) -> bool | None:
    """Whether the lock of an open file or folder was free; it is held now. None: there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """A new temporary name beside a path, locked, and its descriptor; nothing of it is left at the end.

    `make` makes what has the name, and opens it.
    """
    while True:
        temporary = path.with_name(f".mach_ext-{secrets.token_hex(8)}.tmp")
        try:
            descriptor = make(temporary)
        except OSError as error:
            error.filename = str(path)  # by which the user knows it
            raise
        # Until it is locked, another process may take it for the work of a dead one and remove it.
        if _lock(descriptor) is not False and temporary.exists():
            break
        os.close(descriptor)
    try:
        yield temporary, descriptor
    finally:
        _delete(temporary)
        os.close(descriptor)


def delete_file(path: Path) -> None:
    """Removes a file or a link that may be gone already; a folder of this name stays."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        path.unlink()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        delete_file(path)


def clear_temporaries(folder: Path) -> None:
    """Removes from a folder what dead processes were writing. Where there are no locks, it stays."""
    for left in folder.iterdir():
        if not _TEMPORARY.fullmatch(left.name):
            continue
        with contextlib.suppress(OSError):  # gone, or not ours to remove
            is_folder = stat.S_ISDIR(os.lstat(left).st_mode)
            flags = os.O_RDONLY if is_folder else os.O_RDWR
            descriptor = os.open(left, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _lock(descriptor):
                    _delete(left)
            finally:
                os.close(descriptor)


class _Held(threading.local):
    """The folders that this thread has locked: process, device and inode of each."""

    def __init__(self) -> None:
        self.folders: set[tuple[int, int, int]] = set()


_held = _Held()


@contextlib.contextmanager
def lock_folder(folder: Path, op: str, is_saving: Callable[[], bool], is_run: bool) -> Iterator[bool]:
    """Makes a folder where there is none, and locks it; the lock goes with the process.

    A run that holds the lock may save: its thread may take it again. Others wait as long as there is a save
    to wait for, and refuse where a run holds the lock, which may take hours. NFS and the like may have no
    locks; there everyone goes ahead. What dead processes were writing is cleared.

    Args:
        folder: the folder.
        op: how messages call the function.
        is_saving: whether a save is going on in the folder.
        is_run: whether it is locked for a run, which is nobody's part.

    Yields:
        Whether this call has locked the folder: nobody else writes there.

    Raises:
        ValueError: a training run holds the folder.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    identity = _identity(os.stat(folder))
    if identity in _held.folders:
        if is_run:
            raise ValueError(f"{op}: another run is training in {folder}")
        yield False
        return
    descriptor, locked = _lock_folder(folder, op, is_saving)
    identity = _identity(os.fstat(descriptor))
    try:
        _held.folders.add(identity)
        if locked:
            clear_temporaries(folder)
        yield locked
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()
        raise
    finally:
        _held.folders.discard(identity)
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _lock_folder(folder: Path, op: str, is_saving: Callable[[], bool]) -> tuple[int, bool]:
    """An open descriptor of a folder, and whether it holds the lock."""
    since = time.monotonic()
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        locked = _lock(descriptor)
        if locked is not False:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile, perhaps made again
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                    return descriptor, bool(locked)
            folder.mkdir(parents=True, exist_ok=True)
        os.close(descriptor)
        if is_saving():
            since = time.monotonic()
        elif time.monotonic() - since > _QUIET_SECONDS:
            raise ValueError(f"{op}: another run is training in {folder}")
        time.sleep(0.005)


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A temporary file to write to; the file then appears under ``path``, whole or not at all.

    The temporary file stands in the same folder, under a name that cannot be foreseen. A file that is
    replaced passes its permissions on; a new one gets what the umask leaves. A symbolic link is itself
    replaced: what it points to stays as it is.

    Raises:
        OSError: the file cannot be written; the former one stays.
        ValueError: ``path`` is a folder, a pipe or a device.

    Example:
        >>> from mach_ext.data import atomic_path
        >>> with atomic_path("greeting.txt") as temporary:
        ...     _ = temporary.write_text("hello")
    """
    path = Path(path)
    former = _file_mode(path)
    with _temporary(path, _new_file) as (temporary, descriptor):
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode) if former is None else former
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)  # whatever the writer gave it
            os.replace(temporary, path)
        except OSError as error:
            if error.errno in _DISK_ERRORS and error.filename is None:
                error.filename = str(path)
            raise


def _file_mode(path: Path) -> int | None:
    """Permissions of a file that is to be replaced; None where there is none, or a link."""
    with contextlib.suppress(FileNotFoundError):
        check_mode(path, os.stat(path).st_mode)
        if not path.is_symlink():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "the file is read-only", str(path))
            return stat.S_IMODE(os.lstat(path).st_mode)
    return None


def _new_file(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


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
        file.write(json.dumps(without_nan(record), indent=2, allow_nan=False).encode() + b"\n")


def without_nan(record: Any) -> Any:
    """A record with null in place of NaN."""
    if isinstance(record, dict):
        return {key: without_nan(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [without_nan(value) for value in record]
    return None if isinstance(record, float) and record != record else record


@contextlib.contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary folder that takes this name when all went well and vanishes otherwise.

    Where another process was faster, its folder stays and this one's is dropped.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder.parent)
    with _temporary(folder, _new_folder) as (temporary, _):
        yield temporary
        try:
            if not folder.exists():
                temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
