"""Explanations: many labels at once beside Captum, cost and memory at any D and L, and completeness."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from captum.attr import IntegratedGradients
from harness import Floor, Part, Target, note, peak_megabytes
from inputs import dataset, label_hash, trained

import mach_ext
from mach_ext import explain

HOW = "bucket columns of the labels (a cache line each) and encoder rows of the document, once"


def floor(nnz: int, m: int, model: mach_ext.MACH) -> Floor:
    H = model.hidden_sizes[0]
    line = min(64 * m, 4 * model.num_buckets)  # columns of one row may share cache lines
    return Floor(HOW, bytes=4.0 * nnz * H + model.num_repetitions * H * line)


def test_many_labels(compare: Any, real_data: Path) -> None:
    """100 labels of one document. Captum takes a call a label, with 50 steps, and 10 labels are timed."""
    model, test = trained("eurlex57k", real_data), dataset("eurlex57k", real_data).test
    assert test is not None
    lengths = np.diff(test.X.indptr)
    x = test.X[int(np.argsort(lengths)[len(lengths) // 2])]  # of median length
    labels = model.predict(x, 100)[1][0]

    def captum(count: int, n_steps: int = 50) -> np.ndarray[Any, Any]:
        rows = []
        for label in labels[:count]:
            forward, inputs, args = explain.captum_inputs(model, x, [label])
            options = {"target": 0, "n_steps": n_steps, "additional_forward_args": args}
            rows.append(IntegratedGradients(forward).attribute(inputs, **options)[0].numpy())
        return np.stack(rows)

    theirs = captum(100)
    stepped = explain.integrated_gradients(model, x, labels, n_steps=50)
    exact = explain.integrated_gradients(model, x, labels)
    scale = np.abs(exact.attributions).max(1, keepdims=True)
    assert (np.abs(stepped.attributions - theirs) / scale).max() < 1e-5
    differences = {}
    for steps, few in ((50, captum(5)), (200, captum(5, 200)), (1000, captum(5, 1000))):
        differences[steps] = float((np.abs(exact.attributions[:5] - few) / scale[:5]).max())
    assert differences[1000] < min(1e-3, differences[50])
    ours = ("mach_ext", "mach_ext 50 steps")
    compare(
        "explain 100 labels of a document",
        {
            "mach_ext": lambda: explain.integrated_gradients(model, x, labels),
            "mach_ext 50 steps": lambda: explain.integrated_gradients(model, x, labels, n_steps=50),
            "captum, 50 steps": Part(lambda: captum(10), 10, "10 of 100 labels"),
        },
        shape={"nnz": x.nnz, "m": 100, "R": 16, "B": 512, "H": 512},
        floor=floor(x.nnz, 100, model),
        targets=[Target(name, "captum, 50 steps", 50) for name in ours],
        **{f"difference at {steps} steps": value for steps, value in differences.items()},
    )


def explaining(D: int, L: int, m: int = 5) -> tuple[mach_ext.MACH, Callable[[], Any]]:
    """A model of R = 16, B = 20,000, H = 64 and a call that explains its next document, of 100 features."""
    model = mach_ext.MACH(D, L, 16, 20_000, 64, hash=label_hash.__wrapped__(L, 16, 20_000))
    rng = np.random.default_rng(0)
    X = [
        scipy.sparse.csr_matrix(
            (rng.random(100, np.float32), np.sort(rng.choice(D, 100, replace=False)), [0, 100]), (1, D)
        )
        for _ in range(200)
    ]
    work = itertools.cycle(zip(X, rng.integers(0, L, (200, m)), strict=True))
    return model, lambda: explain.integrated_gradients(model, *next(work))


@pytest.mark.parametrize(("D", "L"), [(10_000, 10_000_000), (1_000_000, 10_000_000)])
def test_size_of_the_model_costs_nothing(compare: Any, D: int, L: int) -> None:
    """Beside a model of D = L = 10,000 and the same R, B, H. Every call has a new document."""
    model, large = explaining(D, L)
    _, small = explaining(10_000, 10_000)
    compare(
        "explain 5 labels, model of D = L = 10K beside it",
        {"mach_ext": large, "small model": small},
        shape={"nnz": 100, "m": 5, "D": D, "L": L, "R": 16, "B": 20_000, "H": 64},
        floor=floor(100, 5, model),
        targets=[Target("mach_ext", "small model", 1 / 1.2 if D == 10_000 else 1 / 1.3)],
        rounds=(20, 2000),
    )


def prepared() -> Callable[[], Any]:
    """Explanations of a model of D = 1M, L = 10M."""
    _, small = explaining(10_000, 10_000)
    small()
    _, large = explaining(1_000_000, 10_000_000)
    return lambda: (large(), large())


def test_memory(request: Any) -> None:
    """Peak beyond what the model holds, of explanations of a model of D = 1M, L = 10M."""
    megabytes = peak_megabytes(prepared)
    note(
        request,
        "memory of an explanation beyond the model",
        {"D": 1_000_000, "L": 10_000_000, "R": 16, "B": 20_000, "H": 64, "nnz": 100, "m": 5},
        {"MB": (megabytes, 100)},
    )


@pytest.mark.parametrize("name", ["eurlex57k", "wordnet"])
def test_completeness(request: Any, real_data: Path, name: str) -> None:
    """The largest |delta| / (|F(x)| + |F(0)|) of 500 test documents and their two best labels each."""
    model, test = trained(name, real_data), dataset(name, real_data).test
    assert test is not None
    rows = np.flatnonzero(np.diff(test.X.indptr))
    X = test.X[rows[np.linspace(0, len(rows) - 1, 500).astype(int)]]
    largest = {}
    for what, merge, options in (
        ("exact", "mean_logit", {}),
        ("steps", "mean_logit", {"method": "gausslegendre"}),
        ("steps, mean of probabilities", "mean_prob", {"score": "model"}),
    ):
        model.merge = merge
        relative = [
            np.abs(explanation.delta) / (np.abs(explanation.scores) + np.abs(explanation.baseline_scores))
            for explanation in explain.explain_topk(model, X, 2, **options)
        ]
        largest[f"largest delta, {what}"] = float(np.max(relative)), 1e-5 if what == "exact" else 1e-3
    note(request, f"completeness on 1,000 pairs of {name}", {"R": 16, "B": model.num_buckets}, largest)
