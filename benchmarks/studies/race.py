"""Does the race choose well? Each contender trains in full, and the race is run beside it.

Run it by `PYTHONPATH=benchmarks python -m studies.race DATASET [...] [--seeds 0 1]`.

Each contender of the race trains on all of train, as `mach-ext train` would with it. Its figures on test say
what was to be had. The race itself learns from train and is decided by dev. Results go into results/race.csv,
a row for each dataset, contender and seed. `make bench-table` makes the table of docs/results/accuracy.md
from it: what is lost on a dataset when the constants of the race are those that are best for all others.

The datasets are bibtex, eurlex57k, tibkat and wordnet, and those of `benchmarks/corpora`. Where there is no
test split (tibkat), dev is asked in its place. Without a dev split a tenth of train is held out. With
`--no-holdout` it is held out for the race alone, and the contenders train on all of train. Times are seconds
by the clock on the threads that are named.

A contender that was far behind with another seed costs time and tells nothing. `--near 0.015` leaves out
those whose P@1 on test was more than that below the best one's.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from harness import RESULTS, circumstances, write_rows
from harness.record import read_rows

import mach_ext
from mach_ext import data, metrics, nn
from mach_ext.runs import race as races
from mach_ext.runs.contenders import Contender
from mach_ext.runs.recipe import Recipe

FILE, KEY = RESULTS / "race.csv", ["dataset", "contender", "seed"]
THRESHOLD = 0.003  # of gradients, as in the other tables


def load(name: str, holdout: bool = True) -> data.Dataset:
    """The dataset with the splits train and test, and with dev if one is there or is held out."""
    dataset = data.load(name, holdout=False)
    if dataset.test is None:
        dataset = replace(dataset, dev=None, test=dataset.dev, dev_rule="none")
    return data.hold_out(dataset) if holdout else dataset


def precisions(model: nn.MACH, split: data.Split) -> dict[str, float]:
    """P@1, P@3 and P@5 of a model."""
    labels = model.predict(split.documents, min(5, model.num_labels))[1]
    return {f"P@{k}": metrics.precision_at_k(split.truth, labels, min(k, labels.shape[1])) for k in (1, 3, 5)}


def trained(contender: Contender, dataset: data.Dataset, seed: int, names: bool | None) -> tuple[Any, float]:
    """The run of a contender that trains on everything, and its seconds."""
    settings: dict[str, Any] = (
        {} if contender.svm else {**contender.settings, "gradient_threshold": THRESHOLD}
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        run = mach_ext.train(
            dataset, output=folder, svm=contender.svm, choice="rule", label_names=names, seed=seed,
            holdout=False, evaluate=False, progress=False, **settings,
        )  # fmt: skip
    return run, run.seconds["train"]


def standard_error(gains: np.ndarray[Any, Any]) -> float:
    """The standard error of a mean."""
    return float(gains.std() / math.sqrt(len(gains)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names or folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-holdout", action="store_true", help="train on all of train")
    parser.add_argument("--only", default="", help="contenders with this in their names (all)")
    parser.add_argument("--near", type=float, default=1.0, help="contenders so near to the best one (all)")
    parser.add_argument(
        "--no-training", action="store_true", help="only the races, beside the kept trainings"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.datasets:
        dataset = load(name, not args.no_holdout)
        for seed in args.seeds:
            measure(dataset, seed, args.threads, args.only, None if args.no_training else args.near)


def far_behind(dataset: data.Dataset, seed: int, near: float) -> set[str]:
    """The contenders that other seeds have shown to be further behind the best one."""
    best: dict[str, float] = {}
    for row in read_rows(FILE):
        if row["dataset"] == dataset.name and row["seed"] != str(seed) and row["P@1"]:
            best[row["contender"]] = max(float(row["P@1"]), best.get(row["contender"], 0.0))
    return {name for name, reached in best.items() if max(best.values()) - reached > near}


def measure(dataset: data.Dataset, seed: int, threads: int, only: str, near: float | None) -> None:
    """Runs the race, then trains each contender. Each row is written as soon as it is there."""
    started = time.monotonic()
    race = races.run_race(Recipe(seed=seed), dataset, "cpu", progress=False)
    seconds = time.monotonic() - started
    assert race is not None
    print("\n".join([dataset.name, *races.table(race.record()), f"{seconds:.1f} s"]), flush=True)
    names, left_out = bool(race.label_names), set() if near is None else far_behind(dataset, seed, near)
    for result in race.results:
        contender = result.contender
        row = {
            "dataset": dataset.name, "contender": contender.name, "seed": seed, "threads": threads,
            "documents": len(dataset.train), "sample": race.documents, "held_out": race.held_out,
            "wins": contender == race.winner, "label_names": names, "race_seconds": seconds,
            **{f"race_P@{k}": p for k, p in zip((1, 3, 5), result.P, strict=False)},
            "race_error": standard_error(result.scores - race.results[0].scores),
        }  # fmt: skip
        if near is not None and only in contender.name and contender.name not in left_out:
            run, training_seconds = trained(contender, dataset, seed, names)
            of_dev = {} if dataset.dev is None else precisions(run.model, dataset.dev)
            of_test = precisions(run.model, dataset.test)
            row |= {f"dev_{k}": p for k, p in of_dev.items()} | of_test
            row |= {"training_seconds": training_seconds} | circumstances(RESULTS)
            shown = " / ".join(f"{100 * p:.2f}" for p in of_test.values())
            print(f"{dataset.name}, {contender.name}, seed {seed}: {shown}, {training_seconds:.0f} s")
        else:
            row |= former_training(row)
        write_rows(FILE, [row], KEY)


def former_training(row: dict[str, Any]) -> dict[str, Any]:
    """The kept training of the same contender on as many documents, or nothing.

    The times of a race and of a training are of one machine. So the time of the race stays as well.
    """
    same = [*KEY, "documents", "label_names"]
    kept = [each for each in read_rows(FILE) if all(each[name] == str(row[name]) for name in same)]
    measured = ("race_seconds", "training_seconds", "circumstances")
    of_training = [name for name in (kept or [{}])[0] if name in measured or name.startswith(("dev_", "P@"))]
    return {name: kept[0][name] for name in of_training if kept[0]["training_seconds"]}


if __name__ == "__main__":
    main()
