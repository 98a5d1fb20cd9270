"""Reads datasets from a folder or from a single file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import scipy

from mach_ext._memory import memory_errors
from mach_ext.data.dataset import Columns, Dataset, Split
from mach_ext.data.dense import dense_file_of
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
    r"""Reads a dataset from a folder. The page of `mach_ext.data.folders` says which files it holds.

    Texts become features through a `Vectorizer` that is fitted on train. Labels that are given by name are
    those of `labels.txt`. Without this file all labels that occur are sorted. If the data are read for a
    model, the model's columns are used instead, and train may be missing.

    Args:
        folder: The folder.
        name: The dataset's name. None: the folder's name.
        columns: Columns of the model that the data are read for. None: the data define the columns. With a
            text encoder, the dense features are `TextEmbeddings`.
        svmlight_base: Number of the first feature in svmlight files, 0 or 1. None: the model's number.
            Without a model "auto" is the default. "auto": 1 if no file has a feature 0, else 0.
        num_threads: Threads of the text parser. 0: all cores.

    Raises:
        FileNotFoundError: There is no train file, or no file at all if the data are read for a model.
        FileNotFoundError: A split lacks its file of dense features, which other splits or the model have.
        ValueError: There are files of two formats, sizes disagree, or a file is bad.
        ValueError: The data are read for a model, and neither the model nor the data say where features
            start.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import read_folder
        >>> Path("pets").mkdir()
        >>> lines = '{"text": "a big cat", "labels": ["cat"]}\n{"text": "a big dog", "labels": ["dog"]}\n'
        >>> _ = Path("pets/train.jsonl").write_text(lines)
        >>> data = read_folder("pets")
        >>> data.label_names, data.feature_names
        (['cat', 'dog'], ['a', 'big'])
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
    r"""Reads a file of documents with labels for a model. It becomes the test split of a dataset.

    Args:
        path: JSON lines, XMC text or svmlight, according to its suffix. The dense features of `later.svm`
            are in `later.dense.npy`.
        columns: The model's columns.
        svmlight_base: Number of the first feature in svmlight files, as in `read_folder`. It must agree with
            the model's number if the model has one.
        num_threads: Threads of the text parser. 0: all cores.

    Raises:
        ValueError: The suffix is unknown, or the file is bad.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import Columns, read_file
        >>> _ = Path("later.svm").write_text("1 1:0.5\n")
        >>> test = read_file("later.svm", Columns(num_features=4, num_labels=3, svmlight_base=1)).test
        >>> test.X.shape, test.Y.toarray()
        ((1, 4), array([[0., 1., 0.]], dtype=float32))
    """
    path = Path(path)
    kinds = {".jsonl": "jsonl", ".txt": "xmc", **dict.fromkeys(SVMLIGHT, "svmlight")}
    kind = kinds.get(suffix_of(path))
    if kind is None:
        raise ValueError(f"{path}: a file of documents and labels must end in {', '.join(kinds)}")
    split = next((split for split in PARTS if path.name.startswith(f"{split}.")), None)
    filtered = None if split is None else filter_of(path.parent, split)
    reading = Reading(path.parent, columns, svmlight_base, num_threads)
    beside = dense_file_of(path)
    files = SplitFiles(kind, path, filtered=filtered, dense=beside if beside.exists() else None)
    return _dataset(reading, {"test": files}, path, path.name)


def read_svmlight_documents(
    path: Path, columns: Columns, *, svmlight_base: int | None = None, num_threads: int = 0
) -> Csr:
    r"""Reads the documents of an svmlight file for a model. Its labels are ignored.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.
        columns: The model's columns.
        svmlight_base: Number of the first feature, as in `read_folder`.
        num_threads: Threads of the text parser. 0: all cores.

    Returns:
        Features [N, D], CSR float32.

    Raises:
        ValueError: The file is bad or has more features than the model.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import Columns
        >>> from mach_ext.data.folders import read_svmlight_documents
        >>> _ = Path("later.svm").write_text("-1 2:0.5\n")
        >>> read_svmlight_documents(Path("later.svm"), Columns(3, 2, svmlight_base=1)).toarray()
        array([[0. , 0.5, 0. ]], dtype=float32)
    """
    reading = Reading(path.parent, columns, svmlight_base, num_threads, documents_only=True)
    return read_splits(reading, {"test": SplitFiles("svmlight", path)})["test"].X


def _dataset(reading: Reading, files: dict[str, SplitFiles], path: Path, name: str) -> Dataset:
    """Makes a dataset of the files of each split."""
    splits, columns = read_splits(reading, files), reading.columns
    if columns is not None and "train" not in splits:
        D, L = columns.num_features, columns.num_labels
        splits["train"] = Split(
            scipy.sparse.csr_matrix((0, D), dtype=np.float32),
            scipy.sparse.csr_matrix((0, L)),
            dense=np.empty((0, columns.num_dense), np.float32) if columns.num_dense else None,
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
