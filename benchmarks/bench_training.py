"""Training steps as `fit` runs them, beside the same model written in plain PyTorch.

Two more subjects are the memory of a step, and what skipping negligible gradients does to dev P@k.

A share of an epoch is timed (`STEPS` steps of each provider in turn, again and again) and scaled to the
epoch. Data order, batches and mathematics are the same. A check comes first that the losses are.
"""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Floor, Part, Target, circumstances, note, num_threads, write_rows
from inputs import DATASETS, dataset, trained
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

import mach_ext
from mach_ext import _ops
from mach_ext.data import Batch, iter_batches
from mach_ext.training import Hyperparameters
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

BATCH, STEPS = 256, 4
NEGLIGIBLE = 0.01  # fit's gradient_threshold in the rows that skip


# ------------------------------------------------------------------------------------------------- providers


class Ours:
    """Steps of `fit`, batch after batch, epoch after epoch."""

    def __init__(self, model: mach_ext.MACH, X: Any, Y: Any, **settings: Any) -> None:
        settings = Hyperparameters.of(model, schedule="constant", **settings)
        self.run = TrainingRun(model, settings, TrainingData(X, Y))
        self.batches = endless(X, Y)

    def steps(self, count: int = STEPS) -> float:
        """Mean loss of the documents of these steps."""
        state = self.run.state
        state.loss_sum, state.documents = 0.0, 0
        for batch in itertools.islice(self.batches, count):
            self.run.step(batch)
        return state.loss_sum / state.documents


class Plain:
    """The same model in plain PyTorch: EmbeddingBag(sparse), BCE with logits against dense targets.

    `parts` are trained one after the other in a step, as separate graphs: [values, indices, indptr] ->
    logits of repetitions [first, last).
    """

    def __init__(self, model: mach_ext.MACH, X: Any, Y: Any) -> None:
        self.R, self.B = model.num_repetitions, model.num_buckets
        self.buckets = model.hash.buckets.long()  # [R, L]
        self.batches = endless(X, Y)

    def steps(self, count: int = STEPS) -> float:
        losses = [self.step(batch) for batch in itertools.islice(self.batches, count)]
        return sum(losses) / len(losses)

    def targets(self, batch: Batch, first: int, last: int) -> Tensor:  # [N, (last - first) * B]
        N = len(batch.indptr) - 1
        offsets = torch.arange(last - first)[:, None] * self.B
        columns = self.buckets[first:last, batch.label_indices.long()] + offsets
        rows = torch.repeat_interleave(torch.arange(N), batch.label_indptr.diff().long())
        targets = torch.zeros(N, (last - first) * self.B)
        targets[rows.expand_as(columns), columns] = 1.0
        return targets

    def step(self, batch: Batch) -> float:
        raise NotImplementedError


class PlainHidden(Plain):
    """EmbeddingBag(sparse) + bias + relu + Linear, SparseAdam for the embedding, Adam for the rest."""

    def __init__(self, model: mach_ext.MACH, X: Any, Y: Any) -> None:
        super().__init__(model, X, Y)
        R, H, B = model.bucket_weight.shape
        with torch.no_grad():
            self.embedding = nn.Parameter(model.encoder_weight.clone())
            self.bias = nn.Parameter(model.encoder_bias.clone())
            self.output = nn.Linear(H, R * B)
            self.output.weight.copy_(model.bucket_weight.transpose(1, 2).reshape(R * B, H))
            self.output.bias.copy_(model.bucket_bias.reshape(-1))
        rates = Hyperparameters()
        self.optimizers = [
            torch.optim.SparseAdam([self.embedding], lr=rates.encoder_learning_rate, eps=rates.encoder_eps),
            torch.optim.Adam([self.bias, *self.output.parameters()], lr=rates.learning_rate),
        ]

    def step(self, batch: Batch) -> float:
        hidden = torch.relu(bag(batch, self.embedding) + self.bias)
        targets = self.targets(batch, 0, self.R)
        loss = binary_cross_entropy_with_logits(self.output(hidden), targets, reduction="sum")
        loss = loss / (len(targets) * self.R)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()


