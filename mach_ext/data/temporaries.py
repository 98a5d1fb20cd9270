"""Temporary files and folders, which their writers lock, and the deletion of those that dead writers left."""

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

# A file that is being written has a random name, which nobody can guess and which is never too long. The
# writer holds a lock on the file. A process that gets this lock knows that the writer has died, even if the
# writer ran in another container.
_TEMPORARY = re.compile(r"\.mach_ext-[0-9a-f]{16}\.tmp")


def try_lock(descriptor: int) -> bool | None:
    """Tries to lock an open file or folder.

    Returns:
        True: it is locked now. False: another process holds the lock. None: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def temporary_name(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """Gives a new temporary name beside a path, locked, and its descriptor. Nothing of it is left at the end.

    `make` creates the file or folder of this name and opens it.
    """
    temporary, descriptor = None, -1
    try:  # starts before the file exists, because a signal can arrive right after the file is created
        while True:
            temporary = path.with_name(f".mach_ext-{secrets.token_hex(8)}.tmp")
            try:
                descriptor = make(temporary)
            except OSError as error:
                temporary = None
                error.filename = str(path)  # the name that the user knows
                raise
            # Before it is locked, another process may believe that the writer has died, and delete it.
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
    """Deletes a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        delete_file(path)


def clear_temporaries(folder: Path) -> None:
    """Deletes the temporary files of dead processes from a folder. Without locks nothing is deleted."""
    for left in folder.iterdir():
        if not _TEMPORARY.fullmatch(left.name):
            continue
        with contextlib.suppress(OSError):  # it is gone already, or this user may not delete it
            is_folder = stat.S_ISDIR(os.lstat(left).st_mode)
            flags = os.O_RDONLY if is_folder else os.O_RDWR
            descriptor = os.open(left, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if try_lock(descriptor):
                    _delete(left)
            finally:
                os.close(descriptor)
