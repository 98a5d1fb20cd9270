"""Processes that fork: each gets a pool of threads of its own. Private.

fork copies the calling thread alone. The OpenMP library that PyTorch's operators run on keeps its list of
worker threads in the child, where none of them runs, and its next parallel region would wait for them for
ever. So the pool of the forking thread is ended before each fork. Parent and child start another one at their
next parallel region. Pools of other threads stay in the parent with the threads they belong to.
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
    """Registers what happens at every fork of this process; to be called once.

    Where the OpenMP library cannot end its pool, a child process uses one thread.
    """
    pause = _pause_function()
    if pause is None:
        os.register_at_fork(after_in_child=_use_one_thread)
    else:
        os.register_at_fork(before=lambda: pause(_PAUSE_HARD), after_in_child=_start_first_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _start_first_thread() -> None:
    """Lets PyTorch find out in peace that this is a child.

    Once `torch.set_num_threads` was called, the first thread that a child starts replaces another pool, which
    PyTorch has for mobile operators. Two first threads at once would find it half replaced, and fail.
    """
    with contextlib.suppress(RuntimeError):  # no thread to be had
        first = threading.Thread(target=torch.get_num_threads)
        first.start()
        first.join()


def _pause_function() -> Callable[[int], int] | None:
    """`omp_pause_resource_all` of the OpenMP library that PyTorch uses."""
    for path in _libraries():
        try:
            # A lookup by handle searches the library and those that it was linked with.
            return ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
    return None


def _libraries() -> Iterator[str]:
    """PyTorch's CPU library; where it has another name, the OpenMP libraries that are loaded."""
    yield str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines()}
    yield from sorted(path for path in paths if "omp" in Path(path).name and ".so" in path)
