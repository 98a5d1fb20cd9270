"""merge_scores: a label's key from its R bucket scores, to the bit, and its gradient."""

import functools

import pytest
import torch
from helpers import (
    FLOATS,
    INTS,
    assert_deterministic,
    assert_matches,
    bitwise_equal,
    random_hash,
    strided,
    to,
    uniform,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_cases import MERGES, decodes, layout

from mach_ext import LabelHash, _ops, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
parametrize_merge = pytest.mark.parametrize("merge", MERGES)
parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def test_scores_are_the_twins_bits(device):
    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(
        decodes(num_documents=(0, 9), num_labels=(1, 30), num_repetitions=(1, 9), num_buckets=(2, 12)),
        st.integers(0, 12),
        st.sampled_from(INTS),
    )
    def check(decode, m, index):
        scores, hash, _, merge, _ = decode
        labels = torch.randint(hash.num_labels, (len(scores), m)).to(index)
        expected = _reference.merge_scores(scores, hash.buckets, labels.long(), merge)
        on_device = scores.to(device), hash.to(device)
        assert bitwise_equal(F.merge_scores(*on_device, labels.to(device), merge), expected)
        if len(labels):
            each = F.merge_scores(*on_device, labels[0].to(device), merge)
            assert bitwise_equal(each[:1], expected[:1])

    check()


@parametrize_merge
@parametrize_dtype
def test_gradient_matches_reference(device, merge, dtype):
    """Also on ties (lowest r) and NaN (the first one)."""

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(
        decodes(num_documents=(0, 5), num_labels=(1, 20), num_repetitions=(1, 9), num_buckets=(2, 9)),
        st.integers(0, 12),
    )
    def check(decode, m):
        scores, hash, *_ = decode
        scores = scores.to(dtype)
        generator = torch.Generator().manual_seed(m)
        labels = torch.randint(hash.num_labels, (len(scores), m), generator=generator)
        grad = uniform(generator, len(scores), m, dtype=dtype)
        ours = _ops.merge_scores_grad(*to(device, (grad, scores, hash.buckets, labels)), merge)
        leaf = scores.detach().double().requires_grad_()
        out = _reference.merge_scores(leaf, hash.buckets, labels, merge)
        (expected,) = torch.autograd.grad(out, leaf, grad.double())
        assert ours.is_contiguous()
        assert_matches(ours, expected)

    check()


@pytest.mark.parametrize(
    ("merge", "scores", "expected"),
    [
        ("min", [3.0, 1.0, 1.0, 2.0], [0, 1, 0, 0]),
        ("min", [0.0, -0.0, 5.0, 0.0], [1, 0, 0, 0]),
        ("median", [1.0, 1.0, 1.0, 1.0], [0, 0.5, 0.5, 0]),
        ("median", [9.0, 2.0, 4.0, 0.0], [0, 0.5, 0.5, 0]),
        ("median", [9.0, 2.0, 4.0], [0, 0, 1]),
        ("median", [2.0, 2.0, 1.0], [1, 0, 0]),
        ("min", [1.0, float("nan"), float("nan")], [0, 1, 0]),
        ("median", [1.0, float("nan"), 0.0, float("nan")], [0, 1, 0, 0]),
        ("mean", [1.0, 2.0, 2.0, 9.0], [0.25] * 4),
    ],
)
def test_gradient_by_hand(device, merge, scores, expected):
    hash = LabelHash.from_buckets([[1]] * len(scores), num_buckets=2).to(device)
    leaf = torch.zeros(1, len(scores), 2, device=device)
    leaf[0, :, 1] = torch.tensor(scores)
    leaf.requires_grad_()
    F.merge_scores(leaf, hash, torch.tensor([0], device=device), merge).sum().backward()
    assert leaf.grad[0, :, 1].tolist() == expected
    assert leaf.grad[0, :, 0].tolist() == [0] * len(scores)


@parametrize_merge
@pytest.mark.parametrize("R", [1, 4, 5])
def test_gradcheck(device, operators, generator, merge, R):
    gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=operators == "shim")
    hash = random_hash(generator, 9, 4, R, device)
    scores = uniform(generator, 3, R, 4).to(device).requires_grad_()
    labels = torch.randint(9, (3, 6), generator=generator).to(device)
    gradcheck(lambda s: F.merge_scores(s, hash, labels, merge), scores)
    gradcheck(
        lambda s: F.merge_scores(s.transpose(0, 1), hash, labels, merge),
        scores.transpose(0, 1).detach().clone().requires_grad_(),
    )
    values, chosen = F.merge_topk(scores, hash, 5, merge)
    assert not chosen.requires_grad
    gradcheck(lambda s: F.merge_topk(s, hash, 5, merge)[0], scores)
    gradient = torch.autograd.grad(values.sum(), scores)[0]
    scored = F.merge_scores(scores, hash, chosen, merge)
    assert bitwise_equal(values, scored)
    assert bitwise_equal(gradient, torch.autograd.grad(scored.sum(), scores)[0])


