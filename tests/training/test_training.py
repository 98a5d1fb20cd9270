"""fit: learns, keeps the best epoch, resumes with the same bits after any kill, refuses what it should."""

import copy
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.sparse
import torch
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mach_ext
from mach_ext import _ops, training
from mach_ext.training import keeping, memory, precision, steps, validation
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

ARCHITECTURES = {
    "linear": {"hidden_size": 0},
    "shared": {"hidden_size": 16, "hidden_dropout": 0.2, "feature_dropout": 0.1},
    "independent": {"hidden_size": 8, "encoder": "independent"},
    "two layers": {"hidden_size": (48, 32)},
}
# Defines the run of `script` and of the resume tests: small, but several epochs with dropout.
SETUP = """
import numpy as np, scipy.sparse, sys, mach_ext
rng = np.random.default_rng(0)
labels = np.repeat(np.arange(300), 3), rng.integers(0, 60, 900)
Y = scipy.sparse.csr_matrix((np.ones(900), labels), (300, 60))
X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
def build():
    return mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=32, hidden_dropout=0.3)
options = dict(epochs=6, batch_size=16, learning_rate=0.01, progress=False, checkpoint_minutes=0.0)
"""
namespace: dict = {}
exec(SETUP, namespace)
X, Y, build, options = (namespace[name] for name in ("X", "Y", "build", "options"))
COUNTS = (Y.toarray() > 0).sum(0)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k].view(torch.int32), b[k].view(torch.int32)) for k in a
    )


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_learns(name, optimizer):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, **ARCHITECTURES[name])
    rate = {"adam": 0.02, "adagrad": 0.8 if name == "linear" else 0.08}[optimizer]
    record = mach_ext.fit(
        model, X, Y, epochs=40, batch_size=32, optimizer=optimizer, learning_rate=rate, progress=False,
        encoder_learning_rate=rate,
    )  # fmt: skip
    assert not model.training
    assert record.history[-1]["loss"] < record.history[0]["loss"] * 0.7
    assert mach_ext.metrics.precision_at_k(Y, model.predict(X, 1)[1], 1) > 0.9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_learns_in_bfloat16_with_float32_weights(name):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, **ARCHITECTURES[name])
    rate = 0.5 if name == "linear" else 0.02
    exact = copy.deepcopy(model)
    settings = {**options, "epochs": 30, "learning_rate": rate, "encoder_learning_rate": rate}
    record = mach_ext.fit(model, X, Y, precision="bfloat16", **settings)
    other = mach_ext.fit(exact, X, Y, **settings)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert record.history[0]["loss"] == pytest.approx(other.history[0]["loss"], rel=0.02)
    assert record.history[0]["loss"] != other.history[0]["loss"]
    assert mach_ext.metrics.precision_at_k(Y, model.predict(X, 1)[1], 1) > 0.9


@pytest.mark.parametrize("name", ["linear", "shared"])
def test_the_bfloat16_copy_is_the_rounded_weight(name):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, **ARCHITECTURES[name])
    settings = training.Hyperparameters.of(model, precision="bfloat16")
    run = TrainingRun(model, settings, TrainingData(X, Y))
    run.train(1e9)
    weight = model.bucket_weight if name == "linear" else model.encoder_weight
    assert torch.equal(run.do_step.rows.copy, weight.detach().bfloat16())


def test_bfloat16_resumes_with_the_same_bits(tmp_path, monkeypatch):
    whole = build()
    mach_ext.fit(whole, X, Y, precision="bfloat16", **options)
    step, left = TrainingRun.step, iter(range(70))

    def stops(run, batch):
        if next(left, None) is None:
            raise RuntimeError("killed")
        step(run, batch)

    monkeypatch.setattr(TrainingRun, "step", stops)
    with pytest.raises(RuntimeError, match="killed"):
        mach_ext.fit(build(), X, Y, precision="bfloat16", output=tmp_path, **options)
    monkeypatch.setattr(TrainingRun, "step", step)
    model = build()
    mach_ext.fit(model, X, Y, precision="bfloat16", output=tmp_path, resume=True, **options)
    assert same_bits(weights(model), weights(whole))


def test_bfloat16_is_for_float32_models():
    with pytest.raises(ValueError, match="fit: precision is for float32 models"):
        mach_ext.fit(build().double(), X, Y, precision="bfloat16", **options)
    with pytest.raises(ValueError, match="fit: precision must be one of float32, bfloat16, got 'half'"):
        mach_ext.fit(build(), X, Y, precision="half", **options)


