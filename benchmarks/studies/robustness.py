"""What makes MACH robust? With `make bench-table` it makes docs/results/robustness.md.

Run: PYTHONPATH=benchmarks python -m studies.robustness

Models are trained as they are needed and kept in the user's cache; results that are there are not made again.

*Threats*: a model of 512 hidden units, trained for 5 epochs, under each threat model at six sizes, on test
documents.

*Models*: around one base (R = 16, B of the dataset, H = 128, merge mean_logit, 2 epochs), R, B, H and the
merge are changed one at a time, on a fixed sample of dev documents. Attacks on a document's own features:
FGSM and PGD (10 steps) of the bucket loss, which do not know the merge; and FGSM of the *margin* of the first
label, where it is right, over the second (goal "positive", k = 1). P@k clean, adversarial and under noise of
the same size; where there are two models of other hash seeds, each also answers the documents that PGD made
for the other (transfer), and figures are means of both. *Kept* is P@k adversarial over P@k clean, *half* the
epsilon at which half is kept, on a logarithmic line between the sizes. Intervals: 95 %, bootstrap over
documents; they don't hold what another training run would change.

Results: results/robustness.json, docs/images/robustness.png.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT, circumstances
from inputs import DATASETS, dataset, trained

import mach_ext
from mach_ext import attack
from mach_ext.nn import MODEL_MERGES

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
THREATS = {  # attack and sizes; documents have L2 norm 1
    "support": ("fgsm", GRID),
    "insert(5)": ("fgsm", GRID),
    "dense": ("fgsm", (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)),
    "l2": ("fgsm", (0.03, 0.1, 0.2, 0.3, 0.5, 1.0)),
    "l1": ("fgsm", (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)),
    "delete": ("delete", (1, 2, 3, 5, 8, 13)),
}
HIDDEN = 128
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "R": dict.fromkeys(DATASETS, (1, 2, 4, 8, 16, 32)),
    "B": {"eurlex57k": (64, 128, 512, 2048), "wordnet": (125, 250, 1000, 4000)},
    "H": dict.fromkeys(DATASETS, (0, 32, 128, 512)),
    "merge": dict.fromkeys(DATASETS, tuple(MODEL_MERGES)),
}
KS = (1, 5)
RESAMPLES = 2000

Array = np.ndarray[Any, Any]


def sample(split: mach_ext.data.Split | None, documents: int) -> tuple[Any, Any]:
    """Documents [N, D] that have features, evenly from the split, and their labels [N, L]."""
    assert split is not None
    rows = np.flatnonzero(np.diff(split.X.indptr))
    rows = rows[np.linspace(0, len(rows) - 1, min(documents, len(rows))).astype(int)]
    return split.X[rows], split.Y[rows]


def threats(
    name: str, real_data: Path, documents: int, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """`attack.evaluate` of each threat model."""
    data = dataset(name, real_data)
    model = trained(name, real_data, epochs=5)
    X, Y = sample(data.test, documents)
    for threat, (kind, grid) in THREATS.items():
        if any((r["dataset"], r["threat_model"]) == (name, threat) for r in done):
            continue
        start = time.perf_counter()
        result = attack.evaluate(model, X, Y, method=kind, threat_model=threat, epsilons=grid, progress=True)
        seconds = round(time.perf_counter() - start, 1)
        yield {
            "dataset": name,
            "model": "5 epochs",
            "seconds": seconds,
            **result,
        }


def precision(Y: Any, labels: Array) -> Array:
    """Of each document, P@k for k of KS: [N, 2]."""
    hits = np.asarray(Y[np.arange(len(labels))[:, None], labels].todense()) != 0
    return np.stack([hits[:, :k].mean(1) for k in KS], 1)


def attacked(
    model: mach_ext.MACH, other: mach_ext.MACH | None, X: Any, Y: Any, merges: tuple[str, ...]
) -> dict[str, dict[str, Array]]:
    """merge -> clean [N, 2], and of each attack [sizes, N, 2]."""
    perturbations = {
        "fgsm": attack.FGSM(model).perturb(X, Y, GRID),
        "margin": attack.FGSM(model, goal="positive", k=1).perturb(X, Y, GRID),
        "pgd": attack.PGD(model).perturb(X, Y, GRID),
        "noise": attack.Random(model, seed=model.seed).perturb(X, Y, GRID),
    }
    results = {}
    for merge in merges:
        model.merge = merge
        results[merge] = {"clean": precision(Y, model.predict(X, max(KS))[1])}
        for kind, changed in perturbations.items():
            results[merge][kind] = np.stack(
                [precision(Y, perturbation.predict(max(KS))[1]) for perturbation in changed]
            )
        if other is not None:
            answers = [
                precision(Y, perturbation.predict(max(KS), other)[1]) for perturbation in perturbations["pgd"]
            ]
            results[merge]["transfer"] = np.stack(answers)
    model.merge = merges[0]
    return results


def summary(each: list[dict[str, Array]], rng: np.random.Generator) -> dict[str, Any]:
    """Means over seeds and documents with intervals: [value, low, high] a size."""
    mean = {name: np.mean([of_seed[name] for of_seed in each], 0) for name in each[0]}
    N = len(mean["clean"])
    draws = np.concatenate((np.ones((1, N)), rng.multinomial(N, np.full(N, 1 / N), RESAMPLES))) / N
    result: dict[str, Any] = {}
    for i, k in enumerate(KS):
        of_clean = draws @ mean["clean"][:, i]
        result[f"clean P@{k}"] = interval(of_clean)
        result[f"clean P@{k} by seed"] = [float(of_seed["clean"][:, i].mean()) for of_seed in each]
        for kind in [name for name in mean if name != "clean"]:
            curve = draws @ mean[kind][:, :, i].T  # [1 + RESAMPLES, sizes]
            kept = curve / of_clean[:, None]
            entry = result.setdefault(kind, {})
            entry[f"P@{k}"] = [interval(column) for column in curve.T]
            entry[f"P@{k} kept"] = [interval(column) for column in kept.T]
            entry[f"P@{k} half"] = interval(half(kept))
            by_seed = [of_seed[kind][:, :, i].mean(1) / of_seed["clean"][:, i].mean() for of_seed in each]
            entry[f"P@{k} kept by seed"] = [column.tolist() for column in by_seed]
    return result


def interval(values: Array) -> list[float | None]:
    """[value, low, high]: the first one is that of the documents themselves; None: infinite."""
    low, high = np.quantile(values[1:], (0.025, 0.975), method="nearest")
    return [float(v) if np.isfinite(v) else None for v in (values[0], low, high)]


def half(kept: Array) -> Array:
    """The epsilon at which curves [n, sizes] fall through 0.5; inf where they don't."""
    at = np.log(GRID)
    below = kept < 0.5
    j = below.argmax(1)
    rows = np.arange(len(kept))
    before = np.where(j > 0, kept[rows, j - 1], 1.0)
    start = np.where(j > 0, at[j - 1], at[0] - 1)
    part = ((before - 0.5) / np.maximum(before - kept[rows, j], 1e-12)).clip(0, 1)
    return np.where(below.any(1), np.exp(start + part * (at[j] - start)), np.inf)


