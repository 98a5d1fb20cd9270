"""Shared by the benchmarks: where the real data is, what every result records."""

import os
import platform
from pathlib import Path

import pytest
import torch

import mach_ext
from mach_ext import _ops

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data():
    """Folder with eurlex57k and the like: $MACH_SHARED_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real datasets at {folder}; set MACH_SHARED_DATA")
    return folder


@pytest.fixture(params=[1, torch.get_num_threads()], ids=lambda n: f"{n}threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def record(benchmark):
    """record(bytes=...) adds GB/s and versions to the JSON of this benchmark."""

    def add(moved=None, **info):
        seconds = benchmark.stats.stats.median
        if moved is not None:
            info.update(bytes=moved, gb_per_s=moved / seconds / 1e9)
        benchmark.extra_info.update(
            info,
            torch=torch.__version__,
            mach_ext=mach_ext.__version__,
            isa=_ops.cpu_isa(),
            machine=platform.processor() or platform.machine(),
        )

    return add


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node")  # whose machine it was is nobody's business


def pytest_benchmark_update_json(config, benchmarks, output_json):
    for result in output_json["benchmarks"]:
        result["stats"].pop("data", None)  # medians and quartiles are kept, not every round
