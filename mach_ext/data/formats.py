"""Readers and writers of single files: XMC text, svmlight, SciPy npz, JSON lines, lists of names.

Everything is checked here, in full and once: what a reader returns has sorted, unique indices and finite
values. A file that breaks a rule raises ValueError with its name, the line, the rule and what came.
"""

from __future__ import annotations

import errno
import io
import itertools
import math
import os
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from .. import _C
from .._memory import memory_errors, memory_shortage
from .dataset import Split
from .files import COMPRESSIONS, PathLike, atomic_write, suffix_of
from .matrices import MAX_DIMENSION, Csr, check_csr, check_labels, check_rows, widen
from .parsing import check_names, decode_json, read_json, shown
from .sources import (
    BYTE_ORDER_MARK,
    FREE_BYTES,
    MAX_EXPANSION,
    MAX_LINE,
    check_line,
    check_regular,
    iter_lines,
    memory_named,
    open_input,
    read_input,
)

# ------------------------------------------------------------------------------------------- XMC text


def _split(document: _C.Document) -> Split:
    label_indptr, labels, indptr, indices, values, rows, features, num_labels = document
    X = scipy.sparse.csr_matrix((values, indices, indptr), shape=(rows, features))
    ones = np.ones(labels.size, np.float32)
    Y = scipy.sparse.csr_matrix((ones, labels, label_indptr), shape=(rows, num_labels))
    X.has_canonical_format = Y.has_canonical_format = True  # the parser's promise
    return Split(X, Y)


