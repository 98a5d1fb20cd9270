"""bucket_forward and bucket_forward_bce: bfloat16 products of all repetitions and what is made of them."""

import math

import pytest
import torch
from helpers import assert_deterministic, bitwise_equal, random_csr, to, uniform

from mach_ext import _ops, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
TRANSFORMS = ("none", "sigmoid", "logsigmoid")
UNIT = 2.0**-24

# N, G, H, B: a tile is 128 documents and 256 buckets, a stage 32 hidden units, a product 16.
SHAPES = [
    (0, 2, 8, 7),
    (1, 1, 8, 1),
    (1, 5, 16, 600),
    (127, 2, 24, 255),
    (128, 1, 512, 256),
    (129, 3, 40, 257),
    (300, 2, 16, 7),
    (300, 1, 104, 600),
    (5, 2, 0, 9),
    (33, 4, 72, 36),
]
parametrize_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
parametrize_shared = pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])


@pytest.fixture(autouse=True)
def _device_that_multiplies_bfloat16(request, operators):
    if "device" in request.fixturenames and operators == "cuda":
        device = request.getfixturevalue("device")
        if not _ops.has_bucket_forward(device):
            pytest.skip("products of bfloat16 need sm_80")


def bucket_major(weight):
    """[G, H, B] in the memory of [G, B, H]."""
    return weight.mT.contiguous().mT


def operands(generator, shape, shared, spread=1.0):
    """hidden and weight in bfloat16, bias in float32."""
    N, G, H, B = shape
    hidden = uniform(generator, *((N, H) if shared else (N, G, H))) * 2
    weight = bucket_major(uniform(generator, G, H, B) * spread)
    return hidden.bfloat16(), weight.bfloat16(), uniform(generator, G, B, dtype=torch.float32)


def labelled(generator, shape, num_labels=50):
    """buckets [G, L] and the labels of N documents, every third of which has none."""
    N, G, _, B = shape
    rows = [0 if n % 3 == 1 else 1 + n % 7 for n in range(N)]
    labels = random_csr(generator, rows, num_labels)
    buckets = torch.randint(B, (G, num_labels), generator=generator, dtype=torch.int32)
    return buckets, labels.indices, labels.indptr


def bounds(hidden, weight, bias):
    """Logits in float64, and how far those that are summed in float may be from them.

    A sum of H products and a bias has H roundings, each relative to a partial sum of at most the sum of all
    magnitudes: (H + 2) units cover these and the terms of second order.
    """
    logits = _reference._wide_logits(hidden, weight, bias)
    magnitude = _reference._wide_logits(hidden.abs(), weight.abs(), None if bias is None else bias.abs())
    return logits, (weight.shape[1] + 2) * UNIT * magnitude


@parametrize_shared
@parametrize_shape
def test_scores_are_within_the_bound(device, generator, shape, shared):
    tensors = operands(generator, shape, shared)
    for bias in (tensors[2], None):
        logits, bound = bounds(*tensors[:2], bias)
        ours = _ops.bucket_forward(*to(device, (*tensors[:2], bias))).cpu()
        assert ours.dtype == torch.float32
        assert ours.shape == logits.shape
        assert ours.is_contiguous()
        assert ((ours.double() - logits).abs() <= bound).all()


@pytest.mark.parametrize("transform", TRANSFORMS[1:])
@pytest.mark.parametrize("spread", [0.3, 30])
def test_transforms(device, generator, transform, spread):
    """Both have a slope of at most 1 and are themselves within 8 units of their value."""
    tensors = operands(generator, (130, 2, 24, 70), True, spread)
    bound = bounds(*tensors)[1]
    expected = _reference.bucket_forward(*tensors, transform)
    ours = _ops.bucket_forward(*to(device, tensors), transform).cpu()
    assert ((ours - expected).abs() <= bound + 8 * UNIT * expected.abs()).all()


