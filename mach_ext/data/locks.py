"""The lock of a run folder. One run writes to the folder, and saves take turns."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mach_ext.data.temporaries import clear_temporaries, try_lock

_QUIET_SECONDS = 1.0  # if no save is seen in a locked folder for so long, a run is taken to hold the lock


class _Held(threading.local):
    """The folders that this thread has locked: process, device and inode of each."""

    def __init__(self) -> None:
        """Starts without any folder."""
        self.folders: set[tuple[int, int, int]] = set()


_held = _Held()


@contextlib.contextmanager
def lock_folder(folder: Path, op: str, is_saving: Callable[[], bool], is_run: bool) -> Iterator[bool]:
    """Creates a folder if needed, and locks it. The lock ends with the process.

    A thread whose run holds the lock may take it again in order to save. Other callers wait as long as a save
    is going on. They are refused if a run holds the lock, because a run may take hours. NFS and similar file
    systems may have no locks. There every caller goes ahead. Temporary files of dead processes are deleted.

    Args:
        folder: The folder.
        op: How messages call the function.
        is_saving: Tells whether a save is going on in the folder.
        is_run: Whether the lock is for a run. A run is refused if its own thread already holds the folder.

    Yields:
        True if this call has locked the folder, so that nobody else writes there.

    Raises:
        ValueError: A training run holds the folder.
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
            with contextlib.suppress(OSError):  # the folder is not empty
                folder.rmdir()
        raise
    finally:
        _held.folders.discard(identity)
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """Returns process, device and inode."""
    return os.getpid(), status.st_dev, status.st_ino


def _lock_folder(folder: Path, op: str, is_saving: Callable[[], bool]) -> tuple[int, bool]:
    """Returns an open descriptor of the folder, and whether it holds the lock."""
    since = time.monotonic()
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        locked = try_lock(descriptor)
        if locked is not False:
            with contextlib.suppress(FileNotFoundError):  # the folder was deleted meanwhile
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                    return descriptor, bool(locked)
            folder.mkdir(parents=True, exist_ok=True)
        os.close(descriptor)
        if is_saving():
            since = time.monotonic()
        elif time.monotonic() - since > _QUIET_SECONDS:
            raise ValueError(f"{op}: another run is training in {folder}")
        time.sleep(0.005)
