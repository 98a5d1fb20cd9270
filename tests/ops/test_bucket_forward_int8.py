"""bucket_forward_int8 and sparse_linear by weights of 8 bits: integer sums, so every result is exact."""

import pytest
import torch
from helpers import assert_deterministic, bitwise_equal, num_threads, random_csr
from helpers import uniform as draw

from mach_ext import _ops, _reference
from mach_ext.quantized import pack, unpack

# N, R, H, B: a word is 4 hidden units, a tile 64 buckets, a block 256 documents.
SHAPES = [
    (0, 2, 8, 7),
    (1, 1, 1, 1),
    (1, 3, 7, 64),
    (2, 2, 4, 65),
    (5, 16, 256, 130),
    (300, 2, 37, 63),
    (3, 2, 0, 9),
    (4, 1, 1030, 128),
]
parametrize_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
parametrize_shared = pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    with num_threads(request.param):
        yield request.param


def uniform(generator, *shape):
    return draw(generator, *shape, dtype=torch.float32)


def operands(shape, shared, seed=0, density=0.4):
    """hidden units of a relu, a weight of 8 bits in the operator's order, scale and bias."""
    N, R, H, B = shape
    generator = torch.Generator().manual_seed(seed)
    units = uniform(generator, *((N, H) if shared else (N, R, H)))
    hidden = units * (torch.rand(units.shape, generator=generator) < density)
    weight = torch.randint(-127, 128, (R, H, B), generator=generator).to(torch.int8)
    return (
        hidden.clamp(min=0),
        pack(weight),
        uniform(generator, R, B).abs() + 0.01,
        uniform(generator, R, B),
    )


@parametrize_shape
@parametrize_shared
def test_equals_its_twin_to_the_bit(shape, shared, threads):
    tensors = operands(shape, shared)
    for bias in (tensors[3], None):
        ours = _ops.bucket_forward_int8(*tensors[:3], bias)
        assert ours.shape == (shape[0], shape[1], shape[3])
        assert bitwise_equal(ours, _reference.bucket_forward_int8(*tensors[:3], bias))


def test_the_value_of_a_single_product():
    """64 / 127 of the greatest unit, and weights 127 and -3: by hand."""
    weight = torch.tensor([[[127], [-3]]], dtype=torch.int8)
    hidden = torch.tensor([[2.0, 1.0]])  # rounds to 127 and 64
    scale, bias = torch.tensor([[0.5]]), torch.tensor([[0.25]])
    ours = _ops.bucket_forward_int8(hidden, pack(weight), scale, bias)
    assert ours.item() == pytest.approx((127 * 127 - 3 * 64) * (2 / 127) * 0.5 + 0.25, rel=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_greatest_sums_do_not_saturate(sign):
    """Two products of 127 * 127 are added in 16 bits on AVX2."""
    R, H, B = 2, 4096, 70
    weight = torch.full((R, H, B), sign * 127, dtype=torch.int8)
    one = torch.ones(R, B)
    ours = _ops.bucket_forward_int8(torch.full((3, H), 5.0), pack(weight), one, None)
    assert bitwise_equal(ours, torch.full((3, R, B), sign * 127.0 * 127 * H) * (torch.tensor(5.0) / 127))


@parametrize_shared
def test_rows_without_units_and_rows_that_are_not_finite(shared):
    hidden, weight, scale, bias = operands((6, 3, 20, 70), shared)
    hidden[0] = 0
    hidden[1] = -1.0  # below 0 counts as 0
    hidden[2] = -0.0
    at = (3, 5) if shared else (3, 1, 5)
    for number in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        hidden[at] = number
        ours = _ops.bucket_forward_int8(hidden, weight, scale, bias)
        assert bitwise_equal(ours, _reference.bucket_forward_int8(hidden, weight, scale, bias))
        assert bitwise_equal(ours[:3], bias.expand(3, -1, -1))
        assert (ours[3] if shared else ours[3, 1]).isnan().all()
        assert ours[4:].isfinite().all()


def test_the_smallest_units_are_not_lost():
    hidden, weight, scale, _ = operands((4, 2, 16, 9), True)
    tiny = hidden / hidden.max() * 1e-44  # subnormal
    ours = _ops.bucket_forward_int8(tiny, weight, scale, None)
    assert bitwise_equal(ours, _reference.bucket_forward_int8(tiny, weight, scale, None))


@parametrize_shared
def test_a_document_has_the_same_bits_in_any_batch(shared, threads):
    tensors = operands((300, 3, 40, 150), shared)
    whole = _ops.bucket_forward_int8(*tensors)
    for size in (1, 7, 256, 299):
        parts = [_ops.bucket_forward_int8(part, *tensors[1:]) for part in tensors[0].split(size)]
        assert bitwise_equal(torch.cat(parts), whole)
    assert_deterministic(lambda: _ops.bucket_forward_int8(*tensors))


def test_strided_arguments():
    hidden, weight, scale, bias = operands((5, 4, 12, 70), False)
    expected = _ops.bucket_forward_int8(hidden, weight, scale, bias)
    strided = torch.stack([hidden, hidden + 1], -1)[..., 0]
    transposed = scale.T.contiguous().T, bias.T.contiguous().T
    assert bitwise_equal(_ops.bucket_forward_int8(strided, weight, *transposed), expected)


@pytest.mark.parametrize("shape", [(3, 5, 9), (1, 4, 64), (2, 8, 130)], ids=str)
def test_the_order_of_weights_has_an_inverse(shape):
    weight = torch.randint(-127, 128, shape).to(torch.int8)
    packed = pack(weight)
    assert packed.shape == (shape[0], -(-shape[2] // 64), -(-shape[1] // 4), 64, 4)
    assert packed[0, 0, 0, 3, 1] == weight[0, 1, 3]
    assert unpack(packed, shape).equal(weight)


def test_opcheck():
    for shared in (True, False):
        tensors = operands((3, 2, 10, 70), shared)
        torch.library.opcheck(torch.ops.mach_ext.bucket_forward_int8, tensors)
        torch.library.opcheck(torch.ops.mach_ext.bucket_forward_int8, (*tensors[:3], None))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda t: t.double(), "hidden must be Float"),
        (0, lambda t: t[:, :1], r"hidden must have shape \[3, 2, 10\], got \[3, 1, 10\]"),
        (0, lambda t: t[..., :4], r"weight must have shape \[2, 2, 1, 64, 4\]"),
        (1, lambda t: t.float(), "weight must be Char"),
        (1, lambda t: t.flatten(2), r"weight must be \[R, tiles, words, 64, 4\]"),
        (2, lambda t: t[:, :64], r"weight must have shape \[2, 1, 3, 64, 4\]"),
        (2, lambda t: t[0], r"scale must be \[R, B\]"),
        (2, lambda t: t.double(), "scale must be Float"),
        (3, lambda t: t[:, :9], r"bias must have shape \[2, 70\], got \[2, 9\]"),
        (3, lambda t: t.double(), "bias must be Float"),
    ],
)
def test_refusals(place, change, message):
    tensors = list(operands((3, 2, 10, 70), False))
    tensors[place] = change(tensors[place])
    with pytest.raises(RuntimeError, match=f"bucket_forward_int8: {message}"):
        _ops.bucket_forward_int8(*tensors)


