"""The harness: providers timed in turn within one run, what every result records, where the real data is.

A benchmark is a pytest test that calls the `compare` fixture once. Its result goes into
`results/<module>.json` as soon as it is there, in place of the former one of the same name, so a run of a
part (`make bench ARGS="-k 31K"`) renews that part.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mach_ext import _ops

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mach_ext" / "benchmarks"


@dataclass(frozen=True)
class Part:
    """A provider that does part of the work, so that its time counts `scale` times, or needs preparing."""

    call: Callable[..., Any]
    scale: float = 1.0
    what: str = "all"  # such as "32 of 256 documents"
    before: Callable[[], Any] | None = None  # not timed; `call` gets what it returns

    @staticmethod
    def of(provider: Callable[[], Any] | Part) -> Part:
        return provider if isinstance(provider, Part) else Part(provider)

    def seconds(self, repeats: int = 1) -> float:
        if self.before is not None:
            return seconds(functools.partial(self.call, self.before()))
        return seconds(self.call, repeats) / repeats


@dataclass(frozen=True)
class Floor:
    """What no program for this work can go below on this machine: the longest of the parts that are given."""

    how: str  # the count, in words that hold for every shape of this work
    bytes: float = 0  # each needed byte moved once, at the STREAM bandwidth of the run
    cycles: float = 0  # of one core; all threads share them
    flops: float = 0  # at the speed of a large matrix product in the run


@dataclass(frozen=True)
class Target:
    """median of `over` / median of `ours` must reach `ratio`."""

    ours: str
    over: str  # a provider, or the first word of several: then the fastest of them
    ratio: float | None  # None: shown, nothing promised


# ------------------------------------------------------------------------------------------ interleaved run


def interleave(
    providers: dict[str, Callable[[], Any] | Part], budget: float, least: int, most: int
) -> dict[str, list[float]]:
    """Seconds a call in each round; every round runs each provider in turn, so all meet the same machine.

    Each is called once before (warm-up); what takes under a millisecond is repeated within a round.
    """
    parts = {name: Part.of(provider) for name, provider in providers.items()}
    repeats = {}
    for name, part in parts.items():
        warm_up = part.seconds()
        repeats[name] = 1 if warm_up > 0.01 else max(1, math.ceil(1e-3 / part.seconds()))
    samples: dict[str, list[float]] = {name: [] for name in parts}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + budget
        for done in range(most):
            if done >= least and time.perf_counter() > end:
                break
            for name, part in parts.items():
                samples[name].append(part.scale * part.seconds(repeats[name]))
    finally:
        gc.enable()
    return samples


def seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n}threads")
def threads(request: Any) -> Iterator[int]:
    with num_threads(request.param):
        yield request.param


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """The same work at 1 and 2 threads, one after the other: they share their inputs, made once."""
    first: dict[str, int] = {}
    items.sort(key=lambda item: first.setdefault(re.sub(r"\d+threads-?", "", item.nodeid), len(first)))


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def compare(request: Any, threads: int) -> Callable[..., None]:
    """compare(work, providers, shape=..., floor=..., targets=[...]): times them, keeps the result."""

    def run(
        work: str,
        providers: dict[str, Callable[[], Any] | Part],
        *,
        shape: dict[str, Any],
        floor: Floor,
        targets: list[Target],
        budget: float = 2.0,  # seconds that the rounds may take, but for the least number of them
        rounds: tuple[int, int] = (5, 200),
        **info: Any,
    ) -> None:
        start, before = time.perf_counter(), others_seconds()
        samples = interleave(providers, budget, *rounds)
        others = (others_seconds() - before) / (time.perf_counter() - start)
        stream = stream_bandwidth()
        limits = {"bytes": floor.bytes / stream}
        if floor.cycles:
            limits["cycles"] = floor.cycles / (clock() * threads)
        if floor.flops:
            limits["flops"] = floor.flops / matmul_speed()
        bound = max(limits, key=lambda limit: limits[limit])
        rows = {}
        for name, times in samples.items():
            q1, median, q3 = np.percentile(times, (25, 50, 75)).tolist()
            rows[name] = {
                "median": median,
                "iqr": q3 - q1,
                "rounds": len(times),
                "measured": Part.of(providers[name]).what,
                "gb_per_s": floor.bytes / median / 1e9,
                "share_of_stream": floor.bytes / median / stream,
                "share_of_floor": limits[bound] / median,
            }
        ratios = []
        for target in targets:
            among = [target.over] if target.over in rows else [n for n in rows if n.startswith(target.over)]
            fastest = min(among, key=lambda name: rows[name]["median"])
            ratio = rows[fastest]["median"] / rows[target.ours]["median"]
            ratios.append(
                {"ours": target.ours, "over": fastest, "among": target.over, "ratio": ratio}
                | {"target": target.ratio, "met": target.ratio is None or ratio >= target.ratio}
            )
        keep(
            request.config,
            {
                "name": request.node.name,
                "work": work,
                "shape": shape,
                "threads": threads,
                **info,
                "providers": rows,
                "ratios": ratios,
                "floor": {
                    **asdict(floor),
                    "seconds": max(limits.values()),
                    "bound": max(limits, key=limits.get),
                },
                "stream_gb_per_s": stream / 1e9,
                "other_processes_cores": round(max(others, 0.0), 2),  # more than a few hundredths: not alone
                **circumstances(),
            },
            Path(request.node.path).stem.removeprefix("bench_"),
        )

    return run


# --------------------------------------------------------------------------------------------------- memory

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
    folder, module = str(Path(__file__).parent), prepare.__module__
    script = PEAK.format(folder=folder, module=module, prepare=prepare.__name__, arguments=arguments)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(run.stdout) / 1e6


# ---------------------------------------------------------------------------------------------- the record


def pytest_addoption(parser: Any) -> None:
    folder = Path(__file__).parent / "results"
    parser.addoption("--results", type=Path, default=folder, help=f"where the JSON goes (default: {folder})")


def keep(config: Any, result: dict[str, Any], module: str) -> None:
    """Puts a result into the JSON of its module, and a line of it on the screen."""
    file = config.getoption("--results") / f"{module}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {r["name"]: r for r in json.loads(file.read_text())} if file.exists() else {}
    kept[result["name"]] = result
    file.write_text(json.dumps([kept[name] for name in sorted(kept)], indent=1) + "\n")
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + line(result))


def note(
    request: Any, work: str, shape: dict[str, Any], found: dict[str, tuple[float, float | None]], **info: Any
) -> None:
    """Keeps numbers that have an upper bound, or None."""
    ratios = [
        {"ours": "mach_ext", "over": what, "ratio": number}
        | {"target": most, "at_most": True, "met": most is None or number < most}
        for what, (number, most) in found.items()
    ]
    result = {"name": request.node.name, "work": work, "shape": shape, "providers": {}, "ratios": ratios}
    module = Path(request.node.path).stem.removeprefix("bench_")
    keep(request.config, {**result, **info, **circumstances()}, module)


def line(result: dict[str, Any]) -> str:
    rows = "  ".join(f"{name} {row['median'] * 1e3:.4g} ms" for name, row in result["providers"].items())
    ratios = "  ".join(f"{r['over']} / {r['ours']} = {r['ratio']:.3g}" for r in result["ratios"])
    disturbed = " | DISTURBED by others" if result.get("other_processes_cores", 0) > 0.1 else ""
    return f"{result['name']}: {rows} | {ratios}{disturbed}"


def circumstances() -> dict[str, Any]:
    """Versions, instruction set, machine: no names, no paths."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="ascii") as file:
        model = next(text.partition(":")[2].strip() for text in file if text.startswith("model name"))
    return {
        "cpu": model,
        "isa": _ops.cpu_isa(),
        "versions": {name: version(name) for name in ("mach_ext", "torch", "numpy", "scipy")},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def others_seconds() -> float:
    """CPU seconds since boot that were not this process's own (and not idle)."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - time.process_time()


# --------------------------------------------------------------------------------------- what a machine can


def stream_bandwidth() -> float:
    """Bytes/s of STREAM's triad a = b + s * c on 3 x 256 MB, at the current number of threads; best of 4."""
    a, b, c = (torch.ones(1 << 26) for _ in range(3))
    return 3 * 4 * len(a) / min(seconds(lambda: torch.add(b, c, alpha=2.0, out=a)) for _ in range(4))


def matmul_speed() -> float:
    """Flop/s of a float32 matrix product of 1,536 squared at the current number of threads; best of 5."""
    a = torch.ones(1536, 1536)
    return 2 * 1536**3 / min(seconds(lambda: a @ a) for _ in range(5))


def clock() -> float:
    """Cycles/s of one core: a chain of dependent additions, one cycle each; best of 5."""
    return max(original_mach().cycles_per_second() for _ in range(5))


@functools.cache
def original_mach() -> ctypes.CDLL:
    """original_mach.cpp, compiled for this machine into the user's cache folder."""
    source = Path(__file__).with_name("original_mach.cpp")
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


# ------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with eurlex57k and the like: $MACH_SHARED_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real datasets at {folder}; set MACH_SHARED_DATA")
    return folder