def _utf8(path: PathLike) -> str:
    """A path for messages of the parser, which is compiled and takes text in UTF-8 alone."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


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
    with memory_named(path):
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
    return _C.parse_header(line, _utf8(path))


def _xmc_split(
    path: PathLike, header: tuple[int, int, int], block: bytes | memoryview, lines: int, num_threads: int
) -> Split:
    """The lines of a block as documents; before it stand so many lines and the header."""
    _, D, L = header
    return _split(_C.parse_lines(block, D, L, lines + 2, False, num_threads, _utf8(path)))


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


# ------------------------------------------------------------------------------------------- svmlight


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
    with memory_named(path):
        text, name = read_input(path), _utf8(path)
        if not with_labels:
            text = _SVMLIGHT_LABELS.sub(rb"\g<1>0", text)
        return _split(_C.parse_lines(text, svmlight=True, num_threads=num_threads, path=name, **bound))


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


# --------------------------------------------------------------------------------------- deepxml's text


@memory_errors("free memory first, or split the data", "data.read_sparse_text")
def read_sparse_text(path: PathLike, *, num_threads: int = 0) -> Csr:
    """Reads one matrix in deepxml's text format: a line ``N C``, then ``column:value ...`` lines, 0-based.

    Args:
        path: the file, plain or .gz, .xz, .bz2.
        num_threads: as in :func:`read_xmc`.

    Raises:
        ValueError: with file, line, rule and what came.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.formats import read_sparse_text
        >>> _ = Path("trn_X_Xf.txt").write_text("2 3\\n0:0.5 2:1\\n1:2\\n")
        >>> read_sparse_text("trn_X_Xf.txt").toarray()
        array([[0.5, 0. , 1. ],
               [0. , 2. , 0. ]], dtype=float32)
    """
    with memory_named(path):
        return _read_sparse_text(path, num_threads)


def _read_sparse_text(path: PathLike, num_threads: int) -> Csr:
    header, _, body = read_input(path).removeprefix(BYTE_ORDER_MARK).partition(b"\n")
    counts = header.split()
    if len(counts) != 2 or not all(count.isdigit() for count in counts):
        got = shown(" ".join(header[:200].decode("ascii", "backslashreplace").split()))
        raise ValueError(f"{path}, line 1: the header must be two counts 'N C' (rows, columns), got {got}")
    rows, columns = map(_saturated, counts)
    if columns > MAX_DIMENSION:
        raise ValueError(f"{path}, line 1: the header's C must be below 2^31, got '{columns}'")
    # The parser takes what stands first in a line for labels, and a blank there for their absence.
    lines = b" " + body.removesuffix(b"\n").replace(b"\n", b"\n ") if body else b""
    matrix = _split(_C.parse_lines(lines, columns, 1, 2, False, num_threads, _utf8(path))).X
    if matrix.shape[0] > rows and matrix.indptr[rows] == matrix.nnz:  # blank lines at the end
        matrix = matrix[:rows]
    if matrix.shape[0] != rows:
        rule = f"the header's N = {rows} must be the number of rows"
        raise ValueError(f"{path}, line 1: {rule}, got '{matrix.shape[0]} rows'")
    return matrix


def _saturated(digits: bytes) -> int:
    """The number of these digits, as the parser takes it: beyond 18 digits it is just too large."""
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= 18 else 2**63 - 1


@memory_errors("free memory first, or split the data", "data.read_pairs")
def read_pairs(path: PathLike, shape: tuple[int, int]) -> Csr:
    """Reads pairs ``document label``, one a line, 0-based (deepxml's ``filter_labels_test.txt``).

    Args:
        path: the file, plain or .gz, .xz, .bz2. Blank lines are ignored.
        shape: (N, L): how many documents and labels there are.

    Returns:
        [N, L], 1 where a pair stands.

    Raises:
        ValueError: with file, line, rule and what came.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        parts = [_number(part) for part in line.split()]
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


# ------------------------------------------------------------------------------------------- npz


def load_npz(path: PathLike) -> Any:
    """What scipy.sparse.save_npz wrote, in any sparse format; the matrix itself is not checked.

    Raises:
        ValueError: not such a file, damaged, or one that expands beyond all bounds.
        MemoryError: the matrix does not fit.
    """
    check_regular(path)
    compressed = Path(path).suffix in COMPRESSIONS  # a zip file is read from its end: unpack all of it first
    with memory_named(path), io.BytesIO(read_input(path)) if compressed else open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _matrix_of(archive)
        except MemoryError:
            raise
        except Exception as error:  # SciPy, NumPy and zipfile stumble over damage in many ways
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a disk's error
                raise
            if memory_shortage(error) is not None:
                raise
            problem = f"{error}"[:200] or type(error).__name__
    raise ValueError(f"{path}: must be a whole scipy.sparse.save_npz file, got: {problem}")


def _matrix_of(archive: zipfile.ZipFile) -> Any:
    """The matrix of the arrays that save_npz writes; SciPy's own reader rounds indices and lacks dtypes."""

    def indices(name: str) -> NDArray[Any]:
        ids = _array(archive, name)
        if ids.ndim != 1 + (name == "coords"):
            raise ValueError(f"{name} must be one row of numbers, got shape {ids.shape}")
        if ids.dtype.kind not in "iu" or (ids.size and not -(2**63) <= ids.min() <= ids.max() < 2**63):
            raise ValueError(f"{name} must be integers below 2^63, got dtype {ids.dtype}")
        return ids.astype(np.int64)

    _check_members(archive)
    kind = _array(archive, "format").item()
    kind = kind.decode() if isinstance(kind, bytes) else kind
    shape = tuple(indices("shape").tolist())
    if kind != "csr" and shape and 4 * shape[0] > _limit(archive):  # as CSR it takes a number a row
        raise ValueError(f"a {shown(kind)} matrix so sparse must have fewer rows, got {shape[0]}")
    values = _array(archive, "data")
    if values.dtype.kind not in "fiub":
        raise ValueError(f"data must be real numbers, got dtype {values.dtype}")
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if kind in ("csr", "csc", "bsr"):
        compressed = {
            "csr": scipy.sparse.csr_matrix,
            "csc": scipy.sparse.csc_matrix,
            "bsr": scipy.sparse.bsr_matrix,
        }[kind]
        return compressed((values, indices("indices"), indices("indptr")), shape=shape)
    if kind == "coo":
        one_array = "coords.npy" in archive.namelist()
        at = indices("coords") if one_array else (indices("row"), indices("col"))
        return scipy.sparse.coo_array((values, tuple(at)), shape=shape)
    if kind == "dia":
        offsets = indices("offsets")
        if values.ndim != 2:  # SciPy would make a row of a single number
            raise ValueError(f"data must be diagonals, got shape {values.shape}")
        if (np.abs(offsets.astype(np.float64)) >= 2**31).any():  # SciPy would wrap them around
            raise ValueError("offsets of diagonals must be below 2^31")
        return scipy.sparse.dia_matrix((values, offsets), shape=shape)
    raise ValueError(f"format must be csr, csc, bsr, coo or dia, got {shown(kind)}")


def _limit(archive: zipfile.ZipFile) -> int:
    """Bytes that the arrays of a zip file may have: as for compressed files of other kinds."""
    packed = sum(member.compress_size for member in archive.infolist())
    return max(FREE_BYTES, MAX_EXPANSION * packed)


def _check_members(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("each array must be there once, got one twice")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"arrays must be stored or deflated, got compression {member.compress_type}")
    if (size := sum(member.file_size for member in members)) > _limit(archive):
        raise ValueError(
            f"arrays must not unpack to more than {MAX_EXPANSION} times their size, got {size} bytes"
        )


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, its member read to the end: only there the checksum is compared."""
    with archive.open(f"{name}.npy") as member:
        array = read_array(member, archive.getinfo(f"{name}.npy").file_size)
        while member.read(1 << 20):
            pass
    return array


def read_array(file: Any, size: int) -> NDArray[Any]:
    """The array of an npy file that has so many bytes, in native byte order. `file` can be rewound.

    Raises:
        ValueError: no such file; a header that promises more bytes; pickled objects.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"an array must be of npy version 1.0 or 2.0, got {version}")
    shape, _, dtype = readers[version](file)
    promised = file.tell() + math.prod(shape) * dtype.itemsize
    if promised > size and not dtype.hasobject:  # of which NumPy speaks itself
        raise ValueError(f"an array of shape {shown(shape)}, {dtype} must have {promised} bytes, got {size}")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@memory_errors("free memory first, or split the data", "data.read_matrix")
