"""Files of raw text with labels: JSON lines, or lines of text beside a label matrix."""

from __future__ import annotations

import itertools

from mach_ext.data.dataset import Split
from mach_ext.data.folders.files import SplitFiles
from mach_ext.data.folders.reading import Reading
from mach_ext.data.folders.vectors import read_labels, read_texts
from mach_ext.data.formats.jsonl import read_jsonl
from mach_ext.data.formats.names import Names, label_matrix, name_key
from mach_ext.data.matrices import Csr
from mach_ext.data.text import Vectorizer


def read_text_lines(reading: Reading, files: dict[str, SplitFiles]) -> dict[str, Split]:
    """Reads splits of text lines and label matrices."""
    labels = {split: read_labels(reading, each) for split, each in files.items()}
    texts = {split: read_texts(each.X, labels[split].shape[0]) for split, each in files.items()}
    return _vectorise(reading, texts, labels)


def read_json_lines(reading: Reading, files: dict[str, SplitFiles]) -> dict[str, Split]:
    """Reads splits of JSON lines."""
    documents = {split: read_jsonl(each.X) for split, each in files.items()}
    given: dict[str, str] = {}  # each name in the spelling that occurs first
    for name in itertools.chain.from_iterable(row for _, rows in documents.values() for row in rows):
        given.setdefault(name_key(name), name)
    if reading.columns is not None:
        if reading.columns.label_names is None:
            raise ValueError(f"{reading.folder}: the model has no label names, which JSON lines need")
        names = list(reading.columns.label_names)
        known = {*names, *map(name_key, names)}
        names += sorted(form for key, form in given.items() if key not in known and form not in known)
    elif reading.labels is not None:
        names = reading.labels.names
    else:
        names = sorted(given.values())
        reading.labels = Names(reading.folder, names, None)
    labels = {split: label_matrix(rows, names, files[split].X) for split, (_, rows) in documents.items()}
    return _vectorise(reading, {split: texts for split, (texts, _) in documents.items()}, labels)


def _vectorise(reading: Reading, texts: dict[str, list[str]], labels: dict[str, Csr]) -> dict[str, Split]:
    """Turns the texts of all splits into features."""
    if reading.columns is not None:
        if reading.columns.vectorizer is None:
            raise ValueError(f"{reading.folder}: the model was trained on vectors, not on text")
        reading.vectorizer = reading.columns.vectorizer
    elif reading.vectorizer is None:
        reading.vectorizer = Vectorizer.fit(texts["train"])
    return {
        split: Split(reading.vectorizer.transform(each), labels[split], each) for split, each in texts.items()
    }
