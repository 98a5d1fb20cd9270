"""From labelled texts to a dataset: the split, the labels that are kept, and the features."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mach_ext.data import Dataset, Split, Vectorizer, label_matrix


class Document(NamedTuple):
    """A text with labels.

    Documents of one `group` stand in the same split. The key is also the group if none is given.
    """

    key: str
    text: str
    labels: Sequence[str]
    group: str = ""


@dataclass(frozen=True)
class Rule:
    """Says which documents, labels and features a dataset keeps.

    Attributes:
        train: The largest number of training documents.
        test: The largest number of test documents.
        min_count: The number of training documents that a label must have.
        max_share: A label on a larger share of the training documents is left out.
        min_df: The number of training documents that a feature must occur in.
        features: The largest number of features, the most frequent first. None: all.
    """

    train: int = 60_000
    test: int = 10_000
    min_count: int = 1
    max_share: float = 1.0
    min_df: int = 2
    features: int | None = None


def digest(text: str) -> bytes:
    """The same bytes for the same text on every machine: they stand in for random numbers."""
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def in_test(document: Document) -> bool:
    """Whether a document belongs to test, as a fifth of the groups do."""
    return digest(document.group or document.key)[0] < 51


def assemble(name: str, source: Path, documents: Iterable[Document], rule: Rule) -> Dataset:
    """Builds a dataset of documents. There is no dev split.

    The labels are counted in train alone. Documents without labels are left out, before and after the labels
    are chosen. If there are too many documents, those stay whose keys have the smallest digests.

    Raises:
        ValueError: A split has no documents, or a key occurs twice.
    """
    documents = [document for document in documents if document.labels]
    if len({document.key for document in documents}) != len(documents):
        raise ValueError(f"{source}: the keys of the documents must differ, got a key twice")
    train = _sample([document for document in documents if not in_test(document)], rule.train)
    test = _sample([document for document in documents if in_test(document)], rule.test)
    counts = Counter(label for document in train for label in {*document.labels})
    most = rule.max_share * len(train)
    kept = {label for label, count in counts.items() if rule.min_count <= count <= most}
    train, test = _keep_labels(train, kept), _keep_labels(test, kept)
    if not train or not test:
        raise ValueError(
            f"{source}: {name} must have documents in both splits, got {len(train)}, {len(test)}"
        )
    columns = sorted({label for document in train for label in document.labels})
    vectorizer = Vectorizer.fit(
        (document.text for document in train), min_df=rule.min_df, max_features=rule.features
    )
    return Dataset(
        name=name,
        path=source,
        train=_split(train, columns, vectorizer),
        test=_split(test, columns, vectorizer),
        label_names=columns,
        feature_names=vectorizer.vocabulary,
        vectorizer=vectorizer,
    )


def _sample(documents: list[Document], count: int) -> list[Document]:
    """At most `count` documents, in their order."""
    if len(documents) <= count:
        return documents
    keys = sorted((document.key for document in documents), key=digest)
    chosen = {*keys[:count]}
    return [document for document in documents if document.key in chosen]


def _keep_labels(documents: list[Document], kept: set[str]) -> list[Document]:
    """The documents with those of their labels that are kept, without documents that have none."""
    pruned = (document._replace(labels=sorted(kept & {*document.labels})) for document in documents)
    return [document for document in pruned if document.labels]


def _split(documents: list[Document], columns: list[str], vectorizer: Vectorizer) -> Split:
    texts = [document.text for document in documents]
    return Split(vectorizer.transform(texts), label_matrix([d.labels for d in documents], columns), texts)