def test_same_seed_same_bits_and_another_seed_others():
    first, second, other = build(), build(), build()
    before = torch.random.get_rng_state()
    mach_ext.fit(first, X, Y, **options)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is left alone
    torch.manual_seed(99)
    mach_ext.fit(second, X, Y, **options)
    mach_ext.fit(other, X, Y, **options, seed=1)
    assert same_bits(weights(first), weights(second))
    assert not same_bits(weights(first), weights(other))


def autograd_step(step, batch, dropout):
    """The step that `fit` does piece by piece, in three lines."""
    loss = step.model.loss(*batch[:5], sparse_grad=True, validate=False, dropout=dropout)
    step.optimizer.zero_grad()
    loss.backward()
    step.optimizer.step()
    return loss.item()


def after_steps(name, optimizer="adam", steps=12, device="cpu", step=None, **settings):
    """The run after some steps of an architecture of ARCHITECTURES; `step` in place of its own."""
    model = mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, **ARCHITECTURES[name]).to(device)
    given = {"batch_size": 50, "learning_rate": 0.01, "optimizer": optimizer, "epochs": 2, **settings}
    chosen = training.Hyperparameters.of(model, **given)
    run = TrainingRun(model, chosen, TrainingData(X, Y))
    if step is not None:
        run.do_step = functools.partial(step, run.do_step)
    model.train()
    while steps:
        for batch in run.batches():
            run.step(batch)
            steps -= 1
            if not steps:
                break
        run.state.epoch, run.state.batch = 1, 0
    return run


def assert_same_run(a, b):
    """Weights and moments up to rounding: the gradients are the same, not only their directions."""
    torch.testing.assert_close(a.state.loss_sum, b.state.loss_sum, rtol=1e-5, atol=0)
    torch.testing.assert_close(weights(a.model), weights(b.model), rtol=1e-3, atol=1e-4)
    for one, other in zip(a.model.parameters(), b.model.parameters(), strict=True):
        states = a.optimizer.state[one], b.optimizer.state[other]
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-6)


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


@pytest.mark.parametrize(("eps", "as_far"), [(1e-8, True), (1.0, False)])
def test_a_large_eps_keeps_rare_features_from_moving_as_far_as_frequent_ones(eps, as_far):
    """Feature 0 is in one document of 50, feature 1 in all, beside it and as large."""
    Y = scipy.sparse.csr_matrix(np.eye(2)[np.zeros(50, int)])
    X = scipy.sparse.csr_matrix(np.c_[np.arange(50) == 0, np.ones(50)], dtype=np.float32)
    model = mach_ext.MACH(2, 2, num_repetitions=2, num_buckets=4, hidden_size=8)
    before = model.encoder_weight.detach().clone()
    mach_ext.fit(model, X, Y, epochs=1, batch_size=50, encoder_eps=eps, progress=False)
    rare, frequent = (model.encoder_weight.detach() - before).abs().amax(1)
    assert (rare > 0.9 * frequent) if as_far else (0 < rare < 0.1 * frequent)


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


@pytest.mark.parametrize("name", ["shared", "independent"])
def test_the_scale_of_the_documents_does_not_matter(name):
    """8 X with the first weight / 8 is the same model, and takes the same steps, to the bit."""
    models = [mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, **ARCHITECTURES[name]) for _ in "ab"]
    with torch.no_grad():
        models[1].encoder_weight /= 8
    for model, scale in zip(models, (1, 8), strict=True):
        mach_ext.fit(model, X * np.float32(scale), Y, epochs=2, batch_size=50, progress=False)
    a, b = map(weights, models)
    b["encoder_weight"] *= 8
    assert same_bits(a, b)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("scale", [2**-20, 8, 2**20])
