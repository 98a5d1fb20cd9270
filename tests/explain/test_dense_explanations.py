"""Explanations of models with dense features: against float64 brute force and Captum, and as one bar."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from explain_cases import LABELS, Page
from test_nn import ARCHITECTURES, B, L, R, dense_forward

import mach_ext
from mach_ext import explain, report
from mach_ext.data import HybridMatrix
from mach_ext.runs import explanation

pytestmark = pytest.mark.usefixtures("one_thread")

D, E = 40, 6
BLOCK = f"embedding ({E} dimensions)"
WORDS = [f"word {d}" for d in range(D)]


def hybrid(n=3, seed=0):
    rng = np.random.default_rng(seed)
    words = scipy.sparse.random(n, D, 0.15, "csr", np.float32, random_state=seed)
    return HybridMatrix(words, rng.normal(2, 1, (n, E)).astype(np.float32))


def model_of(name="shared", **changes):
    """Random weights, and a center and a scale from many embeddings."""
    model = mach_ext.MACH(D, L, R, B, num_dense=E, **{**ARCHITECTURES[name], **changes})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model.scale_dense(hybrid(50).dense)
    return model.eval()


def float64_gradients(model, x, baseline, label, steps):
    """The definition on all D + E columns, with the dense part centred and scaled here."""
    center, scale = model.dense_center.double().numpy(), model.dense_scale.double().numpy()
    ends = [np.concatenate((X.sparse.toarray()[0], (X.dense[0] - center) * scale)) for X in (x, baseline)]
    x, b = map(torch.from_numpy, ends)
    wide = mach_ext.MACH(**model.configuration()).double()
    wide.load_state_dict(model.state_dict())
    at = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    points = (b + at[:, None] * (x - b)).requires_grad_()
    logits = dense_forward(wide, points)
    score = logits[:, torch.arange(R), wide.hash.buckets[:, label].long()].mean(1)
    (gradient,) = torch.autograd.grad(score.sum(), points)
    return ((x - b) * gradient.mean(0)).numpy()


@pytest.mark.parametrize("own_baseline", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attributions_of_words_and_dimensions_are_float64_brute_force(name, own_baseline):
    model, X = model_of(name), hybrid()
    average = HybridMatrix(scipy.sparse.csr_matrix((1, D)), model.dense_center.numpy()[None])
    baseline = X[1] if own_baseline else average
    result = explain.integrated_gradients(model, X[0], LABELS, baseline=baseline if own_baseline else None)
    assert result.method == "exact"
    assert result.num_dense == E
    assert result.features[-E:].tolist() == list(range(D, D + E))
    bound = np.abs(result.scores) + np.abs(result.baseline_scores)
    assert (np.abs(result.delta) <= 1e-5 * bound).all()
    ours = np.zeros((3, D + E))
    ours[:, result.features] = result.attributions
    theirs = np.stack([float64_gradients(model, X[0], baseline, label, 3000) for label in LABELS])
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(ours).max())
    assert np.abs(ours[:, D:]).max() > 0.01


def test_the_zero_of_the_dense_features_is_their_average():
    """An average embedding adds nothing, and its score is that of the baseline."""
    model, X = model_of(), hybrid()
    x = HybridMatrix(X.sparse[:1], model.dense_center.numpy()[None])
    result = explain.integrated_gradients(model, x, LABELS)
    assert (result.attributions[:, -E:] == 0).all()
    assert (result.attributions[:, :-E] != 0).any()
    nothing = HybridMatrix(scipy.sparse.csr_matrix((1, D)), x.dense)
    result = explain.integrated_gradients(model, nothing, LABELS)
    np.testing.assert_allclose(result.scores, result.baseline_scores)
    assert result.bars.names == [BLOCK]
    (found,) = explain.explain_topk(model, nothing, 2)
    assert (found.attributions == 0).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captum_gives_the_same_label_by_label(name):
    attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to compare with")
    model, X = model_of(name, merge="mean_prob"), hybrid(1)
    forward, inputs, args = explain.captum_inputs(model, X, LABELS, score="model")
    assert args[0][0, -E:].tolist() == list(range(D, D + E))
    captum, options = attr.IntegratedGradients(forward), {"additional_forward_args": args, "n_steps": 20}
    theirs = [captum.attribute(inputs, target=j, **options) for j in range(3)]
    ours = explain.integrated_gradients(model, X, LABELS, score="model", n_steps=20).attributions
    np.testing.assert_allclose(ours, torch.cat(theirs).numpy(), rtol=1e-3, atol=1e-4 * np.abs(ours).max())


def test_captum_pads_rows_whose_words_differ_in_number():
    model, X = model_of(), hybrid()
    forward, inputs, args = explain.captum_inputs(model, X, LABELS)
    joined = model.join(X)
    expected = model.label_scores(
        *(torch.from_numpy(each) for each in (joined.data, joined.indices, joined.indptr)),
        torch.tensor(LABELS),
    )
    torch.testing.assert_close(forward(inputs, *args), expected)
    assert ((args[0] >= D).sum(1) == E).all()


def test_a_joined_matrix_is_the_same_document():
    model, X = model_of(), hybrid()
    joined = model.join(X)[0]
    for function in (
        lambda x: explain.integrated_gradients(model, x, LABELS).attributions,
        lambda x: explain.votes(model, x, LABELS).logits,
        lambda x: explain.collisions(model, x, LABELS[0]).votes,
        lambda x: explain.leave_one_out(model, x).changes,
    ):
        np.testing.assert_array_equal(function(joined), function(X[0]))


def test_votes_and_collisions_are_of_the_joined_document():
    model, X = model_of(), hybrid()
    logits = dense_forward(model, torch.from_numpy(model.join(X)[0].toarray()))[0].detach()
    expected = torch.stack([logits[torch.arange(R), model.hash.buckets[:, label].long()] for label in LABELS])
    found = explain.votes(model, X[0], LABELS)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)
    check = explain.collisions(model, X[0], LABELS[0])
    np.testing.assert_allclose(check.votes, expected[0], rtol=1e-4, atol=1e-4)


def test_leave_one_out_removes_the_embedding_as_one_unit():
    model, X = model_of(merge="mean_prob"), hybrid()
    found = explain.leave_one_out(model, X[0], 4, feature_names=WORDS)
    words = X[0].sparse.indices.tolist()
    assert found.features.tolist() == [*words, D + E]
    assert found.feature_names == [*(WORDS[d] for d in words), BLOCK]
    average = HybridMatrix(X[0].sparse, model.dense_center.numpy()[None])
    joined = model.join(average)
    tensors = [torch.from_numpy(each) for each in (joined.data, joined.indices, joined.indptr)]
    expected = model.label_scores(*tensors, torch.from_numpy(found.labels), "model").detach()[0]
    np.testing.assert_allclose(found.scores + found.changes[-1], expected, rtol=1e-4, atol=1e-6)
    again = model.predict(average, 4)[1][0]
    assert set(found.left[-1]) == set(found.labels) - set(again)
    chosen = explain.leave_one_out(model, X[0], 4, [D + 2, BLOCK, WORDS[words[0]]], feature_names=WORDS)
    assert chosen.feature_names == ["dense 2", BLOCK, WORDS[words[0]]]
    np.testing.assert_array_equal(chosen.changes[1:], found.changes[[-1, 0]])
    without = X[0].dense.copy()
    without[0, 2] = model.dense_center[2]
    dimension = model.join(HybridMatrix(X[0].sparse, without))
    tensors = [torch.from_numpy(each) for each in (dimension.data, dimension.indices, dimension.indptr)]
    expected = model.label_scores(*tensors, torch.from_numpy(found.labels), "model").detach()[0]
    np.testing.assert_allclose(chosen.scores + chosen.changes[0], expected, rtol=1e-4, atol=1e-6)


def test_charts_and_tables_show_the_embedding_as_one_bar():
    model, X = model_of(), hybrid()
    result = explain.integrated_gradients(model, X[0], LABELS, feature_names=WORDS)
    total = result.attributions[0, -E:].sum()
    top = dict(result.top(100))
    assert top[BLOCK] == pytest.approx(total)
    assert len(top) == len(result.features) - E + 1
    assert sum(top.values()) == pytest.approx(result.attributions[0].sum())
    assert result.bars.features[-1] == D + E
    each = result.by_dimension()
    assert dict(each.top(100))["dense 5"] == result.attributions[0, -1]
    np.testing.assert_array_equal(each.attributions, result.attributions)
    lines = report.attribution_lines(result, LABELS[0], 100)
    assert sum(line.startswith(f"  {BLOCK} ") for line in lines) == 1
    assert not any("dense" in line or "others" in line for line in lines)
    assert "dense 3" in "".join(report.attribution_lines(each, LABELS[0], 100))
    assert BLOCK in [text.get_text() for text in result.plot(100).axes[0].get_yticklabels()]
    kept = json.loads(result.to_json())
    assert kept["num_dense"] == E
    assert len(kept["attributions"][0]) == len(result.features)
    unnamed = explain.integrated_gradients(model, X[0], LABELS)
    assert unnamed.feature_names[-E:] == [f"dense {e}" for e in range(E)]
    assert explain.leave_one_out(model, X[0]).feature_names[-1] == BLOCK


def test_one_contrast_and_the_top_k_of_many_documents():
    model, X = model_of(), hybrid()
    pair = explain.integrated_gradients(model, X[0], LABELS[:2])
    rather = explain.contrast(model, X[0], *LABELS[:2])
    np.testing.assert_allclose(rather.attributions[0], pair.attributions[0] - pair.attributions[1])
    assert BLOCK in dict(rather.top(100))
    for n, result in enumerate(explain.explain_topk(model, X, 2)):
        alone = explain.integrated_gradients(model, X[n], model.predict(X[n], 2)[1][0])
        np.testing.assert_array_equal(result.attributions, alone.attributions)


def test_page_shades_the_words_alone_and_states_the_effect_of_the_embedding():
    vectorizer = mach_ext.data.Vectorizer(["cat", "dog", "the"], [1.0, 1.0, 0.1])
    text = "The dog & a bird"
    model = mach_ext.MACH(3, L, R, B, hidden_size=4, num_dense=E)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    x = HybridMatrix(vectorizer.transform([text]), np.full((1, E), 9.0))
    result = explain.integrated_gradients(model, x, [3], text=text, feature_names=vectorizer.vocabulary)
    removed = explain.leave_one_out(model, x, 2, feature_names=vectorizer.vocabulary)
    page = Page(result.to_html(vectorizer=vectorizer, leave_one_out=removed))
    shown = " ".join(page.texts)
    total = f"{result.attributions[0, -E:].sum():+.3f}".replace("-", "\u2212")
    assert f"effect of the {BLOCK}" in page.texts
    assert page.texts.count(total) == 2  # as a fact and as a bar
    assert "The document has 2 features and an embedding (6 dimensions)." in shown
    assert "from the empty document with the average embedding" in shown
    assert "dense 0" not in shown
    shaded = [each for tag, each in page.elements if tag == "span" and "title" in each and each.get("style")]
    assert any(
        "rgba(33,102,172,0.90)" in each["style"] or "rgba(216,105,35,0.90)" in each["style"]
        for each in shaded
    )  # the strongest word, whatever the embedding adds
    assert "dense 0" in result.by_dimension().to_html(vectorizer=vectorizer)


def test_refusals_name_both_parts():
    model, X = model_of(), hybrid()
    with pytest.raises(
        ValueError, match=r"integrated_gradients: X must be a mach_ext\.data\.HybridMatrix of"
    ):
        explain.integrated_gradients(model, X.sparse[0], LABELS)
    with pytest.raises(ValueError, match=r"baseline must be a mach_ext\.data\.HybridMatrix of D=40 sparse"):
        explain.integrated_gradients(model, X[0], LABELS, baseline=X.sparse[1])
    with pytest.raises(ValueError, match=r"X must be one document \[1, D\], got shape \(3, 46\)"):
        explain.votes(model, X, LABELS)
    with pytest.raises(ValueError, match=r"feature_names must be D \+ E=46 names, got 7"):
        explain.integrated_gradients(model, X[0], LABELS, feature_names=["a"] * 7)
    with pytest.raises(ValueError, match=r"features must be in \[0, D \+ E \+ 1=47\), got 47"):
        explain.leave_one_out(model, X[0], features=[47])
    absent = np.setdiff1d(np.arange(D), X[0].sparse.indices)[0]
    with pytest.raises(ValueError, match=rf"leave_one_out: the document has no feature {absent}"):
        explain.leave_one_out(model, X[0], features=[absent])
    plain = mach_ext.MACH(D, L, R, B, hidden_size=4)
    with pytest.raises(ValueError, match="takes no dense features"):
        explain.integrated_gradients(plain, X[0], LABELS)


def test_a_run_shows_the_embedding_as_one_feature_or_its_dimensions():
    model, X = model_of(), hybrid()
    columns = mach_ext.data.Columns(D, L, num_dense=E)
    document = explanation.Document(X[0], "A document", feature_names=WORDS)
    found = explanation.explain_document(model, columns, document, None, 2, 100, {"n_steps": 8})
    assert BLOCK in [name for name, _ in found.top(100)]
    assert found.leave_one_out.feature_names[-1] == BLOCK
    assert f"effect of the {BLOCK}" in found.page
    each = found.by_dimension()
    assert "dense 5" in [name for name, _ in each.top(100)]
    assert each.leave_one_out.features[-E:].tolist() == list(range(D, D + E))
    assert "dense 5" in each.page
