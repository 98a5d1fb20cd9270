"""What a model keeps of its data, as files in memory: the one place where they become names and numbers.

``run.json`` says what the model was trained on, ``labels.json`` and ``features.json`` are lists of names,
``vectorizer.json`` has the features' names, too, and ``label_counts.npy`` is how many training documents each
label has. A model can have any of them, and each is checked against the model's sizes.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import PathLike
from .formats import read_array
from .records import Field, check_fields, check_names, is_count, is_number, parse_json, parse_record, shown
from .text import Vectorizer

Attachments = Mapping[str, bytes]  # by name


def _source(name: str) -> str:
    return f"{name} of the model"


# ------------------------------------------------------------------------------------------------ names


def label_names(attachments: Attachments, num_labels: int) -> list[str] | None:
    """Names of all labels; None where the model keeps none.

    Raises:
        ValueError: not L names; says which attachment and entry.
    """
    return _names(attachments, "labels.json", num_labels)


def feature_names(attachments: Attachments, num_features: int) -> list[str] | None:
    """Names of all features: a vectorizer's words, or a list's entries; None where the model keeps neither.

    Raises:
        ValueError: as :func:`label_names`.
    """
    kept = vectorizer(attachments, num_features)
    return _names(attachments, "features.json", num_features) if kept is None else kept.vocabulary


def vectorizer(attachments: Attachments, num_features: int) -> Vectorizer | None:
    """What makes features of texts; None where the model keeps none.

    Raises:
        ValueError: not a vectorizer of D words.
    """
    name = "vectorizer.json"
    if name not in attachments:
        return None
    kept = _parsed_vectorizer(attachments[name])
    check_names(kept.vocabulary, _source(name), num_features)
    return kept


def _names(attachments: Attachments, name: str, count: int) -> list[str] | None:
    if name not in attachments:
        return None
    names = _parsed_names(attachments[name], name)
    if len(names) != count:
        check_names(names, _source(name), count)
    return names


@functools.lru_cache(maxsize=4)
def _parsed_names(content: bytes, name: str) -> list[str]:
    names: list[str] = parse_json(content, _source(name), "a JSON list of names")
    check_names(names, _source(name))
    return names


@functools.lru_cache(maxsize=2)
def _parsed_vectorizer(content: bytes) -> Vectorizer:
    return Vectorizer.from_json(content, source=_source("vectorizer.json"))


# -------------------------------------------------------------------------------------------- run record


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_reader(value: Any) -> bool:
    bases = ("svmlight_base", "svmlight_label_base")
    return _is_object(value) and all(
        value.get(base) is None or (is_count(value[base]) and value[base] <= 1) for base in bases
    )


def _is_propensity(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, list) or len(value) != 2:
        return False
    A, B = value
    return is_number(A) and is_number(B) and A >= 0 and B > 0


def _are_checksums(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value))


RUN_FIELDS = {
    "dataset": Field("a name or a path", _is_text, needed=True),
    "name": Field("a string", _is_text),
    "holdout": Field("true or false", lambda value: isinstance(value, bool)),
    "train": Field("two checksums", _are_checksums),
    "settings": Field("an object", _is_object),
    "reader": Field("an object whose svmlight bases are 0, 1 or null", _is_reader),
    "propensity": Field("A from 0 up and B above 0, or null", _is_propensity),
    "train_documents": Field("a count", is_count),
    "threads": Field("a count", is_count),
    "versions": Field("an object", _is_object),
}


def run_record(attachments: Attachments) -> dict[str, Any]:
    """``run.json``; empty where the model has none.

    Raises:
        ValueError: not such a record; says which entry must be what.
    """
    if "run.json" not in attachments:
        return {}
    return parse_run(attachments["run.json"], _source("run.json"))


def parse_run(content: str | bytes, source: str) -> dict[str, Any]:
    """A run's record, of an attachment or a file.

    Raises:
        ValueError: as :func:`run_record`.
    """
    return parse_record(content, source, "the record of a run", RUN_FIELDS)


def check_run(value: Any, source: PathLike) -> dict[str, Any]:
    """The same of a value that was JSON."""
    try:
        return check_fields(value, RUN_FIELDS)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{source}: must hold the record of a run, got: {error.args[0]}") from None


def label_counts(attachments: Attachments, num_labels: int) -> NDArray[np.integer[Any]] | None:
    """How many training documents each label has [L]; None where the model does not say.

    Raises:
        ValueError: no array of L counts.
    """
    name = "label_counts.npy"
    if name not in attachments:
        return None
    content = attachments[name]
    try:
        counts = read_array(io.BytesIO(content), len(content))
    except Exception as error:  # NumPy stumbles over damage in many ways
        raise ValueError(f"{_source(name)}: must be an array of counts, got: {str(error)[:200]}") from None
    if counts.dtype.kind not in "iu" or counts.shape != (num_labels,):
        got = f"{counts.dtype} {shown(counts.shape)}"
        raise ValueError(f"{_source(name)}: must be L={num_labels} whole numbers, got {got}")
    if (counts < 0).any():
        raise ValueError(f"{_source(name)}: counts must not be negative, got {counts.min()}")
    return counts
