"""What memory can be had, and errors in words where it does not suffice.

`check_memory` comes before an allocation whose size a user's number decides. Linux grants memory that it
does not have, and ends the process when the pages are touched. So the sizes are compared with what can be
had before anything is allocated. `memory_advice` is for what fails all the same: PyTorch, NumPy, Python and
the operators of this package each report it in their own way, and all of them become a `MemoryError` of one
form.
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
