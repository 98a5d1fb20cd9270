"""Measures each kernel and path on this machine, in documents, labels and gigabytes per second."""

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
from mach_ext.nn import MACH, checked_k
from mach_ext.runs.arguments import spell
from mach_ext.runs.workload import Work, Workload, random_documents


@dataclass(frozen=True)
class Throughput:
    """The measured speed of a kernel or path.

    Attributes:
        work: The name of the kernel or path.
        seconds: The median time of a call.
        iqr: The interquartile range of the times.
        documents: The documents of a call.
        labels: The labels of a call. They are counted as in `mach_ext.runs.workload.Work`.
        gigabytes: The least data that a call must move between memory and processor.

    Example:
        >>> from mach_ext.runs import Throughput
        >>> Throughput("predict", seconds=0.5, iqr=0.01, documents=256, labels=1280, gigabytes=0.25).work
        'predict'
    """

    work: str
    seconds: float
    iqr: float
    documents: int
    labels: int
    gigabytes: float

    @property
    def documents_per_second(self) -> float:
        """Documents per second, at the median time.

        Example:
            >>> from mach_ext.runs import Throughput
            >>> result = Throughput("predict", 0.5, 0.01, documents=256, labels=1280, gigabytes=0.25)
            >>> result.documents_per_second
            512.0
        """
        return self.documents / self.seconds

    @property
    def labels_per_second(self) -> float:
        """Labels per second, at the median time.

        Example:
            >>> from mach_ext.runs import Throughput
            >>> result = Throughput("predict", 0.5, 0.01, documents=256, labels=1280, gigabytes=0.25)
            >>> result.labels_per_second
            2560.0
        """
        return self.labels / self.seconds

    @property
    def gigabytes_per_second(self) -> float:
        """Gigabytes per second, at the median time.

        Example:
            >>> from mach_ext.runs import Throughput
            >>> result = Throughput("predict", 0.5, 0.01, documents=256, labels=1280, gigabytes=0.25)
            >>> result.gigabytes_per_second
            0.5
        """
        return self.gigabytes / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Returns all numbers, ready for JSON or for a row of CSV.

        Example:
            >>> from mach_ext.runs import Throughput
            >>> content = Throughput("predict", 0.5, 0.01, 256, 1280, 0.25).as_dict()
            >>> content["work"], content["documents_per_second"]
            ('predict', 512.0)
        """
        rates = ("documents_per_second", "labels_per_second", "gigabytes_per_second")
        return asdict(self) | {name: getattr(self, name) for name in rates}


def measure_throughput(
    model: MACH,
    *,
    batch_size: int = 256,
    k: int | None = None,
    nonzeros: int = 75,
    seconds: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> list[Throughput]:
    """Times each kernel and path of a model on random documents, with torch's number of threads.

    A model with dense features gets random ones beside the words.

    `merge_topk` alone gets logits like those of a trained model. `predict` uses the model's own logits.
    Random weights make logits nearly flat, which is the slowest case. The training step runs last, because it
    changes the weights of the model.

    Args:
        model: The model, on the device to measure. A new `mach_ext.MACH` can have any size.
        batch_size: The number of documents in a call.
        k: The number of labels that `predict` and `merge_topk` return for a document. None: 5, or all labels
            if there are fewer.
        nonzeros: The number of words that are drawn for a document.
        seconds: How long each kernel or path is timed.
        seed: The seed of the documents.
        progress: Show a progress bar.

    Returns:
        A result for each kernel and path.

    Raises:
        ValueError: `seconds` is not above 0, a size is below 1, or `k` is above the number of labels.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(500, 1000, num_repetitions=4, num_buckets=64, hidden_size=16)
        >>> results = mach_ext.runs.measure_throughput(model, batch_size=8, seconds=0.01)
        >>> [result.work for result in results if result.gigabytes_per_second > 0][:2]
        ['sparse_linear', 'sparse_linear, backward']
    """
    for name, size in (("batch_size", batch_size), ("nonzeros", nonzeros)):
        if size < 1:
            raise ValueError(f"measure_throughput: {name} must be at least 1, got {size}")
    k = checked_k("measure_throughput", k, model.num_labels, name=spell("k"))
    if not seconds > 0:
        raise ValueError(f"measure_throughput: seconds must be above 0, got {seconds}")
    sizes = (batch_size, model.num_features, model.num_labels, nonzeros)
    documents = random_documents(*sizes, seed=seed, num_dense=model.num_dense)
    workload = Workload(model.eval(), *documents, k)
    results = []
    for name in (bar := tqdm(workload.names(), leave=False, disable=not progress)):
        bar.set_postfix_str(name)
        results.append(time_work(workload.work(name), seconds))
    model.eval()
    return results


def time_work(work: Work, seconds: float) -> Throughput:
    """Times a kernel or path, after a first call that is not timed."""
    work.call()
    timer = Timer("call()", globals={"call": work.call}, num_threads=torch.get_num_threads())
    times = timer.blocked_autorange(min_run_time=seconds)
    return Throughput(work.name, times.median, times.iqr, work.documents, work.labels, work.bytes / 1e9)


def write_throughput(results: Sequence[Throughput], file: Path) -> None:
    """Writes a CSV file with a row for each result. It replaces an existing file in one step.

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
