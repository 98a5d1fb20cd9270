"""Folders of files: which of them make a dataset.

| format | files of a folder (each also .gz, .xz or .bz2) | says |
|---|---|---|
| XMC text | ``train.txt`` | ``N D L`` line, then ``l1,l2 idx:value ...`` lines, 0-based |
| svmlight | ``train.svm`` (``.svmlight``, ``.libsvm``) | the same without header; 0- or 1-based |
| SciPy npz | ``X.trn.npz`` + ``Y.trn.npz`` (the PECOS layout) | two CSR matrices |
| deepxml's | ``trn_X_Xf.txt`` + ``trn_X_Y.txt`` | ``N C`` line, then ``column:value ...`` lines, 0-based |
| text lines | ``X.trn.txt`` or ``trn_X.txt``, with labels as in the two rows above | one text a line |
| JSON lines | ``train.jsonl`` | ``{"text": "...", "labels": ["name", ...]}`` a line |

``dev`` and ``test`` (``dev``/``tst`` in the names with ``trn``) go beside ``train``. Optional: ``labels.txt``
and ``features.txt``, one name a line in id order (``name`` or ``id TAB name``); for matrices also the texts,
``X.trn.txt``; ``vectorizer.json`` (see :class:`mach_ext.data.Vectorizer`); ``filter_labels_test.txt``, pairs
``document label`` that a metric must not count as answers.

A file may have fewer columns than train, or than the model it is read for: the others are empty. It may not
have more features. Labels that a model does not know are kept apart, as misses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import scipy

from .dataset import Columns, Dataset, Split
from .files import COMPRESSIONS, PathLike, new_folder, read_bytes, suffix_of
from .formats import (
    Names,
    counts_from_one,
    label_matrix,
    load_npz,
    name_key,
    parse_svmlight,
    read_jsonl,
    read_lines,
    read_matrix,
    read_numbered_names,
    read_pairs,
    read_sparse_text,
    read_xmc,
    shift_svmlight,
    write_npz,
    write_xmc,
)
from .matrices import Csr, check_labels, check_rows, widen
from .text import Vectorizer

SVMLIGHT = (".svm", ".svmlight", ".libsvm")
_TEXTS = ("jsonl", "text lines")  # formats that a vectorizer turns into columns
_PARTS = {"train": ("trn", "train"), "dev": ("dev", "val"), "test": ("tst", "test")}


def _find(folder: Path, *names: str) -> Path | None:
    """The one file of these names, plain or compressed."""
    found = [folder / (name + end) for name in names for end in ("", *COMPRESSIONS)]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        there = ", ".join(str(path.relative_to(folder)) for path in found)
        raise ValueError(f"{folder}: must have one of these, got {there}")
    return found[0] if found else None


@dataclass(frozen=True)
class _Files:
    """The files of one split; which of them there are is its format."""

    kind: str
    X: Path  # documents: with their labels, as a matrix, or as lines of text
    Y: Path | None = None
    texts: Path | None = None
    filtered: Path | None = None


def _files_of(folder: Path, split: str) -> list[_Files]:
    """The files of a split, once for each format that is there."""
    parts = _PARTS[split]

    def find(*patterns: str) -> Path | None:
        return _find(folder, *(pattern.format(part) for pattern in patterns for part in parts))

    matrix = find("X.{}.npz", "tfidf-attnxml/X.{}.npz", "{}_X_Xf.txt", "{}_X_Xf.npz")
    labels = find("Y.{}.npz", "{}_X_Y.txt", "{}_X_Y.npz")
    texts = find("X.{}.txt", "{}_X.txt", "raw/{}_X.txt")
    if matrix is not None and labels is None:
        other = matrix.name.replace("_X_Xf", "_X_Y") if "_X_" in matrix.name else f"Y{matrix.name[1:]}"
        raise FileNotFoundError(f"{folder}: {matrix.name} must come with {other}")
    if labels is not None and matrix is None and texts is None:
        other = labels.name.replace("_X_Y", "_X_Xf") if "_X_" in labels.name else f"X{labels.name[1:]}"
        raise FileNotFoundError(f"{folder}: {labels.name} must come with {other}, or with texts")
    filtered = _filter_of(folder, split)
    documents = {
        "xmc": _find(folder, f"{split}.txt"),
        "svmlight": _find(folder, *(split + suffix for suffix in SVMLIGHT)),
        "jsonl": _find(folder, f"{split}.jsonl"),
        "npz": matrix,
        "text lines": texts if matrix is None and labels is not None else None,
    }
    return [
        _Files(kind, path, labels, texts, filtered) for kind, path in documents.items() if path is not None
    ]


@dataclass
class _Reader:
    """Reads the files of one folder; what it finds out on the way is kept here."""

    folder: Path
    columns: Columns | None  # of the model that the data are for; None: these data give the columns
    given_base: int | Literal["auto"] | None
    num_threads: int
    documents_only: bool = False  # no labels, and no names beside the documents
    svmlight_base: int | None = None
    svmlight_label_base: int | None = None
    labels: Names | None = None  # from the folder's files
    features: Names | None = None
    vectorizer: Vectorizer | None = None
    remarks: list[str] = field(default_factory=list)

    def read(self, files: dict[str, _Files]) -> dict[str, Split]:
        """All splits, which are of one format, with D and L columns each."""
        (kind,) = {each.kind for each in files.values()}
        if not self.documents_only:
            self._find_names()
        if kind == "xmc":
            splits = {split: read_xmc(each.X, num_threads=self.num_threads) for split, each in files.items()}
        elif kind == "svmlight":
            splits = self._read_svmlight(files)
        elif kind == "npz":
            splits = {split: self._read_matrices(each) for split, each in files.items()}
        elif kind == "text lines":
            splits = self._read_text_lines(files)
        else:
            splits = self._read_jsonl(files)
        if self.columns is not None:
            by_number = self.labels is None and kind != "jsonl" and not self.documents_only
            if by_number and self.columns.label_names is not None:
                self.remarks.append(f"{self.folder}: has no names of labels; label j is the model's label j")
            D, L = self.columns.num_features, self.columns.num_labels
            self._check_names_of_the_model(self.columns, kind)
        else:
            D, L = splits["train"].X.shape[1], splits["train"].Y.shape[1]
            self._check_names(D, L)
        return {split: self._with_columns(data, files[split], D, L) for split, data in splits.items()}

    # ------------------------------------------------------------------------------------------- names

    def _find_names(self) -> None:
        for what, choices in (
            ("labels", ("labels.txt", "output-items.txt", "Y.txt", "Yf.txt")),
            ("features", ("features.txt", "Xf.txt")),
        ):
            path = _find(self.folder, *choices)
            if path is not None:
                names = read_numbered_names(path)
                setattr(self, what, names)
                if names.first is not None and self.columns is None:
                    self.remarks.append(f"{path}: {what} are numbered from {names.first}")
        if (path := _find(self.folder, "vectorizer.json")) is not None:
            self.vectorizer = Vectorizer.from_json(read_bytes(path), source=str(path))

    def _check_names(self, D: int, L: int) -> None:
        for names, count in ((self.labels, L), (self.features, D)):
            if names is not None:
                names.check_count(count)
        if self.vectorizer is not None and len(self.vectorizer.vocabulary) != D:
            got = len(self.vectorizer.vocabulary)
            raise ValueError(f"{self.folder / 'vectorizer.json'}: must have D = {D} words, got {got}")

    def _check_names_of_the_model(self, columns: Columns, kind: str) -> None:
        """Columns that have names here and in the model must have the same ones."""
        if kind != "jsonl":
            _check_same_names("label", self.labels, columns.label_names)
        if kind in _TEXTS:
            return
        _check_same_names("feature", self.features, columns.feature_names)
        ours, theirs = columns.vectorizer, self.vectorizer
        if ours is None or theirs is None:
            return
        if ours.vocabulary != theirs.vocabulary or not np.array_equal(ours.idf, theirs.idf):
            file = self.folder / "vectorizer.json"
            raise ValueError(f"{file}: must be the model's, which made its columns, got another vectorizer")

    # ----------------------------------------------------------------------------------------- formats

    def _read_svmlight(self, files: dict[str, _Files]) -> dict[str, Split]:
        kept = None if self.columns is None else self.columns.svmlight_base
        one = next(iter(files.values())).X
        given = None if self.given_base == "auto" else self.given_base
        known = self._agreed(one, "features", kept, given, self.features)
        bound = None if self.columns is None or known is None else self.columns.num_features + known
        raw = {
            split: parse_svmlight(
                each.X,
                num_features=bound,
                num_threads=self.num_threads,
                with_labels=not self.documents_only,
            )
            for split, each in files.items()
        }
        base = first_id([data.X for data in raw.values()], self.features) if known is None else known
        if base is None and self.columns is not None and self.given_base != "auto":
            raise ValueError(
                f"{one}: has no feature 0; say whether features count from 0 or 1: --svmlight-base"
            )
        if known is None:
            base = 1 if base is None else base
            self.remarks.append(f"{one}: features are taken to count from {base} (--svmlight-base)")
        kept = None if self.columns is None else self.columns.svmlight_label_base
        label_base = 0 if self.documents_only else self._agreed(one, "labels", kept, None, self.labels)
        if label_base is None:
            label_base = first_id([data.Y for data in raw.values()], self.labels)
        if label_base is None:
            label_base = 0
            self.remarks.append(f"{one}: no file has a label 0; labels are taken to count from 0")
        self.svmlight_base, self.svmlight_label_base = base, label_base
        splits = {
            split: shift_svmlight(files[split].X, data, base or 0, label_base, "ids count from 1")
            for split, data in raw.items()
        }
        # The files do not say how many columns there are: as many as are named, or used.
        D = max(len(self.features.names) if self.features else 0, *(d.X.shape[1] for d in splits.values()))
        L = max(len(self.labels.names) if self.labels else 0, *(d.Y.shape[1] for d in splits.values()))
        return {split: Split(widen(data.X, D), widen(data.Y, L)) for split, data in splits.items()}

    def _agreed(
        self, path: Path, what: str, kept: int | None, given: int | None, names: Names | None
    ) -> int | None:
        """Where ids of features or labels start, by all that says so; None where nothing does."""
        numbered = None if names is None else names.first
        said = {
            "the model's svmlight files": kept,
            "--svmlight-base": given,
            "" if names is None else names.path.name: numbered,
        }
        said = {who: first for who, first in said.items() if first is not None}
        if len(set(said.values())) > 1:
            told = ", ".join(f"{first} ({who})" for who, first in said.items())
            raise ValueError(f"{path}: all must agree on where {what} count from, got {told}")
        return next(iter(said.values()), None)

    def _read_matrices(self, files: _Files) -> Split:
        X, Y = read_features(files.X, num_threads=self.num_threads), self._read_labels(files)
        check_rows(X, Y, files.X, files.Y or "")
        return Split(X, Y, None if files.texts is None else _read_texts(files.texts, X.shape[0]))

    def _read_labels(self, files: _Files) -> Csr:
        assert files.Y is not None
        stored = (
            load_npz(files.Y) if _is_npz(files.Y) else read_sparse_text(files.Y, num_threads=self.num_threads)
        )
        Y = check_labels(stored, str(files.Y), allow_weights=False)
        if Y.nnz and stored.data.max() > 1:
            rule = "has numbers above 1 in place of labels; each label counts once"
            self.remarks.append(f"{files.Y}: {rule}")
        return Y

    def _read_text_lines(self, files: dict[str, _Files]) -> dict[str, Split]:
        labels = {split: self._read_labels(each) for split, each in files.items()}
        texts = {split: _read_texts(each.X, labels[split].shape[0]) for split, each in files.items()}
        return self._vectorised(texts, labels)

    def _read_jsonl(self, files: dict[str, _Files]) -> dict[str, Split]:
        documents = {split: read_jsonl(each.X) for split, each in files.items()}
        given: dict[str, str] = {}  # each name in the form that comes first
        for name in itertools.chain.from_iterable(row for _, rows in documents.values() for row in rows):
            given.setdefault(name_key(name), name)
        if self.columns is not None:
            if self.columns.label_names is None:
                raise ValueError(f"{self.folder}: the model has no label names, which JSON lines go by")
            names = list(self.columns.label_names)
            known = {*names, *map(name_key, names)}
            names += sorted(form for key, form in given.items() if key not in known and form not in known)
        elif self.labels is not None:
            names = self.labels.names
        else:
            names = sorted(given.values())
            self.labels = Names(self.folder, names, None)
        labels = {split: label_matrix(rows, names, files[split].X) for split, (_, rows) in documents.items()}
        return self._vectorised({split: texts for split, (texts, _) in documents.items()}, labels)

    def _vectorised(self, texts: dict[str, list[str]], labels: dict[str, Csr]) -> dict[str, Split]:
        if self.columns is not None:
            if self.columns.vectorizer is None:
                raise ValueError(f"{self.folder}: the model was trained on vectors, not on text")
            self.vectorizer = self.columns.vectorizer
        elif self.vectorizer is None:
            self.vectorizer = Vectorizer.fit(texts["train"])
        return {
            split: Split(self.vectorizer.transform(each), labels[split], each)
            for split, each in texts.items()
        }

    # ----------------------------------------------------------------------------------------- columns

    def _with_columns(self, data: Split, files: _Files, D: int, L: int) -> Split:
        """The split with D and L columns; what a model does not know of its labels is set apart."""
        X, Y, unseen = data.X, data.Y, None
        if self.documents_only:
            Y = scipy.sparse.csr_matrix((X.shape[0], L))
        if self.columns is None and (X.shape[1] > D or Y.shape[1] > L):
            file = files.Y if files.Y is not None and Y.shape[1] > L else files.X
            raise ValueError(
                f"{file}: D and L must be those of train, {D} and {L}, got {X.shape[1]} and {Y.shape[1]}"
            )
        X = fit_features(X, D, files.X, self.remarks)
        if Y.shape[1] > L:
            Y, unseen = _known_and_unseen(Y, L)
            count, documents = unseen.shape[1], int((np.diff(unseen.indptr) > 0).sum())
            if count == 0:
                unseen = None
            else:
                self.remarks.append(
                    f"{files.Y or files.X}: {count:,} labels, of {documents:,} documents, are unknown to the "
                    "model and count as misses"
                )
        filtered = None
        if files.filtered is not None:
            filtered = read_pairs(files.filtered, (X.shape[0], max(data.Y.shape[1], L)))[:, :L]
            self.remarks.append(f"{files.filtered}: metrics leave its pairs out of the answers")
        return Split(X, widen(Y, L), data.texts, unseen, filtered)


def _known_and_unseen(Y: Csr, num_labels: int) -> tuple[Csr, Csr]:
    """Labels that a model knows [N, L], and the others [N, U], U as many as occur."""
    coo = Y.tocoo()
    known = coo.col < num_labels
    _, others = np.unique(coo.col[~known], return_inverse=True)
    parts = []
    for at, columns, width in (
        (known, coo.col[known], num_labels),
        (~known, others, int(others.max(initial=-1)) + 1),
    ):
        arrays = (coo.data[at], (coo.row[at], columns))
        parts.append(scipy.sparse.csr_matrix(arrays, shape=(Y.shape[0], width)))
    return parts[0], parts[1]


def _check_same_names(what: str, names: Names | None, kept: Sequence[str] | None) -> None:
    if names is None or kept is None:
        return
    for column, (theirs, ours) in enumerate(zip(names.names, kept, strict=False)):
        if theirs != ours and name_key(theirs) != name_key(ours):
            raise ValueError(f"{names.path}: {what} {column} must be the model's {ours!r}, got {theirs!r}")


def fit_features(X: Csr, num_features: int, path: PathLike, remarks: list[str]) -> Csr:
    """The one rule of widths: fewer columns are filled up with empty ones, more are refused.

    Raises:
        ValueError: more columns than ``num_features``.
    """
    if X.shape[1] > num_features:
        raise ValueError(
            f"{path}: must have at most the model's D={num_features} columns, got shape {X.shape}"
        )
    if X.shape[1] < num_features:
        remarks.append(f"{path}: has {X.shape[1]:,} of {num_features:,} features; the others count as 0")
    return widen(X, num_features)


def first_id(matrices: Sequence[Csr], names: Names | None) -> int | None:
    """Number of the first column of svmlight files by what they show, ids as written; None: nothing."""
    if not counts_from_one(matrices):
        return 0
    if names is None:
        return None
    largest = max(matrix.shape[1] for matrix in matrices) - 1
    return {largest: 1, largest + 1: 0}.get(len(names.names))


def _is_npz(path: Path) -> bool:
    return suffix_of(path) == ".npz"


def read_features(path: Path, *, num_threads: int = 0) -> Csr:
    """Documents alone, from an npz file or deepxml's text."""
    return read_matrix(path) if _is_npz(path) else read_sparse_text(path, num_threads=num_threads)


