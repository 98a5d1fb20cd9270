"""What memory can be had, and errors in words where it does not suffice.

`check_memory` comes before an allocation whose size a user's number decides. Linux grants memory that it
does not have, and ends the process when the pages are touched. So the sizes are compared with what can be
had before anything is allocated. `memory_advice` is for what fails all the same: PyTorch, NumPy, Python and
the operators of this package each report it in their own way, and all of them become a `MemoryError` of one
form.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import inspect
import math
import re
import resource
import sys
import types
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

# Smaller needs are not compared with anything: a look takes a fifth of a millisecond.
_WORTH_A_LOOK = 1 << 26
_RESERVE = 1 << 20
_BUFFERS = 1 << 22  # safetensors wants a megabyte, and aborts where it can't have it
# MiB of address space that loading takes at least, on top of `import mach_ext`.
_IMPORTS = {"scipy.special": 60, "sklearn": 128, "matplotlib.figure": 30, "torch._dynamo": 64}
_UNKNOWN = 2**62  # counts as plenty


class NotEnoughMemory(MemoryError):
    """A shortage in the words of this module.

    Attributes:
        shortage: What could not be had: "2.0 GiB for the weights"; empty where nobody said how much it was.
        is_final: Whether the advice stands, whatever function was on the way: it names the sizes that decide.
    """

    shortage = ""
    is_final = False


_reserve: list[bytearray] = []  # what finding the words takes, where nothing is left


def _not_enough(op: str, shortage: str, advice: str, is_final: bool = False) -> NotEnoughMemory:
    _reserve.clear()
    parts, free = [shortage] if shortage else [], available_memory(swap=True)
    if free < _UNKNOWN:
        parts.append(f"{size_in_words(free)} can be had")
    text = f"not enough memory: {'; '.join([', '.join(parts), advice])}"
    error = NotEnoughMemory(f"{op}: {text}" if op else text)
    error.shortage, error.is_final = shortage, is_final
    return error


def size_in_words(count: float) -> str:
    """Bytes with a unit: "2.0 GiB".

    Example:
        >>> from mach_ext._memory import size_in_words
        >>> size_in_words(3 * 2**29)
        '1.5 GiB'
    """
    if count < 1024:
        return f"{count:.0f} bytes"
    power = min(5, int(math.log2(count) / 10))
    return f"{count / 1024**power:,.1f} {'KMGTP'[power - 1]}iB"


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
    if not _reserve:
        _reserve.append(bytearray(_RESERVE))
    if needed < _WORTH_A_LOOK or needed <= available_memory():
        return
    op, _, subject = what.partition(": ")
    numbers = ", ".join(f"{name}={_in_words(size)}" for name, size in sizes.items())
    shortage = f"{size_in_words(needed)} for {subject}" + (f" ({numbers})" if numbers else "")
    if needed > available_memory(swap=True) + _free_in_heap():
        raise _not_enough(op, shortage, advice, is_final=True)
    free = size_in_words(available_memory())
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


# --------------------------------------------------------------------------------- errors in words

# How others say that memory is short, and how much they wanted.
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
# What Python 3.11 (no room for a frame), oneDNN and FreeType say. It can be something else.
_VAGUE = ("without setting an exception", "without exception set", "could not create a", "ft2font")
_TOO_BIG = ("array is too big", "Maximum allowed dimension exceeded")  # how NumPy refuses absurd shapes


def memory_shortage(error: BaseException) -> str | None:
    """What memory an error is about: "2.0 GiB for the weights", or "" where it does not say how much.

    Returns:
        None where the error is of another kind, or about the memory of a GPU.

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
    return _wanted_bytes(text) if is_short else None


def _says_so(text: str) -> bool:
    # An operator of before torch 2.14 only says which call failed. On a GPU that can be anything.
    if any(words in text for words in _VAGUE):
        return available_memory() < _WORTH_A_LOOK
    failed_call = re.search(r"(aten::|torch_parallel_for|aoti_torch_).*API call failed", text, re.DOTALL)
    if failed_call and not torch.cuda.is_initialized():
        return True
    return any(words in text for words in _SAYINGS) and "CUDA" not in text


