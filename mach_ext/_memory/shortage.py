"""How libraries report a shortage of memory, and the single error that this package makes of the reports."""

from __future__ import annotations

import errno
import math
import re
import zlib

import torch
from safetensors import SafetensorError

from mach_ext._memory import available

# Smaller needs are not compared with anything, because a comparison takes a fifth of a millisecond.
WORTH_A_LOOK = 1 << 26
_RESERVE = 1 << 20


# How libraries report that memory is short, and how much they asked for.
_BYTES = re.compile(
    r"tried to allocate (?P<torch>\d+) bytes"
    r"|(not enough|out of) memory: (each thread takes )?(?P<operator>\d+) bytes(?P<what> for [^\n]*)?"
    r"|unable to mmap (?P<file>\d+) bytes"
)
_NUMPY = re.compile(r"Unable to allocate (.* for an array with .*)", re.DOTALL)
_SAYINGS = (
    "DefaultCPUAllocator",
    "not enough memory",
    "bad_alloc",
    "annot allocate memory",
    "unable to mmap",
    "can't start new thread",
    "failed to map segment",
    "Storage size calculation overflowed",
    "out of memory",
)
# Reports of Python 3.11 (no memory for a frame), of oneDNN and of FreeType. They can have other causes.
_VAGUE = ("without setting an exception", "without exception set", "could not create a", "ft2font")
_TOO_BIG = ("array is too big", "Maximum allowed dimension exceeded")  # how NumPy refuses absurd shapes


class NotEnoughMemory(MemoryError):
    """A shortage of memory in the words of this module.

    Attributes:
        shortage: The missing memory, such as "2.0 GiB for the weights". It is empty if the size is unknown.
        is_final: Whether the advice names the sizes that decide. It is then kept in every calling function.
    """

    shortage = ""
    is_final = False


_reserve: list[bytearray] = []  # memory for the work on the message, when nothing else is left


def keep_reserve() -> None:
    """Set memory aside for the work on the message, until a shortage is reported."""
    if not _reserve:
        _reserve.append(bytearray(_RESERVE))


def not_enough(op: str, shortage: str, advice: str, is_final: bool = False) -> NotEnoughMemory:
    """Return the error for a shortage."""
    _reserve.clear()
    parts, free = [shortage] if shortage else [], available.available_memory(swap=True)
    if free < available.UNKNOWN:
        parts.append(f"{size_in_words(free)} can be had")
    text = f"not enough memory: {'; '.join([', '.join(parts), advice])}"
    error = NotEnoughMemory(f"{op}: {text}" if op else text)
    error.shortage, error.is_final = shortage, is_final
    return error


def size_in_words(count: float) -> str:
    """Write bytes with a unit: "2.0 GiB".

    Example:
        >>> from mach_ext._memory import size_in_words
        >>> size_in_words(3 * 2**29)
        '1.5 GiB'
    """
    if count < 1024:
        return f"{count:.0f} bytes"
    power = min(5, int(math.log2(count) / 10))
    return f"{count / 1024**power:,.1f} {'KMGTP'[power - 1]}iB"


def memory_shortage(error: BaseException) -> str | None:
    """Return the missing memory that an error reports: "2.0 GiB for the weights".

    Returns:
        The words, or "" if the error does not say how much is missing. None if the error is of another kind,
        or about the memory of a GPU.

    Example:
        >>> from mach_ext._memory import memory_shortage
        >>> memory_shortage(MemoryError())
        ''
        >>> memory_shortage(ValueError("k must be at least 1")) is None
        True
    """
    if isinstance(error, NotEnoughMemory):
        return error.shortage
    if isinstance(error, torch.OutOfMemoryError):
        return None
    _reserve.clear()
    text = str(error)
    if isinstance(error, OSError):
        is_short = error.errno == errno.ENOMEM or (error.errno is None and _says_so(text))
    elif isinstance(error, (RuntimeError, ImportError, SystemError, SafetensorError)):
        is_short = _says_so(text)
    elif isinstance(error, zlib.error):
        is_short = "Error -4" in text
    elif isinstance(error, ValueError):
        is_short = text.startswith(_TOO_BIG)
    else:
        is_short = isinstance(error, MemoryError)
    return _requested_bytes(text) if is_short else None


def _says_so(text: str) -> bool:
    # Before torch 2.14, an operator only says which call failed. On a GPU the cause can be anything.
    if any(words in text for words in _VAGUE):
        return available.available_memory() < WORTH_A_LOOK
    failed_call = re.search(r"(aten::|torch_parallel_for|aoti_torch_).*API call failed", text, re.DOTALL)
    if failed_call and not torch.cuda.is_initialized():
        return True
    return any(words in text for words in _SAYINGS) and "CUDA" not in text


def _requested_bytes(text: str) -> str:
    if match := _NUMPY.search(text):
        return match[1]
    if match := _BYTES.search(text):
        count = int(match["torch"] or match["operator"] or match["file"])
        return size_in_words(count) + (match["what"] or "")
    return ""


def memory_words(error: BaseException) -> str | None:
    """Describe a shortage of memory on a single line, whoever reports it.

    The result is None if the error is of another kind.
    """
    if isinstance(error, NotEnoughMemory):
        return str(error)
    shortage = memory_shortage(error)
    if shortage is None:
        return None
    return str(not_enough("", shortage, "free memory first, or lower the sizes that were asked for"))