def _read_texts(path: Path, rows: int) -> list[str]:
    texts = read_lines(path)
    if len(texts) != rows:
        raise ValueError(f"{path}: must have {rows} lines, one a document, got {len(texts)}")
    return texts


def read_folder(
    folder: PathLike,
    *,
    name: str | None = None,
    columns: Columns | None = None,
    svmlight_base: int | Literal["auto"] | None = None,
    num_threads: int = 0,
) -> Dataset:
    """Reads a folder as described at the top of this module; ``dev`` and ``test`` may be missing.

    Texts become features through a :class:`Vectorizer` fitted on train; labels by name are those of
    ``labels.txt``, else all that occur, sorted. For a model, its own columns count instead, and ``train`` may
    be missing, too.

    Args:
        folder: the folder.
        name: the dataset's name; default: the folder's.
        columns: of the model that the data are for; None: of these data.
        svmlight_base: number of the first feature in svmlight files; None: as the model keeps it, else 1
            where no file has a feature 0. A model that keeps none has to be told; "auto" takes that rule.
        num_threads: as in :func:`read_xmc`.

    Raises:
        FileNotFoundError: no train file; for a model: no file.
        ValueError: files of two formats, sizes that disagree, or a bad file.
    """
    folder = Path(folder)
    found: dict[str, dict[str, _Files]] = {}
    for split in _PARTS:
        for files in _files_of(folder, split):
            found.setdefault(files.kind, {})[split] = files
    everything = found
    if columns is None or any("train" in files for files in found.values()):
        found = {kind: files for kind, files in found.items() if "train" in files}
    if not found:
        there = sorted(path.name for path in folder.iterdir())[:20]
        if columns is not None:
            raise FileNotFoundError(
                f"{folder}: must have a train, dev or test file, as train.txt, got {there}"
            )
        raise FileNotFoundError(
            f"{folder}: must have train.txt (XMC), train.svm, train.jsonl, X.trn.npz with Y.trn.npz, or "
            f"trn_X_Xf.txt with trn_X_Y.txt, also as .gz, .xz or .bz2, got {there}"
        )
    if len(found) > 1:
        what = "train" if columns is None or any("train" in files for files in found.values()) else "data"
        raise ValueError(f"{folder}: {what} must be there in one format, got {', '.join(sorted(found))}")
    ((_, files_of),) = found.items()
    reader = _Reader(folder, columns, svmlight_base, num_threads)
    for kind, files_of_kind in everything.items():
        reader.remarks += [
            f"{left.X}: is left out, because train is in another format"
            for split, left in files_of_kind.items()
            if kind not in found and split not in files_of
        ]
    return _dataset(reader, files_of, folder, name or folder.resolve().name)


