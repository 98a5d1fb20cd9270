"""What a machine can, and who else is using it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from harness.interleave import seconds
from harness.places import CACHE, ROOT


def others_seconds() -> float:
    """CPU seconds since boot that were not this process's own (and not idle)."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - time.process_time()


def stream_bandwidth() -> float:
    """Bytes/s of STREAM's triad a = b + s * c on 3 x 256 MB, with the current threads, the best of 4."""
    a, b, c = (torch.ones(1 << 26) for _ in range(3))
    return 3 * 4 * len(a) / min(seconds(lambda: torch.add(b, c, alpha=2.0, out=a)) for _ in range(4))


def matmul_speed() -> float:
    """Flop/s of a float32 matrix product of 1,536 squared at the current number of threads, the best of 5."""
    a = torch.ones(1536, 1536)
    return 2 * 1536**3 / min(seconds(lambda: a @ a) for _ in range(5))


def clock() -> float:
    """Cycles/s of one core: a chain of dependent additions, one cycle each, the best of 5."""
    return max(original_mach().cycles_per_second() for _ in range(5))


@functools.cache
def original_mach() -> ctypes.CDLL:
    """original_mach.cpp, compiled for this machine into the user's cache folder."""
    source = ROOT / "benchmarks" / "original_mach.cpp"
    library = CACHE / f"original_mach-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not library.exists():
        compiler = shutil.which("g++") or pytest.skip("no g++ to compile original_mach.cpp")
        CACHE.mkdir(parents=True, exist_ok=True)
        flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", f"{library}.tmp"], check=True)
        os.replace(f"{library}.tmp", library)
    loaded = ctypes.CDLL(str(library))
    address, number = ctypes.c_void_p, ctypes.c_int64
    loaded.original_mach.argtypes = [address] * 2 + [number] * 5 + [address] * 3 + [number]
    loaded.original_mach.restype = None
    loaded.cycles_per_second.restype = ctypes.c_double
    return loaded
