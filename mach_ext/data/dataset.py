"""What a dataset is in memory: splits of documents with their labels, and the names of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from mach_ext.data.matrices import Csr, row_features
from mach_ext.data.parsing import check_names
from mach_ext.data.text import Vectorizer

HOLDOUT_RULE = "a tenth of train: the N // 10 documents whose row numbers have the smallest splitmix64 hash"


@dataclass(frozen=True)
class Split:
    """Documents and their labels.

    Attributes:
        X: features [N, D], CSR float32, indices sorted and unique.
        Y: labels [N, L], CSR float32, 1 where a label holds.
        texts: the N raw texts, where the source has them.
        unseen: labels [N, U] that the model does not know, where the data were read for a model.
        filtered: [N, L], 1 where a label must not be answered (``filter_labels_test.txt``).
    """

    X: Csr
    Y: Csr
    texts: Sequence[str] | None = None
    unseen: Csr | None = None
    filtered: Csr | None = None

    def __len__(self) -> int:
        return int(self.X.shape[0])

    @property
    def without_features(self) -> int:
        """How many documents have no feature: nothing but their number is known of them."""
        return int((row_features(self.X) == 0).sum())

    def take(self, rows: NDArray[np.integer[Any]]) -> Split:
        """The documents of these row numbers, in this order."""
        texts = None if self.texts is None else [self.texts[row] for row in rows]
        unseen = None if self.unseen is None else self.unseen[rows]
        filtered = None if self.filtered is None else self.filtered[rows]
        return Split(self.X[rows], self.Y[rows], texts, unseen, filtered)

    @property
    def truth(self) -> Csr:
        """All true labels, for metrics: Y and, in columns L and up, those that no prediction can name."""
        if self.unseen is None:
            return self.Y
        return scipy.sparse.hstack([self.Y, self.unseen], format="csr")


@dataclass(frozen=True)
class Columns:
    """What the columns of X and Y mean. It is kept with a model, and every later file is read by it.

    Attributes:
        num_features: D.
        num_labels: L.
        svmlight_base: number of the first feature in svmlight files, 0 or 1; None where none was read.
        svmlight_label_base: the same of labels.
        label_names: name of each label, or None.
        feature_names: name of each feature, or None.
        vectorizer: turns raw text into rows of X, or None.
    """

    num_features: int
    num_labels: int
    svmlight_base: int | None = None
    svmlight_label_base: int | None = None
    label_names: Sequence[str] | None = None
    feature_names: Sequence[str] | None = None
    vectorizer: Vectorizer | None = None


@dataclass(frozen=True)
class Dataset:
    """What :func:`mach_ext.data.load` returns.

    Attributes:
        name: the dataset's name, or its folder's.
        path: the folder, or the file, it was read from.
        train, dev, test: the splits; dev and test may be missing.
        label_names: name of each label, or None.
        feature_names: name of each feature, or None.
        vectorizer: turns raw text into rows of X, or None.
        dev_rule: where ``dev`` came from, in words.
        svmlight_base, svmlight_label_base: as in :class:`Columns`.
        remarks: what a reader decided or left out, in sentences for the user.

    Raises:
        ValueError: a name that is no string.
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
    svmlight_base: int | None = None
    svmlight_label_base: int | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # of one made by hand it can be a string
        for what, names in (("label_names", self.label_names), ("feature_names", self.feature_names)):
            if names is not None:
                check_names(names, f"Dataset: {what}")

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
        """The splits there are, by name. Data read for a model need no train: it is empty then."""
        named = {"train": self.train if len(self.train) else None, "dev": self.dev, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def columns(self) -> Columns:
        """What the columns mean, for reading further files in the same way."""
        return Columns(
            self.num_features,
            self.num_labels,
            self.svmlight_base,
            self.svmlight_label_base,
            self.label_names,
            self.feature_names,
            self.vectorizer,
        )

    @property
    def all_train_labels(self) -> Csr:
        """Labels of all training documents, those that are held out of train as ``dev`` among them."""
        if self.dev is None or self.dev_rule != HOLDOUT_RULE:
            return self.train.Y
        return scipy.sparse.vstack([self.train.Y, self.dev.Y], format="csr")

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
                    "without_features": split.without_features,
                }
                for name, split in self.splits.items()
            },
        }


def hold_out(dataset: Dataset) -> Dataset:
    """The dataset with a tenth of train as ``dev``, where it has no dev and train has ten documents."""
    if dataset.dev is not None or len(dataset.train) < 10:
        return dataset
    held = _holdout(len(dataset.train))
    train, dev = dataset.train.take(np.flatnonzero(~held)), dataset.train.take(np.flatnonzero(held))
    return replace(dataset, train=train, dev=dev, dev_rule=HOLDOUT_RULE)


def _holdout(rows: int) -> NDArray[np.bool_]:
    """Which rows are held out: the same ones on every machine and with every NumPy."""
    z = np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    held = np.zeros(rows, bool)
    held[np.argsort(z, kind="stable")[: rows // 10]] = True
    return held
