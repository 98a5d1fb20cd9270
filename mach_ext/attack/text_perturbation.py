"""`TextPerturbation`: the result of an attack on texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from mach_ext.attack._text_model import TextModel
from mach_ext.attack._text_words import Span, without
from mach_ext.nn import checked_k


class TextPerturbation:
    """Adversarial texts: the texts without some of their words. `WordDeletion` returns it.

    Attributes:
        texts: The clean texts, N.
        words: The largest number of words that were deleted from a text.
        adversarial: The changed texts, N.
        loss, clean_loss: Loss of each adversarial and clean text [N], float64. The attack raises it.
        targets: For targeted goals, the label that is to leave or enter [N]. -1: none. None for other goals.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> texts = ["a big cat", "a small dog", "a cat", "the dog"]
        >>> vectorizer = mach_ext.data.Vectorizer.fit(texts, min_df=1)
        >>> X, Y = vectorizer.transform(texts), sparse.csr_matrix([[1, 0], [0, 1], [1, 0], [0, 1]])
        >>> model = mach_ext.MACH(X.shape[1], 2, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> found = mach_ext.attack.WordDeletion(model, vectorizer=vectorizer).perturb(texts, Y)
        >>> found, found.adversarial
        (TextPerturbation(N=4, words=1), ['a big', 'a small', 'a', 'the'])
    """

    def __init__(
        self,
        model: TextModel,
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]],
        words: int,
        deleted: list[tuple[int, ...]],
        losses: tuple[NDArray[np.float64], NDArray[np.float64]],
        targets: NDArray[np.int64] | None,
    ) -> None:
        """Takes the words that were deleted from each text, in the order of their deletion."""
        self._model, self._spans, self._deleted = model, spans, deleted
        self.texts, self.words, self.targets = list(texts), words, targets
        self.loss, self.clean_loss = losses
        self.adversarial = [
            without(text, words, gone)[0] for text, words, gone in zip(texts, spans, deleted, strict=True)
        ]

    def __repr__(self) -> str:
        """Returns the number of texts and of words."""
        return f"TextPerturbation(N={len(self.texts)}, words={self.words})"

    @functools.cached_property
    def _documents(self) -> Any:
        return self._model.documents(self.adversarial)

    def documents(self) -> Any:
        """Returns the documents of the adversarial texts, a SciPy matrix or a `mach_ext.data.HybridMatrix`.

        Both features follow the text: its TF-IDF row and its embedding are those of the changed text.

        Example:
            >>> import mach_ext
            >>> vectorizer = mach_ext.data.Vectorizer.fit(["a cat", "a dog"], min_df=1)
            >>> model = mach_ext.MACH(3, 2, num_repetitions=8, num_buckets=4, hidden_size=4)
            >>> attack = mach_ext.attack.WordDeletion(model, vectorizer=vectorizer, goal="own", k=1)
            >>> attack.perturb(["a cat"], words=1).documents().shape
            (1, 3)
        """
        return self._documents

    def predict(self, k: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns the top k of the adversarial texts.

        Args:
            k: Size of the top k. None: 5, or L if there are fewer labels.

        Returns:
            Scores [N, k], float32, and labels [N, k], int64.

        Raises:
            ValueError: k is out of range.

        Example:
            >>> import mach_ext
            >>> vectorizer = mach_ext.data.Vectorizer.fit(["a cat", "a dog"], min_df=1)
            >>> model = mach_ext.MACH(3, 2, num_repetitions=8, num_buckets=4, hidden_size=4)
            >>> attack = mach_ext.attack.WordDeletion(model, vectorizer=vectorizer, goal="own", k=1)
            >>> scores, labels = attack.perturb(["a cat"], words=1).predict(k=2)
            >>> labels.shape
            (1, 2)
        """
        k = checked_k("TextPerturbation.predict", k, self._model.model.num_labels)
        answer: tuple[NDArray[Any], NDArray[Any]] = self._model.model.predict(self._documents, k)
        return answer

    @property
    def norms(self) -> dict[str, NDArray[np.float64]]:
        """Numbers of deleted words, and norms of the change of the documents that the model takes [N].

        "removed" counts the words, and "added" is 0. "linf", "l2" and "l1" are norms of the joined documents.

        Example:
            >>> import mach_ext
            >>> vectorizer = mach_ext.data.Vectorizer.fit(["a cat", "a dog"], min_df=1)
            >>> model = mach_ext.MACH(3, 2, num_repetitions=8, num_buckets=4, hidden_size=4)
            >>> attack = mach_ext.attack.WordDeletion(model, vectorizer=vectorizer, goal="own", k=1)
            >>> sorted(attack.perturb(["a cat"], words=1).norms)
            ['added', 'l1', 'l2', 'linf', 'removed']
        """
        model = self._model
        before, after = (model.joined(d) for d in (model.documents(self.texts), self._documents))
        change = abs(scipy.sparse.csr_matrix(after, dtype=np.float64) - before)
        return {
            "linf": change.max(1).toarray()[:, 0] if change.shape[0] else np.empty(0),
            "l2": np.sqrt(np.asarray(change.multiply(change).sum(1))[:, 0]),
            "l1": np.asarray(change.sum(1))[:, 0],
            "added": np.zeros(len(self.texts)),
            "removed": np.array([len(gone) for gone in self._deleted], np.float64),
        }

    def deleted(self, n: int) -> list[tuple[int, str]]:
        """Returns where the deleted words of text n began, and the words, in the order of their deletion.

        Args:
            n: Number of the text.

        Raises:
            ValueError: n is out of range.

        Example:
            >>> import mach_ext
            >>> vectorizer = mach_ext.data.Vectorizer.fit(["a cat", "a dog"], min_df=1)
            >>> model = mach_ext.MACH(3, 2, num_repetitions=8, num_buckets=4, hidden_size=4)
            >>> attack = mach_ext.attack.WordDeletion(model, vectorizer=vectorizer, goal="own", k=1)
            >>> attack.perturb(["a cat"], words=0).deleted(0)
            []
        """
        if not 0 <= n < len(self.texts):
            raise ValueError(f"TextPerturbation.deleted: n must be in [0, N={len(self.texts)}), got {n}")
        spans = [self._spans[n][number] for number in self._deleted[n]]
        return [(start, self.texts[n][start:end]) for start, end in spans]
