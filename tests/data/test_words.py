"""Texts of every script: what a word is, and where it stands."""
# ruff: noqa: RUF001 (letters that look like others are the point here)

import collections
import itertools
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from mach_ext import data
from mach_ext.data import Vectorizer

# Letters, marks and everything that composes, folds, joins or separates in some way of its own.
ODD = (
    "aAiIıİſßẞςΣσΌé \n'_-.0٣๒²½\u0000\ud83d\udc00\u0301\u0307\u0323\u0345\u0316\u034f\u00ad\u200b\u200c\u200d"
    "\u200f\ufeff\ufe0f\u3164ﬁŀǅŉﷺﻻﺍ\u064eहिन्दी\u093c\u09c7\u09be한각ᄀ\u1161\u11a8ﾡￂ東京々〇ー\U00020000\ufa30"
    "\U000e0100かがカﾞｶﾟ\u3099กำ้เແຳខ្មែမြန်\U0001d15e≮Å\u1e9b\u0344\u0f73\U00011131\U00011127😀\u20e3"
)
texts = st.text(st.one_of(st.sampled_from(ODD), st.characters()), max_size=40)


def tokens(text):
    """What is counted, through the public way."""
    fitted = Vectorizer.fit([text, "filler"], min_df=1).vocabulary
    return [token for token in fitted if token != "filler"]


