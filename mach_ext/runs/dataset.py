"""The dataset of a run, or another one, read with the model's columns. Its dev split is held out again."""

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
    model: nn.AnyMACH,
    folder: Path,
    dataset: str | os.PathLike[str] | None = None,
    *,
    svmlight_base: int | None = None,
    columns: data.Columns | None = None,
) -> data.Dataset:
    r"""Loads the run's own dataset, or another one, with the model's columns.

    A dev split is held out only if the documents are those of the training, in the same way as then.

    Args:
        model: The model of the run.
        folder: How messages call the run.
        dataset: Other data: a name or a folder as in `mach_ext.data.load`, or a file of documents with
            labels. None: the run's own dataset.
        svmlight_base: Number of the first feature in svmlight files, if the model does not keep it.
        columns: The model's columns. None: as `columns_of` returns them.

    Raises:
        ValueError: The model does not keep its dataset, the columns differ from the model's, or a file is
            bad.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> from mach_ext.runs import load_dataset
        >>> data = load_dataset(run.model, run.folder)
        >>> {name: len(split) for name, split in data.splits.items()}
        {'train': 36, 'dev': 4, 'test': 40}
    """
    record, argument = record_of(model), spell("dataset")
    if dataset is None and "dataset" not in record:
        raise ValueError(f"{folder}: the model does not say which dataset it was trained on; give {argument}")
    own = dataset is None or _same_place(record, dataset)
    name: str | os.PathLike[str] = record["dataset"] if dataset is None else dataset
    if dataset is None:
        if name in data.NAMES:  # the current folder may have a folder of this name, which does not count
            name = data.fetch(str(name))
        elif not Path(name).is_dir():
            raise ValueError(
                f"{folder}: was trained on {name}, where nothing is now; {argument} says where it is"
            )
    base: Any = svmlight_base
    if own and base is None:
        base = "auto"  # as in training, for an old model that does not keep the base
    try:
        columns = columns or columns_of(model)
        loaded = data.load(name, holdout=False, columns=columns, svmlight_base=base)
    except FileNotFoundError as error:
        if dataset is not None:
            raise
        raise FileNotFoundError(
            f"{error} ({folder} was trained on it; {spell('dataset')} names other data)"
        ) from None
    if loaded.dev is not None or not len(loaded.train):
        return loaded
    # A dev split is held out only if the documents are those of the training, and in the same way as then.
    # Of other documents nobody knows whether the model has seen them.
    if "train" not in record:  # an old model without checksums
        return data.hold_out(loaded) if own and record.get("holdout") else loaded
    split = data.hold_out(loaded) if record.get("holdout") else loaded
    if checksums(split.train) == record["train"]:
        return split
    if not own and not _is_training_data(model, loaded):
        return loaded
    remark = f"{loaded.path}: train is not as it was in training, so no dev split can be held out"
    return replace(loaded, remarks=(*loaded.remarks, remark))


def _same_place(record: dict[str, Any], dataset: str | os.PathLike[str]) -> bool:
    """Returns whether a dataset is the one that a run was trained on."""
    try:
        name = record["dataset"]
        place = data.fetch(name) if name in data.NAMES else name
        return os.path.samefile(data.locate(dataset)[0], place)
    except (OSError, ValueError, KeyError):
        return False


def _is_training_data(model: nn.AnyMACH, dataset: data.Dataset) -> bool:
    """Returns whether train has as many documents of each label as the model was trained on."""
    counts, labels = kept.label_counts(model.attachments, model.num_labels), dataset.train.Y
    return (
        counts is not None
        and labels.shape[0] == record_of(model).get("train_documents")
        and np.array_equal(counts, metrics.label_counts(labels))
    )


def split_of(dataset: data.Dataset, name: str) -> data.Split:
    """Returns a split by its name.

    Raises:
        ValueError: The dataset has no such split.
    """
    if name not in dataset.splits:
        there = ", ".join(dataset.splits)
        flags = f"{spell('split')}, {spell('dataset')}"
        raise ValueError(f"{dataset.path}: no {name} split; there are: {there} ({flags})")
    return dataset.splits[name]


def log_remarks(dataset: data.Dataset, svmlight_base: int | None) -> None:
    """Logs the remarks of the readers."""
    for remark in dataset.remarks:
        log.warning("%s", remark)
    if dataset.svmlight_base is None:
        log_no_svmlight(svmlight_base)


def log_no_svmlight(svmlight_base: int | None) -> None:
    """Logs that the number of the first feature was given but is not used."""
    if svmlight_base is not None:
        log.warning("no svmlight file is read; %s is ignored", spell("svmlight_base"))


def log_without_features(where: str, without: int, count: int, rest: str = "") -> None:
    """Logs that some documents have no features."""
    if without:
        share = f"{without:,} of {count:,} documents ({without / count:.1%})"
        log.warning("%s%s have no features%s", where, share, rest)


def sizes(dataset: data.Dataset) -> str:
    """Returns counts of documents, features and labels in words."""
    splits = ", ".join(f"{name} {len(split):,}" for name, split in dataset.splits.items())
    dense = f"{dataset.num_dense:,} dense features, " if dataset.num_dense else ""
    return f"{splits} documents; {dataset.num_features:,} features, {dense}{dataset.num_labels:,} labels"