def test_the_scale_of_the_documents_does_not_matter_to_linear_models(optimizer, scale):
    """They start at 0, so as they come."""
    a, b = (mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=0) for _ in "ab")
    given = {"epochs": 2, "batch_size": 50, "optimizer": optimizer, "progress": False}
    mach_ext.fit(a, X, Y, **given)
    mach_ext.fit(b, X * np.float32(scale), Y, **given)
    torch.testing.assert_close(b.bucket_weight * scale, a.bucket_weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("documents", ["one long", "some empty", "rounded"])
def test_rates_are_for_most_documents(documents):
    """One long document, rows of stored zeros, lengths up to rounding: rates as for length 1."""
    unit = scipy.sparse.csr_matrix(np.eye(60, dtype=np.float32))
    if documents == "one long":
        unit[0, 0] = 1e6
    elif documents == "some empty":
        unit.data[:40] = 0
    else:
        unit.data *= np.float32(1 - 1e-7)
    assert training.typical_length(unit) == 1.0
    assert training.typical_length(unit[:0]) == 1.0


def test_a_checkpoint_of_rates_for_another_length_is_refused(tmp_path):
    """Runs of before rates followed the documents' length go on where that is 1, only."""
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    for key in ("length", "format", "sha256", "tensors_sha256", "weights_sha256"):
        del record[key]
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"different: length was 1\.0, now 1\.7"):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **options)


@pytest.fixture
def always_skip(monkeypatch):
    """However many entries are kept; counts them."""
    kept, original = [], _ops.bucket_backward

    def counted(*args):
        kept.append(int(original(*args)))
        return kept[-1]

    monkeypatch.setattr(steps, "WORTH_SKIPPING", 1.0)
    monkeypatch.setattr(_ops, "bucket_backward", counted)
    return kept


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "linear"])
def test_nothing_is_negligible_below_every_gradient(always_skip, name):
    """The sparse products with all entries kept: the steps of the dense ones, up to rounding."""
    run = after_steps(name, gradient_threshold=1e-12)
    assert set(always_skip) == {50 * 16}
    assert_same_run(run, after_steps(name))


def test_negligible_gradients_leave_loss_and_biases_alone(always_skip):
    exact = after_steps("two layers", steps=1)
    run = after_steps("two layers", steps=1, gradient_threshold=0.5)
    assert sum(always_skip) < 0.3 * 4 * 50 * 16
    assert run.state.loss_sum == exact.state.loss_sum
    moments = (r.optimizer.state[r.model.bucket_bias]["exp_avg"] for r in (run, exact))
    assert torch.equal(*moments)
    moments = [r.optimizer.state[r.model.bucket_weight]["exp_avg"] for r in (run, exact)]
    assert not torch.equal(*moments)


def test_dense_products_where_too_many_gradients_count(monkeypatch):
    monkeypatch.setattr(steps, "WORTH_SKIPPING", -1.0)
    run, exact = (after_steps("shared", gradient_threshold=p) for p in (0.5, 0.0))
    assert same_bits(weights(run.model), weights(exact.model))


def test_learns_without_negligible_gradients(always_skip):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=16)
    settings = {"epochs": 40, "batch_size": 32, "learning_rate": 0.02, "gradient_threshold": 0.05}
    mach_ext.fit(model, X, Y, progress=False, **settings)
    assert sum(always_skip) < 0.6 * len(always_skip) * 32 * 16
    assert mach_ext.metrics.precision_at_k(Y, model.predict(X, 1)[1], 1) > 0.9


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
    assert max(sizes) <= 8 * features.nnz  # the order of the batch; one repetition's logits are less
    assert 4 * len(np.unique(features.indices)) * B > 5 * max(sizes)
    assert model.bucket_weight.grad is None


def test_best_epoch_is_kept(tmp_path, monkeypatch):
    scores = iter([0.2, 0.9, 0.5])
    monkeypatch.setattr(validation, "evaluate_model", lambda *a: {"P@1": next(scores)})
    seen = []
    original = TrainingRun.finish_epoch
    monkeypatch.setattr(
        TrainingRun, "finish_epoch", lambda run: (seen.append(weights(run.model)), original(run))[1]
    )

    def adjusted(trained):
        model = build()
        model.load_parameters(trained)
        model.adjust_logits(COUNTS, 0.3)
        return weights(model)

    for output in (None, tmp_path):
        scores, model = iter([0.2, 0.9, 0.5]), build()
        seen.clear()
        record = mach_ext.fit(model, X, Y, X, Y, output=output, tau=0.3, **{**options, "epochs": 3})
        assert record.best_epoch == 2
        assert record.best == 0.9
        assert same_bits(weights(model), adjusted(seen[1]))
    assert same_bits(weights(mach_ext.load(tmp_path)), adjusted(seen[1]))


