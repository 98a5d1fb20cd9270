"""Raw text in: documents become TF-IDF rows. The vectoriser is kept as JSON, never as a pickle."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

# Whole words of letters and digits, fewer than 40 of them.
TOKEN_PATTERN = r"(?<![^\W_])[^\W_]{1,39}(?![^\W_])"


class Vectorizer:
    """Text -> sparse TF-IDF row of unit length.

    Lower case; tokens are runs of letters and digits with fewer than 40 characters; weight of a token is
    (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1), with n and df counted on the training texts; rows are
    L2-normalised. scikit-learn's TfidfVectorizer does the work; this class adds a plain JSON form, whose
    vectoriser gives the same rows bit for bit.

    Example:
        >>> from mach_ext.data import Vectorizer
        >>> vectorizer = Vectorizer.fit(["a big cat", "a small cat", "a big dog"], min_df=2)
        >>> vectorizer.vocabulary
        ['a', 'big', 'cat']
        >>> again = Vectorizer.from_json(vectorizer.to_json())
        >>> again.transform(["CAT, cat!"]).toarray()
        array([[0., 0., 1.]], dtype=float32)
    """

    def __init__(self, vocabulary: Sequence[str], idf: Sequence[float]) -> None:
        """Takes the words in column order and their inverse document frequencies."""
        if len(vocabulary) != len(idf) or len(idf) == 0:
            raise ValueError(
                "Vectorizer: vocabulary and idf must be of one length, not 0, got "
                f"{len(vocabulary)} and {len(idf)}"
            )
        if len(set(vocabulary)) != len(vocabulary):
            raise ValueError("Vectorizer: every word of the vocabulary must be there once, got one twice")
        if not all(math.isfinite(x) for x in idf):
            raise ValueError("Vectorizer: every idf must be finite, got NaN or infinity")
        self.vocabulary = list(vocabulary)
        self.idf = np.asarray(idf, np.float32)  # [D]

    @classmethod
    def fit(cls, texts: Iterable[str], *, min_df: int = 2, max_features: int | None = None) -> Vectorizer:
        """Learns vocabulary and weights.

        Args:
            texts: the training documents.
            min_df: documents a word must occur in.
            max_features: keep only this many, the most frequent ones.

        Raises:
            ValueError: no word is frequent enough.
        """
        tfidf = _tfidf_vectorizer(min_df=min_df, max_features=max_features)
        try:
            tfidf.fit(texts)
        except ValueError as error:
            raise ValueError(
                f"Vectorizer.fit: some word must occur in min_df = {min_df} texts, got: {error}"
            ) from None
        return cls(tfidf.get_feature_names_out().tolist(), tfidf.idf_.tolist())

    def transform(self, texts: Iterable[str]) -> sparse.csr_matrix:
        """Texts -> X [N, D], CSR float32, indices sorted; unknown words count nothing."""
        return self._tfidf.transform(texts)

    def words(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """Where the words of a text are: start, end and column in the vocabulary, None if it is not there.

        Example:
            >>> from mach_ext.data import Vectorizer
            >>> list(Vectorizer(["cat", "dog"], [1.0, 1.0]).words("A dog!"))
            [(0, 1, None), (2, 5, 1)]
        """
        for word in re.finditer(TOKEN_PATTERN, text):
            yield word.start(), word.end(), self._columns.get(word.group().lower())

    def to_json(self) -> str:
        """The vectoriser as JSON text."""
        idf = [float(f"{x:.9g}") for x in self.idf]  # nine digits name a float32
        return json.dumps({"type": "tfidf", "vocabulary": self.vocabulary, "idf": idf}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "Vectorizer.from_json") -> Vectorizer:
        """Reads what :meth:`to_json` wrote; ``source`` is how messages call it.

        Raises:
            ValueError: not such text.
        """
        try:
            content = json.loads(text)
            if content["type"] != "tfidf" or not all(isinstance(word, str) for word in content["vocabulary"]):
                raise ValueError("type must be tfidf, the vocabulary strings")
            return cls(content["vocabulary"], [float(x) for x in content["idf"]])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{source}: must be a vectorizer's JSON, got: {error!r}") from None

    @functools.cached_property
    def _columns(self) -> dict[str, int]:
        return {word: column for column, word in enumerate(self.vocabulary)}

    @functools.cached_property
    def _tfidf(self) -> Any:
        tfidf = _tfidf_vectorizer(vocabulary=self.vocabulary)
        tfidf.idf_ = self.idf
        return tfidf


def _tfidf_vectorizer(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    return TfidfVectorizer(token_pattern=TOKEN_PATTERN, sublinear_tf=True, dtype=np.float32, **options)