def read_file(
    path: PathLike,
    columns: Columns,
    *,
    svmlight_base: int | Literal["auto"] | None = None,
    num_threads: int = 0,
) -> Dataset:
    """Reads one file of documents with their labels for a model, as the test split of a dataset.

    Args:
        path: JSON lines, XMC text or svmlight, by its suffix.
        columns: of the model.
        svmlight_base: as in :func:`read_folder`; where the model keeps one, that is the one.
        num_threads: as in :func:`read_xmc`.

    Raises:
        ValueError: another suffix, or a bad file.
    """
    path = Path(path)
    kinds = {".jsonl": "jsonl", ".txt": "xmc", **dict.fromkeys(SVMLIGHT, "svmlight")}
    kind = kinds.get(suffix_of(path))
    if kind is None:
        raise ValueError(f"{path}: a file of documents and labels must end in {', '.join(kinds)}")
    split = next((split for split in _PARTS if path.name.startswith(f"{split}.")), None)
    filtered = None if split is None else _filter_of(path.parent, split)
    reader = _Reader(path.parent, columns, svmlight_base, num_threads)
    return _dataset(reader, {"test": _Files(kind, path, filtered=filtered)}, path, path.name)


def read_svmlight_documents(
    path: Path, columns: Columns, *, svmlight_base: int | None = None, num_threads: int = 0
) -> Csr:
    """The documents of one svmlight file, for a model; its labels are not looked at."""
    reader = _Reader(path.parent, columns, svmlight_base, num_threads, documents_only=True)
    return reader.read({"test": _Files("svmlight", path)})["test"].X


