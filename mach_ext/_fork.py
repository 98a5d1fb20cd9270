"""Processes that fork: each gets its own pool of threads. Private.

fork copies only the calling thread. The OpenMP library, which runs PyTorch's operators, keeps its list of
worker threads in the child. None of them runs there, and the next parallel region would wait for them
forever. So the pool of the forking thread is ended before each fork. Parent and child start a new pool at
their next parallel region. Pools of other threads stay in the parent with the threads that own them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

_PAUSE_HARD = 2  # omp_pause_hard of OpenMP 5.0


def end_pools_before_forks() -> None:
    """Register what happens at every fork of this process. Call it once.

    If the OpenMP library cannot end its pool, a child process uses a single thread.
    """
    pause = _pause_function()
    if pause is None:
        os.register_at_fork(after_in_child=_use_one_thread)
    else:
        os.register_at_fork(before=lambda: pause(_PAUSE_HARD), after_in_child=_start_first_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _start_first_thread() -> None:
    """Let PyTorch notice, without other threads around, that this is a child.

    After a call of `torch.set_num_threads`, the first thread of a child replaces another pool, which PyTorch
    has for mobile operators. Two first threads at once would see it half replaced, and fail.
    """
    with contextlib.suppress(RuntimeError):  # The system may refuse a new thread.
        first = threading.Thread(target=torch.get_num_threads)
        first.start()
        first.join()


def _pause_function() -> Callable[[int], int] | None:
    """Return `omp_pause_resource_all` of the OpenMP library that PyTorch uses, or None."""
    for path in _libraries():
        try:
            # A lookup by handle searches the library and those that it was linked with.
            return ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
    return None


def _libraries() -> Iterator[str]:
    """Yield PyTorch's CPU library, and then the loaded OpenMP libraries in case it has another name."""
    yield str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines()}
    yield from sorted(path for path in paths if "omp" in Path(path).name and ".so" in path)
