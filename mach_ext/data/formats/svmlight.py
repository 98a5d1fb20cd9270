"""svmlight files. Ids are read as they are written and then shifted to columns."""

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
    r"""Reads the svmlight files of a dataset.

    A line reads `l1,l2 idx:value ...`. Comments after `#` and entries `qid:n` are ignored. D is the number of
    columns that the largest feature id of all files needs. L is the same for the labels. Labels count from 0.

    Args:
        paths: The files, plain or compressed as .gz, .xz or .bz2.
        zero_based: True: features count from 0. False: from 1. "auto": from 1 if no file has a feature 0, as
            in scikit-learn.
        num_threads: Threads of the parser. 0: all cores. The result does not depend on it.

    Returns:
        A split for each file. All have D and L columns.

    Raises:
        ValueError: A line is bad. The message has the file, the line, the rule and what stands there.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import read_svmlight
        >>> _ = Path("train.svm").write_text("0,2 1:0.5 4:2\n1 2:1\n")
        >>> (split,) = read_svmlight(["train.svm"])
        >>> split.X.toarray()
        array([[0.5, 0. , 0. , 2. ],
               [0. , 1. , 0. , 0. ]], dtype=float32)
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
    r"""Reads an svmlight file with all ids as they are written.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.
        num_features: An upper limit. All feature ids must be below it. None: no limit.
        num_threads: Threads of the parser. 0: all cores. The result does not depend on it.
        with_labels: False: whatever stands in place of labels is ignored, such as -1 and +1.

    Raises:
        ValueError: A line is bad. The message has the file, the line, the rule and what stands there.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.formats import parse_svmlight
        >>> _ = Path("train.svm").write_text("0,2 1:0.5 4:2\n1 2:1\n")
        >>> parse_svmlight("train.svm").X.indices.tolist()
        [1, 4, 2]
    """
    bound: dict[str, Any] = {} if num_features is None else {"num_features": num_features}
    with shortage_advice(path):
        text, name = read_input(path), utf8_path(path)
        if not with_labels:
            text = _SVMLIGHT_LABELS.sub(rb"\g<1>0", text)
        return split_of(_C.parse_lines(text, svmlight=True, num_threads=num_threads, path=name, **bound))


# The first entry of a line if it is not a feature.
_SVMLIGHT_LABELS = re.compile(rb"^((?:\xef\xbb\xbf)?)[ \t]*[^\s:#]+(?=[ \t\r#]|$)", re.MULTILINE)


def counts_from_one(matrices: Iterable[Csr]) -> bool:
    """Returns whether no matrix has an entry in column 0 although there are entries.

    Then ids of an svmlight file probably count from 1.

    Args:
        matrices: Features or labels with ids as they are written.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data.formats import counts_from_one
        >>> counts_from_one([sparse.csr_matrix([[0.0, 0.5, 1.0]])])
        True
        >>> counts_from_one([sparse.csr_matrix([[0.5, 0.0, 1.0]])])
        False
    """
    lowest = [int(matrix.indices.min()) for matrix in matrices if matrix.nnz]
    return bool(lowest) and min(lowest) > 0


def shift_svmlight(
    path: PathLike, split: Split, base: int, label_base: int = 0, reason: str = "zero_based=False"
) -> Split:
    """Shifts the ids of an svmlight file to columns.

    Args:
        path: The file, for messages.
        split: The documents with ids as they are written.
        base: The id of the first feature, 0 or 1.
        label_base: The id of the first label, 0 or 1.
        reason: Says in a message why ids count from 1.

    Raises:
        ValueError: There is an id 0 although ids count from 1.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import Split
        >>> from mach_ext.data.formats import shift_svmlight
        >>> raw = Split(sparse.csr_matrix([[0.0, 0.5, 1.0]]), sparse.csr_matrix([[1.0]]))
        >>> shift_svmlight("train.svm", raw, base=1).X.toarray()
        array([[0.5, 1. ]])
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
    """Returns the line of a document. Blank lines and comments do not count as documents."""
    documents = (number for number, line in iter_lines(path) if line.partition(b"#")[0].strip())
    return next(itertools.islice(documents, row, None))