def read_matrix(path: PathLike) -> Csr:
    """Reads one sparse matrix of real numbers as scipy.sparse.save_npz writes it, checked in full."""
    with memory_named(path):
        return check_csr(load_npz(path), str(path))


@memory_errors("free memory first, or split the data", "data.read_npz")
def read_npz(X_path: PathLike, Y_path: PathLike) -> Split:
    """Reads a pair of files as scipy.sparse.save_npz writes them.

    Raises:
        ValueError: damaged file, broken structure, NaN or infinity, different numbers of rows.
    """
    X = read_matrix(X_path)
    with memory_named(Y_path):
        Y = check_labels(load_npz(Y_path), str(Y_path), allow_weights=False)
    check_rows(X, Y, X_path, Y_path)
    return Split(X, Y)


@memory_errors("free memory first, or split the data", "data.write_npz")
def write_npz(path: PathLike, matrix: Any) -> None:
    """Writes one sparse matrix as a compressed npz file, atomically."""
    with atomic_write(path) as file:
        scipy.sparse.save_npz(file, check_csr(matrix))


# ------------------------------------------------------------------------------------------- text


@memory_errors("free memory first, or split the data", "data.read_lines")
def read_lines(path: PathLike) -> list[str]:
    """Lines of a UTF-8 text file, plain or .gz, .xz, .bz2.

    Raises:
        ValueError: not UTF-8.
    """
    lines = []
    for number, line in iter_lines(path):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = decode_line(line, f"{path}, line {number}")  # for the words
        lines.append(text.removesuffix("\n").removesuffix("\r"))
    return lines


@memory_errors("free memory first, or split the data", "data.read_names")
def read_names(path: PathLike, count: int | None = None) -> list[str]:
    """Names in column order, one a line: ``name`` or ``id TAB name``; or a JSON list of them, in ``.json``.

    Ids that are numbers say where a name belongs. They must be 0 ... n-1 or 1 ... n, each once, in any order.
    Ids that are not all numbers are somebody else's: the names stay in the order of the lines.

    Raises:
        ValueError: not ``count`` names, or numbers that are not those of columns; with the line.
    """
    numbered = read_numbered_names(path)
    if count is not None:
        numbered.check_count(count)
    return numbered.names


class Names(NamedTuple):
    """Names in column order, from a file."""

    path: Path
    names: list[str]
    first: int | None  # the number before the first name, 0 or 1; None where the lines have no numbers
    blank: int = 0  # blank lines at the end, which are names only if there have to be so many

    def check_count(self, count: int) -> None:
        missing = count - len(self.names)
        if 0 < missing <= self.blank:
            self.names.extend([""] * missing)
        elif missing:
            unit = "names" if suffix_of(self.path) == ".json" else "lines"
            raise ValueError(f"{self.path}: must have {count} {unit}, one a column, got {len(self.names)}")


def read_numbered_names(path: PathLike) -> Names:
    """What :func:`read_names` reads, with the number of the first name."""
    if suffix_of(path) == ".json":
        names = read_json(path, "a JSON list of names")
        check_names(names, path)
        return Names(Path(path), names, None)
    text = read_lines(path)
    blank = sum(1 for _ in itertools.takewhile(lambda line: not line.strip(), reversed(text)))
    lines = [line.partition("\t") for line in text[: len(text) - blank]]
    names = [name or head for head, _, name in lines]
    numbers = [_number(head) if tab else None for head, tab, _ in lines]
    count, numbered = len(lines), [number for number in numbers if number is not None]
    if not numbered and _places([_number(name) if tab else None for _, tab, name in lines]):
        raise ValueError(
            f"{path}, line 1: must be a number, a tab and a name, got a name first: {shown(text[0])}"
        )
    # Where some lines have no number, those of the others are of columns only if all of them could be.
    if not numbered or (len(numbered) < count and max(numbered) > count):
        return Names(Path(path), names, None, blank)
    first = int(0 not in numbered)
    placed: dict[int, str] = {}
    for line, (number, name) in enumerate(zip(numbers, names, strict=True), start=1):
        if number is None or not first <= number < first + count or number in placed:
            rule = f"the numbers before the names must be {first} ... {first + count - 1}, each once"
            hint = "without any numbers, names are taken in the order of the lines"
            raise ValueError(f"{path}, line {line}: {rule}, got {lines[line - 1][0][:40]!r}; {hint}")
        placed[number] = name
    return Names(Path(path), [placed[first + column] for column in range(count)], first, blank)


