"""Throughput of each kernel and path, by pytest-benchmark: `pytest benchmarks --benchmark-only`.

Documents, labels and gigabytes a second stand in `extra_info` and in a table at the end. Bytes are the least
that a call must move: each needed weight once, and what is read and written of the batch.
`mach_ext.runs.workload` has the count of each work. The whole run takes about a minute on one core.
`--benchmark-autosave` keeps a run, and `--benchmark-compare` shows the next run beside it. `mach-ext bench`
measures the same works at sizes of your own.
"""

from __future__ import annotations

from typing import Any

import pytest

import mach_ext
from mach_ext.runs.workload import WORKS, Workload, random_documents

SIZES = {"num_features": 20_000, "num_labels": 50_000, "num_repetitions": 8, "num_buckets": 512}
DOCUMENTS, K = 128, 5


@pytest.fixture(scope="module", params=[128, 0], ids=["hidden", "linear"])
def workload(request: Any) -> Workload:
    """128 random documents, and a model with a hidden layer of 128 units or none."""
    model = mach_ext.MACH(**SIZES, hidden_size=request.param)
    return Workload(model, *random_documents(DOCUMENTS, SIZES["num_features"], SIZES["num_labels"]), K)


@pytest.mark.parametrize("name", WORKS)
def test_throughput(benchmark: Any, workload: Workload, name: str) -> None:
    if name not in workload.names():
        pytest.skip("linear MACH has no hidden units")
    work = workload.work(name)
    work.call()
    benchmark(work.call)
    if benchmark.stats is not None:  # not so with --benchmark-disable
        seconds = benchmark.stats["median"]
        rates = {"documents/s": work.documents, "labels/s": work.labels, "GB/s": work.bytes / 1e9}
        benchmark.extra_info.update({rate: amount / seconds for rate, amount in rates.items()})
