"""svmlight files: read with their ids as written, then shifted to columns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import scipy

import mach_ext._C as _C
from mach_ext._memory import memory_errors
from mach_ext.data.dataset import Split
from mach_ext.data.files import PathLike
from mach_ext.data.formats._parser import split_of, utf8_path
from mach_ext.data.matrices import Csr, widen
from mach_ext.data.sources import iter_lines, read_input, shortage_advice


@memory_errors("free memory first, or split the data", "data.read_svmlight")
def read_svmlight(
    paths: Sequence[PathLike], *, zero_based: bool | Literal["auto"] = "auto", num_threads: int = 0
) -> list[Split]:
    """Reads svmlight files (``l1,l2 idx:value ...``, ``#`` comments, ``qid:n`` ignored) of one dataset.

    D and L are the largest over the files, plus one. Labels are ids, taken as written.

    Args:
        paths: the files, plain or .gz, .xz, .bz2.
        zero_based: whether the first feature is 0 or 1; "auto" takes 1 where no file has a feature 0, as
            scikit-learn does.
        num_threads: as in :func:`read_xmc`.

    Raises:
        ValueError: with file, line, rule and what came.
    """
    splits = [parse_svmlight(path, num_threads=num_threads) for path in paths]
    base = int(counts_from_one(split.X for split in splits)) if zero_based == "auto" else int(not zero_based)
    splits = [shift_svmlight(path, split, base) for path, split in zip(paths, splits, strict=True)]
    D = max(split.X.shape[1] for split in splits)
    L = max(split.Y.shape[1] for split in splits)
    return [Split(widen(split.X, D), widen(split.Y, L)) for split in splits]


def parse_svmlight(
    path: PathLike, *, num_features: int | None = None, num_threads: int = 0, with_labels: bool = True
) -> Split:
    """One svmlight file with all ids as written; with ``num_features``, features must be below it.

    Without labels whatever stands in their place is passed over, such as -1 and +1.
    """
    bound: dict[str, Any] = {} if num_features is None else {"num_features": num_features}
    with shortage_advice(path):
        text, name = read_input(path), utf8_path(path)
        if not with_labels:
            text = _SVMLIGHT_LABELS.sub(rb"\g<1>0", text)
        return split_of(_C.parse_lines(text, svmlight=True, num_threads=num_threads, path=name, **bound))


# What stands first in a line and is no feature.
_SVMLIGHT_LABELS = re.compile(rb"^((?:\xef\xbb\xbf)?)[ \t]*[^\s:#]+(?=[ \t\r#]|$)", re.MULTILINE)


def counts_from_one(matrices: Iterable[Csr]) -> bool:
    """Whether no row of these names the id 0, though some names another."""
    lowest = [int(matrix.indices.min()) for matrix in matrices if matrix.nnz]
    return bool(lowest) and min(lowest) > 0


def shift_svmlight(
    path: PathLike, split: Split, base: int, label_base: int = 0, reason: str = "zero_based=False"
) -> Split:
    """Ids as written -> columns: the first feature's id is ``base``, the first label's ``label_base``.

    Raises:
        ValueError: a feature or a label 0 where they count from 1, which is so for this ``reason``.
    """
    shifted = []
    for what, matrix, first in (("feature", split.X, base), ("label", split.Y, label_base)):
        if first and matrix.nnz and matrix.indices.min() < first:
            row = int(np.searchsorted(matrix.indptr, np.argmin(matrix.indices), side="right")) - 1
            line = _svmlight_line(path, row)
            raise ValueError(f"{path}: {reason}, so every {what} must be at least 1, got '0' in line {line}")
        columns = max(matrix.shape[1] - first, 0)
        arrays = (matrix.data, matrix.indices - first, matrix.indptr)
        shifted.append(scipy.sparse.csr_matrix(arrays, shape=(matrix.shape[0], columns)))
        shifted[-1].has_canonical_format = True
    return Split(*shifted)


def _svmlight_line(path: PathLike, row: int) -> int:
    """The line of a document: blank lines and remarks do not count as documents."""
    documents = (number for number, line in iter_lines(path) if line.partition(b"#")[0].strip())
    return next(itertools.islice(documents, row, None))