def _filter_of(folder: Path, split: str) -> Path | None:
    return _find(folder, *(f"filter_labels_{part}.txt" for part in dict.fromkeys((split, *_PARTS[split]))))


def _dataset(reader: _Reader, files: dict[str, _Files], path: Path, name: str) -> Dataset:
    splits, columns = reader.read(files), reader.columns
    if columns is not None and "train" not in splits:
        D, L = columns.num_features, columns.num_labels
        splits["train"] = Split(
            scipy.sparse.csr_matrix((0, D), dtype=np.float32), scipy.sparse.csr_matrix((0, L))
        )
    labels: Sequence[str] | None = None if reader.labels is None else reader.labels.names
    features: Sequence[str] | None = None if reader.features is None else reader.features.names
    if features is None and reader.vectorizer is not None:
        features = reader.vectorizer.vocabulary
    if columns is not None:
        labels, features = columns.label_names or labels, columns.feature_names or features
    return Dataset(
        name=name,
        path=path,
        label_names=labels,
        feature_names=features,
        vectorizer=reader.vectorizer,
        dev_rule=f"the file {files['dev'].X.name}" if "dev" in files else "none",
        svmlight_base=reader.svmlight_base,
        svmlight_label_base=reader.svmlight_label_base,
        remarks=tuple(reader.remarks),
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
    if compression not in ("", *COMPRESSIONS):
        raise ValueError(
            f"write_folder: compression must be one of {list(COMPRESSIONS)}, got {compression!r}"
        )
    if folder.exists():
        raise FileExistsError(f"{folder}: must not exist yet")
    with new_folder(folder) as temporary:
        for split, data in dataset.splits.items():
            if data.filtered is not None:
                pairs = zip(*data.filtered.nonzero(), strict=True)
                lines = [f"{document} {label}" for document, label in pairs]
                _write_lines(temporary / f"filter_labels_{split}.txt", lines)
            if format == "xmc":
                write_xmc(temporary / f"{split}.txt{compression}", data.X, data.Y)
                continue
            part = _PARTS[split][0]
            write_npz(temporary / f"X.{part}.npz", data.X)
            write_npz(temporary / f"Y.{part}.npz", data.Y)
            if data.texts is not None:
                _write_lines(temporary / f"X.{part}.txt", data.texts)
        if dataset.label_names is not None:
            _write_names(temporary / "labels.txt", dataset.label_names)
        if dataset.feature_names is not None:
            _write_names(temporary / "features.txt", dataset.feature_names)
        if dataset.vectorizer is not None:
            (temporary / "vectorizer.json").write_text(dataset.vectorizer.to_json(), encoding="utf-8")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")  # halves of surrogate pairs


def _write_names(path: Path, names: Sequence[str]) -> None:
    """Names as they are, but for line ends; numbered where a tab in one would be taken for a number's."""
    whole = [re.sub(r"[\r\n]+", " ", name) for name in names]
    if len(set(whole)) < len(set(names)):
        raise ValueError(f"{path}: names must differ in more than line ends, which a line can't hold")
    numbered = any("\t" in name for name in whole)
    lines = (f"{i}\t{name}\n" if numbered else f"{name}\n" for i, name in enumerate(whole))
    path.write_text("".join(lines), encoding="utf-8", errors="replace", newline="\n")
