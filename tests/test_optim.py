"""Sparse optimisers against torch's own, row by row; rows that did not occur must not change by a bit."""

import copy

import numpy as np
import pytest
import torch
from helpers import (
    FLOATS,
    assert_deterministic,
    bitwise_equal,
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
from mach_ext.optim import SparseAdagrad, SparseAdam

pytestmark = pytest.mark.usefixtures("one_thread")
OURS = {"adam": SparseAdam, "adagrad": SparseAdagrad}
parametrize_optimizer = pytest.mark.parametrize("name", OURS)
parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
STATE = {"adam": ("exp_avg", "exp_avg_sq"), "adagrad": ("sum",)}
OPTIONS = {
    "adam": {"lr": 0.05, "betas": (0.8, 0.97), "eps": 1e-6},
    "adagrad": {"lr": 0.05, "initial_accumulator_value": 0.1, "eps": 1e-6},
}
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 2e-5, "atol": 1e-6}}


def make(name, parameters, **options):
    return OURS[name](parameters, **(options or OPTIONS[name]))


def coo(shape, rows, values):
    """Sparse gradient with sparse dimensions rows.shape[0]."""
    return torch.sparse_coo_tensor(rows, values, shape, check_invariants=True)


def random_gradient(generator, shape, dtype, device="cpu"):
    """Sparse over the first dimension [P, M], or over the first two [R, D, B]; half of the rows."""
    leading = shape[: len(shape) - 1]
    rows = (torch.rand(leading, generator=generator) < 0.5).nonzero().T
    return coo(shape, rows, uniform(generator, rows.shape[1], shape[-1], dtype=dtype)).coalesce().to(device)


# ------------------------------------------------------------------------------------------------ raw ops


