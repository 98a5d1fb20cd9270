"""bucket_backward: one repetition's gradients with the negligible entries as one rank-one matrix."""

import pytest
import torch
from helpers import FLOATS, assert_deterministic, assert_matches, bitwise_equal, strided, uniform
from hypothesis import given
from hypothesis import strategies as st

from mach_ext import _ops, _reference

parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def arguments(generator, N, H, B, dtype=torch.float32, kept=0.1):
    """Gradients as a loss leaves them: positives below 0, few large, most tiny."""
    draw = torch.rand(N, B, generator=generator, dtype=torch.float64)
    gradient = torch.where(draw < kept, draw / kept - 0.3, 1e-3 * draw).to(dtype)
    return gradient, uniform(generator, N, H, dtype=dtype), uniform(generator, H, B, dtype=dtype)


def run(op, gradient, hidden, weight, negligible=0.01, most=2**40, start=None):
    """-> kept, grad_hidden, grad_weight."""
    start = hidden.new_zeros(hidden.shape) if start is None else start.clone()
    grad_weight = torch.full_like(weight, float("nan"), memory_format=torch.contiguous_format)
    return op(gradient, hidden, weight, negligible, most, start, grad_weight), start, grad_weight


@parametrize_dtype
def test_matches_reference(dtype):
    @given(
        N=st.integers(1, 20),
        H=st.sampled_from([1, 4, 15, 16, 17, 40]),
        B=st.sampled_from([1, 2, 15, 16, 17, 64, 77]),
        kept=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        negligible=st.sampled_from([0.0, 2e-4, 0.01, 10.0]),
        seed=st.integers(0, 2**32),
    )
    def check(N, H, B, kept, negligible, seed):
        generator = torch.Generator().manual_seed(seed)
        tensors = arguments(generator, N, H, B, dtype, kept)
        start = uniform(generator, N, H, dtype=dtype)
        ours = run(_ops.bucket_backward, *tensors, negligible, start=start)
        # A float32 limit for both: an entry that equals it must fall on the same side.
        limit = torch.tensor(negligible, dtype=dtype).item()
        twin = run(_reference.bucket_backward, *(t.double() for t in tensors), limit, start=start.double())
        assert ours[0] == twin[0]
        for a, b in zip(ours[1:], twin[1:], strict=True):
            assert_matches(a, b)

    check()


@parametrize_dtype
def test_error_is_within_its_bound(generator, dtype):
    """Against exact products: grad_hidden off by 2 B t max |weight|, grad_weight by 2 N t max |hidden|."""
    N, H, B, negligible = 50, 20, 90, 8e-4
    gradient, hidden, weight = arguments(generator, N, H, B, dtype)
    kept, grad_hidden, grad_weight = run(_ops.bucket_backward, gradient, hidden, weight, negligible)
    assert 0 < kept < N * B / 2
    error_hidden = (grad_hidden - gradient @ weight.T).abs().max()
    error_weight = (grad_weight - hidden.T @ gradient).abs().max()
    assert 0 < error_hidden <= 2 * B * negligible * weight.abs().max()
    assert 0 < error_weight <= 2 * N * negligible * hidden.abs().max()


def test_no_gradient_is_lost():
    """What is replaced keeps its sum: with ones for weight and hidden, both products are sums of G."""
    gradient, hidden, weight = arguments(torch.Generator().manual_seed(0), 40, 16, 64, torch.float64, 0.0)
    ones = torch.ones_like(hidden), torch.ones_like(weight)
    kept, grad_hidden, grad_weight = run(_ops.bucket_backward, gradient, *ones)
    assert kept == 0
    torch.testing.assert_close(grad_hidden[:, 0], gradient.sum(1))  # by document
    torch.testing.assert_close(grad_weight[0], gradient.sum(0))  # by bucket


@parametrize_dtype
def test_without_negligible_entries_it_is_the_dense_product(generator, dtype):
    gradient, hidden, weight = arguments(generator, 9, 20, 33, dtype)
    for limit in (0.0, -1.0):
        kept, grad_hidden, grad_weight = run(_ops.bucket_backward, gradient, hidden, weight, limit)
        assert kept == gradient.numel()
        assert_matches(grad_hidden, gradient.double() @ weight.double().T)
        assert_matches(grad_weight, hidden.double().T @ gradient.double())


def test_too_many_kept_leave_everything_alone(generator):
    tensors = arguments(generator, 9, 20, 33)
    kept, _, _ = run(_ops.bucket_backward, *tensors)
    start = uniform(generator, 9, 20, dtype=torch.float32)
    for most, done in ((kept, True), (kept - 1, False)):
        again, grad_hidden, grad_weight = run(_ops.bucket_backward, *tensors, most=most, start=start)
        assert again == kept
        assert bitwise_equal(grad_hidden, start) != done
        assert grad_weight.isnan().all() != done


def test_strided_and_empty_arguments(generator):
    """One repetition of independent encoders is [N, H] in rows of R H."""
    gradient, hidden, weight = arguments(generator, 9, 20, 33)
    dense = run(_ops.bucket_backward, gradient, hidden, weight)
    wide, out = torch.zeros(9, 3, 20), torch.zeros(9, 3, 20)
    wide[:, 1] = hidden
    grad_weight = torch.empty_like(weight)
    _ops.bucket_backward(gradient, wide[:, 1], weight, 0.01, 2**40, out[:, 1], grad_weight)
    assert bitwise_equal(out[:, 1], dense[1])
    assert bitwise_equal(grad_weight, dense[2])
    assert not out[:, ::2].any()
    for a, b in zip(dense, run(_ops.bucket_backward, *map(strided, (gradient, hidden, weight))), strict=True):
        assert bitwise_equal(a, b)
    kept, grad_hidden, grad_weight = run(_ops.bucket_backward, gradient[:0], hidden[:0], weight)
    assert (kept, grad_hidden.shape) == (0, (0, 20))
    assert not grad_weight.any()


def test_nan_stays_visible(generator):
    gradient, hidden, weight = arguments(generator, 9, 20, 33)
    gradient[3, 5] = float("nan")
    _, grad_hidden, grad_weight = run(_ops.bucket_backward, gradient, hidden, weight)
    assert grad_hidden[3].isnan().all()
    assert grad_weight[:, 5].isnan().all()


@parametrize_dtype
def test_opcheck(generator, dtype):
    gradient, hidden, weight = arguments(generator, 5, 18, 33, dtype)
    outputs = torch.zeros_like(hidden), torch.zeros_like(weight)
    arguments_ = (gradient, hidden, weight, 0.01, 2**40, *outputs)
    torch.library.opcheck(torch.ops.mach_ext.bucket_backward, arguments_)


@parametrize_dtype
def test_deterministic(generator, dtype):
    tensors = arguments(generator, 60, 70, 700, dtype)
    assert_deterministic(lambda: run(_ops.bucket_backward, *tensors)[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.ones(3, 5)}, "hidden must have shape"),
        ({2: torch.ones(6, 7)}, "weight must have shape"),
        ({2: torch.ones(5, 7).double()}, "weight must be"),
        ({5: torch.ones(4, 6)}, "grad_hidden must have shape"),
        ({6: torch.ones(7, 5).T}, "grad_weight must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fitting = [
        torch.ones(4, 7),
        torch.ones(4, 5),
        torch.ones(5, 7),
        0.1,
        99,
        torch.ones(4, 5),
        torch.ones(5, 7),
    ]
    for at, value in change.items():
        fitting[at] = value
    with pytest.raises(RuntimeError, match=f"bucket_backward: {message}"):
        _ops.bucket_backward(*fitting)
