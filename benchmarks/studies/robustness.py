"""What makes MACH robust? With `make bench-table` it makes docs/results/robustness.md.

Run it by `PYTHONPATH=benchmarks python -m studies.robustness`.

Models are trained as they are needed and kept in the user's cache. Results that are there are not made again.

*Threats*: a model of 512 hidden units, trained for 5 epochs, under each threat model at six sizes, on test
documents.

*Models*: the base has R = 16, B of the dataset, H = 128, the merge mean_logit, and 2 epochs. R, B, H and the
merge are changed one at a time, on a fixed sample of dev documents. Attacks change a document's own features.
FGSM and PGD (10 steps) follow the bucket loss and do not know the merge. FGSM of the *margin* follows the
first label, where it is right, over the second (goal "positive", k = 1). P@1 is clean, adversarial, and under
noise of the same size. Where there are two models of other hash seeds, each also answers the documents that
PGD made for the other (transfer). Figures are then means of both. *Kept* is P@1 adversarial over P@1 clean,
*half* the epsilon at which half is kept, on a logarithmic line between the sizes. Intervals: 95 %, bootstrap
over documents. They don't hold what another training run would change.

The results are robustness.csv (attacks), robustness_clean.csv and threats.csv in results/. `make bench-table`
draws the chart.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT, circumstances, keep_threats, write_rows
from harness.record import Row, cell, read_rows
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
RESAMPLES = 2000

Array = np.ndarray[Any, Any]


def sample(split: mach_ext.data.Split | None, documents: int) -> tuple[Any, Any]:
    """Documents [N, D] that have features, evenly from the split, and their labels [N, L]."""
    assert split is not None
    rows = np.flatnonzero(np.diff(split.X.indptr))
    rows = rows[np.linspace(0, len(rows) - 1, min(documents, len(rows))).astype(int)]
    return split.X[rows], split.Y[rows]


def threats(name: str, real_data: Path, documents: int, results: Path) -> None:
    """`attack.evaluate` of each threat model."""
    data = dataset(name, real_data)
    model = trained(name, real_data, epochs=5)
    X, Y = sample(data.test, documents)
    for threat, (kind, grid) in THREATS.items():
        if not is_kept(results / "threats.csv", {"dataset": name, "threat_model": threat}):
            result = attack.evaluate(
                model, X, Y, method=kind, threat_model=threat, epsilons=grid, progress=True
            )
            keep_threats(results, name, result)


def is_kept(file: Path, about: dict[str, Any]) -> bool:
    """Whether the file has a row with these values."""
    wanted = {name: cell(value) for name, value in about.items()}
    return any(wanted.items() <= row.items() for row in read_rows(file))


def precision(Y: Any, labels: Array) -> Array:
    """P@1 of each document, [N]."""
    hits: Array = np.asarray(Y[np.arange(len(labels)), labels[:, 0]]).ravel() != 0
    return hits.astype(float)


def attacked(
    model: mach_ext.MACH, other: mach_ext.MACH | None, X: Any, Y: Any, merges: tuple[str, ...]
) -> dict[str, dict[str, Array]]:
    """merge -> P@1 of each document, clean [N], and under each attack [sizes, N]."""
    perturbations = {
        "fgsm": attack.FGSM(model).perturb(X, Y, GRID),
        "margin": attack.FGSM(model, goal="positive", k=1).perturb(X, Y, GRID),
        "pgd": attack.PGD(model).perturb(X, Y, GRID),
        "noise": attack.Random(model, seed=model.seed).perturb(X, Y, GRID),
    }
    results = {}
    for merge in merges:
        model.merge = merge
        results[merge] = {"clean": precision(Y, model.predict(X, 1)[1])}
        for kind, changed in perturbations.items():
            results[merge][kind] = np.stack(
                [precision(Y, perturbation.predict(1)[1]) for perturbation in changed]
            )
        if other is not None:
            answers = [
                precision(Y, perturbation.predict(1, other)[1]) for perturbation in perturbations["pgd"]
            ]
            results[merge]["transfer"] = np.stack(answers)
    model.merge = merges[0]
    return results


def summary(each: list[dict[str, Array]], rng: np.random.Generator) -> tuple[Row, list[Row]]:
    """Means over seeds and documents with intervals: the clean row, and a row an attack."""
    mean = {name: np.mean([of_seed[name] for of_seed in each], 0) for name in each[0]}
    N = len(mean["clean"])
    draws = np.concatenate((np.ones((1, N)), rng.multinomial(N, np.full(N, 1 / N), RESAMPLES))) / N
    of_clean = draws @ mean["clean"]
    clean = interval("P@1", of_clean)
    for seed in (0, 1):
        clean[f"P@1 seed {seed}"] = each[seed]["clean"].mean() if seed < len(each) else None
    attacks = []
    for kind in [name for name in mean if name != "clean"]:
        curve = draws @ mean[kind].T  # [1 + RESAMPLES, sizes]
        kept = curve / of_clean[:, None]
        row = {"attack": kind}
        for epsilon, column in zip(GRID, curve.T, strict=True):
            row |= interval(f"P@1 {epsilon:g}", column)
        row |= interval("kept 0.03", kept[:, GRID.index(0.03)]) | interval("half", half(kept))
        attacks.append(row)
    return clean, attacks


def interval(name: str, values: Array) -> Row:
    """A value, that of the documents themselves, with its interval. Infinity becomes an empty cell."""
    low, high = np.quantile(values[1:], (0.025, 0.975), method="nearest")
    return {name: values[0], f"{name} low": low, f"{name} high": high}


def half(kept: Array) -> Array:
    """The epsilon at which curves [n, sizes] fall through 0.5, infinity where they don't."""
    at = np.log(GRID)
    below = kept < 0.5
    j = below.argmax(1)
    rows = np.arange(len(kept))
    before = np.where(j > 0, kept[rows, j - 1], 1.0)
    start = np.where(j > 0, at[j - 1], at[0] - 1)
    part = ((before - 0.5) / np.maximum(before - kept[rows, j], 1e-12)).clip(0, 1)
    return np.where(below.any(1), np.exp(start + part * (at[j] - start)), np.inf)


