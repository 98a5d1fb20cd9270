"""The XMC repository's text format: read as a whole or block by block, and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy

import mach_ext._C as _C
from mach_ext._memory import memory_errors
from mach_ext.data.atomic import atomic_write
from mach_ext.data.dataset import Split
from mach_ext.data.files import PathLike
from mach_ext.data.formats._parser import split_of, utf8_path
from mach_ext.data.matrices import check_csr, check_labels, check_rows
from mach_ext.data.sources import MAX_LINE, check_line, open_input, read_input, shortage_advice


@memory_errors("free memory first, or split the data", "data.read_xmc")
def read_xmc(path: PathLike, *, num_threads: int = 0) -> Split:
    """Reads a file in the XMC repository's text format.

    Args:
        path: the file, plain or .gz, .xz, .bz2.
        num_threads: threads of the parser; 0 takes the cores there are. The result does not depend on it.

    Raises:
        ValueError: with file, line, rule and what came.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import read_xmc
        >>> _ = Path("two.txt").write_text("2 5 3\\n0,2 1:0.5 4:2\\n 0:1\\n")
        >>> split = read_xmc("two.txt")
        >>> split.X.toarray()
        array([[0. , 0.5, 0. , 0. , 2. ],
               [1. , 0. , 0. , 0. , 0. ]], dtype=float32)
        >>> split.Y.indices
        array([0, 2], dtype=int32)
    """
    with shortage_advice(path):
        text = read_input(path)
        start = text.find(b"\n") + 1 or len(text)
        header = _xmc_header(path, text[:start])
        split = _xmc_split(path, header, memoryview(text)[start:], 0, num_threads)
    documents = _documents(split, 0, header[0])
    _check_documents(path, header[0], documents)
    return _first_rows(split, documents)


@memory_errors("free memory first, or split the data", "data.iter_xmc")
def iter_xmc(path: PathLike, *, block_bytes: int = 1 << 24, num_threads: int = 0) -> Iterator[Split]:
    """Reads an XMC text file block by block, in memory that does not grow with the number of documents.

    Args:
        path: the file, plain or .gz, .xz, .bz2.
        block_bytes: text parsed at a time; every block ends at a line end.
        num_threads: as in :func:`read_xmc`.

    Yields:
        Splits of consecutive documents, each with the header's D and L.

    Raises:
        ValueError: as :func:`read_xmc`, once the bad line is reached.
    """
    lines = documents = 0
    with open_input(path) as file:
        header = _xmc_header(path, file.readline(MAX_LINE + 1))
        while block := file.read(block_bytes):
            if not block.endswith(b"\n"):
                block += file.readline(MAX_LINE + 1)
            split = _xmc_split(path, header, block, lines, num_threads)
            documents = max(documents, _documents(split, lines, header[0]))
            kept = _first_rows(split, min(len(split), max(documents - lines, 0)))
            lines += len(split)
            if len(kept):
                yield kept
    _check_documents(path, header[0], documents)


def _xmc_header(path: PathLike, line: bytes) -> tuple[int, int, int]:
    check_line(path, 1, len(line.removesuffix(b"\n")))
    return _C.parse_header(line, utf8_path(path))


def _xmc_split(
    path: PathLike, header: tuple[int, int, int], block: bytes | memoryview, lines: int, num_threads: int
) -> Split:
    """The lines of a block as documents; before it stand so many lines and the header."""
    _, D, L = header
    return split_of(_C.parse_lines(block, D, L, lines + 2, False, num_threads, utf8_path(path)))


def _documents(split: Split, before: int, promised: int) -> int:
    """How many documents there are up to this block's end, ``before`` it so many lines.

    A blank line is a document without labels and features, but beyond the promised number it is one only
    where others follow.
    """
    filled = max(int(np.searchsorted(matrix.indptr, matrix.nnz)) for matrix in (split.X, split.Y))
    return max(min(before + len(split), promised), before + filled if filled else 0)


def _first_rows(split: Split, rows: int) -> Split:
    """The split without its last rows, which are empty; memory is shared."""
    if rows == len(split):
        return split
    parts = []
    for matrix in (split.X, split.Y):
        arrays = (matrix.data, matrix.indices, matrix.indptr[: rows + 1])
        parts.append(scipy.sparse.csr_matrix(arrays, shape=(rows, matrix.shape[1])))
        parts[-1].has_canonical_format = True
    return Split(*parts)


def _check_documents(path: PathLike, promised: int, documents: int) -> None:
    if documents != promised:
        rule = f"the header's N = {promised} must be the number of documents"
        raise ValueError(f"{path}, line 1: {rule}, got '{documents} documents'")


@memory_errors("free memory first, or split the data", "data.write_xmc")
def write_xmc(path: PathLike, X: Any, Y: Any) -> None:
    """Writes the XMC text format: atomic, compressed by suffix, values as the shortest exact float32 text.

    Args:
        path: the file to write.
        X: features [N, D], SciPy sparse.
        Y: labels [N, L], SciPy sparse; the format has no weights, each non-zero is a label.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import read_xmc, write_xmc
        >>> write_xmc("eye.txt.xz", sparse.eye(3), sparse.eye(3))
        >>> read_xmc("eye.txt.xz").X.nnz
        3
    """
    X, Y = check_csr(X, "X"), check_labels(Y, "Y")
    check_rows(X, Y, "X", "Y")
    features, labels = X.indices.astype(np.int32, copy=False), Y.indices.astype(np.int32, copy=False)
    with atomic_write(path) as file:
        file.write(f"{X.shape[0]} {X.shape[1]} {Y.shape[1]}\n".encode())
        for row in range(0, X.shape[0], 4096):
            rows = slice(row, row + 4097)
            file.write(
                _C.format_lines(
                    Y.indptr[rows].astype(np.int64), labels, X.indptr[rows].astype(np.int64), features, X.data
                )
            )