def assert_trained(device, tensors, labels, scale):
    """Gradient, loss and sums of bucket_forward_bce against the twin."""
    exact, bound = bounds(*tensors)
    gradient, loss, grad_bias = (
        t.cpu() for t in _ops.bucket_forward_bce(*to(device, tensors), *to(device, labels), scale)
    )
    expected, losses, sums = _reference.bucket_forward_bce(*tensors, *labels, scale)
    assert (gradient.dtype, loss.dtype, grad_bias.dtype) == (torch.bfloat16, torch.float64, torch.float32)
    assert [t.shape for t in (gradient, loss, grad_bias)] == [t.shape for t in (expected, losses, sums)]
    # The slope of the sigmoid is at most 1 / 4; itself it is within 8 units. bfloat16 has 8 bits.
    unrounded = exact.clone()
    _reference.bucket_bce(unrounded, None, *labels, scale)
    error = scale * (bound / 4 + 8 * UNIT)
    assert ((gradient.double() - unrounded).abs() <= 2.0**-8 * unrounded.abs() + 2 * error).all()
    # A bucket's sum: float32 within a tile, seldom more than 20 roundings in a row.
    allowed = error.sum(0) + 20 * UNIT * unrounded.abs().sum(0)
    assert ((grad_bias.double() - unrounded.sum(0)).abs() <= allowed).all()
    terms = torch.nn.functional.softplus(exact.abs())
    assert ((loss - losses).abs() <= (bound + 16 * UNIT * terms).sum((1, 2))).all()


@parametrize_shared
@parametrize_shape
def test_training_matches_the_twin(device, generator, shape, shared):
    assert_trained(device, operands(generator, shape, shared), labelled(generator, shape), 0.3)


def test_training_of_large_logits(device, generator):
    """Logits up to hundreds, where float sigmoids are 0 and 1."""
    shape = (40, 2, 64, 50)
    assert_trained(device, operands(generator, shape, True, spread=20), labelled(generator, shape), 1 / 128)


def test_without_a_bias(device, generator):
    tensors, labels = operands(generator, (9, 2, 8, 5), False), labelled(generator, (9, 2, 8, 5))
    zero = torch.zeros(2, 5)
    ours, theirs = (
        _ops.bucket_forward_bce(*to(device, (*tensors[:2], bias, *labels)), 1.0) for bias in (None, zero)
    )
    assert all(bitwise_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_two_labels_in_a_bucket_count_once(device):
    hidden, weight = torch.zeros(2, 8).bfloat16(), bucket_major(torch.zeros(2, 8, 3)).bfloat16()
    buckets = torch.tensor([[1, 1, 2], [0, 2, 2]], dtype=torch.int32)
    labels = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3], dtype=torch.int32)
    gradient, loss, grad_bias = _ops.bucket_forward_bce(
        *to(device, (hidden, weight, None, buckets, *labels)), 1.0
    )
    wanted = [[[0.5, -0.5, 0.5], [-0.5, 0.5, -0.5]], [[0.5, 0.5, -0.5], [0.5, 0.5, -0.5]]]
    assert gradient.tolist() == wanted
    assert grad_bias.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]]
    torch.testing.assert_close(loss.cpu(), torch.full((2,), 6 * math.log(2), dtype=torch.float64))


@pytest.mark.parametrize("wrong", [-1, 3, 2**40, -(2**40)])
def test_labels_out_of_range_make_the_loss_nan(device, wrong):
    """Whichever tile of buckets the others are in. The gradient is that of the others."""
    N, faulty = 140, (0, 3, 12, 45, 133)  # the first three are bits of one word, set by three warps
    hidden, weight = torch.zeros(N, 8).bfloat16(), bucket_major(torch.zeros(2, 8, 300)).bfloat16()
    buckets = torch.tensor([[1, 0, 299], [5, 5, 298]], dtype=torch.int32)
    for table in (buckets, torch.tensor([[1, 300, 299], [5, -7, 298]], dtype=torch.int32)):
        bad = wrong if table is buckets else 1  # a label, or the bucket of a label
        labels = torch.tensor([[2, bad, 0] if n in faulty else [2, 0, 0] for n in range(N)]).flatten()
        indptr = torch.arange(N + 1) * 3
        gradient, loss, _ = _ops.bucket_forward_bce(
            *to(device, (hidden, weight, None, table, labels, indptr)), 1.0
        )
        assert loss.isnan().nonzero().flatten().tolist() == list(faulty)
        for n in faulty:
            assert (gradient[n] < 0).nonzero().tolist() == [[0, 1], [0, 299], [1, 5], [1, 298]]


