"""Writing files and folders so that they appear whole or not at all."""

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

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # raised without a file name


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Gives a temporary file to write to, which then replaces `path` in one step.

    The temporary file stands in the same folder under a random name. A new file gets the permissions that the
    umask leaves. A replaced file passes its permissions on. A symbolic link is replaced itself, and the file
    that the link points to is left unchanged.

    Args:
        path: The file to write.

    Yields:
        The temporary file's path.

    Raises:
        OSError: The file cannot be written. An existing file is left unchanged.
        ValueError: `path` is a folder, a pipe or a device.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import atomic_path
        >>> with atomic_path("greeting.txt") as temporary:
        ...     _ = temporary.write_text("hello")
        >>> Path("greeting.txt").read_text()
        'hello'
    """
    path = Path(path)
    former = _file_mode(path)
    with temporary_name(path, _new_file) as (temporary, descriptor):
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode) if former is None else former
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)  # the writer may have set another mode
            os.replace(temporary, path)
        except OSError as error:
            if error.errno in _DISK_ERRORS and error.filename is None:
                error.filename = str(path)
            raise


def _file_mode(path: Path) -> int | None:
    """Returns the permissions of a file that will be replaced. None: there is no file, or it is a link."""
    with contextlib.suppress(FileNotFoundError):
        check_mode(path, os.stat(path).st_mode)
        if not path.is_symlink():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "the file is read-only", str(path))
            return stat.S_IMODE(os.lstat(path).st_mode)
    return None


def _new_file(path: Path) -> int:
    """Creates a file and returns an open descriptor. The file must not exist."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def _new_folder(path: Path) -> int:
    """Creates a folder and returns an open descriptor. The folder must not exist."""
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing bytes. The file appears whole or not at all.

    Args:
        path: The file to write. A name that ends in .gz, .xz or .bz2 is compressed.

    Yields:
        The open file.

    Raises:
        OSError: The file cannot be written. An existing file is left unchanged.
        ValueError: `path` is a folder, a pipe or a device.

    Example:
        >>> import gzip
        >>> from mach_ext.data import atomic_write
        >>> with atomic_write("greeting.txt.gz") as file:
        ...     _ = file.write(b"hello")
        >>> gzip.open("greeting.txt.gz").read()
        b'hello'
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
    """Gives a temporary folder that takes the final name if the block succeeds and is removed otherwise.

    If another process creates the final folder first, that folder stays and the temporary folder is removed.
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
