"""The memory that is available to this process, given the machine, its limits and its control groups."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path

import torch

UNKNOWN = 2**62  # stands for unknown, so that it counts as enough


def available_memory(device: torch.device | str = "cpu", swap: bool = False) -> int:
    """Return the bytes that this process can get now, beyond what it has. If unknown, the number is huge.

    On the CPU this is the least of what the machine, the process's limits (RLIMIT_AS and RLIMIT_DATA) and its
    control groups leave. Page cache counts as available, because
    the kernel gives it up.

    Args:
        device: "cpu", or a CUDA device that exists.
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
    return max(0, min(left, default=UNKNOWN))


def _left_by_limits() -> list[int]:
    process = _numbers(Path("/proc/self/status"))
    left = []
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and name in process:
            left.append(limit - 1024 * process[name])
    return left


def _left_by_group(folder: Path, swap_free: int) -> list[int]:
    """Return what a group of cgroup v2 leaves: its limit minus its usage without page cache.

    The list is empty if there is no limit.
    """
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
    """Return what a group of cgroup v1 leaves. Its second limit counts memory and swap together."""
    kept = _numbers(folder / "memory.stat")
    cache = kept.get("total_inactive_file", 0) + kept.get("total_active_file", 0)
    left = []
    for kind, more in (("memory", swap_free), ("memory.memsw", 0)):
        limit, used = _number(folder / f"{kind}.limit_in_bytes"), _number(folder / f"{kind}.usage_in_bytes")
        if limit is not None and used is not None:
            left.append(limit - used + cache + more)
    return left


def _groups(kind: str, process: Path = Path("/proc/self")) -> list[Path]:
    """Return the folders of a process's group and of the groups above it, for a version of cgroup."""
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
            # In a container, the mount shows only a part of the tree.
            inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
            return [folder / part for part in (inside, *inside.parents)]
    return []


def _number(file: Path) -> int | None:
    """Return the number that a file consists of, or None if it says "max" or does not exist."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _numbers(file: Path) -> dict[str, int]:
    """Return names and numbers, a pair in a line: "MemFree: 123 kB". Without the file there are none."""
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


def free_in_heap() -> int:
    """Return the bytes that the C library got from the kernel and nobody uses.

    An allocation may take them.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _Mallinfo
        return int(mallinfo2().fordblks)
    return 0
