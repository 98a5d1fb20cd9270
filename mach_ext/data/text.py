"""Raw text in: documents become TF-IDF rows. The vectoriser is kept as JSON, never as a pickle.

The rule "words-2" says what a word is:

* A word is a run of letters and digits of any script, with their marks. Marks are accents, vowel signs,
  joiners and other invisible characters. Apostrophes, hyphens and "_" end a word.
* Its token is its NFKC form without case and without invisible characters. So composed and decomposed accents
  are one, and so are half, normal and full width. Ligatures become letters, and "ß" becomes "ss". Case does
  not depend on the language: the plain and the dotted capital I both become "i".
* A token of 40 characters or more does not count. Such are addresses and encoded data.
* Chinese, Japanese, Thai, Lao, Khmer, Burmese and some more are written without spaces. There each letter
  with its marks is a token, and so are each two neighbours.

Older vectorisers follow the rule "words-1". There a word is a run of letters and digits of the lower-case
text, fewer than 40 of them, and a mark ends it.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from .._memory import check_import, memory_errors
from .parsing import check_names, parse_json, shown

if TYPE_CHECKING:
    from scipy import sparse

Word: TypeAlias = "tuple[int, int, str]"  # start and end in the text, token

_LONGEST = 39  # characters of a token
_PLAIN_WORDS = re.compile(rf"(?<![^\W_])[^\W_]{{1,{_LONGEST}}}(?![^\W_])")

# Blocks of scripts that are written without spaces between words.
_UNSPACED_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x3005, 0x3007),  # Han: repeat mark, zero
    (0x3021, 0x303C),  # Han: numerals and marks
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo
    (0x31F0, 0x31FF),  # Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),  # Han
    (0xA000, 0xA48F),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x11700, 0x1174F),  # Ahom
    (0x17000, 0x18DFF),  # Tangut, Khitan
    (0x1B000, 0x1B2FF),  # Hiragana, Katakana, Nushu
    (0x20000, 0x323AF),  # Han
)

# Invisible characters, as the class of a regular expression: Unicode's Default_Ignorable_Code_Point without
# the zero-width space, which ends a word.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)

_INVISIBLE_ONES = re.compile(f"[{_INVISIBLE}]+")

# Letters by category, but marks of the letter before them: Thai and Lao "am", half-width voice marks of kana.
_MORE_MARKS = "\u0e33\u0eb3\uff9e\uff9f"


def _lower_words(text: str) -> Iterator[Word]:
    """The words by the rule "words-1"."""
    lower = text.lower()
    at: Sequence[int] = range(len(lower))
    if len(lower) != len(text):  # a lower-case letter can be two characters
        at = [i for i, letter in enumerate(text) for _ in letter.lower()]
    for word in _PLAIN_WORDS.finditer(lower):
        yield at[word.start()], at[word.end() - 1] + 1, word.group()


def _folded_words(text: str) -> Iterator[Word]:
    """The words by the rule "words-2", in the order of their starts."""
    if text.isascii():
        yield from _lower_words(text)
        return
    words, letters = _patterns()
    for word in words.finditer(text):
        if word.lastgroup == "spaced":
            token = _fold(word.group())
            if token:
                yield word.start(), word.end(), token
        else:
            yield from _pairs(
                [(*letter.span(), _fold(letter.group())) for letter in letters.finditer(text, *word.span())]
            )


def _pairs(letters: list[Word]) -> Iterator[Word]:
    """The letters of a run, and each two neighbours. A letter without a token has too many marks."""
    for (start, end, token), (_, end_of_next, next_token) in itertools.zip_longest(
        letters, letters[1:], fillvalue=(0, 0, "")
    ):
        if token:
            yield start, end, token
        if token and next_token:
            yield start, end_of_next, token + next_token


def _fold(word: str) -> str:
    """The token of a word or letter; empty where it has none."""
    word = _INVISIBLE_ONES.sub("", word)
    if len(word) > 4 * _LONGEST:  # at most four compose to one; and the time to sort marks is quadratic
        return ""
    folded = unicodedata.normalize("NFKC", word).casefold()
    token = unicodedata.normalize("NFKC", folded.replace("i\u0307", "i").replace(" ", ""))
    return token if len(token) <= _LONGEST else ""


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Of words, in the group "spaced" where their scripts have spaces, and of the letters of the others."""
    blocks = [map(chr, range(first, last + 1)) for first, last in _UNSPACED_BLOCKS]
    letters = _class(c for block in blocks for c in block if c.isalnum() and not c.isdecimal())
    marks = _class(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c)[0] == "M")
    marks += _MORE_MARKS + _INVISIBLE
    spaced = rf"[^\W_{letters}]"
    return (
        re.compile(rf"(?P<spaced>{spaced}+(?:[{marks}]+{spaced}*)*)|[{letters}][{letters}{marks}]*"),
        re.compile(rf"[{letters}][{marks}]*"),
    )