def row_of(vectorizer, text):
    """The row that the words make: 1 + ln tf, of length 1."""
    counts = collections.Counter(column for _, _, column in vectorizer.words(text) if column is not None)
    row = np.zeros(len(vectorizer.vocabulary))
    for column, count in counts.items():
        row[column] = (1 + math.log(count)) * vectorizer.idf[column]
    return row / (np.linalg.norm(row) or 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("क्\u200dष क्\u200cष", ["क्ष"]),  # joiners are invisible
        ("می\u200cخواهم", ["میخواهم"]),
        ("français", ["français"]),
        ("franc\u0327ais", ["français"]),
        ("İstanbul istanbul I\u0307STANBUL", ["istanbul"]),
        ("ışık IŞIK", ["işik", "ışık"]),  # without regard to the language
        ("Straße STRASSE STRAẞE", ["strasse"]),
        ("ὈΔΥΣΣΕΎΣ ὀδυσσεύς", ["ὀδυσσεύσ"]),
        ("Σ'α", ["α", "σ"]),  # lower() looks beyond the word
        ("ﬁn ﬀ", ["ff", "fin"]),
        ("ＡＢＣ１２ abc12", ["abc12"]),
        ("ﻻ لا", ["لا"]),
        ("co\u00adoperate \ufeffword\u200f", ["cooperate", "word"]),
        ("one\u200btwo", ["one", "two"]),
        ("don't l'été a_b x-y", ["a", "b", "don", "l", "t", "x", "y", "été"]),
        ("١٢٣ २०२४ 3a", ["3a", "١٢٣", "२०२४"]),
        ("한국어 " + unicodedata.normalize("NFD", "한국어"), ["한국어"]),
        ("བོད་སྐད་", ["བོད", "སྐད"]),
        ("東京", ["京", "東", "東京"]),
        ("東 京", ["京", "東"]),
        ("二〇年2024年", ["2024", "〇", "〇年", "二", "二〇", "年"]),
        ("ｶﾞガか\u3099", ["が", "ガ", "ガが", "ガガ"]),
        ("ラーメン", ["ラ", "ラー", "ー", "ーメ", "メ", "メン", "ン"]),
        ("น้ำดี", ["ดี", "น้ํา", "น้ําดี"]),  # NFKC takes "am" apart
        ("iPhoneรุ่น๑๕", ["iphone", "น", "รุ่", "รุ่น", "๑๕"]),
        ("葛\U000e0100", ["葛"]),
        ("x" * 39 + " " + "y" * 40, ["x" * 39]),
        ("é" * 39 + " " + "e\u0301" * 39 + " " + "é" * 40, ["é" * 39]),
        ("", []),
        (" \n\t\u3000", []),
        ("!?… — «»、。।", []),
        ("😀👩\u200d👧❤\ufe0f", []),
        ("\u0301\u093f\u200d\ufeff\u3164\u115f", []),  # marks without a letter
        ("\ud83d\udc00 \x00", []),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == sorted(expected)


@pytest.mark.parametrize(
    "letters",
    [
        "中文字",
        "ひらがな",
        "カタカナ",
        "ไทย",
        "ລາວ",
        "ខ្មែរ",
        "မြန်မာ",
        "ꆈꌠ",
        "ꦗꦮ",
        "ᬩᬮᬶ",
        "ᥖᥭᥰ",
        "ᦅᦷᦑ",
        "ᨲ᩠ᩅᩫ",
        "ㄅㄆㄇ",
        "𠀀𪛖",
        "ｶﾀｶﾅ",
    ],
)
def test_writing_without_spaces_does_not_vanish(letters):
    assert 3 < len(tokens(letters * 40)) < 20
    assert all(len(token) < 12 for token in tokens(letters * 40))


def test_words_overlap_where_letters_do():
    vectorizer = Vectorizer(["東", "東京", "京", "2024", "น้ําดี"], [1.0] * 5)
    assert list(vectorizer.words("東京2024 東")) == [(0, 1, 0), (0, 2, 1), (1, 2, 2), (2, 6, 3), (7, 8, 0)]
    assert list(vectorizer.words("น้ำดี")) == [(0, 3, None), (0, 5, 4), (3, 5, None)]
    assert list(Vectorizer(["istanbul"], [1.0]).words("I\u0307STANBUL!")) == [(0, 9, 0)]


@given(st.lists(texts, min_size=1, max_size=4), st.sampled_from(["words-1", "words-2"]))
def test_the_words_are_those_that_transform_counts(some, rule):
    found = sorted({token for text in some for token in tokens(text)})
    vectorizer = Vectorizer(found or ["a"], [1.5] * max(1, len(found)), tokens=rule)
    expected = [row_of(vectorizer, text) for text in some]
    np.testing.assert_allclose(vectorizer.transform(some).toarray(), expected, rtol=1e-5)


@given(texts)
def test_the_place_of_a_word_is_the_word(text):
    found = tokens(text)
    vectorizer = Vectorizer(found or ["a"], [1.0] * max(1, len(found)))
    words = list(vectorizer.words(text))
    assert {column for _, _, column in words} == set(range(len(found)))
    assert [word[:2] for word in words] == sorted(word[:2] for word in words)
    for start, end, column in words:
        assert 0 <= start < end <= len(text)
        assert (0, end - start, column) in list(vectorizer.words(text[start:end]))
        assert len(found[column]) < 40
        assert not any(c.isspace() for c in found[column])
        assert end == len(text) or unicodedata.category(text[end])[0] != "M"


@given(texts)
def test_composed_and_decomposed_text_is_one(text):
    assert tokens(unicodedata.normalize("NFC", text)) == tokens(unicodedata.normalize("NFD", text))


def test_every_character_decomposed_is_the_same_word():
    """All that Unicode composes, in the neighbourhoods that could make a difference."""
    composed = [c for c in map(chr, range(0x110000)) if unicodedata.decomposition(c)[:1] not in ("", "<")]
    assert len(composed) > 2000
    words = data.words.folded_words
    for around in ("{}", "a{}b", "क{}", "東{}東", "か{}\u3099"):
        for c in [*composed, *"가각힣"]:
            text, apart = around.format(c), around.format(unicodedata.normalize("NFD", c))
            assert [w for *_, w in words(text)] == [w for *_, w in words(apart)], (text, hex(ord(c)))


def test_folding_twice_changes_nothing():
    fold = data.words._fold
    for c in map(chr, itertools.chain(range(0x3000), range(0xA000, 0xABFF), range(0xF900, 0x1F000))):
        assert fold(fold(c)) == fold(c), hex(ord(c))


@pytest.mark.parametrize(
    "text",
    ["a" * 2**20, "é" * 2**20, "a\u0301" * 2**19, "a" + "\u0301\u0316" * 2**19, "\u0316\u0301" * 2**19,
     "é" + "\u200d" * 2**20, "क्षि" * 2**18, "東" + "\u0301\u0316" * 2**19, "\ud800\x00" * 2**19,
     "東京" * 2**15, "न้ำ" * 2**15, "é " * 2**16],
    ids=lambda text: ascii(text[:3]),
)  # fmt: skip
def test_long_texts_take_time_in_proportion(text):
    """Each would take hours where a step is quadratic."""
    vectorizer = Vectorizer(["東京", "é"], [1.0, 1.0])
    assert vectorizer.transform([text]).shape == (1, 2)


@given(st.lists(st.text(st.characters(max_codepoint=127), max_size=60), max_size=4))
def test_ascii_rows_are_those_of_before(some):
    before = TfidfVectorizer(
        token_pattern=r"(?<![^\W_])[^\W_]{1,39}(?![^\W_])", sublinear_tf=True, dtype=np.float32, min_df=1
    )
    some = [*some, "a word", "x" * 40]
    vectorizer = Vectorizer.fit(some, min_df=1)
    before.fit(some)
    assert vectorizer.vocabulary == before.get_feature_names_out().tolist()
    before.idf_ = vectorizer.idf  # float32
    X, expected = vectorizer.transform(some), before.transform(some)
    for part in ("indptr", "indices", "data"):
        assert getattr(X, part).tobytes() == getattr(expected, part).tobytes()