@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ([0.5, 0.5, 0.5], [3, 2, 1], 3),
        ([0.5, 0.5, 0.5], [3, 1, 2], 2),
        ([0.5, 0.5, 0.5], [1, 1, 1], 1),
        ([0.5, 0.9, 0.9], [1, 3, 2], 3),  # a better metric, whatever the loss; then the loss
        ([0.9, 0.5, 0.9], [1, 3, 2], 1),
        ([0.0, 0.0, 0.0], [3, 2, 1], 3),
    ],
)
def test_equal_dev_metrics_keep_the_lowest_loss(tmp_path, monkeypatch, scores, losses, best):
    original = TrainingRun.finish_epoch
    seen = []

    def finish(run):
        seen.append(weights(run.model))
        run.state.loss_sum = float(losses[run.state.epoch] * run.state.documents)
        original(run)

    monkeypatch.setattr(TrainingRun, "finish_epoch", finish)
    monkeypatch.setattr(validation, "evaluate_model", lambda *a: {"P@1": scores[len(seen) - 1]})
    for output in (None, tmp_path):
        model = build()
        seen.clear()
        settings = {**options, "epochs": 3, "tau": 0.0, "checkpoint_minutes": 10}
        record = mach_ext.fit(model, X, Y, X, Y, output=output, **settings)
        assert (record.best_epoch, record.best) == (best, scores[best - 1])
        assert [entry["loss"] for entry in record.history] == losses
        assert same_bits(weights(model), seen[best - 1])
    assert same_bits(weights(mach_ext.load(tmp_path)), seen[best - 1])


def test_a_small_dataset_is_trained_to_the_end():
    """24 documents whose dev metric is 1 from the first epoch on: the model that fits best is kept."""
    labels = scipy.sparse.csr_matrix(np.eye(2)[np.arange(24) % 2])
    documents = scipy.sparse.csr_matrix(labels, dtype=np.float32)
    model = mach_ext.MACH(2, 2, num_repetitions=8, num_buckets=4, hidden_size=16)
    settings = {"epochs": 10, "progress": False}
    record = mach_ext.fit(model, documents, labels, documents[:4], labels[:4], **settings)
    assert {entry["dev"]["P@1"] for entry in record.history} == {1.0}
    losses = [entry["loss"] for entry in record.history]
    assert losses == sorted(losses, reverse=True)
    assert record.best_epoch == 10


def test_dev_documents_without_labels_keep_the_lowest_loss():
    """Their metrics are 0, not NaN: no epoch wins or blocks by what can't be measured."""
    none = scipy.sparse.csr_matrix((3, 60))
    record = mach_ext.fit(build(), X, Y, X[:3], none, **options)
    assert {value for entry in record.history for value in entry["dev"].values()} == {0.0}
    losses = [entry["loss"] for entry in record.history]
    assert record.best_epoch == 1 + losses.index(min(losses))


def test_ties_are_the_same_after_a_kill_and_resume(tmp_path, monkeypatch):
    """A checkpoint, also one of before ties went by loss, has the losses in its history."""
    monkeypatch.setattr(validation, "evaluate_model", lambda *a: {"P@1": 0.5})
    settings = {**options, "checkpoint_minutes": 10}
    whole, model = build(), build()
    record = mach_ext.fit(whole, X, Y, X, Y, **settings)
    original = TrainingRun.finish_epoch
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainingRun, "finish_epoch", lambda run: original(run) if run.state.epoch < 3 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            mach_ext.fit(build(), X, Y, X, Y, output=tmp_path, **settings)
    again = mach_ext.fit(model, X, Y, X, Y, output=tmp_path, resume=True, **settings)
    assert (again.best_epoch, again.history) == (record.best_epoch, record.history)
    assert same_bits(weights(model), weights(whole))


def test_logits_are_adjusted_at_the_end_and_for_dev():
    trained, adjusted = build(), build()
    mach_ext.fit(trained, X, Y, tau=0.0, **options)
    assert not trained.logit_adjustment.any()
    record = mach_ext.fit(adjusted, X, Y, X, Y, tau=0.4, metric="nDCG@5", **options)
    assert record.best_epoch == record.epoch, "or the weights are not the last ones"
    trained.adjust_logits(COUNTS, 0.4)
    assert same_bits(weights(trained), weights(adjusted))
    assert record.history[-1]["dev"] == training.evaluate_model(adjusted, X, Y)

    mach_ext.fit(adjusted, X, Y, tau=0.1, **options)  # trained on: what was there before is taken away
    trained.adjust_logits(COUNTS, 0.1)
    torch.testing.assert_close(adjusted.logit_adjustment, trained.logit_adjustment)


