"""bucket_forward_extremes: scores, and what merge_topk on CUDA would else look for in them."""

import re

import pytest
import torch
from helpers import assert_deterministic, bitwise_equal, random_hash, to, uniform
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_cases import DISTRIBUTIONS, MERGES, PATHS, layout

import mach_ext
from mach_ext import _ops, _prediction, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
TRANSFORMS = ("none", "sigmoid", "logsigmoid")
SPECIAL = {"numbers": (), "NaN": (float("nan"),), "all": (float("nan"), float("inf"), -float("inf"))}


@pytest.fixture(autouse=True)
def _device_that_multiplies_bfloat16(request, operators):
    if operators == "cuda" and not _ops.has_bucket_forward(request.getfixturevalue("device")):
        pytest.skip("products of bfloat16 need sm_80")


def operands(generator, N, G, H, B, special=(), shared=True):
    """hidden and weight in bfloat16. Few units are not 0, so that scores tie; some biases are special."""
    hidden = torch.randint(-1, 2, (N, H) if shared else (N, G, H), generator=generator).bfloat16()
    weight = torch.randint(-2, 3, (G, B, H), generator=generator).bfloat16().mT
    bias = uniform(generator, G, B, dtype=torch.float32).mul(4).round()
    for value in special:
        bias[torch.rand(G, B, generator=generator) < 1 / B] = value
    return hidden, weight, bias


def assert_same(ours, expected):
    """The same bits; NaN is NaN, and zeros may differ in their sign."""
    for name, a, b in zip(_ops.Extremes._fields, ours, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a.isnan(), b.isnan()), name
        assert torch.equal(a.nan_to_num(0), b.nan_to_num(0)), name


def chained(device, tensors, transform):
    """Scores and extremes on the device; the scores are those of bucket_forward."""
    there = to(device, tensors)
    scores, extremes = _ops.bucket_forward_extremes(*there, transform)
    assert bitwise_equal(scores, _ops.bucket_forward(*there, transform))
    assert all(t.is_contiguous() for t in extremes)
    assert_same([t.cpu() for t in extremes], _reference.extremes(scores.cpu()))
    return scores, extremes


def both_ways(scores, index, extremes, *args):
    """Values, labels and trace of merge_topk are the same bits with extremes as without: the labels."""
    results = []
    for given_extremes in (None, extremes):
        trace = torch.empty(len(scores), 3, dtype=torch.int64, device=scores.device)
        results.append((*_ops.merge_topk(scores, *index, *args, trace, given_extremes), trace))
    assert all(bitwise_equal(a, b) for a, b in zip(*results, strict=True))
    return results[0][1]


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "shape",
    [
        (0, 2, 8, 7),
        (1, 1, 8, 1),
        (2, 3, 8, 31),
        (129, 2, 40, 257),
        (5, 2, 0, 9),
        (3, 4, 72, 512),
        (2, 1, 8, 1300),
    ],
    ids=str,
)
def test_extremes_are_those_of_the_scores(device, generator, shape, transform, special):
    chained(device, operands(generator, *shape, SPECIAL[special], shared=False), transform)
    chained(device, operands(generator, *shape, SPECIAL[special]), transform)


def test_without_a_bias_and_of_repetitions_without_a_number(device, generator):
    hidden, weight, bias = operands(generator, 130, 2, 16, 600)
    chained(device, (hidden, weight, None), "none")
    for kept in (slice(0, 0), slice(0, 3), slice(400, 420)):  # none is finite: NaN and -inf alone
        bias[:] = float("nan")
        bias[1, kept] = -float("inf")
        _, extremes = chained(device, (hidden, weight, bias), "none")
        assert extremes.high.isnan().all()


def test_extremes_do_not_depend_on_the_schedule(device, generator):
    tensors = to(device, operands(generator, 140, 2, 24, 300, SPECIAL["all"]))
    assert_deterministic(lambda: _ops._raw.bucket_forward_extremes(*tensors, "sigmoid"))