@parametrize_merge
def test_scores_deterministic(generator, merge):
    hash = random_hash(generator, 500, 40, 5)
    scores = uniform(generator, 60, 5, 40, dtype=torch.float32)
    labels = torch.randint(500, (60, 70), generator=generator)
    grad = uniform(generator, 60, 70, dtype=torch.float32)
    assert_deterministic(
        lambda: (
            _ops.merge_scores(scores, hash.buckets, labels, merge),
            _ops.merge_scores_grad(grad, scores, hash.buckets, labels, merge),
        )
    )


@parametrize_merge
def test_strided_arguments_give_the_same_bits(device, generator, merge):
    buckets = random_hash(generator, 30, 6, 4).buckets
    scores, labels = (
        uniform(generator, 5, 4, 6, dtype=torch.float32),
        torch.randint(30, (5, 7), generator=generator),
    )
    grad = uniform(generator, 5, 7, dtype=torch.float32)
    grad, scores, buckets, labels = to(device, (grad, scores, buckets, labels))
    out, gradient = (
        _ops.merge_scores(scores, buckets, labels, merge),
        _ops.merge_scores_grad(grad, scores, buckets, labels, merge),
    )
    top = _ops.merge_topk(scores, buckets, None, 9, merge)
    for kind in ("repetition-major", "strided"):
        args = (layout(scores, kind), strided(buckets), strided(labels), merge)
        assert bitwise_equal(_ops.merge_scores(*args), out)
        assert bitwise_equal(_ops.merge_scores_grad(strided(grad), *args), gradient)
        for a, b in zip(_ops.merge_topk(*args[:2], None, 9, merge), top, strict=True):
            assert bitwise_equal(a, b)
    one = scores[:1].expand(5, -1, -1)  # documents 0 elements apart
    assert bitwise_equal(_ops.merge_topk(one, buckets, None, 9, merge)[0], top[0][:1].expand(5, -1))


@parametrize_merge
@parametrize_dtype
def test_opcheck(device, generator, merge, dtype):
    buckets = random_hash(generator, 9, 4, 3, device).buckets
    scores, grad = to(
        device, (uniform(generator, 2, 3, 4, dtype=dtype), uniform(generator, 2, 5, dtype=dtype))
    )
    labels = torch.randint(9, (2, 5), generator=generator).to(device)
    ops = torch.ops.mach_ext
    torch.library.opcheck(ops.merge_scores, (scores, buckets, labels, merge))
    torch.library.opcheck(ops.merge_scores_grad, (grad, scores, buckets, labels, merge))
    torch.library.opcheck(ops.label_index, (buckets, 4))
    index = ops.label_index(buckets, 4)
    for path, trace in (("auto", None), ("scan", torch.zeros(2, 3, dtype=torch.int64, device=device))):
        torch.library.opcheck(ops.merge_topk, (scores, buckets, *index, 4, merge, path, trace))


@parametrize_merge
@pytest.mark.parametrize("wrong", [-1, 9, 2**40])
def test_unvalidated_label_out_of_range_is_nan(device, generator, merge, wrong):
    hash = random_hash(generator, 9, 4, 3, device)
    scores = uniform(generator, 2, 3, 4, dtype=torch.float32).to(device).requires_grad_()
    labels = torch.tensor([[0, wrong, 5], [1, 2, 3]], device=device)
    out = F.merge_scores(scores, hash, labels, merge, validate=False)
    assert out.isnan().tolist() == [[False, True, False], [False] * 3]
    (gradient,) = torch.autograd.grad(out, scores, torch.ones_like(out))
    assert gradient.isfinite().all()
    kept = F.merge_scores(scores, hash, labels[:, ::2], merge)
    assert bitwise_equal(out[:, ::2], kept)
