"""Steps are those of autograd, in the memory of a group of repetitions; in bfloat16 by a copy of the rows."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import (
    ARCHITECTURES,
    X,
    Y,
    after_steps,
    assert_same_run,
    autograd_step,
    same_bits,
    weights,
)

import mach_ext
from mach_ext import _ops, training
from mach_ext.training import precision, steps
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun


@pytest.mark.parametrize("name", ["linear", "shared"])
def test_the_bfloat16_copy_is_the_rounded_weight(name):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, **ARCHITECTURES[name])
    settings = training.Hyperparameters.of(model, precision="bfloat16")
    run = TrainingRun(model, settings, TrainingData(X, Y))
    run.train(1e9)
    weight = model.bucket_weight if name == "linear" else model.encoder_weight
    assert torch.equal(run.do_step.rows.copy, weight.detach().bfloat16())


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "linear"])
def test_steps_are_those_of_autograd(name, optimizer):
    """Also its dropout, its two learning rates, their decay."""
    assert_same_run(after_steps(name, optimizer), after_steps(name, optimizer, step=autograd_step))


@pytest.mark.parametrize(("name", "optimizer"), [("linear", "adagrad"), ("two layers", "adam")])
def test_steps_on_each_device(device, name, optimizer):
    runs = [after_steps(name, optimizer, 2, device, step) for step in (None, autograd_step)]
    assert_same_run(*runs)


def test_batches_of_as_many_documents_as_hidden_units():
    """Logits and the weight's gradient have one shape then; also, the last batch is shorter."""
    steps = {"name": "shared", "batch_size": 16, "steps": 25}
    assert_same_run(after_steps(**steps), after_steps(**steps, step=autograd_step))


def test_steps_are_those_of_the_plain_loop():
    """fit against a loop written out: its batches, its two learning rates and eps, their decay."""
    model, plain = (mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=8) for _ in range(2))
    mach_ext.fit(model, X, Y, epochs=2, batch_size=50, learning_rate=0.01, tau=0.0, progress=False)
    rest = [p for name, p in plain.named_parameters() if name != "encoder_weight"]
    length = float(np.median(np.linalg.norm(X.toarray(), axis=1)))
    encoder = {"params": [plain.encoder_weight], "eps": 1e-4 * length}
    optimizer = mach_ext.optim.SparseAdam([{"params": rest}, encoder])
    for step in range(12):
        epoch, batch = divmod(step, 6)
        rows = np.random.default_rng([0, epoch]).permutation(300)[batch * 50 : (batch + 1) * 50]
        x, y = X[rows], Y[rows]
        for group, rate in zip(optimizer.param_groups, (0.01, 0.3 / length), strict=True):
            group["lr"] = rate * (1 - step / 12)
        optimizer.zero_grad()
        batch = map(torch.from_numpy, (x.data, x.indices, x.indptr, y.indices, y.indptr))
        plain.loss(*batch, sparse_grad=True).backward()
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("frozen", [None, "bucket_weight", "bucket_bias"])
def test_linear_steps_are_those_of_autograd(optimizer, frozen):
    """To the bit, since N and R are powers of two and so scale gradients exactly; else up to rounding."""
    models = [
        mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=0, feature_dropout=0.3)
        for _ in range(2)
    ]
    settings = {"epochs": 2, "batch_size": 64, "optimizer": optimizer, "learning_rate": 0.3}
    for model in models:
        if frozen:
            model.get_parameter(frozen).requires_grad_(False)

    ours = mach_ext.fit(models[0], X[:256], Y[:256], progress=False, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.LinearStep, "__call__", autograd_step)
        theirs = mach_ext.fit(models[1], X[:256], Y[:256], progress=False, **settings)
    assert same_bits(weights(models[0]), weights(models[1]))
    losses = [[entry["loss"] for entry in record.history] for record in (ours, theirs)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_linear_steps_hold_no_gradient_of_the_weight():
    """Beside the weight, its moments and the batch a step makes only small tensors."""
    N, D, B, sizes = 8, 2000, 64, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, (tuple, list)) else [out]
            sizes.extend(
                t.untyped_storage().nbytes()
                for t in made
                if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known
            )
            return out

    features = scipy.sparse.random(N, D, 0.1, format="csr", dtype=np.float32, random_state=0)
    model = mach_ext.MACH(D, 60, num_repetitions=8, num_buckets=B, hidden_size=0)
    settings = training.Hyperparameters.of(model, batch_size=N)
    run = TrainingRun(model, settings, TrainingData(features, Y[:N]))
    batch = next(run.batches())
    run.step(batch)  # the moments are made
    states = [state["sum"] for state in run.optimizer.state.values()]
    there = (*model.parameters(), model.hash.buckets, *states, *batch[:5])
    known = {t.untyped_storage().data_ptr() for t in there}
    with Watch():
        run.step(batch)
    # The order of the batch, and the logits of a group, here of all repetitions.
    assert max(sizes) <= max(8 * features.nnz, 4 * 8 * N * B)
    assert 4 * len(np.unique(features.indices)) * B > 5 * max(sizes)
    assert model.bucket_weight.grad is None


PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


class Settings(TorchDispatchMode):
    """Notes PyTorch's precision of float32 products on a GPU at each product."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in PRODUCTS:
            self.seen.append(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["none", "ieee", "tf32"])
def setting(request):
    """A setting of PyTorch's that the user has made."""
    former = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = request.param
    yield request.param
    torch.backends.cuda.matmul.fp32_precision = former


@pytest.mark.parametrize("chosen", training.PRECISIONS)
def test_tf32_holds_for_the_products_of_a_step_alone(setting, chosen):
    """The setting of a GPU, observed on the CPU, whose products ignore it."""
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=(16, 8))
    settings = training.Hyperparameters(batch_size=20, tau=0.0, precision=chosen)
    run = TrainingRun(model, settings, TrainingData(X, Y))
    batch = next(run.batches())
    with Settings() as settings_of:
        run.step(batch)
    assert len(settings_of.seen) >= 6  # three for each layer: forward, and the gradients to both factors
    assert set(settings_of.seen) == {"tf32" if chosen == "tf32" else setting}
    assert torch.backends.cuda.matmul.fp32_precision == setting
    with Settings() as settings_of:
        model.predict(X[:3], k=1)
    assert set(settings_of.seen) == {setting}
    with torch.no_grad():
        model.bucket_weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError):
        run.step(batch)
    assert torch.backends.cuda.matmul.fp32_precision == setting


def test_the_older_name_of_the_setting_can_be_read_again():
    """PyTorch refuses to read it as long as only the newer name is set."""
    with precision.product_precision("tf32"):
        pass
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
def test_autocast_changes_nothing(chosen):
    plain, other = (mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=8) for _ in range(2))
    options = {"epochs": 1, "batch_size": 50, "precision": chosen, "progress": False}
    mach_ext.fit(plain, X, Y, **options)
    with torch.autocast("cpu", torch.float16):
        mach_ext.fit(other, X, Y, **options)
    assert same_bits(weights(plain), weights(other))


def test_rows_are_rounded_some_at_a_time(monkeypatch):
    monkeypatch.setattr(precision, "ROUNDED_TOGETHER", 20)
    weight = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    rounded = torch.zeros(30, 8, dtype=torch.bfloat16)
    order = _ops.feature_order(torch.tensor([3, 29, 7, 0, 3]), torch.tensor([0, 2, 5]), 30)
    precision.round_rows(weight, rounded, order)
    changed = torch.tensor([0, 3, 7, 29])
    assert torch.equal(rounded[changed], weight[changed].bfloat16())
    assert rounded.any(1).sum() == 4


def test_rows_of_several_repetitions_are_rounded():
    weight = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(0))
    rounded = torch.zeros(3, 9, 8, dtype=torch.bfloat16)
    order = _ops.feature_order(torch.tensor([3, 7]), torch.tensor([0, 2]), 9)
    precision.round_rows(weight, rounded, order)
    assert torch.equal(rounded[:, [3, 7]], weight[:, [3, 7]].bfloat16())
    assert rounded.any(2).sum() == 6
