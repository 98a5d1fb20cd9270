"""Data files: what is read and written, and how a folder of them makes a dataset.

| format | files of a folder (each also .gz, .xz or .bz2) | says |
|---|---|---|
| XMC text | ``train.txt`` | ``N D L`` line, then ``l1,l2 idx:value ...`` lines, 0-based |
| svmlight | ``train.svm`` (``.svmlight``, ``.libsvm``) | the same without header; 0- or 1-based |
| SciPy npz | ``X.trn.npz`` + ``Y.trn.npz`` (the PECOS layout) | two CSR matrices |
| JSON lines | ``train.jsonl`` | ``{"text": "...", "labels": ["name", ...]}`` a line |

``dev`` and ``test`` (``dev``/``tst`` in npz names) go beside ``train``. Optional: ``labels.txt`` and
``features.txt``, one name a line in id order (``name`` or ``id TAB name``); for npz also the texts,
``X.trn.txt``; ``vectorizer.json`` (see :class:`mach_ext.data.Vectorizer`).

Everything is checked here, in full and once: what a reader returns has sorted, unique indices and finite
values. A file that breaks a rule raises ValueError with its name, the line, the rule and what came.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .. import _C
from .text import Vectorizer

PathLike: TypeAlias = "str | os.PathLike[str]"
Csr: TypeAlias = "sparse.csr_matrix"

_COMPRESSIONS: dict[str, Any] = {".gz": gzip, ".xz": lzma, ".bz2": bz2}
_SVMLIGHT = (".svm", ".svmlight", ".libsvm")
_NPZ_NAMES = {"train": ("trn", "train"), "dev": ("dev", "val"), "test": ("tst", "test")}
_MAX_DIMENSION = 2**31 - 1


@dataclass(frozen=True)
class Split:
    """Documents and their labels.

    Attributes:
        X: features [N, D], CSR float32, indices sorted and unique.
        Y: labels [N, L], CSR float32, 1 where a label holds.
        texts: the N raw texts, where the source has them.
    """

    X: Csr
    Y: Csr
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def take(self, rows: NDArray[np.integer[Any]]) -> Split:
        """The documents of these row numbers, in this order."""
        texts = None if self.texts is None else [self.texts[row] for row in rows]
        return Split(self.X[rows], self.Y[rows], texts)


@dataclass(frozen=True)
class Dataset:
    """What :func:`mach_ext.data.load` returns.

    Attributes:
        name: the dataset's name, or its folder's.
        path: the folder it was read from.
        train, dev, test: the splits; dev and test may be missing.
        label_names: name of each label, or None.
        feature_names: name of each feature, or None.
        vectorizer: turns raw text into rows of X, or None.
        dev_rule: where ``dev`` came from, in words.
    """

    name: str
    path: Path
    train: Split
    dev: Split | None = None
    test: Split | None = None
    label_names: Sequence[str] | None = None
    feature_names: Sequence[str] | None = None
    vectorizer: Vectorizer | None = None
    dev_rule: str = "none"

    @property
    def num_features(self) -> int:
        """D."""
        return int(self.train.X.shape[1])

    @property
    def num_labels(self) -> int:
        """L."""
        return int(self.train.Y.shape[1])

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        named = {"train": self.train, "dev": self.dev, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def info(self) -> dict[str, Any]:
        """Counts of everything, ready for JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            "num_features": self.num_features,
            "num_labels": self.num_labels,
            "num_labels_in_train": int(np.unique(self.train.Y.indices).size),
            "label_names": self.label_names is not None,
            "feature_names": self.feature_names is not None,
            "raw_text_in": self.vectorizer is not None,
            "dev_rule": self.dev_rule,
            "splits": {
                name: {
                    "documents": len(split),
                    "labels_per_document": split.Y.nnz / max(1, len(split)),
                    "nonzeros_per_document": split.X.nnz / max(1, len(split)),
                    "without_labels": int((np.diff(split.Y.indptr) == 0).sum()),
                    "without_features": int((np.diff(split.X.indptr) == 0).sum()),
                }
                for name, split in self.splits.items()
            },
        }


