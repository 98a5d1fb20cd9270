"""Are the explanations faithful? A table, and data for a chart.

Run it by `PYTHONPATH=benchmarks python -m studies.faithfulness`.

Models are trained as they are needed and kept in the user's cache.

For the first predicted label of each of 500 test documents, features are ordered by an attribution, highest
first. *Deletion* removes them in that order. *Insertion* puts them in that order into an empty document. The
score (mean logit) is scaled to 1 for the document and 0 for the empty one. It is followed over 21 steps, and
the area under its curve is taken. Small is good for deletion, large for insertion. All dense features of a
document are removed and put in together, as one feature. Orders: Integrated
Gradients (exact), gradient x input, feature ablation (the fall of the score without one feature), and random.

*Stability*: Spearman correlation of the Integrated Gradients of the same document and label in two models of
other hash seed (and initial weights). *Collision check*: precision of the top-5 predictions that
`explain.collisions` calls a signal, and of those that it calls a collision. Beside these stands the precision
of as many signals of the nearest scores. Intervals: 95 %, bootstrap over documents. Results:
results/faithfulness.csv and results/collisions.csv. `make bench-table` draws the chart.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from harness import RESULTS, ROOT, circumstances, write_rows
from inputs import dataset, trained
from tables import TABLES
from torch import Tensor
from tqdm import tqdm

import mach_ext
from mach_ext import explain

REPETITIONS = (3, 8, 16, 32)
SEEDS = (0, 1)
HIDDEN = 128
STEPS = 21
METHODS = ("integrated gradients", "gradient x input", "ablation", "random")
CURVES = ("deletion", "insertion")

Array = np.ndarray[Any, Any]


def attributions(model: mach_ext.MACH, x: Any, label: int, rng: np.random.Generator) -> dict[str, Array]:
    """Each method's attribution of one label to the document's features, [n]."""
    forward, values, (indices, labels) = explain.captum_inputs(model, x, [label])
    values.requires_grad_()
    (gradient,) = torch.autograd.grad(forward(values, indices, labels).sum(), values)
    score = scorer(forward, indices, labels)
    features = features_of(model, values.shape[1])
    n = int(features.max()) + 1
    without = values.detach() * torch.from_numpy(features != np.arange(n)[:, None])
    return {
        "integrated gradients": explain.integrated_gradients(model, x, label).bars.effects[0],
        "gradient x input": np.bincount(features, (gradient * values).detach()[0].numpy()),
        "ablation": score(values.detach())[0] - score(without),
        "random": rng.random(n),
    }


def features_of(model: mach_ext.MACH, columns: int) -> Array:
    """The feature of each column of a document, [nnz]. All dense columns are the last feature."""
    return np.arange(columns).clip(max=columns - max(1, model.num_dense))


def scorer(forward: Any, indices: Tensor, labels: Tensor) -> Callable[[Tensor], Array]:
    """Scores [n] of n versions [n, nnz] of the document's values."""

    def score(values: Tensor) -> Array:
        n = len(values)
        with torch.no_grad():
            scores: Tensor = forward(values, indices.expand(n, -1), labels.expand(n, -1))
        return scores[:, 0].double().numpy()

    return score


def areas(model: mach_ext.MACH, x: Any, label: int, attributions: dict[str, Array]) -> tuple[Array, Array]:
    """Curves [methods, 2, STEPS] and the areas under them [methods, 2] of one document."""
    forward, values, (indices, labels) = explain.captum_inputs(model, x, [label])
    features = features_of(model, values.shape[1])
    n = int(features.max()) + 1
    taken = np.rint(np.linspace(0, n, STEPS)).astype(int)
    kept = []
    for method in METHODS:
        rank = np.empty(n, int)
        rank[np.argsort(-attributions[method], kind="stable")] = np.arange(n)
        first = (rank < taken[:, None])[:, features]  # [STEPS, nnz]
        kept += [~first, first]
    masks = torch.from_numpy(np.concatenate(kept)).float()
    scores = scorer(forward, indices, labels)(values * masks).reshape(len(METHODS), 2, STEPS)
    whole, empty = scores[0, 0, 0], scores[0, 1, 0]
    curves = (scores - empty) / (whole - empty)
    return curves, np.trapezoid(curves, taken / n, axis=2)


def interval(values: Array, rng: np.random.Generator) -> list[float]:
    """Mean with its 95 % bootstrap interval: [mean, low, high]."""
    draws = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    return [float(values.mean()), *np.percentile(draws, (2.5, 97.5)).tolist()]


