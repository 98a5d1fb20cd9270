"""Checks before an allocation whose failure could end the process."""

from __future__ import annotations

import sys
import warnings

from mach_ext._memory import available
from mach_ext._memory.shortage import WORTH_A_LOOK, keep_reserve, not_enough, size_in_words

_BUFFERS = 1 << 22  # safetensors needs a megabyte, and aborts the process if it cannot get it.
# The import of each library takes at least so many MiB of address space, on top of `import mach_ext`.
_IMPORTS = {"scipy.special": 60, "sklearn": 128, "matplotlib.figure": 30, "torch._dynamo": 64}


def check_memory(what: str, needed: int, advice: str, **sizes: object) -> None:
    """Refuse an allocation that cannot succeed, before it is tried.

    Memory that is mapped from a file is not allocated, so do not count it. Page cache counts as available
    memory. If only swapping would provide the memory, a `ResourceWarning` is given.

    Args:
        what: The function and what it is about to allocate: "MACH: the weights".
        needed: Bytes beyond what the process already has.
        advice: What to lower: "lower hidden_size or num_buckets".
        **sizes: The numbers that decide, by the names that users know.

    Raises:
        MemoryError: `needed` exceeds all available memory, swap included.

    Warns:
        ResourceWarning: `needed` exceeds the memory that is available without swapping.

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
    warnings.warn(message, ResourceWarning, stacklevel=4)  # above `memory_errors`


def check_room() -> None:
    """Raise MemoryError if there is no memory for buffers, because some libraries end the process then."""
    bytearray(_BUFFERS)


def check_import(name: str) -> None:
    """Raise MemoryError if there is too little memory to import a library.

    Some libraries crash if they are loaded in part. The OpenBLAS of scipy.special waits forever if it cannot
    get its own 32 MiB.
    """
    if name not in sys.modules:
        bytearray(_IMPORTS[name] << 20)


def _in_words(size: object) -> str:
    return f"{size:,}" if isinstance(size, int) else str(size)
