"""The best labels of documents by name: of texts, a file, a stream or a split, block by block."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mach_ext import data, nn
from mach_ext.runs.arguments import takes_text
from mach_ext.runs.dataset import log, log_no_svmlight, log_without_features


class Prediction(NamedTuple):
    """One label of a document.

    Attributes:
        label: Its name; its number in digits where the model keeps no names.
        score: On the scale of the model's merge. NaN for a document without features.
        id: Its number.
    """

    label: str
    score: float
    id: int


@dataclass(frozen=True)
class Answer:
    """What the model says of one document.

    Attributes:
        features: How many of its features the model knows.
        labels: The best labels, best first. Of a document without features those of an empty document.
    """

    features: int
    labels: list[Prediction]


def checked_texts(texts: Any, columns: data.Columns) -> Iterator[str]:
    """Texts one by one; a plain string is one.

    Raises:
        TypeError: Something else is among them.
        ValueError: The model takes no texts.
    """
    takes_text(columns, "texts")
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"predict: texts must be strings, got {type(texts).__name__}")
    return map(_checked_text, texts)


def _checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"predict: texts must be strings, got {type(text).__name__}")
    return text


def documents(
    columns: data.Columns,
    *,
    texts: Iterable[str] | None = None,
    file: str | os.PathLike[str] | None = None,
    stream: Any = None,
    format: str | None = None,
    svmlight_base: int | None = None,
) -> Iterator[Any]:
    """Blocks of documents [n, D] as CSR, from exactly one of texts, a file or a binary stream.

    Args:
        columns: What the model's columns mean.
        texts: Documents as texts.
        file: As `mach_ext.data.iter_documents` reads it.
        stream: As `mach_ext.data.stream_documents` reads it.
        format: "text" or "jsonl", of a stream or a file of any name.
        svmlight_base: Number of the first feature in svmlight files, where the model does not keep it.
    """
    if file is not None:
        remarks: list[str] = []
        yield from data.iter_documents(
            file, columns, svmlight_base=svmlight_base, remarks=remarks, format=format
        )
        for remark in remarks:
            log.warning("%s", remark)
        return
    log_no_svmlight(svmlight_base)
    if texts is not None:
        yield from data.iter_vectors(texts, columns)
    else:
        takes_text(columns, "stream")
        if not hasattr(stream, "read1"):
            raise TypeError(
                "predict: stream must be binary and buffered, as sys.stdin.buffer is, got "
                f"{type(stream).__name__}"
            )
        yield from data.stream_documents(stream, columns, format=format)


def rows(X: Any, block: int = 4096) -> Iterator[Any]:
    """Blocks of the rows of a matrix."""
    return (X[start : start + block] for start in range(0, X.shape[0], block))


def answers(model: nn.MACH, names: Sequence[str], blocks: Iterable[Any], k: int) -> Iterator[list[Answer]]:
    """Answers block by block, as they are computed: memory does not grow with the number of documents."""
    documents = unknown = 0
    for X in blocks:
        scores, labels = model.predict(X, k)
        block = []
        features = data.row_features(X).tolist()
        for count, row_scores, row_labels in zip(features, scores.tolist(), labels.tolist(), strict=True):
            pairs = zip(row_labels, row_scores, strict=True)
            best = [Prediction(names[label], score if count else math.nan, label) for label, score in pairs]
            block.append(Answer(count, best))
        documents += len(block)
        unknown += features.count(0)
        yield block
    rest = " that the model knows. Their labels are those of an empty document, without scores"
    log_without_features("", unknown, documents, rest)
