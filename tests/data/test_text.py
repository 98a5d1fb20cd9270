"""The vectorizer: its rows, its JSON, and rules of older models."""

import json
import math

import numpy as np
import pytest
from data_cases import ODD, TEXTS
from sklearn.feature_extraction.text import TfidfVectorizer

from mach_ext import data
from mach_ext.data import Vectorizer, check_csr


def test_vectorizer_by_hand():
    texts = ["The cat, CAT sat", "a_cat", "dog " + "x" * 40, "dog the", "x" * 39 + " " + "x" * 40]
    vectorizer = Vectorizer.fit(texts)
    assert vectorizer.vocabulary == ["cat", "dog", "the"]
    idf = math.log(6 / 3) + 1  # each occurs in two of five texts
    np.testing.assert_allclose(vectorizer.idf, idf, rtol=1e-6)
    row = np.array([1 + math.log(2), 0, 1])  # cat twice; one idf for all cancels
    expected = [row / np.linalg.norm(row), [1, 0, 0], [0, 1, 0], [0, 0.5**0.5, 0.5**0.5], [0, 0, 0]]
    X = vectorizer.transform(texts)
    assert X.dtype == np.float32
    np.testing.assert_allclose(X.toarray(), expected, rtol=1e-6)


def test_vectorizer_words_are_the_ones_it_counts():
    vectorizer = Vectorizer(["é1", "big", "cat", "x" * 39], [1.0] * 4)
    text = "Big_CAT, cats É1!  " + "x" * 39 + " " + "x" * 40
    words = [(text[start:end], column) for start, end, column in vectorizer.words(text)]
    assert words == [("Big", 1), ("CAT", 2), ("cats", None), ("É1", 0), ("x" * 39, 3)]
    assert sorted(column for _, column in words if column is not None) == [
        *vectorizer.transform([text]).indices
    ]


def test_vectorizer_json_is_exact():
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}é" for i in range(300)])
    texts = [" ".join(rng.choice(words, 20)) for _ in range(200)]
    vectorizer = Vectorizer.fit(texts, max_features=250)
    again = Vectorizer.from_json(vectorizer.to_json())
    assert len(again.vocabulary) == 250
    assert again.idf.tobytes() == vectorizer.idf.tobytes()
    X, Y = vectorizer.transform(texts), again.transform(texts)
    assert X.data.tobytes() == Y.data.tobytes()
    assert X.indices.tobytes() == Y.indices.tobytes()
    assert np.shares_memory(check_csr(X).data, X.data)  # canonical already
    assert again.to_json() == vectorizer.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "v.json: must be a vectorizer's JSON, got: JSONDecodeError"),
        (b"\xff", "v.json: must be a vectorizer's JSON, got: UnicodeDecodeError"),
        ("[]", "v.json: must be a vectorizer's JSON, got: TypeError"),
        ('{"vocabulary": []}', "v.json: must be a vectorizer's JSON, got: KeyError"),
        ('{"type": "tfidf", "vocabulary": [1], "idf": [1]}', "v.json: .*the vocabulary strings"),
        ('{"type": "tfidf", "vocabulary": [], "idf": []}', "v.json: .*not 0, got 0 and 0"),
        (
            '{"type": "tfidf", "vocabulary": ["a"], "idf": [1, 2]}',
            "v.json: .*of one length, not 0, got 1 and 2",
        ),
        (
            '{"type": "tfidf", "vocabulary": ["a", "a"], "idf": [1, 2]}',
            "v.json: .*got a word twice",
        ),
        ('{"type": "tfidf", "vocabulary": ["a"], "idf": [NaN]}', "v.json: .*every idf must be finite"),
        ('{"type": "tfidf", "vocabulary": ["a"], "idf": [null]}', "v.json: .*TypeError"),
    ],
)
def test_vectorizer_json_errors(text, message):
    with pytest.raises(ValueError, match=message):
        Vectorizer.from_json(text, source="v.json")


def test_vectorizer_without_words():
    with pytest.raises(ValueError, match=r"Vectorizer.fit: some word must occur in min_df = 2 texts, got"):
        Vectorizer.fit(["a", "b"])
    with pytest.raises(ValueError, match=r"Vectorizer.fit: some word must occur in min_df = 2 texts, got"):
        Vectorizer.fit(["", "!"])


def test_words_of_a_vectorizer_are_kept():
    words = [name for name in ODD if name]
    vectorizer = data.Vectorizer(words, [1.0] * len(words))
    content = vectorizer.to_json().encode()  # which UTF-8 can carry
    assert data.Vectorizer.from_json(content).vocabulary == words


OLD = (
    '{"type": "tfidf", "vocabulary": ["i", "stanbul", "द", "strasse", "ς"], "idf": [1.0, 2.0, 1.5, 1.0, 1.0]}'
)


def test_older_vectorisers_keep_their_rule():
    vectorizer = Vectorizer.from_json(OLD)
    assert vectorizer.tokens == "words-1"
    assert vectorizer.to_json() == OLD
    before = TfidfVectorizer(
        token_pattern=r"(?<![^\W_])[^\W_]{1,39}(?![^\W_])", sublinear_tf=True, dtype=np.float32,
        vocabulary=vectorizer.vocabulary,
    )  # fmt: skip
    before.idf_ = vectorizer.idf
    some = ["İstanbul हिन्दी", "STRASSE straße ΟΔΟΣ Σ", "İİ i", *(text for _, text in TEXTS)]
    X, expected = vectorizer.transform(some), before.transform(some)
    assert X.data.tobytes() == expected.data.tobytes()
    assert X.indices.tobytes() == expected.indices.tobytes()
    assert list(vectorizer.words("Ah, İstanbul")) == [(0, 2, None), (4, 5, 0), (5, 12, 1)]
    assert [column for _, _, column in vectorizer.words("हिन्दी")] == [None, None, 2]


def test_a_new_vectoriser_names_its_rule():
    vectorizer = Vectorizer.fit(["हिन्दी", "हिन्दी"])
    assert json.loads(vectorizer.to_json()) == {
        "type": "tfidf", "tokens": "words-2", "vocabulary": ["हिन्दी"], "idf": [1.0],
    }  # fmt: skip
    again = Vectorizer.from_json(vectorizer.to_json().encode())
    assert again.tokens == "words-2"
    assert again.to_json() == vectorizer.to_json()
    assert again.transform(["हिन्दी"]).nnz == 1


@pytest.mark.parametrize("rule", ['"words-3"', "null", "2"])
def test_an_unknown_rule_is_refused(rule):
    text = f'{{"type": "tfidf", "tokens": {rule}, "vocabulary": ["a"], "idf": [1]}}'
    with pytest.raises(ValueError, match=r"v.json: .*tokens must be one of words-1, words-2, got "):
        Vectorizer.from_json(text, source="v.json")


def test_json_lines_are_lines():
    record = {"é\u2028": "\ud800\x85\u2029\n हिन्दी"}
    line = data.json_line(record)
    assert line.splitlines() == [line]
    assert "हिन्दी" in line
    line.encode()
    assert json.loads(line) == record
