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
from mach_ext.data.folders.files import PARTS, SVMLIGHT, SplitFiles, files_of_split, filter_of
from mach_ext.data.folders.reader import Reader
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
    found: dict[str, dict[str, SplitFiles]] = {}
    for split in PARTS:
        for files in files_of_split(folder, split):
            found.setdefault(files.kind, {})[split] = files
    everything = found
    if columns is None or any("train" in files for files in found.values()):
        found = {kind: files for kind, files in found.items() if "train" in files}
    if not found:
        there = sorted(path.name for path in folder.iterdir())[:20]
        if columns is not None:
            raise FileNotFoundError(
                f"{folder}: must have a train, dev or test file, as train.txt, got {there}"
            )
        raise FileNotFoundError(
            f"{folder}: must have train.txt (XMC), train.svm, train.jsonl, X.trn.npz with Y.trn.npz, or "
            f"trn_X_Xf.txt with trn_X_Y.txt, also as .gz, .xz or .bz2, got {there}"
        )
    if len(found) > 1:
        what = "train" if columns is None or any("train" in files for files in found.values()) else "data"
        raise ValueError(f"{folder}: {what} must be there in one format, got {', '.join(sorted(found))}")
    ((_, files_of),) = found.items()
    reader = Reader(folder, columns, svmlight_base, num_threads)
    for kind, files_of_kind in everything.items():
        reader.remarks += [
            f"{left.X}: is left out, because train is in another format"
            for split, left in files_of_kind.items()
            if kind not in found and split not in files_of
        ]
    return _dataset(reader, files_of, folder, name or folder.resolve().name)


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
    reader = Reader(path.parent, columns, svmlight_base, num_threads)
    return _dataset(reader, {"test": SplitFiles(kind, path, filtered=filtered)}, path, path.name)


def read_svmlight_documents(
    path: Path, columns: Columns, *, svmlight_base: int | None = None, num_threads: int = 0
) -> Csr:
    """The documents of one svmlight file, for a model; its labels are not looked at."""
    reader = Reader(path.parent, columns, svmlight_base, num_threads, documents_only=True)
    return reader.read({"test": SplitFiles("svmlight", path)})["test"].X


def _dataset(reader: Reader, files: dict[str, SplitFiles], path: Path, name: str) -> Dataset:
    splits, columns = reader.read(files), reader.columns
    if columns is not None and "train" not in splits:
        D, L = columns.num_features, columns.num_labels
        splits["train"] = Split(
            scipy.sparse.csr_matrix((0, D), dtype=np.float32), scipy.sparse.csr_matrix((0, L))
        )
    labels: Sequence[str] | None = None if reader.labels is None else reader.labels.names
    features: Sequence[str] | None = None if reader.features is None else reader.features.names
    if features is None and reader.vectorizer is not None:
        features = reader.vectorizer.vocabulary
    if columns is not None:
        labels, features = columns.label_names or labels, columns.feature_names or features
    return Dataset(
        name=name,
        path=path,
        label_names=labels,
        feature_names=features,
        vectorizer=reader.vectorizer,
        dev_rule=f"the file {files['dev'].X.name}" if "dev" in files else "none",
        svmlight_base=reader.svmlight_base,
        svmlight_label_base=reader.svmlight_label_base,
        remarks=tuple(reader.remarks),
        **splits,
    )
