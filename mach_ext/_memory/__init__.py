"""What memory is available, and readable errors if it does not suffice.

`check_memory` comes before an allocation whose size a user's number decides. Linux grants memory that it does
not have, and ends the process when the pages are touched. The sizes are therefore compared with the available
memory before anything is allocated.

`memory_advice` handles failures that still happen. PyTorch, NumPy, Python and the operators of this package
each report them in their own way. All of them become a `MemoryError` of a single form.
"""

from mach_ext._memory.available import available_memory
from mach_ext._memory.checks import check_import, check_memory, check_room
from mach_ext._memory.errors import memory_advice, memory_errors
from mach_ext._memory.shortage import NotEnoughMemory, memory_shortage, memory_words, size_in_words

__all__ = [
    "NotEnoughMemory",
    "available_memory",
    "check_import",
    "check_memory",
    "check_room",
    "memory_advice",
    "memory_errors",
    "memory_shortage",
    "memory_words",
    "size_in_words",
]
