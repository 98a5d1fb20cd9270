"""The run folder: what a trained model keeps of the data it was made of, so that later commands use the same.

A run's model carries these attachments: ``run.json`` (the dataset, how its files were read, constants of
metrics), ``labels.json``, ``features.json`` or ``vectorizer.json`` (names), and ``label_counts.npy`` (how
many training documents each label has).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext import data, metrics, nn, training
from mach_ext._model_folder import read_model_record
from mach_ext._version import __version__
from mach_ext.data import attachments as kept
from mach_ext.data.files import open_file
from mach_ext.data.parsing import check_names
from mach_ext.data.records import check_record, parse_record
from mach_ext.metrics import KS, RECALL_KS
from mach_ext.neighbors import Neighbors

CANDIDATES = 200  # labels that neighbours re-rank


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
        "train": _checksums(dataset.train),
        "settings": settings or {},
        "reader": {
            "svmlight_base": dataset.svmlight_base, "svmlight_label_base": dataset.svmlight_label_base
        },
        "propensity": propensity or metrics.propensity_constants(dataset.name),
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


def _checksums(split: data.Split) -> list[int]:
    """Of documents and labels; other ones where a row stands in another place."""
    return [training.checksum(split.X), training.checksum(split.Y)]


def record_of(model: nn.MACH) -> dict[str, Any]:
    """``run.json`` of a model; empty where it has none.

    Raises:
        ValueError: it is no record of a run.
    """
    return kept.run_record(model.attachments)


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
    hint = "; --resume goes on with the same training" if unfinished else ""
    raise ValueError(f"{folder}: holds {held}; --overwrite replaces it, --output names another folder{hint}")


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
    record = record_of(model)
    if dataset is None and "dataset" not in record:
        raise ValueError(f"{folder}: the model does not say which dataset it is of; give --dataset")
    own = dataset is None or _same_place(record, dataset)
    name: str | os.PathLike[str] = record["dataset"] if dataset is None else dataset
    if dataset is None:
        if name in data.NAMES:  # whatever stands under this name where the command is run
            name = data.fetch(str(name))
        elif not Path(name).is_dir():
            raise ValueError(
                f"{folder}: was trained on {name}, where nothing is now; --dataset says where it is"
            )
    base: Any = svmlight_base
    if own and base is None:
        base = "auto"  # as in training, for a model of before the base was kept
    try:
        loaded = data.load(name, holdout=False, columns=columns_of(model), svmlight_base=base)
    except FileNotFoundError as error:
        if dataset is not None:
            raise
        raise FileNotFoundError(f"{error} ({folder} was trained on it; --dataset names other data)") from None
    if loaded.dev is not None or not len(loaded.train):
        return loaded
    # A dev split is held out only of the documents of the training, and only as it was held out then: of
    # others nobody knows whether the model has seen them.
    if "train" not in record:  # of before checksums were kept
        return data.hold_out(loaded) if own and record.get("holdout") else loaded
    split = data.hold_out(loaded) if record.get("holdout") else loaded
    if _checksums(split.train) == record["train"]:
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
    counts, labels = _label_counts(model), dataset.train.Y
    return (
        counts is not None
        and labels.shape[0] == record_of(model).get("train_documents")
        and np.array_equal(counts, metrics.label_counts(labels))
    )


def _label_counts(model: nn.MACH) -> NDArray[np.integer[Any]] | None:
    return kept.label_counts(model.attachments, model.num_labels)


@dataclass(frozen=True)
class TrainingLabels:
    """How often labels occur in training: what propensities and frequency bands are made of."""

    counts: NDArray[np.integer[Any]]  # [L]
    documents: int
    A: float
    B: float

    @classmethod
    def of(
        cls, model: nn.MACH, dataset: data.Dataset, propensity: tuple[float, float] | None = None
    ) -> TrainingLabels:
        """As the model keeps them, all of train; a model of before that kept them has the dataset's.

        Args:
            model: the model.
            dataset: what it is asked about.
            propensity: A and B; None: those that the run keeps, else the field's for the dataset's name.
        """
        record = record_of(model)
        name = record.get("name", dataset.name)
        A, B = propensity or record.get("propensity") or metrics.propensity_constants(name)
        counts = _label_counts(model)
        if counts is not None and "train_documents" in record:
            return cls(counts, record["train_documents"], A, B)
        labels = dataset.all_train_labels
        return cls(metrics.label_counts(labels), labels.shape[0], A, B)

    def inverse_propensity(self, unseen: int = 0) -> NDArray[np.float64] | None:
        """[L + unseen]; None with fewer than 3 documents, for which the model's constant has no value."""
        if self.documents < 3:
            return None
        counts = np.pad(self.counts, (0, unseen))
        return metrics.inverse_propensity_of_counts(counts, self.documents, self.A, self.B)

    def bands(self, unseen: int = 0) -> dict[str, NDArray[np.bool_]]:
        """Frequency bands of the labels, [L + unseen] each; none where no training document is known."""
        if self.documents == 0:
            return {}
        return metrics.frequency_bands_of_counts(np.pad(self.counts, (0, unseen)))

    def as_dict(self) -> dict[str, Any]:
        """The constants and the number of documents, ready for JSON."""
        return {"A": self.A, "B": self.B, "documents": self.documents}


def evaluate(
    model: nn.MACH,
    dataset: data.Dataset,
    split: str,
    *,
    neighbors: Neighbors | None = None,
    propensity: tuple[float, float] | None = None,
    ks: Sequence[int] = KS,
    recall_ks: Sequence[int] = RECALL_KS,
) -> dict[str, Any]:
    """Metrics of a split, overall and, under "bands", by how many training documents a label has.

    Labels that the model does not know count as misses. Answers that a filter file excludes do not count.

    Args:
        model: the model.
        dataset: read by the model's columns.
        split: "train", "dev" or "test".
        neighbors: re-rank the model's best labels by these.
        propensity: A and B of the propensity model; None: as the run keeps them.
        ks: of P, nDCG, PSP, PSnDCG.
        recall_ks: of R.

    Returns:
        Metrics by name; under "bands" the same for each band; under "propensity" A, B and how many training
        documents they were used with.
    """
    if split not in dataset.splits:
        raise ValueError(f"{dataset.path}: no {split} split; there are: {', '.join(dataset.splits)}")
    documents = dataset.splits[split]
    truth = documents.truth
    frequencies = TrainingLabels.of(model, dataset, propensity)
    unseen = truth.shape[1] - model.num_labels
    q = frequencies.inverse_propensity(unseen)  # before the work: A and B can be too large
    k = max((*ks, *recall_ks), default=0)
    labels = training.answers(model, documents.X, k, documents.filtered, _rerank(model, neighbors))
    result: dict[str, Any] = metrics.evaluate(truth, labels, ks, recall_ks, q)
    result["bands"] = metrics.evaluate_by_band(truth, labels, frequencies.bands(unseen), ks, recall_ks, q)
    return {**result, "propensity": frequencies.as_dict()}


def _rerank(model: nn.MACH, neighbors: Neighbors | None) -> Any:
    if neighbors is None:
        return None

    def labels(X: Any, k: int) -> NDArray[np.integer[Any]]:
        candidates = min(max(CANDIDATES, k), model.num_labels)
        return neighbors.rerank(X, *model.predict(X, candidates))[1]

    return labels
