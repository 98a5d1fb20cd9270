"""Names of rare labels become training documents, if they share words with the documents."""

import numpy as np
import pytest
import scipy.sparse as sp

from mach_ext import data
from mach_ext.data import Dataset, Split, names_tell, with_label_names

WORDS = ["cat", "dog", "owl", "bird"]
EYE = sp.csr_matrix(np.eye(4, dtype=np.float32))


def pets(X=EYE, Y=EYE, label_names=("a cat", "Dog!", "x7\tthe OWL", "nothing"), **options):
    return Dataset("pets", "pets", Split(X, Y), label_names=label_names, feature_names=WORDS, **options)


def test_a_name_is_a_row_with_its_label():
    train = with_label_names(pets())
    assert train.X[4:].toarray().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert train.Y[4:].toarray().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert train.X.dtype == train.Y.dtype == np.float32


def test_a_name_has_the_labels_that_all_documents_of_its_label_have():
    """bird (3) is above owl (2). dog (1) has no document, and the two cats share nothing but being cats."""
    Y = sp.csr_matrix([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]], dtype=np.float32)
    X = sp.csr_matrix(np.ones((4, 4), np.float32))
    train = with_label_names(pets(X, Y, label_names=WORDS), 2)
    assert train.Y[4:].toarray().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]
    assert train.Y.has_sorted_indices
    assert set(train.Y.data) == {1}
    messy = sp.csr_matrix(  # cat is a bird twice in its one document, and not a dog
        (np.array([1, 0, 1, 1], np.float32), np.array([0, 1, 3, 3]), np.array([0, 4, 4])), (2, 4)
    )
    X = sp.csr_matrix(np.ones((2, 4), np.float32))
    rows = with_label_names(pets(X, messy, label_names=WORDS), 1).Y[2:].toarray()
    assert rows[0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(("most", "expected"), [(0, [2]), (1, [1, 2]), (4, [0, 1, 2])])
def test_only_rare_labels_count(most, expected):
    Y = sp.csr_matrix(np.eye(4)[[0, 0, 0, 1]])
    assert with_label_names(pets(Y=Y), most).Y[4:].indices.tolist() == expected


def test_the_code_before_a_tab_is_no_name():
    assert with_label_names(pets(label_names=["cat\tx", "dog\tx", "owl\tx", "bird\tx"])).X.shape[0] == 4


def test_words_have_their_mean_value_and_the_row_has_the_length_of_the_others():
    X = sp.csr_matrix(np.array([[3, 4, 0, 0], [4, 3, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5]], np.float32))
    row = with_label_names(pets(X, label_names=["cat owl", "-", "-", "-"])).X[4].toarray()[0]
    np.testing.assert_allclose(row, 5 * np.array([3.5, 0, 5, 0]) / np.hypot(3.5, 5), rtol=1e-6)
    X = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32))
    row = with_label_names(pets(X, label_names=["cat owl", "-", "-", "-"])).X[4].toarray()[0]
    assert row.tolist() == [1, 0, 1, 0]  # rows of several lengths: values as they are


def test_a_vectorizer_reads_the_names_as_it_reads_texts():
    texts = ["the cat sleeps", "the dog barks", "a cat and a dog", "the cat barks"]
    vectorizer = data.Vectorizer.fit(texts, min_df=1)
    X = vectorizer.transform(texts)
    dataset = Dataset(
        "pets", "pets", Split(X, sp.csr_matrix(np.eye(4))), label_names=["the cat", "dog", "owl", ""],
        vectorizer=vectorizer,
    )  # fmt: skip
    expected = vectorizer.transform(["the cat", "dog"])
    np.testing.assert_array_equal(with_label_names(dataset).X[4:].toarray(), expected.toarray())
    assert with_label_names(dataset, -1).X.shape == X.shape  # no label is as rare as that


def test_without_names_or_known_words_train_stays_as_it_is():
    for dataset in (pets(label_names=None), pets(label_names=["x", "y", "z", ""])):
        assert with_label_names(dataset) is dataset.train
        assert not names_tell(dataset)


def test_dense_features_have_no_names():
    dataset = Dataset("pets", "pets", Split(EYE, EYE, dense=np.ones((4, 2), np.float32)), label_names=WORDS)
    assert with_label_names(dataset) is dataset.train
    assert not names_tell(dataset)


def test_names_tell_where_documents_have_the_words_of_their_labels():
    """Half of 200 labels have three documents each, the others have nine."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(100), 3), np.repeat(np.arange(100, 200), 9)])
    X = Y = sp.csr_matrix(np.eye(200, dtype=np.float32))[rng.permutation(labels)]
    words = [f"word{i}" for i in range(200)]

    def tell(X=X, Y=Y, names=words):
        return names_tell(Dataset("d", "d", Split(X, Y), label_names=names, feature_names=words))

    assert tell()
    assert not tell(names=words[1:] + words[:1])  # words, but of other labels
    assert not tell(X=X[rng.permutation(len(labels))])
    assert not tell(Y=sp.csr_matrix(Y.shape))
    assert not tell(X[:0], Y[:0])
    frequent = np.flatnonzero(Y.indices >= 100)
    assert not tell(X[frequent], Y[frequent])  # no label that occurs is rare
    halves = sp.csr_matrix(np.eye(200, dtype=np.float32)[np.tile(np.arange(200), 2)])
    assert tell(halves, halves)  # the same labels again, in the same order


def test_a_word_that_no_document_has_is_not_known():
    X = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]], np.float32))
    assert with_label_names(pets(X, label_names=["owl", "-", "-", "-"])) is not None
    assert with_label_names(pets(X, label_names=["owl", "-", "-", "-"])).X.shape[0] == 4


def test_there_are_no_more_names_than_documents():
    """Labels 0 to 2 have documents, and the other 97 have none."""
    Y = sp.csr_matrix(([1.0] * 4, ([0, 1, 2, 3], [0, 0, 1, 2])), (4, 100))
    dataset = Dataset(
        "d", "d", Split(EYE, Y), label_names=["cat"] * 100, feature_names=WORDS
    )  # fmt: skip
    added = with_label_names(dataset).Y[4:].indices.tolist()
    assert added == [0, 1, 2, 3]
