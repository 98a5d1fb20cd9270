"""What pays on dev: each lever is trained with each seed.

Run: PYTHONPATH=benchmarks python -m studies.levers DATASET [LEVER ...]

Each result goes into results/levers.json as soon as it is there, in place of the former one of the same name;
`make bench-table` makes the table of docs/results/accuracy.md from it. Splits and times as in peers.py; the last
epoch counts, not the best, so that dev is not used twice.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, circumstances
from peers import load
from tqdm import tqdm

import mach_ext
from mach_ext import data, metrics

FILE = RESULTS / "levers.json"

# Name -> the constructor's arguments and fit's, where they differ from the base.
BASE = {"num_repetitions": 4, "num_buckets": 1024}
USUAL_EPS = {"encoder_eps": 1e-8, "encoder_learning_rate": 0.02}
LEVERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "Adam's usual eps for the encoder": ({}, USUAL_EPS),
    "eps 1e-5": ({}, {"encoder_eps": 1e-5, "encoder_learning_rate": 0.04}),
    "eps 1e-3": ({}, {"encoder_eps": 1e-3, "encoder_learning_rate": 3.0}),
    "hidden 256": ({"hidden_size": 256}, {}),
    "hidden 1024": ({"hidden_size": 1024}, {}),
    "hidden 2048": ({"hidden_size": 2048}, {}),
    "B 2048, hidden 1024": ({"num_buckets": 2048, "hidden_size": 1024}, {}),
    "hidden dropout 0.2": ({"hidden_dropout": 0.2}, {}),
    "feature dropout 0.2": ({"feature_dropout": 0.2}, {}),
    "R 8": ({"num_repetitions": 8}, {}),
    "R 16": ({"num_repetitions": 16}, {}),
    "B 256": ({"num_buckets": 256}, {}),
    "B 512": ({"num_buckets": 512}, {}),
    "B 2048": ({"num_buckets": 2048}, {}),
    "B 2048, 2.5 times both rates": (
        {"num_buckets": 2048},
        {"learning_rate": 0.005, "encoder_learning_rate": 0.75},
    ),
    "B 2048, hidden dropout 0.5": ({"num_buckets": 2048, "hidden_dropout": 0.5}, {}),
    "B 2048, feature dropout 0.2": ({"num_buckets": 2048, "feature_dropout": 0.2}, {}),
    "half the classifiers' rate": ({}, {"learning_rate": 0.001}),
    "2.5 times the classifiers' rate": ({}, {"learning_rate": 0.005}),
    "2.5 times both rates": ({}, {"learning_rate": 0.005, "encoder_learning_rate": 0.75}),
    "B 4096": ({"num_buckets": 4096}, {}),
    "R 2": ({"num_repetitions": 2}, {}),
    "linear": ({"hidden_size": 0}, {"epochs": 3}),
    "10 epochs": ({}, {"epochs": 10}),
    "R 8, B 2048": ({"num_repetitions": 8, "num_buckets": 2048}, {}),
    "R 8, B 2048, hidden 1024": ({"num_repetitions": 8, "num_buckets": 2048, "hidden_size": 1024}, {}),
}
# The curve of accuracy against memory.
for R in (1, 2, 4, 8):
    for B in (256, 512, 1024, 2048):
        name = f"R {R}, B {B}, independent encoders of 256"
        LEVERS[name] = (
            {"num_repetitions": R, "num_buckets": B, "hidden_size": 256, "encoder": "independent"},
            {},
        )


def trained(dataset: data.Dataset, lever: str, seed: int) -> mach_ext.MACH:
    model_options, fit_options = LEVERS[lever]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        options = {**BASE, **model_options}
        model = mach_ext.MACH(dataset.num_features, dataset.num_labels, seed=seed, **options)
    # What is below this probability is skipped; the error bound is in Hyperparameters.
    skip = {} if model.is_linear else {"gradient_threshold": 0.003}
    X, Y = dataset.train.X, dataset.train.Y
    mach_ext.fit(model, X, Y, seed=seed, progress=False, **{**skip, **fit_options})
    return model


def keep(result: dict[str, Any]) -> None:
    kept = json.loads(FILE.read_text()) if FILE.exists() else []
    name = ("dataset", "lever", "seed")
    kept = [r for r in kept if [r[key] for key in name] != [result[key] for key in name]]
    data.write_json(FILE, sorted([*kept, result], key=lambda r: [r[key] for key in name]))


def chart(file: Path) -> None:
    """P@1 and P@5 against R B, a line for each R, from the kept results with encoders of 256 units.

    From R=2 on: one repetition can't tell the labels of a bucket apart.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_dataset: dict[str, dict[tuple[int, int], list[dict[str, float]]]] = {}
    labels: dict[str, int] = {}
    for result in json.loads(FILE.read_text()):
        model = result["model"]
        if model["encoder"] == "independent" and model["hidden_size"] == [256] and not result["fit"]:
            sizes = model["num_repetitions"], model["num_buckets"]
            if sizes[0] == 1:
                continue
            by_dataset.setdefault(result["dataset"], {}).setdefault(sizes, []).append(result["metrics"])
            labels[result["dataset"]] = model["num_labels"]
    figure, axes = plt.subplots(
        2, len(by_dataset), figsize=(4.5 * len(by_dataset), 6), squeeze=False, sharex="col"
    )
    for column, (dataset, points) in enumerate(sorted(by_dataset.items())):
        for row, metric in enumerate(("P@1", "P@5")):
            axis = axes[row][column]
            for R in sorted({R for R, _ in points}):
                line = sorted((R * B, 100 * sum(m[metric] for m in ms) / len(ms))
                              for (r, B), ms in points.items() if r == R)  # fmt: skip
                axis.plot(*zip(*line, strict=True), marker="o", label=f"R={R}")
            axis.axvline(labels[dataset] / 2, color="grey", linestyle=":", label="R B = L / 2")
            axis.set_ylabel(f"{metric}, %")
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:,.0f}")
        axes[0][column].set_title(f"{dataset}, dev, L={labels[dataset]:,}")
        axes[1][column].set_xlabel("R B")
        axes[1][column].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="a name or a folder")
    parser.add_argument("levers", nargs="*", help=f"of {', '.join(LEVERS)} (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--chart", type=Path, help="draw R B against accuracy from what is kept; train nothing"
    )
    args = parser.parse_intermixed_args()
    if args.chart:
        chart(args.chart)
        return
    if args.dataset is None:
        parser.error("which dataset?")
    for name in args.levers:
        if name not in LEVERS:
            parser.error(f"unknown lever {name!r}; known: {', '.join(LEVERS)}")
    torch.set_num_threads(1)
    dataset, asked = load(args.dataset, final=False)
    for lever in args.levers or LEVERS:
        for seed in args.seeds:
            start = time.process_time()
            model = trained(dataset, lever, seed)
            seconds = time.process_time() - start
            _, labels = model.predict(asked["dev"].X, 50)
            evaluation = metrics.evaluate(asked["dev"].Y, labels, (1, 3, 5), (50,))
            result = {"dataset": dataset.name, "lever": lever, "seed": seed, "metrics": evaluation}
            result |= {"training seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}
            keep(result | {"model": model.configuration(), "fit": LEVERS[lever][1]} | circumstances())
            shown = " / ".join(f"{100 * evaluation[f'P@{k}']:.2f}" for k in (1, 3, 5))
            tqdm.write(f"{dataset.name}, {lever}, seed {seed}: P@1/3/5 {shown}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
