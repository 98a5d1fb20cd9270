"""Writing that is whole or not at all: files and folders."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mach_ext.data.files import COMPRESSIONS, PathLike, check_mode
from mach_ext.data.temporaries import clear_temporaries, temporary_name

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # which come without a name


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
    with temporary_name(path, _new_file) as (temporary, descriptor):
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


@contextlib.contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary folder that takes this name when all went well and vanishes otherwise.

    Where another process was faster, its folder stays and this one's is dropped.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder.parent)
    with temporary_name(folder, _new_folder) as (temporary, _):
        yield temporary
        try:
            if not folder.exists():
                temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
