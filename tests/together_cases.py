"""What tests of trainings on several processes share: a corpus, kinds of models, and processes that die."""

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

import mach_ext
from mach_ext import data
from mach_ext.training.run import TrainingRun

D, L, E = 83, 30, 3
TRAIN, HELD_OUT = 400, 500  # documents: 25 steps an epoch
PRIOR = (np.arange(L) + 1.0) / (L * (L + 1) / 2)
SMALL = {"num_repetitions": 5, "num_buckets": 12, "epochs": 3, "batch_size": 16, "learning_rate": 0.05}
# Models whose repetitions share nothing: they end with the bits of one process. BLAS rounds by the place of a
# matrix in memory, and these sizes let each repetition begin at a multiple of 16 bytes.
EXACT = {
    "linear": {"hidden_size": 0, "learning_rate": 0.5},
    "linear, Adam, dense": {"hidden_size": 0, "optimizer": "adam", "feature_dropout": 0.1, "dense": True},
    "SVM": {"svm": True, "num_buckets": 17},
    "independent": {"hidden_size": 16, "encoder": "independent", "patience": 1, "learning_rate": 0.2},
    "independent, dropout": {
        "hidden_size": 16, "encoder": "independent", "hidden_dropout": 0.1, "feature_dropout": 0.1,
    },
    "independent, two layers": {"hidden_size": (32, 16), "encoder": "independent", "hidden_dropout": 0.1},
    "independent, threshold, dense": {
        "hidden_size": 16, "encoder": "independent", "gradient_threshold": 0.02, "dense": True,
    },
}  # fmt: skip
# Models whose sums have another order: a shared encoder is cut by unit, or the sizes are odd.
ROUNDED = {
    "shared, dropout": {"hidden_size": 33, "hidden_dropout": 0.1, "feature_dropout": 0.1},
    "shared, two layers": {"hidden_size": (33, 17)},
    "shared, dense": {"hidden_size": (32, 16), "dense": True},
    "independent, odd": {"hidden_size": 17, "encoder": "independent", "num_buckets": 11},
    "independent, odd, dense": {"hidden_size": (15, 7), "encoder": "independent", "dense": True},
}
STOPPED = ("linear", "independent, dropout", "shared, two layers")
STOP_AT = 35  # steps; ranks agree after every 16 steps of an epoch, and an epoch has 25


def corpus(has_dense=False):
    """Documents of 8 words, of which 5 belong to their first label. The second label is chance."""
    rng = np.random.default_rng(0)
    own = np.stack([rng.choice(D, 6, replace=False) for _ in range(L)])
    splits = {}
    for name, count in (("train", TRAIN), ("dev", HELD_OUT), ("test", HELD_OUT)):
        labels = np.stack([rng.choice(L, 2, replace=False, p=PRIOR) for _ in range(count)])
        words = np.concatenate(
            [rng.permuted(own[labels[:, 0]], axis=1)[:, :5], rng.integers(0, D, (count, 3))], 1
        )
        X = sparse.csr_matrix(
            (np.ones(words.size, np.float32), (np.arange(count).repeat(8), words.ravel())), (count, D)
        )
        Y = sparse.csr_matrix(
            (np.ones(2 * count, np.float32), (np.arange(count).repeat(2), labels.ravel())), (count, L)
        )
        dense = rng.normal(size=(count, E)) + labels[:, :1] % 3 if has_dense else None
        splits[name] = data.Split(
            data.check_csr(X), data.check_labels(Y), dense=None if dense is None else dense.astype(np.float32)
        )
    return data.Dataset("corpus", Path("nowhere"), **splits)


def train(name, folder, **options):
    """Train a model of a kind."""
    given = SMALL | {**EXACT, **ROUNDED}[name]
    has_dense = given.pop("dense", False)
    if given.get("svm"):
        given = {key: given[key] for key in ("svm", "num_repetitions", "num_buckets")}
    return mach_ext.train(corpus(has_dense), output=folder, progress=False, **{**given, **options})


def weights_of(folder):
    """Weights and logit adjustment of the model in a folder."""
    return mach_ext.load(folder).state_dict()


def metrics_of(folder):
    """What is measured of a run. Digests of shards and seconds are its own."""
    kept = json.loads((Path(folder) / "metrics.json").read_text())
    return {key: value for key, value in kept.items() if key not in ("weights", "seconds", "path")}


def files_of(folder):
    """The kinds of files in a folder."""
    return {file.name.partition("-")[0] for file in Path(folder).iterdir()}


FINISHED = {"model.json", "checkpoint.json", "metrics.json", "weights", "run", "label_counts"}


# ---------------------------------------------------------------------------------------------- interruption


class Steps:
    """Does something before a step of a training, in a block."""

    def __init__(self, at, action):
        self.at, self.action, self.taken = at, action, 0

    def __enter__(self):
        self.step = step = TrainingRun.step

        def count(run, batch):
            self.taken += 1
            if self.taken == self.at:
                self.action()
            step(run, batch)

        TrainingRun.step = count

    def __exit__(self, *_):
        TrainingRun.step = self.step


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def stop(name, folder, here=True):
    """Train until Ctrl-C comes to a process, if it is this one. All processes stop."""
    with Steps(STOP_AT, interrupt if here else lambda: None):
        try:
            train(name, folder)
        except mach_ext.training.TrainingInterrupted as error:
            return str(error)
    raise AssertionError("the training was not stopped")


# ----------------------------------------------------------------------------------------------------- death


class Moments:
    """Counts the steps and the changes of folders that this process makes, and dies at one of them."""

    def __init__(self, at=None):
        self.at, self.count = at, 0

    def before(self, change):
        def call(*args, **kwargs):
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            return change(*args, **kwargs)

        return call

    def __enter__(self):
        """For the rest of the process."""
        train = TrainingRun.train
        TrainingRun.train = lambda run, seconds: train(run, 0)  # a checkpoint whenever ranks agree
        os.replace, os.fsync, os.unlink = map(self.before, (os.replace, os.fsync, os.unlink))
        Path.unlink, TrainingRun.step = self.before(Path.unlink), self.before(TrainingRun.step)
        return self

    def __exit__(self, *_):
        pass


def count_moments(rank, name, folder):
    """Train to the end, and keep the number of moments."""
    with Moments() as moments:
        train(name, folder / "run")
    (folder / f"moments {rank}").write_text(str(moments.count))


def die(rank, name, folder, victim, moment, resume=False):
    """Train until the victim dies."""
    with Moments(moment if rank == victim else None):
        train(name, folder / "run", resume=resume)


def die_again(name, plan):
    """Train, and let a rank die in each attempt of a launch, by a plan of (victim, moment)."""
    torch.set_num_threads(1)
    attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    victim, moment = plan[attempt] if attempt < len(plan) else (None, None)
    if rank == 0:
        files = sorted(file.name for file in Path("run").iterdir()) if Path("run").exists() else []
        Path(f"found {attempt}").write_text("\n".join(files))
    with Moments(moment if rank == victim else None) as moments:
        train(name, "run")
    return moments.count


def draw_plan(seed, deaths, size, moments):
    """The rank and the moment of each death."""
    rng = random.Random(seed)
    return [(rng.randrange(size), rng.randrange(moments)) for _ in range(deaths)]