def study(
    name: str, real_data: Path, axis: str, documents: int, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The points of an axis; the base is on each of them and attacked once."""
    data = dataset(name, real_data)
    X, Y = sample(data.dev, documents)
    base = {"R": DATASETS[name][0], "B": DATASETS[name][1], "H": HIDDEN}
    for sizes in [base] if axis == "merge" else [base | {axis: value} for value in AXES[axis][name]]:
        merges = AXES["merge"][name] if axis == "merge" else ("mean_logit",)
        what = {"dataset": name, **sizes, "documents": X.shape[0]}
        by_merge = {r["merge"]: r for r in done if what.items() <= r.items()}
        if not by_merge.keys() >= set(merges):
            models = [  # the base and what differs from it in R only: two hash seeds
                trained(name, real_data, 2, sizes["R"], sizes["H"], seed, sizes["B"])
                for seed in ((0, 1) if axis == "R" or sizes == base else (0,))
            ]
            others = models[::-1] if len(models) == 2 else [None]
            each = [attacked(*both, X, Y, merges) for both in zip(models, others, strict=True)]
            rng = np.random.default_rng(0)
            by_merge = {
                merge: {
                    **what,
                    "merge": merge,
                    "seeds": len(models),
                    **summary([of_seed[merge] for of_seed in each], rng),
                }
                for merge in merges
            }
        for merge in merges:
            yield {**by_merge[merge], "axis": axis, "value": merge if axis == "merge" else sizes[axis]}


def place(r: dict[str, Any]) -> tuple[str, int, int]:
    return r["dataset"], list(AXES).index(r["axis"]), AXES[r["axis"]][r["dataset"]].index(r["value"])


def plot(models: list[dict[str, Any]], file: Path) -> None:
    """A row a dataset; P@1 under FGSM of loss and margin by size for each axis, then transfer of PGD."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["dataset"] for r in models))
    figure = Figure(figsize=(17, 3.5 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 5, squeeze=False, sharey="row")
    at = range(1 + len(GRID))

    def line(
        axes: Any, r: dict[str, Any], kind: str, label: str | None, colour: Any, style: str = "-"
    ) -> None:
        points = np.array([r["clean P@1"], *r[kind]["P@1"]])
        axes.plot(at, points[:, 0], style, color=colour, label=label, marker="o", markersize=3)
        if style == "-":
            axes.fill_between(at, points[:, 1], points[:, 2], color=colour, alpha=0.13, linewidth=0)

    colours = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
    for row, name in zip(grid, names, strict=True):
        for axes, axis in zip(row, AXES, strict=False):
            mine = [r for r in models if (r["dataset"], r["axis"]) == (name, axis)]
            palette = (
                colours[-len(mine) :]
                if axis != "merge"
                else ("#08519c", "#c8571b", "#3f8f5f", "#7b5aa6", "#8a949f")
            )
            for r, colour in zip(mine, palette, strict=False):
                line(
                    axes, r, "fgsm", f"{r['value']}" if axis == "merge" else f"{axis} = {r['value']}", colour
                )
                line(axes, r, "margin", None, colour, "--")
            axes.set_title(f"{name}: {axis}; loss, dashed: margin", fontsize=11)
        for R, colour in ((2, colours[1]), (32, colours[5])):
            for r in [r for r in models if (r["dataset"], r["axis"], r["value"]) == (name, "R", R)]:
                line(row[4], r, "pgd", f"R = {R}, PGD on itself", colour)
                line(row[4], r, "transfer", f"R = {R}, PGD on the other", colour, "--")
                line(row[4], r, "noise", f"R = {R}, noise", colour, ":")
        row[4].set_title(f"{name}: other hash seeds", fontsize=11)
        row[0].set_ylabel("P@1")
        for axes in row:
            axes.set_xticks(at, ["0", *(f"{e:g}" for e in GRID)])
            axes.set_xlabel("eps")
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="*", default=list(DATASETS))
    parser.add_argument("--parts", nargs="*", default=[*AXES, "threats"], help="of: threats R B H merge")
    parser.add_argument(
        "--documents", type=int, default=1000, help="of the dev sample; twice as many of test"
    )
    shared = os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=shared, help="folder with eurlex57k")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--chart", type=Path, default=ROOT / "docs" / "images" / "robustness.png")
    args = parser.parse_args()
    file = args.results / "robustness.json"
    kept = json.loads(file.read_text()) if file.exists() else {"models": [], "threats": []}

    def keep(part: str, result: dict[str, Any], *key: str) -> None:
        kept[part] = [r for r in kept[part] if any(r[name] != result[name] for name in key)] + [result]
        kept["models"].sort(key=place)
        record = {"epsilons": GRID, "hidden_size": HIDDEN, **circumstances()}
        record |= {name: kept[name] for name in ("models", "threats")}
        file.write_text(json.dumps(record, indent=1) + "\n")

    for name in args.datasets:
        for axis in sorted(
            set(AXES) & set(args.parts), key=list(AXES)[::-1].index
        ):  # merges have the base, too
            for result in study(name, args.data, axis, args.documents, kept["models"]):
                keep("models", result, "dataset", "axis", "value")
        if "threats" in args.parts:
            for result in threats(name, args.data, 2 * args.documents, kept["threats"]):
                keep("threats", result, "dataset", "threat_model")
    plot(kept["models"], args.chart)


if __name__ == "__main__":
    main()
