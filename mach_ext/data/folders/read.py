"""Datasets read from a folder or from one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import scipy

from mach_ext._memory import memory_errors
from mach_ext.data.dataset import Columns, Dataset, Split
from mach_ext.data.files import PathLike, suffix_of
from mach_ext.data.folders.files import PARTS, SVMLIGHT, SplitFiles, choose_files, filter_of
from mach_ext.data.folders.reader import read_splits
from mach_ext.data.folders.reading import Reading
from mach_ext.data.matrices import Csr


@memory_errors("free memory first, or split the data", "data.read_folder")
def read_folder(
    folder: PathLike,
    *,
    name: str | None = None,
    columns: Columns | None = None,
    svmlight_base: int | Literal["auto"] | None = None,
    num_threads: int = 0,
) -> Dataset:
    """Reads a folder as described at the top of `mach_ext.data.folders`; ``dev`` and ``test`` may be missing.

    Texts become features through a :class:`Vectorizer` fitted on train; labels by name are those of
    ``labels.txt``, else all that occur, sorted. For a model, its own columns count instead, and ``train`` may
    be missing, too.

    Args:
        folder: the folder.
        name: the dataset's name; default: the folder's.
        columns: of the model that the data are for; None: of these data.
        svmlight_base: number of the first feature in svmlight files; None: as the model keeps it, else 1
            where no file has a feature 0. A model that keeps none has to be told; "auto" takes that rule.
        num_threads: as in :func:`read_xmc`.

    Raises:
        FileNotFoundError: no train file; for a model: no file.
        ValueError: files of two formats, sizes that disagree, or a bad file.
    """
    folder = Path(folder)
    files, remarks = choose_files(folder, for_model=columns is not None)
    reading = Reading(folder, columns, svmlight_base, num_threads, remarks=remarks)
    return _dataset(reading, files, folder, name or folder.resolve().name)


@memory_errors("free memory first, or split the data", "data.read_file")
def read_file(
    path: PathLike,
    columns: Columns,
    *,
    svmlight_base: int | Literal["auto"] | None = None,
    num_threads: int = 0,
) -> Dataset:
    """Reads one file of documents with their labels for a model, as the test split of a dataset.

    Args:
        path: JSON lines, XMC text or svmlight, by its suffix.
        columns: of the model.
        svmlight_base: as in :func:`read_folder`; where the model keeps one, that is the one.
        num_threads: as in :func:`read_xmc`.

    Raises:
        ValueError: another suffix, or a bad file.
    """
    path = Path(path)
    kinds = {".jsonl": "jsonl", ".txt": "xmc", **dict.fromkeys(SVMLIGHT, "svmlight")}
    kind = kinds.get(suffix_of(path))
    if kind is None:
        raise ValueError(f"{path}: a file of documents and labels must end in {', '.join(kinds)}")
    split = next((split for split in PARTS if path.name.startswith(f"{split}.")), None)
    filtered = None if split is None else filter_of(path.parent, split)
    reading = Reading(path.parent, columns, svmlight_base, num_threads)
    return _dataset(reading, {"test": SplitFiles(kind, path, filtered=filtered)}, path, path.name)


def read_svmlight_documents(
    path: Path, columns: Columns, *, svmlight_base: int | None = None, num_threads: int = 0
) -> Csr:
    """The documents of one svmlight file, for a model; its labels are not looked at."""
    reading = Reading(path.parent, columns, svmlight_base, num_threads, documents_only=True)
    return read_splits(reading, {"test": SplitFiles("svmlight", path)})["test"].X


def _dataset(reading: Reading, files: dict[str, SplitFiles], path: Path, name: str) -> Dataset:
    splits, columns = read_splits(reading, files), reading.columns
    if columns is not None and "train" not in splits:
        D, L = columns.num_features, columns.num_labels
        splits["train"] = Split(
            scipy.sparse.csr_matrix((0, D), dtype=np.float32), scipy.sparse.csr_matrix((0, L))
        )
    labels: Sequence[str] | None = None if reading.labels is None else reading.labels.names
    features: Sequence[str] | None = None if reading.features is None else reading.features.names
    if features is None and reading.vectorizer is not None:
        features = reading.vectorizer.vocabulary
    if columns is not None:
        labels, features = columns.label_names or labels, columns.feature_names or features
    return Dataset(
        name=name,
        path=path,
        label_names=labels,
        feature_names=features,
        vectorizer=reading.vectorizer,
        dev_rule=f"the file {files['dev'].X.name}" if "dev" in files else "none",
        svmlight_base=reading.svmlight_base,
        svmlight_label_base=reading.svmlight_label_base,
        remarks=tuple(reading.remarks),
        **splits,
    )
