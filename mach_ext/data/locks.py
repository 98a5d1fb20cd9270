"""The lock of a folder: one run writes there, and saves take turns."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mach_ext.data.temporaries import clear_temporaries, try_lock

_QUIET_SECONDS = 1.0  # for which a locked folder must show no save before it counts as one of a run


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
        locked = try_lock(descriptor)
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
