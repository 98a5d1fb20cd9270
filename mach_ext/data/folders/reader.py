"""The reader of a folder's files, in every format, with the names of their columns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import scipy

from mach_ext.data.dataset import Columns, Split
from mach_ext.data.files import suffix_of
from mach_ext.data.folders.columns import first_id, fit_features, known_and_unseen
from mach_ext.data.folders.files import SplitFiles, find_file
from mach_ext.data.formats.jsonl import read_jsonl
from mach_ext.data.formats.lines import read_lines
from mach_ext.data.formats.names import Names, label_matrix, name_key, read_numbered_names
from mach_ext.data.formats.npz import load_npz, read_matrix
from mach_ext.data.formats.sparse_text import read_pairs, read_sparse_text
from mach_ext.data.formats.svmlight import parse_svmlight, shift_svmlight
from mach_ext.data.formats.xmc import read_xmc
from mach_ext.data.matrices import Csr, check_labels, check_rows, widen
from mach_ext.data.parsing import shown
from mach_ext.data.sources import read_input
from mach_ext.data.text import Vectorizer

_TEXTS = ("jsonl", "text lines")  # formats that a vectorizer turns into columns


@dataclass
class Reader:
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

    def read(self, files: dict[str, SplitFiles]) -> dict[str, Split]:
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
            path = find_file(self.folder, *choices) or find_file(self.folder, f"{what}.json")
            if path is not None:
                names = read_numbered_names(path)
                setattr(self, what, names)
                if names.first is not None and self.columns is None:
                    self.remarks.append(f"{path}: {what} are numbered from {names.first}")
        if (path := find_file(self.folder, "vectorizer.json")) is not None:
            self.vectorizer = Vectorizer.from_json(read_input(path), source=str(path))

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

    def _read_svmlight(self, files: dict[str, SplitFiles]) -> dict[str, Split]:
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

    def _read_matrices(self, files: SplitFiles) -> Split:
        X, Y = read_features(files.X, num_threads=self.num_threads), self._read_labels(files)
        check_rows(X, Y, files.X, files.Y or "")
        return Split(X, Y, None if files.texts is None else _read_texts(files.texts, X.shape[0]))

    def _read_labels(self, files: SplitFiles) -> Csr:
        assert files.Y is not None
        stored = (
            load_npz(files.Y) if is_npz(files.Y) else read_sparse_text(files.Y, num_threads=self.num_threads)
        )
        Y = check_labels(stored, str(files.Y), allow_weights=False)
        if Y.nnz and stored.data.max() > 1:
            rule = "has numbers above 1 in place of labels; each label counts once"
            self.remarks.append(f"{files.Y}: {rule}")
        return Y

    def _read_text_lines(self, files: dict[str, SplitFiles]) -> dict[str, Split]:
        labels = {split: self._read_labels(each) for split, each in files.items()}
        texts = {split: _read_texts(each.X, labels[split].shape[0]) for split, each in files.items()}
        return self._vectorised(texts, labels)

    def _read_jsonl(self, files: dict[str, SplitFiles]) -> dict[str, Split]:
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

    def _with_columns(self, data: Split, files: SplitFiles, D: int, L: int) -> Split:
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
            Y, unseen = known_and_unseen(Y, L)
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


def _check_same_names(what: str, names: Names | None, kept: Sequence[str] | None) -> None:
    if names is None or kept is None:
        return
    for column, (theirs, ours) in enumerate(zip(names.names, kept, strict=False)):
        if theirs != ours and name_key(theirs) != name_key(ours):
            raise ValueError(
                f"{names.path}: {what} {column} must be the model's {shown(ours)}, got {shown(theirs)}"
            )


def is_npz(path: Path) -> bool:
    return suffix_of(path) == ".npz"


def read_features(path: Path, *, num_threads: int = 0) -> Csr:
    """Documents alone, from an npz file or deepxml's text."""
    return read_matrix(path) if is_npz(path) else read_sparse_text(path, num_threads=num_threads)


def _read_texts(path: Path, rows: int) -> list[str]:
    texts = read_lines(path)
    if len(texts) != rows:
        raise ValueError(f"{path}: must have {rows} lines, one a document, got {len(texts)}")
    return texts
