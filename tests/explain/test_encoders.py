"""Explanations of a head through any encoder in front of it."""

import copy
import functools
import json
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from encoder_cases import (
    BASELINE,
    DENSE,
    HIDDEN,
    LABELS,
    B,
    E,
    H,
    L,
    R,
    T,
    X,
    head_of,
    mlp,
    reference,
    tokens_encoder,
    uniform,
)
from explain_cases import Page
from test_nn import MERGES
from torch import nn

import mach_ext
from mach_ext import explain
from mach_ext.explain import _encoder, _path

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("other_baseline", [False, True])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("score", explain.SCORES)
def test_gausslegendre_is_autograd_label_by_label(merge, score, other_baseline):
    head, encoder = head_of(merge=merge), tokens_encoder().eval()
    baseline = BASELINE if other_baseline else torch.zeros_like(X)
    options = {"baseline": baseline} if other_baseline else {}
    result = explain.integrated_gradients(head, X, LABELS, encoder=encoder, score=score, n_steps=7, **options)
    expected = reference(head, encoder, X, baseline, LABELS, 7, score)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        result.attributions.reshape(3, *result.shape), expected, rtol=1e-3, atol=1e-5 * scale
    )
    for hidden, scores in ((encoder(X), result.scores), (encoder(baseline), result.baseline_scores)):
        theirs = head.label_scores(hidden, torch.tensor(LABELS), score).detach()[0]
        np.testing.assert_allclose(scores, theirs, rtol=1e-5, atol=1e-6)
    own = head.label_scores(encoder(X), torch.tensor(LABELS), "model").detach()[0]
    np.testing.assert_allclose(result.model_scores, own, rtol=1e-5, atol=1e-6)
    assert (result.method, result.n_steps) == ("gausslegendre", 7)
    assert result.features.tolist() == list(range(T * E))
    np.testing.assert_array_equal(result.values, X.flatten())
    np.testing.assert_array_equal(result.baselines, baseline.flatten())


@pytest.mark.parametrize("merge", MERGES)
def test_captums_integrated_gradients(merge):
    attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to compare with")
    head, encoder = head_of(merge=merge), tokens_encoder()
    forward, inputs, args = explain.captum_inputs(head, X, LABELS, encoder=encoder, score="model")
    captum, options = attr.IntegratedGradients(forward), {"additional_forward_args": args, "n_steps": 20}
    theirs = np.concatenate(
        [captum.attribute(inputs, BASELINE, target=j, **options).detach() for j in range(3)]
    )
    ours = explain.integrated_gradients(
        head, X, LABELS, encoder=encoder, score="model", baseline=BASELINE, n_steps=20
    )
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours.attributions.reshape(theirs.shape), theirs, rtol=1e-3, atol=1e-5 * scale)
    assert encoder.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", explain.SCORES)
@pytest.mark.parametrize("name", ["tokens", "mlp"])
def test_completeness(name, score, dtype):
    """From two baselines, neither of which is near the other."""
    encoder, x, other = {
        "tokens": (tokens_encoder(), X, BASELINE),
        "mlp": (mlp(), DENSE, uniform(1, E, seed=7)),
    }[name]
    head, encoder, x, other = (each.to(dtype) for each in (head_of(merge="mean_prob"), encoder, x, other))
    sums = []
    for baseline in (None, other, 3 * other + 1):
        result = explain.integrated_gradients(
            head, x, LABELS, encoder=encoder, baseline=baseline, score=score, tolerance=5e-4
        )
        sums.append(result.attributions.sum(1))
        np.testing.assert_allclose(result.delta, sums[-1] - (result.scores - result.baseline_scores))
        assert (np.abs(result.delta) <= 5e-4 * (np.abs(result.scores) + np.abs(result.baseline_scores))).all()
    assert np.abs(sums[0] - sums[1]).min() > 1e-3
    if name == "mlp":
        tight = explain.integrated_gradients(head, x, LABELS, encoder=encoder, baseline=other, n_steps=50)
        assert np.abs(tight.delta).max() < {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]


