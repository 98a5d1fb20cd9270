"""Temporary files and folders under a lock, and the clearing of those whose writer has died."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from mach_ext.data.files import delete_file

# What is being written has a name that says nothing and that nobody can foresee; it always fits. Its writer
# holds a lock on it, so whoever gets that lock knows that the writer has died, in whatever container.
_TEMPORARY = re.compile(r"\.mach_ext-[0-9a-f]{16}\.tmp")


def try_lock(descriptor: int) -> bool | None:
    """Whether the lock of an open file or folder was free; it is held now. None: there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def temporary_name(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """A new temporary name beside a path, locked, and its descriptor; nothing of it is left at the end.

    `make` makes what has the name, and opens it.
    """
    temporary, descriptor = None, -1
    try:  # from before there is a file: a signal can come between its making and the next line
        while True:
            temporary = path.with_name(f".mach_ext-{secrets.token_hex(8)}.tmp")
            try:
                descriptor = make(temporary)
            except OSError as error:
                temporary = None
                error.filename = str(path)  # by which the user knows it
                raise
            # Until it is locked, another process may take it for the work of a dead one and remove it.
            if try_lock(descriptor) is not False and temporary.exists():
                break
            os.close(descriptor)
            descriptor = -1
        yield temporary, descriptor
    finally:
        if temporary is not None:
            _delete(temporary)
        if descriptor >= 0:
            os.close(descriptor)


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
                if try_lock(descriptor):
                    _delete(left)
            finally:
                os.close(descriptor)
