"""Progress bars. Private.

tqdm's own lock is a semaphore that a process shares with all it forks. A child that is killed while it draws
a bar leaves it locked, and then the parent and every other child wait for ever. These bars are locked among
the threads of one process only.
"""

from __future__ import annotations

import os
import threading

from tqdm.std import tqdm as _tqdm


class tqdm(_tqdm):  # type: ignore[misc]
    """`tqdm.tqdm` with a lock of this process's own, and without its thread.

    That thread redraws stale bars. Where memory is short, it ends with a traceback on the screen.
    """

    monitor_interval = 0


def _own_lock() -> None:
    tqdm.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)  # another thread may have held it
