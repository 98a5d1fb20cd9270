"""The peak of memory of a piece of work, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from harness.places import ROOT

PEAK = """
import ctypes, sys
sys.path.insert(0, {folder!r})
from {module} import {prepare}

def memory(key):
    return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))

work = {prepare}(*{arguments!r})
ctypes.CDLL("libc.so.6").malloc_trim(0)  # what preparing has left over would hide a part
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # restart the peak
work()
print(memory("VmHWM") - before)
"""


def peak_megabytes(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """What a piece of work takes at most beyond what was there before, in a process of its own.

    `prepare(*arguments)`, of a benchmark module, makes the work, and has called such work once, so that
    libraries and threads are there.
    """
    folder, module = str(ROOT / "benchmarks"), prepare.__module__
    script = PEAK.format(folder=folder, module=module, prepare=prepare.__name__, arguments=arguments)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(run.stdout) / 1e6
