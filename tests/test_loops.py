"""Training loops that users write: stock optimisers, clipping, scaling, autocast, DistributedDataParallel."""

import contextlib
import os
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.nn.parallel import DistributedDataParallel

import mach_ext
from mach_ext import attack, certify, explain, optim
from mach_ext import functional as F

N, D, L, R, B = 48, 60, 80, 4, 16
SHAPES = {"linear": 0, "shared": 12, "two layers": (12, 10)}
X = scipy.sparse.random(N, D, density=0.2, format="csr", dtype="float32", random_state=0)
Y = scipy.sparse.csr_matrix((np.ones(N), (np.arange(N), np.arange(N) % L)), shape=(N, L))


def build(name="shared", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        return mach_ext.MACH(D, L, R, B, SHAPES[name], **options)


def batch(rows=slice(None)):
    x, y = X[rows], Y[rows]
    return tuple(map(torch.from_numpy, (x.data, x.indices, x.indptr, y.indices, y.indptr)))


def gradients(model):
    return [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()]


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ---------------------------------------------------------------------------------------------- stock loops


@pytest.mark.parametrize("name", SHAPES)
def test_adamw_and_clipping_take_the_loss_as_it_comes(name):
    model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = model(*batch())
        optimizer.zero_grad()
        loss.backward()
        assert not any(parameter.grad.is_sparse for parameter in model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", SHAPES)
def test_forward_with_labels_is_the_loss(name):
    model = build(name)
    assert torch.equal(model(*batch()), model.loss(*batch()))
    assert model(*batch()[:3]).shape == (N, R, B)
    for sparse_grad in (False, True):
        model.zero_grad()
        model(*batch(), sparse_grad=sparse_grad).backward()
        first = model.bucket_weight if name == "linear" else model.encoder_weight
        assert first.grad.is_sparse == sparse_grad
    values, indices, indptr, label_indices, label_indptr = batch()
    for half in ({"label_indices": label_indices}, {"label_indptr": label_indptr}):
        with pytest.raises(ValueError, match="MACH: label_indices and label_indptr must be given together"):
            model(values, indices, indptr, **half)


@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_accumulated_gradients_are_those_of_the_whole_batch(name, sparse_grad):
    model, whole = build(name), build(name)
    for first in range(0, N, 12):
        (model.loss(*batch(slice(first, first + 12)), sparse_grad=sparse_grad) / 4).backward()
    whole.loss(*batch()).backward()
    torch.testing.assert_close(gradients(model), gradients(whole))
    for each in (model, whole):
        optim.SparseAdagrad(each.parameters(), lr=0.1, eps=1e-3).step()
    torch.testing.assert_close(weights(model), weights(whole))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("make", [torch.optim.AdamW, optim.SparseAdam, optim.SparseAdagrad])
def test_grad_scaler(name, make):
    """A step with scaled gradients is the step without; one with an infinite gradient is left out."""
    sparse_grad = make is not torch.optim.AdamW
    model, plain = build(name), build(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [make(each.parameters(), lr=0.01) for each in (model, plain)]
    for _ in range(3):
        scaler.scale(model.loss(*batch(), sparse_grad=sparse_grad)).backward()
        scaler.unscale_(optimizers[0])
        optim.clip_grad_norm_(model.parameters(), 1e6)
        scaler.step(optimizers[0])
        scaler.update()
        plain.loss(*batch(), sparse_grad=sparse_grad).backward()
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(plain))
    before, scale = weights(model), scaler.get_scale()
    (scaler.scale(model.loss(*batch(), sparse_grad=sparse_grad)) * float("inf")).backward()
    scaler.step(optimizers[0])
    scaler.update()
    assert all(torch.equal(before[name], after) for name, after in weights(model).items())
    assert scaler.get_scale() == scale / 2


@pytest.mark.parametrize("name", SHAPES)
def test_torch_sparse_adam(name):
    """Of the weight that takes the documents; the other parameters have dense gradients."""
    model, other = build(name), build(name)
    for each, kind in ((model, torch.optim.SparseAdam), (other, optim.SparseAdam)):
        first = each.bucket_weight if name == "linear" else each.encoder_weight
        optimizer = kind([first], lr=0.01)
        for start in (0, 24):
            optimizer.zero_grad()
            each.loss(*batch(slice(start, start + 24)), sparse_grad=True).backward()
            optimizer.step()
    torch.testing.assert_close(weights(model), weights(other))


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
@pytest.mark.parametrize("name", SHAPES)
def test_torch_compile(name):
    model, plain = build(name), build(name)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    for each, wrapped in ((model, compiled), (plain, plain)):
        wrapped(*batch()).backward()
        assert wrapped(*batch()[:3]).shape == (N, R, B)
        each.eval()
    torch.testing.assert_close(gradients(model), gradients(plain))
    torch.compiler.reset()


# ------------------------------------------------------------------------------------------------- clipping


def with_repeated_rows(gradient):
    """As of a weight that is used twice."""
    indices, values = gradient._indices(), gradient._values()
    twice = torch.cat((indices, indices), 1), torch.cat((0.25 * values, 0.75 * values))
    return torch.sparse_coo_tensor(*twice, gradient.shape, check_invariants=False)


def repeated(name):
    """A model whose sparse gradient has rows twice, and one with the dense sum."""
    models = build(name), build(name)
    for each, sparse_grad in zip(models, (True, False), strict=True):
        for rows in (slice(0, 24), slice(12, 48)):
            each.loss(*batch(rows), sparse_grad=sparse_grad).backward()
    first = models[0].bucket_weight if name == "linear" else models[0].encoder_weight
    first.grad = with_repeated_rows(first.grad)
    return models


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3, float("inf"), 0.0])
@pytest.mark.parametrize("max_norm", [0.01, 1e6])
@pytest.mark.parametrize("name", SHAPES)
def test_clip_grad_norm_is_that_of_the_dense_gradients(name, max_norm, norm_type):
    sparse, dense = repeated(name)
    norm = optim.clip_grad_norm_(sparse.parameters(), max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm, norm_type)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(gradients(sparse), gradients(dense))


