"""sparse_linear: documents and arguments that are at fault, with and without validation."""

import itertools

import pytest
import torch
from helpers import (
    INTS,
    Csr,
    bitwise_equal,
    random_csr,
    to,
    uniform,
)

from mach_ext import _ops
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")


# check_csr and cpu_isa return Python integers that depend on the data: no fake kernel can, so no opcheck.
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
    """Documents and orders of garbage: nothing beside the tensors is read (it is NaN) or written.

    The CPU refuses such an order.
    """
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