@parametrize_dtype
@parametrize_optimizer
def test_raw_op_matches_reference(device, name, dtype):
    @given(
        P=st.integers(0, 9),
        M=st.sampled_from([0, 1, 7, 16, 33]),
        every=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def check(P, M, every, seed):
        generator = torch.Generator().manual_seed(seed)
        rows = None if every else (torch.rand(P, generator=generator) < 0.5).nonzero()[:, 0]
        gradient = uniform(generator, P if every else len(rows), M, dtype=dtype)
        changed = [uniform(generator, P, M, dtype=dtype)]
        changed += [uniform(generator, P, M, dtype=dtype).abs() for _ in STATE[name]]
        numbers = (0.05, 0.9, 0.99, 1e-6) if name == "adam" else (0.05, 1e-6)
        op, twin = (getattr(module, f"sparse_{name}") for module in (_ops, _reference))
        ours = [t.clone().to(device) for t in changed]
        expected = [t.clone().double() for t in changed]
        op(ours[0], *to(device, (rows, gradient)), *ours[1:], *numbers)
        twin(expected[0], rows, gradient.double(), *expected[1:], *numbers)
        for a, b, before in zip(ours, expected, changed, strict=True):
            torch.testing.assert_close(a.cpu().double(), b, **TOLERANCE[dtype])
            if rows is not None:
                untouched = torch.ones(P, dtype=torch.bool)
                untouched[rows] = False
                assert bitwise_equal(a.cpu()[untouched], before[untouched])

    check()


@parametrize_dtype
def test_opcheck(device, generator, dtype):
    tensors = [uniform(generator, 5, 3, dtype=dtype).abs().to(device) for _ in range(3)]
    gradient, rows = uniform(generator, 2, 3, dtype=dtype).to(device), torch.tensor([1, 4], device=device)
    for at, g in ((rows, gradient), (None, uniform(generator, 5, 3, dtype=dtype).to(device))):
        args = (tensors[0], at, g, tensors[1], tensors[2], 0.1, 0.9, 0.99, 1e-8)
        torch.library.opcheck(torch.ops.mach_ext.sparse_adam, args)
        torch.library.opcheck(torch.ops.mach_ext.sparse_adagrad, (tensors[0], at, g, tensors[1], 0.1, 1e-8))


def test_raw_op_passes_over_rows_out_of_range(device):
    parameter, moments = torch.ones(3, 2, device=device), torch.zeros(3, 2, device=device)
    rows = torch.tensor([-1, 1, 3, 2**40], device=device)
    _ops.sparse_adagrad(parameter, rows, torch.ones(4, 2, device=device), moments, 0.5, 0.0)
    assert parameter.tolist() == [[1, 1], [0.5, 0.5], [1, 1]]
    assert moments.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_raw_op_refuses_what_would_leave_its_arrays():
    op, p, rows = torch.ops.mach_ext.sparse_adagrad, torch.ones(3, 2), torch.tensor([0])
    with pytest.raises(
        RuntimeError, match=r"sparse_adagrad: gradient must have shape \[1, 2\], got \[3, 2\]"
    ):
        op(p, rows, p, p.clone(), 0.1, 0.0)
    with pytest.raises(RuntimeError, match=r"sparse_adagrad: state must have shape \[3, 2\], got \[2, 2\]"):
        op(p, rows, p[:1], p[:2].clone(), 0.1, 0.0)
    with pytest.raises(RuntimeError, match=r"sparse_adagrad: gradient must be Float, got Double"):
        op(p, rows, p[:1].double(), p.clone(), 0.1, 0.0)
    with pytest.raises(RuntimeError, match=r"sparse_adagrad: rows must be Long, got Int"):
        op(p, rows.int(), p[:1], p.clone(), 0.1, 0.0)
    with pytest.raises(RuntimeError, match=r"sparse_adagrad: parameter must be contiguous \[P, M\]"):
        op(torch.ones(2, 3).T, rows, p[:1], p.clone(), 0.1, 0.0)


# ----------------------------------------------------------------------- gradient and step of a row at once

NUMBERS = {"adam": (0.05, 0.9, 0.99, 1e-6), "adagrad": (0.05, 1e-6)}


@parametrize_dtype
@parametrize_optimizer
@pytest.mark.parametrize("R", [1, 3])
def test_fused_row_step_is_gradient_then_step(generator, name, dtype, R):
    """To the bit, on any number of threads; near its twin; other rows untouched."""
    D, M, rows = 400, 37, [0, 200, 3, 150, 1] * 8
    X = random_csr(generator, rows, 300, dtype)
    order = _ops.feature_order(*X[1:], D)
    grad = uniform(generator, len(rows), R, M, dtype=dtype)
    start = [uniform(generator, R, D, M, dtype=dtype).abs() for _ in range(1 + len(STATE[name]))]

    def step(module, dtype=dtype):
        tensors = [t.clone().to(dtype) for t in start]
        op = getattr(module, f"sparse_linear_{name}")
        op(*tensors, grad.to(dtype), X.values.to(dtype), order, *NUMBERS[name])
        return tuple(tensors)

    assert_deterministic(lambda: step(_ops))
    features, gradient = _ops.sparse_linear_grad_rows(grad, *X, D)
    expected = [t.clone() for t in start]
    for r in range(R):
        parameter, *moments = (t[r] for t in expected)
        getattr(_ops, f"sparse_{name}")(parameter, features, gradient[r], *moments, *NUMBERS[name])
    for ours, separate, twin in zip(step(_ops), expected, step(_reference, torch.float64), strict=True):
        assert bitwise_equal(ours, separate)
        torch.testing.assert_close(ours.double(), twin, **TOLERANCE[dtype])


@parametrize_dtype
def test_opcheck_of_the_fused_step(generator, dtype):
    X = random_csr(generator, [2, 0, 3], 7, dtype)
    weight, first, second = (uniform(generator, 2, 7, 5, dtype=dtype).abs() for _ in range(3))
    grad, order = uniform(generator, 3, 2, 5, dtype=dtype), list(_ops.feature_order(*X[1:], 7))
    ops = torch.ops.mach_ext
    args = (weight, first, second, grad, X.values, order, *NUMBERS["adam"])
    torch.library.opcheck(ops.sparse_linear_adam, args)
    args = (weight, second, grad, X.values, order, *NUMBERS["adagrad"])
    torch.library.opcheck(ops.sparse_linear_adagrad, args)


def test_fused_step_refuses_what_would_leave_its_arrays(generator):
    X, op = random_csr(generator, [2, 0, 3], 7), torch.ops.mach_ext.sparse_linear_adagrad
    order, weight, grad = list(_ops.feature_order(*X[1:], 7)), torch.ones(2, 7, 5), torch.ones(3, 2, 5)

    def call(weight=weight, state=weight, grad=grad, values=X.values):
        op(weight.clone(memory_format=torch.preserve_format), state, grad, values, order, 0.1, 0.0)

    for message, wrong in {
        r"grad must have shape \[3, 2, 5\], got \[3, 2, 4\]": {"grad": grad[..., :4]},
        r"grad must be \[N, R, M\]": {"grad": grad[0]},
        r"order's? .*not of this batch": {"grad": grad[:2]},
        r"order is not of this batch": {"values": X.values[:4]},
        r"values must be Float, got Double": {"values": X.values.double()},
        r"state must have shape \[2, 7, 5\], got \[1, 7, 5\]": {"state": weight[:1]},
        r"state must be contiguous": {"state": torch.ones(5, 7, 2).permute(2, 1, 0)},
        r"weight must be contiguous \[R, D, M\]": {"weight": torch.ones(5, 7, 2).permute(2, 1, 0)},
    }.items():
        message = message.replace("order's? .*", "order is ")
        with pytest.raises(RuntimeError, match=f"sparse_linear_adagrad: {message}"):
            call(**wrong)


@parametrize_optimizer
@pytest.mark.parametrize("shape", [(90, 17), (3, 90, 17)], ids=str)
def test_a_step_in_pieces_is_the_step(generator, name, shape):
    """To the bit: rows of a sparse_linear's weight, repetitions and ranges of a dense parameter."""
    X, R = random_csr(generator, [3, 0, 80, 21], 90), shape[0] if len(shape) == 3 else 1
    order = _ops.feature_order(*X[1:], 90)
    start = [uniform(generator, *s, dtype=torch.float32) for s in (shape, (4, 6, 5), (7,))]
    whole, pieces = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimizers = make(name, whole), make(name, [*pieces, frozen])
    for last in (2, np.int64(2), slice(2, 3)):
        grad = uniform(generator, 4, R, 17, dtype=torch.float32)
        dense = uniform(generator, 4, 6, 5, dtype=torch.float32)
        vector = uniform(generator, 7, dtype=torch.float32)
        weight = _ops.sparse_linear_grad_weight(grad, *X, 90).view(shape).to_sparse(len(shape) - 1)
        whole[0].grad, whole[1].grad, whole[2].grad = weight, dense, vector
        optimizers[0].step()
        optimizers[1].begin_step()
        if len(shape) == 2:
            optimizers[1].step_sparse_linear(pieces[0], None, grad, X.values, order)
        else:
            for r, at in ((last, slice(2, 3)), (slice(0, 2), slice(0, 2))):
                optimizers[1].step_sparse_linear(pieces[0], r, grad[:, at], X.values, order)
        for at in (0, 2, slice(3, 4), 1):
            optimizers[1].step_rows(pieces[1], at, dense[at])
        optimizers[1].step_rows(pieces[2], slice(None), vector)
        for a, b in zip(whole, pieces, strict=True):
            assert bitwise_equal(a, b)
    for a, b in zip(whole, pieces, strict=True):
        state, expected = optimizers[1].state[b], optimizers[0].state[a]
        assert state.keys() == expected.keys()
        assert all(bitwise_equal(state[key], expected[key]) for key in STATE[name])
        assert state.get("step") == expected.get("step")
    assert frozen not in optimizers[1].state


@parametrize_optimizer
def test_pieces_want_a_step_begun(name):
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = make(name, [parameter])
    with pytest.raises(ValueError, match=r"call begin_step\(\) first"):
        optimizer.step_rows(parameter, 0, torch.ones(3))
    optimizer.begin_step()
    with pytest.raises(ValueError, match="pass parameters of this optimiser only"):
        optimizer.step_rows(torch.nn.Parameter(torch.ones(2, 3)), 0, torch.ones(3))
    with pytest.raises(TypeError, match=r"got torch\.float32 and torch\.float64"):
        optimizer.step_rows(parameter, 0, torch.ones(3).double())


# --------------------------------------------------------------------------------------- against torch's own


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # torch's own Adagrad
@parametrize_dtype
@parametrize_optimizer
def test_sparse_steps_equal_torch(device, generator, name, dtype):
    """Ten steps; the rows differ from step to step, and a step without any is among them."""
    start = uniform(generator, 20, 9, dtype=dtype).to(device)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    torch_class = {"adam": torch.optim.SparseAdam, "adagrad": torch.optim.Adagrad}[name]
    optimizers = make(name, [ours]), torch_class([theirs], **OPTIONS[name])
    for step in range(10):
        gradient = random_gradient(generator, (20, 9), dtype, device)
        if step == 4:
            gradient = coo((20, 9), torch.empty(1, 0, dtype=torch.int64), torch.empty(0, 9, dtype=dtype)).to(
                device
            )
        ours.grad, theirs.grad = gradient, gradient.coalesce()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])
    assert not torch.allclose(ours, start, atol=1e-3)
    for key in STATE[name]:
        a, b = (o.state[p][key] for o, p in zip(optimizers, (ours, theirs), strict=True))
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@parametrize_dtype
def test_dense_adagrad_equals_torch(device, generator, dtype):
    start = uniform(generator, 6, 5, dtype=dtype).to(device)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = make("adagrad", [ours]), torch.optim.Adagrad([theirs], **OPTIONS["adagrad"])
    for _ in range(5):
        ours.grad = theirs.grad = uniform(generator, 6, 5, dtype=dtype).to(device)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])


