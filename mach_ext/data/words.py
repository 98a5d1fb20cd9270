"""The rules by which a text is split into words, which become features.

The rule "words-2" says what a word is.

* A word is a run of letters and digits of any script, with their marks. Marks are accents, vowel signs,
  joiners and other invisible characters. Apostrophes, hyphens and "_" end a word.
* Its token is its NFKC form without case and without invisible characters. So composed and decomposed accents
  give the same token, and so do half, normal and full width. Ligatures become letters, and "ß" becomes "ss".
  Case does not depend on the language. The plain and the dotted capital I both become "i".
* A token of 40 characters or more is ignored. Such tokens are addresses and encoded data.
* Chinese, Japanese, Thai, Lao, Khmer, Burmese and some other languages are written without spaces. There each
  letter with its marks is a token, and each two neighbours are a token, too.

Older vectorizers follow the rule "words-1". There a word is a run of fewer than 40 letters and digits of the
text in lower case. A mark ends the word.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, cast

Word: TypeAlias = "tuple[int, int, str]"  # start and end in the text, token

_LONGEST = 39  # maximum number of characters of a token
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

# Invisible characters, as the class of a regular expression. They are Unicode's Default_Ignorable_Code_Point
# without the zero-width space, which ends a word.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)

_INVISIBLE_RUN = re.compile(f"[{_INVISIBLE}]+")

# Unicode calls these characters letters. They act as marks of the letter before them: Thai and Lao "am", and
# the half-width voice marks of kana.
_MORE_MARKS = "\u0e33\u0eb3\uff9e\uff9f"


def _lower_words(text: str) -> Iterator[Word]:
    """Yields the words by the rule "words-1"."""
    lower = text.lower()
    at: Sequence[int] = range(len(lower))
    if len(lower) != len(text):  # the lower case of a letter can have two characters
        at = [i for i, letter in enumerate(text) for _ in letter.lower()]
    for word in _PLAIN_WORDS.finditer(lower):
        yield at[word.start()], at[word.end() - 1] + 1, word.group()


def folded_words(text: str) -> Iterator[Word]:
    """Yields the words by the rule "words-2", in the order of their starts."""
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
    """Yields the letters of a run, and each two neighbours. A letter with too many marks has no token."""
    for (start, end, token), (_, end_of_next, next_token) in itertools.zip_longest(
        letters, letters[1:], fillvalue=(0, 0, "")
    ):
        if token:
            yield start, end, token
        if token and next_token:
            yield start, end_of_next, token + next_token


def _fold(word: str) -> str:
    """Returns the token of a word or letter. The result is empty if there is none."""
    word = _INVISIBLE_RUN.sub("", word)
    # At most four characters compose to one. Longer words are skipped first, because sorting marks takes
    # quadratic time.
    if len(word) > 4 * _LONGEST:
        return ""
    folded = unicodedata.normalize("NFKC", word).casefold()
    token = unicodedata.normalize("NFKC", folded.replace("i\u0307", "i").replace(" ", ""))
    return token if len(token) <= _LONGEST else ""


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Returns two patterns: one for words, and one for the letters of scripts without spaces.

    The group "spaced" holds the words of scripts with spaces.
    """
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
    """Writes ascending characters as ranges of a regular expression's class."""
    ranges: list[list[str]] = []
    for c in characters:
        if ranges and ord(c) == ord(ranges[-1][1]) + 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return "".join(f"{first}-{last}" for first, last in ranges)


# The rules that a vectorizer's `tokens` can name.
RULES: dict[str, Callable[[str], Iterator[Word]]] = {"words-1": _lower_words, "words-2": folded_words}


def tokens_of(words: Callable[[str], Iterator[Word]], text: str) -> list[str]:
    """Returns the tokens of a text, which a vectorizer counts."""
    if text.isascii():  # all rules agree on ASCII text, and one call of the pattern is fastest
        return cast(list[str], _PLAIN_WORDS.findall(text.lower()))
    return [token for _, _, token in words(text)]