def study(name: str, real_data: Path, axis: str, documents: int, results: Path) -> None:
    """The points of an axis. The base is on each axis and is attacked once."""
    data = dataset(name, real_data)
    X, Y = sample(data.dev, documents)
    base = {"R": DATASETS[name][0], "B": DATASETS[name][1], "H": HIDDEN}
    for sizes in [base] if axis == "merge" else [base | {axis: value} for value in AXES[axis][name]]:
        merges = AXES["merge"][name] if axis == "merge" else ("mean_logit",)
        about = {"dataset": name, **sizes}
        if all(is_kept(results / "robustness_clean.csv", about | {"merge": merge}) for merge in merges):
            continue
        models = [  # the base and what differs from it in R only: two hash seeds
            trained(name, real_data, 2, sizes["R"], sizes["H"], seed, sizes["B"])
            for seed in ((0, 1) if axis == "R" or sizes == base else (0,))
        ]
        others = models[::-1] if len(models) == 2 else [None]
        each = [attacked(*both, X, Y, merges) for both in zip(models, others, strict=True)]
        rng = np.random.default_rng(0)
        for merge in merges:
            key = about | {"merge": merge}
            clean, attacks = summary([of_seed[merge] for of_seed in each], rng)
            counts = {"documents": X.shape[0], "seeds": len(models)}
            end = circumstances(results)
            write_rows(results / "robustness.csv", [key | counts | row | end for row in attacks], list(key))
            write_rows(results / "robustness_clean.csv", [key | counts | clean | end], list(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="*", default=list(DATASETS))
    parser.add_argument("--parts", nargs="*", default=[*AXES, "threats"], help="of: threats R B H merge")
    parser.add_argument(
        "--documents", type=int, default=1000, help="of the dev sample; twice as many of test"
    )
    shared = os.environ.get("MACH_SHARED_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=shared, help="folder with eurlex57k")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    args = parser.parse_args()
    axes = [axis for axis in reversed(AXES) if axis in args.parts]  # merges have the base, too
    for name in args.datasets:
        for axis in axes:
            study(name, args.data, axis, args.documents, args.results)
        if "threats" in args.parts:
            threats(name, args.data, 2 * args.documents, args.results)


if __name__ == "__main__":
    main()