@parametrize_optimizer
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (7,), ()], ids=str)
def test_dense_gradient_is_every_row(device, generator, name, shape):
    """The same bits as a sparse gradient that names every row, whatever the strides of the dense one."""
    start = uniform(generator, *shape, dtype=torch.float32).to(device)
    rows, length = start.numel() // (shape[-1] if len(shape) > 1 else 1), shape[-1] if len(shape) > 1 else 1
    dense, sparse = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.reshape(rows, length).clone())
    optimizers = make(name, [dense]), make(name, [sparse])
    for _ in range(3):
        gradient = uniform(generator, *shape, dtype=torch.float32).to(device)
        dense.grad = strided(gradient)
        sparse.grad = coo(
            (rows, length), torch.arange(rows, device=device)[None], gradient.reshape(rows, length)
        )
        for optimizer in optimizers:
            optimizer.step()
        assert bitwise_equal(dense.reshape(rows, length), sparse)


# ---------------------------------------------------------------------------------------------- which rows


@parametrize_optimizer
@pytest.mark.parametrize("shape", [(20, 9), (3, 7, 5)], ids=str)
def test_untouched_rows_keep_their_bits(device, generator, name, shape):
    parameter = torch.nn.Parameter(uniform(generator, *shape, dtype=torch.float32).to(device))
    optimizer = make(name, [parameter])
    for _ in range(4):
        gradient = random_gradient(generator, shape, torch.float32, device)
        state = optimizer.state[parameter]
        watched = [parameter, *(state[key] for key in STATE[name] if key in state)]
        before = [t.detach().clone() for t in watched]
        parameter.grad = gradient
        optimizer.step()
        untouched = torch.ones(shape[:-1], dtype=torch.bool, device=device)
        untouched[tuple(gradient.indices())] = False
        assert untouched.any()
        for a, b in zip(watched, before, strict=True):
            assert bitwise_equal(a[untouched], b[untouched])
            assert not torch.isclose(a[~untouched], b[~untouched], rtol=0, atol=0).any()


