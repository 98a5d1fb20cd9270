"""The race of `mach-ext train`: what it chose, and what is lost on data that it was not set on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from frames import joined, markdown, precision_columns, read

from mach_ext.runs.contenders import HANDICAPS, STEPS, SVM

P = precision_columns()
RACE = [f"race_{name}" for name in P]
USUAL, _, FINE = (f"hidden layers, {name} steps" for name in STEPS)
# What each way is tried to have to be ahead by, to find the numbers that lose least.
TRIED = {
    FINE: (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
    SVM: (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
}
Handicaps = tuple[float, ...]  # one for each of TRIED
ALL: list[Handicaps] = list(itertools.product(*TRIED.values()))
OURS: Handicaps = (HANDICAPS["fine"], HANDICAPS[SVM])


def winner(rows: pd.DataFrame, handicaps: Handicaps) -> str:
    """The contender that wins a race with such handicaps, as `mach_ext.runs.race` has it."""
    less = rows["contender"].map(dict(zip(TRIED, handicaps, strict=True))).fillna(0.0)
    means = rows[RACE].mean(axis=1) - less
    usual = int(rows.index[rows["contender"] == USUAL][0])
    best = int(means.idxmax())
    at = best if means[best] - means[usual] > rows.loc[best, "race_error"] else usual
    return str(rows.loc[at, "contender"])


def loss(rows: pd.DataFrame, contender: str) -> float:
    """P@1 on test that a contender has less than the best."""
    full = rows.set_index("contender")["P@1"]
    return float(full.max() - full[contender])


def by_race(folder: Path) -> dict[tuple[str, int], pd.DataFrame]:
    """The rows of each race whose contenders all trained in full.

    A contender that was far behind with one seed has no training with the next. It counts as it did there.
    """
    kept = read("race", folder)
    kept["trained"] = kept["P@1"].notna()
    kept[P] = kept[P].fillna(kept.groupby(["dataset", "contender"])[P].transform("mean"))
    races = {key: rows.reset_index(drop=True) for key, rows in kept.groupby(["dataset", "seed"], sort=False)}
    return {key: rows for key, rows in races.items() if rows["P@1"].notna().all() and rows["trained"].any()}


def left_out(races: dict[tuple[str, int], pd.DataFrame]) -> dict[str, float]:
    """The mean loss on each dataset with the handicaps that lose least on all others.

    Of handicaps that lose the same, those in the middle are taken, by the order of `ALL`.
    """
    losses = np.array(
        [[loss(rows, winner(rows, each)) for rows in races.values()] for each in ALL]
    )  # fmt: skip
    names = np.array([name for name, _ in races])
    found = {}
    for dataset in dict.fromkeys(names):
        others = losses[:, names != dataset]
        means = others.mean(axis=1) if others.size else np.zeros(len(ALL))
        best = np.flatnonzero(means <= means.min() + 1e-9)
        found[dataset] = float(losses[best[len(best) // 2], names == dataset].mean())
    return found


def race(folder: Path) -> str:
    """A row a dataset: the contender that wins, its figures, and what is lost to the best."""
    races = by_race(folder)
    out, lines = left_out(races), []
    for dataset in out:
        seeds = [rows for (name, _), rows in races.items() if name == dataset]
        chosen = pd.concat([rows[rows["contender"] == winner(rows, OURS)] for rows in seeds])
        best = pd.concat([rows.loc[[rows["P@1"].idxmax()]] for rows in seeds])
        lost = np.mean([loss(rows, winner(rows, OURS)) for rows in seeds])
        seconds = chosen[["race_seconds", "training_seconds"]].mean()
        lines.append(
            (
                dataset, len(seeds), _names(chosen), joined(pd.DataFrame([chosen[P].mean()]), P).iloc[0],
                _names(best), f"{100 * lost:.2f}", f"{100 * out[dataset]:.2f}",
                f"{seconds.iloc[0]:.0f} of {seconds.iloc[1]:.0f} ({seconds.iloc[0] / seconds.iloc[1]:.0%})",
            )
        )  # fmt: skip
    means = (np.mean([float(line[at]) for line in lines]) for at in (5, 6))
    lines.append(("mean", "", "", "", "", *(f"{each:.2f}" for each in means), ""))
    head = ("data", "seeds", "the race chose", "P@1 / P@3 / P@5", "best of all at P@1", "P@1 lost")
    return markdown(pd.DataFrame(lines), (*head, "lost, left out", "race, s of training, s"))


def _names(rows: pd.DataFrame) -> str:
    return ", ".join(dict.fromkeys(name.removeprefix("hidden layers, ") for name in rows["contender"]))


def contenders(folder: Path) -> str:
    """A row a contender, by dataset: on the sample of the race, and trained in full."""
    kept = read("race", folder)
    table = kept[["dataset", "contender", "seed"]].rename(columns={"dataset": "data"})
    table["in the race"] = joined(kept, RACE)
    table["trained in full, on test"] = joined(kept, P)
    table["training, s"] = kept["training_seconds"].map("{:.0f}".format)
    return markdown(table[kept["P@1"].notna()])


def learned_buckets(folder: Path) -> str:
    """A row a dataset and round: P@1, P@3 and P@5 on dev with random buckets, then with learned ones."""
    kept = read("learned_buckets", folder)
    table = kept[["dataset", "seed", "R", "B"]].rename(columns={"dataset": "data"})
    table["buckets"] = kept["round"].map({0: "random", 1: "learned once", 2: "learned twice"})
    table["P@1 / P@3 / P@5"] = joined(kept, P)
    return markdown(table)


def defaults(folder: Path) -> str:
    """A row a training by default, and beside it the best other system at P@1, plain and adjusted."""
    kept, peers = read("defaults", folder), read("peers", folder)
    peers = peers[~peers["system"].str.startswith("mach_ext")]
    lines = []
    for _, row in kept.iterrows():
        same = peers[(peers["dataset"] == row["dataset"]) & (peers["split"] == row["split"])]
        same = same[same["documents"] == row["documents"]]
        columns = [P, [f"adjusted {name}" for name in P]]
        best = [joined(same.nlargest(1, names[0])[names], names).iloc[0] for names in columns]
        chosen = str(row["winner"]).removeprefix("hidden layers, ")
        ours = joined(pd.DataFrame([row[P]]), P).iloc[0]
        lines.append((row["dataset"], row["seed"], chosen, ours, *best, f"{row['training_seconds']:.0f}"))
    head = (
        "data",
        "seed",
        "the race chose",
        "P@1 / P@3 / P@5",
        "the best other system",
        "the best, adjusted",
    )
    return markdown(pd.DataFrame(lines), (*head, "training, s"))
