"""The dataset of a run: its own or another one, read by the model's columns, with its dev split held out."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mach_ext import data, metrics, nn
from mach_ext.data import attachments as kept
from mach_ext.runs.arguments import spell
from mach_ext.runs.record import checksums, columns_of, record_of

log = logging.getLogger("mach_ext")


def load_dataset(
    model: nn.MACH,
    folder: Path,
    dataset: str | os.PathLike[str] | None = None,
    *,
    svmlight_base: int | None = None,
) -> data.Dataset:
    """The run's own dataset, or another one; either is read by the model's columns.

    Args:
        model: from the run's folder.
        folder: how messages call the run.
        dataset: another one, as `mach_ext.data.load` takes it, or one file of documents with labels.
        svmlight_base: number of the first feature in svmlight files, where the model does not keep it.

    Raises:
        ValueError: the model does not say which dataset it is of; other columns than the model's; a bad file.
    """
    record, argument = record_of(model), spell("dataset")
    if dataset is None and "dataset" not in record:
        raise ValueError(f"{folder}: the model does not say which dataset it is of; give {argument}")
    own = dataset is None or _same_place(record, dataset)
    name: str | os.PathLike[str] = record["dataset"] if dataset is None else dataset
    if dataset is None:
        if name in data.NAMES:  # whatever stands under this name where the command is run
            name = data.fetch(str(name))
        elif not Path(name).is_dir():
            raise ValueError(
                f"{folder}: was trained on {name}, where nothing is now; {argument} says where it is"
            )
    base: Any = svmlight_base
    if own and base is None:
        base = "auto"  # as in training, for a model of before the base was kept
    try:
        loaded = data.load(name, holdout=False, columns=columns_of(model), svmlight_base=base)
    except FileNotFoundError as error:
        if dataset is not None:
            raise
        raise FileNotFoundError(
            f"{error} ({folder} was trained on it; {spell('dataset')} names other data)"
        ) from None
    if loaded.dev is not None or not len(loaded.train):
        return loaded
    # A dev split is held out only of the documents of the training, and only as it was held out then: of
    # others nobody knows whether the model has seen them.
    if "train" not in record:  # of before checksums were kept
        return data.hold_out(loaded) if own and record.get("holdout") else loaded
    split = data.hold_out(loaded) if record.get("holdout") else loaded
    if checksums(split.train) == record["train"]:
        return split
    if not own and not _is_training_data(model, loaded):
        return loaded
    remark = f"{loaded.path}: train is not as it was in training, so no dev split can be held out of it"
    return replace(loaded, remarks=(*loaded.remarks, remark))


def _same_place(record: dict[str, Any], dataset: str | os.PathLike[str]) -> bool:
    try:
        name = record["dataset"]
        place = data.fetch(name) if name in data.NAMES else name
        return os.path.samefile(data.locate(dataset)[0], place)
    except (OSError, ValueError, KeyError):
        return False


def _is_training_data(model: nn.MACH, dataset: data.Dataset) -> bool:
    """Whether its train split has as many documents of each label as the model was trained on."""
    counts, labels = kept.label_counts(model.attachments, model.num_labels), dataset.train.Y
    return (
        counts is not None
        and labels.shape[0] == record_of(model).get("train_documents")
        and np.array_equal(counts, metrics.label_counts(labels))
    )


def split_of(dataset: data.Dataset, name: str) -> data.Split:
    """A split by its name.

    Raises:
        ValueError: The dataset has no such split.
    """
    if name not in dataset.splits:
        there = ", ".join(dataset.splits)
        flags = f"{spell('split')}, {spell('dataset')}"
        raise ValueError(f"{dataset.path}: no {name} split; there are: {there} ({flags})")
    return dataset.splits[name]


def log_remarks(dataset: data.Dataset, svmlight_base: int | None) -> None:
    """Logs what the readers had to say."""
    for remark in dataset.remarks:
        log.warning("%s", remark)
    if dataset.svmlight_base is None:
        log_no_svmlight(svmlight_base)


def log_no_svmlight(svmlight_base: int | None) -> None:
    """Logs that the number of the first feature, where it was given, has no use."""
    if svmlight_base is not None:
        log.warning("no svmlight file is read; %s is passed over", spell("svmlight_base"))


def log_without_features(where: str, without: int, count: int, rest: str = "") -> None:
    """Logs that some documents have no features."""
    if without:
        share = f"{without:,} of {count:,} documents ({without / count:.1%})"
        log.warning("%s%s have no features%s", where, share, rest)


def sizes(dataset: data.Dataset) -> str:
    """Counts of documents, features and labels in words."""
    splits = ", ".join(f"{name} {len(split):,}" for name, split in dataset.splits.items())
    return f"{splits} documents; {dataset.num_features:,} features, {dataset.num_labels:,} labels"
