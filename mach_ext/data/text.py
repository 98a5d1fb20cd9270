"""Turns raw text into TF-IDF rows. The vectorizer is stored as JSON, never as a pickle.

The module `mach_ext.data.words` says what a word is.
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
    """Turns a text into a sparse TF-IDF row of length 1.

    The module `mach_ext.data.words` says what a token is. A token's weight is `(1 + ln tf) * (ln((1 + n) / (1
    + df)) + 1)`. Here tf counts the token in the text. n is the number of training texts, and df of them
    contain the token. Each row is divided by its Euclidean length.

    scikit-learn's `TfidfVectorizer` does the work. This class adds a plain JSON form. A vectorizer that is
    read from JSON gives the same rows bit for bit.

    Attributes:
        vocabulary: The tokens in column order [D].
        idf: Their inverse document frequencies [D], float32.
        tokens: Name of the rule that makes tokens of texts, "words-2" or "words-1".

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
        """Makes a vectorizer of a known vocabulary.

        Args:
            vocabulary: The tokens in column order [D].
            idf: Their inverse document frequencies [D].
            tokens: Name of the rule that makes tokens of texts.

        Raises:
            TypeError: An idf is not a number.
            ValueError: The lengths differ, a word occurs twice or is not a string, or an idf is out of range.
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
            raise ValueError("Vectorizer: a word of the vocabulary must occur only once, got a word twice")
        for word, x in zip(vocabulary, idf, strict=True):
            _check_idf(x.item() if isinstance(x, np.generic) else x, word)
        self.vocabulary = list(vocabulary)
        self.idf = np.asarray(idf, np.float32)  # [D]
        self.tokens = tokens

    @classmethod
    @memory_errors("free memory first, or split the data", "data.Vectorizer.fit")
    def fit(cls, texts: Iterable[str], *, min_df: int = 2, max_features: int | None = None) -> Vectorizer:
        """Learns the vocabulary and the weights from training texts.

        Args:
            texts: The training documents.
            min_df: Number of documents that a word must occur in.
            max_features: Number of words to keep, the most frequent first. None: all.

        Raises:
            ValueError: No word is frequent enough.

        Example:
            >>> from mach_ext.data import Vectorizer
            >>> Vectorizer.fit(["a big cat", "a cat"], min_df=1).vocabulary
            ['a', 'big', 'cat']
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
        """Turns texts into rows X [N, D], CSR float32 with sorted indices. Unknown words are ignored.

        Args:
            texts: The N documents.

        Example:
            >>> from mach_ext.data import Vectorizer
            >>> vectorizer = Vectorizer(["cat", "dog"], [1.0, 1.0])
            >>> vectorizer.transform(["a dog", "no animal"]).toarray()
            array([[0., 1.],
                   [0., 0.]], dtype=float32)
        """
        return self._tfidf.transform(texts)

    def words(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """Yields where a text has words, and which columns of `transform` they count in.

        Starts ascend. In scripts without spaces the words overlap, because each letter and each two
        neighbours are a word.

        Args:
            text: A document.

        Yields:
            Start and end in the text, and the column. The column is None if the vocabulary lacks the word.

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
        """Returns the vectorizer as JSON text.

        Example:
            >>> from mach_ext.data import Vectorizer
            >>> Vectorizer(["cat"], [1.5]).to_json()
            '{"type": "tfidf", "tokens": "words-2", "vocabulary": ["cat"], "idf": [1.5]}'
        """
        idf = [float(f"{x:.9g}") for x in self.idf]  # nine digits identify a float32
        rule = {} if self.tokens == "words-1" else {"tokens": self.tokens}  # files of "words-1" name no rule
        content = {"type": "tfidf", **rule, "vocabulary": self.vocabulary, "idf": idf}
        return json_line(content)

    @classmethod
    @memory_errors("free memory first, or split the data", "data.Vectorizer.from_json")
    def from_json(cls, text: str | bytes, *, source: str = "Vectorizer.from_json") -> Vectorizer:
        """Reads the JSON text that `to_json` wrote.

        Args:
            text: The JSON text.
            source: How messages call the text.

        Raises:
            ValueError: The text is not a vectorizer's JSON, or its rule for tokens is unknown.

        Example:
            >>> from mach_ext.data import Vectorizer
            >>> Vectorizer.from_json('{"type": "tfidf", "vocabulary": ["cat"], "idf": [1.5]}').idf
            array([1.5], dtype=float32)
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
        """The column of each word."""
        return {word: column for column, word in enumerate(self.vocabulary)}

    @functools.cached_property
    def _tfidf(self) -> Any:
        """scikit-learn's vectorizer with this vocabulary and these weights."""
        tfidf = _tfidf_vectorizer(RULES[self.tokens], vocabulary=self.vocabulary)
        tfidf.idf_ = self.idf
        return tfidf


def _check_idf(idf: Any, word: str) -> None:
    """Refuses an inverse document frequency that is not a number of float32 from 0 up."""
    if isinstance(idf, bool) or not isinstance(idf, (int, float)):
        raise TypeError(f"Vectorizer: every idf must be a number, got {quote(idf)} for {quote(word)}")
    if not 0 <= idf < 2.0**128 - 2.0**103:  # larger numbers round to infinity in float32
        rule = "every idf must be finite, from 0 up, and fit float32"
        raise ValueError(f"Vectorizer: {rule}, got {quote(idf)} for {quote(word)}")


def _fields(content: Any) -> tuple[list[str], list[float]]:
    """Returns vocabulary and idf of a vectorizer's JSON."""
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
    """Makes scikit-learn's vectorizer with one of our rules for words."""
    check_import("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    analyzer = functools.partial(tokens_of, words)
    return TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, dtype=np.float32, **options)