def test_resume_after_a_kill_of_a_run_that_began_with_an_adjusted_model(tmp_path, monkeypatch):
    def adjusted():
        model = build()
        model.adjust_logits(COUNTS, 0.5)
        return model

    whole = adjusted()
    mach_ext.fit(whole, X, Y, **options)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", lambda run, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mach_ext.fit(adjusted(), X, Y, output=tmp_path, **options)
    resumed = adjusted()
    mach_ext.fit(resumed, X, Y, output=tmp_path, resume=True, **options)
    assert same_bits(weights(whole), weights(resumed))


def test_tau_by_rule():
    model = build()
    mach_ext.fit(model, X, Y, **options)
    again = build()
    mach_ext.fit(again, X, Y, tau=min(0.5, COUNTS[COUNTS > 0].mean() ** -0.5), **options)
    assert same_bits(weights(model), weights(again))
    other = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, merge="mean_prob")
    mach_ext.fit(other, X, Y, **options)
    assert not other.logit_adjustment.any()
    with pytest.raises(ValueError, match="tau is for models that rank by mean_logit, this one by mean_prob"):
        mach_ext.fit(other, X, Y, tau=0.1, **options)
    for tau in (-0.1, float("nan"), "much"):
        with pytest.raises(ValueError, match="tau must be None or within 0 and 100"):
            mach_ext.fit(build(), X, Y, tau=tau, **options)


def test_early_stopping(monkeypatch):
    scores = iter([0.5, 0.4, 0.4, 0.9])
    monkeypatch.setattr(validation, "evaluate_model", lambda *a: {"P@1": next(scores)})
    record = mach_ext.fit(build(), X, Y, X, Y, patience=2, **options)
    assert record.epoch == 3


def test_patience_waits_for_a_better_metric_not_for_a_lower_loss(monkeypatch):
    scores = iter([0.5, 0.9, 0.9, 0.9, 0.9, 0.9])
    monkeypatch.setattr(validation, "evaluate_model", lambda *a: {"P@1": next(scores)})
    record = mach_ext.fit(build(), X, Y, X, Y, patience=2, **options)
    losses = [entry["loss"] for entry in record.history]
    assert losses == sorted(losses, reverse=True)
    assert (record.epoch, record.best_epoch) == (4, 4)  # epoch 2 was the last gain; 4 has the lowest loss


def test_patience_without_dev_data_never_runs_out():
    assert mach_ext.fit(build(), X, Y, patience=1, **options).epoch == 6


def script(folder):
    return [
        sys.executable,
        "-c",
        SETUP + f"print('ready', flush=True)\nmach_ext.fit(build(), X, Y, X, Y, output={str(folder)!r}, "
        "resume=True, **options)",
    ]


def test_kill_at_random_moments_then_resume_gives_the_same_bits(tmp_path, capsys):
    """kill -9 again and again until the run gets through; checkpoints after every step."""
    model = build()
    whole = mach_ext.fit(model, X, Y, X, Y, **options)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    generator, kills = random.Random(0), 0
    while True:
        with subprocess.Popen(
            script(tmp_path), stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout.readline() == "ready\n"
            if kills < 10:
                time.sleep(generator.uniform(0, 0.25))
                process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            break
        kills += 1
    with capsys.disabled():
        print(f"\nkilled {kills} times, ", end="")
    assert kills >= 3  # fewer: the run was over before the kills came; then this shows little
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(model))
    resumed = json.loads((tmp_path / "checkpoint.json").read_text())["progress"]
    assert resumed["history"] == whole.history
    assert resumed["best_epoch"] == whole.best_epoch
    assert not list(tmp_path.glob("checkpoint-*"))  # nothing that is no longer needed


def test_ctrl_c_leaves_a_checkpoint_and_says_so(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    process = subprocess.Popen(script(tmp_path), **pipes)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "training stopped" in errors
    assert "go on with resume (--resume)" in errors
    assert subprocess.run(script(tmp_path), check=False, env=environment).returncode == 0
    model = build()
    mach_ext.fit(model, X, Y, X, Y, **options)
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(model))


