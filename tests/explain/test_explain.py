"""Explanations: against dense Integrated Gradients, against Captum, and MACH's own questions by hand."""

import html.parser
import json
import math
import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from test_nn import (
    ARCHITECTURES,
    MERGES,
    B,
    D,
    L,
    R,
    build,
    dense_forward,
    draw,
    model_of,
    randomise,
    tensors,
)

import mach_ext
from mach_ext import explain, report
from mach_ext import functional as F
from mach_ext.explain import _path

attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to compare with")
captum_metrics = pytest.importorskip("captum.metrics")

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = [3, 0, 89]


def dense_integrated_gradients(model, x, baseline, label, steps):
    """The definition, all D features, by the midpoint rule."""
    at = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    x, baseline = (torch.from_numpy(v.toarray()[0]).double() for v in (x, baseline))
    points = (baseline + at[:, None] * (x - baseline)).requires_grad_()
    double = mach_ext.MACH(**model.configuration()).double()
    double.load_parameters({k: v.double() for k, v in model.named_parameters()})
    buckets = double.hash.buckets[:, label].long()
    score = dense_forward(double, points)[:, torch.arange(R), buckets].mean(1)
    (gradient,) = torch.autograd.grad(score.sum(), points)
    return ((x - baseline) * gradient.mean(0)).numpy()


