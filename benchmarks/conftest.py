"""Fixtures and options of the benchmarks. The harness does the rest."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import (
    RESULTS,
    ROOT,
    Floor,
    Part,
    Target,
    clock,
    interleave,
    keep,
    matmul_speed,
    module_name,
    num_threads,
    others_seconds,
    short_name,
    stream_bandwidth,
    write_rows,
)


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n}threads")
def threads(request: Any) -> Iterator[int]:
    with num_threads(request.param):
        yield request.param


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """The same work at 1 and 2 threads, one after the other: they share their inputs, made once."""
    first: dict[str, int] = {}
    items.sort(key=lambda item: first.setdefault(re.sub(r"\d+threads-?", "", item.nodeid), len(first)))


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
        details: dict[str, dict[str, float]] | None = None,  # more columns, by provider
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
        seconds = {name: float(np.median(times)) for name, times in samples.items()}
        base = {"test": short_name(request), "work": work, "shape": shape, "threads": threads}
        end = {
            "floor_seconds": max(limits.values()),
            "bound": max(limits, key=lambda limit: limits[limit]),
            "stream_gb_per_s": round(stream / 1e9, 1),
            "others_cores": round(max(others, 0.0), 2),  # more than a few hundredths: not alone
        }
        rows = []
        for name, times in samples.items():
            q1, q3 = np.percentile(times, (25, 75))
            row = {"provider": name, "seconds": seconds[name], "iqr": float(f"{q3 - q1:.2g}")}
            row |= {"rounds": len(times), "part": Part.of(providers[name]).what}
            ratios = [ratio(target, seconds) for target in targets if target.ours == name]
            for compared in ratios or [ratio(None, seconds)]:
                rows.append(base | row | compared | (details or {}).get(name, {}) | end | info)
        write_rows(
            request.config.getoption("--results") / "floors.csv",
            [{"work": work, "floor": floor.how}],
            ["work"],
        )
        keep(request.config, module_name(request), rows)

    return run


def ratio(target: Target | None, seconds: dict[str, float]) -> dict[str, Any]:
    """The columns of a comparison: with what, how many times as fast, and how much was promised."""
    if target is None:
        return dict.fromkeys(("over", "ratio", "at_least", "at_most"))
    among = [target.over] if target.over in seconds else [n for n in seconds if n.startswith(target.over)]
    fastest = min(among, key=lambda name: seconds[name])
    times = seconds[fastest] / seconds[target.ours]
    return {"over": fastest, "ratio": times, "at_least": target.ratio, "at_most": None}


def pytest_addoption(parser: Any) -> None:
    help = f"folder of the CSV files (default: {RESULTS})"
    parser.addoption("--results", type=Path, default=RESULTS, help=help)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with eurlex57k and the like: $MACH_SHARED_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real datasets at {folder}; set MACH_SHARED_DATA")
    return folder


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """What the tables of pytest-benchmark leave out: documents, labels and gigabytes a second."""
    done = getattr(getattr(config, "_benchmarksession", None), "benchmarks", [])
    if rates := {bench.name: bench.extra_info for bench in done if bench.extra_info}:
        terminalreporter.section("throughput")
        names = list(next(iter(rates.values())))
        terminalreporter.write_line(f"{'':<52}" + "".join(f"{name:>18}" for name in names))
        for name, values in rates.items():
            numbers = "".join(f"{values[rate]:>18,.{2 if rate == 'GB/s' else 0}f}" for rate in names)
            terminalreporter.write_line(f"{name.removeprefix('test_throughput'):<52}{numbers}")
