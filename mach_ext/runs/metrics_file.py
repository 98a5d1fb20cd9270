"""``metrics.json`` of a run: results by split and by attack, kept as long as they are of the same weights."""

from __future__ import annotations

import contextlib
import logging
import zlib
from pathlib import Path
from typing import Any

from mach_ext import data, nn
from mach_ext.data.records import ANY, read_record
from mach_ext.runs.arguments import spell
from mach_ext.runs.files import write_record
from mach_ext.runs.record import weights_digest

log = logging.getLogger("mach_ext")


def output_folder(output: Path | None, folder: Path) -> Path:
    """Where results go: `output`, else the run's folder. What another run keeps of itself stays.

    Raises:
        ValueError: `output` is the folder of another run.
    """
    if output is None:
        return folder
    if (output / "model.json").exists() and output.resolve() != folder.resolve():
        raise ValueError(f"{spell('output')} must not be the folder of another run, got {output}")
    return output


def read_metrics(file: Path) -> dict[str, Any]:
    """Metrics that a file keeps. Those of a damaged or missing file are empty: it is written anew."""
    schema = {"seconds?": {"*": ANY}, "attacks?": {"*": ANY}, "*": ANY}
    with contextlib.suppress(ValueError, FileNotFoundError):
        kept: dict[str, Any] = read_record(file, "metrics", schema)
        return kept
    return {}


def write_metrics(
    file: Path,
    folder: Path,
    model: nn.MACH,
    dataset: data.Dataset,
    results: dict[str, Any],
    seconds: dict[str, float],
    former: dict[str, Any],
) -> None:
    """Writes metrics of the model in a folder: `results` by split, on top of `former` contents."""
    rounded = {stage: round(value, 3) for stage, value in seconds.items()}
    record = {
        **former,
        **results,
        "dataset": dataset.name,
        "path": str(dataset.path.absolute()),
        "model": model.configuration(),
        "weights": weights_digest(folder),
        "seconds": {**former.get("seconds", {}), **rounded},
    }
    write_record(file, record)
    log.info("metrics: %s", file)


def add_metrics(
    output: Path,
    folder: Path,
    model: nn.MACH,
    dataset: data.Dataset,
    results: dict[str, Any],
    seconds: dict[str, float],
    is_own: bool,
) -> None:
    """Writes metrics beside those that are kept; those of another dataset go into another file.

    Args:
        output: The folder written to.
        folder: The run's.
        model, dataset: What was measured on what.
        results: Metrics by split.
        seconds: By stage.
        is_own: Whether the dataset is the run's own.
    """
    file = output / ("metrics.json" if is_own else f"metrics-{dataset.name}.json")
    former = read_metrics(file)
    path = str(dataset.path.absolute())
    if not is_own and former.get("path", path) != path:  # another dataset of that name
        file = file.with_stem(f"{file.stem}-{zlib.crc32(path.encode()):08x}")
        former = read_metrics(file)
    if not _is_of(former, model, folder):
        former = {}
    write_metrics(file, folder, model, dataset, results, seconds, former)


def add_attack(output: Path, folder: Path, model: nn.MACH, name: str, entry: dict[str, Any]) -> None:
    """Writes an attack beside the metrics that are kept, unless those are of other weights."""
    file = output / "metrics.json"
    former = read_metrics(file)
    if former and not _is_of(former, model, folder):
        return
    attacks = {**former.get("attacks", {}), name: entry}
    weights = weights_digest(folder)
    write_record(file, {"model": model.configuration(), "weights": weights, **former, "attacks": attacks})


def _is_of(metrics: dict[str, Any], model: nn.MACH, folder: Path) -> bool:
    """Whether kept metrics are of these weights; older ones say only of which kind of model they are."""
    digest = weights_digest(folder)
    return metrics.get("model") == model.configuration() and metrics.get("weights", digest) == digest