def test_resume_of_a_finished_run_loads_it(tmp_path):
    model, again = build(), build()
    record = mach_ext.fit(model, X, Y, output=tmp_path, **options)
    resumed = mach_ext.fit(again, X, Y, output=tmp_path, resume=True, **options)
    assert resumed.history == record.history
    assert same_bits(weights(model), weights(again))


def test_no_epoch_saves_the_model_as_it_came(tmp_path):
    model = build()
    mach_ext.fit(model, X, Y, output=tmp_path, **{**options, "epochs": 0})
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(build()))


def test_one_run_a_folder_and_what_a_kill_left_is_cleared(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".weights-0.safetensors.{dead.pid}.tmp").write_text("half")
    (tmp_path / ".notes.tmp").write_text("the user's")
    (tmp_path / "repetitions-notes.txt").write_text("the user's")
    with training.lock_run(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".notes.tmp", "repetitions-notes.txt"]
        with pytest.raises(ValueError, match="another run is training in"):
            mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)


def test_resume_insists_on_the_same_data_and_hash(tmp_path):
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    with pytest.raises(ValueError, match=r"data.Y was"):
        mach_ext.fit(build(), X, Y[::-1], output=tmp_path, resume=True, **options)
    table = mach_ext.LabelHash(60, 16, 8, seed=1).buckets
    other = mach_ext.MACH(
        60, 60, 8, 16, hidden_size=32, hidden_dropout=0.3, hash=mach_ext.LabelHash.from_buckets(table, 16)
    )
    with pytest.raises(ValueError, match=r"hash was L=60 B=16 R=8 seed=0, now .* table="):
        mach_ext.fit(other, X, Y, output=tmp_path, resume=True, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 7}, "hyperparameters.epochs was 6, now 7"),
        ({"learning_rate": 0.02}, "hyperparameters.learning_rate was 0.01, now 0.02"),
    ],
)
def test_resume_with_other_settings_is_refused(tmp_path, change, message):
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **{**options, **change})
    other = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=17, hidden_size=32, hidden_dropout=0.3)
    with pytest.raises(ValueError, match=r"model\.num_buckets was 16, now 17"):
        mach_ext.fit(other, X, Y, output=tmp_path, resume=True, **options)
    with pytest.raises(ValueError, match=r"data.X was \[300, 60, .*\], now \[299"):
        mach_ext.fit(build(), X[:299], Y[:299], output=tmp_path, resume=True, **options)