class PlainLinear(Plain):
    """One EmbeddingBag(sparse) [D, B] a repetition, sparse Adagrad: the R classifiers share nothing.

    Only the first `repetitions` of them are held and trained. The others cost the same.
    """

    def __init__(self, model: mach_ext.MACH, X: Any, Y: Any, repetitions: int) -> None:
        super().__init__(model, X, Y)
        weights = model.bucket_weight.detach()[:repetitions]
        self.weights = [nn.Parameter(weight.clone()) for weight in weights]
        self.biases = [nn.Parameter(bias.clone()) for bias in model.bucket_bias.detach()[:repetitions]]
        rate = Hyperparameters.of(model).learning_rate
        self.optimizers = [
            torch.optim.Adagrad(pair, lr=rate) for pair in zip(self.weights, self.biases, strict=True)
        ]

    def step(self, batch: Batch) -> float:
        total = 0.0
        for r, optimizer in enumerate(self.optimizers):
            logits = bag(batch, self.weights[r]) + self.biases[r]
            targets = self.targets(batch, r, r + 1)
            loss = binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)
            optimizer.zero_grad()
            (loss / self.R).backward()
            optimizer.step()
            total += loss.item()
        return total / len(self.weights)


def bag(batch: Batch, weight: Tensor) -> Tensor:
    return embedding_bag(
        batch.indices, weight, batch.indptr, mode="sum", sparse=True,
        per_sample_weights=batch.values, include_last_offset=True,
    )  # fmt: skip


def endless(X: Any, Y: Any) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from iter_batches(X, Y, BATCH, seed=0, epoch=epoch)


# ---------------------------------------------------------------------------------------------------- epochs


def epoch(compare, work, model, X, ours, plain, floor, targets, fraction=1.0):
    """Times STEPS steps of each provider in turn, scaled to an epoch of the documents X."""
    scale = X.shape[0] / BATCH / STEPS
    what = f"{STEPS} steps a round, scaled to {X.shape[0]} documents"
    providers = {name: Part(run.steps, scale, what) for name, run in ours.items()}
    share = "" if fraction == 1 else f", {1 / fraction:g} of {model.num_repetitions} repetitions"
    providers["torch"] = Part(plain.steps, scale * fraction, what + share)
    compare(
        work,
        providers,
        shape={"N": X.shape[0], "nnz": X.nnz / X.shape[0], "batch": BATCH}
        | {"D": model.num_features, "R": model.num_repetitions, "B": model.num_buckets}
        | {"H": sum(model.hidden_sizes)},
        floor=floor,
        targets=targets,
        budget=15.0,
        rounds=(3, 40),
    )


def rows_a_step(X: Any) -> float:
    """Distinct features in a batch, the mean over eight."""
    batches = itertools.islice(iter_batches(X, X[:, :1], BATCH, seed=0), 8)
    return sum(len(batch.indices.unique()) for batch in batches) / 8


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_linear_epoch(compare, real_data):
    train = dataset("eurlex57k", real_data).train
    X, Y = mach_ext.data.check_csr(train.X), train.Y
    R, B = DATASETS["eurlex57k"]
    model = mach_ext.MACH(X.shape[1], Y.shape[1], R, B, hidden_size=0)
    plain = PlainLinear(model, X, Y, repetitions=2)
    ours = Ours(model, X, Y)
    # The mean loss of two repetitions against that of all: other buckets, so equal only nearly.
    assert ours.steps(8) == pytest.approx(plain.steps(8), rel=0.01)
    steps, rows = X.shape[0] / BATCH, rows_a_step(X)
    floor = Floor(
        "rows that occur in a step: read, then weight and squares read and written; forward and backward "
        "products of the non-zeros, 16 a cycle",
        bytes=steps * rows * R * B * 4 * 5,
        cycles=2 * X.nnz * R * B / 16,
    )
    targets = [Target("mach_ext", "torch", 6.0)]
    epoch(
        compare, "epoch of linear MACH, eurlex57k", model, X, {"mach_ext": ours}, plain, floor, targets, R / 2
    )


