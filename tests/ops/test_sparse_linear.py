"""sparse_linear: documents in CSR times a dense weight, its gradients, its edges, its errors."""

import itertools

import numpy as np
import pytest
import torch
from helpers import (
    FLOATS,
    INTS,
    ROWS,
    Csr,
    assert_deterministic,
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

from mach_ext import _ops, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = st.sampled_from([0, 1, 2, 15, 16, 17, 40])
parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def weights(generator, R, D, M, dtype, with_bias=True):
    """weight [R, D, M], bias [R, M] or None."""
    weight = uniform(generator, R, D, M, dtype=dtype)
    return weight, uniform(generator, R, M, dtype=dtype) if with_bias else None


# ------------------------------------------------------------------------------------------ the definition


@parametrize_dtype
def test_forward_and_gradients_match_reference(device, dtype):
    @given(csr_batches(dtype), st.integers(1, 3), SIZES, st.booleans(), st.booleans())
    def check(batch, R, M, with_bias, relu):
        X, D, generator = batch
        weight, bias = weights(generator, R, D, M, dtype, with_bias)
        out = _ops.sparse_linear(*to(device, (*X, weight, bias)), relu)
        assert out.dtype == dtype
        expected = _reference.sparse_linear(*double((*X, weight, bias)), relu)
        assert_matches(out, expected)
        if R == 1:  # without the dimension R: the same numbers
            flat = [None if t is None else t[0].to(device) for t in (weight, bias)]
            assert bitwise_equal(_ops.sparse_linear(*to(device, X), *flat, relu), out[:, 0])

        grad = uniform(generator, *out.shape, dtype=dtype)
        values, indices, indptr = to(device, X)
        args = (grad.to(device), values, indices, indptr, D)
        expected = _reference.sparse_linear_grad_weight(*double((grad, *X)), D)
        grad_weight = _ops.sparse_linear_grad_weight(*args)
        assert_matches(grad_weight, expected)
        rows, grads = _ops.sparse_linear_grad_rows(*args)
        assert torch.equal(rows.cpu(), torch.unique(X.indices.long()))
        assert bitwise_equal(grads, grad_weight[:, rows])
        grad_values = _ops.sparse_linear_grad_values(grad.to(device), indices, indptr, weight.to(device))
        assert_matches(grad_values, _reference.sparse_linear_grad_values(*double((grad, *X[1:], weight))))

    check()


def test_reference_is_the_dense_product(generator):
    """The twin itself, and its gradients, against a dense matrix product."""
    X = random_csr(generator, ROWS["one_huge"], 400, torch.float64)
    weight, bias = weights(generator, 1, 400, 7, torch.float64)
    dense = torch.zeros(len(X.indptr) - 1, 400, dtype=torch.float64)
    dense[_reference.documents(X.indptr), X.indices] = X.values
    torch.testing.assert_close(
        _reference.sparse_linear(*X, weight, bias, True)[:, 0], (dense @ weight[0] + bias[0]).relu()
    )
    grad = uniform(generator, len(dense), 1, 7)
    torch.testing.assert_close(_reference.sparse_linear_grad_weight(grad, *X, 400)[0], dense.T @ grad[:, 0])
    sampled = (grad[:, 0] @ weight[0].T)[_reference.documents(X.indptr), X.indices]
    torch.testing.assert_close(_reference.sparse_linear_grad_values(grad, *X[1:], weight), sampled)


@parametrize_dtype
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("M", [1, 600])
def test_row_shapes(device, generator, rows, M, dtype):
    """Public function and its backward; M = 600 splits the columns over the threads."""
    X = random_csr(generator, rows, 500, dtype)
    weight, bias = (t[0] for t in weights(generator, 1, 500, M, dtype))
    grad = uniform(generator, len(rows), M, dtype=dtype)

    def run(function, tensors, grad):
        values, weight, bias = leaves = [t.requires_grad_() for t in tensors]
        out = function(values, weight, bias)
        out.backward(grad)
        return [out.detach(), *(t.grad for t in leaves)]

    indices, indptr = to(device, X[1:])
    ours = run(
        lambda v, w, b: F.sparse_linear(v, indices, indptr, w, b, "relu"),
        [t.clone() for t in to(device, (X.values, weight, bias))],
        grad.to(device),
    )
    twin = run(
        lambda v, w, b: _reference.sparse_linear(v, *X[1:], w[None], b[None], True)[:, 0],
        double((X.values, weight, bias)) if dtype == torch.float32 else [X.values, weight, bias],
        grad.double(),
    )
    for a, b in zip(ours, twin, strict=True):
        assert_matches(a, b, dtype)


@pytest.mark.parametrize("index", INTS)
@pytest.mark.parametrize("pointer", INTS)
def test_index_types_give_the_same_bits(device, generator, index, pointer):
    X = random_csr(generator, [3, 0, 5], 20)
    weight, bias = to(device, (t[0] for t in weights(generator, 1, 20, 6, torch.float32)))
    expected = F.sparse_linear(*to(device, X), weight, bias)
    values, indices, indptr = to(device, X)
    assert bitwise_equal(
        F.sparse_linear(values, indices.to(index), indptr.to(pointer), weight, bias), expected
    )


@parametrize_dtype
def test_strided_arguments_give_the_same_bits(device, generator, dtype):
    X = Csr(*to(device, random_csr(generator, [3, 0, 5], 20, dtype)))
    weight, bias = to(device, weights(generator, 2, 20, 17, dtype))
    grad = uniform(generator, 3, 2, 17, dtype=dtype).to(device)
    calls = [
        (lambda *t: _ops.sparse_linear(*t, True), (*X, weight, bias)),
        (lambda *t: _ops.sparse_linear_grad_weight(*t, 20), (grad, *X)),
        (lambda *t: _ops.sparse_linear_grad_rows(*t, 20)[1], (grad, *X)),
        (_ops.sparse_linear_grad_values, (grad, *X[1:], weight)),
    ]
    for call, tensors in calls:
        assert bitwise_equal(call(*map(strided, tensors)), call(*tensors))


@parametrize_dtype
def test_sums_run_in_the_order_of_the_row(device, generator, dtype):
    """To the bit: bias first, then one product after the other; gradients document after document."""
    X = random_csr(generator, [11, 0, 12, 9, 6], 12, dtype)
    weight, bias = (t[0] for t in weights(generator, 1, 12, 19, dtype))
    grad = uniform(generator, 5, 19, dtype=dtype)
    out, grad_weight = bias.repeat(5, 1), torch.zeros_like(weight)
    for n in range(5):
        for p in range(X.indptr[n], X.indptr[n + 1]):
            out[n] += X.values[p] * weight[X.indices[p]]
            grad_weight[X.indices[p]] += X.values[p] * grad[n]
    assert bitwise_equal(F.sparse_linear(*to(device, (*X, weight, bias))), out)
    ours = _ops.sparse_linear_grad_weight(*to(device, (grad[:, None], *X)), 12)
    assert bitwise_equal(ours[0], grad_weight)


def test_relu_of_nan_is_nan(device):
    X = to(device, Csr(torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1])))
    weight = torch.tensor([[float("nan"), -1.0, 2.0]], device=device)
    out = F.sparse_linear(*X, weight, activation="relu")
    assert bitwise_equal(out, torch.tensor([[float("nan"), 0.0, 2.0]]))


