"""Writes datasets as folders."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mach_ext._memory import memory_errors
from mach_ext.data.atomic import new_folder
from mach_ext.data.dataset import Dataset
from mach_ext.data.dense import dense_file_of
from mach_ext.data.files import COMPRESSIONS, PathLike
from mach_ext.data.folders.files import PARTS
from mach_ext.data.formats.names import read_names
from mach_ext.data.formats.npz import write_npz
from mach_ext.data.formats.xmc import write_xmc
from mach_ext.data.json_text import write_json
from mach_ext.data.parsing import check_names


@memory_errors("free memory first, or split the data", "data.write_folder")
def write_folder(folder: PathLike, dataset: Dataset, *, format: str = "npz", compression: str = "") -> None:
    """Writes a dataset as a folder that `read_folder` reads. The folder appears whole or not at all.

    Args:
        folder: The folder to create. It must not exist.
        dataset: The dataset. A `dev` that was held out of train is written as a file of its own.
        format: "npz" or "xmc". Both keep every value exactly, and dense features as a npy file beside each
            split. Only "npz" keeps the texts, each on a line.
        compression: "", ".gz", ".xz" or ".bz2" for "xmc".

    Raises:
        FileExistsError: The folder exists.
        ValueError: The format or the compression is unknown.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scipy import sparse
        >>> from mach_ext.data import Dataset, Split, read_folder, write_folder
        >>> folder = Path(tempfile.mkdtemp()) / "eye"
        >>> write_folder(folder, Dataset("eye", folder, train=Split(sparse.eye(4), sparse.eye(4))))
        >>> read_folder(folder).num_labels
        4
    """
    folder = Path(folder)
    if format not in ("npz", "xmc"):
        raise ValueError(f"write_folder: format must be npz or xmc, got {format!r}")
    if compression not in ("", *COMPRESSIONS):
        raise ValueError(
            f"write_folder: compression must be one of {list(COMPRESSIONS)}, got {compression!r}"
        )
    if folder.exists():
        raise FileExistsError(f"{folder}: must not exist yet")
    with new_folder(folder) as temporary:
        for split, data in dataset.splits.items():
            if data.filtered is not None:
                pairs = zip(*data.filtered.nonzero(), strict=True)
                lines = [f"{document} {label}" for document, label in pairs]
                _write_lines(temporary / f"filter_labels_{split}.txt", lines)
            part = PARTS[split][0]
            documents = temporary / (f"{split}.txt{compression}" if format == "xmc" else f"X.{part}.npz")
            if data.dense is not None:
                np.save(dense_file_of(documents), np.asarray(data.dense), allow_pickle=False)
            if format == "xmc":
                write_xmc(documents, data.X, data.Y)
                continue
            write_npz(documents, data.X)
            write_npz(temporary / f"Y.{part}.npz", data.Y)
            if data.texts is not None:
                _write_lines(temporary / f"X.{part}.txt", data.texts)
        if dataset.label_names is not None:
            check_names(dataset.label_names, "write_folder: label_names", dataset.num_labels)
            _write_names(temporary / "labels.txt", dataset.label_names)
        if dataset.feature_names is not None:
            check_names(dataset.feature_names, "write_folder: feature_names", dataset.num_features)
            _write_names(temporary / "features.txt", dataset.feature_names)
        if dataset.vectorizer is not None:
            (temporary / "vectorizer.json").write_text(dataset.vectorizer.to_json(), encoding="utf-8")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes lines of text. Line breaks and other white space inside a line become single spaces."""
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")  # replaces lone surrogates


def _write_names(path: Path, names: Sequence[str]) -> None:
    """Writes names so that reading gives the same names.

    Plain lines are tried first, then numbered lines, and a JSON list at last.
    """
    plain = (f"{name}\n" for name in names)
    numbered = (f"{i}\t{name}\n" for i, name in enumerate(names))
    for lines in (plain, numbered):
        with contextlib.suppress(ValueError):  # UTF-8 cannot encode a name, or a name is read as a number
            path.write_text("".join(lines), encoding="utf-8", newline="\n")
            if read_names(path, len(names)) == list(names):
                return
    path.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), list(names))