def test_svm(compare, real_data):
    """Buckets solved to the same tolerance. Both solvers stop within it, at different passes."""
    train = dataset("eurlex57k", real_data).train
    Y, B, M, few = train.Y, 512, 32, 4
    X = mach_ext.data.check_csr(train.X)
    buckets = mach_ext.LabelHash(Y.shape[1], B, 8).buckets[0]
    documents = torch.from_numpy(X.data), torch.from_numpy(X.indices), torch.from_numpy(X.indptr).long()
    labels = torch.from_numpy(Y.indices).long(), torch.from_numpy(Y.indptr).long()
    weight, bias = torch.empty(X.shape[1], M), torch.empty(M)

    def ours():
        return _ops.bucket_svm(*documents, buckets, *labels, 0, 1.0, 0.1, 100, None, weight, bias)

    def liblinear():
        weights = []
        for b in range(few):
            y = np.asarray(Y[:, buckets.numpy() == b].sum(1)).ravel() > 0
            weights.append(LinearSVC(tol=0.1, max_iter=100, dual=True, random_state=0).fit(X, y).coef_[0])
        return np.stack(weights, 1)

    passes = int(ours().max())
    np.testing.assert_allclose(weight[:, :few], liblinear(), atol=0.1)
    compare(
        "SVMs of buckets, eurlex57k",
        {"mach_ext": ours, "liblinear": Part(liblinear, M / few, f"{few} of {M} buckets")},
        shape={"N": X.shape[0], "nnz": X.nnz / X.shape[0], "D": X.shape[1], "M": M},
        floor=Floor(
            f"{passes} passes for each 16 buckets: a non-zero, its row of 16 weights, read, "
            "and written by a quarter of the documents",
            bytes=passes * X.nnz * M / 16 * (8 + 64 * 1.25),
            cycles=passes * X.nnz * M / 16 * 1.25,
        ),
        targets=[Target("mach_ext", "liblinear", 3.0)],
        budget=10.0,
        rounds=(3, 10),
    )


@pytest.mark.parametrize("stage", ["first steps", "after 2 epochs"])
@pytest.mark.parametrize("name", ["wordnet", "eurlex57k"])
def test_hidden_epoch(compare, real_data, name, stage):
    train = dataset(name, real_data).train
    X, Y = mach_ext.data.check_csr(train.X), train.Y
    R, B = DATASETS[name]
    model = (
        mach_ext.MACH(X.shape[1], Y.shape[1], R, B)
        if stage == "first steps"
        else trained(name, real_data).train()
    )
    plain = PlainHidden(model, X, Y)
    ours = {
        "mach_ext": Ours(copy.deepcopy(model), X, Y),
        "mach_ext, negligible skipped": Ours(model, X, Y, gradient_threshold=NEGLIGIBLE),
    }
    losses = [run.steps(1) for run in (plain, *ours.values())]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    steps, rows, H = X.shape[0] / BATCH, rows_a_step(X), model.hidden_sizes[0]
    floor = Floor(
        "the three matrix products of a step; bucket weights, encoder rows that occur, and their moments, "
        "read and written",
        bytes=steps * 24 * H * (R * B + rows),
        flops=6 * X.shape[0] * H * R * B,
    )
    targets = [
        Target("mach_ext", "torch", 1.8),
        Target("mach_ext, negligible skipped", "torch", None if stage == "first steps" else 3.0),
    ]
    work = f"epoch of hidden-layer MACH, {name}, {stage}"
    epoch(compare, work, model, X, ours, plain, floor, targets)