# ------------------------------------------------------------------------------------------ feature order


def test_feature_order_matches_reference(device):
    """Features far apart take several passes of the CPU's sort, and the GPU's of 64 bits."""

    @given(csr_batches(torch.float32), st.sampled_from([0, 1, 40, 10**6, 2**40]))
    def check(batch, more):
        X, D, _ = batch
        indices = X.indices.long() * (1 + more)
        order = _ops.feature_order(*to(device, (indices, X.indptr)), D * (1 + more))
        twin = _reference.feature_order(indices, X.indptr, D * (1 + more))
        for ours, expected in zip(order, twin, strict=True):
            assert torch.equal(ours.cpu(), expected)

    check()


def test_feature_order_leaves_out_what_is_out_of_range(device):
    indices, indptr = to(device, (torch.tensor([3, -1, 1, 4, 3, 0]), torch.tensor([0, 3, 6])))
    order = _ops.feature_order(indices, indptr, 4)
    assert [t.tolist() for t in order] == [[0, 1, 3], [0, 1, 2, 4], [5, 2, 0, 4], [1, 0, 0, 1]]
    order = _ops.feature_order(indices, indptr + 1, 4)  # the first entry is in no row
    assert [t.tolist() for t in order] == [[0, 1, 3], [0, 1, 2, 3], [5, 2, 4], [1, 0, 1]]
    for nothing in ((indices[:0], indptr[:1], 4), (indices - 9, indptr, 4), (indices, indptr, 0)):
        assert [t.tolist() for t in _ops.feature_order(*nothing)] == [[], [0], [], []]


@pytest.mark.parametrize("D", [7, 5000, 10**9])
def test_feature_order_is_deterministic(generator, D):
    indices = torch.randint(D, (30_000,), generator=generator)
    indptr = torch.arange(0, 30_001, 100)
    expected = _reference.feature_order(indices, indptr, D)
    assert_deterministic(lambda: tuple(_ops.feature_order(indices, indptr, D)))
    for ours, twin in zip(_ops.feature_order(indices, indptr, D), expected, strict=True):
        assert torch.equal(ours, twin)


