"""Fixtures and options of the benchmarks; the harness does the rest."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
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
    circumstances,
    clock,
    interleave,
    keep,
    matmul_speed,
    num_threads,
    others_seconds,
    stream_bandwidth,
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


def pytest_addoption(parser: Any) -> None:
    help = f"where the JSON goes (default: {RESULTS})"
    parser.addoption("--results", type=Path, default=RESULTS, help=help)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with eurlex57k and the like: $MACH_SHARED_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real datasets at {folder}; set MACH_SHARED_DATA")
    return folder