def test_more_hidden_units_than_a_sum_holds():
    H = 65_537
    weight = torch.zeros(1, 1, (H + 3) // 4, 64, 4, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="H must be at most 65,536, got 65537"):
        _ops.bucket_forward_int8(torch.zeros(1, H), weight, torch.ones(1, 64), None)


def test_the_largest_scales_leave_a_sum_of_zero():
    hidden, weight = torch.full((1, 4), 3e38), pack(torch.zeros(1, 4, 3, dtype=torch.int8))
    ours = _ops.bucket_forward_int8(hidden, weight, torch.full((1, 3), 1e3), torch.ones(1, 3))
    assert ours.equal(torch.ones(1, 1, 3))


# --------------------------------------------------------------------------------------- transform_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", ["none", "sigmoid", "logsigmoid"])
def test_transforms(dtype, transform, threads):
    generator = torch.Generator().manual_seed(0)
    logits = draw(generator, 40, 1001, dtype=dtype) * 60
    logits[0, :9] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 88.0, -88.0, 200.0, -200.0])
    ours, expected = logits.clone(), logits.clone()
    _ops.transform_logits(ours, transform)
    _reference.transform_logits(expected, transform)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-37, equal_nan=True)
    if transform == "none":
        assert bitwise_equal(ours, logits)
    one = torch.stack([_transformed(x, transform) for x in logits.flatten()[1:200]])
    assert bitwise_equal(one, ours.flatten()[1:200])  # the place changes no bit


def _transformed(x, transform):
    x = x.clone()
    _ops.transform_logits(x, transform)
    return x


def test_transforms_that_are_refused():
    with pytest.raises(RuntimeError, match="transform_logits: transform must be"):
        _ops.transform_logits(torch.zeros(3), "relu")
    with pytest.raises(RuntimeError, match="transform_logits: logits must be contiguous"):
        _ops.transform_logits(torch.zeros(3, 4).T, "sigmoid")
    torch.library.opcheck(torch.ops.mach_ext.transform_logits, (torch.zeros(3), "sigmoid"))


# ------------------------------------------------------------------------------------------ sparse_linear


@pytest.mark.parametrize("M", [1, 5, 16, 77, 256])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("stacked", [False, True])
def test_documents_by_weights_of_8_bits(M, index, stacked, threads):
    """The bits of the same weights in float32."""
    generator, D, R = torch.Generator().manual_seed(1), 90, 3
    X = random_csr(generator, [5, 0, 80, 1, 33, 2], D, torch.float32)
    X = X[0], X[1].to(index), X[2]
    weight = torch.randint(-127, 128, (R, D, M) if stacked else (D, M), generator=generator).to(torch.int8)
    bias = uniform(generator, *((R, M) if stacked else (M,)))
    for relu in (False, True):
        ours = _ops.sparse_linear(*X, weight, bias, relu)
        assert bitwise_equal(ours, _ops.sparse_linear(*X, weight.float(), bias, relu))


def test_documents_feature_by_feature():
    """So many documents that share features that the operator goes through them by feature."""
    generator, D, M, N = torch.Generator().manual_seed(2), 200, 65_536, 16
    X = random_csr(generator, [150] * N, D, torch.float32)
    weight = torch.randint(-127, 128, (D, M), generator=generator).to(torch.int8)
    expected = _ops.sparse_linear(*X, weight.float(), None, False)
    assert bitwise_equal(_ops.sparse_linear(*X, weight, None, False), expected)


def test_no_weights_of_8_bits_for_float64():
    X = random_csr(torch.Generator().manual_seed(0), [3, 2], 9, torch.float64)
    with pytest.raises(RuntimeError, match="weight must be Double"):
        _ops.sparse_linear(*X, torch.zeros(9, 4, dtype=torch.int8), None, False)