@pytest.mark.parametrize("other_baseline", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exact_is_what_dense_integrated_gradients_converge_to(name, other_baseline):
    model, X = model_of(name), draw(n=2)
    empty = scipy.sparse.csr_matrix((1, D), dtype=np.float32)
    baseline = X[1] if other_baseline else empty
    result = explain.integrated_gradients(model, X[0], LABELS, baseline=baseline if other_baseline else None)
    assert result.method == "exact"
    assert (np.abs(result.delta) <= 1e-5 * (np.abs(result.scores) + np.abs(result.baseline_scores))).all()
    ours = np.zeros((3, D))
    ours[:, result.features] = result.attributions
    errors = []
    for steps in (30, 300, 3000):
        dense = np.stack([dense_integrated_gradients(model, X[0], baseline, i, steps) for i in LABELS])
        errors.append(np.abs(dense - ours).max() / np.abs(ours).max())
    assert errors[2] < 1e-3
    assert errors[2] < max(errors[0], 1e-6)
    outside = np.setdiff1d(np.arange(D), result.features)
    assert (dense[:, outside] == 0).all()  # sums over the union of the supports are the whole


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gausslegendre_is_captums(name, merge):
    model, X = model_of(name, merge=merge), draw(n=1)
    forward, inputs, args = explain.captum_inputs(model, X, LABELS, score="model")
    captum, options = attr.IntegratedGradients(forward), {"additional_forward_args": args, "n_steps": 20}
    theirs = [captum.attribute(inputs, target=j, **options) for j in range(3)]
    ours = explain.integrated_gradients(
        model, X, LABELS, method="gausslegendre", score="model", n_steps=20
    ).attributions
    scale = np.abs(ours).max()
    np.testing.assert_allclose(ours, torch.cat(theirs).numpy(), rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("merge", ["mean_prob", "median_prob"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_double_until_the_tolerance_is_met(name, merge):
    model, X = model_of(name, merge=merge), draw(n=2)
    for baseline in (None, X[1]):
        result = explain.integrated_gradients(
            model, X[0], LABELS, score="model", baseline=baseline, max_steps=8192, tolerance=1e-3
        )
        bound = np.abs(result.scores) + np.abs(result.baseline_scores)
        assert (np.abs(result.delta) <= 1e-3 * bound).all()
        assert result.n_steps >= 64
    with pytest.warns(explain.StepsWarning, match="max_steps 32 do not meet tolerance 1e-09"):
        explain.integrated_gradients(model, X[0], LABELS, score="model", max_steps=32, tolerance=1e-9)


def test_scores_are_the_models():
    for name in ARCHITECTURES:
        model, X = model_of(name, merge="mean_prob", hidden_dropout=0.0).train(), draw(n=2)
        for score in ("logit", "model"):
            result = explain.integrated_gradients(
                model, X[0], LABELS, score=score, baseline=X[1], method="gausslegendre", n_steps=3
            )
            expected = model.label_scores(*tensors(X), torch.tensor(LABELS), score).detach().double().numpy()
            np.testing.assert_allclose(result.scores, expected[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(result.baseline_scores, expected[1], rtol=1e-4, atol=1e-5)
        assert model.training


def test_blocks_of_labels_and_features_change_nothing(monkeypatch):
    for name in ARCHITECTURES:
        model, X = model_of(name, merge="mean_prob"), draw(n=1, density=0.5)
        for options in ({}, {"score": "model", "n_steps": 7}):
            whole = explain.integrated_gradients(model, X, np.arange(0, L, 8), **options)
            with monkeypatch.context() as patch:
                patch.setattr(_path, "BLOCK_BYTES", 2048)
                parts = explain.integrated_gradients(model, X, np.arange(0, L, 8), **options)
            np.testing.assert_allclose(whole.attributions, parts.attributions, rtol=1e-9, atol=1e-12)


def test_mean_document_as_the_baseline():
    model, X = model_of(), draw(n=5)
    result = explain.integrated_gradients(model, X[0], LABELS, baseline=X.mean(0))
    assert np.abs(result.delta).max() < 1e-5
    assert set(result.features) == set(X.indices)
    np.testing.assert_allclose(result.baselines, np.asarray(X.mean(0))[0, result.features], rtol=1e-6)
    same = explain.integrated_gradients(model, X[0], LABELS, baseline=X[0])
    assert (same.attributions == 0).all()


def test_top_k_of_many_documents():
    model, X = model_of(), draw(n=4)
    _, labels = model.predict(X, 3)
    found = list(explain.explain_topk(model, X, 3, texts=list("abcd")))
    assert [result.text for result in found] == list("abcd")
    for n, result in enumerate(found):
        assert (result.labels == labels[n]).all()
        assert (result.features == X[n].indices).all()
        assert np.abs(result.delta).max() < 1e-5


def test_bfloat16_and_float64_weights():
    X = draw(n=1)
    wide = explain.integrated_gradients(model_of().double(), X, LABELS)
    assert np.abs(wide.delta).max() < 1e-12
    np.testing.assert_allclose(
        wide.attributions, explain.integrated_gradients(model_of(), X, LABELS).attributions, rtol=1e-4
    )
    narrow = explain.integrated_gradients(model_of().bfloat16(), X, LABELS)
    assert np.abs(narrow.delta).max() < 1e-4


def test_result(tmp_path):
    model, X = model_of(), draw(n=1)
    names = [f"word {d}" for d in range(D)]
    result = explain.integrated_gradients(model, X, [7, 3], feature_names=names)
    best = int(np.abs(result.attributions[1]).argmax())
    assert result.top(1, label=3) == [
        (names[result.features[best]], pytest.approx(result.attributions[1, best]))
    ]
    assert [abs(a) for _, a in result.top(5)] == sorted((abs(a) for _, a in result.top(5)), reverse=True)
    content = json.loads(result.to_json(tmp_path / "e.json"))
    assert content == json.loads((tmp_path / "e.json").read_text())
    np.testing.assert_array_equal(content["attributions"], result.attributions)
    assert content["label_names"] == ["7", "3"]
    with pytest.raises(ValueError, match=r"label 4 must be one of \[7, 3\]"):
        result.top(1, label=4)


# ------------------------------------------------------------------------------------------------- Captum


CAPTUM_SAYS = pytest.mark.filterwarnings(
    "ignore:Setting forward, backward hooks:UserWarning",
    "ignore:Input Tensor . did not already require gradients:UserWarning",
)
ALGORITHMS = {
    "IntegratedGradients": lambda f: (attr.IntegratedGradients(f), {"n_steps": 5}),
    "Saliency": lambda f: (attr.Saliency(f), {}),
    "InputXGradient": lambda f: (attr.InputXGradient(f), {}),
    "GradientShap": lambda f: (attr.GradientShap(f), {"baselines": "zeros", "n_samples": 4, "stdevs": 0.1}),
    "DeepLift": lambda f: (attr.DeepLift(f), {}),
    "FeatureAblation": lambda f: (attr.FeatureAblation(f), {}),
}


@CAPTUM_SAYS
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captum_on_documents_of_different_lengths(name, algorithm):
    model, X = model_of(name), draw(n=4)
    assert len(set(np.diff(X.indptr))) > 1
    labels = np.array([[3, 0], [5, 89], [7, 1], [2, 2]])
    forward, inputs, args = explain.captum_inputs(model, X, labels)

    def run(inputs, args):
        torch.manual_seed(0)
        method, options = ALGORITHMS[algorithm](forward)
        if "baselines" in options:
            options["baselines"] = torch.zeros_like(inputs)
        return method.attribute(inputs, additional_forward_args=args, target=1, **options).detach()

    found = run(inputs, args)
    assert found.shape == inputs.shape
    assert (found[args[0] < 0] == 0).all()  # padding
    assert (found[args[0] >= 0] != 0).any()
    if algorithm == "GradientShap":  # draws noise for the whole batch
        return
    for n in range(4):  # each alone, without padding
        _, alone, its_args = explain.captum_inputs(model, X[n], labels[n])
        assert its_args[0].min() >= 0
        torch.testing.assert_close(run(alone, its_args)[0], found[n, : X[n].nnz], rtol=1e-4, atol=1e-5)


@CAPTUM_SAYS
def test_deeplift_of_one_layer_is_the_closed_form():
    """Rescale's slope is the fraction of the path on which a unit is active: an independent check."""
    for name in ("shared", "independent"):
        model, X = model_of(name), draw(n=1)
        forward, inputs, args = explain.captum_inputs(model, X, LABELS)
        deeplift = attr.DeepLift(forward)
        theirs = [deeplift.attribute(inputs, additional_forward_args=args, target=j)[0] for j in range(3)]
        ours = explain.integrated_gradients(model, X, LABELS).attributions
        np.testing.assert_allclose(torch.stack(theirs).detach().numpy(), ours, rtol=1e-3, atol=1e-5)


@CAPTUM_SAYS
def test_captum_metrics():
    model, X = model_of(), draw(n=3)
    forward, inputs, args = explain.captum_inputs(model, X, LABELS)

    def perturb(inputs):
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    def explained(inputs, **options):
        return attr.InputXGradient(forward).attribute(inputs, **options)

    torch.manual_seed(0)
    attributions = attr.Saliency(forward).attribute(inputs, additional_forward_args=args, target=0, abs=False)
    found = captum_metrics.infidelity(
        forward, perturb, inputs, attributions, additional_forward_args=args, target=0
    )
    assert found.shape == (3,)
    assert found.isfinite().all()
    far = captum_metrics.infidelity(
        forward, perturb, inputs, attributions + 5, additional_forward_args=args, target=0
    )
    assert (found < far).all()
    found = captum_metrics.sensitivity_max(
        explained, inputs, n_perturb_samples=2, additional_forward_args=args, target=0
    )
    assert found.isfinite().all()


def test_captum_computes_only_the_buckets_asked_for(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("all buckets")

    model, X = model_of(), draw(n=2)
    monkeypatch.setattr(mach_ext.MACH, "forward", forbidden)
    monkeypatch.setattr(F, "bucket_forward", forbidden)
    forward, inputs, args = explain.captum_inputs(model, X, LABELS)
    assert forward(inputs, *args).shape == (2, 3)
    expected = model.label_scores(*tensors(X), torch.tensor(LABELS))
    torch.testing.assert_close(forward(inputs, *args), expected)
    explain.integrated_gradients(model, X[0], LABELS)


# ------------------------------------------------------------------------------------ MACH's own questions


def planted(claimed_by_label_0=2, seed=0):
    """Linear MACH of one feature, whose bucket logits are given: label 0 true, votes about 5, all else -5.

    Label 1 is false but shares buckets with label 0 in some repetitions.
    """
    rng = np.random.default_rng(seed)
    repetitions, labels, buckets = 6, 40, 60
    table = np.stack([rng.permutation(buckets)[:labels] for _ in range(repetitions)])
    table[:claimed_by_label_0, 1] = table[:claimed_by_label_0, 0]
    hash = mach_ext.LabelHash.from_buckets(table, buckets)
    model = mach_ext.MACH(1, labels, repetitions, buckets, hidden_size=0, hash=hash)
    logits = rng.normal(-5, 0.3, (repetitions, buckets))
    logits[np.arange(repetitions), table[:, 0]] = rng.normal(5, 0.3, repetitions)
    with torch.no_grad():
        model.bucket_bias.zero_()
        model.bucket_weight.copy_(torch.from_numpy(logits)[:, None])
    return model, scipy.sparse.csr_matrix(np.ones((1, 1), np.float32)), logits, table


def test_votes():
    model, x, logits, table = planted()
    found = explain.votes(model, x, [0, 1, 2], k=1)
    np.testing.assert_allclose(found.logits[0], logits[np.arange(6), table[:, 0]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, found.logits.mean(1))
    np.testing.assert_allclose(found.spread, found.logits.std(1, ddof=1))
    assert found.rivals.tolist() == [1, 0, 0]  # by the two shared buckets label 1 comes second
    assert found.agreement[0] > 0.999
    assert found.agreement[1] < 0.001
    assert found.certainty is found.agreement  # its former name
    assert explain.votes(model, x, k=3).labels[:2].tolist() == [0, 1]
    everything = explain.votes(model, x, [5], k=40)
    assert everything.rivals.tolist() == [-1]
    assert math.isnan(everything.agreement[0])


def test_votes_and_collisions_rank_as_the_model_does():
    """Label 0 has the best mean logit, label 1 the best mean log-probability: predict goes by the latter."""
    table = np.arange(8).reshape(1, 8).repeat(4, 0)
    logits = np.full((4, 8), -9.0)
    logits[:, 0], logits[:, 1] = [12, 12, 12, -8], [1.9, 2.0, 2.1, 2.2]
    for merge, first in (("mean_logit", 0), ("mean_logprob", 1), ("min_prob", 1), ("median_prob", 0)):
        hash = mach_ext.LabelHash.from_buckets(table, 8)
        model = mach_ext.MACH(1, 8, 4, 8, hidden_size=0, hash=hash, merge=merge)
        with torch.no_grad():
            model.bucket_bias.zero_()
            model.bucket_weight.copy_(torch.from_numpy(logits)[:, None])
        x = scipy.sparse.csr_matrix(np.ones((1, 1), np.float32))
        assert model.predict(x, 1)[1][0, 0] == first
        voted = explain.votes(model, x, [0, 1], k=1)
        assert voted.rivals.tolist() == [1, 0]
        np.testing.assert_allclose(voted.scores, [7, 2.05], rtol=1e-6)
        if merge.startswith("mean"):
            assert voted.agreement[first] > 0.5
            assert voted.agreement[1 - first] < 0.5
        else:
            assert np.isnan(voted.agreement).all()
        for label in (0, 1):
            check = explain.collisions(model, x, label, k=1)
            assert check.verdict == ("signal" if label == first else "not predicted")
            assert check.score == pytest.approx(
                model.predict(x, 8)[0][0, 0 if label == first else 1], rel=1e-5
            )


def test_agreement_is_that_of_the_merged_votes():
    """By mean_logprob: Student's t of the differences of log-probabilities, worked out by hand."""
    model, X = model_of(merge="mean_logprob"), draw(n=1)
    best = model.predict(X, 4)[1][0]
    voted = explain.votes(model, X, [best[0]], k=3)
    logits = model.label_logits(*tensors(X), torch.from_numpy(best)).detach().double().numpy()[0]  # [4, R]
    probabilities = -np.log1p(np.exp(-logits))
    apart = (model.hash.buckets[:, best[0]] != model.hash.buckets[:, best[3]]).numpy()
    difference = (probabilities[0] - probabilities[3])[apart]
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
    assert voted.rivals.tolist() == [best[3]]
    assert voted.agreement[0] == pytest.approx(scipy.stats.t.cdf(t, len(difference) - 1), rel=1e-4)


def test_a_label_whose_votes_nobody_claims_is_a_signal():
    """Also where it is in the top k by its number alone: its score ties with the best label outside."""
    table = np.arange(4).reshape(1, 4).repeat(3, 0)
    model = mach_ext.MACH(1, 4, 3, 4, hidden_size=0, hash=mach_ext.LabelHash.from_buckets(table, 4))
    with torch.no_grad():
        model.bucket_weight.fill_(1.0)
    x = scipy.sparse.csr_matrix(np.ones((1, 1), np.float32))
    assert explain.collisions(model, x, 0, k=1).verdict == "signal"


@pytest.mark.parametrize("labels", [1, 2, 4])
def test_fewer_labels_than_the_usual_k(labels):
    model = mach_ext.MACH(D, labels, num_repetitions=4, num_buckets=8, hidden_size=4)
    x = draw(n=1)
    assert explain.votes(model, x).labels.tolist() == explain.removals(model, x).labels.tolist()
    assert explain.votes(model, x).k == labels
    assert len(next(explain.explain_topk(model, x)).labels) == labels
    for label in range(labels):
        assert explain.collisions(model, x, label).threshold == -math.inf
    found = explain.integrated_gradients(model, x)
    Page(
        found.to_html(
            votes=explain.votes(model, x),
            collisions=[explain.collisions(model, x, label) for label in range(labels)],
            removals=explain.removals(model, x),
        )
    )
    for call in (explain.votes, explain.removals):
        with pytest.raises(ValueError, match=rf"k must be in 1 \.\.\. L={labels}, got 5"):
            call(model, x, k=5)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("score", explain.SCORES)
def test_an_explanation_names_the_scales_of_its_scores(merge, score):
    model, X = model_of(merge=merge), draw(n=1)
    scores, labels = model.predict(X, 3)
    found = explain.integrated_gradients(model, X, labels[0], score=score)
    assert found.scale == (merge if score == "model" else "mean_logit")
    assert found.model_scale == merge
    np.testing.assert_allclose(found.model_scores, scores[0], rtol=1e-5, atol=1e-6)
    content = json.loads(found.to_json())
    assert (content["scale"], content["model_scale"]) == (found.scale, merge)
    assert content["model_scores"] == found.model_scores.tolist()
    words = mach_ext.nn.SCALES
    page = Page(found.to_html(removals=explain.removals(model, X, 2)))
    assert page.texts.count(f"score ({words[found.scale]})") == 3
    ranks = [text for text in page.texts if "by which the model ranks" in text]
    expected = [] if found.scale == merge else 3 * [f"{words[merge]}, by which the model ranks"]
    assert ranks == expected
    assert any(f"change of the top labels' scores ({words[merge]})" in text for text in page.texts)
    apart = explain.contrast(model, X, int(labels[0, 0]), int(labels[0, 1]), score=score)
    np.testing.assert_allclose(apart.model_scores, scores[0, :1] - scores[0, 1:2], rtol=1e-4, atol=1e-5)


def test_collision_check_tells_a_signal_from_a_collision():
    model, x, logits, table = planted()
    collision = explain.collisions(model, x, 1, k=2)
    assert collision.verdict == "collision"
    assert collision.claimed_by.tolist()[:2] == [0, 0]
    assert collision.mates[0].label == 0
    assert collision.mates[0].repetitions == collision.mates[0].claims == (0, 1)
    assert collision.mates[0].elsewhere == pytest.approx(
        logits[np.arange(2, 6), table[2:, 0]].mean(), rel=1e-5
    )
    assert collision.score == pytest.approx(logits[np.arange(6), table[:, 1]].mean(), rel=1e-5)
    assert collision.theirs > 2
    signal = explain.collisions(model, x, 0, k=2)
    assert signal.verdict == "signal"
    assert (signal.claimed_by == -1).all()
    assert signal.theirs == 0
    assert explain.collisions(model, x, 17, k=2).verdict == "not predicted"
    with pytest.warns(mach_ext.CollisionWarning):
        twins = planted(claimed_by_label_0=6)[:2]
    assert explain.collisions(*twins, 1, k=2).verdict == "undecided"


def test_collisions_without_a_document():
    model, _, _, table = planted()
    found = explain.collisions(model, None, 1, show=3)
    assert found.mates[0].label == 0
    assert found.mates[0].repetitions == (0, 1)
    assert found.num_mates == len(
        {label for r in range(6) for label in np.flatnonzero(table[r] == table[r, 1])} - {1}
    )
    assert found.verdict == ""
    model.hash.label_index()  # the same by the index
    assert explain.collisions(model, None, 1, show=3) == found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_contrast(name):
    model, X = model_of(name), draw(n=1)
    pair = explain.integrated_gradients(model, X, [3, 8])
    found = explain.contrast(model, X, 3, 8)
    np.testing.assert_allclose(found.attributions[0], pair.attributions[0] - pair.attributions[1])
    assert found.scores[0] == pair.scores[0] - pair.scores[1]
    assert abs(found.delta[0]) < 1e-5
    assert (found.labels.tolist(), found.rival) == ([3], 8)
    table = model.hash.buckets.clone()
    table[:, 8] = table[:, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        twins = mach_ext.LabelHash.from_buckets(table, B)
    model = randomise(build(name, hash=twins))
    assert np.abs(explain.contrast(model, X, 3, 8).attributions).max() < 1e-12


def test_removals():
    model, X = model_of(merge="mean_prob"), draw(n=1)
    found = explain.removals(model, X, 4)
    _, labels = model.predict(X, 4)
    assert (found.labels == labels[0]).all()
    for i, feature in enumerate(found.features):
        dense = X.toarray()
        dense[0, feature] = 0
        without = scipy.sparse.csr_matrix(dense)
        expected = model.label_scores(*tensors(without), torch.from_numpy(labels[0]), "model").detach()[0]
        np.testing.assert_allclose(found.scores + found.changes[i], expected, rtol=1e-4, atol=1e-6)
        again = model.predict(without, 4)[1][0]
        assert set(found.left[i]) == set(labels[0]) - set(again)
        assert set(found.entered[i]) == set(again) - set(labels[0])
    names = [f"word {d}" for d in range(D)]
    one = explain.removals(model, X, 4, [names[found.features[2]]], feature_names=names)
    np.testing.assert_array_equal(one.changes, found.changes[2:3])


# ------------------------------------------------------------------------------------------------- errors


def test_errors():
    model, X = model_of(), draw(n=2)
    x, empty = X[0], scipy.sparse.csr_matrix((1, D), dtype=np.float32)
    names = [f"label {i % 80}" for i in range(L)]
    words = [f"word {d}" for d in range(D)]
    ig = explain.integrated_gradients
    for call, error, message in [
        (lambda: ig(model, x, [L]), ValueError, rf"labels must be in \[0, L={L}\), got {L}"),
        (lambda: ig(model, x, -1), ValueError, "got -1"),
        (lambda: ig(model, x, []), ValueError, "at least one, got none"),
        (lambda: ig(model, x, [1.5]), TypeError, "ids .* or names, got float64"),
        (lambda: ig(model, x, [[1, 2]]), ValueError, r"labels must be \[m\], got \[1, 2\]"),
        (lambda: ig(model, x, "dog"), ValueError, "keeps no label names; give labels by number, got 'dog'"),
        (lambda: ig(model, x, "label 85", label_names=names), ValueError, "did you mean"),
        (lambda: ig(model, x, "label 2", label_names=names), ValueError, r"is the name of \[2, 82\]"),
        (lambda: ig(model, x, 1, label_names=["a"]), ValueError, f"label_names must be L={L} names, got 1"),
        (lambda: ig(model, x, 1, feature_names=["a"]), ValueError, f"must be D={D} names, got 1"),
        (lambda: ig(model, empty, 1), ValueError, "must have a feature to be explained, got none"),
        (lambda: ig(model, X, 1), ValueError, "one document .* explain_topk takes many"),
        (lambda: ig(model, x[:, :5], 1), ValueError, f"must have D={D} columns"),
        (lambda: ig(model, x.toarray().tolist(), 1), TypeError, "must be a SciPy sparse matrix"),
        (lambda: ig("model", x, 1), TypeError, "model must be a mach_ext.MACH, got str"),
        (lambda: ig(model, x, 1, baseline=np.zeros(3)), ValueError, f"baseline must have D={D} columns"),
        (lambda: ig(model, x, 1, method="simpson"), ValueError, "method must be one of"),
        (lambda: ig(model, x, 1, score="prob"), ValueError, 'score must be "logit" or "model"'),
        (lambda: ig(model, x, 1, method="exact", n_steps=5), ValueError, "n_steps"),
        (lambda: ig(model, x, 1, n_steps=0), ValueError, "n_steps must be at least 1"),
        (lambda: ig(model, x, 1, tolerance=0), ValueError, "tolerance must be above 0"),
        (
            lambda: ig(model_of(merge="min_prob"), x, 1, method="exact", score="model"),
            ValueError,
            "needs a mean of logits .* min_prob",
        ),
        (lambda: explain.captum_inputs(model, empty, [1]), ValueError, "without features in row 0"),
        (
            lambda: explain.captum_inputs(model, X, [[1]] * 3),
            ValueError,
            r"\[m\] or \[N=2, m\], got \[3, 1\]",
        ),
        (lambda: explain.captum_inputs(model, X, [L]), ValueError, "labels must be in"),
        (
            lambda: next(explain.explain_topk(model, scipy.sparse.vstack([X, empty], format="csr"))),
            ValueError,
            "row 2: a document must have a feature",
        ),
        (lambda: next(explain.explain_topk(model, X, 0)), ValueError, "k must be in 1"),
        (lambda: explain.votes(model, x, [L]), ValueError, "labels must be in"),
        (lambda: explain.collisions(model, x, L), ValueError, "labels must be in"),
        (lambda: explain.removals(model, x, 2, ["dog"], feature_names=words), ValueError, "no feature 'dog'"),
        (lambda: explain.removals(model, x, 2, ["dog"]), ValueError, "keeps no feature names"),
        (
            lambda: explain.removals(model, x, 2, [np.setdiff1d(np.arange(D), x.indices)[0]]),
            ValueError,
            "the document has no feature",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()


# ------------------------------------------------------------------------------------------------- report


class Page(html.parser.HTMLParser):
    """Counts elements and refuses a page whose tags do not match."""

    VOID = ("meta", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page():
    model, X = model_of(), draw(n=1)
    names = [f"<b>{d}" for d in range(D)]
    result = explain.integrated_gradients(model, X, [7, 3], feature_names=names)
    page = Page(result.to_html())
    assert sum(tag == "section" for tag, _ in page.elements) == 2
    assert names[result.features[0]] in page.texts  # as text, not as an element
    voted = explain.votes(model, X, [3, 7])
    checks = [explain.collisions(model, X, label) for label in (3, 7)]
    removed = explain.removals(model, X, 2, feature_names=names)
    page = Page(result.to_html(votes=voted, collisions=checks, removals=removed, true_labels=[7]))
    assert sum(attrs.get("class") == "true" for _, attrs in page.elements) == 1
    assert page.texts.count("Votes of the repetitions") == page.texts.count("Collision check") == 2
    bars = [attrs for tag, attrs in page.elements if tag == "rect" and attrs.get("rx") == "1.5"]
    assert len(bars) == 2 * R
    for tag, attrs in page.elements:
        assert "nan" not in str(attrs.values()), tag
    assert any("leave the top 2" in text for text in page.texts)
    (agreed, *_) = (text for text in page.texts if "Agreement of the hash functions" in text)
    assert "is in the top 5: " in agreed
    assert "not that the label is right" in agreed
    alone = Page(result.to_html(removals=explain.removals(model, X, 4)))
    assert any("leave the top 4" in text for text in alone.texts)
    Page(explain.contrast(model, X, 3, 7).to_html())
    Page(explain.integrated_gradients(model, X, 3, baseline=X).to_html())  # no effect at all


def test_shares_and_chances_are_not_rounded_to_all_or_nothing():
    shares = {
        1.0: "100.0 %",
        0.99951: "> 99.9 %",
        0.9994: "99.9 %",
        0.5: "50.0 %",
        0.0004: "< 0.1 %",
        0.0: "0.0 %",
    }
    assert {share: report.percent(share) for share in shares} == shares
    assert report.chance(1.0) == report.chance(0.99999) == "> 99.9 %"
    assert report.chance(0.0) == report.chance(1e-20) == "< 0.1 %"
    assert report.chance(0.25) == "25.0 %"


def test_the_page_shows_nothing_that_was_not_measured():
    """One repetition has no spread; a probability that rounds to 1 is not certain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        model = mach_ext.MACH(1, 3, 1, 4, hidden_size=0)
    with torch.no_grad():
        model.bucket_weight.fill_(50.0)
    x = scipy.sparse.csr_matrix(np.ones((1, 1), np.float32))
    found, voted = explain.integrated_gradients(model, x), explain.votes(model, x)
    checks = [explain.collisions(model, x, label) for label in range(3)]
    page = " ".join(Page(found.to_html(votes=voted, collisions=checks)).texts)
    for word in ("nan", "inf", "100.0 %", "Spread"):
        assert word not in page
    assert "> 99.9 %" in page


def test_words_of_the_text_are_shaded_by_their_own_feature():
    vectorizer = mach_ext.data.Vectorizer(["cat", "dog", "the"], [1.0, 1.0, 0.1])
    text = "The dog, the DOG & a bird"
    model = randomise(mach_ext.MACH(3, L, R, B, hidden_size=4))
    result = explain.integrated_gradients(model, vectorizer.transform([text]), 3, text=text)
    effects = dict(zip(result.features.tolist(), result.attributions[0], strict=True))
    page = Page(result.to_html(vectorizer=vectorizer))
    at = page.elements.index(next(e for e in page.elements if e[1].get("class", "") == "document"))
    shaded = [attrs["title"] for tag, attrs in page.elements[at + 1 : at + 5] if tag == "span"]
    assert shaded == [f"{effects[feature]:+.4f}" for feature in (2, 1, 2, 1)]
    assert text in "".join(page.texts)


def test_terminal_bars_and_plot(tmp_path):
    model, X = model_of(), draw(n=1)
    result = explain.integrated_gradients(model, X, [7, 3])
    lines = report.attribution_lines(result, 3, n=4, width=10)
    assert len(lines) == 5
    for line, (name, effect) in zip(lines, result.top(4, 3), strict=False):
        assert line.split()[0] == name
        left, _, right = line.partition("|")
        assert ("█" in left) == (effect < 0) or abs(effect) < 0.1 * abs(result.top(1, 3)[0][1])
        assert not ("█" in left and "█" in right)
    assert f"{len(result.features) - 4} others" in lines[-1]
    figure = result.plot(5, label=3)
    figure.savefig(tmp_path / "plot.png")
    assert len(figure.axes[0].patches) == 5
    assert report.sparkline([0, 1, 2], 0, 2) == "▁▅█"


def test_labels_by_digits_are_names_first():
    names = [str(label + 1) for label in range(L)]
    model = model_of()
    for asked, expected in ((["3"], 2), ([3], 3), (["0"], 0)):
        found = explain.integrated_gradients(model, draw()[0], asked, label_names=names)
        assert found.labels.tolist() == [expected]
    assert explain.votes(model, draw()[0], np.array(["5", "6"])).labels.tolist() == [5, 6]
    with pytest.raises(ValueError, match=r"labels must be in \[0, L=\d+\), got 1180591620717411303424"):
        explain.integrated_gradients(model, draw()[0], 2**70)


def test_names_are_not_mathematics(tmp_path):
    found = explain.integrated_gradients(
        model_of(), draw()[0], [1], feature_names=[r"$\frac{$"] * D, label_names=[r"$\frac{$"] * L
    )
    found.plot().savefig(tmp_path / "plot.png")
