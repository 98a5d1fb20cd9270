"""Notices within moments that another process of a run is gone, however busy this process is."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed as dist

_GRACE = 20.0  # seconds that the watch gets to print its line, before an exchange's own error is raised
_LEAVING = 3.0  # seconds that a rank gets to raise an error of its own after another has
_DONE, _FAILED = 1.0, 2.0  # what a rank says when it leaves
_TURN = 3.0  # seconds that another thread gets to end the process, before the launcher's signal does
_STOPPING = threading.Lock()  # The first thread that ends the process keeps it.


class Watch:
    """A thread that waits for a word of the former rank, which comes when that rank leaves the work.

    The ranks stand in a ring. If a process dies, its connections close. The next rank then stops, and so do
    the others in turn. No time limit is needed, so a slow process is never taken for a dead one. A rank that
    raises an error says so. If the next rank does not raise one as well, it stops.
    """

    def __init__(self, rank: int, size: int, group: Any) -> None:
        self.rank, self.size, self.group = rank, size, group
        # A connection of its own, because the main thread may wait in the store.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store: Any = dist.PrefixStore("mach_ext", store.clone())
        self._has_left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mach_ext.watch", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    def leave(self, failed: bool = False) -> bool:
        """Say the word, and wait for that of the former rank. Return whether it came.

        After a failure the wait is short.
        """
        self._has_left.set()
        word = torch.tensor([_FAILED if failed else _DONE])
        with contextlib.suppress(RuntimeError) if failed else contextlib.nullcontext():
            dist.send(word, dst=(self.rank + 1) % self.size, group=self.group)
        self._thread.join(2 * _LEAVING if failed else None)
        if self._thread.is_alive():
            return False
        _OPEN.discard(self)
        return True

    def wait_for_loss(self) -> None:
        """Wait for the thread to end the process, because an exchange has failed."""
        self._thread.join(_GRACE)

    def tell_error(self, message: str) -> bool:
        """Note an error. Return whether no other rank has noted the same, so that this one prints it."""
        try:
            first = self._noted("error", message)
        except (RuntimeError, ValueError):  # rank 0 held the notes and is gone
            return True
        if first == message:
            return self._noted("teller", str(self.rank)) == str(self.rank)
        return True

    def _run(self) -> None:
        word = torch.zeros(1)
        with contextlib.suppress(RuntimeError):
            dist.recv(word, src=(self.rank - 1) % self.size, group=self.group)
        if word != _DONE and not self._has_left.wait(_LEAVING if word == _FAILED else 0):
            self._stop()

    def _stop(self) -> None:
        """End this process. Print why, unless a rank that failed has already said so."""
        _STOPPING.acquire()
        lost, told = str((self.rank - 1) % self.size), False
        with contextlib.suppress(Exception):
            lost = self._noted("lost", lost)
            told = self._store.check(["error"])
        if told:
            time.sleep(1)  # The main thread may be about to print an error of its own.
        else:
            _say(f"rank {self.rank} of {self.size} stops, because rank {lost} ended before the work was done")
        os._exit(1)

    def _noted(self, name: str, value: str) -> str:
        """Note a value, unless there is one already. Return the one that is noted."""
        return str(self._store.compare_set(name, "", value).decode())


@contextlib.contextmanager
def ended_by_launcher() -> Iterator[None]:
    """Print one line if `torchrun` ends this process in the block, as it does where another has died.

    A handler of Python's cannot run while the main thread waits for another process. So a thread waits for
    the signal.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_end, name="mach_ext.end", daemon=True).start()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _wait_for_end() -> None:
    signal.sigwait({signal.SIGTERM})
    if _STOPPING.acquire(timeout=_TURN):
        rank, size = os.environ.get("RANK", "?"), os.environ.get("WORLD_SIZE", "?")
        _say(f"rank {rank} of {size} stops, because the launcher ended it: another process had ended")
    os._exit(128 + signal.SIGTERM)


def _say(what: str) -> None:
    """Print why this process stops, in one line."""
    rest = "what is in the folder is whole, and --resume continues from the last checkpoint"
    with contextlib.suppress(OSError, ValueError):
        print(f"mach-ext: {what}; {rest}", file=sys.__stderr__ or sys.stderr, flush=True)


_OPEN: set[Watch] = set()  # the watches whose threads wait


@atexit.register
def _end_of_program() -> None:
    """End the process at once if work was broken off: the thread of an exchange cannot be stopped."""
    if not any(watch._thread.is_alive() for watch in _OPEN):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(1)
