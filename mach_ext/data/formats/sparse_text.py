"""deepxml's text formats: sparse matrices of `column:value` lines, and pairs of a document and a label."""

from __future__ import annotations

import numpy as np
import scipy

import mach_ext._C as _C
from mach_ext._memory import memory_errors
from mach_ext.data.files import PathLike
from mach_ext.data.formats._parser import split_of, utf8_path
from mach_ext.data.formats.lines import number_of, read_lines
from mach_ext.data.matrices import MAX_DIMENSION, Csr, check_labels
from mach_ext.data.parsing import quote
from mach_ext.data.sources import BYTE_ORDER_MARK, read_input, shortage_advice


@memory_errors("free memory first, or split the data", "data.read_sparse_text")
def read_sparse_text(path: PathLike, *, num_threads: int = 0) -> Csr:
    r"""Reads a matrix in deepxml's text format.

    The first line is `N C`, the numbers of rows and columns. Each further line is a row `column:value ...`.
    Columns count from 0.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.
        num_threads: Threads of the parser. 0: all cores. The result does not depend on it.

    Returns:
        The matrix [N, C] as canonical float32 CSR.

    Raises:
        ValueError: A line is bad. The message has the file, the line, the rule and what stands there.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.formats import read_sparse_text
        >>> _ = Path("trn_X_Xf.txt").write_text("2 3\n0:0.5 2:1\n1:2\n")
        >>> read_sparse_text("trn_X_Xf.txt").toarray()
        array([[0.5, 0. , 1. ],
               [0. , 2. , 0. ]], dtype=float32)
    """
    with shortage_advice(path):
        return _read_sparse_text(path, num_threads)


def _read_sparse_text(path: PathLike, num_threads: int) -> Csr:
    """Reads the matrix. The caller turns a shortage of memory into a helpful message."""
    header, _, body = read_input(path).removeprefix(BYTE_ORDER_MARK).partition(b"\n")
    counts = header.split()
    if len(counts) != 2 or not all(count.isdigit() for count in counts):
        got = quote(" ".join(header[:200].decode("ascii", "backslashreplace").split()))
        raise ValueError(f"{path}, line 1: the header must be two counts 'N C' (rows, columns), got {got}")
    rows, columns = map(_parse_count, counts)
    if columns > MAX_DIMENSION:
        raise ValueError(f"{path}, line 1: the header's C must be below 2^31, got '{columns}'")
    # The parser reads labels at the start of a line. A space there means that the line has none.
    lines = b" " + body.removesuffix(b"\n").replace(b"\n", b"\n ") if body else b""
    matrix = split_of(_C.parse_lines(lines, columns, 1, 2, False, num_threads, utf8_path(path))).X
    if matrix.shape[0] > rows and matrix.indptr[rows] == matrix.nnz:  # blank lines at the end
        matrix = matrix[:rows]
    if matrix.shape[0] != rows:
        rule = f"the header's N = {rows} must be the number of rows"
        raise ValueError(f"{path}, line 1: {rule}, got '{matrix.shape[0]} rows'")
    return matrix


def _parse_count(digits: bytes) -> int:
    """Returns the number that these digits write. A number of more than 18 digits is just too large."""
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= 18 else 2**63 - 1


@memory_errors("free memory first, or split the data", "data.read_pairs")
def read_pairs(path: PathLike, shape: tuple[int, int]) -> Csr:
    r"""Reads pairs of numbers `document label`, as in deepxml's `filter_labels_test.txt`.

    Each line has a pair. Numbers count from 0. Blank lines are ignored.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.
        shape: The numbers of documents N and labels L.

    Returns:
        A matrix [N, L], CSR float32. An entry is 1 if the file has the pair.

    Raises:
        ValueError: A line is bad. The message has the file, the line, the rule and what stands there.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.formats import read_pairs
        >>> _ = Path("filter_labels_test.txt").write_text("0 2\n1 0\n")
        >>> read_pairs("filter_labels_test.txt", shape=(2, 3)).toarray()
        array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        parts = [number_of(part) for part in line.split()]
        pair = [number for number in parts if number is not None and number >= 0]
        if not parts:
            continue
        if len(parts) != 2 or len(pair) != 2:
            raise ValueError(
                f"{path}, line {number}: must be a document and a label number, got {line[:40]!r}"
            )
        for what, each, count in zip(("document", "label"), pair, shape, strict=True):
            if each >= count:
                raise ValueError(f"{path}, line {number}: the {what} must be below {count}, got {each}")
        pairs.append(pair)
    at = np.array(pairs, np.int64).reshape(-1, 2)
    return check_labels(scipy.sparse.coo_matrix((np.ones(len(at)), at.T), shape=shape), str(path))
