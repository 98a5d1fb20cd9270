"""The best labels of documents by name, block by block, from texts, a file, a stream or a split."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mach_ext import data, nn
from mach_ext.distributed.documents import shared_by_documents
from mach_ext.runs.arguments import spell, takes_text
from mach_ext.runs.dataset import log, log_no_svmlight, log_without_features


class Prediction(NamedTuple):
    r"""A predicted label of a document.

    Attributes:
        label: Name of the label, or its number in digits if the model keeps no names.
        score: Score on the scale of the model's merge. NaN: the document has no features.
        id: Number of the label.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> (best,) = run.predict(["a dog in the garden"], k=1)[0]
        >>> best.label, best.id
        ('dog', 1)
    """

    label: str
    score: float
    id: int


@dataclass(frozen=True)
class Answer:
    r"""The model's answer for a document.

    Attributes:
        features: How many features of the document the model knows. Dense features that are not 0 count as
            well.
        labels: The best labels, best first. A document without features gets those of an empty document. If
            the model takes dense features, each document has an answer of its own.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> (block,) = run.iter_predict(texts=["a dog in the garden", "xyz"], k=1)
        >>> [(answer.features, answer.labels[0].label) for answer in block]
        [(2, 'dog'), (0, 'dog')]
    """

    features: int
    labels: list[Prediction]


def checked_texts(texts: Any, columns: data.Columns) -> Iterator[str]:
    """Yields texts one by one. A plain string is a single text.

    Raises:
        TypeError: There is something else among them.
        ValueError: The model takes no texts.
    """
    takes_text(columns, "texts")
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"predict: texts must be strings, got {type(texts).__name__}")
    return map(_checked_text, texts)


def _checked_text(text: Any) -> str:
    """Returns a text, and refuses anything else."""
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
    dense: Any = None,
) -> Iterator[Any]:
    """Yields blocks of documents from exactly one source: texts, a file or a binary stream.

    A block is a CSR matrix [n, D], or a `HybridMatrix` for a model with dense features.

    Args:
        columns: The model's columns.
        texts: Documents as texts.
        file: A file that `mach_ext.data.iter_documents` reads.
        stream: A stream that `mach_ext.data.stream_documents` reads.
        format: "text" or "jsonl", for a stream or a file of any name.
        svmlight_base: Number of the first feature in svmlight files, if the model does not keep it.
        dense: The dense features of the documents, a matrix or a npy file, as in `iter_documents`.
    """
    if file is not None:
        remarks: list[str] = []
        yield from data.iter_documents(
            file, columns, svmlight_base=svmlight_base, remarks=remarks, format=format, dense=dense
        )
        for remark in remarks:
            log.warning("%s", remark)
        return
    log_no_svmlight(svmlight_base)
    if texts is not None:
        yield from data.iter_vectors(texts, columns, dense=dense)
    else:
        takes_text(columns, "stream")
        if not hasattr(stream, "read1"):
            raise TypeError(
                "predict: stream must be binary and buffered, as sys.stdin.buffer is, got "
                f"{type(stream).__name__}"
            )
        yield from data.stream_documents(stream, columns, format=format, dense=dense)


def matrix(X: Any, dense: Any, num_dense: int) -> Any:
    """Returns documents as a checked matrix. Dense features that are given join them as a `HybridMatrix`.

    Raises:
        TypeError: X is no matrix.
        ValueError: X is not valid, or the dense features do not fit.
    """
    if dense is None:
        return X if isinstance(X, data.HybridMatrix) else data.check_csr(X, "predict: X")
    if isinstance(X, data.HybridMatrix):
        raise ValueError("predict: X has dense features already, so dense must not be given")
    if not num_dense:
        raise ValueError("predict: the model takes no dense features, so dense must not be given")
    if isinstance(dense, (str, os.PathLike)):
        dense = data.read_dense(dense)
    return data.HybridMatrix(data.check_csr(X, "predict: X"), dense)


def rows(X: Any, block: int = 4096) -> Iterator[Any]:
    """Yields blocks of the rows of a matrix."""
    return (X[start : start + block] for start in range(0, X.shape[0], block))


def check_source(
    sources: Sequence[Any], split: Any, dataset: Any, format: str | None, dense: Any = None
) -> None:
    """Refuses none or several of texts, X, file, stream and split, and what does not apply to the source."""
    texts, X, file, stream = sources
    given = [each for each in (texts, X, file, stream, split) if each is not None]
    if len(given) != 1:
        raise ValueError(f"predict: needs one of texts, X, file, stream, split, got {len(given)}")
    if dataset is not None and split is None:
        raise ValueError(f"{spell('dataset')} needs {spell('split')}")
    if dense is not None and split is not None:
        raise ValueError(f"{spell('dense')} is not for {spell('split')}, whose files stand in the dataset")
    if format is not None and file is None and stream is None:
        raise ValueError("predict: format is for file and stream")


def answers(
    model: nn.AnyMACH, names: Sequence[str], blocks: Iterable[Any], k: int, precision: str | None = None,
    share: bool = True,
) -> Iterator[list[Answer]]:  # fmt: skip
    """Yields answers block by block, as they are computed. Memory does not grow with N.

    Processes that work together share the documents of a block, unless `share` is false.
    """
    documents = unknown = 0
    has_dense = model.num_dense > 0  # then no document is empty: dense features of 0 are numbers like others
    model, options = nn.rounded_model(model, precision), nn.precision_option(precision)

    def predict(X: Any, k: int) -> Any:
        return model.predict(X, k, **options)

    ask = shared_by_documents(model, predict) if share else predict
    for X in blocks:
        scores, labels = ask(X, k)
        block = []
        features = data.row_features(X).tolist()
        for count, row_scores, row_labels in zip(features, scores.tolist(), labels.tolist(), strict=True):
            pairs = zip(row_labels, row_scores, strict=True)
            known = count or has_dense
            best = [Prediction(names[label], score if known else math.nan, label) for label, score in pairs]
            block.append(Answer(count, best))
        documents += len(block)
        unknown += 0 if has_dense else features.count(0)
        yield block
    rest = " that the model knows. Their labels are those of an empty document, without scores"
    log_without_features("", unknown, documents, rest)
