"""Progress bars. Private.

tqdm's own lock is a semaphore that a process shares with all processes that it forks. A child that is killed
while it draws a bar leaves the lock closed. The parent and every other child then wait forever. The lock of
these bars is shared only by the threads of a process.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from tqdm.std import tqdm as _tqdm

SECONDS_IN_A_FILE = 10.0  # between two states of a bar


class tqdm(_tqdm):  # type: ignore[misc]
    """`tqdm.tqdm` with a lock for this process alone, and without its thread.

    That thread redraws stale bars. If memory is short, it ends with a traceback on the screen. In a file or a
    pipe a bar is drawn every ten seconds instead of ten times a second.
    """

    monitor_interval = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        """Takes the arguments of `tqdm.tqdm`."""
        stream = options.get("file") or sys.stderr
        if not (hasattr(stream, "isatty") and stream.isatty()):
            options.setdefault("mininterval", SECONDS_IN_A_FILE)
        super().__init__(*args, **options)


def _own_lock() -> None:
    tqdm.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)  # Another thread may have held the lock at the fork.
