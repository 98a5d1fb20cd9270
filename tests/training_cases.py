"""What tests of training share: a small corpus, architectures, runs of some steps, comparison of runs."""

import functools

import numpy as np
import scipy.sparse
import torch

import mach_ext
from mach_ext import training
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

ARCHITECTURES = {
    "linear": {"hidden_size": 0},
    "shared": {"hidden_size": 16, "hidden_dropout": 0.2, "feature_dropout": 0.1},
    "independent": {"hidden_size": 8, "encoder": "independent"},
    "two layers": {"hidden_size": (48, 32)},
}
# A run of several epochs with dropout, small.
rng = np.random.default_rng(0)
labels = np.repeat(np.arange(300), 3), rng.integers(0, 60, 900)
Y = scipy.sparse.csr_matrix((np.ones(900), labels), (300, 60))
X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
COUNTS = (Y.toarray() > 0).sum(0)
options = {
    "epochs": 6, "batch_size": 16, "learning_rate": 0.01, "progress": False, "checkpoint_minutes": 0.0,
}  # fmt: skip


def build():
    return mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=32, hidden_dropout=0.3)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k].view(torch.int32), b[k].view(torch.int32)) for k in a
    )


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