@pytest.mark.parametrize("where", ["hidden", "weight"])
def test_nan_and_infinite_inputs_stay_in_their_place(device, generator, where):
    """What fills the tiles up is multiplied with them, too, and must not show."""
    shape = (5, 2, 24, 9)
    hidden, weight, bias = operands(generator, shape, True)
    if where == "hidden":
        hidden[1, 3], hidden[2, 23] = torch.nan, torch.inf
    else:
        weight[0, 3, 0], weight[1, 0, 4] = torch.nan, -torch.inf
    labels = labelled(generator, shape)
    expected = _reference.bucket_forward(hidden, weight, bias)
    strange = ~expected.isfinite()
    assert strange.any()
    assert not strange.all()
    for transform in TRANSFORMS:
        expected = _reference.bucket_forward(hidden, weight, bias, transform)
        ours = _ops.bucket_forward(*to(device, (hidden, weight, bias)), transform).cpu()
        torch.testing.assert_close(ours, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    ours = _ops.bucket_forward_bce(*to(device, (hidden, weight, bias, *labels)), 0.5)
    theirs = _reference.bucket_forward_bce(hidden, weight, bias, *labels, 0.5)
    for a, b in zip(ours[::2], theirs[::2], strict=True):
        torch.testing.assert_close(a.cpu(), b, equal_nan=True, rtol=1e-2, atol=1e-4)
    # The twin's loss of an infinite logit is NaN in cases where ours is not.
    logits = _reference.bucket_forward(hidden, weight, bias).flatten(1)
    loss, usual = ours[1].cpu(), logits.isfinite().all(1)
    assert usual.any() == (where == "hidden")
    assert loss[logits.isnan().any(1)].isnan().all()
    torch.testing.assert_close(loss[usual], theirs[1][usual], rtol=1e-5, atol=1e-5)


def test_groups_are_slices(device, generator):
    """Of a model of five repetitions three are taken, where they lie: the same bits as of copies."""
    hidden, weight, bias = to(device, operands(generator, (20, 5, 24, 30), False))
    part, copy = slice(1, 4), (hidden[:, 1:4].contiguous(), weight[1:4].clone(), bias[1:4].clone())
    assert bitwise_equal(
        _ops.bucket_forward(hidden[:, part], weight[part], bias[part]), _ops.bucket_forward(*copy)
    )
    # Rows that do not start at multiples of 16 bytes are copied.
    wide = torch.zeros(20, 3, 29, dtype=torch.bfloat16, device=device)
    wide[:, :, 5:] = copy[0]
    behind = torch.zeros(20 * 3 * 24 + 1, dtype=torch.bfloat16, device=device)[1:].view(20, 3, 24)
    behind.copy_(copy[0])
    for unaligned in (wide[:, :, 5:], behind):
        assert bitwise_equal(_ops.bucket_forward(unaligned, *copy[1:]), _ops.bucket_forward(*copy))


def test_a_repetition_alone_gives_the_same_bits(device, generator):
    shape = (20, 3, 40, 300)
    hidden, weight, bias = to(device, operands(generator, shape, True))
    buckets, *labels = to(device, labelled(generator, shape))
    scores = _ops.bucket_forward(hidden, weight, bias, "sigmoid")
    gradient, loss, grad_bias = _ops.bucket_forward_bce(hidden, weight, bias, buckets, *labels, 0.5)
    alone = torch.zeros_like(loss)
    for g in range(3):
        one = weight[g : g + 1], bias[g : g + 1]
        assert bitwise_equal(_ops.bucket_forward(hidden, *one, "sigmoid")[:, 0], scores[:, g])
        ours = _ops.bucket_forward_bce(hidden, *one, buckets[g : g + 1], *labels, 0.5)
        assert bitwise_equal(ours[0][:, 0], gradient[:, g])
        assert bitwise_equal(ours[2][0], grad_bias[g])
        alone += ours[1]
    torch.testing.assert_close(alone, loss, rtol=1e-12, atol=0)


def test_raw_ops_deterministic(generator):
    shape = (300, 2, 40, 70)
    tensors, labels = operands(generator, shape, True), labelled(generator, shape)
    assert_deterministic(
        lambda: (_ops.bucket_forward(*tensors), *_ops.bucket_forward_bce(*tensors, *labels, 0.1))
    )


@parametrize_shared
def test_opcheck(device, generator, shared):
    shape = (6, 2, 16, 5)
    tensors, labels = to(device, operands(generator, shape, shared)), to(device, labelled(generator, shape))
    for transform in TRANSFORMS:
        torch.library.opcheck(torch.ops.mach_ext.bucket_forward, (*tensors, transform))
    torch.library.opcheck(torch.ops.mach_ext.bucket_forward_bce, (*tensors, *labels, 0.5))


REFUSED = [
    ({"hidden": torch.ones(3, 16)}, r"hidden must be BFloat16, got Float"),
    ({"hidden": torch.ones(3, 8).bfloat16()}, r"hidden must have shape \[3, 16\], got \[3, 8\]"),
    ({"weight": torch.ones(2, 16, 5).bfloat16()}, r"weight \[G, H, B\] must have the memory of a contiguous"),
    ({"weight": torch.ones(0, 16, 5).bfloat16()}, r"weight must be \[G, H, B\] with G >= 1 and B >= 1"),
    (
        {"hidden": torch.ones(3, 12).bfloat16(), "weight": bucket_major(torch.ones(2, 12, 5)).bfloat16()},
        r"H must be a multiple of 8, got 12",
    ),
    (
        {"weight": torch.ones(2 * 16 * 5 + 1).bfloat16()[1:].view(2, 5, 16).mT},
        r"weight must be aligned to 16 bytes",
    ),
    ({"bias": torch.ones(2, 4)}, r"bias must have shape \[2, 5\], got \[2, 4\]"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_raw_ops_refuse(device, change, message):
    good = {
        "hidden": torch.ones(3, 16).bfloat16(),
        "weight": bucket_major(torch.ones(2, 16, 5)).bfloat16(),
        "bias": torch.zeros(2, 5),
    }
    tensors = {**good, **change}
    if not message.startswith("weight must be aligned"):
        tensors = {name: t.to(device) for name, t in tensors.items()}
    with pytest.raises(RuntimeError, match=f"bucket_forward: {message}"):
        _ops.bucket_forward(**tensors)


def test_raw_ops_refuse_other_arguments(device):
    tensors = to(device, (torch.ones(3, 8).bfloat16(), bucket_major(torch.ones(2, 8, 5)).bfloat16()))
    with pytest.raises(RuntimeError, match="transform must be none, sigmoid or logsigmoid, got relu"):
        _ops.bucket_forward(*tensors, None, "relu")
    buckets, indices = torch.zeros(2, 4, dtype=torch.int32), torch.zeros(0, dtype=torch.int64)
    for wrong, message in (
        ((buckets[:1], indices, torch.zeros(4, dtype=torch.int64)), r"buckets must have shape \[2, 4\]"),
        ((buckets, indices, torch.zeros(3, dtype=torch.int64)), "label_indptr must have N \\+ 1 entries"),
        ((buckets, indices.int(), torch.zeros(4, dtype=torch.int64)), "label_indices must be Long, got Int"),
    ):
        with pytest.raises(RuntimeError, match=message):
            _ops.bucket_forward_bce(*tensors, None, *to(device, wrong), 1.0)


# -------------------------------------------------------------------------------------- F.bucket_logits


@pytest.fixture
def fused_calls(monkeypatch):
    """The transforms that _ops.bucket_forward is called with."""
    calls, own = [], _ops.bucket_forward

    def counted(hidden, weight, bias, transform="none"):
        calls.append(transform)
        return own(hidden, weight, bias, transform)

    monkeypatch.setattr(_ops, "bucket_forward", counted)
    return calls


def rounded(t):
    return t.bfloat16().to(t.dtype)


def through(t):
    """Rounded to bfloat16, with the gradient of what is not rounded."""
    return t + (rounded(t.float()).to(t.dtype) - t).detach()


@parametrize_shared
@pytest.mark.parametrize("layout", ["bucket-major", "row-major"])
@pytest.mark.parametrize("H", [16, 20])
def test_rounded_logits_and_their_gradients(device, generator, fused_calls, shared, layout, H):
    """Whether fused or not: logits within the bound, gradients to every input those of the definition."""
    N, R, B = 130, 3, 40
    hidden = uniform(generator, *((N, H) if shared else (N, R, H)), dtype=torch.float32)
    weight, bias = (uniform(generator, *s, dtype=torch.float32) for s in ((R, H, B), (R, B)))
    upstream = uniform(generator, N, R, B, dtype=torch.float32)
    if layout == "bucket-major":
        weight = bucket_major(weight)
    leaves = [t.clone().to(device).requires_grad_() for t in (hidden, weight, bias)]
    out = F.bucket_logits(*leaves, precision="bfloat16")
    fused = _ops.has_bucket_forward(out.device) and H == 16
    assert len(fused_calls) == fused
    logits, bound = bounds(hidden.bfloat16(), weight.bfloat16(), bias)
    assert out.dtype == torch.float32
    assert ((out.cpu().double() - logits).abs() <= bound).all()

    twins = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    wide = through(twins[0])
    wide = wide[:, None].expand(-1, R, -1) if shared else wide
    definition = torch.einsum("nrh,rhb->nrb", wide, through(twins[1])) + twins[2]
    expected = torch.autograd.grad(definition, twins, upstream.double())
    ours = torch.autograd.grad(out, leaves, upstream.to(device))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=2e-5, atol=2e-5)


@parametrize_shared
def test_gradients_of_documents_and_every_weight(device, generator, fused_calls, shared):
    """From the values on. Hidden units are exact in float32, so both round the same numbers."""
    D, R, H, B = 30, 2, 8, 300
    X = random_csr(generator, [3, 0, 7, 1, 30], D)
    X = X._replace(values=(X.values * 4).round() / 4)
    encoder = (uniform(generator, D, H if shared else R * H) * 8).round() / 8
    encoder_bias = (uniform(generator, encoder.shape[1]) * 8).round() / 8
    weight, bias = bucket_major(uniform(generator, R, H, B, dtype=torch.float32)), uniform(generator, R, B)
    tensors = [t.float() for t in (X.values, encoder, encoder_bias, weight, bias)]
    leaves = [t.clone().to(device).requires_grad_() for t in tensors]
    at = to(device, X[1:])
    out = F.bucket_forward(leaves[0], *at, *leaves[1:], precision="bfloat16")
    assert len(fused_calls) == _ops.has_bucket_forward(out.device)
    ours = torch.autograd.grad(out.sigmoid().square().sum(), leaves)

    twins = [t.double().requires_grad_() for t in tensors]
    values, W, b, buckets, bucket_bias = twins
    hidden = _reference.sparse_linear(values, *X[1:], W[None], b[None], True)[:, 0]
    wide = through(hidden)[:, None].expand(-1, R, -1) if shared else through(hidden).view(-1, R, H)
    logits = torch.einsum("nrh,rhb->nrb", wide, through(buckets)) + bucket_bias
    expected = torch.autograd.grad(logits.sigmoid().square().sum(), twins)
    for a, e in zip(ours, expected, strict=True):
        assert e.abs().max() > 0.01
        torch.testing.assert_close(a.cpu().double(), e, rtol=1e-4, atol=1e-4)


def test_bfloat16_weights_and_no_documents(device, generator, fused_calls):
    hidden, weight, bias = operands(generator, (3, 2, 16, 5), True)
    wide = to(device, (hidden.float(), weight, bias.bfloat16()))
    out = F.bucket_logits(*wide, precision="bfloat16")
    same = F.bucket_logits(wide[0], wide[1].float(), wide[2].float(), precision="bfloat16")
    assert bitwise_equal(out, same)
    assert F.bucket_logits(wide[0][:0], *wide[1:], precision="bfloat16").shape == (0, 2, 5)
    assert len(fused_calls) == 3 * _ops.has_bucket_forward(out.device)


def test_float32_is_the_default(generator):
    hidden, weight, bias = (t.float() for t in operands(generator, (3, 2, 16, 5), True))
    assert bitwise_equal(
        F.bucket_logits(hidden, weight, bias, precision="float32"), F.bucket_logits(hidden, weight, bias)
    )


def test_second_derivatives_are_refused():
    hidden = torch.ones(2, 8, requires_grad=True)
    out = F.bucket_logits(hidden, torch.ones(1, 8, 3), None, precision="bfloat16")
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.autograd.grad(out.sum(), hidden, create_graph=True)


def test_precision_errors(generator):
    X = random_csr(generator, [2], 4)
    with pytest.raises(ValueError, match=r"^bucket_logits: precision must be one of float32, bfloat16"):
        F.bucket_logits(torch.ones(1, 8), torch.ones(1, 8, 3), None, precision="bf16")
    with pytest.raises(TypeError, match=r"^bucket_logits: precision bfloat16 is for float32, got float64"):
        F.bucket_logits(torch.ones(1, 8).double(), torch.ones(1, 8, 3).double(), None, precision="bfloat16")
    with pytest.raises(TypeError, match=r"^bucket_forward: precision bfloat16 is for float32, got float64"):
        F.bucket_forward(
            X[0].double(), *X[1:], None, None, torch.ones(1, 4, 3).double(), None, precision="bfloat16"
        )
