"""The race of `mach-ext train`: what it chose, and what is lost on data that it was not set on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from frames import joined, markdown, precision_columns, read

P = precision_columns()
RACE = [f"race_{name}" for name in P]
SVM = "support vector machines"
USUAL = "hidden layers, usual steps"
HANDICAPS = (0.0, 0.0025, 0.005, 0.01, 0.02)  # by which support vector machines must be ahead


def winner(rows: pd.DataFrame, handicap: float) -> str:
    """The contender that wins a race with a handicap, as `mach_ext.runs.race` has it."""
    means = rows[RACE].mean(axis=1) - handicap * (rows["contender"] == SVM)
    usual = int(rows.index[rows["contender"] == USUAL][0])
    best = int(means.idxmax())
    at = best if means[best] - means[usual] > rows.loc[best, "race_error"] else usual
    return str(rows.loc[at, "contender"])


def loss(rows: pd.DataFrame, contender: str) -> float:
    """P@1 on test that a contender has less than the best."""
    full = rows.set_index("contender")["P@1"]
    return float(full.max() - full[contender])


def by_race(folder: Path) -> dict[tuple[str, int], pd.DataFrame]:
    """The rows of each race whose contenders all trained in full."""
    kept = read("race", folder)
    races = {key: rows.reset_index(drop=True) for key, rows in kept.groupby(["dataset", "seed"], sort=False)}
    return {key: rows for key, rows in races.items() if rows["P@1"].notna().all()}


def left_out(races: dict[tuple[str, int], pd.DataFrame]) -> dict[str, float]:
    """The mean loss on each dataset with the handicap that loses least on all others."""
    losses = {
        handicap: {key: loss(rows, winner(rows, handicap)) for key, rows in races.items()}
        for handicap in HANDICAPS
    }

    def mean(handicap: float, chosen: Any) -> float:
        values = [value for key, value in losses[handicap].items() if chosen(key[0])]
        return float(np.mean(values)) if values else 0.0

    found = {}
    for dataset in dict.fromkeys(key[0] for key in races):
        best = min(HANDICAPS, key=lambda each: mean(each, lambda name, own=dataset: name != own))
        found[dataset] = mean(best, lambda name, own=dataset: name == own)
    return found


def race(folder: Path) -> str:
    """A row a dataset: the contender that wins, its figures, and what is lost to the best."""
    races = by_race(folder)
    out, lines = left_out(races), []
    for dataset in out:
        seeds = [rows for (name, _), rows in races.items() if name == dataset]
        chosen = pd.concat([rows[rows["wins"]] for rows in seeds])
        best = pd.concat([rows.loc[[rows["P@1"].idxmax()]] for rows in seeds])
        lost = np.mean([loss(rows, rows.loc[rows["wins"], "contender"].iloc[0]) for rows in seeds])
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
