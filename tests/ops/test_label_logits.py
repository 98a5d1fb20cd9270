"""label_logits and linear_label_logits: the logits of the labels asked for, and of no other bucket."""

import pytest
import torch
from helpers import (
    FLOATS,
    INTS,
    Csr,
    assert_deterministic,
    assert_matches,
    bitwise_equal,
    csr_batches,
    double,
    random_csr,
    random_hash,
    strided,
    to,
    uniform,
)
from hypothesis import given
from hypothesis import strategies as st

from mach_ext import _ops, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
parametrize_shared = pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])


def arguments(generator, N, m, R, H, B, L, dtype, shared):
    """hidden, weight, bias, buckets, labels of the raw op; labels repeat."""
    return (
        uniform(generator, *((N, H) if shared else (N, R, H)), dtype=dtype),
        uniform(generator, R, H, B, dtype=dtype),
        uniform(generator, R, B, dtype=dtype),
        random_hash(generator, L, B, R).buckets,
        torch.randint(L, (N, m), generator=generator),
    )


@parametrize_shared
@parametrize_dtype
def test_forward_and_gradients_match_reference(device, dtype, shared):
    @given(
        N=st.integers(0, 5),
        m=st.integers(0, 7),
        R=st.integers(1, 4),
        H=st.sampled_from([0, 1, 5, 16, 33]),
        B=st.integers(2, 9),
        L=st.integers(1, 20),
        with_bias=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def check(N, m, R, H, B, L, with_bias, seed):
        generator = torch.Generator().manual_seed(seed)
        hidden, weight, bias, *at = arguments(generator, N, m, R, H, B, L, dtype, shared)
        bias = bias if with_bias else None
        grad = uniform(generator, N, m, R, dtype=dtype)

        out = _ops.label_logits(*to(device, (hidden, weight, bias, *at)))
        args = to(device, (grad, hidden, weight, *at))
        ours = [out, _ops.label_logits_grad_hidden(*args), *_ops.label_logits_grad_weight(*args)]

        leaves = [t.detach().requires_grad_() for t in double((hidden, weight, uniform(generator, R, B)))]
        logits = _reference.label_logits(*leaves, *at)
        twins = [
            _reference.label_logits(*double((hidden, weight, bias)), *at),
            *torch.autograd.grad(logits, leaves, grad.double()),
        ]
        for a, b in zip(ours, twins, strict=True):
            assert a.dtype == dtype
            assert_matches(a, b)

    check()


@parametrize_shared
@parametrize_dtype
def test_equals_bucket_logits_gathered(device, generator, dtype, shared):
    """The public function, also with one list of labels for all documents and int32 labels."""
    hidden, weight, bias, _, labels = arguments(generator, 6, 11, 3, 40, 8, 30, dtype, shared)
    hash = random_hash(generator, 30, 8, 3)
    expected = F.bucket_logits(*double((hidden, weight, bias)))
    on_device = [*to(device, (hidden, weight, bias)), hash.to(device)]
    for asked in (labels, labels[2]):
        each = asked.expand(6, -1)
        gathered = expected.gather(2, hash.buckets.long()[:, each].transpose(0, 1)).transpose(1, 2)
        for index in INTS:
            assert_matches(F.label_logits(*on_device, asked.to(device, index)), gathered, dtype)


@parametrize_shared
def test_gradcheck(device, generator, shared):
    hidden, weight, bias, _, labels = arguments(generator, 3, 4, 2, 5, 4, 6, torch.float64, shared)
    hash, labels = random_hash(generator, 6, 4, 2, device), labels.to(device)
    leaves = [t.requires_grad_() for t in to(device, (hidden, weight, bias))]
    torch.autograd.gradcheck(lambda h, w, b: F.label_logits(h, w, b, hash, labels), leaves)
    torch.autograd.gradcheck(lambda h: F.label_logits(h, weight.to(device), None, hash, labels), leaves[:1])
    torch.autograd.gradcheck(
        lambda b: F.label_logits(leaves[0].detach(), leaves[1].detach(), b, hash, labels), leaves[2:]
    )


@parametrize_shared
@parametrize_dtype
def test_strided_arguments_give_the_same_bits(device, generator, dtype, shared):
    tensors = to(device, arguments(generator, 4, 5, 3, 20, 6, 10, dtype, shared))
    hidden, weight, _, buckets, labels = tensors
    grad = uniform(generator, 4, 5, 3, dtype=dtype).to(device)
    assert bitwise_equal(_ops.label_logits(*map(strided, tensors)), _ops.label_logits(*tensors))
    args = (grad, hidden, weight, buckets, labels)
    for op in (_ops.label_logits_grad_weight, lambda *t: (_ops.label_logits_grad_hidden(*t),)):
        for a, b in zip(op(*map(strided, args)), op(*args), strict=True):
            assert bitwise_equal(a, b)


@parametrize_shared
def test_bfloat16_weight_is_widened(device, generator, shared):
    hidden, weight, bias, _, labels = to(
        device, arguments(generator, 4, 5, 3, 20, 6, 10, torch.float32, shared)
    )
    hash, narrow = random_hash(generator, 10, 6, 3, device), (weight.bfloat16(), bias.bfloat16())
    out = F.label_logits(hidden, *narrow, hash, labels)
    assert out.dtype == torch.float32
    assert bitwise_equal(out, F.label_logits(hidden, *(t.float() for t in narrow), hash, labels))


@parametrize_shared
def test_deterministic(generator, shared):
    tensors = arguments(generator, 40, 30, 5, 64, 50, 200, torch.float32, shared)
    hidden, weight, _, buckets, labels = tensors
    args = (uniform(generator, 40, 30, 5, dtype=torch.float32), hidden, weight, buckets, labels)
    assert_deterministic(
        lambda: (
            _ops.label_logits(*tensors),
            _ops.label_logits_grad_hidden(*args),
            *_ops.label_logits_grad_weight(*args),
        )
    )


@parametrize_shared
def test_labels_that_all_ask_for(device, generator, shared):
    """Two labels, in one bucket of the first repetition: its column's gradient is a sum of 300 entries."""
    N, m, R, H, B = 3, 100, 2, 36, 5
    hidden, weight, bias, _, labels = arguments(generator, N, m, R, H, B, 2, torch.float32, shared)
    buckets = torch.tensor([[1, 1], [4, 0]], dtype=torch.int32)
    grad = uniform(generator, N, m, R, dtype=torch.float32)
    args = to(device, (grad, hidden, weight, buckets, labels))
    ours = [_ops.label_logits_grad_hidden(*args), *_ops.label_logits_grad_weight(*args)]
    leaves = [t.requires_grad_() for t in double((hidden, weight, bias))]
    logits = _reference.label_logits(*leaves, buckets, labels)
    for a, b in zip(ours, torch.autograd.grad(logits, leaves, grad.double()), strict=True):
        assert_matches(a / 8, b / 8)


@parametrize_shared
@parametrize_dtype
def test_opcheck(device, generator, dtype, shared):
    hidden, weight, bias, buckets, labels = to(device, arguments(generator, 3, 4, 2, 5, 4, 6, dtype, shared))
    grad = uniform(generator, 3, 4, 2, dtype=dtype).to(device)
    ops = torch.ops.mach_ext
    for b in (bias, None):
        torch.library.opcheck(ops.label_logits, (hidden, weight, b, buckets, labels))
    torch.library.opcheck(ops.label_logits_grad_hidden, (grad, hidden, weight, buckets, labels))
    torch.library.opcheck(ops.label_logits_grad_weight, (grad, hidden, weight, buckets, labels))


@pytest.mark.parametrize("wrong", [-1, 6, 2**40, -(2**40)])
@parametrize_shared
def test_unvalidated_label_out_of_range_is_nan(device, generator, wrong, shared):
    """Only its own logits, and it has no gradient."""
    hidden, weight, bias, _, labels = to(
        device, arguments(generator, 3, 4, 2, 5, 4, 6, torch.float64, shared)
    )
    hash = random_hash(generator, 6, 4, 2, device)
    bad = labels.clone()
    bad[1, 2] = wrong
    results = []
    for asked in (labels, bad):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        out = F.label_logits(*leaves, hash, asked, validate=False)
        grad = torch.ones_like(out)
        grad[1, 2] = 0
        results.append((out, torch.autograd.grad(out, leaves, grad)))
    (good_out, good_gradients), (out, gradients) = results
    assert out[1, 2].isnan().all()
    assert out.isnan().sum() == 2
    assert bitwise_equal(out.nan_to_num(0)[0], good_out[0])
    for a, b in zip(gradients, good_gradients, strict=True):
        assert torch.equal(a, b)


HASH = random_hash(torch.Generator().manual_seed(1), 6, 4, 2)
HIDDEN, WEIGHT, BIAS, LABELS = torch.ones(3, 5), torch.ones(2, 5, 4), torch.ones(2, 4), torch.tensor([0, 5])
ARGUMENTS = [
    (TypeError, r"hidden must be float32 or float64, got int32", {"hidden": HIDDEN.int()}),
    (ValueError, r"hidden must have 2 dimension\(s\), got shape \[5\]", {"hidden": HIDDEN[0]}),
    (
        ValueError,
        r"hidden must be \[N, H=5\] or \[N, R=2, H=5\] to match weight, got \[3, 4\]",
        {"hidden": HIDDEN[:, 1:]},
    ),
    (ValueError, r"hidden must be .* got \[3, 1, 5\]", {"hidden": HIDDEN[:, None]}),
    (TypeError, r"weight must be float32 or bfloat16, got float64", {"weight": WEIGHT.double()}),
    (ValueError, r"weight must have R >= 1 repetitions, got shape \[0, 5, 4\]", {"weight": WEIGHT[:0]}),
    (ValueError, r"bias must have shape \[2, 4\], got \[1, 4\]", {"bias": BIAS[:1]}),
    (
        ValueError,
        r"hash has R=2 repetitions and B=4 buckets, the scores or weights have R=2, B=3",
        {"weight": WEIGHT[..., 1:], "bias": None},
    ),
    (TypeError, r"hash must be a mach_ext.LabelHash, got Tensor", {"hash": HASH.buckets}),
    (ValueError, r"hash is on meta, the tensors on cpu; use hash.to\('cpu'\)", {"hash": HASH.to("meta")}),
    (TypeError, r"labels must be int32 or int64, got float32", {"labels": LABELS.float()}),
    (ValueError, r"labels must have 1 dimension\(s\), got shape \[1, 1, 2\]", {"labels": LABELS[None, None]}),
    (ValueError, r"labels must be \[m\] or \[N=3, m\], got \[1, 2\]", {"labels": LABELS[None]}),
    (ValueError, r"labels must be in \[0, L=6\), got 6", {"labels": LABELS + 1}),
    (ValueError, r"labels must be in \[0, L=6\), got -1", {"labels": LABELS - 1}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), ARGUMENTS, ids=[a[1] for a in ARGUMENTS])
def test_errors(error, message, wrong):
    good = {"hidden": HIDDEN, "weight": WEIGHT, "bias": BIAS, "hash": HASH, "labels": LABELS}
    with pytest.raises(error, match=f"^label_logits: {message}"):
        F.label_logits(**{**good, **wrong})


def test_raw_op_refuses_what_would_leave_its_arrays():
    ops, labels, grad = torch.ops.mach_ext, LABELS.expand(3, 2), torch.ones(3, 2, 2)
    with pytest.raises(RuntimeError, match=r"label_logits: hidden must have shape \[3, 5\], got \[3, 4\]"):
        ops.label_logits(HIDDEN[:, 1:], WEIGHT, None, HASH.buckets, labels)
    with pytest.raises(RuntimeError, match=r"label_logits: buckets must be Int, got Long"):
        ops.label_logits(HIDDEN, WEIGHT, None, HASH.buckets.long(), labels)
    with pytest.raises(RuntimeError, match=r"label_logits: labels must be Long, got Int"):
        ops.label_logits(HIDDEN, WEIGHT, None, HASH.buckets, labels.int())
    for op in (ops.label_logits_grad_hidden, ops.label_logits_grad_weight):
        with pytest.raises(RuntimeError, match=r"grad must be Float, got Double"):
            op(grad.double(), HIDDEN, WEIGHT, HASH.buckets, labels)
        with pytest.raises(RuntimeError, match=r"grad must have shape \[3, 2, 2\], got \[2, 2, 2\]"):
            op(grad[1:], HIDDEN, WEIGHT, HASH.buckets, labels)


# ------------------------------------------------------------------------------------- linear_label_logits


@parametrize_dtype
def test_linear_equals_bucket_forward_gathered(device, dtype):
    @given(csr_batches(dtype), st.integers(1, 3), st.integers(0, 6), st.booleans(), st.sampled_from(INTS))
    def check(batch, R, m, with_bias, index):
        X, D, generator = batch
        N, B, L = len(X.indptr) - 1, 5, 9
        weight = uniform(generator, R, D, B, dtype=dtype)
        bias = uniform(generator, R, B, dtype=dtype) if with_bias else None
        hash = random_hash(generator, L, B, R)
        labels = torch.randint(L, (N, m), generator=generator)
        logits = _reference.sparse_linear(*double((*X, weight, bias)), False)
        expected = logits.gather(2, hash.buckets.long()[:, labels].transpose(0, 1)).transpose(1, 2)
        args = (*to(device, (*X, weight, bias)), hash.to(device))
        assert_matches(F.linear_label_logits(*args, labels.to(device, index)), expected, dtype)
        if N:
            same = F.linear_label_logits(*args, labels[0].to(device))
            assert_matches(same[0], expected[0], dtype)

    check()


def linear_arguments(generator, dtype=torch.float64):
    X = random_csr(generator, [0, 3, 0, 4, 0], 6, dtype)
    weight, bias = uniform(generator, 2, 6, 4, dtype=dtype), uniform(generator, 2, 4, dtype=dtype)
    return X, weight, bias, random_hash(generator, 6, 4, 2), torch.randint(6, (5, 3), generator=generator)


def test_linear_gradcheck(device, generator):
    X, weight, bias, hash, labels = linear_arguments(generator)
    indices, indptr, labels = to(device, (*X[1:], labels))
    hash = hash.to(device)
    leaves = [t.requires_grad_() for t in to(device, (X.values, weight, bias))]
    torch.autograd.gradcheck(
        lambda v, w, b: F.linear_label_logits(v, indices, indptr, w, b, hash, labels), leaves
    )


@pytest.mark.parametrize("wrong", [-1, 6, 2**31 - 1])
def test_linear_unvalidated_out_of_range_is_nan(device, generator, wrong):
    X, weight, bias, hash, labels = linear_arguments(generator)
    X, weight, bias, labels = Csr(*to(device, X)), weight.to(device), bias.to(device), labels.to(device)
    hash = hash.to(device)
    expected = F.linear_label_logits(*X, weight, bias, hash, labels)

    bad = labels.clone()
    bad[3, 1] = wrong
    out = F.linear_label_logits(*X, weight, bias, hash, bad, validate=False)
    assert out[3, 1].isnan().all()
    assert out.isnan().sum() == 2
    assert bitwise_equal(out[3, 0], expected[3, 0])

    indices = X.indices.clone()
    indices[1] = wrong
    leaf = weight.clone().requires_grad_()
    out = F.linear_label_logits(X.values, indices, X.indptr, leaf, bias, hash, labels, validate=False)
    assert out[1].isnan().all()
    assert bitwise_equal(out[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])
    (gradient,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    assert gradient.isfinite().all()

    indptr = torch.tensor([wrong, 9, -4, 7, 2, 7], device=device)
    out = F.linear_label_logits(X.values, X.indices, indptr, weight, bias, hash, labels, validate=False)
    assert out.shape == expected.shape


def test_linear_strided_and_bfloat16(device, generator):
    X, weight, bias, hash, labels = linear_arguments(generator, torch.float32)
    tensors, hash = to(device, (*X, weight.bfloat16(), bias)), hash.to(device)
    expected = F.linear_label_logits(*tensors[:3], tensors[3].float(), tensors[4], hash, labels.to(device))
    assert bitwise_equal(F.linear_label_logits(*tensors, hash, labels.to(device)), expected)
    assert bitwise_equal(
        F.linear_label_logits(*map(strided, tensors), hash, strided(labels.to(device))), expected
    )


def test_linear_errors(generator):
    X, weight, bias, hash, labels = linear_arguments(generator)
    with pytest.raises(ValueError, match=r"^linear_label_logits: indices\[\d\] .* must be in \[0, D=2\)"):
        F.linear_label_logits(*X, weight[:, :2], bias, hash, labels)
    with pytest.raises(ValueError, match=r"^linear_label_logits: labels must be in \[0, L=6\), got 6"):
        F.linear_label_logits(*X, weight, bias, hash, labels + 6 - labels.max())
    with pytest.raises(ValueError, match=r"^linear_label_logits: hash has R=2 .* have R=1, B=4"):
        F.linear_label_logits(*X, weight[:1], bias[:1], hash, labels)
    with pytest.raises(
        ValueError, match=r"^linear_label_logits: bias must have shape \[2, 4\], got \[2, 3\]"
    ):
        F.linear_label_logits(*X, weight, bias[:, 1:], hash, labels)
    with pytest.raises(
        ValueError, match=r"^linear_label_logits: labels must be \[m\] or \[N=5, m\], got \[4, 3\]"
    ):
        F.linear_label_logits(*X, weight, bias, hash, labels[1:])
