"""Notices within moments that another process of a run is gone, however busy this process is."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import Any

import torch
from torch import distributed as dist

_GRACE = 20.0  # seconds that the watch gets to print its line, before an exchange's own error is raised


class Watch:
    """A thread that waits for a word of the former rank, which comes at the end of the run.

    The ranks stand in a ring. If a process dies, its connections close. The next rank then stops, and so do
    the others in turn. No time limit is needed, so a slow process is never taken for a dead one.
    """

    def __init__(self, rank: int, size: int, group: Any) -> None:
        self.rank, self.size, self.group = rank, size, group
        self._store: Any = dist.PrefixStore("mach_ext", dist.distributed_c10d._get_default_store())
        self._thread = threading.Thread(target=self._run, name="mach_ext.watch", daemon=True)
        self._thread.start()
        atexit.register(self._end_of_program)

    def end(self) -> None:
        """Say the word, and wait for that of the former rank."""
        dist.send(torch.ones(1), dst=(self.rank + 1) % self.size, group=self.group)
        self._thread.join()
        atexit.unregister(self._end_of_program)

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

    def _end_of_program(self) -> None:
        """End the process at once if the work was broken off: the thread of an exchange cannot be stopped."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(1)

    def _run(self) -> None:
        try:
            dist.recv(torch.zeros(1), src=(self.rank - 1) % self.size, group=self.group)
        except RuntimeError:
            self._stop()

    def _stop(self) -> None:
        """End this process. Print why, unless a rank that failed has already said so."""
        lost, told = str((self.rank - 1) % self.size), False
        with contextlib.suppress(Exception):
            lost = self._noted("lost", lost)
            told = self._store.check(["error"])
        if told:
            time.sleep(1)  # The main thread may be about to print an error of its own.
        else:
            print(
                f"mach-ext: rank {self.rank} of {self.size} stops, because rank {lost} ended before the work "
                "was done; what is in the folder is whole, and --resume continues from the last checkpoint",
                file=sys.__stderr__ or sys.stderr,
                flush=True,
            )
        os._exit(1)

    def _noted(self, name: str, value: str) -> str:
        """Note a value, unless there is one already. Return the one that is noted."""
        return str(self._store.compare_set(name, "", value).decode())