def collision_check(model: mach_ext.MACH, X: Any, Y: Any) -> dict[str, Any]:
    """Precision of predictions by verdict."""
    verdicts, right, scores = [], [], []
    _, labels = model.predict(X, 5)
    for n in range(X.shape[0]):
        true = set(Y[n].indices.tolist())
        for label in labels[n].tolist():
            check = explain.collisions(model, X[n], label)
            verdicts.append(check.verdict)
            right.append(label in true)
            scores.append(check.score)
    verdict, hit, score = np.array(verdicts), np.array(right), np.array(scores)
    signal = verdict == "signal"
    result: dict[str, Any] = {}
    for name in ("signal", "collision", "undecided"):
        of = verdict == name
        result |= {name: int(of.sum()), f"{name} right": hit[of].mean() if of.any() else None}
    nearest = [np.abs(score[signal] - s).argsort()[:10] for s in score[verdict == "collision"]]
    alike = [hit[signal][i].mean() for i in nearest]
    return result | {"near signal right": np.mean(alike) if alike else None}


def study(
    name: str, real_data: Path, R: int, documents: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """For one dataset and number of repetitions: a row a curve, the mean of both seeds, and a row a seed."""
    rng = np.random.default_rng(R)
    test = dataset(name, real_data).test
    assert test is not None
    rows = np.flatnonzero(np.diff(test.X.indptr) >= 2)
    rows = rows[np.linspace(0, len(rows) - 1, min(documents, len(rows))).astype(int)]
    X, Y = test.X[rows], test.Y[rows]
    models = [trained(name, real_data, num_repetitions=R, hidden_size=HIDDEN, seed=seed) for seed in SEEDS]
    label = models[0].predict(X, 1)[1][:, 0]
    curves, document_areas, stable = [], [], []
    for n in tqdm(range(len(rows)), desc=f"{name} R={R}", leave=False):
        of_seed = [attributions(model, X[n], int(label[n]), rng) for model in models]
        each = [areas(model, X[n], int(label[n]), of) for model, of in zip(models, of_seed, strict=True)]
        curves.append(np.mean([curve for curve, _ in each], 0))
        document_areas.append(np.mean([area for _, area in each], 0))
        both = [of["integrated gradients"] for of in of_seed]
        stable.append(scipy.stats.spearmanr(*both).statistic if X[n].nnz > 2 else np.nan)
    area = np.stack(document_areas)  # [documents, methods, 2]
    stability = np.array(stable)
    about = {"dataset": name, "R": R}
    steady = named("stability", interval(stability[np.isfinite(stability)], rng))
    checks = []
    for seed, model in zip(SEEDS, models, strict=True):
        right = mach_ext.metrics.evaluate(Y, model.predict(X, 1)[1], ks=(1,))["P@1"]
        checks.append(
            about | {"seed": seed, "P@1": right} | steady | collision_check(model, X[:200], Y[:200])
        )
    rows = []
    heights = np.mean(curves, 0)  # [methods, 2, STEPS]
    for i, method in enumerate(METHODS):
        for j, curve in enumerate(CURVES):
            row = about | {"order": method, "curve": curve, "documents": len(area)}
            row |= named("area", interval(area[:, i, j], rng))
            row |= named("IG minus", interval(area[:, 0, j] - area[:, i, j], rng))
            rows.append(
                row | {f"{100 * s / (STEPS - 1):g} %": height for s, height in enumerate(heights[i, j])}
            )
    return rows, checks


def named(name: str, values: list[float]) -> dict[str, float]:
    """Columns of a value and its interval."""
    return dict(zip((name, f"{name} low", f"{name} high"), values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="+", default=["eurlex57k", "wordnet"])
    parser.add_argument("--repetitions", nargs="+", type=int, default=list(REPETITIONS), metavar="R")
    parser.add_argument("--documents", type=int, default=500)
    shared = os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=shared, help="folder with eurlex57k")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    args = parser.parse_args()
    for name in args.datasets:
        for R in args.repetitions:
            curves, checks = study(name, args.data, R, args.documents)
            for file, rows in (("faithfulness", curves), ("collisions", checks)):
                rows = [row | circumstances(args.results) for row in rows]
                write_rows(args.results / f"{file}.csv", rows, ["dataset", "R"])
    print(TABLES["faithfulness"](args.results))


if __name__ == "__main__":
    main()
