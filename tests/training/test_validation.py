"""The best epoch is kept, ties go by loss, patience runs out; logits are adjusted for dev and at the end."""

import numpy as np
import pytest
import scipy.sparse
import torch
from training_cases import COUNTS, X, Y, build, options, same_bits, weights

import mach_ext
from mach_ext import training
from mach_ext.training import validation
from mach_ext.training.run import TrainingRun


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
