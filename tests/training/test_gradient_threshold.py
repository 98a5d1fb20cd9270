"""gradient_threshold: small gradients go into the products all together, or are not told apart."""

import pytest
import torch
from training_cases import ARCHITECTURES, X, Y, after_steps, assert_same_run, same_bits, weights

import mach_ext
from mach_ext import _ops
from mach_ext.training import steps


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


def test_negligible_gradients_are_for_the_cpu():
    model = mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=8).to("meta")
    with pytest.raises(ValueError, match="gradient_threshold is for models on the CPU, this one is on meta"):
        mach_ext.fit(model, X, Y, gradient_threshold=0.01)


def test_linear_models_have_no_negligible_gradients():
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    with pytest.raises(ValueError, match="gradient_threshold is for models with a hidden layer"):
        mach_ext.fit(model, X, Y, gradient_threshold=0.01)