@parametrize_dtype
def test_a_given_order_changes_no_bit(device, generator, dtype):
    X = Csr(*to(device, random_csr(generator, [3, 0, 80, 21], 90, dtype)))
    weight, bias = to(device, weights(generator, 3, 90, 33, dtype))
    grad = uniform(generator, 4, 3, 33, dtype=dtype).to(device)
    order = _ops.feature_order(*X[1:], 90)
    for call in (
        lambda order: [_ops.sparse_linear(*X, weight, bias, True, order)],
        lambda order: [_ops.sparse_linear_grad_weight(grad, *X, 90, order)],
        lambda order: _ops.sparse_linear_grad_rows(grad, *X, 90, order),
    ):
        for ours, expected in zip(call(order), call(None), strict=True):
            assert bitwise_equal(ours, expected)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_by_feature_and_by_document_give_the_same_bits(generator, dtype, relu):
    """A batch large enough, its features frequent enough, for the order of the features to be chosen.

    Columns a few at a time are too little work for that: they go document by document.
    """
    N, D, M, value = 100, 9000, 528, torch.float64 if dtype == torch.float64 else torch.float32
    rows = [torch.randperm(D, generator=generator)[:600].sort().values for _ in range(N)]
    X = Csr(
        uniform(generator, 600 * N, dtype=value), torch.cat(rows).int(), torch.arange(0, 600 * N + 1, 600)
    )
    weight, bias = weights(generator, 1, D, M, dtype)
    expected = torch.cat(
        [
            _ops.sparse_linear(*X, w.contiguous(), b.to(value).contiguous(), relu)
            for w, b in zip(weight.split(48, 2), bias.split(48, 1), strict=True)
        ],
        2,
    )
    assert_deterministic(lambda: (_ops.sparse_linear(*X, weight, bias.to(value), relu),))
    for order in (None, _ops.feature_order(*X[1:], D)):
        assert bitwise_equal(_ops.sparse_linear(*X, weight, bias.to(value), relu, order), expected)


@parametrize_dtype
@pytest.mark.parametrize("M", [4, 130, 264])
def test_frequent_features(device, generator, dtype, M):
    """Features 0, 1 and 50 in all of 300 documents, others in few; M: less than a tile, tiles with an end."""
    N, D = 300, 60
    rows = [torch.tensor([0, 1, 50, 2 + int(torch.randint(40, (), generator=generator))]) for _ in range(N)]
    X = Csr(uniform(generator, 4 * N, dtype=dtype), torch.cat(rows), torch.arange(0, 4 * N + 1, 4))
    grad = uniform(generator, N, 2, M, dtype=dtype)
    at = to(device, (grad, *X))
    ours = _ops.sparse_linear_grad_weight(*at, D)
    assert_matches(ours / 4, _reference.sparse_linear_grad_weight(*double((grad, *X)), D) / 4)
    rows, grads = _ops.sparse_linear_grad_rows(*at, D)
    assert torch.equal(rows.cpu(), torch.unique(X.indices))
    assert bitwise_equal(grads, ours[:, rows])


def test_a_weight_may_begin_anywhere(device, generator):
    """16 bytes a load or one element: the same bits forward. M is the largest of either on each side."""
    X = Csr(*to(device, random_csr(generator, [3, 0, 70, 31], 80)))
    for dtype in (torch.float32, torch.bfloat16):
        for M in (8, 296):
            weight, bias = (t[0].to(device) for t in weights(generator, 1, 80, M, torch.float32))
            shifted = torch.empty(80 * M + 1, dtype=dtype, device=device)[1:].view(80, M).copy_(weight)
            grad = uniform(generator, 4, 1, M, dtype=torch.float32).to(device)
            assert bitwise_equal(
                _ops.sparse_linear(*X, shifted, bias, True),
                _ops.sparse_linear(*X, shifted.clone(), bias, True),
            )
            torch.testing.assert_close(
                _ops.sparse_linear_grad_values(grad, *X[1:], shifted[None]),
                _ops.sparse_linear_grad_values(grad, *X[1:], shifted.clone()[None]),
            )


# -------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("rows", [[0, 3, 0, 2, 0], [0, 0]], ids=str)
def test_gradcheck(device, generator, rows, activation):
    X = random_csr(generator, rows, 6, torch.float64)
    weight, bias = (t[0] for t in weights(generator, 1, 6, 5, torch.float64))
    values, weight, bias = (t.requires_grad_() for t in to(device, (X.values, weight, bias)))
    indices, indptr = to(device, X[1:])
    torch.autograd.gradcheck(
        lambda v, w, b: F.sparse_linear(v, indices, indptr, w, b, activation), (values, weight, bias)
    )


