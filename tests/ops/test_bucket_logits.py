"""bucket_logits and bucket_forward: the scores of all R x B buckets, shared, independent and linear."""

import pytest
import torch
from helpers import (
    FLOATS,
    Csr,
    assert_matches,
    bitwise_equal,
    csr_batches,
    double,
    random_csr,
    strided,
    to,
    uniform,
)
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mach_ext import _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
KINDS = ("shared", "independent", "linear")


def dense_logits(hidden, weight, bias):
    """The definition in float64: [N, R, B]."""
    hidden, weight, bias = double((hidden, weight, bias))
    if hidden.dim() == 2:
        hidden = hidden[:, None].expand(-1, len(weight), -1)
    logits = torch.einsum("nrh,rhb->nrb", hidden, weight)
    return logits if bias is None else logits + bias


@parametrize_dtype
@pytest.mark.parametrize("narrow", [False, True], ids=["", "bfloat16"])
def test_bucket_logits_match_definition(device, dtype, narrow):
    if narrow and dtype == torch.float64:
        with pytest.raises(TypeError, match=r"^bucket_logits: weight must be float64, got bfloat16"):
            F.bucket_logits(torch.ones(1, 2).double(), torch.ones(3, 2, 4).bfloat16(), None)
        return

    @given(
        N=st.integers(0, 6),
        R=st.integers(1, 4),
        H=st.integers(0, 9),
        B=st.integers(2, 12),
        shared=st.booleans(),
        with_bias=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def check(N, R, H, B, shared, with_bias, seed):
        generator = torch.Generator().manual_seed(seed)
        hidden = uniform(generator, *((N, H) if shared else (N, R, H)), dtype=dtype)
        weight = uniform(generator, R, H, B, dtype=torch.bfloat16 if narrow else dtype)
        bias = uniform(generator, R, B, dtype=weight.dtype) if with_bias else None
        out = F.bucket_logits(*to(device, (hidden, weight, bias)))
        assert out.dtype == dtype
        assert_matches(out, dense_logits(hidden, weight, bias))

    check()


def test_bucket_logits_are_repetition_major(device):
    """The layout the documentation promises, which merge_topk reads without a copy."""
    out = F.bucket_logits(*to(device, (torch.ones(3, 5), torch.ones(2, 5, 4), torch.zeros(2, 4))))
    assert out.shape == (3, 2, 4)
    assert out.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 5)], ids=["shared", "independent"])
def test_bucket_logits_gradcheck(device, generator, shape):
    tensors = [uniform(generator, *shape), uniform(generator, 2, 5, 4), uniform(generator, 2, 4)]
    leaves = [t.requires_grad_() for t in to(device, tensors)]
    torch.autograd.gradcheck(F.bucket_logits, leaves)
    torch.autograd.gradcheck(lambda h, w: F.bucket_logits(h, w, None), leaves[:2])
    torch.autograd.gradgradcheck(F.bucket_logits, leaves)


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 5)], ids=["shared", "independent"])
def test_bucket_logits_bfloat16_gradient_to_hidden(device, generator, shape):
    """The weight is storage: hidden's and bias's gradients are those of the widened weight."""
    hidden, bias = (
        uniform(generator, *shape, dtype=torch.float32),
        uniform(generator, 2, 4, dtype=torch.float32),
    )
    weight = uniform(generator, 2, 5, 4, dtype=torch.bfloat16).to(device)
    gradients = []
    for w in (weight, weight.float()):
        leaves = [t.clone().requires_grad_() for t in to(device, (hidden, bias))]
        out = F.bucket_logits(leaves[0], w, leaves[1])
        gradients.append(torch.autograd.grad(out.square().sum(), leaves))
    for a, b in zip(*gradients, strict=True):
        assert_matches(a, b.cpu())