def _places(numbers: list[int | None]) -> bool:
    """Whether these are 0 ... n-1 or 1 ... n, each once."""
    given = sorted(number for number in numbers if number is not None)
    return bool(given) and len(given) == len(numbers) and given in (
        [*range(len(given))], [*range(1, len(given) + 1)]
    )  # fmt: skip


def _number(text: str) -> int | None:
    """The number that a text writes in ASCII digits; -1 for any other number, None for what is none."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return int(text) if len(text) < 19 else -1
    return -1 if re.fullmatch(r"[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?", text) else None


@memory_errors("free memory first, or split the data", "data.iter_jsonl")
def iter_jsonl(path: PathLike) -> Iterator[tuple[str, list[str] | None]]:
    """Reads documents, one JSON object a line: ``{"text": "...", "labels": ["name", ...]}``.

    Args:
        path: the file, plain or .gz, .xz, .bz2. Blank lines and further keys are ignored. Strings are kept as
            they are, also half of a surrogate pair, which JSON can write and UTF-8 can't.

    Yields:
        (text, label names); None where a line has no ``labels``.

    Raises:
        ValueError: with file, line, rule and what came.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import iter_jsonl
        >>> _ = Path("one.jsonl").write_text('{"text": "a cat", "labels": ["animal"]}\\n')
        >>> list(iter_jsonl("one.jsonl"))
        [('a cat', ['animal'])]
    """
    for number, line in iter_lines(path):
        if line.strip():
            yield json_document(line, f"{path}, line {number}")


def json_document(line: bytes, where: str) -> tuple[str, list[str] | None]:
    """One line of JSON lines as text and label names; `where` starts messages.

    Raises:
        ValueError: no such document.
    """
    try:
        record = decode_json(line.decode())
    except ValueError as error:  # also a UnicodeDecodeError
        rule = f"a line must be a JSON object in UTF-8 ({error})"
        raise ValueError(f"{where}: {rule}, got {shown(line)}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a line must be a JSON object, got {shown(record)}")
    text, labels = record.get("text"), record.get("labels")
    if not isinstance(text, str):
        raise ValueError(f'{where}: "text" must be a string, got {shown(text)}')
    if labels is not None and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
        raise ValueError(f'{where}: "labels" must be a list of strings, got {shown(labels)}')
    return text, labels


def decode_line(line: bytes, where: str) -> str:
    """The text of a line; `where` starts the message.

    Raises:
        ValueError: not UTF-8; with the byte and its place in the line.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x}, byte {error.start + 1} of the line"
        raise ValueError(f"{where}: text must be UTF-8, got byte {byte}") from None


@memory_errors("free memory first, or split the data", "data.read_jsonl")
def read_jsonl(path: PathLike) -> tuple[list[str], list[list[str]]]:
    """All documents of a JSON lines file: texts and label names; every line must have ``labels``."""
    texts: list[str] = []
    labels: list[list[str]] = []
    for text, names in iter_jsonl(path):
        if names is None:
            raise ValueError(
                f'{path}: every document must have "labels", got none in document {len(texts) + 1}'
            )
        texts.append(text)
        labels.append(names)
    if not texts:
        raise ValueError(f"{path}: the file must not be empty, got no document")
    return texts, labels


def name_key(name: str) -> str:
    """What two spellings of one name share: Unicode's NFC, where é is one character, not e and an accent."""
    return unicodedata.normalize("NFC", name)


@memory_errors("free memory first, or split the data", "data.label_matrix")
def label_matrix(labels: Sequence[Sequence[str]], names: Sequence[str], source: PathLike = "labels") -> Csr:
    """Label names of each document -> Y [N, L]; a name given twice counts once.

    Names that differ only in how their accents are written are one name, unless ``names`` has both.

    Raises:
        ValueError: a name that is not among ``names``.
    """
    ids = {name: i for i, name in enumerate(names)}
    if len(ids) != len(names):
        raise ValueError(f"{source}: label names must differ, got {len(names)} names, {len(ids)} different")
    ids = {name_key(name): i for name, i in ids.items()} | ids
    try:
        rows = [
            sorted({ids[name] if name in ids else ids[name_key(name)] for name in document})
            for document in labels
        ]
    except KeyError as error:
        raise ValueError(f"{source}: every label must be in labels.txt, got {shown(error.args[0])}") from None
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter((i for row in rows for i in row), np.int32, count=int(indptr[-1]))
    return scipy.sparse.csr_matrix(
        (np.ones(indices.size, np.float32), indices, indptr), (len(rows), len(names))
    )