def test_clip_grad_norm_of_odd_arguments():
    model, _ = repeated("shared")
    one = model.encoder_weight
    assert optim.clip_grad_norm_(one, 1.0) > 0  # a tensor alone
    assert optim.clip_grad_norm_([], 1.0) == 0
    assert optim.clip_grad_norm_([torch.nn.Parameter(torch.ones(2))], 1.0) == 0  # without a gradient
    assert optim.clip_grad_norm_(one, 1e6, "inf", foreach=False) == one.grad._values().abs().max()
    values, indices = torch.empty(0), torch.empty(0, dtype=torch.int64)
    weight = torch.nn.Parameter(torch.ones(4, 3))
    F.sparse_linear(values, indices, torch.zeros(3).long(), weight, sparse_grad=True).sum().backward()
    assert weight.grad._values().numel() == 0
    assert optim.clip_grad_norm_(weight, 1.0, float("inf")) == 0
    with pytest.raises(ValueError, match="clip_grad_norm_: norm_type must be at least 0, got -1"):
        optim.clip_grad_norm_(one, 1.0, -1)
    one.grad._values()[0, 0] = float("nan")
    before = one.grad.to_dense()
    with pytest.raises(RuntimeError, match="non-finite"):
        optim.clip_grad_norm_(one, 1.0, error_if_nonfinite=True)
    torch.testing.assert_close(one.grad.to_dense(), before, equal_nan=True)
    assert optim.clip_grad_norm_(one, 1.0).isnan()


# ------------------------------------------------------------------------------- autocast, half precision


HASH = mach_ext.LabelHash(L, B, 8)
LABELS = torch.tensor([3, 7])
OPS = {
    "bucket_logits": lambda h, w, c: F.bucket_logits(h, w, c),
    "label_logits": lambda h, w, c: F.label_logits(h, w, c, HASH, LABELS),
    "bucket_bce": lambda h, w, c: F.bucket_bce(h, w, c, *batch()[3:], HASH),
    "merge_scores": lambda h, w, c: F.merge_scores(h, HASH, LABELS, "median"),
    "merge_topk": lambda h, w, c: F.merge_topk(h, HASH, 3)[0],
    "merge_repetitions": lambda h, w, c: F.merge_repetitions(h, "mean"),
}


def op_inputs(name):
    generator = torch.Generator().manual_seed(0)
    shape = {"merge_scores": (N, 8, B), "merge_topk": (N, 8, B), "merge_repetitions": (N, 3, 8)}
    drawn = [
        torch.randn(size, generator=generator) for size in (shape.get(name, (N, 12)), (8, 12, B), (8, B))
    ]
    return [drawn[0].bfloat16().float(), *drawn[1:]]  # so that half precision changes nothing