def _wanted_bytes(text: str) -> str:
    if match := _NUMPY.search(text):
        return match[1]
    if match := _BYTES.search(text):
        count = int(match["torch"] or match["operator"] or match["file"])
        return size_in_words(count) + (match["what"] or "")
    return ""


def memory_words(error: BaseException) -> str | None:
    """A shortage of memory on one line, whoever reports it; None: the error is of another kind."""
    if isinstance(error, NotEnoughMemory):
        return str(error)
    shortage = memory_shortage(error)
    if shortage is None:
        return None
    return str(_not_enough("", shortage, "free memory first, or lower the sizes that were asked for"))


class memory_advice:
    """A block whose shortage of memory becomes one error in words, which says what would help.

    On the CPU that is a `MemoryError`. On a GPU it is torch.OutOfMemoryError: where one of mach_ext's
    operators asked PyTorch for the memory, all that comes back is which call failed.

    Args:
        op: The function that the user has called.
        advice: "lower batch_size".
        model: Its device tells whose memory is short; None: the CPU's.
        is_final: Whether `op` and `advice` stand, whatever function the block is called by.
    """

    def __init__(self, op: str, advice: str, model: Any = None, is_final: bool = False) -> None:
        self.op, self.advice, self.model, self.is_final = op, advice, model, is_final

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            return
        translated: Any = _on_gpu(error, self.op, self.advice, self.model)
        translated = translated or _on_cpu(error, self.op, self.advice, self.is_final)
        if translated is not None:
            raise translated from None


def _on_cpu(error: BaseException, op: str, advice: str, is_final: bool = False) -> MemoryError | None:
    if isinstance(error, NotEnoughMemory) and error.is_final:
        return None
    shortage = memory_shortage(error)
    return None if shortage is None else _not_enough(op, shortage, advice, is_final)


def _on_gpu(error: BaseException, op: str, advice: str, model: Any) -> torch.OutOfMemoryError | None:
    if model is None:
        return None
    text, device = str(error), model.bucket_bias.device
    asked = device.type == "cuda" and "aten::" in text and "API call failed" in text
    if not asked and not isinstance(error, torch.OutOfMemoryError):
        return None
    return torch.OutOfMemoryError(
        f"{op}: out of memory on {device}: {advice} (the model has R={model.num_repetitions} repetitions of "
        f"B={model.num_buckets} buckets; `mach-ext info` states what it takes). PyTorch says: {text}"
    )


_Function = TypeVar("_Function", bound=Callable[..., Any])