def test_bucket_logits_bfloat16_weight_has_no_gradient():
    hidden, weight = torch.ones(3, 5), torch.ones(2, 5, 4, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(TypeError, match=r"^bucket_logits: weight must be float32 or float64 to be trained"):
        F.bucket_logits(hidden, weight, None)
    with torch.no_grad():
        F.bucket_logits(hidden, weight, None)


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_bfloat16_precision_rounds_the_factors_alone(device, narrow):
    """The result is that of the rounded factors in float64, whatever the memory order of the weight."""

    @given(
        N=st.integers(0, 6),
        R=st.integers(1, 4),
        H=st.integers(0, 9),
        B=st.integers(2, 12),
        shared=st.booleans(),
        with_bias=st.booleans(),
        bucket_major=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def check(N, R, H, B, shared, with_bias, bucket_major, seed):
        generator = torch.Generator().manual_seed(seed)
        hidden = uniform(generator, *((N, H) if shared else (N, R, H)), dtype=torch.float32)
        weight = uniform(generator, R, H, B, dtype=torch.bfloat16 if narrow else torch.float32)
        weight = weight.mT.contiguous().mT if bucket_major else weight
        bias = uniform(generator, R, B, dtype=weight.dtype) if with_bias else None
        out = F.bucket_logits(*to(device, (hidden, weight, bias)), precision="bfloat16")
        assert out.dtype == torch.float32
        assert_matches(out, dense_logits(hidden.bfloat16(), weight.bfloat16(), bias))

    check()


def test_bfloat16_precision_differs_from_float32(device, generator):
    tensors = (
        uniform(generator, 3, 40, dtype=torch.float32),
        uniform(generator, 2, 40, 8, dtype=torch.float32),
    )
    precise, rounded = (F.bucket_logits(*to(device, tensors), None, precision=p) for p in F.PRECISIONS)
    assert 1e-4 < (precise - rounded).abs().max() < 0.1
    assert bitwise_equal(precise, F.bucket_logits(*to(device, tensors), None))


def test_bfloat16_precision_keeps_what_is_not_finite(device):
    hidden = torch.tensor([[torch.inf, 0.0], [0.0, 1.0], [1.0, torch.nan]])
    weight = torch.tensor([[[1.0, -1.0], [torch.inf, 2.0]]])
    out = F.bucket_logits(*to(device, (hidden, weight)), None, precision="bfloat16").cpu()
    expected = torch.tensor([[[torch.nan, -torch.inf]], [[torch.inf, 2.0]], [[torch.nan, torch.nan]]])
    assert bitwise_equal(out.isnan(), expected.isnan())
    assert bitwise_equal(out.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_bfloat16_precision_on_a_gpu_is_of_float32(narrow):
    """A dry run: shapes, types and which operators there are, without a GPU."""
    with fake_tensor.FakeTensorMode(), Products() as products:
        dtype = torch.bfloat16 if narrow else torch.float32
        weight = torch.empty(2, 8, 5, dtype=dtype, device="cuda").mT
        bias = torch.empty(2, 8, device="cuda")
        for hidden in (torch.empty(3, 5, device="cuda"), torch.empty(3, 2, 5, device="cuda")):
            out = F.bucket_logits(hidden, weight, bias, precision="bfloat16")
            assert (out.dtype, out.shape, out.device.type) == (torch.float32, (3, 2, 8), "cuda")
    assert products.factors == 2 * [(torch.bfloat16, torch.bfloat16)]


class Products(TorchDispatchMode):
    """Notes the dtypes of the factors of each product."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::bmm", "aten::mm", "aten::baddbmm", "aten::addmm"):
            self.factors.append(tuple(t.dtype for t in args if isinstance(t, torch.Tensor)))
        return func(*args, **(kwargs or {}))


def test_bfloat16_precision_is_for_float32():
    tensors = torch.ones(3, 5).double(), torch.ones(2, 5, 4).double(), None
    with pytest.raises(TypeError, match=r"^bucket_logits: precision bfloat16 is for float32, got float64"):
        F.bucket_logits(*tensors, precision="bfloat16")
    with pytest.raises(
        ValueError, match=r"^bucket_logits: precision must be one of float32, bfloat16, got 'half'"
    ):
        F.bucket_logits(*tensors, precision="half")


ARGUMENTS = [
    (TypeError, r"hidden must be a torch.Tensor, got NoneType", {"hidden": None}),
    (TypeError, r"hidden must be float32 or float64, got int32", {"hidden": torch.ones(3, 5).int()}),
    (
        ValueError,
        r"hidden must be \[N, H=5\] or \[N, R=2, H=5\] to match weight, got \[3, 4\]",
        {"hidden": torch.ones(3, 4)},
    ),
    (ValueError, r"hidden must be .* got \[3, 1, 5\]", {"hidden": torch.ones(3, 1, 5)}),
    (ValueError, r"weight must have 3 dimension\(s\), got shape \[5, 4\]", {"weight": torch.ones(5, 4)}),
    (
        ValueError,
        r"weight must have R >= 1 repetitions, got shape \[0, 5, 4\]",
        {"weight": torch.ones(0, 5, 4)},
    ),
    (TypeError, r"weight must be float32 or bfloat16, got float16", {"weight": torch.ones(2, 5, 4).half()}),
    (ValueError, r"bias must have shape \[2, 4\], got \[2, 5\]", {"bias": torch.ones(2, 5)}),
    (
        ValueError,
        r"weight must be on cpu like the other arguments, got meta",
        {"weight": torch.ones(2, 5, 4, device="meta")},
    ),
]


@pytest.mark.parametrize(("error", "message", "wrong"), ARGUMENTS, ids=[a[1] for a in ARGUMENTS])
def test_bucket_logits_errors(error, message, wrong):
    good = {"hidden": torch.ones(3, 5), "weight": torch.ones(2, 5, 4), "bias": torch.ones(2, 4)}
    with pytest.raises(error, match=f"^bucket_logits: {message}"):
        F.bucket_logits(**{**good, **wrong})


# ------------------------------------------------------------------------------------------ bucket_forward


def parameters(generator, kind, D, R, H, B, dtype):
    """encoder_weight, encoder_bias, bucket_weight, bucket_bias."""
    units = {"shared": H, "independent": R * H}.get(kind)
    bucket_bias = uniform(generator, R, B, dtype=dtype)
    if units is None:
        return None, None, uniform(generator, R, D, B, dtype=dtype), bucket_bias
    encoder = uniform(generator, D, units, dtype=dtype), uniform(generator, units, dtype=dtype)
    return *encoder, uniform(generator, R, H, B, dtype=dtype), bucket_bias


def twin(values, indices, indptr, encoder_weight, encoder_bias, bucket_weight, bucket_bias):
    if encoder_weight is None:
        return _reference.sparse_linear(values, indices, indptr, bucket_weight, bucket_bias, False)
    bias = None if encoder_bias is None else encoder_bias[None]
    hidden = _reference.sparse_linear(values, indices, indptr, encoder_weight[None], bias, True)[:, 0]
    R, H, _ = bucket_weight.shape
    return dense_logits(
        hidden if encoder_weight.shape[1] == H else hidden.view(-1, R, H), bucket_weight, bucket_bias
    )


@pytest.mark.parametrize("kind", KINDS)
@parametrize_dtype
def test_bucket_forward_matches_definition(device, dtype, kind):
    @given(csr_batches(dtype), st.integers(2, 4), st.integers(1, 9), st.booleans())
    def check(batch, R, H, with_bias):
        X, D, generator = batch
        encoder_weight, encoder_bias, *bucket = parameters(generator, kind, D, R, H, 6, dtype)
        if not with_bias:
            encoder_bias = bucket[1] = None
        tensors = (*X, encoder_weight, encoder_bias, *bucket)
        assert_matches(F.bucket_forward(*to(device, tensors)), twin(*double(tensors)), dtype)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_bucket_forward_gradcheck(device, generator, kind):
    X = random_csr(generator, [3, 0, 4], 6, torch.float64)
    tensors = parameters(generator, kind, 6, 2, 3, 4, torch.float64)
    indices, indptr = to(device, X[1:])
    leaves = [t.requires_grad_() for t in to(device, (X.values, *tensors)) if t is not None]
    absent = [None] * (5 - len(leaves))
    torch.autograd.gradcheck(lambda v, *p: F.bucket_forward(v, indices, indptr, *absent, *p), leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_bucket_forward_sparse_gradient_equals_dense(device, generator, kind):
    X = Csr(*to(device, random_csr(generator, [3, 0, 4], 60)))
    tensors = parameters(generator, kind, 60, 2, 3, 4, torch.float32)
    which = 2 if kind == "linear" else 0  # the weight that takes the documents
    gradients = []
    for sparse in (False, True):
        leaves = [None if t is None else t.clone().to(device).requires_grad_() for t in tensors]
        F.bucket_forward(*X, *leaves, sparse_grad=sparse).square().sum().backward()
        gradients.append(leaves[which].grad)
    dense, coo = gradients
    assert coo.layout == torch.sparse_coo
    rows = torch.unique(X.indices)
    expected = (
        torch.cartesian_prod(torch.arange(2, device=device), rows).T if kind == "linear" else rows[None]
    )
    assert torch.equal(coo._indices(), expected)  # every row once, ascending
    assert bitwise_equal(coo.to_dense(), dense)


@pytest.mark.parametrize("kind", KINDS)
def test_bucket_forward_bfloat16_and_strides(device, generator, kind):
    """Narrow weights of every kind; strided ones change no bit."""
    X = to(device, random_csr(generator, [3, 0, 4], 60))
    narrow = to(device, parameters(generator, kind, 60, 2, 17, 4, torch.bfloat16))
    wide = [None if t is None else t.float() for t in narrow]
    expected = F.bucket_forward(*X, *wide)
    assert_matches(F.bucket_forward(*X, *narrow), expected.cpu())
    assert bitwise_equal(
        F.bucket_forward(*map(strided, X), *map(strided, narrow)), F.bucket_forward(*X, *narrow)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bucket_forward_in_bfloat16_rounds_hidden_units_and_bucket_weights(device, generator, kind):
    X = random_csr(generator, [3, 0, 4], 60)
    encoder_weight, encoder_bias, weight, bias = parameters(generator, kind, 60, 2, 17, 4, torch.float32)
    tensors = to(device, (*X, encoder_weight, encoder_bias, weight, bias))
    out = F.bucket_forward(*tensors, precision="bfloat16")
    if kind == "linear":
        expected = twin(*double((*X, None, None, weight.bfloat16(), bias)))
    else:
        hidden = F.sparse_linear(*X, encoder_weight, encoder_bias, "relu")
        hidden = hidden if kind == "shared" else hidden.unflatten(1, (2, 17))
        expected = dense_logits(hidden.bfloat16(), weight.bfloat16(), bias)
    assert_matches(out, expected)
    assert not bitwise_equal(out, F.bucket_forward(*tensors))
    leaf = tensors[-2].requires_grad_()
    if kind == "linear":
        with pytest.raises(ValueError, match="bfloat16 has no gradient to bucket_weight without an encoder"):
            F.bucket_forward(*tensors, precision="bfloat16")
    else:
        F.bucket_forward(*tensors, precision="bfloat16").sum().backward()
        assert leaf.grad.abs().sum() > 0


def test_bucket_forward_runs_twice_alike(generator):
    """Matrix products are PyTorch's; with the same threads they give the same bits."""
    X = random_csr(generator, [3, 0, 40] * 9, 60)
    tensors = parameters(generator, "independent", 60, 3, 17, 50, torch.float32)
    assert bitwise_equal(F.bucket_forward(*X, *tensors), F.bucket_forward(*X, *tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_bucket_forward_unvalidated_index_is_nan(device, generator, kind):
    X = random_csr(generator, [3, 2, 4], 6)
    X.indices[3] = 6
    tensors = to(device, (*X, *parameters(generator, kind, 6, 2, 3, 4, torch.float32)))
    out = F.bucket_forward(*tensors, validate=False)
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"indices\[3\] \(row 1\) must be in \[0, D=6\), got 6"):
            F.bucket_forward(*tensors)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("linear", {"encoder_bias": torch.ones(3)}, r"encoder_bias without encoder_weight"),
        ("linear", {"bucket_bias": torch.ones(2, 5)}, r"bucket_bias must have shape \[2, 4\], got \[2, 5\]"),
        (
            "shared",
            {"encoder_weight": torch.ones(6, 4)},
            r"encoder_weight must be \[D, H=3\] or \[D, R\*H=6\] .* bucket_weight \[2, 3, 4\], got \[6, 4\]",
        ),
        ("shared", {"bucket_weight": torch.ones(3, 4)}, r"bucket_weight must have 3 dimension\(s\)"),
        ("shared", {"encoder_weight": torch.ones(6)}, r"encoder_weight must have 2 dimension\(s\)"),
    ],
)
def test_bucket_forward_errors(generator, kind, change, message):
    X = random_csr(generator, [3], 6)
    names = ("encoder_weight", "encoder_bias", "bucket_weight", "bucket_bias")
    good = dict(zip(names, parameters(generator, kind, 6, 2, 3, 4, torch.float32), strict=True))
    with pytest.raises(ValueError, match=f"^bucket_forward: {message}"):
        F.bucket_forward(*X, **{**good, **change})