# ------------------------------------------------------------------------------------------------- dev P@k

SEEDS = (0, 1)


@pytest.mark.parametrize("name", ["eurlex57k", "wordnet"])
def test_negligible_gradient(request, real_data, name):
    """Dev P@k of whole trainings by `fit`'s defaults, with NEGLIGIBLE and without.

    The test split isn't read. There is one thread, and seconds are the processor's, so that other work on the
    machine adds little to them. The same seeds
    (label hash, first weights, order of the documents) with both.
    """
    data = dataset(name, real_data)
    dev = (data.dev.X, data.dev.Y)
    R, B = DATASETS[name]
    runs = []
    with num_threads(1):
        for seed, negligible in itertools.product(SEEDS, (0.0, NEGLIGIBLE)):
            model = mach_ext.MACH(data.num_features, data.num_labels, R, B, seed=seed)
            start = time.process_time()
            settings = {"seed": seed, "gradient_threshold": negligible, "progress": False}
            record = mach_ext.fit(model, data.train.X, data.train.Y, *dev, **settings)
            best = record.history[record.best_epoch - 1]
            runs.append(
                {"dataset": name, "seed": seed, "gradient_threshold": negligible}
                | {"best_epoch": record.best_epoch, **best["dev"], "loss": best["loss"]}
                | {"training_seconds": time.process_time() - start}
            )
    folder = request.config.getoption("--results")
    rows = [run | circumstances(folder) for run in runs]
    write_rows(folder / "gradient_threshold.csv", rows, ["dataset"])
    exact, skipped = (sum(run["P@1"] for run in runs[first::2]) / len(SEEDS) for first in (0, 1))
    shape = {"N": data.train.X.shape[0], "dev": dev[0].shape[0], "R": R, "B": B, "H": 512}
    shape |= {"epochs": Hyperparameters().epochs, "seeds": len(SEEDS)}
    note(
        request,
        f"dev P@1, {name}, negligible gradients skipped and not",
        shape,
        {"points of difference, mean of the seeds": (100 * abs(skipped - exact), 0.1)},
        provider="mach_ext, negligible skipped",
        threads=1,
    )


# ---------------------------------------------------------------------------------------------------- memory

STEP_MEMORY = """
import sys, numpy as np, scipy.sparse, torch, mach_ext
sys.path.insert(0, {folder!r})
from bench_training import Ours

def memory(key):
    return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))

N, nnz, D, L, H = 512, 100, 2000, 50_000, 128  # every row occurs: untouched memory does not count
X = scipy.sparse.random(N, D, density=nnz / D, format="csr", dtype=np.float32, random_state=0)
Y = scipy.sparse.random(N, L, density=4 / L, format="csr", dtype=np.float32, random_state=1)

def ours(R, B):
    return Ours(mach_ext.MACH(D, L, R, B, H), X, Y, batch_size=N)

ours(8, 50).steps(2)  # threads and allocators warm
before = memory("VmRSS")
big = ours({R}, 8000)
big.steps(1)  # the moments are there
open("/proc/self/clear_refs", "w").write("5")  # restart the peak
big.steps(2)
held = sum(p.nbytes for p in big.run.model.parameters()) * 3 + big.run.model.hash.buckets.nbytes
print(memory("VmHWM") - before - held)
"""


def test_step_memory(request):
    """Peak of a step of `fit` beyond weights, moments and the hash's table, R = 8 and 64.

    Gradients of the classifiers are not taken off: a step does not hold them.
    """
    beyond = {}
    for R in (8, 64):
        script = STEP_MEMORY.format(folder=str(Path(__file__).parent), R=R)
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        beyond[R] = int(run.stdout)
    shape = {"N": 256, "nnz": 100, "D": 2000, "L": 50_000, "H": 128, "B": 8000}
    work = "memory of a training step beyond weights and moments"
    note(request, work, shape, {"R 64 / R 8": (beyond[64] / beyond[8], 1.2)})
