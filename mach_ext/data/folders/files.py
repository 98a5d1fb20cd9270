"""The files of a folder that make a dataset, by their names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mach_ext.data.files import COMPRESSIONS
from mach_ext.data.sources import check_regular

SVMLIGHT = (".svm", ".svmlight", ".libsvm")

PARTS = {"train": ("trn", "train"), "dev": ("dev", "val"), "test": ("tst", "test")}


def find_file(folder: Path, *names: str) -> Path | None:
    """The one file of these names, plain or compressed.

    Raises:
        ValueError: two of them, or one that is no regular file: a pipe, a folder, a link to nothing.
    """
    found = [folder / (name + end) for name in names for end in ("", *COMPRESSIONS)]
    found = [path for path in found if os.path.lexists(path)]
    for path in found:
        if not path.exists():
            raise ValueError(f"{path}: must be a regular file, got a link to nothing")
        check_regular(path)
    if len(found) > 1:
        there = ", ".join(str(path.relative_to(folder)) for path in found)
        raise ValueError(f"{folder}: must have one of these, got {there}")
    return found[0] if found else None


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split; which of them there are is its format."""

    kind: str
    X: Path  # documents: with their labels, as a matrix, or as lines of text
    Y: Path | None = None
    texts: Path | None = None
    filtered: Path | None = None


def files_of_split(folder: Path, split: str) -> list[SplitFiles]:
    """The files of a split, once for each format that is there."""
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
        SplitFiles(kind, path, labels, texts, filtered)
        for kind, path in documents.items()
        if path is not None
    ]


def filter_of(folder: Path, split: str) -> Path | None:
    return find_file(folder, *(f"filter_labels_{part}.txt" for part in dict.fromkeys((split, *PARTS[split]))))
