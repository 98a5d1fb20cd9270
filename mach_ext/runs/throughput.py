"""How fast this machine runs each kernel and each path: documents, labels and gigabytes a second."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from mach_ext._progress import tqdm
from mach_ext.data import atomic_path
from mach_ext.nn import MACH
from mach_ext.runs.workload import Work, Workload, random_documents


@dataclass(frozen=True)
class Throughput:
    """How fast one work ran.

    Attributes:
        work: The name of the kernel or path.
        seconds: Median of a call.
        iqr: Interquartile range of the seconds.
        documents, labels, gigabytes: What a call goes through, as `Work` counts it.
    """

    work: str
    seconds: float
    iqr: float
    documents: int
    labels: int
    gigabytes: float

    @property
    def documents_per_second(self) -> float:
        return self.documents / self.seconds

    @property
    def labels_per_second(self) -> float:
        return self.labels / self.seconds

    @property
    def gigabytes_per_second(self) -> float:
        return self.gigabytes / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON or for a row of CSV."""
        rates = ("documents_per_second", "labels_per_second", "gigabytes_per_second")
        return asdict(self) | {name: getattr(self, name) for name in rates}


def measure_throughput(
    model: MACH,
    *,
    batch_size: int = 256,
    k: int = 5,
    nonzeros: int = 75,
    seconds: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> list[Throughput]:
    """Times each kernel and each path of a model, on random documents, with the threads that torch has.

    The decode alone gets scores like a trained model's. `predict` gets the scores of this model, and those of
    random weights are nearly flat, which is the slowest case. The training step is the last, since it changes
    the weights of the model.

    Args:
        model: On the device to measure. `MACH.__init__` makes one of any size.
        batch_size: Documents of a call.
        k: Labels that are asked for.
        nonzeros: Words of a document.
        seconds: How long each work is timed.
        seed: Of the documents.
        progress: Show a progress bar.

    Returns:
        One entry a work.

    Raises:
        ValueError: `seconds` is not above 0, or a size is below 1.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(500, 1000, num_repetitions=4, num_buckets=64, hidden_size=16)
        >>> results = mach_ext.runs.measure_throughput(model, batch_size=8, seconds=0.01)
        >>> [result.work for result in results if result.gigabytes_per_second > 0][:2]
        ['sparse_linear', 'sparse_linear, backward']
    """
    for name, size in (("batch_size", batch_size), ("k", k), ("nonzeros", nonzeros)):
        if size < 1:
            raise ValueError(f"measure_throughput: {name} must be at least 1, got {size}")
    if k > model.num_labels:
        raise ValueError(f"measure_throughput: k must be at most L={model.num_labels}, got {k}")
    if not seconds > 0:
        raise ValueError(f"measure_throughput: seconds must be above 0, got {seconds}")
    documents = random_documents(batch_size, model.num_features, model.num_labels, nonzeros, seed=seed)
    workload = Workload(model.eval(), *documents, k)
    results = []
    for name in (bar := tqdm(workload.names(), leave=False, disable=not progress)):
        bar.set_postfix_str(name)
        results.append(time_work(workload.work(name), seconds))
    model.eval()
    return results


def time_work(work: Work, seconds: float) -> Throughput:
    """Times one work, after a call that warms up."""
    work.call()
    timer = Timer("call()", globals={"call": work.call}, num_threads=torch.get_num_threads())
    times = timer.blocked_autorange(min_run_time=seconds)
    return Throughput(work.name, times.median, times.iqr, work.documents, work.labels, work.bytes / 1e9)


def write_throughput(results: Sequence[Throughput], file: Path) -> None:
    """Writes a CSV file with a row a work. A former file is replaced in one step.

    Example:
        >>> import mach_ext, tempfile, pathlib
        >>> from mach_ext.runs.throughput import Throughput, write_throughput
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "bench.csv")
        ...     write_throughput([Throughput("predict", 0.5, 0.01, 256, 1280, 0.25)], file)
        ...     print(file.read_text().splitlines()[1])
        predict,0.5,0.01,256,1280,0.25,512.0,2560.0,0.5
    """
    rows = [result.as_dict() for result in results]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as part, open(part, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
