"""The record of a run: what its model keeps of the data it was made of, so that later commands use the same.

A run's model carries these attachments: ``run.json`` (the dataset, how its files were read, constants of
metrics), ``labels.json``, ``features.json`` or ``vectorizer.json`` (names), and ``label_counts.npy`` (how
many training documents each label has).
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mach_ext import data, metrics, nn, training
from mach_ext._model_folder import read_model_record
from mach_ext._version import __version__
from mach_ext.data import attachments as kept
from mach_ext.data.files import open_file
from mach_ext.data.parsing import check_names
from mach_ext.data.records import check_record, parse_record
from mach_ext.runs.arguments import as_propensity, spell


def attachments(
    dataset: data.Dataset,
    *,
    settings: dict[str, Any] | None = None,
    propensity: tuple[float, float] | None = None,
) -> dict[str, bytes]:
    """What later commands need, kept with the model: see the top of this module.

    Args:
        dataset: what the model is trained on.
        settings: of the training, for the record.
        propensity: A and B of the propensity model; None: the field's for a dataset of this name.

    Raises:
        ValueError: not as many names as columns.
    """
    _check_names(dataset)
    registered = dataset.name == dataset.path.name and data.is_registered(dataset.path)
    run = {
        "dataset": dataset.name if registered else str(dataset.path.absolute()),
        "name": dataset.name,
        "holdout": dataset.dev_rule == data.HOLDOUT_RULE,
        "train": checksums(dataset.train),
        "settings": settings or {},
        "reader": {
            "svmlight_base": dataset.svmlight_base, "svmlight_label_base": dataset.svmlight_label_base
        },
        "propensity": as_propensity(propensity) or metrics.propensity_constants(dataset.name),
        "train_documents": dataset.all_train_labels.shape[0],
        "threads": torch.get_num_threads(),
        "versions": {
            "mach_ext": __version__, "torch": torch.__version__, "python": platform.python_version()
        },
    }  # fmt: skip
    files = {"run.json": json.dumps(run, indent=2).encode()}
    if dataset.label_names is not None:
        files["labels.json"] = json.dumps(list(dataset.label_names)).encode()
    if dataset.vectorizer is not None:
        files["vectorizer.json"] = dataset.vectorizer.to_json().encode()
    elif dataset.feature_names is not None:
        files["features.json"] = json.dumps(list(dataset.feature_names)).encode()
    counts = io.BytesIO()
    np.save(counts, metrics.label_counts(dataset.all_train_labels).astype(np.int32))
    return {**files, "label_counts.npy": counts.getvalue()}


def _check_names(dataset: data.Dataset) -> None:
    D, L = dataset.num_features, dataset.num_labels
    for what, names, count in (("label", dataset.label_names, L), ("feature", dataset.feature_names, D)):
        if names is not None:
            check_names(names, f"{dataset.path}: {what}_names", count)


def checksums(split: data.Split) -> list[int]:
    """Of documents and labels; other ones where a row stands in another place."""
    return [training.checksum(split.X), training.checksum(split.Y)]


def record_of(model: nn.MACH) -> dict[str, Any]:
    """``run.json`` of a model; empty where it has none.

    Raises:
        ValueError: it is no record of a run.
    """
    return kept.run_record(model.attachments)


def columns_of(model: nn.MACH) -> data.Columns:
    """What the model's columns mean: every file that is read for it is read by this.

    Raises:
        ValueError: an attachment of the model that is damaged, or of another size than the model.
    """
    D, L = model.num_features, model.num_labels
    reader = record_of(model).get("reader", {})
    return data.Columns(
        D,
        L,
        reader.get("svmlight_base"),
        reader.get("svmlight_label_base"),
        kept.label_names(model.attachments, L),
        kept.feature_names(model.attachments, D),
        kept.vectorizer(model.attachments, D),
    )


def refuse_to_replace(folder: Path, model: nn.MACH | None = None) -> None:
    """Raises where a folder holds a run already; a compressed copy of the run of `model` may be replaced.

    Raises:
        ValueError: the folder holds a model or a checkpoint; the message says of which data.
    """
    checkpoint = training.has_checkpoint(folder)
    if not checkpoint and not (folder / "model.json").exists():
        return
    configuration, record = _model_and_run(folder)
    copied = model is not None and nn.is_compressed(folder)
    if copied and model and (configuration, record) == (model.configuration(), record_of(model)):
        return
    started = training.checkpoint_record(folder)
    unfinished = checkpoint and started.get("tensors", "") is not None
    held = "a run that was not finished" if unfinished else "a model"
    if record:
        held = f"a run on {record.get('dataset')}, seed {configuration.get('seed')}"
    hint = f"; {spell('resume', value=True)} goes on with the same training" if unfinished else ""
    overwrite, output = spell("overwrite", value=True), spell("output")
    raise ValueError(f"{folder}: holds {held}; {overwrite} replaces it, {output} names another folder{hint}")


def kept_propensity(folder: Path) -> tuple[float, float] | None:
    """A and B that the run in a folder was started with."""
    started = training.checkpoint_record(folder).get("run") or _model_and_run(folder)[1]
    check_record(started, f"{folder}: its run record", kept.RUN)
    propensity = started.get("propensity")
    return None if propensity is None else (propensity[0], propensity[1])


def weights_digest(folder: Path) -> str | None:
    """SHA-256 of the weights that a folder's model record names; None where it can't be read."""
    with contextlib.suppress(OSError, ValueError):
        return str(read_model_record(folder)["weights"]["sha256"])
    return None


def _model_and_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments and ``run.json`` of the model in a folder; empty where they can't be read."""
    with contextlib.suppress(OSError, ValueError):
        record = read_model_record(folder)
        if "run.json" in record["attachments"]:
            with open_file(folder / record["attachments"]["run.json"]) as file:
                return record["model"], parse_record(file.read(), "run.json", kept.RUN)
    return {}, {}