# ------------------------------------------------------------------------------------------- matrices


def check_csr(matrix: Any, name: str = "X") -> Csr:
    """Checks a SciPy sparse matrix in full; returns it as canonical float32 CSR.

    Canonical: indices of a row sorted and unique, duplicates summed. The argument is not modified; memory is
    shared where nothing had to change.

    Args:
        matrix: any SciPy sparse matrix or array, [rows, columns], of real numbers.
        name: how messages call it.

    Raises:
        TypeError: not a sparse matrix, or not of real numbers.
        ValueError: broken structure, NaN, infinity, or a value beyond float32.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import check_csr
        >>> check_csr(sparse.coo_matrix(([1.0, 2.0], ([0, 0], [3, 3])), shape=(1, 4))).toarray()
        array([[0., 0., 0., 3.]], dtype=float32)
    """
    if not sparse.issparse(matrix):
        raise TypeError(f"{name}: must be a SciPy sparse matrix, got {type(matrix).__name__}")
    if matrix.ndim != 2:
        raise ValueError(f"{name}: must have two dimensions, got shape {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise TypeError(f"{name}: must hold real numbers, got dtype {matrix.dtype}")
    if max(matrix.shape) > _MAX_DIMENSION:
        raise ValueError(f"{name}: rows and columns must be below 2^31, got shape {matrix.shape}")
    if hasattr(matrix, "check_format"):  # the compressed formats; nothing may be converted before this
        try:
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(
                f"{name}: {error}, got shape {matrix.shape}, {matrix.data.size} values"
            ) from None
    csr = sparse.csr_matrix(matrix)
    if not csr.has_canonical_format:
        csr = csr.astype(np.float64)  # a copy; sums are rounded once
        csr.sum_duplicates()
    with np.errstate(over="ignore"):
        csr = csr.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(csr.data))
    if bad.size:
        row = int(np.searchsorted(csr.indptr, bad[0], side="right")) - 1
        raise ValueError(
            f"{name}, row {row}: values must be finite and fit float32, got {csr.data[bad[0]]} in column "
            f"{csr.indices[bad[0]]}"
        )
    return csr


def row_lengths(X: Csr) -> NDArray[np.float64]:
    """Euclidean lengths of the rows [N] of a canonical CSR matrix; float64, 2^16 rows at a time."""
    parts = [np.zeros(0)]
    for start in range(0, X.shape[0], 1 << 16):
        part = X[start : start + (1 << 16)].astype(np.float64)
        part.data **= 2
        parts.append(np.sqrt(np.asarray(part.sum(1)).ravel()))
    return np.concatenate(parts)


def check_labels(matrix: Any, name: str = "Y") -> Csr:
    """The same for labels: every stored non-zero becomes a 1, stored zeros go."""
    csr = check_csr(matrix, name)
    if csr.nnz and csr.data.min() < 0:
        raise ValueError(f"{name}: labels must not be negative numbers, got {csr.data.min()}")
    if not (csr.data == 1).all():
        csr = csr.copy()
        csr.eliminate_zeros()
        csr.data[:] = 1
    return csr


def _check_rows(X: Csr, Y: Csr, X_name: PathLike, Y_name: PathLike) -> None:
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"{X_name} and {Y_name}: must have as many rows, got {X.shape[0]} and {Y.shape[0]} documents"
        )


# ------------------------------------------------------------------------------------------- bytes