@pytest.mark.parametrize("broken", ["save_tensors", "write_json"])
def test_disk_full_while_checkpointing_keeps_the_former_checkpoint(tmp_path, monkeypatch, broken):
    calls, original = [], getattr(keeping, broken)

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(keeping, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*"))
    resumed, model = build(), build()
    record = mach_ext.fit(resumed, X, Y, output=tmp_path, resume=True, **options)
    assert record.epoch == 6
    mach_ext.fit(model, X, Y, **options)
    assert same_bits(weights(resumed), weights(model))


def damaged_json(folder):
    (folder / "checkpoint.json").write_text("{")


def damaged_tensors(folder):
    (tensors,) = folder.glob("checkpoint-*")
    tensors.write_bytes(tensors.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_json, "checkpoint.json: not a checkpoint"),
        (damaged_tensors, "not the tensors of a checkpoint"),
    ],
)
def test_damaged_checkpoint_is_named(tmp_path, monkeypatch, damage, message):
    monkeypatch.setattr(TrainingRun, "finish", lambda run: None)  # as if killed at the very end
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": X.toarray().tolist()}, TypeError, "fit: X: must be a SciPy sparse matrix"),
        ({"X": X[:, :59]}, ValueError, r"fit: X must have the model's 60 columns, got shape \(300, 59\)"),
        ({"Y": Y[:, :59]}, ValueError, r"fit: Y must have the model's 60 columns, got shape \(300, 59\)"),
        ({"Y": Y[:299]}, ValueError, "as many rows, got 300 and 299"),
        ({"X_dev": X}, ValueError, "X_dev and Y_dev must be given together"),
        ({"X": X[:0], "Y": Y[:0]}, ValueError, "needs at least one document, got N=0"),
        ({"X_dev": X[:0], "Y_dev": Y[:0]}, ValueError, "X_dev needs at least one document, got N=0"),
        ({"Y": -Y}, ValueError, "labels must not be negative"),
        ({"resume": True}, ValueError, "resume needs the output folder"),
        ({"epochs": -1}, ValueError, "epochs must be an int of at least 0, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1, got 0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of adam, adagrad, got 'sgd'"),
        ({"schedule": "cosine"}, ValueError, "schedule must be one of linear, constant"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite"),
        ({"gradient_threshold": 1.0}, ValueError, r"gradient_threshold must be in \[0, 1\), got 1.0"),
        ({"patience": 0}, ValueError, "patience must be None or at least 1, got 0"),
        ({"X_dev": X, "Y_dev": Y, "metric": "F1"}, ValueError, "metric must be one of P@1, .* got 'F1'"),
        ({"momentum": 0.9}, TypeError, "unknown hyper-parameter 'momentum'"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        mach_ext.fit(build(), **{"X": X, "Y": Y, **options, **change})


def test_documents_without_features_or_labels_are_fine():
    X_holes, Y_holes = X.tolil(), Y.tolil()
    X_holes[0], Y_holes[1] = 0, 0
    record = mach_ext.fit(
        build(), scipy.sparse.csr_matrix(X_holes), scipy.sparse.csr_matrix(Y_holes), **options
    )
    assert np.isfinite(record.history[-1]["loss"])


def test_out_of_memory_says_what_to_lower(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(steps.HiddenStep, "__call__", full)
    message = (
        r"fit: out of memory on cpu: lower batch_size, .*R=8 repetitions of B=16.*Tried to allocate 20.00 GiB"
    )
    with pytest.raises(torch.OutOfMemoryError, match=message):
        mach_ext.fit(build(), X, Y, **options)


def test_negligible_gradients_are_for_the_cpu():
    model = mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=8).to("meta")
    with pytest.raises(ValueError, match="gradient_threshold is for models on the CPU, this one is on meta"):
        mach_ext.fit(model, X, Y, gradient_threshold=0.01)


def test_linear_models_have_no_negligible_gradients():
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    with pytest.raises(ValueError, match="gradient_threshold is for models with a hidden layer"):
        mach_ext.fit(model, X, Y, gradient_threshold=0.01)


def test_products_on_a_gpu_are_of_float32():
    """A dry run: shapes, types and which operators there are, without a GPU."""
    with fake_tensor.FakeTensorMode():
        a = torch.empty(8, 4, dtype=torch.bfloat16, device="cuda")
        b = torch.empty(4, 6, dtype=torch.bfloat16, device="cuda")
        out = torch.empty(8, 6, device="cuda")
        for term in (None, torch.empty(6, device="cuda"), out):
            precision.add_product(term, a, b, out)
        assert (out.dtype, out.shape, out.device.type) == (torch.float32, (8, 6), "cuda")


def test_rows_are_rounded_some_at_a_time(monkeypatch):
    monkeypatch.setattr(precision, "ROUNDED_TOGETHER", 20)
    weight = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    rounded = torch.zeros(30, 8, dtype=torch.bfloat16)
    order = _ops.feature_order(torch.tensor([3, 29, 7, 0, 3]), torch.tensor([0, 2, 5]), 30)
    precision.round_rows(weight, rounded, order)
    changed = torch.tensor([0, 3, 7, 29])
    assert torch.equal(rounded[changed], weight[changed].bfloat16())
    assert rounded.any(1).sum() == 4


def test_expected_memory_counts_what_it_says():
    model = build()
    expected = training.expected_memory(model)
    assert expected["weights"] == sum(p.numel() * 4 for p in model.parameters())
    assert expected["label hash"] == 8 * 60 * 4
    assert expected["training, peak"] > expected["predicting, peak"] > expected["weights"]


@pytest.mark.parametrize("together", [1, 4])
def test_linear_repetitions_in_turn_are_the_repetitions_together(tmp_path, together):
    settings = {**options, "learning_rate": 0.5, "epochs": 3}
    whole, parts = (mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0) for _ in range(2))
    mach_ext.fit(whole, X, Y, **settings)  # no dev data: both end with their last epoch
    record = mach_ext.fit(parts, X, Y, X, Y, output=tmp_path, repetitions_at_a_time=together, **settings)
    assert same_bits(weights(whole), weights(parts))  # to the bit where together / R is a power of two
    assert "P@1" in record.history[-1]["dev"]
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(parts))
    assert not list(tmp_path.glob("repetitions-*"))
    again = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    mach_ext.fit(again, X, Y, X, Y, output=tmp_path, resume=True, repetitions_at_a_time=together, **settings)
    assert same_bits(weights(again), weights(parts))


