"""What pays on dev: each lever is trained with each seed.

Run it by `PYTHONPATH=benchmarks python -m studies.levers DATASET [LEVER ...]`.

Each result goes into results/levers.csv as soon as it is there, in place of the former one of the same name.
`make bench-table` makes the table and the chart of docs/results/accuracy.md from it. Splits and times are as
in peers.py. The last epoch counts, not the best, so that dev is not used twice.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch
from harness import RESULTS, circumstances, write_rows
from studies.peers import load
from tqdm import tqdm

import mach_ext
from mach_ext import data, metrics

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


def sizes(model: mach_ext.MACH) -> dict[str, Any]:
    """Columns that say what the model is."""
    about = {"labels": model.num_labels, "R": model.num_repetitions, "B": model.num_buckets}
    return about | {"H": sum(model.hidden_sizes), "encoder": model.configuration()["encoder"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", help="a name or a folder")
    parser.add_argument("levers", nargs="*", help=f"of {', '.join(LEVERS)} (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_intermixed_args()
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
            result = {"dataset": dataset.name, "lever": lever, "seed": seed, **sizes(model)}
            result |= {"fit": LEVERS[lever][1], **evaluation, "training_seconds": seconds}
            result |= {"parameters": sum(p.numel() for p in model.parameters())} | circumstances(RESULTS)
            write_rows(RESULTS / "levers.csv", [result], ["dataset", "lever", "seed"])
            shown = " / ".join(f"{100 * evaluation[f'P@{k}']:.2f}" for k in (1, 3, 5))
            tqdm.write(f"{dataset.name}, {lever}, seed {seed}: P@1/3/5 {shown}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
