"""Reads what a model keeps of its training data. These attachments are files in memory.

`run.json` says what the model was trained on. `labels.json` and `features.json` are lists of names.
`vectorizer.json` also has the names of the features. `label_counts.npy` says how many training documents each
label has. `text_encoder.json` says which encoder made the dense features of texts. A model can have any of
them. Each is checked against the model's sizes.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext.data.formats.npz import read_array
from mach_ext.data.parsing import quote
from mach_ext.data.records import ANY, parse_record
from mach_ext.data.text import Vectorizer

Attachments = Mapping[str, bytes]  # by name


def _source(name: str) -> str:
    """Returns how messages call an attachment."""
    return f"{name} of the model"


# ------------------------------------------------------------------------------------------------ names


def label_names(attachments: Attachments, num_labels: int) -> list[str] | None:
    """Returns the names of all labels. None: the model keeps none.

    Raises:
        ValueError: The attachment does not hold L names. The message gives the attachment and the entry.
    """
    return _names(attachments, "labels.json", num_labels)


def feature_names(attachments: Attachments, num_features: int) -> list[str] | None:
    """Returns the names of all features. None: the model keeps none.

    The names are the words of the model's vectorizer. A model without a vectorizer can have a list of names.

    Raises:
        ValueError: The attachment does not hold D names. The message gives the attachment and the entry.
    """
    kept = vectorizer(attachments, num_features)
    return _names(attachments, "features.json", num_features) if kept is None else kept.vocabulary


def vectorizer(attachments: Attachments, num_features: int) -> Vectorizer | None:
    """Returns the vectorizer that turns texts into the model's features. None: the model keeps none.

    Raises:
        ValueError: The attachment is not a vectorizer of D words.
    """
    name = "vectorizer.json"
    if name not in attachments:
        return None
    kept = _parse_vectorizer(attachments[name])
    _check_count(kept.vocabulary, name, num_features)
    return kept


def _names(attachments: Attachments, name: str, count: int) -> list[str] | None:
    """Returns a checked list of names, or None if the attachment is missing."""
    if name not in attachments:
        return None
    names = _parse_names(attachments[name], name)
    _check_count(names, name, count)
    return names


def _check_count(names: list[str], name: str, count: int) -> None:
    """Refuses a list of names that has another length."""
    if len(names) != count:
        raise ValueError(f"{_source(name)}: must have {count} names, got {len(names)}")


@functools.lru_cache(maxsize=4)
def _parse_names(content: bytes, name: str) -> list[str]:
    """Parses a list of names. The last few results are kept."""
    names: list[str] = parse_record(content, _source(name), [str])
    return names


@functools.lru_cache(maxsize=2)
def _parse_vectorizer(content: bytes) -> Vectorizer:
    """Parses a vectorizer. The last few results are kept."""
    return Vectorizer.from_json(content, source=_source("vectorizer.json"))


# ------------------------------------------------------------------------------------------ text encoder

# The schema of `text_encoder.json`, which `mach_ext.text_encoder.TextEncoder.record` writes.
TEXT_ENCODER = {
    "name": str,
    "revision": (str, type(None)),
    "digest": re.compile(r"[0-9a-f]{64}"),
    "max_length": range(1, 2**31),
    "num_dense": range(1, 2**31),
    "*": ANY,
}
RUN_ENCODER = re.compile(r"text_encoder-[0-9a-f]{12}")  # the folder of a trained encoder in a run


def text_encoder(attachments: Attachments, num_dense: int) -> dict[str, Any] | None:
    """Returns the record of the text encoder that made the model's dense features. None: there is none.

    Raises:
        ValueError: The attachment is no such record, or the encoder has not E dense features.
    """
    name = "text_encoder.json"
    if name not in attachments:
        return None
    record: dict[str, Any] = parse_record(attachments[name], _source(name), TEXT_ENCODER)
    if record["num_dense"] != num_dense:
        raise ValueError(f"{_source(name)}: num_dense must be E={num_dense}, got {record['num_dense']}")
    return record


def run_encoder(attachments: Attachments) -> str | None:
    """Returns the name of the trained encoder's folder in the run's folder. None: the run has none.

    Raises:
        ValueError: The attachment is no record of an encoder, or the name leads elsewhere.
    """
    name = "text_encoder.json"
    if name not in attachments:
        return None
    record: dict[str, Any] = parse_record(attachments[name], _source(name), TEXT_ENCODER)
    if "base" not in record:
        return None
    folder: str = record["name"]
    if not RUN_ENCODER.fullmatch(folder):
        rule = "name must be that of a trained encoder in the run's folder"
        raise ValueError(f"{_source(name)}: {rule}, got {quote(folder)}")
    return folder


def check_encoder(op: str, attachments: Attachments, num_dense: int, encoder: Any) -> None:
    """Refuses another encoder than the one that the model's dense features come from, if the model names it.

    Raises:
        ValueError: The digests differ.
    """
    record = text_encoder(attachments, num_dense)
    if record is None or not hasattr(encoder, "digest"):
        return
    if (digest := encoder.digest) != record["digest"]:
        raise ValueError(
            f"{op}: encoder must be the one of the model, {record['name']} with digest {record['digest']}, "
            f"got digest {digest}"
        )


# -------------------------------------------------------------------------------------------- run record


_BASE = ({0, 1}, type(None))
_COUNT = range(2**62)

# The schema of `run.json`. Older runs have fewer entries.
RUN = {
    "dataset?": str,
    "name?": str,
    "holdout?": bool,
    "train?": [int, int],
    "settings?": {"*": ANY},
    "reader?": {"svmlight_base?": _BASE, "svmlight_label_base?": _BASE},
    "propensity?": ([float, float], type(None)),
    "train_documents?": _COUNT,
    "text_encoder?": {"name": str, "digest": str, "*": ANY},
    "threads?": _COUNT,
    "versions?": {"*": ANY},
    "*": ANY,
}


def run_record(attachments: Attachments) -> dict[str, Any]:
    """Returns the content of `run.json`. The result is empty if the model has none.

    Raises:
        ValueError: The attachment does not suit the schema. The message says which entry breaks which rule.
    """
    if "run.json" not in attachments:
        return {}
    record: dict[str, Any] = parse_record(attachments["run.json"], _source("run.json"), RUN)
    return record


def label_counts(attachments: Attachments, num_labels: int) -> NDArray[np.integer[Any]] | None:
    """Returns how many training documents each label has [L]. None: the model does not keep the counts.

    Raises:
        ValueError: The attachment is not an array of L counts.
    """
    name = "label_counts.npy"
    if name not in attachments:
        return None
    content = attachments[name]
    try:
        counts = read_array(io.BytesIO(content), len(content))
    except Exception as error:  # NumPy raises many kinds of exceptions for a damaged array
        raise ValueError(f"{_source(name)}: must be an array of counts, got: {str(error)[:200]}") from None
    if counts.dtype.kind not in "iu" or counts.shape != (num_labels,):
        got = f"{counts.dtype} {quote(counts.shape)}"
        raise ValueError(f"{_source(name)}: must be L={num_labels} whole numbers, got {got}")
    if (counts < 0).any():
        raise ValueError(f"{_source(name)}: counts must not be negative, got {counts.min()}")
    return counts
