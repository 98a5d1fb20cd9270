"""sparse_linear: documents in CSR times a dense weight, its gradients, its edges."""

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
    weights,
)
from hypothesis import given
from hypothesis import strategies as st

from mach_ext import _ops, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")


SIZES = st.sampled_from([0, 1, 2, 15, 16, 17, 40])


parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


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
