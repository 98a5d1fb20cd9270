"""Names of columns in a folder: they are read, counted and compared with a model's names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mach_ext.data.dataset import Columns
from mach_ext.data.folders.files import find_file
from mach_ext.data.folders.reading import Reading
from mach_ext.data.formats.names import Names, name_key, read_numbered_names
from mach_ext.data.parsing import quote
from mach_ext.data.sources import read_input
from mach_ext.data.text import Vectorizer

_TEXTS = ("jsonl", "text lines")  # formats that a vectorizer turns into columns


def find_names(reading: Reading) -> None:
    """Reads the names of labels and features and the vectorizer, as far as the folder has them."""
    for what, choices in (
        ("labels", ("labels.txt", "output-items.txt", "Y.txt", "Yf.txt")),
        ("features", ("features.txt", "Xf.txt")),
    ):
        path = find_file(reading.folder, *choices) or find_file(reading.folder, f"{what}.json")
        if path is not None:
            names = read_numbered_names(path)
            setattr(reading, what, names)
            if names.first is not None and reading.columns is None:
                reading.remarks.append(f"{path}: {what} are numbered from {names.first}")
    if (path := find_file(reading.folder, "vectorizer.json")) is not None:
        reading.vectorizer = Vectorizer.from_json(read_input(path), source=str(path))


def check_names(reading: Reading, D: int, L: int) -> None:
    """Refuses names and vectorizers whose number of entries differs from the number of columns."""
    for names, count in ((reading.labels, L), (reading.features, D)):
        if names is not None:
            names.check_count(count)
    if reading.vectorizer is not None and len(reading.vectorizer.vocabulary) != D:
        got = len(reading.vectorizer.vocabulary)
        raise ValueError(f"{reading.folder / 'vectorizer.json'}: must have D = {D} words, got {got}")


def check_model_names(reading: Reading, columns: Columns, kind: str) -> None:
    """Refuses names of columns that differ from the model's names."""
    if kind != "jsonl":
        _check_same_names("label", reading.labels, columns.label_names)
    if kind in _TEXTS:
        return
    _check_same_names("feature", reading.features, columns.feature_names)
    ours, theirs = columns.vectorizer, reading.vectorizer
    if ours is None or theirs is None:
        return
    if ours.vocabulary != theirs.vocabulary or not np.array_equal(ours.idf, theirs.idf):
        file = reading.folder / "vectorizer.json"
        raise ValueError(f"{file}: must equal the model's vectorizer, which made its columns")


def _check_same_names(what: str, names: Names | None, kept: Sequence[str] | None) -> None:
    """Refuses a column that has another name in the folder than in the model."""
    if names is None or kept is None:
        return
    for column, (theirs, ours) in enumerate(zip(names.names, kept, strict=False)):
        if theirs != ours and name_key(theirs) != name_key(ours):
            raise ValueError(
                f"{names.path}: {what} {column} must be the model's {quote(ours)}, got {quote(theirs)}"
            )