@pytest.mark.parametrize("needed", ["values", "weight", "bias"])
def test_gradient_of_one_argument_alone(generator, needed):
    X = random_csr(generator, [2, 0, 4], 9, torch.float64)
    weight, bias = (t[0] for t in weights(generator, 1, 9, 5, torch.float64))
    tensors = {"values": X.values, "weight": weight, "bias": bias}
    everything = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    F.sparse_linear(indices=X.indices, indptr=X.indptr, **everything).square().sum().backward()
    tensors[needed] = tensors[needed].clone().requires_grad_()
    F.sparse_linear(indices=X.indices, indptr=X.indptr, **tensors).square().sum().backward()
    assert bitwise_equal(tensors[needed].grad, everything[needed].grad)


@parametrize_dtype
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_sparse_gradient_equals_dense(device, generator, rows, dtype):
    X = to(device, random_csr(generator, rows, 350, dtype))
    weight = weights(generator, 1, 350, 6, dtype)[0][0].to(device)
    gradients = []
    for sparse in (False, True):
        leaf = weight.clone().requires_grad_()
        F.sparse_linear(*X, leaf, activation="relu", sparse_grad=sparse).square().sum().backward()
        gradients.append(leaf.grad)
    dense, coo = gradients
    assert coo.layout == torch.sparse_coo
    assert dense.layout == torch.strided
    assert torch.equal(coo._indices()[0], torch.unique(X[1]))  # every row once, ascending
    assert bitwise_equal(coo.to_dense(), dense)


def test_gradient_is_only_once_differentiable(generator):
    X = random_csr(generator, [2, 1], 5, torch.float64)
    weight = uniform(generator, 5, 3).requires_grad_()
    out = F.sparse_linear(*X, weight).square().sum()
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.autograd.grad(out, weight, create_graph=True)


# ----------------------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("index", INTS)
def test_bfloat16_weight_is_widened_exactly(device, generator, index):
    """Storage only: the same bits as float32 arithmetic on the widened weight."""
    X = to(device, random_csr(generator, [3, 0, 40], 60, torch.float32, index))
    weight, bias = (t[0].to(device).bfloat16() for t in weights(generator, 1, 60, 33, torch.float32))
    results = []
    for w, b in ((weight, bias), (weight.float(), bias.float())):
        values = X[0].clone().requires_grad_()
        out = F.sparse_linear(values, *X[1:], w, b, "relu")
        out.square().sum().backward()
        results.append((out, values.grad))
    (out, grad), (expected_out, expected_grad) = results
    assert out.dtype == grad.dtype == torch.float32
    assert bitwise_equal(out, expected_out)
    assert bitwise_equal(grad, expected_grad)


@pytest.mark.parametrize("M", [33, 264])
def test_float16_weight_is_widened_exactly(device, operators, generator, M):
    """CUDA only. Small and infinite numbers, too."""
    X = to(device, random_csr(generator, [3, 0, 40], 60))
    narrow = (
        uniform(generator, 1, 60, M) * 2.0 ** torch.randint(-24, 15, (1, 60, M), generator=generator)
    ).half()
    narrow[0, 0, 0], narrow = float("inf"), narrow.to(device)
    grad = uniform(generator, 3, 1, M, dtype=torch.float32).to(device)
    if operators == "cpu":
        with pytest.raises(RuntimeError, match="sparse_linear: weight must be Float, got Half"):
            _ops.sparse_linear(*X, narrow, None, False)
        return
    wide = narrow.float()
    assert bitwise_equal(
        _ops.sparse_linear(*X, narrow, None, False), _ops.sparse_linear(*X, wide, None, False)
    )
    assert bitwise_equal(
        _ops.sparse_linear_grad_values(grad, *X[1:], narrow),
        _ops.sparse_linear_grad_values(grad, *X[1:], wide),
    )