def test_pieces_are_divided_only_where_the_score_bends():
    """Layer normalization bends it near an input of zeros, where 32 equal pieces do not suffice."""
    head, encoder = head_of(), tokens_encoder()
    result = explain.integrated_gradients(head, 10 * X, LABELS, encoder=encoder)
    assert 64 < result.n_steps <= 1024
    equal = [
        explain.integrated_gradients(head, 10 * X, LABELS, encoder=encoder, n_steps=n).delta
        for n in (32, 512)
    ]
    assert np.abs(result.delta).max() < np.abs(equal[1]).max() < np.abs(equal[0]).max()
    smooth = explain.integrated_gradients(head, DENSE, LABELS, encoder=mlp())
    assert smooth.n_steps == 32
    with pytest.warns(explain.StepsWarning, match="max_steps 64 do not meet tolerance 1e-09: after 64 steps"):
        explain.integrated_gradients(head, X, LABELS, encoder=encoder, tolerance=1e-9, max_steps=64)


def test_kinks_cost_few_steps():
    """Many of 120 units switch along the path. The tolerance bounds what they leave."""
    head, units = head_of(), nn.Sequential(mlp(10 * H), nn.ReLU(), nn.Unflatten(1, (10, H)))
    result = explain.integrated_gradients(head, DENSE, LABELS, encoder=lambda x: units(x).mean(1))
    exact = reference(head, lambda x: units(x).mean(1), DENSE, torch.zeros(1, E), LABELS, 300)
    assert result.n_steps <= 256
    assert np.abs(result.attributions - exact).max() < 1e-2 * np.abs(exact).max()


def test_per_repetition():
    head = head_of(per_repetition=True, merge="mean_prob")
    encoder = nn.Sequential(mlp(R * H), nn.Unflatten(1, (R, H)))
    result = explain.integrated_gradients(head, DENSE, LABELS, encoder=encoder, score="model", n_steps=9)
    expected = reference(head, encoder, DENSE, torch.zeros(1, E), LABELS, 9, "model")
    np.testing.assert_allclose(result.attributions, expected, rtol=1e-3, atol=1e-6)
    voted = explain.votes(head, DENSE, LABELS, encoder=encoder)
    logits = head.label_logits(encoder(DENSE), torch.tensor(LABELS)).detach()[0]
    np.testing.assert_allclose(voted.logits, logits, rtol=1e-5)
    assert explain.collisions(head, None, 3).num_mates > 0
    forward, inputs, args = explain.captum_inputs(head, uniform(2, R, H), LABELS)
    torch.testing.assert_close(
        forward(inputs, *args), head.label_scores(inputs, torch.tensor(LABELS)), rtol=1e-5, atol=1e-6
    )
    hidden = encoder(DENSE).detach()
    alone = explain.integrated_gradients(head, hidden, LABELS, encoder=nn.Identity())
    assert alone.shape == (R, H)
    for call in (explain.integrated_gradients, explain.votes, explain.leave_one_out):
        with pytest.raises(ValueError, match=r"got per_repetition=True; with encoder=torch.nn.Identity\(\)"):
            call(head, hidden.flatten(1), LABELS[0])


@pytest.mark.parametrize("m", [1, 100])
def test_the_encoder_runs_once_for_all_labels(m):
    head, encoder = mach_ext.MACHHead(H, 1000, R, B), mlp()
    sizes = []
    encoder.register_forward_hook(lambda module, inputs, hidden: sizes.append(len(hidden)))
    labels = np.arange(m) * 7
    result = explain.integrated_gradients(head, DENSE, labels, encoder=encoder, n_steps=50)
    assert result.attributions.shape == (m, E)
    assert sizes == [1, 2, 50]
    each = [
        explain.integrated_gradients(head, DENSE, label, encoder=encoder, n_steps=50) for label in labels[:3]
    ]
    together = result.attributions[:3]
    np.testing.assert_allclose(together, np.concatenate([r.attributions for r in each]), rtol=1e-5)


def test_batches_and_blocks_change_nothing(monkeypatch):
    head, encoder, labels = head_of(merge="mean_prob"), tokens_encoder(), np.arange(0, L, 8)
    for options in ({"n_steps": 40}, {"score": "model", "n_steps": 7}, {"score": "model", "tolerance": 0.01}):
        whole = explain.integrated_gradients(head, X, labels, encoder=encoder, **options)
        with monkeypatch.context() as patch:
            patch.setattr(_path, "BLOCK_BYTES", 2048)
            patch.setattr(_encoder, "INPUT_BYTES", 3 * 4 * T * E)
            parts = explain.integrated_gradients(head, X, labels, encoder=encoder, **options)
        scale = np.abs(whole.attributions).max()
        bound = 1e-4 if "n_steps" in options else 0.1  # Each block has steps of its own.
        np.testing.assert_allclose(whole.attributions, parts.attributions, atol=bound * scale)