def with_gradients(op, given, forward=False, backward=False):
    given = [t.clone().requires_grad_() for t in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        out = op(*given)
    with torch.autocast("cpu", torch.bfloat16, enabled=backward):
        out.square().sum().backward()
    return out, [t.grad for t in given]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("forward", "backward"), [(False, False), (True, False), (True, True), (False, True)]
)
def test_half_precision_is_widened_and_autocast_changes_nothing(name, dtype, forward, backward):
    given = op_inputs(name)
    expected, expected_gradients = with_gradients(OPS[name], given)
    out, found = with_gradients(OPS[name], [given[0].to(dtype), *given[1:]], forward, backward)
    assert torch.equal(out, expected)
    assert found[0].dtype == dtype
    assert torch.equal(found[0], expected_gradients[0].to(dtype))
    for one, other in zip(found[1:], expected_gradients[1:], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("name", OPS)
def test_half_precision_beside_float64_is_float64(name):
    hidden, *others = op_inputs(name)
    out = OPS[name](hidden.bfloat16(), *(t.double() for t in others))
    assert out.dtype == (torch.float32 if name.startswith("merge") else torch.float64)
    torch.testing.assert_close(out.float(), OPS[name](hidden, *others))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.int32, torch.bool])
@pytest.mark.parametrize("name", OPS)
def test_other_dtypes_are_refused_in_words(name, dtype):
    hidden, *others = op_inputs(name)
    with pytest.raises(TypeError, match=f"^{name}: (hidden|scores|logits) must be float32 or float64, got"):
        OPS[name](hidden.to(dtype), *others)


def test_a_loop_under_autocast_learns():
    """A stock layer under autocast gives bfloat16 hidden units; as many tens of steps later it has learnt."""
    torch.manual_seed(0)
    layer, model = torch.nn.Linear(12, 12), build()
    parameters = [*layer.parameters(), *model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    losses = []
    for _ in range(40):
        values, indices, indptr, *labels = batch()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = layer(model.encode(values, indices, indptr))
            assert hidden.dtype == torch.bfloat16
            loss = F.bucket_bce(hidden, model.bucket_weight, model.bucket_bias, *labels, model.hash)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad.dtype == torch.float32 for parameter in parameters)


@pytest.mark.parametrize("name", SHAPES)
def test_evaluation_and_fit_under_autocast(name):
    def answers(model):
        mach_ext.fit(model, X, Y, epochs=1, progress=False)
        found = attack.FGSM(model).perturb(X, Y, 0.1)
        shown = certify.certify(model, X[:4], Y[:4], [0.01], zero=False)
        why = explain.integrated_gradients(model, X[0], [3, 7])
        return *model.predict(X, 3), *found.predict(3), shown.overtakers, why.attributions

    expected = answers(build(name))
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(build(name))
    assert all(map(np.array_equal, found, expected))


# --------------------------------------------------------------------------------------- dtypes, NaN weights