def _class(characters: Iterable[str]) -> str:
    """Ascending characters as ranges of a regular expression's class."""
    ranges: list[list[str]] = []
    for c in characters:
        if ranges and ord(c) == ord(ranges[-1][1]) + 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return "".join(f"{first}-{last}" for first, last in ranges)


# What a vectoriser's "tokens" may be.
_RULES: dict[str, Callable[[str], Iterator[Word]]] = {"words-1": _lower_words, "words-2": _folded_words}


def _tokens(words: Callable[[str], Iterator[Word]], text: str) -> list[str]:
    """What is counted: the tokens of the words."""
    if text.isascii():  # the same by every rule; in one call
        return cast(list[str], _PLAIN_WORDS.findall(text.lower()))
    return [token for _, _, token in words(text)]


class Vectorizer:
    """Text -> sparse TF-IDF row of unit length.

    The head of this module says what a token is. Its weight is (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1),
    with n and df counted on the training texts. Rows are L2-normalised. scikit-learn's TfidfVectorizer does
    the work. This class adds a plain JSON form, whose vectoriser gives the same rows bit for bit.

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
        if not isinstance(tokens, str) or tokens not in _RULES:
            raise ValueError(f"Vectorizer: tokens must be one of {', '.join(_RULES)}, got {shown(tokens)}")
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
        tfidf = _tfidf_vectorizer(_folded_words, min_df=min_df, max_features=max_features)
        try:
            tfidf.fit(texts)
        except ValueError as error:
            raise ValueError(
                f"Vectorizer.fit: some word must occur in min_df = {min_df} texts, got: {error}"
            ) from None
        return cls(tfidf.get_feature_names_out().tolist(), tfidf.idf_.tolist())

    @memory_errors("free memory first, or split the data", "data.Vectorizer.transform")
    def transform(self, texts: Iterable[str]) -> sparse.csr_matrix:
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
        for start, end, token in _RULES[self.tokens](text):
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
        tfidf = _tfidf_vectorizer(_RULES[self.tokens], vocabulary=self.vocabulary)
        tfidf.idf_ = self.idf
        return tfidf


def _check_idf(idf: Any, word: str) -> None:
    if isinstance(idf, bool) or not isinstance(idf, (int, float)):
        raise TypeError(f"Vectorizer: every idf must be a number, got {shown(idf)} for {shown(word)}")
    if not 0 <= idf < 2.0**128 - 2.0**103:  # from there on float32 rounds to infinity
        rule = "every idf must be finite, from 0 up, and fit float32"
        raise ValueError(f"Vectorizer: {rule}, got {shown(idf)} for {shown(word)}")


def _fields(content: Any) -> tuple[list[str], list[float]]:
    """Vocabulary and idf of a vectorizer's JSON."""
    if not isinstance(content, dict):
        raise TypeError(f"it must be an object, got {shown(content)}")
    for name in ("type", "vocabulary", "idf"):
        if name not in content:
            raise KeyError(f"{name} is missing")
    if content["type"] != "tfidf":
        raise ValueError(f"type must be tfidf, got {shown(content['type'])}")
    for name in ("vocabulary", "idf"):
        if not isinstance(content[name], list):
            raise TypeError(f"{name} must be a list, got {shown(content[name])}")
    return content["vocabulary"], content["idf"]


def _tfidf_vectorizer(words: Callable[[str], Iterator[Word]], **options: Any) -> Any:
    check_import("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    analyzer = functools.partial(_tokens, words)
    return TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, dtype=np.float32, **options)


# Lone surrogates, which UTF-8 can't carry, what some readers take for the end of a line, and what steers a
# terminal. JSON's own escapes say the same.
_ESCAPED = re.compile("[\ud800-\udfff\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def json_line(record: Any) -> str:
    """A record as JSON on one line. Every script stays readable, and UTF-8 can carry the whole line.

    Example:
        >>> from mach_ext.data import json_line
        >>> json_line({"label": "हिन्दी"})
        '{"label": "हिन्दी"}'
    """
    text = json.dumps(record, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
