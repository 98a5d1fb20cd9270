"""Finds the files of a folder that make a dataset, by their names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mach_ext.data.dense import DENSE, dense_file_of
from mach_ext.data.files import COMPRESSIONS
from mach_ext.data.sources import check_regular

SVMLIGHT = (".svm", ".svmlight", ".libsvm")

PARTS = {"train": ("trn", "train"), "dev": ("dev", "val"), "test": ("tst", "test")}


def find_file(folder: Path, *names: str) -> Path | None:
    """Returns the file that has one of these names, plain or compressed. None: there is no such file.

    Raises:
        ValueError: There are two such files, or the file is a pipe, a folder or a link to nothing.
    """
    paths = [folder / (name + end) for name in names for end in ("", *COMPRESSIONS)]
    paths = [path for path in paths if os.path.lexists(path)]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: must be a regular file, got a link to nothing")
        check_regular(path)
    if len(paths) > 1:
        there = ", ".join(str(path.relative_to(folder)) for path in paths)
        raise ValueError(f"{folder}: must have only one of these files, got {there}")
    return paths[0] if paths else None


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split, and the format `kind` that they follow from."""

    kind: str
    X: Path  # the documents, with their labels, as a matrix, or as lines of text
    Y: Path | None = None
    texts: Path | None = None
    filtered: Path | None = None
    dense: Path | None = None


def _files_of_split(folder: Path, split: str) -> list[SplitFiles]:
    """Returns the files of a split, once for each format that the folder has."""
    parts = PARTS[split]

    def find(*patterns: str) -> Path | None:
        return find_file(folder, *(pattern.format(part) for pattern in patterns for part in parts))

    matrix = find("X.{}.npz", "tfidf-attnxml/X.{}.npz", "{}_X_Xf.txt", "{}_X_Xf.npz")
    labels = find("Y.{}.npz", "{}_X_Y.txt", "{}_X_Y.npz")
    texts = find("X.{}.txt", "{}_X.txt", "raw/{}_X.txt")
    if matrix is not None and labels is None:
        other = matrix.name.replace("_X_Xf", "_X_Y") if "_X_" in matrix.name else f"Y{matrix.name[1:]}"
        raise FileNotFoundError(f"{folder}: {matrix.name} must come with {other}")
    if labels is not None and matrix is None and texts is None:
        other = labels.name.replace("_X_Y", "_X_Xf") if "_X_" in labels.name else f"X{labels.name[1:]}"
        raise FileNotFoundError(f"{folder}: {labels.name} must come with {other}, or with texts")
    filtered = filter_of(folder, split)
    documents = {
        "xmc": find_file(folder, f"{split}.txt"),
        "svmlight": find_file(folder, *(split + suffix for suffix in SVMLIGHT)),
        "jsonl": find_file(folder, f"{split}.jsonl"),
        "npz": matrix,
        "text lines": texts if matrix is None and labels is not None else None,
    }
    return [
        SplitFiles(kind, path, labels, texts, filtered, _dense_of(folder, split, path))
        for kind, path in documents.items()
        if path is not None
    ]


def _dense_of(folder: Path, split: str, documents: Path) -> Path | None:
    """Returns the file of a split's dense features. None: there is none."""
    names = [f"{stem}{part}{DENSE}" for part in PARTS[split] for stem in ("X.", "")]
    names.append(str(dense_file_of(documents).relative_to(folder)))
    return find_file(folder, *dict.fromkeys(names))


def choose_files(folder: Path, *, for_model: bool) -> tuple[dict[str, SplitFiles], list[str]]:
    """Chooses the files of each split, all in the same format.

    Args:
        folder: The folder.
        for_model: Whether the data are read for a model. Then no train file is needed.

    Returns:
        The files of each split, and remarks on files that are ignored.

    Raises:
        FileNotFoundError: There is no train file, or no file at all if the data are read for a model.
        ValueError: There are files of two formats.
    """
    by_format: dict[str, dict[str, SplitFiles]] = {}
    for split in PARTS:
        for files in _files_of_split(folder, split):
            by_format.setdefault(files.kind, {})[split] = files
    with_train = {kind: files for kind, files in by_format.items() if "train" in files}
    candidates = with_train if with_train or not for_model else by_format
    if not candidates:
        raise FileNotFoundError(_nothing_there(folder, for_model))
    if len(candidates) > 1:
        what = "train" if with_train else "data"
        raise ValueError(
            f"{folder}: all {what} files must have the same format, got {', '.join(sorted(candidates))}"
        )
    ((kind, chosen),) = candidates.items()
    remarks = [
        f"{left.X}: is left out, because train is in another format"
        for other, files in by_format.items()
        for split, left in files.items()
        if other != kind and split not in chosen
    ]
    of_splits = {files.dense for each in by_format.values() for files in each.values()}
    remarks += [
        f"{path}: is left out, because no documents of a split stand beside it"
        for path in sorted(folder.glob(f"*{DENSE}*"))
        if path not in of_splits
    ]
    return chosen, remarks


def _nothing_there(folder: Path, for_model: bool) -> str:
    """Returns the message about a folder without the necessary files."""
    there = sorted(path.name for path in folder.iterdir())[:20]
    if for_model:
        return f"{folder}: must have a train, dev or test file, as train.txt, got {there}"
    return (
        f"{folder}: must have train.txt (XMC), train.svm, train.jsonl, X.trn.npz with Y.trn.npz, or "
        f"trn_X_Xf.txt with trn_X_Y.txt, also as .gz, .xz or .bz2, got {there}"
    )


def filter_of(folder: Path, split: str) -> Path | None:
    """Returns the file of pairs that metrics must not count as answers. None: there is none."""
    return find_file(folder, *(f"filter_labels_{part}.txt" for part in dict.fromkeys((split, *PARTS[split]))))
