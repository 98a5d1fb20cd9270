"""The text format of the XMC repository, read as a whole or block by block, and written."""

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
    r"""Reads a file in the text format of the Extreme Classification (XMC) repository.

    The first line is `N D L`, the numbers of documents, features and labels. Each further line is a document
    `l1,l2 idx:value ...`. Labels and features count from 0.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.
        num_threads: Threads of the parser. 0: all cores. The result does not depend on it.

    Raises:
        ValueError: A line is bad. The message has the file, the line, the rule and what stands there.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import read_xmc
        >>> _ = Path("two.txt").write_text("2 5 3\n0,2 1:0.5 4:2\n 0:1\n")
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
    r"""Reads an XMC text file block by block. Memory does not grow with the number of documents.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.
        block_bytes: Bytes of text that are parsed at a time. A block ends at the end of a line.
        num_threads: Threads of the parser. 0: all cores. The result does not depend on it.

    Yields:
        Splits of consecutive documents, each with the D and L of the first line.

    Raises:
        ValueError: As `read_xmc`, as soon as the bad line is reached.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import iter_xmc
        >>> _ = Path("two.txt").write_text("2 5 3\n0,2 1:0.5 4:2\n 0:1\n")
        >>> [split.X.indices.tolist() for split in iter_xmc("two.txt", block_bytes=8)]
        [[1, 4], [0]]
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
    """Parses the first line of a file."""
    check_line(path, 1, len(line.removesuffix(b"\n")))
    return _C.parse_header(line, utf8_path(path))


def _xmc_split(
    path: PathLike, header: tuple[int, int, int], block: bytes | memoryview, lines: int, num_threads: int
) -> Split:
    """Parses the lines of a block. `lines` counts the lines between the header and the block."""
    _, D, L = header
    return split_of(_C.parse_lines(block, D, L, lines + 2, False, num_threads, utf8_path(path)))


def _documents(split: Split, before: int, promised: int) -> int:
    """Returns how many documents there are up to the end of this block. `before` counts the lines before it.

    A blank line is a document without labels and features. Beyond the promised number, blank lines count only
    if a document that is not empty follows.
    """
    filled = max(int(np.searchsorted(matrix.indptr, matrix.nnz)) for matrix in (split.X, split.Y))
    return max(min(before + len(split), promised), before + filled if filled else 0)


def _first_rows(split: Split, rows: int) -> Split:
    """Returns the split without its last rows, which are empty. Memory is shared."""
    if rows == len(split):
        return split
    parts = []
    for matrix in (split.X, split.Y):
        arrays = (matrix.data, matrix.indices, matrix.indptr[: rows + 1])
        parts.append(scipy.sparse.csr_matrix(arrays, shape=(rows, matrix.shape[1])))
        parts[-1].has_canonical_format = True
    return Split(*parts)


def _check_documents(path: PathLike, promised: int, documents: int) -> None:
    """Refuses a file whose header promises another number of documents."""
    if documents != promised:
        rule = f"the header's N = {promised} must be the number of documents"
        raise ValueError(f"{path}, line 1: {rule}, got '{documents} documents'")


@memory_errors("free memory first, or split the data", "data.write_xmc")
def write_xmc(path: PathLike, X: Any, Y: Any) -> None:
    """Writes a file in the XMC text format. The file appears whole or not at all.

    Values are written as the shortest text that gives the same float32 again. The format has no weights, so
    each non-zero of Y is a label.

    Args:
        path: The file to write. A name that ends in .gz, .xz or .bz2 is compressed.
        X: Features [N, D] in any form that `check_csr` accepts.
        Y: Labels [N, L] in any form that `check_csr` accepts.

    Raises:
        TypeError: As `check_csr`.
        ValueError: As `check_csr`, or the numbers of rows differ.

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