def memory_errors(advice: str, op: str | None = None) -> Callable[[_Function], _Function]:
    """A decorator: what `memory_advice` does for a block, for a whole function.

    Args:
        advice: "lower batch_size".
        op: What the user calls the function; None: its own name.
    """

    def decorate(function: _Function) -> _Function:
        is_compiling, translate = torch.compiler.is_compiling, _on_cpu
        qualified = op or function.__qualname__.removesuffix(".__init__")

        def called(arguments: tuple[Any, ...]) -> str:  # a private class goes by the name of the one in use
            if not qualified.startswith("_"):
                return qualified
            return f"{type(arguments[0]).__name__}.{function.__name__}"

        def call(*args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return function(*args, **kwargs)
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if (translated := translate(error, called(args), advice)) is None:
                    raise
                raise translated from None

        def generate(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                if (translated := translate(error, called(args), advice)) is None:
                    raise
                raise translated from None

        wrapper: Any = generate if inspect.isgeneratorfunction(function) else call
        # doctest tells by its globals in which module a function was written.
        here = types.FunctionType(wrapper.__code__, function.__globals__, None, None, wrapper.__closure__)
        return functools.wraps(function)(here)  # type: ignore[return-value]

    return decorate


# ---------------------------------------------------------------------------------- what can be had


def available_memory(device: torch.device | str = "cpu", swap: bool = False) -> int:
    """Bytes that this process can have now, beyond what it has; unknown counts as plenty.

    On the CPU the least of what the machine has left, what the process's limits leave (RLIMIT_AS and
    RLIMIT_DATA) and what its control groups leave. Page cache counts as left, as the kernel gives it up.

    Args:
        device: "cpu", or a CUDA device that is there.
        swap: Also count what swapping would free.

    Example:
        >>> from mach_ext._memory import available_memory
        >>> available_memory() > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    machine = _numbers(Path("/proc/meminfo"))
    swap_free = 1024 * machine.get("SwapFree", 0) if swap else 0
    left = [1024 * machine["MemAvailable"] + swap_free] if "MemAvailable" in machine else []
    left += _left_by_limits()
    for folder in _groups("cgroup2"):
        left += _left_by_group(folder, swap_free)
    for folder in _groups("cgroup"):
        left += _left_by_old_group(folder, swap_free)
    return max(0, min(left, default=_UNKNOWN))


def _left_by_limits() -> list[int]:
    process = _numbers(Path("/proc/self/status"))
    left = []
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and name in process:
            left.append(most - 1024 * process[name])
    return left


def _left_by_group(folder: Path, swap_free: int) -> list[int]:
    """Of a group of cgroup v2: its limit less what it uses, page cache left out; none without a limit."""
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return []
    kept = _numbers(folder / "memory.stat")
    cache = sum(kept.get(name, 0) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    swap_limit, swap_used = _number(folder / "memory.swap.max"), _number(folder / "memory.swap.current")
    if swap_limit is not None and swap_used is not None:
        swap_free = max(0, min(swap_free, swap_limit - swap_used))
    return [limit - used + cache + swap_free]


def _left_by_old_group(folder: Path, swap_free: int) -> list[int]:
    """The same of cgroup v1, whose second limit counts memory and swap together."""
    kept = _numbers(folder / "memory.stat")
    cache = kept.get("total_inactive_file", 0) + kept.get("total_active_file", 0)
    left = []
    for kind, more in (("memory", swap_free), ("memory.memsw", 0)):
        limit, used = _number(folder / f"{kind}.limit_in_bytes"), _number(folder / f"{kind}.usage_in_bytes")
        if limit is not None and used is not None:
            left.append(limit - used + cache + more)
    return left


def _groups(kind: str, process: Path = Path("/proc/self")) -> list[Path]:
    """Folders of a process's group and of those that it is part of, of one version of cgroup."""
    controllers = {"cgroup": "memory", "cgroup2": ""}
    try:
        mounts = (process / "mountinfo").read_text(encoding="utf-8").splitlines()
        lines = (process / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    paths = [path for _, names, path in (line.split(":", 2) for line in lines)
             if controllers[kind] in names.split(",")]  # fmt: skip
    for mount in mounts:
        fields, _, options = mount.partition(" - ")
        if options.split(" ")[0] != kind or controllers[kind] not in ("", *options.split(" ")[-1].split(",")):
            continue
        root, folder = fields.split(" ")[3], Path(fields.split(" ")[4])
        for path in paths:
            # In a container, the mount shows a part of the tree only.
            inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
            return [folder / part for part in (inside, *inside.parents)]
    return []


def _number(file: Path) -> int | None:
    """The number that a file consists of; None where it says "max" or is not there."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _numbers(file: Path) -> dict[str, int]:
    """Names and numbers, one pair a line: "MemFree: 123 kB"; none where the file is not there."""
    try:
        lines = [line.replace(":", " ").split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost",
    )]  # fmt: skip


def _free_in_heap() -> int:
    """Bytes that the C library has from the kernel and nobody uses: an allocation may come from there."""
    with contextlib.suppress(OSError, AttributeError):
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _Mallinfo
        return int(mallinfo2().fordblks)
    return 0