@parametrize_optimizer
def test_three_dimensional_parameter_is_its_rows(device, generator, name):
    """[R, D, B] with gradients over (r, d) steps as the flattened [R * D, B]."""
    start = uniform(generator, 3, 7, 5, dtype=torch.float32).to(device)
    cube, flat = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.view(21, 5).clone())
    optimizers = make(name, [cube]), make(name, [flat])
    for _ in range(3):
        gradient = random_gradient(generator, (3, 7, 5), torch.float32, device)
        r, d = gradient.indices()
        cube.grad, flat.grad = gradient, coo((21, 5), (r * 7 + d)[None], gradient.values())
        for optimizer in optimizers:
            optimizer.step()
    assert bitwise_equal(cube.view(21, 5), flat)


@parametrize_optimizer
@pytest.mark.parametrize("shape", [(20, 9), (3, 7, 5)], ids=str)
def test_repeated_rows_are_summed(device, generator, name, shape):
    """Applied one after another they would give another result."""
    start = uniform(generator, *shape, dtype=torch.float64).to(device)
    once, twice = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = make(name, [once]), make(name, [twice])
    for _ in range(3):
        a, b = (random_gradient(generator, shape, torch.float64, device) for _ in range(2))
        repeated = coo(shape, torch.cat([b.indices(), a.indices()], 1), torch.cat([b.values(), a.values()]))
        once.grad, twice.grad = (a + b).coalesce(), repeated
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(twice, once)


