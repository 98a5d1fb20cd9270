"""The record of a run: what its model keeps of the training data, so that later commands use the same.

A run's model carries these attachments. `run.json` holds the dataset, how its files were read, and constants
of metrics. `labels.json` holds the names of labels. `features.json` or `vectorizer.json` holds the names of
features. `label_counts.npy` says how many training documents each label has. `text_encoder.json` names the
encoder that made the dense features of texts.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import zlib
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
from mach_ext.distributed.part import ModelPart
from mach_ext.runs.arguments import as_propensity, spell
from mach_ext.runs.text_encoders import RunEncoder, attachment, encoder_of


def attachments(
    dataset: data.Dataset,
    *,
    settings: dict[str, Any] | None = None,
    propensity: tuple[float, float] | None = None,
) -> dict[str, bytes]:
    r"""Returns what later commands need of the data, for `MACH.attachments`.

    The module `mach_ext.runs.record` describes each file.

    Args:
        dataset: The training data.
        settings: Settings of the training, for the record.
        propensity: A and B of the propensity model. None: those of the field for the dataset's name.

    Returns:
        Contents of files by name.

    Raises:
        ValueError: The number of names differs from the number of columns.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> from mach_ext.data import load
        >>> from mach_ext.runs import attachments
        >>> sorted(attachments(load("pets")))
        ['label_counts.npy', 'labels.json', 'run.json', 'vectorizer.json']
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
    files = attachment(dataset)
    if files:  # a training that goes on looks into this record alone
        run["text_encoder"] = json.loads(files["text_encoder.json"])
    files["run.json"] = json.dumps(run, indent=2).encode()
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
    """Refuses names whose number differs from the number of columns."""
    D, L = dataset.num_features, dataset.num_labels
    for what, names, count in (("label", dataset.label_names, L), ("feature", dataset.feature_names, D)):
        if names is not None:
            check_names(names, f"{dataset.path}: {what}_names", count)


def checksums(split: data.Split) -> list[int]:
    """Returns checksums of documents and labels. They depend on the order of the rows.

    Embeddings of texts count by their texts, so that no split is embedded for its checksum.
    """
    if not isinstance(split.dense, data.TextEmbeddings):
        return [training.checksum(split.documents), training.checksum(split.Y)]
    documents = training.checksum(split.X)
    for text in split.dense.texts:
        documents = zlib.crc32(text.encode("utf-8", "surrogatepass") + b"\n", documents)
    return [documents, training.checksum(split.Y)]


def record_of(model: nn.AnyMACH) -> dict[str, Any]:
    r"""Returns the content of a model's `run.json`. The result is empty if the model has none.

    Args:
        model: The model.

    Raises:
        ValueError: The attachment is not a record of a run.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> from mach_ext.runs import record_of
        >>> record = record_of(run.model)
        >>> record["name"], record["train_documents"]
        ('pets', 40)
    """
    return kept.run_record(model.attachments)


def columns_of(model: nn.AnyMACH, text_encoder: RunEncoder | None = None) -> data.Columns:
    r"""Returns the meaning of the model's columns. Every file for the model is read with it.

    Args:
        model: The model.
        text_encoder: The encoder that makes the dense features of texts. None: the one that the model keeps
            the record of, if there is one.

    Raises:
        ValueError: An attachment is damaged or does not fit the model's sizes.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> from mach_ext.runs import columns_of
        >>> columns_of(run.model).label_names
        ['cat', 'dog']
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
        model.num_dense,
        text_encoder or encoder_of(model.attachments, model.num_dense, device=model.bucket_bias.device),
    )


def refuse_to_replace(folder: Path, model: nn.AnyMACH | None = None) -> None:
    """Refuses a folder that holds a run already.

    A compressed copy of the run of `model` may be replaced.

    Args:
        folder: The folder.
        model: The model of a run, or None.

    Raises:
        ValueError: The folder holds a model or a checkpoint. The message names its data.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.runs import refuse_to_replace
        >>> refuse_to_replace(Path("new"))  # there is nothing to replace
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
    hint = f"; {spell('resume', value=True)} continues the training" if unfinished else ""
    overwrite, output = spell("overwrite", value=True), spell("output")
    raise ValueError(f"{folder}: holds {held}; {overwrite} replaces it, {output} names another folder{hint}")


def holds_run(folder: Path, part: ModelPart) -> bool:
    """Returns whether a folder holds the whole model of a part, of the same data and settings."""
    return _model_and_run(folder) == (part.configuration(), record_of(part.model))


def kept_propensity(folder: Path) -> tuple[float, float] | None:
    r"""Returns A and B of the propensity model that the run in a folder was started with, or None.

    Args:
        folder: The run's folder.

    Raises:
        ValueError: The record of the run is damaged.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> from mach_ext.runs import kept_propensity
        >>> kept_propensity(run.folder)
        (0.55, 1.5)
    """
    started = training.checkpoint_record(folder).get("run") or _model_and_run(folder)[1]
    check_record(started, f"{folder}: its run record", kept.RUN)
    propensity = started.get("propensity")
    return None if propensity is None else (propensity[0], propensity[1])


def weights_digest(folder: Path) -> str | None:
    r"""Returns the SHA-256 of the weights that a folder's model record names. None: it cannot be read.

    Args:
        folder: The run's folder.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> from mach_ext.runs import weights_digest
        >>> len(weights_digest(run.folder)), weights_digest(Path("empty"))
        (64, None)
    """
    with contextlib.suppress(OSError, ValueError):
        return str(read_model_record(folder)["weights"]["sha256"])
    return None


def _model_and_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the constructor arguments and `run.json` of the model in a folder, or empty dictionaries."""
    with contextlib.suppress(OSError, ValueError):
        record = read_model_record(folder)
        if "model" in record and "run.json" in record["attachments"]:
            with open_file(folder / record["attachments"]["run.json"]) as file:
                return record["model"], parse_record(file.read(), "run.json", kept.RUN)
    return {}, {}