def test_linear_repetitions_in_turn_resume_where_they_were(tmp_path, monkeypatch):
    settings = {**options, "learning_rate": 0.5, "epochs": 2, "repetitions_at_a_time": 2, "output": tmp_path}

    def build():
        return mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)

    taken, original = [], TrainingRun.step

    def step(run, batch):
        taken.append(0)
        if len(taken) == 100:  # in the third pair of repetitions
            raise KeyboardInterrupt
        original(run, batch)

    monkeypatch.setattr(TrainingRun, "step", step)
    with pytest.raises(KeyboardInterrupt):
        mach_ext.fit(build(), X, Y, **settings)
    model = build()
    mach_ext.fit(model, X, Y, resume=True, **settings)
    assert len(taken) < 100 + 8 * 19  # the first two pairs were not trained again
    fresh = build()
    mach_ext.fit(fresh, X, Y, **{**settings, "output": None})
    assert same_bits(weights(model), weights(fresh))


def test_short_memory_is_said_beforehand(monkeypatch):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    settings = training.Hyperparameters.of(model)
    assert memory.repetitions_together(model, X, settings, None) == 8
    monkeypatch.setattr(memory, "available_memory", lambda device: 12_000)
    with pytest.warns(ResourceWarning, match="repetitions_at_a_time=1 would fit"):
        memory.repetitions_together(model, X, settings, None)
    with pytest.raises(ValueError, match=r"repetitions_at_a_time must be in 1 ... R=8, got 9"):
        mach_ext.fit(model, X, Y, repetitions_at_a_time=9, **options)
    with pytest.raises(ValueError, match="repetitions_at_a_time is for linear MACH"):
        mach_ext.fit(build(), X, Y, repetitions_at_a_time=1, **options)
    with pytest.raises(ValueError, match="patience needs dev scores by epoch"):
        mach_ext.fit(model, X, Y, X, Y, repetitions_at_a_time=1, patience=1, **options)


def test_a_checkpoint_of_all_repetitions_is_not_resumed_in_turn(tmp_path, monkeypatch):
    settings = {**options, "learning_rate": 0.5, "epochs": 2, "output": tmp_path}
    taken, original = [], TrainingRun.step

    def step(run, batch):
        taken.append(0)
        if len(taken) == 25:
            raise KeyboardInterrupt
        original(run, batch)

    monkeypatch.setattr(TrainingRun, "step", step)
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    with pytest.raises(KeyboardInterrupt):
        mach_ext.fit(model, X, Y, **settings)
    with pytest.raises(ValueError, match="resume it without repetitions_at_a_time"):
        mach_ext.fit(model, X, Y, resume=True, repetitions_at_a_time=2, **settings)


def test_a_new_run_makes_the_former_checkpoint_void(tmp_path, monkeypatch):
    """Run A ended, run B was killed at its first step: resuming A must not return B's weights."""
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)

    def killed(run, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mach_ext.fit(build(), X, Y, output=tmp_path, **{**options, "learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"hyperparameters.learning_rate was 0.5, now 0.01"):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **options)


@pytest.mark.parametrize(
    ("N", "D", "L", "R", "buckets", "units", "own", "epochs"),
    [
        (4_392, 1_836, 159, 32, 64, 256, True, 10),
        (45_000, 56_758, 4_271, 8, 2048, 256, True, 5),
        (75_735, 27_997, 20_430, 16, 2048, 256, True, 5),
        (90_452, 135_065, 41_218, 16, 2048, 128, True, 5),
        (90_452, 146_484, 16_385, 16, 2048, 128, True, 5),
        (90_452, 146_485, 16_385, 16, 2048, 512, False, 5),
        (10_000, 146_484, 16_384, 8, 2048, 256, True, 10),
        (30_000, 10, 7, 8, 16, 256, True, 8),
        (0, 1, 1, 32, 16, 256, True, 10),
    ],
)
def test_default_sizes(N, D, L, R, buckets, units, own, epochs):
    encoders = {"hidden_size": units, "encoder": "independent" if own else "shared"}
    expected = {"num_repetitions": R, **encoders, "num_buckets": buckets, "epochs": epochs}
    assert training.default_sizes(N, D, L) == expected