def test_topk_is_the_same_with_extremes(device, operators):
    @settings(
        max_examples=25 if operators == "shim" else 100,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(st.data())
    def check(data):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
        N, R, B = (data.draw(st.integers(1, most)) for most in (6, 5, 600))
        L = data.draw(st.integers(1, 3000))
        k = min(L, data.draw(st.integers(1, 100)))
        hash = random_hash(generator, L, max(2, B), R, device)
        special = SPECIAL[data.draw(st.sampled_from(sorted(SPECIAL)))]
        tensors = operands(generator, N, R, 8 * data.draw(st.integers(1, 3)), max(2, B), special)
        scores, extremes = chained(device, tensors, data.draw(st.sampled_from(TRANSFORMS)))
        index, args = (hash.buckets, hash.label_index()), (k, data.draw(st.sampled_from(MERGES)))
        both_ways(scores, index, extremes, *args, data.draw(st.sampled_from(PATHS)))

    check()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_topk_of_any_scores_is_the_same_with_extremes(device, generator, name, merge):
    """Scores that no product gives, in another layout too."""
    for kind, B in (("contiguous", 40), ("strided", 300), ("repetition-major", 520)):
        hash = random_hash(generator, 700, B, 3, device)
        scores = DISTRIBUTIONS[name](generator, (3, 3, B), torch.float32)
        extremes = _ops.Extremes(*to(device, _reference.extremes(scores)))
        index = (hash.buckets, hash.label_index())
        for path in ("scan", "lists"):
            both_ways(layout(scores.to(device), kind), index, extremes, 5, merge, path)


@pytest.mark.parametrize("path", ["scan", "lists"])
def test_several_chunks_of_documents(device, generator, path):
    """300 documents are two chunks, which have extremes of their own."""
    hash = random_hash(generator, 3000, 30, 4, device)
    scores, extremes = chained(device, operands(generator, 300, 4, 16, 30), "sigmoid")
    labels = both_ways(scores, (hash.buckets, hash.label_index()), extremes, 3, "mean", path)
    expected = _reference.merge_topk(scores.cpu(), hash.buckets.cpu(), None, 3, "mean")[1]
    assert torch.equal(labels.cpu(), expected)


def test_chunks_of_documents_that_are_far_apart(device, generator):
    """Extremes of the first chunk would be out of place in the second, and the trace would show it."""
    hash = random_hash(generator, 3000, 30, 4, device)
    scores = torch.randn(300, 4, 30, generator=generator)
    scores[150:] -= 100
    extremes = _ops.Extremes(*to(device, _reference.extremes(scores)))
    for path in ("scan", "lists"):
        both_ways(scores.to(device), (hash.buckets, hash.label_index()), extremes, 3, "mean", path)


@pytest.fixture
def launches(device, operators, shim_ops):
    """A function of a function: how often it launches each kernel, in one run of the shim."""
    if operators != "shim":
        pytest.skip("the shim counts launches")

    def totals():
        lines = shim_ops.library.mach_shim_totals().decode().splitlines()
        return {name: int(numbers[0]) for name, *numbers in map(str.split, lines)}

    def count(run):
        before = totals()
        run()
        changes = {name: number - before.get(name, 0) for name, number in totals().items()}
        least = min((number for number in changes.values() if number), default=1)
        return {name: number // least for name, number in changes.items() if number}

    return count


def test_extremes_save_a_pass_over_the_scores(launches, generator):
    hash = random_hash(generator, 3000, 30, 4)
    tensors = operands(generator, 5, 4, 16, 30)
    scores, extremes = _ops.bucket_forward_extremes(*tensors)
    found = launches(lambda: _ops.bucket_forward_extremes(*tensors))
    assert found == {"bucket_forward_extremes_kernel": 1, "tile_extremes_kernel": 1}
    args = (scores, hash.buckets, hash.label_index(), 3, "mean", "scan", None)
    without, given_them = (launches(lambda e=e: _ops.merge_topk(*args, e)) for e in (None, extremes))
    assert without.pop("extremes_kernel") == 1
    assert without == given_them
    assert len(given_them) == 7


def test_extremes_are_used(device, operators, generator):
    """Wrong ones make a wrong answer on CUDA: it does not look for them itself."""
    if operators == "cpu":
        pytest.skip("the CPU has no use for them")
    hash = random_hash(generator, 3000, 30, 4, device)
    scores, extremes = _ops.bucket_forward_extremes(*to(device, operands(generator, 5, 4, 16, 30)))
    trace = [torch.empty(5, 3, dtype=torch.int64, device=device) for _ in range(2)]
    for t, e in zip(trace, (extremes, extremes._replace(high=extremes.high * torch.nan)), strict=True):
        _ops.merge_topk(scores, hash.buckets, hash.label_index(), 3, "mean", "scan", t, e)
    assert (trace[0][:, 2] < 3000).all()
    assert (trace[1][:, 2] == 3000).all()  # no scan where high is NaN: all labels are looked at


def test_buckets_that_are_not_there(device, generator):
    """A bucket of given extremes that is out of range is not followed."""
    hash = random_hash(generator, 3000, 30, 4, device)
    scores, extremes = _ops.bucket_forward_extremes(*to(device, operands(generator, 5, 4, 16, 30)))
    args = (scores, hash.buckets, hash.label_index(), 3, "mean", "scan", None)
    expected = _ops.merge_topk(*args)
    for value in (-1, 30, 2**31 - 1, -(2**31)):
        best = torch.full_like(extremes.best, value)
        ours = _ops.merge_topk(*args, extremes._replace(best=best))
        assert all(bitwise_equal(a, b) for a, b in zip(ours, expected, strict=True))


WRONG = {
    "three": (lambda e: e[:3], "extremes must be (high, low, best, peaks)"),
    "documents": (lambda e: (e[0][:2], *e[1:]), "extremes must have shape [5, 4], got [2, 4]"),
    "strides": (lambda e: (e[0].t().contiguous().t(), *e[1:]), "extremes must be contiguous"),
    "dtype": (lambda e: (*e[:2], e[2].long(), e[3]), "extremes must be Int, got Long"),
    "groups": (
        lambda e: (*e[:3], e[3][..., :3].contiguous()),
        "extremes must have shape [5, 4, 4], got [5, 4, 3]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_extremes_are_refused(device, operators, generator, case):
    if operators == "cpu":
        pytest.skip("the CPU has no use for them")
    change, message = WRONG[case]
    hash = random_hash(generator, 3000, 30, 4, device)
    scores, extremes = _ops.bucket_forward_extremes(*to(device, operands(generator, 5, 4, 16, 30)))
    args = (hash.buckets, *hash.label_index(), 3, "mean", "auto", None)
    with pytest.raises(RuntimeError, match=re.escape(f"merge_topk: {message}")):
        _ops._raw.merge_topk(scores, *args, list(change(extremes)))
    with pytest.raises(RuntimeError, match="merge_topk: scores with extremes must be Float"):
        _ops._raw.merge_topk(scores.double(), *args, list(extremes))


def test_wrong_transform_is_refused(device, generator):
    with pytest.raises(RuntimeError, match="bucket_forward_extremes: transform must be none, sigmoid or"):
        _ops.bucket_forward_extremes(*to(device, operands(generator, 2, 1, 8, 5)), "tanh")


def test_opcheck(generator):
    raw, hash = torch.ops.mach_ext, random_hash(generator, 50, 7, 2)
    tensors = operands(generator, 3, 2, 8, 7)
    torch.library.opcheck(raw.bucket_forward_extremes, (*tensors, "sigmoid"))
    scores, extremes = _ops.bucket_forward_extremes(*tensors)
    args = (scores, hash.buckets, *hash.label_index(), 3, "mean", "auto", None, list(extremes))
    torch.library.opcheck(raw.merge_topk, args)


# ---------------------------------------------------------------------------------------- MACH.topk


def batch():
    X = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0, 4, 2]), torch.tensor([0, 2, 2, 3])
    return X


def model_of(merge="mean_prob", **sizes):
    torch.manual_seed(0)
    sizes = {"num_repetitions": 6, "num_buckets": 40, "hidden_size": 16, **sizes}
    model = mach_ext.MACH(20, 300, merge=merge, **sizes)
    torch.nn.init.normal_(model.bucket_weight)
    return model


@pytest.fixture
def calls(monkeypatch):
    """How often the fused kernel is called with extremes."""
    seen, op = [], _ops.bucket_forward_extremes
    monkeypatch.setattr(_ops, "bucket_forward_extremes", lambda *args: seen.append(args[3]) or op(*args))
    return seen


@pytest.mark.parametrize("encoder", ["shared", "independent"])
@pytest.mark.parametrize("merge", sorted(mach_ext.nn.MODEL_MERGES))
def test_prediction_takes_the_fused_kernel(device, operators, calls, merge, encoder):
    model, X = model_of(merge, encoder=encoder).to(device), to(device, batch())
    with torch.no_grad():
        values, labels = model.topk(*X, 300, precision="bfloat16")
        logits = model(*X, precision="bfloat16")
    scores, order = mach_ext.nn.MODEL_MERGES[merge].topk(logits, model.hash, 300)
    names = {"mean_logit": "none", "mean_logprob": "logsigmoid"}
    assert calls == ([] if operators == "cpu" else [names.get(merge, "sigmoid")])
    torch.testing.assert_close(values, scores, rtol=1e-5, atol=1e-6)
    if merge == "mean_logit":  # no transform, so the same bits
        assert bitwise_equal(values, scores)
        assert torch.equal(labels, order)
    predicted = model.predict(torch.eye(20), 3, precision="bfloat16")[0]
    assert predicted.shape == (20, 3)
    assert len(calls) == (0 if operators == "cpu" else 2)


def test_gradients_and_hooks_take_the_other_way(device, calls):
    model, X = model_of().to(device), to(device, batch())
    values, _ = model.topk(*X, 5, precision="bfloat16")
    values.sum().backward()
    assert model.bucket_weight.grad.abs().sum() > 0
    with torch.no_grad():
        expected = model.topk(*X, 5, precision="bfloat16")
        calls.clear()
        seen = []
        for register in (model.register_forward_hook, model.register_forward_pre_hook):
            handle = register(lambda *_: seen.append(1))
            found = model.topk(*X, 5, precision="bfloat16")
            torch.testing.assert_close(found[0], expected[0])
            handle.remove()
        assert (calls, seen) == ([], [1, 1])
        model.topk(*X, 5)
        model.double().topk(X[0].double(), *X[1:], 5)
    assert calls == []


def test_merges_and_models_without_a_kernel(device, calls, monkeypatch):
    X = to(device, batch())
    tanh = mach_ext.merges.Merge(torch.tanh, "mean")
    monkeypatch.setitem(mach_ext.nn.MODEL_MERGES, "mean_prob", tanh)
    with torch.no_grad():
        for sizes in ({}, {"hidden_size": 0}, {"hidden_size": 12}):
            model_of(**sizes).to(device).topk(*X, 5, precision="bfloat16")
        monkeypatch.undo()
        monkeypatch.setattr(_prediction, "takes_fused", lambda *_: True)
        model_of(hidden_size=0).to(device).topk(*X, 5, precision="bfloat16")
    assert calls == []
    assert F.MERGES == MERGES