@contextlib.contextmanager
def _naming(path: PathLike) -> Iterator[None]:
    """Turns a decompressor's complaint into a ValueError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, no permission, disk error
        kind = Path(path).suffix
        raise ValueError(f"{path}: the {kind} file must be whole and undamaged, got: {error}") from None


def open_read(path: PathLike) -> BinaryIO:
    """Opens a file for reading bytes, decompressed by its suffix."""
    module = _COMPRESSIONS.get(Path(path).suffix)
    return cast(BinaryIO, open(path, "rb") if module is None else module.open(path, "rb"))


def read_bytes(path: PathLike) -> bytes:
    """The whole file, decompressed by its suffix.

    Raises:
        ValueError: a compressed file is truncated or damaged.
    """
    with _naming(path), open_read(path) as file:
        return file.read()


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A temporary name to write to; the file then appears under ``path``, whole or not at all.

    Example:
        >>> from mach_ext.data import atomic_path
        >>> with atomic_path("greeting.txt") as temporary:
        ...     _ = temporary.write_text("hello")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # whatever the writer gave it
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing bytes, compressed by its suffix; it appears whole or not at all.

    Example:
        >>> from mach_ext.data import atomic_write
        >>> with atomic_write("greeting.txt.gz") as file:
        ...     _ = file.write(b"hello")
    """
    module = _COMPRESSIONS.get(Path(path).suffix)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if module is None:
            yield file
        else:
            with module.open(file, "wb") as compressed:
                yield compressed


def write_json(path: PathLike, record: Any) -> None:
    """Writes JSON, atomically; NaN, which JSON has not, as null."""
    with atomic_write(path) as file:
        file.write(json.dumps(_without_nan(record), indent=2, allow_nan=False).encode() + b"\n")


