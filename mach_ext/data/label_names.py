"""Names of labels as training documents: what a label is called says what its documents are about."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import scipy  # scipy.sparse is loaded at its first use
from numpy.typing import NDArray

from mach_ext.data.dataset import Dataset, Split
from mach_ext.data.matrices import Csr, row_lengths, spaced_rows, unit_rows

MOST_DOCUMENTS = 3  # of a label whose name becomes a document; others have documents enough
LEAST_SHARE = 0.02  # of the pairs of documents and labels whose label is rare, for `names_tell`
LEAST_COSINE, LEAST_RATIO = 0.02, 3  # of documents and the names of their labels, for `names_tell`
MOST_ASKED = 3000  # documents
_WORD = re.compile(r"\w+")


def with_label_names(dataset: Dataset, most_documents: int = MOST_DOCUMENTS) -> Split:
    """Returns train with another document for each rare label: its name.

    A label with few training documents, or none, is learnt from its name as well. This pays where the words
    of a name stand in the documents, such as subjects in titles.

    The name has its label, and the labels that all training documents of the label have. Where labels form a
    hierarchy, those are the ones above it. Otherwise they would be taught as wrong.

    A name becomes a row of X as a text does, by the dataset's vectorizer. Without one, its words are looked
    up among the names of the features. A word then has the mean of its values in train. Where the rows of
    train have one length, so has the name.

    There are at most as many names as documents. Names without a known word become no document. Neither do
    names of a dataset with dense features.

    Args:
        dataset: The dataset. It is not modified.
        most_documents: A label is rare if it has at most so many training documents.

    Example:
        >>> import numpy as np
        >>> from scipy import sparse
        >>> from mach_ext.data import Dataset, Split, with_label_names
        >>> eye = sparse.eye(3, format="csr", dtype=np.float32)
        >>> X = sparse.csr_matrix([[1, 0, 0]] * 4 + [[0, 1, 1]], dtype=np.float32)
        >>> train = Split(X, eye[[0] * 4 + [1]])
        >>> pets = Dataset("pets", "pets", train, label_names=["cat", "dog", "owl"],
        ...                feature_names=["cat", "dog", "owl"])
        >>> with_label_names(pets).Y[5:].toarray()
        array([[0., 1., 0.],
               [0., 0., 1.]], dtype=float32)
    """
    train = dataset.train
    if dataset.label_names is None or dataset.num_dense:
        return train
    counts = train.Y.getnnz(axis=0)
    rare = np.flatnonzero(counts <= most_documents)
    if rare.size > len(train):  # The names must not swamp the documents. Those that occur most come first.
        rare = np.sort(rare[np.argsort(-counts[rare], kind="stable")[: len(train)]])
    rows = _rows(dataset, [_name(dataset.label_names[label]) for label in rare.tolist()])
    rows.eliminate_zeros()  # words that no document of train has
    known = np.flatnonzero(np.diff(rows.indptr))
    if not known.size:
        return train
    Y = _shared(train.Y, rare[known]).astype(train.Y.dtype)
    X = scipy.sparse.vstack([train.X, rows[known].astype(train.X.dtype)], format="csr")
    return Split(X, scipy.sparse.vstack([train.Y, Y], format="csr"))


def _shared(Y: Csr, labels: NDArray[np.integer[Any]]) -> Csr:
    """Returns a row for each label: the label, and the labels that all its documents have.

    Args:
        Y: Labels of the documents [N, L].
        labels: Numbers of rare labels [M].
    """
    ones = scipy.sparse.csr_matrix(Y, dtype=np.float32, copy=True)
    ones.sum_duplicates()
    ones.eliminate_zeros()
    ones.data[:] = 1
    of = ones.tocsc()[:, labels].T.tocsr()  # [M, N]
    together = of @ ones  # [M, L]: the documents that both labels have
    counts = np.repeat(of.getnnz(axis=1), np.diff(together.indptr))
    together.data = (together.data == counts).astype(np.float32)
    itself = scipy.sparse.csr_matrix(
        (np.ones(len(labels), np.float32), labels, np.arange(len(labels) + 1)), together.shape
    )
    shared = together.maximum(itself).tocsr()
    shared.eliminate_zeros()
    shared.sort_indices()
    return shared


def names_tell(dataset: Dataset) -> bool:
    """Returns whether names of rare labels are worth learning from.

    At least 2 % of what is to be learnt must be rare: pairs of a document and a label with at most three
    documents. Elsewhere names have little to add. And documents must share words with the names of their
    labels. The mean cosine of documents and the names of their labels must be at least 0.02. It must also be
    three times that of documents and the names of other documents' labels.

    Args:
        dataset: The dataset. Up to 3,000 documents of train are asked.

    Example:
        >>> import numpy as np
        >>> from scipy import sparse
        >>> from mach_ext.data import Dataset, Split, names_tell
        >>> eye = sparse.eye(8, format="csr", dtype=np.float32)
        >>> names = ["cat", "dog", "owl", "hen", "cow", "pig", "bee", "ant"]
        >>> names_tell(Dataset("pets", "pets", Split(eye, eye), label_names=names, feature_names=names))
        True
    """
    if dataset.label_names is None or dataset.num_dense or not len(dataset.train):
        return False
    counts = dataset.train.Y.getnnz(axis=0)
    if counts[counts <= MOST_DOCUMENTS].sum() < LEAST_SHARE * counts.sum():
        return False
    rows = spaced_rows(len(dataset.train), MOST_ASKED)
    pairs = dataset.train.Y[rows].tocoo()
    if not pairs.nnz:
        return False
    documents = unit_rows(dataset.train.X[rows])
    labels, own = np.unique(pairs.col, return_inverse=True)
    names = unit_rows(_rows(dataset, [_name(dataset.label_names[label]) for label in labels.tolist()]))
    others = np.random.RandomState(0).permutation(own)
    true, false = (
        float(documents[pairs.row].multiply(names[each]).sum()) / pairs.nnz for each in (own, others)
    )
    return bool(true >= LEAST_COSINE and true >= LEAST_RATIO * false)


def _rows(dataset: Dataset, names: list[str]) -> Csr:
    """Returns the rows of X [names, D] that the names have as texts."""
    if not names:
        return scipy.sparse.csr_matrix((0, dataset.num_features), dtype=np.float32)
    if dataset.vectorizer is not None:
        return dataset.vectorizer.transform(names)
    columns: dict[str, int] = {}
    for column, name in enumerate(dataset.feature_names or ()):
        columns.setdefault(name.casefold(), column)
    found = [sorted({columns[word] for word in _words(name) if word in columns}) for name in names]
    indices = np.array([column for row in found for column in row], np.int32)
    indptr = np.cumsum([0, *map(len, found)])
    values = _usual_values(dataset.train.X)[indices]
    rows = scipy.sparse.csr_matrix((values, indices, indptr), (len(names), dataset.num_features))
    lengths = row_lengths(dataset.train.X)
    lengths = lengths[lengths > 0]
    if lengths.size and lengths.max() < 1.001 * lengths.min():
        own = row_lengths(rows)
        own[own == 0] = 1
        rows.data *= np.repeat(np.median(lengths) / own, np.diff(rows.indptr))
    return rows


def _name(entry: str) -> str:
    """Returns a label's name without the number or code that may stand before it, with a tab between."""
    return entry.rpartition("\t")[2]


def _words(name: str) -> list[str]:
    return _WORD.findall(name.casefold())


def _usual_values(X: Csr) -> NDArray[np.float64]:
    """Returns the mean of the values of each feature in the documents that have it, [D]."""
    sums = np.bincount(X.indices, weights=X.data, minlength=X.shape[1])
    counts = np.bincount(X.indices, minlength=X.shape[1])
    means: NDArray[np.float64] = sums / np.maximum(counts, 1)
    return means
