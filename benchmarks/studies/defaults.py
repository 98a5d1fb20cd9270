"""What `mach-ext train` reaches without flags, beside the best other system.

Run it by `PYTHONPATH=benchmarks python -m studies.defaults DATASET [...] [--seeds 0]`.

All of train is learnt from (`--no-holdout`). A race chooses the way to train. Without a dev split it holds
out a tenth of train for itself alone. Hidden layers then train with `--gradient-threshold 0.003`, as in the
other tables. (As an argument of the race it would leave out support vector machines.) tibkat has no test
split, so its dev is asked, which nothing else sees. Results go into results/defaults.csv, and
`make bench-table` makes the table of docs/results/accuracy.md from it. Times are seconds by the clock.

`studies.race --no-holdout` keeps the same for the winner of its race.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from harness import RESULTS, circumstances, write_rows
from studies.race import load, precisions, trained

from mach_ext.runs import race as races
from mach_ext.runs.recipe import Recipe

FILE = RESULTS / "defaults.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names or folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.datasets:
        for seed in args.seeds:
            measure(name, seed, args.threads)


def measure(name: str, seed: int, threads: int) -> None:
    """Trains as the command does without flags, and asks the model."""
    dataset, recipe = load(name, holdout=False), Recipe(seed=seed)
    started = time.monotonic()
    race = races.run_race(recipe, dataset, "cpu", progress=False)
    race_seconds = time.monotonic() - started
    assert race is not None, "too few documents for a race"
    names = bool(race.label_names)
    run, training_seconds = trained(race.winner, dataset, seed, names)
    row: dict[str, Any] = {
        "dataset": dataset.name, "seed": seed, "split": "test", "threads": threads,
        "documents": len(dataset.train), "winner": race.winner.name, "label_names": names,
        "R": run.model.num_repetitions, "B": run.model.num_buckets,
        **precisions(run.model, dataset.test), "race_seconds": race_seconds,
        "training_seconds": training_seconds, **circumstances(RESULTS),
    }  # fmt: skip
    write_rows(FILE, [row], ["dataset", "seed"])
    shown = " / ".join(f"{100 * row[f'P@{k}']:.2f}" for k in (1, 3, 5))
    print(f"{dataset.name}, seed {seed}, {row['winner']}: {shown}", flush=True)


if __name__ == "__main__":
    main()
