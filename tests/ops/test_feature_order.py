"""feature_order: the non-zeros grouped by feature, and what takes such an order."""

import pytest
import torch
from helpers import (
    FLOATS,
    Csr,
    assert_deterministic,
    assert_matches,
    bitwise_equal,
    csr_batches,
    double,
    random_csr,
    to,
    uniform,
    weights,
)
from hypothesis import given
from hypothesis import strategies as st

from mach_ext import _ops, _reference

pytestmark = pytest.mark.usefixtures("one_thread")
parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


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