@parametrize_optimizer
@pytest.mark.parametrize("how", ["two backward passes", "used twice", "linear MACH twice"])
def test_gradients_of_our_functions(device, generator, name, how):
    """sparse_grad=True through autograd's accumulation equals the sum by hand, as a dense gradient's rows."""
    X, Y = (to(device, random_csr(generator, [3, 0, 5], 40)) for _ in range(2))
    if how == "linear MACH twice":
        hash = random_hash(generator, 9, 4, 2, device)
        labels = to(device, random_csr(generator, [2, 1, 3], 9)[1:])
        start = uniform(generator, 2, 40, 4, dtype=torch.float32).to(device)

        def loss(X, weight, sparse):
            return F.linear_bucket_bce(*X, weight, None, *labels, hash, sparse)
    else:
        start = uniform(generator, 40, 6, dtype=torch.float32).to(device)

        def loss(X, weight, sparse):
            return F.sparse_linear(*X, weight, sparse_grad=sparse).square().sum()

    sparse, dense = torch.nn.Parameter(start.clone()), start.clone().requires_grad_()
    optimizer = make(name, [sparse])
    for x in (X, Y):
        loss(x, dense, False).backward()
    if how == "used twice":
        (loss(X, sparse, True) + loss(Y, sparse, True)).backward()
    else:
        for x in (X, Y):
            loss(x, sparse, True).backward()
    optimizer.step()

    occurred = torch.zeros(40, dtype=torch.bool, device=device)
    occurred[torch.cat([X[1], Y[1]])] = True
    twin = torch.nn.Parameter(start.clone())
    twin.grad = dense.grad
    make(name, [twin]).step()
    expected = torch.where(occurred[:, None], twin, start)
    torch.testing.assert_close(sparse.detach(), expected.detach())


@parametrize_optimizer
def test_no_gradient_and_no_rows(device, name):
    """A parameter without a gradient is left alone; a batch without non-zeros moves nothing."""
    used, unused = (torch.nn.Parameter(torch.ones(4, 3, device=device)) for _ in range(2))
    empty = torch.empty(0, device=device), torch.empty(0, dtype=torch.int64, device=device)
    F.sparse_linear(*empty, torch.tensor([0, 0], device=device), used, sparse_grad=True).sum().backward()
    optimizer = make(name, [used, unused])
    optimizer.step()
    assert used.tolist() == unused.tolist() == [[1.0] * 3] * 4
    assert unused not in optimizer.state


@parametrize_optimizer
def test_empty_parameters(name):
    for shape in ((0, 3), (3, 0), (0,)):
        parameter = torch.nn.Parameter(torch.ones(shape))
        parameter.grad = torch.ones(shape)
        make(name, [parameter]).step()


