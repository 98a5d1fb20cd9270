"""Deletion of words of texts: exact for one word, greedy for more, and both features follow the text."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import tiny_bert
import torch
from attack_cases import true_losses
from test_nn import ARCHITECTURES, L, randomise

import mach_ext
from mach_ext import attack
from mach_ext.attack import RandomDeletion, WordDeletion
from mach_ext.attack._text_words import without, words_of
from mach_ext.data import HybridMatrix, Vectorizer

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["a big red cat", "the dog, and the bird sing!", "fish", "a small house in the house", "...", "",
         "Birds swim to old dogs"]  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    tiny_bert.need_transformers()
    from mach_ext.text_encoder import TextEncoder

    return TextEncoder.load(tiny_bert.write(tmp_path_factory.mktemp("tiny")))


def labels(n=7):
    Y = scipy.sparse.random(n, L, density=0.05, format="csr", random_state=1)
    Y.data[:] = 1
    return Y


def case(encoder, name="shared"):
    """A model on TF-IDF and embeddings, or on TF-IDF alone if there is no encoder."""
    vectorizer = Vectorizer.fit(TEXTS, min_df=1)
    D, E = len(vectorizer.vocabulary), 0 if encoder is None else encoder.num_dense
    model = randomise(mach_ext.MACH(D, L, 4, 32, **ARCHITECTURES[name], num_dense=E)).eval()
    if encoder is not None:
        model.scale_dense(encoder.encode(TEXTS, progress=False))
    return model, encoder, vectorizer


def losses(parts, texts, Y):
    """Losses of texts by the definition, in float64."""
    model, encoder, vectorizer = parts
    X = vectorizer.transform(texts)
    if encoder is not None:
        X = model.join(HybridMatrix(X, encoder.encode(texts, progress=False)))
    return true_losses(model, X, Y).numpy()


def all_without(text, count):
    """The text without each set of `count` words."""
    spans = words_of(text)
    return [without(text, spans, gone)[0] for gone in itertools.combinations(range(len(spans)), count)]


def test_words_and_what_is_left():
    text = "The cat, the-dog sat."
    spans = words_of(text)
    assert [text[a:b] for a, b in spans] == ["The", "cat", "the", "dog", "sat"]
    cases = {(): text, (0,): "cat, the-dog sat.", (1,): "The , the-dog sat.", (2, 3): "The cat, - sat.",
             (4,): "The cat, the-dog .", (0, 1, 2, 3, 4): ", - ."}  # fmt: skip
    for gone, expected in cases.items():
        shorter, places = without(text, spans, gone)
        assert shorter == expected
        for number, (start, end) in enumerate(places):
            word = text[slice(*spans[number])]
            assert shorter[start:end] == ("" if number in gone else word)
    assert without("a big cat", words_of("a big cat"), [2])[0] == "a big"
    assert without("a big cat", words_of("a big cat"), [1, 2])[0] == "a"
    assert words_of("東京 cat") == [(0, 1), (1, 2), (3, 6)]
    assert words_of("...") == words_of("") == []


@pytest.mark.parametrize("name", ["linear", "shared", "shared two layers"])
@pytest.mark.parametrize("with_encoder", [True, False])
def test_one_word_is_the_best_of_all(name, with_encoder, encoder):
    parts, Y = case(encoder if with_encoder else None, name), labels()
    clean = losses(parts, TEXTS, Y)
    found = WordDeletion(*parts).perturb(TEXTS, Y, words=1)
    np.testing.assert_allclose(found.clean_loss, clean, rtol=1e-4)
    np.testing.assert_allclose(found.loss, losses(parts, found.adversarial, Y), rtol=1e-4)
    for n, text in enumerate(TEXTS):
        every = [text, *all_without(text, 1)]
        best = losses(parts, every, Y[[n] * len(every)])
        assert found.loss[n] == pytest.approx(best.max(), rel=1e-4)
        assert found.adversarial[n] in every
        assert len(found.deleted(n)) == (found.adversarial[n] != text)
    assert (found.loss > found.clean_loss * 1.01).any()
    model, X = parts[0], found.documents()
    np.testing.assert_array_equal(found.predict(5)[1], model.predict(X, 5)[1])


def test_more_words_are_greedy(encoder):
    """Against the definition: the best word each time, and the best text on the way."""
    parts, Y = case(encoder), labels()
    several = WordDeletion(*parts).perturb(TEXTS, Y, words=[0, 1, 3, 50])
    assert several[0].adversarial == TEXTS
    assert (several[0].loss == several[0].clean_loss).all()
    for n, text in enumerate(TEXTS):
        spans, gone, path = words_of(text), [], [(losses(parts, [text], Y[n])[0], text)]
        for _ in spans:
            left = [i for i in range(len(spans)) if i not in gone]
            texts = [without(text, spans, (*gone, i))[0] for i in left]
            tried = losses(parts, texts, Y[[n] * len(left)])
            gone.append(left[int(tried.argmax())])
            path.append((tried.max(), texts[int(tried.argmax())]))
        for found, count in zip(several, (0, 1, 3, 50), strict=True):
            best = max(path[: count + 1], key=lambda each: each[0])
            assert found.loss[n] == pytest.approx(best[0], rel=1e-4)
            assert found.adversarial[n] == best[1]
    removed = [found.norms["removed"] for found in several]
    assert (removed[1] <= 1).all()
    assert (removed[2] <= 3).all()
    all_gone = WordDeletion(*parts, keep_best=False).perturb(TEXTS, Y, 50)
    assert not any(words_of(text) for text in all_gone.adversarial)


@pytest.mark.parametrize("goal", ["own", "positive", "negative"])
def test_goals(goal, encoder):
    parts = case(encoder)
    X = HybridMatrix(parts[2].transform(TEXTS), encoder.encode(TEXTS, progress=False))
    top = parts[0].predict(X, 3)[1]
    Y = scipy.sparse.csr_matrix((np.ones(7), (np.arange(7), top[:, 1])), (7, L))
    found = WordDeletion(*parts, goal, 3).perturb(TEXTS, None if goal == "own" else Y, words=2)
    assert (found.loss >= found.clean_loss).all()
    assert (found.loss > found.clean_loss).any()
    if goal == "positive":
        np.testing.assert_array_equal(found.targets, top[:, 1])
    if goal == "negative":
        targets = np.full(7, (top[0, 0] + 1) % L)
        targets[:3] = -1
        chosen = WordDeletion(*parts, goal, 3).perturb(TEXTS, Y.multiply(0).tocsr(), 2, targets=targets)
        assert (chosen.loss[:3] == chosen.clean_loss[:3]).all()
        scores = parts[0].label_scores
        values = [torch.from_numpy(a) for a in _arrays(parts[0].join(chosen.documents()))]
        after = scores(*values, torch.from_numpy(np.maximum(targets, 0)[:, None]))[3:, 0]
        assert after.isfinite().all()


def _arrays(X):
    return X.data, X.indices, X.indptr


def test_the_shortlist_finds_most_of_the_effect(encoder):
    """First-order effects choose the words. With as many as there are words, nothing is missed."""
    parts, Y = case(encoder), labels()
    text = "the big dog and the old bird sing in a small red house with a cat"
    texts, Y = [text] * 7, labels()
    every, eight, one = (WordDeletion(*parts, shortlist=n).perturb(texts, Y, 1) for n in (None, 8, 1))
    assert (one.loss <= eight.loss + 1e-9).all()
    assert (eight.loss <= every.loss + 1e-9).all()
    gained, possible = eight.loss - eight.clean_loss, every.loss - every.clean_loss
    assert gained.sum() > 0.7 * possible.sum() > 0


def test_effects_are_exact_where_the_model_is_linear_in_them(encoder):
    """The part of the sparse features is exact, so a model that ignores the embedding has exact effects."""
    parts = case(encoder)
    model = parts[0]
    with torch.no_grad():
        model.encoder_weight[model.num_features :] = 0
    Y, deletion = labels(), WordDeletion(*parts, shortlist=1)
    found = deletion.perturb(TEXTS, Y, 1)
    exact = WordDeletion(*parts, shortlist=None).perturb(TEXTS, Y, 1)
    np.testing.assert_allclose(found.loss, exact.loss, rtol=1e-6)


def test_heads_on_embeddings_alone(encoder):
    head = mach_ext.MACHHead(encoder.num_dense, L, 4, 16)
    Y = labels()
    found = WordDeletion(head, encoder).perturb(TEXTS, Y, 1)
    short = WordDeletion(head, encoder, shortlist=2).perturb(TEXTS, Y, 1)
    hidden = torch.from_numpy(encoder.encode(found.adversarial, progress=False))
    np.testing.assert_array_equal(found.predict(5)[1], head.topk(hidden, 5)[1])
    assert (found.loss >= short.loss).all()
    assert (found.loss > found.clean_loss).any()


def test_evaluation(encoder):
    parts, Y, texts = case(encoder), labels(70), TEXTS * 10
    X = HybridMatrix(parts[2].transform(texts), encoder.encode(texts, progress=False))
    top = parts[0].predict(X, 1)[1][:, 0]
    Y = scipy.sparse.csr_matrix((np.ones(70), (np.arange(70), top)), (70, L))
    names = {"encoder": encoder, "vectorizer": parts[2]}
    bands = {"low": np.arange(L) < L // 2, "high": np.arange(L) >= L // 2}
    result = attack.evaluate_texts(parts[0], texts, Y, words=[0, 1, 2], resamples=0, ks=[1], bands=bands,
                                   targeted=True, **names)  # fmt: skip
    none, one, two = result["adversarial"]
    assert result["clean"]["P@1"] == none["metrics"]["P@1"] == 1
    assert 1 > one["metrics"]["P@1"] >= two["metrics"]["P@1"]
    assert 0 < one["size"]["removed"] <= 1
    assert one["targeted"]["positive"]["all"]["documents"] == 70
    assert {"all", "low", "high"} == set(one["targeted"]["negative"])
    assert result["documents_per_second"] > 0
    single = WordDeletion(*parts).perturb(TEXTS, Y[:7], 1)
    expected = np.tile(single.predict(1)[1][:, 0], 10) == top
    assert one["metrics"]["P@1"] == pytest.approx(expected.mean())


def test_random_deletion_takes_as_many_words(encoder):
    parts, Y = case(encoder), labels()
    for count in (1, 2, 50):
        found = RandomDeletion(*parts, seed=3).perturb(TEXTS, Y, count)
        left = [len(words_of(text)) for text in found.adversarial]
        assert left == [max(0, len(words_of(text)) - count) for text in TEXTS]
    worst, random = WordDeletion(*parts, keep_best=False), RandomDeletion(*parts)
    assert (random.perturb(TEXTS, Y, 1).loss <= worst.perturb(TEXTS, Y, 1).loss + 1e-6).all()


def test_refusals(encoder):
    model, _, vectorizer = parts = case(encoder)
    with pytest.raises(ValueError, match="encoder must be a TextEncoder, because the model takes E=32"):
        WordDeletion(model, None, vectorizer)
    with pytest.raises(ValueError, match="encoder must be None, because the model takes no dense features"):
        WordDeletion(case(None)[0], encoder, vectorizer)
    with pytest.raises(ValueError, match=r"vectorizer must be a Vectorizer of D=.* words, got None"):
        WordDeletion(model, encoder)
    with pytest.raises(ValueError, match="vectorizer must be None for a head"):
        WordDeletion(mach_ext.MACHHead(32, L, 4, 16), encoder, vectorizer)
    with pytest.raises(ValueError, match="embeddings of E=8 entries, got 32"):
        WordDeletion(mach_ext.MACHHead(8, L, 4, 16), encoder)
    deletion = WordDeletion(*parts)
    with pytest.raises(TypeError, match="texts must be a list of strings, got str"):
        deletion.perturb("a cat", labels(1))
    with pytest.raises(ValueError, match="words must be numbers >= 0, got -1"):
        deletion.perturb(TEXTS, labels(), -1)
    with pytest.raises(ValueError, match="needs the true labels Y"):
        deletion.perturb(TEXTS)
    with pytest.raises(ValueError, match="shortlist must be None or at least 1, got 0"):
        WordDeletion(*parts, shortlist=0)
    with pytest.raises(ValueError, match=r"deleted: n must be in \[0, N=7\)"):
        deletion.perturb(TEXTS, labels(), 0).deleted(7)
    assert deletion.perturb([], labels(7)[:0], [1])[0].adversarial == []
