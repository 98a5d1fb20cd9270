"""Are the explanations faithful? A table and a plot.

Run: PYTHONPATH=benchmarks python -m studies.faithfulness

Models are trained as they are needed and kept in the user's cache.

For the first predicted label of each of 500 test documents, features are ordered by an attribution, highest
first. *Deletion* removes them in that order, *insertion* puts them in that order into an empty document; the
score (mean logit), scaled to 1 for the document and 0 for the empty one, is followed over 21 steps, and the
area under its curve is taken: small is good for deletion, large for insertion. Orders: Integrated Gradients
(exact), gradient x input, feature ablation (the fall of the score without one feature), and random.

*Stability*: Spearman correlation of the Integrated Gradients of the same document and label in two models of
other hash seed (and initial weights). *Collision check*: precision of the top-5 predictions that
`explain.collisions` calls a signal, of those that it calls a collision, and of as many signals of the nearest
scores. Intervals: 95 %, bootstrap over documents. Results: results/faithfulness.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from harness import RESULTS, ROOT, circumstances
from inputs import dataset, trained
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
    """Each method's attribution of one label to the document's features, [nnz]."""
    forward, values, (indices, labels) = explain.captum_inputs(model, x, [label])
    values.requires_grad_()
    (gradient,) = torch.autograd.grad(forward(values, indices, labels).sum(), values)
    score = scorer(forward, indices, labels)
    without = values.detach() * (1 - torch.eye(values.shape[1]))
    return {
        "integrated gradients": explain.integrated_gradients(model, x, label).attributions[0],
        "gradient x input": (gradient * values).detach()[0].numpy(),
        "ablation": score(values.detach())[0] - score(without),
        "random": rng.random(values.shape[1]),
    }


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
    nnz = values.shape[1]
    taken = np.rint(np.linspace(0, nnz, STEPS)).astype(int)
    kept = []
    for method in METHODS:
        rank = np.empty(nnz, int)
        rank[np.argsort(-attributions[method], kind="stable")] = np.arange(nnz)
        first = rank < taken[:, None]  # [STEPS, nnz]
        kept += [~first, first]
    masks = torch.from_numpy(np.concatenate(kept)).float()
    scores = scorer(forward, indices, labels)(values * masks).reshape(len(METHODS), 2, STEPS)
    whole, empty = scores[0, 0, 0], scores[0, 1, 0]
    curves = (scores - empty) / (whole - empty)
    return curves, np.trapezoid(curves, taken / nnz, axis=2)


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
    result: dict[str, Any] = {
        name: [int((verdict == name).sum()), float(hit[verdict == name].mean()) if name in verdicts else None]
        for name in ("signal", "collision", "undecided")
    }
    nearest = [np.abs(score[signal] - s).argsort()[:10] for s in score[verdict == "collision"]]
    alike = [hit[signal][i].mean() for i in nearest]
    result["signals of those scores"] = float(np.mean(alike)) if alike else None
    return result


def study(name: str, real_data: Path, R: int, documents: int) -> dict[str, Any]:
    """Everything for one dataset and number of repetitions, both seeds."""
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
    result: dict[str, Any] = {
        "dataset": name,
        "R": R,
        "documents": len(rows),
        "P@1": [mach_ext.metrics.evaluate(Y, m.predict(X, 1)[1], ks=(1,))["P@1"] for m in models],
        "areas": {},
        "IG minus": {},
        "stability": interval(stability[np.isfinite(stability)], rng),
        "curves": dict(zip(METHODS, np.mean(curves, 0).round(5).tolist(), strict=True)),
        "collision check": [collision_check(model, X[:200], Y[:200]) for model in models],
    }
    for i, method in enumerate(METHODS):
        for j, curve in enumerate(CURVES):
            result["areas"].setdefault(method, {})[curve] = interval(area[:, i, j], rng)
            result["IG minus"].setdefault(method, {})[curve] = interval(area[:, 0, j] - area[:, i, j], rng)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: areas, a row a dataset, R and method; then stability and collision check."""
    rows = [("data", "R", "order", "deletion area", "insertion area", "IG - it, deletion"), ("---",) * 6]
    for r in results:
        for method in METHODS:
            cells = [_interval(r["areas"][method][curve]) for curve in CURVES]
            margin = "" if method == METHODS[0] else _interval(r["IG minus"][method]["deletion"])
            rows.append((r["dataset"], str(r["R"]), method, *cells, margin))
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    head = ("data", "R", "P@1", "stability", "signals right", "collisions right", "signals of those scores")
    rows = [head, ("---",) * len(head)]
    for r in results:
        checks = r["collision check"]
        shares = [" / ".join(_share(*check[name]) for check in checks) for name in ("signal", "collision")]
        alike = " / ".join(_share(None, check["signals of those scores"]) for check in checks)
        right = " / ".join(_share(None, p) for p in r["P@1"])
        rows.append((r["dataset"], str(r["R"]), right, _interval(r["stability"]), *shares, alike))
    return text + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _interval(values: list[float]) -> str:
    mean, low, high = values
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _share(count: int | None, share: float | None) -> str:
    if share is None:
        return "-"
    return f"{share:.1%}" if count is None else f"{share:.1%} of {count}"


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """A row a dataset: deletion and insertion curves at the largest R, areas over R, stability."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["dataset"] for r in results))
    figure = Figure(figsize=(12.5, 3.1 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 4, squeeze=False)
    colours = dict(zip(METHODS, ("#2166ac", "#c8571b", "#3f8f5f", "#8a949f"), strict=True))
    for row, name in zip(grid, names, strict=True):
        mine = [r for r in results if r["dataset"] == name]
        R = [str(r["R"]) for r in mine]

        def bars(axes: Any, intervals: list[list[float]], colour: str, at: list[str] = R) -> None:
            mean, low, high = np.array(intervals).T
            error = (mean - low, high - mean)
            axes.errorbar(at, mean, error, color=colour, marker="o", markersize=4, capsize=3)

        for j, (curve, verb) in enumerate(zip(CURVES, ("removed", "inserted"), strict=True)):
            for method, colour in colours.items():
                heights = mine[-1]["curves"][method][j]
                row[j].plot(np.linspace(0, 100, STEPS), heights, color=colour, label=method)
            row[j].set(title=f"{name}, R={R[-1]}: {curve}", xlabel=f"features {verb}, %")
        for method, colour in colours.items():
            bars(row[2], [r["areas"][method]["deletion"] for r in mine], colour)
        row[2].set(title="deletion area", xlabel="R")
        bars(row[3], [r["stability"] for r in mine], colours[METHODS[0]])
        row[3].set(title="IG across hash seeds", xlabel="R", ylim=(0, 1), ylabel="Spearman correlation")
        row[0].set(ylabel="score, scaled")
        row[0].legend(frameon=False, fontsize=8)
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="+", default=["eurlex57k", "wordnet"])
    parser.add_argument("--repetitions", nargs="+", type=int, default=list(REPETITIONS), metavar="R")
    parser.add_argument("--documents", type=int, default=500)
    shared = os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=shared, help="folder with eurlex57k")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and plot go")
    args = parser.parse_args()
    file = args.results / "faithfulness.json"
    kept = json.loads(file.read_text())["results"] if file.exists() else []
    by_key = {(r["dataset"], r["R"]): r for r in kept}
    for name in args.datasets:
        for R in args.repetitions:
            by_key[name, R] = study(name, args.data, R, args.documents)
            results = [by_key[key] for key in sorted(by_key)]
            record = {"hidden_size": HIDDEN, "seeds": SEEDS, **circumstances(), "results": results}
            file.write_text(json.dumps(record, indent=1) + "\n")
    plot(results, file.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
