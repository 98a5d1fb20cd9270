"""A dataset in memory: splits of documents with their labels, and the names of the columns."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from mach_ext.data.embeddings import Encoder, TextEmbeddings
from mach_ext.data.hybrid import HybridMatrix, row_features
from mach_ext.data.matrices import Csr
from mach_ext.data.parsing import check_names
from mach_ext.data.text import Vectorizer

HOLDOUT_RULE = "a tenth of train: the N // 10 documents whose row numbers have the smallest splitmix64 hash"


@dataclass(frozen=True)
class Split:
    """Documents and their labels.

    Attributes:
        X: Features [N, D], CSR float32. Indices of a row are sorted and unique.
        Y: Labels [N, L], CSR float32. An entry is 1 if the label holds.
        texts: The N raw texts. None: the source has no texts.
        unseen: Labels [N, U] that the model does not know. It is set only if the data were read for a model.
        filtered: An entry [N, L] is 1 if the label must not count as an answer (`filter_labels_test.txt`).
        dense: Dense features beside X, such as embeddings [N, E], perhaps memory-mapped, or `TextEmbeddings`,
            which are computed when they are used. None: there are none.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import Split
        >>> split = Split(X=sparse.eye(3, 5, format="csr"), Y=sparse.eye(3, format="csr"))
        >>> len(split), split.X.shape, split.Y.nnz
        (3, (3, 5), 3)
    """

    X: Csr
    Y: Csr
    texts: Sequence[str] | None = None
    unseen: Csr | None = None
    filtered: Csr | None = None
    dense: NDArray[Any] | TextEmbeddings | None = None

    def __len__(self) -> int:
        """Returns the number of documents N."""
        return int(self.X.shape[0])

    @functools.cached_property
    def documents(self) -> Csr | HybridMatrix:
        """The documents as models take them: X, or a `HybridMatrix` if there are dense features.

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import Split
            >>> eye = sparse.eye(3, format="csr")
            >>> Split(eye, eye, dense=np.ones((3, 2))).documents.shape
            (3, 5)
        """
        return self.X if self.dense is None else HybridMatrix(self.X, self.dense)

    @property
    def without_features(self) -> int:
        """The number of documents that have no feature. The model gives all of them the same scores.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Split
            >>> X = sparse.csr_matrix([[1.0, 0.0], [0.0, 0.0]])
            >>> Split(X, sparse.eye(2, format="csr")).without_features
            1
        """
        if isinstance(self.dense, TextEmbeddings):  # every text has one, and it may not be computed yet
            return 0
        return int((row_features(self.documents) == 0).sum())

    def take(self, rows: NDArray[np.integer[Any]]) -> Split:
        """Returns the documents with these row numbers, in this order.

        The rows of memory-mapped dense features are copied into memory.

        Args:
            rows: Row numbers [n].

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import Split
            >>> split = Split(sparse.eye(3, format="csr"), sparse.eye(3, format="csr"), ["a", "b", "c"])
            >>> split.take(np.array([2, 0])).texts
            ['c', 'a']
        """
        texts = None if self.texts is None else [self.texts[row] for row in rows]
        unseen = None if self.unseen is None else self.unseen[rows]
        filtered = None if self.filtered is None else self.filtered[rows]
        dense = self.dense
        if dense is not None:
            dense = dense.take(rows) if isinstance(dense, TextEmbeddings) else dense[rows]
        return Split(self.X[rows], self.Y[rows], texts, unseen, filtered, dense)

    @property
    def truth(self) -> Csr:
        """All true labels, for metrics: [N, L], or [N, L + U] if there are unknown labels.

        The columns from L on are labels that the model does not know. No prediction can name them, so they
        count as misses.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Split
            >>> X = Y = sparse.eye(2, format="csr")
            >>> Split(X, Y, unseen=sparse.csr_matrix([[1.0], [0.0]])).truth.toarray()
            array([[1., 0., 1.],
                   [0., 1., 0.]])
        """
        if self.unseen is None:
            return self.Y
        return scipy.sparse.hstack([self.Y, self.unseen], format="csr")


@dataclass(frozen=True)
class Columns:
    r"""The meaning of the columns of X and Y.

    A model keeps it, and every later file is read with it.

    Attributes:
        num_features: Number of features D.
        num_labels: Number of labels L.
        svmlight_base: Number of the first feature in svmlight files, 0 or 1. None: no svmlight file was read.
        svmlight_label_base: Number of the first label in svmlight files, 0 or 1. None: no svmlight file was
            read.
        label_names: Name of each label, or None.
        feature_names: Name of each feature, or None.
        vectorizer: Turns raw text into rows of X, or None.
        num_dense: Number of dense features E, or 0.
        text_encoder: Turns texts into the dense features, as a `TextEncoder` of `mach_ext.text_encoder` does,
            or None.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import Columns, load
        >>> _ = Path("later.svm").write_text("0 1:0.5\n")  # fewer features than the model has
        >>> columns = Columns(num_features=4, num_labels=2, svmlight_base=1)
        >>> load("later.svm", columns=columns).test.X.shape
        (1, 4)
    """

    num_features: int
    num_labels: int
    svmlight_base: int | None = None
    svmlight_label_base: int | None = None
    label_names: Sequence[str] | None = None
    feature_names: Sequence[str] | None = None
    vectorizer: Vectorizer | None = None
    num_dense: int = 0
    text_encoder: Encoder | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory, as `mach_ext.data.load` returns it.

    Attributes:
        name: Name of the dataset or of its folder.
        path: The folder or file that was read.
        train, dev, test: The splits. `dev` and `test` may be None.
        label_names: Name of each label, or None.
        feature_names: Name of each feature, or None.
        vectorizer: Turns raw text into rows of X, or None.
        dev_rule: Says in words where `dev` comes from.
        svmlight_base, svmlight_label_base: As in `Columns`.
        remarks: Sentences for the user about what a reader decided or left out.

    Raises:
        ValueError: A name is not a string.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import Dataset, Split
        >>> split = Split(X=sparse.eye(3, 5, format="csr"), Y=sparse.eye(3, format="csr"))
        >>> data = Dataset("three", "three", train=split, label_names=["cat", "dog", "owl"])
        >>> data.num_features, data.num_labels, list(data.splits)
        (5, 3, ['train'])
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
        """Makes `path` a `Path` and checks the names."""
        object.__setattr__(self, "path", Path(self.path))  # users may pass a string
        for what, names in (("label_names", self.label_names), ("feature_names", self.feature_names)):
            if names is not None:
                check_names(names, f"Dataset: {what}")

    @property
    def num_features(self) -> int:
        """Number of features D.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Dataset, Split
            >>> split = Split(X=sparse.eye(3, 5, format="csr"), Y=sparse.eye(3, format="csr"))
            >>> Dataset("three", "three", split).num_features
            5
        """
        return int(self.train.X.shape[1])

    @property
    def num_dense(self) -> int:
        """Number of dense features E, or 0.

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import Dataset, Split
            >>> eye = sparse.eye(3, format="csr")
            >>> Dataset("three", "three", Split(eye, eye, dense=np.ones((3, 2)))).num_dense
            2
        """
        return 0 if self.train.dense is None else int(self.train.dense.shape[1])

    @property
    def num_labels(self) -> int:
        """Number of labels L.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Dataset, Split
            >>> split = Split(X=sparse.eye(3, 5, format="csr"), Y=sparse.eye(3, format="csr"))
            >>> Dataset("three", "three", split).num_labels
            3
        """
        return int(self.train.Y.shape[1])

    @property
    def splits(self) -> dict[str, Split]:
        """The existing splits by name.

        Data that were read for a model need no train split. An empty one is left out.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Dataset, Split
            >>> split = Split(X=sparse.eye(3, 5, format="csr"), Y=sparse.eye(3, format="csr"))
            >>> {name: len(s) for name, s in Dataset("three", "three", split, test=split).splits.items()}
            {'train': 3, 'test': 3}
        """
        named = {"train": self.train if len(self.train) else None, "dev": self.dev, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def columns(self) -> Columns:
        """The meaning of the columns, for reading further files in the same way.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Dataset, Split
            >>> split = Split(X=sparse.eye(3, 5, format="csr"), Y=sparse.eye(3, format="csr"))
            >>> Dataset("three", "three", split, label_names=["cat", "dog", "owl"]).columns.label_names
            ['cat', 'dog', 'owl']
        """
        return Columns(
            self.num_features,
            self.num_labels,
            self.svmlight_base,
            self.svmlight_label_base,
            self.label_names,
            self.feature_names,
            self.vectorizer,
            self.num_dense,
        )

    @property
    def all_train_labels(self) -> Csr:
        """Labels of all training documents.

        Documents that were held out of train as `dev` are included.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Dataset, Split, hold_out
            >>> eye = sparse.eye(30, format="csr")
            >>> data = hold_out(Dataset("eye", "eye", Split(eye, eye)))
            >>> data.train.Y.shape, data.all_train_labels.shape
            ((27, 30), (30, 30))
        """
        if self.dev is None or self.dev_rule != HOLDOUT_RULE:
            return self.train.Y
        return scipy.sparse.vstack([self.train.Y, self.dev.Y], format="csr")

    def info(self) -> dict[str, Any]:
        """Returns counts of documents, features and labels, ready for JSON.

        Example:
            >>> from scipy import sparse
            >>> from mach_ext.data import Dataset, Split
            >>> split = Split(X=sparse.eye(3, 5, format="csr"), Y=sparse.eye(3, format="csr"))
            >>> Dataset("three", "three", split).info()["splits"]["train"]["labels_per_document"]
            1.0
        """
        return {
            "name": self.name,
            "path": str(self.path),
            "num_features": self.num_features,
            "num_dense": self.num_dense,
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
    """Returns the dataset with a tenth of train held out as `dev`.

    The dataset is returned unchanged if it has a dev split or if train has fewer than ten documents.
    `HOLDOUT_RULE` says which documents are held out.

    Args:
        dataset: The dataset. It is not modified.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import Dataset, Split, hold_out
        >>> eye = sparse.eye(30, format="csr")
        >>> data = hold_out(Dataset("eye", "eye", Split(eye, eye)))
        >>> {name: len(split) for name, split in data.splits.items()}
        {'train': 27, 'dev': 3}
    """
    if dataset.dev is not None or len(dataset.train) < 10:
        return dataset
    held = _holdout(len(dataset.train))
    train, dev = dataset.train.take(np.flatnonzero(~held)), dataset.train.take(np.flatnonzero(held))
    return replace(dataset, train=train, dev=dev, dev_rule=HOLDOUT_RULE)


def _holdout(rows: int) -> NDArray[np.bool_]:
    """Returns which rows are held out. All machines and all versions of NumPy give the same result."""
    z = np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    held = np.zeros(rows, bool)
    held[np.argsort(z, kind="stable")[: rows // 10]] = True
    return held
