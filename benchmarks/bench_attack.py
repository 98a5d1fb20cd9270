"""Attacks: the step on all features beside N x D written out, and each stage at extreme numbers of labels."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from harness import CACHE, Floor, Part, Target, keep_threats, note, peak_megabytes
from inputs import documents

import mach_ext
from mach_ext import attack
from mach_ext.attack import _dense
from mach_ext.attack._rows import rows_of

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
DENSE = {"N": 1024, "D": 1_000_000, "H": 64}
HOW = "two products of documents, features and hidden units; the weight twice"

# --------------------------------------------------------------------------------------------- all features


@functools.lru_cache(maxsize=1)
def wide(D: int = DENSE["D"]) -> tuple[attack.FGSM, Any, Any]:
    """FGSM over all of D features, and 1,024 documents of 75."""
    model = mach_ext.MACH(D, 10_000, num_repetitions=8, num_buckets=512, hidden_size=DENSE["H"])
    values, indices, indptr = (t.numpy() for t in documents(DENSE["N"], 75, 100_000))
    X = scipy.sparse.csr_matrix((values, indices * (D // 100_000), indptr), (DENSE["N"], D))
    Y = scipy.sparse.random(DENSE["N"], 10_000, density=3e-4, format="csr", random_state=1)
    return attack.FGSM(model, "dense"), X, Y


def test_dense_pass(compare: Any) -> None:
    """What the step does to the hidden layer. Beside it, sign(G W') W is written out with N x D numbers."""
    fgsm, X, _ = wide()
    layer = fgsm._layer
    gradient = torch.randn(DENSE["N"], DENSE["H"], generator=torch.Generator().manual_seed(0))
    _, indices, indptr = fgsm._tensors(X)
    weight = layer.weight[0]

    def ours() -> torch.Tensor:
        entries = _dense.Entries(rows_of(indptr), indices)
        direction = _dense.Direction(layer, gradient[:, None], DENSE["N"])
        return _dense.sign_pass(direction, layer, entries, False)[0][:, 0]

    def materialised() -> torch.Tensor:
        return (gradient @ weight.T).sign_() @ weight

    difference = (ours() - materialised()).abs().max() / ours().abs().max()
    assert difference < 1e-4
    numbers = DENSE["N"] * DENSE["D"] * DENSE["H"]
    compare(
        "attack on all features, the pass",
        {"mach_ext": ours, "materialised": materialised},
        shape=DENSE,
        floor=Floor(HOW, bytes=8 * DENSE["D"] * DENSE["H"], flops=4 * numbers),
        targets=[Target("mach_ext", "materialised", 1 / 1.1)],
        rounds=(3, 3),
    )


def test_a_grid_is_one_pass(compare: Any) -> None:
    fgsm, X, Y = wide()
    numbers = DENSE["N"] * DENSE["D"] * DENSE["H"]
    compare(
        "attack on all features, 6 eps",
        {"mach_ext": lambda: fgsm.perturb(X, Y, GRID), "one eps": lambda: fgsm.perturb(X, Y, 0.01)},
        shape=DENSE,
        floor=Floor(HOW, bytes=8 * DENSE["D"] * DENSE["H"], flops=4 * numbers),
        targets=[Target("mach_ext", "one eps", 1 / 1.2)],
        rounds=(3, 3),
    )


def dense_work() -> Callable[[], Any]:
    small, x, y = wide.__wrapped__(100_000)
    small.perturb(x[:100], y[:100], GRID)
    fgsm, X, Y = wide()
    return lambda: fgsm.perturb(X, Y, GRID)


def test_memory_of_the_dense_pass(request: Any) -> None:
    """N x D numbers would take 4.1 GB."""
    megabytes = peak_megabytes(dense_work)
    note(request, "memory of an attack on all features, 6 eps", DENSE, {"MB": (megabytes, 200)})


# -------------------------------------------------------------------------------------------- extreme labels

LABELS = {"R": 16, "B": 4096, "H": 64, "D": 135_909, "nnz": 75}
KNOWN = 1000  # labels that documents have, out of the first 10,000
FEW = 10_000


def planted_documents(L: int, N: int, seed: int) -> tuple[Any, Any]:
    """Documents of Amazon-670K's shape whose features tell their labels: X [N, D], Y [N, L].

    1,000 labels have 40 features each, drawn by Zipf's law. A document has three labels, 25 of the features
    of each one, values in [0.5, 1.5), and L2 norm 1.
    """
    D = LABELS["D"]
    own = documents(KNOWN, 40, D)[1].numpy().reshape(KNOWN, 40)
    labels = np.random.default_rng(0).choice(FEW, KNOWN, replace=False)
    rng = np.random.default_rng(1 + seed)
    known = np.argsort(rng.random((N, KNOWN)), 1)[:, :3]
    chosen = np.argsort(rng.random((N, 3, 40)), 2)[:, :, :25]
    features = np.take_along_axis(own[known], chosen, 2).reshape(N, 75)
    rows = np.repeat(np.arange(N), 75)
    X = scipy.sparse.csr_matrix((rng.random(N * 75) + 0.5, (rows, features.ravel())), (N, D))
    X = scipy.sparse.diags(1 / np.sqrt(X.multiply(X).sum(1).A1)) @ X
    Y = scipy.sparse.csr_matrix((np.ones(3 * N), (np.repeat(np.arange(N), 3), labels[known].ravel())), (N, L))
    return X.tocsr().astype(np.float32), Y


@functools.lru_cache(maxsize=2)
def planted(L: int) -> mach_ext.MACH:
    """A model of L labels that knows 1,000 of them, all others being rivals in the decode.

    Trained on 4,000 documents with L = 10,000, and kept in the user's cache. A label's buckets don't depend
    on how many labels there are, so the same weights serve any L.
    """
    R, B, H, D = (LABELS[name] for name in "RBHD")
    folder = CACHE / f"planted-{mach_ext.__version__}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        if not folder.exists():
            X, Y = planted_documents(FEW, 4000, seed=0)
            model = mach_ext.MACH(D, FEW, R, B, H)
            mach_ext.fit(model, X, Y, epochs=12, batch_size=100, output=folder, progress=False)
        small = mach_ext.load(folder)
        model = mach_ext.MACH(D, L, R, B, H)
    assert torch.equal(model.hash.buckets[:, :FEW], small.hash.buckets)
    model.load_parameters(dict(small.named_parameters()))
    return model.eval()


def stages(L: int) -> dict[str, Callable[[], Any]]:
    """Stages on 1,000 documents: the gradient, FGSM at six sizes, and the exact decode of 200 documents."""
    model = planted(L)
    X, Y = planted_documents(L, 1000, seed=1)
    fgsm = attack.FGSM(model)
    x, indices, indptr = fgsm._tensors(X)
    goal = fgsm._targets("stages", X, Y, None)
    changed = fgsm.perturb(X[:200], Y[:200], 0.01)
    layer = fgsm._layer

    def gradient() -> torch.Tensor:
        with torch.no_grad():
            _, to_first = fgsm._gradient(layer.first(x, indices, indptr), goal)
            return layer.to_values(to_first, indices, indptr)

    return {
        "gradient": gradient,
        "FGSM, 6 eps": lambda: fgsm.perturb(X, Y, GRID),
        "decode": lambda: changed.predict(5),
    }


@pytest.mark.parametrize("L", [1_000_000, 10_000_000])
def test_extreme_labels(compare: Any, L: int) -> None:
    """The time of each stage. The gradient of a model with L = 10,000 stands beside."""
    small, large = stages(FEW)["gradient"], stages(L)
    floor = 6 * 1000 * LABELS["R"] * LABELS["B"] * LABELS["H"]
    compare(
        "attack on extreme labels: gradient, 1,000 documents, L = 10K beside it",
        {
            "mach_ext": large["gradient"],
            "small model": small,
            "FGSM, 6 eps": large["FGSM, 6 eps"],
            "decode": Part(large["decode"], 5, "200 of 1,000 documents"),
        },
        shape={"L": L, **LABELS},
        floor=Floor("three products of documents, hidden units and buckets", flops=floor),
        targets=[Target("mach_ext", "small model", 1 / 1.2)],
        rounds=(5, 20),
        budget=20,
    )


@pytest.mark.parametrize("L", [1_000_000, 10_000_000])
def test_precision_at_extreme_labels(request: Any, L: int) -> None:
    """P@k and nDCG@k, clean, adversarial and under noise, of 1,000 documents the model was not trained on."""
    X, Y = planted_documents(L, 1000, seed=1)
    evaluation = attack.evaluate(planted(L), X, Y, epsilons=GRID, ks=(1, 3, 5))
    numbers: dict[str, tuple[float, None]] = {"P@1 clean": (evaluation["clean"]["P@1"], None)}
    for entry in evaluation["adversarial"]:
        numbers[f"P@1, eps {entry['epsilon']:g}"] = (entry["metrics"]["P@1"], None)
    keep_threats(request.config.getoption("--results"), f"planted, L = {L}", evaluation)
    note(request, "attack on extreme labels: precision, 1,000 documents", {"L": L, **LABELS}, numbers)


def extreme_work(L: int) -> Callable[[], Any]:
    small = stages(FEW)
    small["FGSM, 6 eps"]()
    small["decode"]()
    large = stages(L)
    large["decode"]()  # builds the decoder's index of the hash, which the model keeps
    return lambda: (large["FGSM, 6 eps"](), large["decode"]())


@pytest.mark.parametrize("L", [1_000_000, 10_000_000])
def test_memory_of_extreme_labels(request: Any, L: int) -> None:
    """FGSM of 1,000 documents at six sizes and the decode of 200, beyond the model and its index."""
    megabytes = peak_megabytes(extreme_work, L)
    note(request, "memory of an attack on extreme labels", {"L": L, **LABELS}, {"MB": (megabytes, None)})