@pytest.mark.parametrize("name", SHAPES)
def test_fit_takes_float64(name, tmp_path):
    model, double = build(name), build(name).double()
    settings = {"epochs": 3, "batch_size": 16, "output": tmp_path / "run", "progress": False}
    single, twice = (mach_ext.fit(each, X, Y, **settings) for each in (model, double))
    assert all(parameter.dtype == torch.float64 for parameter in double.parameters())
    for one, other in zip(single.history, twice.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert twice.history[-1]["loss"] < twice.history[0]["loss"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_fit_refuses_half_precision(name, dtype):
    model = build(name).to(dtype)
    before = weights(model)
    with pytest.raises(TypeError, match=r'^fit: parameters must be float32 or float64.*precision="bfloat16"'):
        mach_ext.fit(model, X, Y, epochs=1, progress=False)
    assert all(torch.equal(before[name], after) for name, after in weights(model).items())


CALLS = {
    "FGSM": lambda model: attack.FGSM(model).perturb(X, Y, 0.1),
    "integrated_gradients": lambda model: explain.integrated_gradients(model, X[0], [3]),
    "captum_inputs": lambda model: explain.captum_inputs(model, X, [3]),
    "certify": lambda model: certify.certify(model, X[:2], Y[:2], [0.01]),
    "sparse_linear|bucket_forward": lambda model: model.predict(X),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", SHAPES)
def test_dtypes_without_operators_are_refused_in_words(name, call):
    with pytest.raises(TypeError, match=rf"^({call}): \w+ must be float32.* got (torch\.)?float16$"):
        CALLS[call](build(name).half())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SHAPES)
def test_nan_parameters_are_named(name, bad):
    for parameter_name, parameter in build(name).named_parameters():
        model = build(name)
        model.get_parameter(parameter_name).data.fill_(bad)
        shown = parameter_name.removeprefix("head.")
        rule = rf"the model's {shown} must be finite, got {parameter.numel()} of {parameter.numel()}"
        calls = {
            r"MACH\.predict": lambda: model.predict(X, 3),  # noqa: B023
            "integrated_gradients": lambda: explain.integrated_gradients(model, X[0], [3]),  # noqa: B023
            "votes": lambda: explain.votes(model, X[0]),  # noqa: B023
            "fit": lambda: mach_ext.fit(model, X, Y, epochs=1, progress=False),  # noqa: B023
        }
        for op, call in calls.items():
            with pytest.raises(ValueError, match=f"^{op}: {rule} numbers NaN or infinite"):
                call()


def test_infinite_scores_of_finite_parameters_are_answered():
    model = build("linear")
    model.bucket_weight.data.fill_(3e38)
    scores, _ = model.predict(abs(X) * 10, 3)
    assert (scores == np.inf).all()


# ------------------------------------------------------------------------------------------------------ DDP


def end_of_process():
    """Ends a rank at once: where PyTorch ends a group, it can wait for a thread that needs the GIL."""
    with contextlib.suppress(RuntimeError):  # the other rank may have ended
        torch.distributed.barrier()
    os._exit(0)


def replica(rank, folder):
    """Ten steps on a half of each batch, and what is said of a loss that goes past the wrapper."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    said = []
    for name in SHAPES:
        model = build(name)
        ddp = DistributedDataParallel(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(ddp, lambda step: slice(step % 3 * 16 + 8 * rank, step % 3 * 16 + 8 * rank + 8))
            with torch.no_grad():
                model.loss(*batch())
            build(name).loss(*batch())  # of another model
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ddp.module.loss(*batch())
            ddp.module(*batch())
        said.append([str(warning.message) for warning in caught])
        with pytest.raises(ValueError, match="MACH: DistributedDataParallel averages dense gradients"):
            ddp(*batch(), sparse_grad=True)
        torch.save(weights(model), f"{folder}/{name} {rank}")
    torch.save(said, f"{folder}/said {rank}")
    end_of_process()


def train(module, rows):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    for step in range(10):
        loss = module(*batch(rows(step)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_distributed_data_parallel(tmp_path):
    """Two processes end with the same weights, those of one process on both halves of the batches."""
    torch.multiprocessing.start_processes(replica, (str(tmp_path),), nprocs=2, start_method="fork")
    for name in SHAPES:
        first, second = (torch.load(tmp_path / f"{name} {rank}") for rank in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)
        alone = build(name)
        train(alone, lambda step: slice(step % 3 * 16, step % 3 * 16 + 16))
        torch.testing.assert_close(first, weights(alone), rtol=1e-4, atol=1e-5)
    for rank in range(2):
        for messages in torch.load(tmp_path / f"said {rank}"):
            assert len(messages) == 1  # once a model
            assert "ddp(values, indices, indptr, label_indices, label_indptr)" in messages[0]


def wrap_with_own_seed(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    said = []
    for make in (lambda seed: build(seed=seed), lambda seed: torch.nn.Sequential(build(seed=seed))):
        DistributedDataParallel(make(7))
        try:
            DistributedDataParallel(make(rank))
        except ValueError as error:
            said.append(str(error))
    torch.save(said, f"{folder}/said {rank}")
    end_of_process()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_ranks_of_different_hashes_are_refused(tmp_path):
    """All ranks get rank 0's weights, which mean nothing to another hash. Every rank says so."""
    torch.multiprocessing.start_processes(wrap_with_own_seed, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        messages = torch.load(tmp_path / f"said {rank}")
        assert len(messages) == 2
        for message in messages:
            assert f"got L={L} B={B} R={R} seed={rank} on rank {rank}" in message


def test_reset_parameters_leaves_no_adjustment():
    model = build()
    with torch.device("meta"):
        other = build()
    other.to_empty(device="cpu")
    other.logit_adjustment.fill_(7)  # as memory that is not initialised may be
    other.reset_parameters()
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
