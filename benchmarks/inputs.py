"""What the benchmarks run on: label hashes, bucket scores of many shapes, sparse documents, trained models.

Everything follows from its arguments. Bucket scores come as logits or as probabilities, their sigmoid.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import CACHE
from torch import Tensor

import mach_ext
from mach_ext.runs.workload import peaky_logits, raise_buckets

# ------------------------------------------------------------------------------------------- bucket scores


@functools.lru_cache(maxsize=1)
def label_hash(L: int, R: int, B: int) -> mach_ext.LabelHash:
    """The seeded hash. Labels that collide in all repetitions (small B and R) do not matter to a clock."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        return mach_ext.LabelHash(L, B, R)


def peaky(N: int, hash: mach_ext.LabelHash, generator: torch.Generator) -> Tensor:
    """Like a trained model's on real documents: few high buckets over a low, noisy floor."""
    return peaky_logits(N, hash, generator)


def soft(N: int, hash: mach_ext.LabelHash, generator: torch.Generator) -> Tensor:
    """An uncertain model: background N(-4, 1), and 50 labels a document of logit N(-1, 1)."""
    logits = torch.empty(N, hash.num_repetitions, hash.num_buckets).normal_(-4, 1, generator=generator)
    labels = torch.randint(hash.num_labels, (N, 50), generator=generator)
    strength = torch.empty(N, hash.num_repetitions, 50).normal_(-1, 1, generator=generator)
    raise_buckets(logits, hash, labels, strength)
    return logits


def flat(N: int, hash: mach_ext.LabelHash, generator: torch.Generator) -> Tensor:
    """Adversarial to pruning: independent noise alone, N(0, 1), or uniform on [0, 1) as probabilities."""
    return torch.empty(N, hash.num_repetitions, hash.num_buckets).normal_(generator=generator)


def equal(N: int, hash: mach_ext.LabelHash, generator: torch.Generator) -> Tensor:
    """All scores the same: every label ties, the lowest ones win."""
    return torch.full((N, hash.num_repetitions, hash.num_buckets), -1.0)


def outlier(N: int, hash: mach_ext.LabelHash, generator: torch.Generator) -> Tensor:
    """`peaky` with one logit of 10,000 a document, which makes a step of one scale for all useless."""
    logits = peaky(N, hash, generator)
    at = torch.randint(logits[0].numel(), (N, 1), generator=generator)
    logits.view(N, -1).scatter_(1, at, 1e4)
    return logits


KINDS = {"peaky": peaky, "soft": soft, "flat": flat, "equal": equal, "outlier": outlier}


@functools.lru_cache(maxsize=1)
def bucket_scores(kind: str, N: int, L: int, R: int, B: int, logits: bool = False) -> Tensor:
    """Scores [N, R, B] of one of KINDS for the hash of these sizes."""
    generator = torch.Generator().manual_seed(0)
    if kind == "flat" and not logits:
        return torch.rand(N, R, B, generator=generator)
    scores = KINDS[kind](N, label_hash(L, R, B), generator)
    return scores if logits else scores.sigmoid_()


# -------------------------------------------------------------------------------------------- trained models

DATASETS = {"wordnet": (16, 1000), "eurlex57k": (16, 512)}  # R, B


@functools.lru_cache(maxsize=1)
def dataset(name: str, real_data: Path) -> mach_ext.data.Dataset:
    """wordnet or eurlex57k. The test skips, with the reason, where the dataset is not to be had."""
    try:
        return mach_ext.data.load("wordnet" if name == "wordnet" else real_data / name)
    except (ConnectionError, ValueError) as error:
        pytest.skip(f"no {name}: {error}")


# Of the encoder's rows, in the models that the kept results are of; `fit` had these before encoder_eps.
RATES = {"encoder_learning_rate": 0.02, "encoder_eps": 1e-8}


def trained(
    name: str,
    real_data: Path,
    epochs: int = 2,
    num_repetitions: int | None = None,
    hidden_size: int = 512,
    seed: int = 0,
    num_buckets: int | None = None,
) -> mach_ext.MACH:
    """A model trained once (a minute or two) and kept in the user's cache. Settings are those of `fit`, but
    for RATES."""
    R, B = DATASETS[name]
    R, B = num_repetitions or R, num_buckets or B
    run = f"{name}-R{R}-B{B}-{epochs}-epochs"
    run += (f"-H{hidden_size}" if hidden_size != 512 else "") + (f"-seed{seed}" if seed else "")
    folder = CACHE / f"{run}-{mach_ext.__version__}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)  # at small R they are what is studied
        if not folder.exists():
            data = dataset(name, real_data)
            model = mach_ext.MACH(data.num_features, data.num_labels, R, B, hidden_size, seed=seed)
            X, Y = data.train.X, data.train.Y
            mach_ext.fit(model, X, Y, epochs=epochs, seed=seed, output=folder, progress=False, **RATES)
        return mach_ext.load(folder)


def real_scores(name: str, real_data: Path, N: int) -> tuple[Tensor, mach_ext.LabelHash]:
    """Bucket logits [N, R, B] of the trained model for N test documents, and its label hash."""
    model = trained(name, real_data)
    test = dataset(name, real_data).test
    assert test is not None
    X = test.X[np.linspace(0, test.X.shape[0] - 1, N).astype(int)]
    with torch.inference_mode():
        logits = model(*map(torch.from_numpy, (X.data, X.indices, X.indptr)))
    return logits.contiguous().clone(), model.hash


# ------------------------------------------------------------------------------------------ sparse documents


@functools.lru_cache(maxsize=4)
def documents(N: int, nnz: int, D: int, exponent: float = 0.8) -> tuple[Tensor, Tensor, Tensor]:
    """CSR documents: values, indices (int32) and indptr, with `nnz` distinct features each.

    Feature d has probability proportional to (d + 1)^-exponent, which is Zipf's law (uniform for 0). Distinct
    features by the Gumbel trick: the nnz largest of log p_d + Gumbel noise are draws without replacement.
    Features are numbered at random, as vocabularies are, and ascend within a document.
    """
    rng = np.random.default_rng(0)
    log_p = -exponent * np.log(np.arange(1, D + 1, dtype=np.float32))
    name = rng.permutation(D).astype(np.int32)
    indices = np.empty((N, nnz), np.int32)
    for n in range(N):
        key = log_p - np.log(rng.standard_exponential(D))  # Gumbel noise is -log of an exponential
        indices[n] = np.sort(name[np.argpartition(key, D - nnz)[D - nnz :]])
    values = rng.random(N * nnz, np.float32) + 0.5
    return (
        torch.from_numpy(values),
        torch.from_numpy(indices.reshape(-1)),
        torch.arange(0, N * nnz + 1, nnz, dtype=torch.int32),
    )