@parametrize_optimizer
def test_deterministic(generator, name):
    start = uniform(generator, 300, 100, dtype=torch.float32)
    gradients = [random_gradient(generator, (300, 100), torch.float32) for _ in range(2)]

    def run():
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make(name, [parameter])
        for parameter.grad in gradients:
            optimizer.step()
        return (parameter.detach(), *(optimizer.state[parameter][key] for key in STATE[name]))

    assert_deterministic(run)


# ---------------------------------------------------------------------------------- the Optimizer's contract


@parametrize_optimizer
def test_state_dict_round_trip(generator, name):
    """Stopped after two steps and resumed, it ends with the same bits."""
    gradients = [random_gradient(generator, (20, 9), torch.float32) for _ in range(5)]
    whole = torch.nn.Parameter(uniform(generator, 20, 9, dtype=torch.float32))
    optimizer = make(name, [whole])
    for step, whole.grad in enumerate(gradients):
        if step == 2:
            saved, weight = copy.deepcopy(optimizer.state_dict()), whole.detach().clone()
        optimizer.step()

    resumed = torch.nn.Parameter(weight)
    again = OURS[name]([resumed])  # its options come from the saved state
    again.load_state_dict(saved)
    for resumed.grad in gradients[2:]:
        again.step()
    assert bitwise_equal(resumed, whole)


@parametrize_optimizer
def test_groups_and_closure(name):
    slow, fast = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    optimizer = OURS[name]([{"params": [slow], "lr": 0.0}, {"params": [fast]}], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = slow.sum() + fast.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12
    assert slow.tolist() == [[1.0] * 3] * 2
    torch.testing.assert_close(fast.detach(), torch.full((2, 3), 0.5))


@parametrize_optimizer
def test_backward_through_a_weight_changed_since_is_refused(name):
    """As with torch's optimisers: a silent answer from the new weight would be wrong."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    values = torch.ones(1, requires_grad=True)
    out = F.sparse_linear(values, torch.tensor([1]), torch.tensor([0, 1]), weight, sparse_grad=True)
    out.sum().backward(retain_graph=True)
    make(name, [weight]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("make_optimizer", "message"),
    [
        (lambda p: SparseAdam(p, lr=-1), r"SparseAdam: lr must be in \[0, inf\), got -1"),
        (lambda p: SparseAdam(p, lr=float("nan")), r"SparseAdam: lr must be in \[0, inf\), got nan"),
        (lambda p: SparseAdam(p, eps=-1e-3), r"SparseAdam: eps must be in \[0, inf\), got -0.001"),
        (lambda p: SparseAdam(p, betas=(1.0, 0.9)), r"SparseAdam: beta1 must be in \[0, 1\), got 1.0"),
        (lambda p: SparseAdam(p, betas=(0.9, -0.1)), r"SparseAdam: beta2 must be in \[0, 1\), got -0.1"),
        (lambda p: SparseAdagrad(p, lr=float("inf")), r"SparseAdagrad: lr must be in \[0, inf\), got inf"),
        (lambda p: SparseAdagrad(p, eps=-1.0), r"SparseAdagrad: eps must be in \[0, inf\), got -1.0"),
        (
            lambda p: SparseAdagrad(p, initial_accumulator_value=-1.0),
            r"SparseAdagrad: initial_accumulator_value must be in \[0, inf\), got -1.0",
        ),
    ],
)
def test_option_errors(make_optimizer, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_optimizer([torch.nn.Parameter(torch.ones(2, 2))])


@parametrize_optimizer
def test_step_errors(name):
    parameter = torch.nn.Parameter(torch.ones(2, 3).T)
    parameter.grad = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"parameters must be contiguous, got strides \(1, 3\)"):
        make(name, [parameter]).step()
    parameter = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    parameter.grad = torch.ones(2, 3, dtype=torch.bfloat16)
    with pytest.raises(
        TypeError, match=r"must both be float32 or float64, got torch.bfloat16 and torch.bfloat16"
    ):
        make(name, [parameter]).step()