def test_bfloat16_weight_has_no_gradient(generator):
    X = random_csr(generator, [2], 5)
    weight = torch.zeros(5, 3, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(TypeError, match=r"sparse_linear: weight must be float32 or float64 to be trained"):
        F.sparse_linear(*X, weight)
    with torch.no_grad():
        assert F.sparse_linear(*X, weight).shape == (1, 3)


# --------------------------------------------------------------------------------- determinism, big, opcheck


@parametrize_dtype
def test_deterministic(generator, dtype):
    """One huge row among short ones, columns and rows split over threads."""
    X = random_csr(generator, [900, *([3, 0, 7] * 20)], 1000, dtype)
    weight, bias = weights(generator, 2, 1000, 530, dtype)
    grad = uniform(generator, 61, 2, 530, dtype=dtype)
    assert_deterministic(
        lambda: (
            _ops.sparse_linear(*X, weight, bias, True),
            _ops.sparse_linear_grad_values(grad, *X[1:], weight),
            _ops.sparse_linear_grad_weight(grad, *X, 1000),
            *_ops.sparse_linear_grad_rows(grad, *X, 1000),
        )
    )


def test_rows_do_not_depend_on_their_batch(device, generator):
    """A document has the same bits alone and among others."""
    X = Csr(*to(device, random_csr(generator, [60, 0, 5, 31], 80)))
    weight, bias = (t[0].to(device) for t in weights(generator, 1, 80, 700, torch.float32))
    together = F.sparse_linear(*X, weight, bias)
    for n in range(4):
        at = slice(int(X.indptr[n]), int(X.indptr[n + 1]))
        alone = torch.tensor([0, at.stop - at.start], device=device)
        assert bitwise_equal(
            F.sparse_linear(X.values[at], X.indices[at], alone, weight, bias), together[n : n + 1]
        )


def test_weight_past_2_to_the_31_elements():
    """Offsets are 64 bits even for 32-bit indices. The zeros are mapped, never touched."""
    M = 64
    D = 2**31 // M + 5
    try:
        weight = torch.from_numpy(np.zeros((D, M), dtype=np.int16)).view(torch.bfloat16)
    except MemoryError:
        pytest.skip("4 GiB of address space are not to be had")
    weight[D - 1] = torch.arange(M)
    X = Csr(torch.tensor([2.0, 5.0]), torch.tensor([D - 1, 0], dtype=torch.int32), torch.tensor([0, 2]))
    assert torch.equal(F.sparse_linear(*X, weight)[0], 2.0 * torch.arange(M))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
def test_opcheck(device, generator, dtype):
    value = torch.float32 if dtype == torch.bfloat16 else dtype
    X = to(device, random_csr(generator, [2, 0, 3], 7, value))
    weight, bias = to(device, weights(generator, 2, 7, 5, dtype))
    grad = uniform(generator, 3, 2, 5, dtype=value).to(device)
    ops = torch.ops.mach_ext
    for b in (bias.to(value), None):
        torch.library.opcheck(ops.sparse_linear, (*X, weight, b, True))
        torch.library.opcheck(ops.sparse_linear, (*X, weight[0], None if b is None else b[0], True))
    torch.library.opcheck(ops.sparse_linear_grad_values, (grad, *X[1:], weight))
    torch.library.opcheck(ops.sparse_linear_grad_weight, (grad, *X, 7))
    torch.library.opcheck(ops.sparse_linear_grad_rows, (grad, *X, 7))
    if device.type == "cpu":
        torch.library.opcheck(ops.feature_order, (*X[1:], 7))
        order = list(_ops.feature_order(*X[1:], 7))
        torch.library.opcheck(ops.sparse_linear, (*X, weight, bias.to(value), True, order, True))
        torch.library.opcheck(ops.sparse_linear_grad_rows, (grad, *X, 7, order))
    # check_csr and cpu_isa return Python integers that depend on the data: no fake kernel can, so no opcheck.


# --------------------------------------------------------------------------------------------- bad contents

OUT_OF_RANGE = [-1, 6, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("wrong", OUT_OF_RANGE)
@pytest.mark.parametrize("index", INTS)
def test_unvalidated_index_out_of_range_is_nan(device, generator, wrong, index):
    """Only its document's outputs; no gradient from it; nothing read or written out of bounds."""
    X = random_csr(generator, [3, 3, 0, 3], 6, torch.float64, index)
    X.indices[4] = wrong
    weight = uniform(generator, 6, 5)
    values, weight = (t.requires_grad_() for t in to(device, (X.values, weight)))
    indices, indptr = to(device, X[1:])
    for activation in (None, "relu"):
        out = F.sparse_linear(values, indices, indptr, weight, None, activation, validate=False)
        assert out[1].isnan().all()
        assert not out[[0, 2, 3]].isnan().any()

    grad = uniform(generator, 4, 1, 5).to(device)
    kept = torch.arange(9, device=device) != 4
    fewer = indptr - (indptr > 4).to(indptr.dtype)
    with torch.no_grad():
        args = (values[kept], indices[kept], fewer)
        expected = _ops.sparse_linear_grad_weight(grad, *args, 6)
        assert bitwise_equal(_ops.sparse_linear_grad_weight(grad, values, indices, indptr, 6), expected)
        rows, _ = _ops.sparse_linear_grad_rows(grad, values, indices, indptr, 6)
        assert torch.equal(rows, torch.unique(indices[kept].long()))
        assert _ops.sparse_linear_grad_values(grad, indices, indptr, weight[None])[4] == 0


@pytest.mark.parametrize("indptr", [[5, 2, 9, 4], [-7, 2, 2, 3], [0, 2**31 - 1, 1, 6], [3, 3, 3, 3]], ids=str)
@pytest.mark.parametrize("pointer", INTS)
def test_unvalidated_indptr_stays_inside(device, generator, indptr, pointer):
    X = random_csr(generator, [6], 9)
    indptr = torch.tensor(indptr, dtype=pointer, device=device)
    values, indices = to(device, X[:2])
    weight = uniform(generator, 1, 9, 20, dtype=torch.float32).to(device)
    grad = torch.ones(3, 1, 20, device=device)
    assert _ops.sparse_linear(values, indices, indptr, weight, None, False).shape == (3, 1, 20)
    assert _ops.sparse_linear_grad_weight(grad, values, indices, indptr, 9).shape == (1, 9, 20)
    assert _ops.sparse_linear_grad_rows(grad, values, indices, indptr, 9)[0].numel() <= 6
    assert _ops.sparse_linear_grad_values(grad, indices, indptr, weight).shape == (6,)


def fenced(t):
    """The same values between others: NaN, or no index of anything."""
    larger = t.new_full((len(t) + 16, *t.shape[1:]), float("nan") if t.is_floating_point() else 2**29)
    larger[8:-8] = t
    return larger[8:-8]


def fence_stands(t):
    fence = torch.cat((t._base[:8], t._base[-8:]))
    return bool(fence.isnan().all() if t.is_floating_point() else (fence == 2**29).all())


GARBAGE = [-1, 0, 1, 5, 7, 2**31, -(2**40), 2**62]


@pytest.mark.parametrize("seed", range(4))
def test_cuda_kernels_stay_inside_whatever_the_indices_say(device, operators, seed):
    """Documents and orders of garbage: nothing beside the tensors is read (it is NaN) or written. The CPU
    refuses such an order."""
    generator = torch.Generator().manual_seed(seed)

    def garbage(*shape):
        return torch.tensor(GARBAGE)[torch.randint(len(GARBAGE), shape, generator=generator)]

    R, D, M, N, nnz = 2, 6, 20, 5, 40
    values = fenced(uniform(generator, nnz, dtype=torch.float32).to(device))
    indices, indptr = (fenced(garbage(n).to(device)) for n in (nnz, N + 1))
    weight, grad = (
        fenced(uniform(generator, *shape, dtype=torch.float32).to(device)) for shape in ((R, D, M), (N, R, M))
    )
    in_range = fenced(torch.randint(D, (nnz,), generator=generator).to(device))
    for each in (indices, in_range):
        out = _ops.sparse_linear(values, each, indptr, weight, None, False)
        assert (
            not out[out.isnan().all(2).logical_not()].isnan().any()
        )  # documents of garbage are NaN as a whole
        assert _ops.sparse_linear_grad_values(grad, each, indptr, weight).isfinite().all()
        assert _ops.sparse_linear_grad_weight(grad, values, each, indptr, D).isfinite().all()
        assert _ops.sparse_linear_grad_rows(grad, values, each, indptr, D)[1].isfinite().all()
    assert _ops.sparse_linear(values, in_range, indptr, weight, None, False).isfinite().all()

    U, E = 7, 30
    order = _ops.FeatureOrder(*(fenced(garbage(n).to(device)) for n in (U, U + 1, E, E)))
    moments = [fenced(torch.ones_like(weight)) for _ in range(2)]
    if operators == "cpu":
        with pytest.raises(RuntimeError, match="sparse_linear_adam: order is not of this batch"):
            _ops.sparse_linear_adam(weight, *moments, grad, values, order, 0.1, 0.9, 0.99, 1e-8)
        return
    # A feature twice in an order is stepped by two warps at once: no bits to compare.
    order = order._replace(features=fenced(torch.tensor([-3, 0, 4, 2**40, 5, 1, 6], device=device)))
    _ops.sparse_linear_adam(weight, *moments, grad, values, order, 0.1, 0.9, 0.99, 1e-8)
    for t in (weight, *moments):
        assert t.isfinite().all()
        assert fence_stands(t)
    for op in (_ops.sparse_linear_grad_weight, lambda *t: _ops.sparse_linear_grad_rows(*t)[1]):
        assert op(grad, values, in_range, indptr, D, order).isfinite().all()


X = Csr(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 1]), torch.tensor([0, 2, 3]))
WEIGHT, BIAS = torch.ones(4, 5), torch.ones(5)
CONTENTS = {
    "indptr[0] must be 0, got 1": X._replace(indptr=torch.tensor([1, 2, 3])),
    "indptr must not decrease, got 4 then 3 at row 1": X._replace(indptr=torch.tensor([0, 4, 3])),
    "indptr must end at the number of non-zeros 3, got 2": X._replace(indptr=torch.tensor([0, 2, 2])),
    "indices[1] (row 0) must be in [0, D=4), got 4": X._replace(indices=torch.tensor([0, 4, 1])),
    "indices[2] (row 1) must be in [0, D=4), got -1": X._replace(indices=torch.tensor([0, 2, -1])),
    "a feature must occur once in a row, got feature 2 twice in row 0": X._replace(
        indices=torch.tensor([2, 2, 1])
    ),
    "values must be finite, got nan at values[1] (row 0)": X._replace(
        values=torch.tensor([1.0, float("nan"), 3.0])
    ),
    "values must be finite, got -inf at values[2] (row 1)": X._replace(
        values=torch.tensor([1.0, 2.0, -float("inf")])
    ),
}


