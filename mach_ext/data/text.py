"""Raw text in: documents become TF-IDF rows. The vectoriser is kept as JSON, never as a pickle.

The head of :mod:`mach_ext.data.words` says what a word is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mach_ext._memory import check_import, memory_errors
from mach_ext.data.json_text import json_line, parse_json
from mach_ext.data.matrices import Csr
from mach_ext.data.parsing import check_names, quote
from mach_ext.data.words import RULES, Word, folded_words, tokens_of


class Vectorizer:
    """Text -> sparse TF-IDF row of unit length.

    The head of :mod:`mach_ext.data.words` says what a token is. Its weight is
    (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1), with n and df counted on the training texts. Rows are
    L2-normalised. scikit-learn's TfidfVectorizer does the work. This class adds a plain JSON form, whose
    vectoriser gives the same rows bit for bit.

    Attributes:
        vocabulary: the tokens in column order.
        idf: their inverse document frequencies.
        tokens: the rule that makes tokens of texts, "words-2" or "words-1".

    Example:
        >>> from mach_ext.data import Vectorizer
        >>> vectorizer = Vectorizer.fit(["a big cat", "a small cat", "a big dog"], min_df=2)
        >>> vectorizer.vocabulary
        ['a', 'big', 'cat']
        >>> again = Vectorizer.from_json(vectorizer.to_json())
        >>> again.transform(["CAT, cat!"]).toarray()
        array([[0., 0., 1.]], dtype=float32)
    """

    def __init__(self, vocabulary: Sequence[str], idf: Sequence[float], *, tokens: str = "words-2") -> None:
        """Takes what the attributes of this class hold.

        Raises:
            ValueError, TypeError: other lengths, a word twice or that is no string, a bad idf.
        """
        if not isinstance(tokens, str) or tokens not in RULES:
            raise ValueError(f"Vectorizer: tokens must be one of {', '.join(RULES)}, got {quote(tokens)}")
        if len(vocabulary) != len(idf) or len(idf) == 0:
            raise ValueError(
                "Vectorizer: vocabulary and idf must be of one length, not 0, got "
                f"{len(vocabulary)} and {len(idf)}"
            )
        check_names(vocabulary, "Vectorizer: the vocabulary strings")
        if len(set(vocabulary)) != len(vocabulary):
            raise ValueError("Vectorizer: every word of the vocabulary must be there once, got one twice")
        for word, x in zip(vocabulary, idf, strict=True):
            _check_idf(x.item() if isinstance(x, np.generic) else x, word)
        self.vocabulary = list(vocabulary)
        self.idf = np.asarray(idf, np.float32)  # [D]
        self.tokens = tokens

    @classmethod
    @memory_errors("free memory first, or split the data", "data.Vectorizer.fit")
    def fit(cls, texts: Iterable[str], *, min_df: int = 2, max_features: int | None = None) -> Vectorizer:
        """Learns vocabulary and weights.

        Args:
            texts: the training documents.
            min_df: documents a word must occur in.
            max_features: keep only this many, the most frequent ones.

        Raises:
            ValueError: no word is frequent enough.
        """
        tfidf = _tfidf_vectorizer(folded_words, min_df=min_df, max_features=max_features)
        try:
            tfidf.fit(texts)
        except ValueError as error:
            raise ValueError(
                f"Vectorizer.fit: some word must occur in min_df = {min_df} texts, got: {error}"
            ) from None
        return cls(tfidf.get_feature_names_out().tolist(), tfidf.idf_.tolist())

    @memory_errors("free memory first, or split the data", "data.Vectorizer.transform")
    def transform(self, texts: Iterable[str]) -> Csr:
        """Texts -> X [N, D], CSR float32, indices sorted; unknown words count nothing."""
        return self._tfidf.transform(texts)

    def words(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """Where the words are that :meth:`transform` counts: start and end in the text, as it is, and column.

        The column is None where the vocabulary lacks the word. Starts ascend. Words of writing without spaces
        overlap: each letter is one, and so are each two neighbours.

        Example:
            >>> from mach_ext.data import Vectorizer
            >>> list(Vectorizer(["cat", "dog"], [1.0, 1.0]).words("A dog!"))
            [(0, 1, None), (2, 5, 1)]
            >>> list(Vectorizer(["京", "東京"], [1.0, 1.0]).words("東京"))
            [(0, 1, None), (0, 2, 1), (1, 2, 0)]
        """
        for start, end, token in RULES[self.tokens](text):
            yield start, end, self._columns.get(token)

    @memory_errors("free memory first, or split the data", "data.Vectorizer.to_json")
    def to_json(self) -> str:
        """The vectoriser as JSON text."""
        idf = [float(f"{x:.9g}") for x in self.idf]  # nine digits name a float32
        rule = {} if self.tokens == "words-1" else {"tokens": self.tokens}  # it had no name then
        content = {"type": "tfidf", **rule, "vocabulary": self.vocabulary, "idf": idf}
        return json_line(content)

    @classmethod
    @memory_errors("free memory first, or split the data", "data.Vectorizer.from_json")
    def from_json(cls, text: str | bytes, *, source: str = "Vectorizer.from_json") -> Vectorizer:
        """Reads what :meth:`to_json` wrote; ``source`` is how messages call it.

        Raises:
            ValueError: not such text, or of a rule for tokens that is not known here.
        """
        what = "a vectorizer's JSON"
        content = parse_json(text, source, what)
        try:
            return cls(*_fields(content), tokens=content.get("tokens", "words-1"))
        except (ValueError, TypeError, KeyError) as error:
            said = f"{type(error).__name__}: {error.args[0]}"
            raise ValueError(f"{source}: must be {what}, got: {said}") from None

    @functools.cached_property
    def _columns(self) -> dict[str, int]:
        return {word: column for column, word in enumerate(self.vocabulary)}

    @functools.cached_property
    def _tfidf(self) -> Any:
        tfidf = _tfidf_vectorizer(RULES[self.tokens], vocabulary=self.vocabulary)
        tfidf.idf_ = self.idf
        return tfidf


def _check_idf(idf: Any, word: str) -> None:
    if isinstance(idf, bool) or not isinstance(idf, (int, float)):
        raise TypeError(f"Vectorizer: every idf must be a number, got {quote(idf)} for {quote(word)}")
    if not 0 <= idf < 2.0**128 - 2.0**103:  # from there on float32 rounds to infinity
        rule = "every idf must be finite, from 0 up, and fit float32"
        raise ValueError(f"Vectorizer: {rule}, got {quote(idf)} for {quote(word)}")


def _fields(content: Any) -> tuple[list[str], list[float]]:
    """Vocabulary and idf of a vectorizer's JSON."""
    if not isinstance(content, dict):
        raise TypeError(f"it must be an object, got {quote(content)}")
    for name in ("type", "vocabulary", "idf"):
        if name not in content:
            raise KeyError(f"{name} is missing")
    if content["type"] != "tfidf":
        raise ValueError(f"type must be tfidf, got {quote(content['type'])}")
    for name in ("vocabulary", "idf"):
        if not isinstance(content[name], list):
            raise TypeError(f"{name} must be a list, got {quote(content[name])}")
    return content["vocabulary"], content["idf"]


def _tfidf_vectorizer(words: Callable[[str], Iterator[Word]], **options: Any) -> Any:
    check_import("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    analyzer = functools.partial(tokens_of, words)
    return TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, dtype=np.float32, **options)