def _without_nan(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _without_nan(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_without_nan(value) for value in record]
    return None if isinstance(record, float) and record != record else record


# ------------------------------------------------------------------------------------------- XMC text


def _split(document: _C.Document) -> Split:
    label_indptr, labels, indptr, indices, values, rows, features, num_labels = document
    X = sparse.csr_matrix((values, indices, indptr), shape=(rows, features))
    ones = np.ones(labels.size, np.float32)
    Y = sparse.csr_matrix((ones, labels, label_indptr), shape=(rows, num_labels))
    X.has_canonical_format = Y.has_canonical_format = True  # the parser's promise
    return Split(X, Y)


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
    return _split(_C.parse_xmc(read_bytes(path), num_threads, str(path)))


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
    with _naming(path), open_read(path) as file:
        promised, features, labels = _C.parse_header(file.readline(), str(path))
        while block := file.read(block_bytes):
            block += file.readline()
            split = _split(_C.parse_lines(block, features, labels, lines + 2, False, num_threads, str(path)))
            lines += len(split)
            surplus = min(len(split), lines - promised)
            if surplus > 0 and split.X[-surplus:].nnz == split.Y[-surplus:].nnz == 0:  # blanks at the end
                split = split.take(np.arange(len(split) - surplus))
                documents = max(documents, promised)
            else:
                documents = lines
            if len(split):
                yield split
    if documents != promised:
        rule = f"the header's N = {promised} must be the number of documents"
        raise ValueError(f"{path}, line 1: {rule}, got '{documents} documents'")


def write_xmc(path: PathLike, X: Any, Y: Any) -> None:
    """Writes the XMC text format: atomic, compressed by suffix, values as the shortest exact float32 text.

    Args:
        path: the file to write.
        X: features [N, D], SciPy sparse.
        Y: labels [N, L], SciPy sparse.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import read_xmc, write_xmc
        >>> write_xmc("eye.txt.xz", sparse.eye(3), sparse.eye(3))
        >>> read_xmc("eye.txt.xz").X.nnz
        3
    """
    X, Y = check_csr(X, "X"), check_labels(Y, "Y")
    _check_rows(X, Y, "X", "Y")
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
    splits = [
        _split(_C.parse_lines(read_bytes(path), svmlight=True, num_threads=num_threads, path=str(path)))
        for path in paths
    ]
    lowest = [int(split.X.indices.min()) if split.X.nnz else 0 for split in splits]
    one_based = min(lowest) > 0 if zero_based == "auto" else not zero_based
    for path, split in zip(paths, splits, strict=True):
        if one_based and split.X.nnz and split.X.indices.min() < 1:
            raise ValueError(f"{path}: zero_based=False, so every feature must be at least 1, got '0'")
    features = max(split.X.shape[1] for split in splits) - int(one_based)
    labels = max(split.Y.shape[1] for split in splits)
    for split in splits:
        if one_based:
            split.X.indices -= 1
        split.X.resize(len(split), max(features, 0))
        split.Y.resize(len(split), labels)
    return splits


# ------------------------------------------------------------------------------------------- npz


def _load_npz(path: PathLike) -> Any:
    compressed = Path(path).suffix in _COMPRESSIONS  # a zip file is read from its end: unpack all of it first
    try:
        with io.BytesIO(read_bytes(path)) if compressed else open(path, "rb") as file:
            return sparse.load_npz(file)
    except OSError as error:
        if error.errno is not None:
            raise
        problem: Exception = error
    except (ValueError, TypeError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        problem = error
    raise ValueError(f"{path}: must be a whole scipy.sparse.save_npz file, got: {problem}") from None


def read_matrix(path: PathLike) -> Csr:
    """Reads one sparse matrix of real numbers as scipy.sparse.save_npz writes it, checked in full."""
    return check_csr(_load_npz(path), str(path))


def read_npz(X_path: PathLike, Y_path: PathLike) -> Split:
    """Reads a pair of files as scipy.sparse.save_npz writes them.

    Raises:
        ValueError: damaged file, broken structure, NaN or infinity, different numbers of rows.
    """
    X = read_matrix(X_path)
    Y = check_labels(_load_npz(Y_path), str(Y_path))
    _check_rows(X, Y, X_path, Y_path)
    return Split(X, Y)


def write_npz(path: PathLike, matrix: Any) -> None:
    """Writes one sparse matrix as a compressed npz file, atomically."""
    with atomic_write(path) as file:
        sparse.save_npz(file, check_csr(matrix))


# ------------------------------------------------------------------------------------------- text


def read_lines(path: PathLike) -> list[str]:
    """Lines of a UTF-8 text file, plain or .gz, .xz, .bz2.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: text must be UTF-8, got byte 0x{error.object[error.start]:02x}"
        ) from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_names(path: PathLike, count: int | None = None) -> list[str]:
    """Names in column order, one a line: ``name`` or ``id TAB name``.

    Where the ids are the numbers 0, 1, ... of the columns, each once, they say where a name belongs; other
    ids are somebody else's and left out.

    Raises:
        ValueError: not ``count`` lines.
    """
    lines = [line.partition("\t") for line in read_lines(path)]
    names = [name or head for head, _, name in lines]
    if all(tab and head.isdecimal() for head, tab, _ in lines):
        ids = [int(head) for head, _, _ in lines]
        if sorted(ids) == list(range(len(ids))):  # column numbers: they say where a name belongs
            names = [name for _, name in sorted(zip(ids, names, strict=True))]
    if count is not None and len(names) != count:
        raise ValueError(f"{path}: must have {count} lines, one a column, got {len(names)}")
    return names


def iter_jsonl(path: PathLike) -> Iterator[tuple[str, list[str] | None]]:
    """Reads documents, one JSON object a line: ``{"text": "...", "labels": ["name", ...]}``.

    Args:
        path: the file, plain or .gz, .xz, .bz2. Blank lines and further keys are ignored.

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

    def fail(rule: str, got: Any) -> ValueError:
        shown = repr(got)
        return ValueError(
            f"{path}, line {number}: {rule}, got {shown[:60]}{'...' if len(shown) > 60 else ''}"
        )

    with _naming(path), open_read(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # also a UnicodeDecodeError
                raise fail(f"a line must be a JSON object in UTF-8 ({error})", line) from None
            if not isinstance(record, dict):
                raise fail("a line must be a JSON object", record)
            text, labels = record.get("text"), record.get("labels")
            if not isinstance(text, str):
                raise fail('"text" must be a string', text)
            if labels is not None and not (
                isinstance(labels, list) and all(isinstance(x, str) for x in labels)
            ):
                raise fail('"labels" must be a list of strings', labels)
            yield text, labels


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


def label_matrix(labels: Sequence[Sequence[str]], names: Sequence[str], source: PathLike = "labels") -> Csr:
    """Label names of each document -> Y [N, L]; a name given twice counts once.

    Raises:
        ValueError: a name that is not among ``names``.
    """
    ids = {name: i for i, name in enumerate(names)}
    if len(ids) != len(names):
        raise ValueError(f"{source}: label names must differ, got {len(names)} names, {len(ids)} different")
    try:
        rows = [sorted({ids[name] for name in document}) for document in labels]
    except KeyError as error:
        raise ValueError(f"{source}: every label must be in labels.txt, got {error.args[0]!r}") from None
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter((i for row in rows for i in row), np.int32, count=int(indptr[-1]))
    return sparse.csr_matrix((np.ones(indices.size, np.float32), indices, indptr), (len(rows), len(names)))


# ------------------------------------------------------------------------------------------- folders


def _find(folder: Path, *names: str) -> Path | None:
    """The one file of these names, plain or compressed."""
    found = [folder / (name + end) for name in names for end in ("", *_COMPRESSIONS)]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: must have one of these, got {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _find_npz(folder: Path, letter: str, split: str) -> Path | None:
    names = [f"{letter}.{name}.npz" for name in _NPZ_NAMES[split]]
    return _find(folder, *names) or _find(folder / "tfidf-attnxml", *names)


def read_folder(folder: PathLike, *, name: str | None = None, num_threads: int = 0) -> Dataset:
    """Reads a folder as described at the top of this module; ``dev`` and ``test`` may be missing.

    JSON lines become features through a :class:`Vectorizer` fitted on train; their labels are those of
    ``labels.txt``, else all that occur, sorted.

    Args:
        folder: the folder.
        name: the dataset's name; default: the folder's.
        num_threads: as in :func:`read_xmc`.

    Raises:
        FileNotFoundError: no train file.
        ValueError: files of two formats, sizes that disagree, or a bad file.
    """
    folder = Path(folder)
    found: dict[str, dict[str, Path]] = {}
    for split in _NPZ_NAMES:
        for kind, path in {
            "npz": _find_npz(folder, "X", split),
            "xmc": _find(folder, f"{split}.txt"),
            "svmlight": _find(folder, *(split + suffix for suffix in _SVMLIGHT)),
            "jsonl": _find(folder, f"{split}.jsonl"),
        }.items():
            if path is not None:
                found.setdefault(kind, {})[split] = path
    found = {kind: files for kind, files in found.items() if "train" in files}
    if not found:
        there = sorted(path.name for path in folder.iterdir())[:20]
        raise FileNotFoundError(
            f"{folder}: must have train.txt (XMC), train.svm, train.jsonl, or X.trn.npz with Y.trn.npz, also "
            f"as .gz, .xz or .bz2, got {there}"
        )
    if len(found) > 1:
        raise ValueError(f"{folder}: train must be there in one format, got {', '.join(sorted(found))}")
    (kind, files), *_ = found.items()
    vectorizer, label_names = None, None
    if (path := _find(folder, "vectorizer.json")) is not None:
        vectorizer = Vectorizer.from_json(read_bytes(path), source=str(path))
    labels_path = _find(folder, "labels.txt", "output-items.txt")

    splits: dict[str, Split] = {}
    if kind == "xmc":
        splits = {split: read_xmc(path, num_threads=num_threads) for split, path in files.items()}
    elif kind == "svmlight":
        read = read_svmlight(list(files.values()), num_threads=num_threads)
        splits = dict(zip(files, read, strict=True))
    elif kind == "npz":
        for split, path in files.items():
            Y_path = _find_npz(folder, "Y", split)
            if Y_path is None:
                raise FileNotFoundError(f"{folder}: {path.name} must come with Y.{_NPZ_NAMES[split][0]}.npz")
            splits[split] = read_npz(path, Y_path)
            text_path = _find(folder, *(f"X.{part}.txt" for part in _NPZ_NAMES[split]))
            if text_path is not None:
                texts = read_lines(text_path)
                if len(texts) != len(splits[split]):
                    rule = f"{text_path}: must have {len(splits[split])} lines, one a document"
                    raise ValueError(f"{rule}, got {len(texts)}")
                splits[split] = Split(splits[split].X, splits[split].Y, texts)
    else:
        documents = {split: read_jsonl(path) for split, path in files.items()}
        if labels_path is not None:
            label_names = read_names(labels_path)
        else:
            label_names = sorted({x for _, rows in documents.values() for names in rows for x in names})
        vectorizer = vectorizer or Vectorizer.fit(documents["train"][0])
        for split, (texts, labels) in documents.items():
            Y = label_matrix(labels, label_names, files[split])
            splits[split] = Split(vectorizer.transform(texts), Y, texts)

    D, L = splits["train"].X.shape[1], splits["train"].Y.shape[1]
    for split, data in splits.items():
        if (data.X.shape[1], data.Y.shape[1]) != (D, L):
            raise ValueError(
                f"{files[split]}: D and L must be those of train, {D} and {L}, got {data.X.shape[1]} and "
                f"{data.Y.shape[1]}"
            )
    if label_names is None and labels_path is not None:
        label_names = read_names(labels_path, L)
    features_path = _find(folder, "features.txt")
    if features_path is not None:
        feature_names: Sequence[str] | None = read_names(features_path, D)
    else:
        feature_names = vectorizer.vocabulary if vectorizer else None
    if vectorizer and len(vectorizer.vocabulary) != D:
        raise ValueError(
            f"{folder / 'vectorizer.json'}: must have D = {D} words, got {len(vectorizer.vocabulary)}"
        )
    dev_rule = f"the file {files['dev'].name}" if "dev" in files else "none"
    return Dataset(
        name=name or folder.resolve().name,
        path=folder,
        label_names=label_names,
        feature_names=feature_names,
        vectorizer=vectorizer,
        dev_rule=dev_rule,
        **splits,
    )


def write_folder(folder: PathLike, dataset: Dataset, *, format: str = "npz", compression: str = "") -> None:
    """Writes a dataset as a folder that :func:`read_folder` reads; the folder appears whole or not at all.

    Args:
        folder: the folder to create; it must not exist.
        dataset: what to write. A ``dev`` that was held out of train is written as a file of its own.
        format: "npz" (with the texts, each on one line) or "xmc"; both keep every value exactly.
        compression: for "xmc": "", ".gz", ".xz" or ".bz2".

    Raises:
        FileExistsError: the folder exists.
        ValueError: unknown format or compression.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scipy import sparse
        >>> from mach_ext.data import Dataset, Split, read_folder, write_folder
        >>> folder = Path(tempfile.mkdtemp()) / "eye"
        >>> write_folder(folder, Dataset("eye", folder, train=Split(sparse.eye(4), sparse.eye(4))))
        >>> read_folder(folder).num_labels
        4
    """
    folder = Path(folder)
    if format not in ("npz", "xmc"):
        raise ValueError(f"write_folder: format must be npz or xmc, got {format!r}")
    if compression not in ("", *_COMPRESSIONS):
        raise ValueError(
            f"write_folder: compression must be one of {list(_COMPRESSIONS)}, got {compression!r}"
        )
    if folder.exists():
        raise FileExistsError(f"{folder}: must not exist yet")
    with new_folder(folder) as temporary:
        for split, data in dataset.splits.items():
            if format == "xmc":
                write_xmc(temporary / f"{split}.txt{compression}", data.X, data.Y)
                continue
            part = _NPZ_NAMES[split][0]
            write_npz(temporary / f"X.{part}.npz", data.X)
            write_npz(temporary / f"Y.{part}.npz", data.Y)
            if data.texts is not None:
                _write_lines(temporary / f"X.{part}.txt", data.texts)
        if dataset.label_names is not None:
            _write_lines(temporary / "labels.txt", dataset.label_names)
        if dataset.feature_names is not None:
            _write_lines(temporary / "features.txt", dataset.feature_names)
        if dataset.vectorizer is not None:
            (temporary / "vectorizer.json").write_text(dataset.vectorizer.to_json(), encoding="utf-8")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(" ".join(line.split()) + "\n" for line in lines), encoding="utf-8", newline="\n")


@contextlib.contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary folder that takes this name when all went well and vanishes otherwise.

    Where another process was faster, its folder stays and this one's is dropped.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        with contextlib.suppress(FileExistsError):
            if not folder.exists():
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