def test_a_million_labels():
    """Nothing of the size of L is made: neither scores nor buckets of all labels."""
    encoder, few = mlp(), mach_ext.MACHHead(H, 1000, R, 4096)
    many = mach_ext.MACHHead(H, 1_000_000, R, 4096)
    sizes = {}
    for head in (few, many):
        largest = 0

        class Largest(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                nonlocal largest
                result = function(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor) and result is not head.hash.buckets:  # noqa: B023
                    largest = max(largest, result.numel())
                return result

        with Largest():
            result = explain.integrated_gradients(head, DENSE, [7, 999], encoder=encoder, n_steps=20)
        sizes[head.num_labels] = largest
        assert np.abs(result.delta).max() < 1e-4
    assert sizes[1000] == sizes[1_000_000] <= R * H * 4096


def test_top_k_of_many_inputs():
    head, encoder, many = head_of(), tokens_encoder(), uniform(4, T, E)
    texts = list("abcd")
    results = list(explain.explain_topk(head, many, 3, texts, encoder=encoder, n_steps=5))
    _, labels = head.topk(encoder.eval()(many), 3)
    for n, result in enumerate(results):
        assert result.labels.tolist() == labels[n].tolist()
        assert result.text == texts[n]
        np.testing.assert_array_equal(result.values, many[n].flatten())
    usual = explain.integrated_gradients(head, many[:1], encoder=encoder, n_steps=5)
    assert usual.labels.tolist() == head.topk(encoder(many[:1]))[1][0].tolist()


def test_votes_collisions_and_contrast_through_an_encoder():
    head, encoder = head_of(merge="mean_logprob"), tokens_encoder()
    hidden = copy.deepcopy(encoder).eval()(X).detach()
    ours, theirs = explain.votes(head, X, encoder=encoder), explain.votes(head, hidden)
    assert ours.labels.tolist() == theirs.labels.tolist()
    for name in ("logits", "scores", "spread", "agreement"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5)
    for label in range(5):
        ours = explain.collisions(head, X, label, encoder=encoder)
        theirs = explain.collisions(head, hidden, label)
        assert ours.verdict == theirs.verdict
        assert ours.score == pytest.approx(theirs.score, rel=1e-5)
    pair = explain.integrated_gradients(head, X, [3, 8], encoder=encoder, n_steps=9)
    rather = explain.contrast(head, X, 3, 8, encoder=encoder, n_steps=9)
    np.testing.assert_allclose(rather.attributions[0], pair.attributions[0] - pair.attributions[1])
    assert rather.shape == (T, E)
    zero = explain.votes(head, torch.full((1, E), -1.0), encoder=nn.Sequential(mlp(), nn.Threshold(9, 0)))
    np.testing.assert_allclose(  # hidden units of zeros are fine here
        zero.scores, head.label_logits(torch.zeros(1, H), torch.from_numpy(zero.labels)).mean(2).detach()[0]
    )


# ---------------------------------------------------------------------- what an explanation must leave alone


def test_modes_statistics_and_gradients_stay():
    head, encoder = head_of(), tokens_encoder()
    encoder.layers.eval()  # a part is frozen
    encoder.last.weight.requires_grad_(False)
    head.bucket_weight.grad = torch.ones_like(head.bucket_weight)
    x = X.clone().requires_grad_()
    before = copy.deepcopy(encoder.state_dict())
    modes = [(module, module.training) for module in encoder.modules()]
    needs = [parameter.requires_grad for parameter in encoder.parameters()]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = explain.integrated_gradients(head, x, LABELS, encoder=encoder)
    explain.votes(head, x, encoder=encoder)
    list(explain.explain_topk(head, x, 1, encoder=encoder, n_steps=3))
    again = explain.integrated_gradients(head, x, LABELS, encoder=encoder.eval())
    np.testing.assert_array_equal(first.attributions, again.attributions)
    for module, training in modes:
        module.train(training)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [parameter.requires_grad for parameter in encoder.parameters()] == needs
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert (head.bucket_weight.grad == 1).all()
    assert head.bucket_bias.grad is None
    assert x.grad is None
    assert x.requires_grad
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_modes_are_restored_after_an_error():
    head, encoder = head_of(), tokens_encoder()
    encoder.layers.eval()
    modes = [module.training for module in encoder.modules()]
    encoder.last.register_forward_hook(lambda module, inputs, output: output.tolist())
    with pytest.raises(AttributeError):
        explain.integrated_gradients(head, X, LABELS, encoder=encoder)
    assert [module.training for module in encoder.modules()] == modes


@pytest.mark.parametrize(
    "function",
    [lambda encoder: encoder.forward, lambda encoder: functools.partial(encoder)],
    ids=["method", "partial"],
)
def test_the_module_behind_a_callable_is_found(function):
    head, encoder = head_of(), tokens_encoder()
    expected = explain.integrated_gradients(head, X, LABELS, encoder=encoder, n_steps=5).attributions
    result = explain.integrated_gradients(head, X, LABELS, encoder=function(encoder), n_steps=5)
    np.testing.assert_array_equal(result.attributions, expected)
    assert encoder.training


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_contexts_around_the_call_change_nothing(context):
    head, encoder = head_of(merge="mean_prob"), tokens_encoder()

    def run():
        x = X.clone()  # an inference tensor in inference mode
        result = explain.integrated_gradients(head, x, LABELS, encoder=encoder, n_steps=5, score="model")
        alone = explain.integrated_gradients(head, HIDDEN[:1], LABELS, score="model")
        return result, explain.votes(head, x, LABELS, encoder=encoder), alone

    outside = run()
    with context():
        inside = run()
    for ours, theirs in zip(inside, outside, strict=True):
        for name in ("attributions", "scores", "logits"):
            if hasattr(ours, name):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_compiled_encoder():
    """Its backward pass may run only once, so it runs as it was before."""
    head, encoder = head_of(), mlp()
    expected = explain.integrated_gradients(head, DENSE, LABELS, encoder=encoder).attributions
    compiled = torch.compile(encoder, backend="aot_eager")
    for each in (compiled, lambda x: compiled(x)):
        result = explain.integrated_gradients(head, DENSE, LABELS, encoder=each)
        np.testing.assert_array_equal(result.attributions, expected)
    torch._dynamo.reset()


def test_an_encoder_that_recomputes_its_activations():
    class Checkpoint(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = tokens_encoder()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.tokens, x, use_reentrant=False)

    head = head_of()
    expected = explain.integrated_gradients(head, X, LABELS, encoder=tokens_encoder(), n_steps=5)
    result = explain.integrated_gradients(head, X, LABELS, encoder=Checkpoint(), n_steps=5)
    np.testing.assert_array_equal(result.attributions, expected.attributions)


def test_an_encoder_may_overwrite_its_input():
    head, encoder = head_of(), nn.Sequential(nn.ReLU(inplace=True), mlp())
    plain = nn.Sequential(nn.ReLU(), encoder[1])
    given = DENSE.clone()
    result = explain.integrated_gradients(head, given, LABELS, encoder=encoder, n_steps=5)
    expected = explain.integrated_gradients(head, DENSE, LABELS, encoder=plain, n_steps=5)
    np.testing.assert_array_equal(result.attributions, expected.attributions)
    assert torch.equal(given, DENSE)


def test_an_encoder_that_ignores_its_input():
    head, parameter = head_of(), nn.Parameter(torch.ones(H))
    for encoder in (lambda x: torch.ones(len(x), H), lambda x: parameter.expand(len(x), H)):
        result = explain.integrated_gradients(head, X, LABELS, encoder=encoder)
        assert (result.attributions == 0).all()
        assert (result.delta == 0).all()
        Page(result.to_html())


def test_half_precision_encoders():
    head, encoder = head_of(), mlp()
    wide = explain.integrated_gradients(head, DENSE, LABELS, encoder=encoder, n_steps=20)
    narrow = explain.integrated_gradients(
        head, DENSE.bfloat16(), LABELS, encoder=copy.deepcopy(encoder).bfloat16(), n_steps=20
    )
    scale = np.abs(wide.attributions).max()
    np.testing.assert_allclose(narrow.attributions, wide.attributions, atol=0.05 * scale)


def test_no_warning_is_left():
    """The computations give none of PyTorch's or NumPy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain.integrated_gradients(head_of(), X.numpy(), LABELS, encoder=tokens_encoder(), n_steps=3)
        array = X.numpy().copy()
        array.flags.writeable = False
        explain.votes(head_of(), array, encoder=tokens_encoder())


# ------------------------------------------------------------------------------------------------- results


def test_names_and_sums():
    head, encoder = head_of(), tokens_encoder()
    options = {"encoder": encoder, "n_steps": 5, "baseline": BASELINE[0]}
    plain = explain.integrated_gradients(head, X, LABELS, **options)
    assert plain.feature_names[:2] == ["0,0", "0,1"]
    assert plain.feature_names[-1] == f"{T - 1},{E - 1}"
    assert explain.integrated_gradients(head, DENSE, 1, encoder=mlp()).feature_names[:2] == ["0", "1"]
    every = [f"p{i}" for i in range(T * E)]
    named = explain.integrated_gradients(head, X, LABELS, feature_names=every, **options)
    assert named.feature_names == every
    assert not named.is_summed
    words = ["a", "cat", "sat", "down", "."]
    summed = explain.integrated_gradients(head, X, LABELS, feature_names=words, **options)
    assert summed.is_summed
    assert (summed.feature_names, summed.shape) == (words, (T, E))
    assert summed.features.tolist() == list(range(T))
    np.testing.assert_allclose(summed.attributions, plain.attributions.reshape(3, T, E).sum(2))
    np.testing.assert_allclose(summed.delta, plain.delta, atol=1e-9)
    np.testing.assert_allclose(summed.values, X[0].norm(dim=1), rtol=1e-6)
    np.testing.assert_allclose(summed.baselines, BASELINE[0].norm(dim=1), rtol=1e-6)
    rule = r"feature_names must be 40 names for the positions of \[5, 8\], or 5 for sums"
    with pytest.raises(ValueError, match=rule):
        explain.integrated_gradients(head, X, LABELS, feature_names=words[:4], **options)
    with pytest.raises(ValueError, match=r"must be 8 names for the positions of \[8\], got 1"):
        explain.integrated_gradients(head, DENSE, LABELS, feature_names=["a"], encoder=mlp())


def test_exports(tmp_path):
    head, encoder = head_of(merge="mean_prob"), tokens_encoder()
    words = ["a", "cat", "<b>sat", "down", "."]
    result = explain.integrated_gradients(head, X, LABELS, encoder=encoder, feature_names=words)
    content = json.loads(result.to_json(tmp_path / "e.json"))
    assert content["shape"] == [T, E]
    assert content["feature_names"] == words
    assert len(result.top(2, label=89)) == 2
    assert len(result.plot().axes[0].patches) == T
    checks = [explain.collisions(head, X, label, encoder=encoder) for label in LABELS]
    page = Page(result.to_html(votes=explain.votes(head, X, LABELS, encoder=encoder), collisions=checks))
    (first, *_) = (i for i, (_, attrs) in enumerate(page.elements) if "bag" in attrs.get("class", ""))
    spans = [attrs for tag, attrs in page.elements[first + 1 : first + 1 + T] if tag == "span"]
    assert [span["title"] for span in spans] == [f"{effect:+.4f}" for effect in result.attributions[0]]
    text = " ".join(page.texts)
    assert "parts of the input make the model give it these labels" in text
    assert "from a zero input, computed in" in text
    assert f"The input has the shape {T} \u00d7 {E}. Effects are summed over its last dimension." in text
    result = explain.integrated_gradients(head, X, LABELS, encoder=encoder, baseline=BASELINE)
    text = " ".join(Page(result.to_html()).texts)
    assert "from a baseline input" in text
    assert "Positions, by effect" in text
    assert "summed" not in text
    text = " ".join(Page(explain.contrast(head, X, 3, 8, encoder=encoder).to_html()).texts)
    assert "prefer one label to the other" in text
    alone = " ".join(Page(explain.integrated_gradients(head, HIDDEN[:1], 3).to_html()).texts)
    assert "from the empty document, computed in closed form" in alone
