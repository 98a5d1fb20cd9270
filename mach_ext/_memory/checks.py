"""Checks that come before an allocation, where what would fail could also end the process."""

from __future__ import annotations

import sys
import warnings

from mach_ext._memory import available
from mach_ext._memory.shortage import WORTH_A_LOOK, keep_reserve, not_enough, size_in_words

_BUFFERS = 1 << 22  # safetensors wants a megabyte, and aborts where it can't have it
# MiB of address space that loading takes at least, on top of `import mach_ext`.
_IMPORTS = {"scipy.special": 60, "sklearn": 128, "matplotlib.figure": 30, "torch._dynamo": 64}


def check_memory(what: str, needed: int, advice: str, **sizes: object) -> None:
    """Refuses an allocation that cannot succeed, before it is tried.

    Memory that is mapped from a file is no allocation, and page cache counts as memory that can be had. Where
    only swapping would do, a `ResourceWarning` says so.

    Args:
        what: The function and what it is about to allocate: "MACH: the weights".
        needed: Bytes beyond what the process already has.
        advice: What to lower: "lower hidden_size or num_buckets".
        **sizes: The numbers that decide, by the names that users know.

    Raises:
        MemoryError: `needed` is above all that can be had, swap included.

    Example:
        >>> from mach_ext._memory import check_memory
        >>> check_memory("MACH: the weights", 4 * 1000 * 64, "lower hidden_size", hidden_size=64)
    """
    keep_reserve()
    if needed < WORTH_A_LOOK or needed <= available.available_memory():
        return
    op, _, subject = what.partition(": ")
    numbers = ", ".join(f"{name}={_in_words(size)}" for name, size in sizes.items())
    shortage = f"{size_in_words(needed)} for {subject}" + (f" ({numbers})" if numbers else "")
    if needed > available.available_memory(swap=True) + available.free_in_heap():
        raise not_enough(op, shortage, advice, is_final=True)
    free = size_in_words(available.available_memory())
    message = f"{op}: memory is short: {shortage}, {free} can be had without swapping; {advice}"
    warnings.warn(message, ResourceWarning, stacklevel=4)  # behind `memory_errors`


def check_room() -> None:
    """Raises MemoryError where not even buffers can be had, for libraries that end the process then."""
    bytearray(_BUFFERS)


def check_import(name: str) -> None:
    """Raises MemoryError where a library, about to be loaded, would find too little room.

    Half-loaded, some crash. The OpenBLAS of scipy.special waits for ever where its own 32 MiB cannot be had.
    """
    if name not in sys.modules:
        bytearray(_IMPORTS[name] << 20)


def _in_words(size: object) -> str:
    return f"{size:,}" if isinstance(size, int) else str(size)