@pytest.mark.parametrize(("message", "bad"), CONTENTS.items(), ids=CONTENTS)
@pytest.mark.parametrize("index", INTS)
def test_contents_are_checked(message, bad, index):
    values, indices, indptr = bad
    for pointer, needs_grad in itertools.product(INTS, (False, True)):
        weight = WEIGHT.clone().requires_grad_(needs_grad)
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
            F.sparse_linear(values, indices.to(index), indptr.to(pointer), weight)
        assert str(error.value) == f"sparse_linear: {message}"
        assert error.value.__context__ is None  # nothing about how it was found


@pytest.mark.parametrize("bad", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("M", [5, 0])
def test_raw_op_checks_contents_where_asked(bad, M):
    assert torch.equal(_ops.sparse_linear(*X, WEIGHT, BIAS, False, check=True), torch.full((2, 5), 4.0))
    assert _ops.sparse_linear(*bad, WEIGHT[:, :M], None, False).shape == (2, M)
    with pytest.raises(RuntimeError, match="sparse_linear: documents at fault"):
        _ops.sparse_linear(*bad, WEIGHT[:, :M], None, False, check=True)


def test_what_the_operator_alone_refuses_is_raised_as_it_came(monkeypatch):
    """Say, memory that is not to be had: no fault of the arguments."""

    def fail(*args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(_ops, "sparse_linear_now", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        F.sparse_linear(*X, WEIGHT)


def test_duplicates_are_found_in_unsorted_rows(generator):
    """And only duplicates: unsorted unique rows pass, the same feature in two rows passes."""
    indices = torch.randperm(50, generator=generator)
    values, indptr = torch.ones(100), torch.tensor([0, 50, 100])
    weight = torch.ones(50, 1)
    F.sparse_linear(values, indices.repeat(2), indptr, weight)
    indices = indices.repeat(2)
    indices[90] = indices[63]
    with pytest.raises(ValueError, match=f"got feature {indices[63]} twice in row 1"):
        F.sparse_linear(values, indices, indptr, weight)


ARGUMENTS = [
    (TypeError, r"values must be a torch.Tensor, got list", {"values": [1.0, 2.0, 3.0]}),
    (TypeError, r"values must be float32 or float64, got float16", {"values": X.values.half()}),
    (TypeError, r"indices must be int32 or int64, got float32", {"indices": X.indices.float()}),
    (TypeError, r"indptr must be int32 or int64, got int16", {"indptr": X.indptr.short()}),
    (TypeError, r"weight must be float32 or bfloat16, got float64", {"weight": WEIGHT.double()}),
    (
        TypeError,
        r"weight must be float64, got bfloat16",
        {"values": X.values.double(), "weight": WEIGHT.bfloat16()},
    ),
    (TypeError, r"bias must be float32 or bfloat16, got int64", {"bias": BIAS.long()}),
    (TypeError, r"bias must be float32 or bfloat16, got float64", {"bias": BIAS.double()}),
    (TypeError, r"weight must be a torch.Tensor, got ndarray", {"weight": WEIGHT.numpy()}),
    (ValueError, r"values must have 1 dimension\(s\), got shape \[3, 1\]", {"values": X.values[:, None]}),
    (ValueError, r"indices must have 1 dimension\(s\), got shape \[3, 1\]", {"indices": X.indices[:, None]}),
    (ValueError, r"indptr must have 1 dimension\(s\), got shape \[1, 3\]", {"indptr": X.indptr[None]}),
    (ValueError, r"weight must have 2 dimension\(s\), got shape \[1, 4, 5\]", {"weight": WEIGHT[None]}),
    (ValueError, r"values and indices must have the same length, got 2 and 3", {"values": X.values[:2]}),
    (ValueError, r"indptr must have N \+ 1 >= 1 entries, got 0", {"indptr": X.indptr[:0]}),
    (ValueError, r"bias must have shape \[5\], got \[4\]", {"bias": BIAS[:4]}),
    (ValueError, r'activation must be None or "relu", got \'gelu\'', {"activation": "gelu"}),
    (ValueError, r"weight must be on cpu like the other arguments, got meta", {"weight": WEIGHT.to("meta")}),
    (ValueError, r"bias must be on cpu like the other arguments, got meta", {"bias": BIAS.to("meta")}),
    (
        ValueError,
        r"indices must be on cpu like the other arguments, got meta",
        {"indices": X.indices.to("meta")},
    ),
]


@pytest.mark.parametrize(("error", "message", "wrong"), ARGUMENTS, ids=[a[1] for a in ARGUMENTS])
@pytest.mark.parametrize("validate", [True, False])
def test_errors(error, message, wrong, validate):
    with pytest.raises(error, match=f"^sparse_linear: {message}"):
        F.sparse_linear(**{**X._asdict(), "weight": WEIGHT, "bias": BIAS, **wrong}, validate=validate)


def test_raw_op_refuses_what_would_leave_its_arrays():
    """The C++ checks behind the Python ones: a raw call with the wrong shape or dtype raises, not crashes."""
    ops, weight, grad = torch.ops.mach_ext, WEIGHT[None], torch.ones(2, 1, 5)
    with pytest.raises(RuntimeError, match=r"sparse_linear: indices must have shape \[3\], got \[2\]"):
        ops.sparse_linear(X.values, X.indices[:2], X.indptr, weight, None, False)
    with pytest.raises(RuntimeError, match=r"sparse_linear: values must have shape \[3\], got \[3, 1\]"):
        ops.sparse_linear(X.values[:, None], *X[1:], weight, None, False)
    with pytest.raises(RuntimeError, match=r"sparse_linear: bias must have shape \[1, 5\], got \[5\]"):
        ops.sparse_linear(*X, weight, BIAS, False)
    with pytest.raises(RuntimeError, match=r"sparse_linear: bias must have shape \[5\], got \[1, 5\]"):
        ops.sparse_linear(*X, weight[0], BIAS[None], False)
    with pytest.raises(RuntimeError, match=r"sparse_linear: weight must be \[R, D, M\] or \[D, M\]"):
        ops.sparse_linear(*X, weight[0, 0], None, False)
    with pytest.raises(RuntimeError, match=r"sparse_linear: weight must be Double, got Float"):
        ops.sparse_linear(X.values.double(), *X[1:], weight, None, False)
    with pytest.raises(RuntimeError, match=r"sparse_linear_grad_values: grad must have shape \[2, 1, 5\]"):
        ops.sparse_linear_grad_values(grad[:1], *X[1:], weight)
    for op in (ops.sparse_linear_grad_weight, ops.sparse_linear_grad_rows):
        with pytest.raises(RuntimeError, match=r"sparse_linear_grad_\w+: grad must be \[N, R, M\]"):
            op(grad[:1], *X, 4)
        with pytest.raises(RuntimeError, match=r"sparse_linear_grad_\w+: values must be Double, got Float"):
            op(grad.double(), *X, 4)


@pytest.mark.parametrize(
    ("field", "entry", "wrong"),
    [(0, 0, -1), (0, 2, 4), (0, 1, 0), (1, 0, 1), (1, 1, 3), (1, 3, 9), (2, 0, 3), (2, 1, -1), (3, 0, 2)],
)
def test_raw_op_refuses_an_order_of_another_batch(field, entry, wrong):
    order = [t.clone() for t in _ops.feature_order(*X[1:], 4)]
    order[field][entry] = wrong
    ops, grad = torch.ops.mach_ext, torch.ones(2, 1, 5)
    for call in (
        lambda: ops.sparse_linear(*X, WEIGHT[None], None, False, order),
        lambda: ops.sparse_linear_grad_rows(grad, *X, 4, order),
        lambda: ops.sparse_linear_adagrad(
            WEIGHT[None].clone(), WEIGHT[None].clone(), grad, X[0], order, 0.1, 0.0
        ),
    ):
        with pytest.raises(RuntimeError, match=r"sparse_linear\w*: order is not of this batch"):
            call()
    with pytest.raises(
        RuntimeError, match=r"sparse_linear: order must be \(features, offsets, positions, docu"
    ):
        ops.sparse_linear(*X, WEIGHT[None], None, False, order[:3])
    with pytest.raises(RuntimeError, match=r"sparse_linear: order must be Long, got Int"):
        ops.sparse_linear(*X, WEIGHT[None], None, False, [t.int() for t in order])
