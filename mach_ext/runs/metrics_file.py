"""The file `metrics.json` of a run: results by split and by attack, as long as the weights stay the same."""

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
    """Returns the folder of results: `output`, or the run's folder. Files of another run are never replaced.

    Raises:
        ValueError: `output` is the folder of another run.
    """
    if output is None:
        return folder
    if (output / "model.json").exists() and output.resolve() != folder.resolve():
        raise ValueError(f"{spell('output')} must not be the folder of another run, got {output}")
    return output


def read_metrics(file: Path) -> dict[str, Any]:
    """Reads metrics from a file. The result is empty if the file is missing or damaged."""
    schema = {"seconds?": {"*": ANY}, "attacks?": {"*": ANY}, "*": ANY}
    with contextlib.suppress(ValueError, FileNotFoundError):
        kept: dict[str, Any] = read_record(file, "metrics", schema)
        return kept
    return {}


def write_metrics(
    file: Path,
    folder: Path,
    model: nn.AnyMACH,
    dataset: data.Dataset,
    results: dict[str, Any],
    seconds: dict[str, float],
    former: dict[str, Any],
) -> None:
    """Writes metrics of the model in a folder: `results` by split, added to the `former` content."""
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
    model: nn.AnyMACH,
    dataset: data.Dataset,
    results: dict[str, Any],
    seconds: dict[str, float],
    is_own: bool,
) -> None:
    """Adds metrics to those that the file has. Metrics of another dataset go to another file.

    Args:
        output: The folder to write to.
        folder: The run's folder.
        model: The measured model.
        dataset: The dataset that it was measured on.
        results: Metrics by split.
        seconds: Time of each stage in seconds.
        is_own: Whether the dataset is the run's own.
    """
    file = output / ("metrics.json" if is_own else f"metrics-{dataset.name}.json")
    former = read_metrics(file)
    path = str(dataset.path.absolute())
    if not is_own and former.get("path", path) != path:  # the file belongs to another dataset of this name
        file = file.with_stem(f"{file.stem}-{zlib.crc32(path.encode()):08x}")
        former = read_metrics(file)
    if not _is_of(former, model, folder):
        former = {}
    write_metrics(file, folder, model, dataset, results, seconds, former)


def add_attack(output: Path, folder: Path, model: nn.AnyMACH, name: str, entry: dict[str, Any]) -> None:
    """Adds an attack to the metrics of the file, unless these belong to other weights."""
    file = output / "metrics.json"
    former = read_metrics(file)
    if former and not _is_of(former, model, folder):
        return
    attacks = {**former.get("attacks", {}), name: entry}
    weights = weights_digest(folder)
    write_record(file, {"model": model.configuration(), "weights": weights, **former, "attacks": attacks})


def _is_of(metrics: dict[str, Any], model: nn.AnyMACH, folder: Path) -> bool:
    """Returns whether metrics belong to these weights. Old metrics only name the configuration of a model."""
    digest = weights_digest(folder)
    return metrics.get("model") == model.configuration() and metrics.get("weights", digest) == digest
