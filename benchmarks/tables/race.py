"""The race of `mach-ext train`: what it chose, and what is lost on data that it was not set on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from frames import joined, markdown, precision_columns, read

from mach_ext.runs.contenders import HANDICAPS, STEPS, SVM

P = precision_columns()
RACE, DEV = ([f"{split}_{name}" for name in P] for split in ("race", "dev"))
USUAL, _, FINE = (f"hidden layers, {name} steps" for name in STEPS)
OURS = (HANDICAPS["fine"], HANDICAPS[SVM])
TRIED = np.arange(0, 0.0301, 0.001)  # handicaps
DRAWS = 200


def winners(rows: pd.DataFrame, fine: Any, svm: Any, noise: Any) -> Any:
    """The contenders that win races with such handicaps, as `mach_ext.runs.race` has it.

    Args:
        rows: A row for each of C contenders of a race.
        fine: The handicap of fine steps, [...].
        svm: The handicap of support vector machines, [...].
        noise: What is added to the figures of the race, [draws, C].

    Returns:
        Their names, [..., draws].
    """
    of, error = rows["contender"].to_numpy(), rows["race_error"].to_numpy()
    usual = int(np.flatnonzero(of == USUAL)[0])
    less = np.multiply.outer(fine, of == FINE) + np.multiply.outer(svm, of == SVM)
    means = rows[RACE].mean(axis=1).to_numpy() + noise - np.expand_dims(less, -2)
    runs = (means - means[..., [usual]] > error) | (of == USUAL)
    return of[np.where(runs, means, -1.0).argmax(-1)]


def winner(rows: pd.DataFrame, handicaps: tuple[float, float]) -> str:
    """The contender that wins a race with such handicaps."""
    return str(winners(rows, *handicaps, np.zeros((1, len(rows))))[0])


def loss(rows: pd.DataFrame, contender: str, metrics: Sequence[str] = ("P@1",)) -> float:
    """What a contender, trained in full, has less than the best one. Of several metrics this is the mean."""
    full = rows.set_index("contender")[list(metrics)].mean(axis=1)
    return float(full.max() - full[contender])


def by_race(folder: Path) -> dict[tuple[str, int], pd.DataFrame]:
    """The rows of each race whose contenders all trained in full.

    A contender that was far behind with one seed has no training with the next. It counts as it did there.
    A seed that trained on all of train has no dev. Its contenders count as they did on dev with other seeds.
    """
    kept = read("race", folder)
    kept["trained"] = kept["P@1"].notna()
    known = [*P, *DEV]
    kept[known] = kept[known].fillna(kept.groupby(["dataset", "contender"])[known].transform("mean"))
    races = {key: rows.reset_index(drop=True) for key, rows in kept.groupby(["dataset", "seed"], sort=False)}
    return {key: rows for key, rows in races.items() if rows["P@1"].notna().all() and rows["trained"].any()}


def expected_losses(rows: pd.DataFrame) -> Any:
    """What a race is expected to lose on dev, by its own metric, with each pair of `TRIED` handicaps.

    With other held-out documents the figures would be others, by about a standard error. This is the mean
    over `DRAWS` such races. So handicaps that are right by a hair are not best.
    """
    noise = np.random.default_rng(0).standard_normal((DRAWS, len(rows))) * rows["race_error"].to_numpy()
    lost = {each: loss(rows, each, DEV) for each in rows["contender"]}
    won = winners(rows, *np.meshgrid(TRIED, TRIED, indexing="ij"), noise)
    return sum(much * (won == each).mean(-1) for each, much in lost.items())


def best_handicaps(losses: Any) -> tuple[float, float]:
    """The handicaps with the least sum of expected losses."""
    fine, svm = np.unravel_index(np.argmin(sum(losses)), (len(TRIED), len(TRIED)))
    return float(TRIED[fine]), float(TRIED[svm])


def left_out(races: dict[tuple[str, int], pd.DataFrame]) -> dict[str, float]:
    """The mean loss on test of each dataset, with the handicaps that are best on the dev of all others."""
    on_dev = {key: rows for key, rows in races.items() if rows["dev_P@1"].notna().all()}
    losses, found = {key: expected_losses(rows) for key, rows in on_dev.items()}, {}
    for dataset in dict.fromkeys(name for name, _ in races):
        handicaps = best_handicaps([each for (name, _), each in losses.items() if name != dataset])
        mine = [rows for (name, _), rows in races.items() if name == dataset]
        found[dataset] = float(np.mean([loss(rows, winner(rows, handicaps)) for rows in mine]))
    return found


def race(folder: Path) -> str:
    """A row a dataset: the contender that wins, its figures, and what is lost to the best."""
    races = by_race(folder)
    out, lines = left_out(races), []
    for dataset in out:
        seeds = [rows for (name, _), rows in races.items() if name == dataset]
        chosen = pd.concat([rows[rows["contender"] == winner(rows, OURS)] for rows in seeds])
        best = pd.concat([rows.loc[[rows["P@1"].idxmax()]] for rows in seeds])
        lost = [
            float(np.mean([loss(rows, winner(rows, OURS)) for rows in seeds])),
            out[dataset],
            float(np.mean([loss(rows, USUAL) for rows in seeds])),
        ]
        seconds = chosen[["race_seconds", "training_seconds"]].mean()
        lines.append(
            (
                dataset, len(seeds), _names(chosen), joined(pd.DataFrame([chosen[P].mean()]), P).iloc[0],
                _names(best), *(f"{100 * each:.2f}" for each in lost),
                f"{seconds.iloc[0]:.0f} of {seconds.iloc[1]:.0f} ({seconds.iloc[0] / seconds.iloc[1]:.0%})",
            )
        )  # fmt: skip
    means = (np.mean([float(line[at]) for line in lines]) for at in (5, 6, 7))
    lines.append(("mean", "", "", "", "", *(f"{each:.2f}" for each in means), ""))
    head = ("data", "seeds", "the race chose", "P@1 / P@3 / P@5", "best of all at P@1", "P@1 lost")
    last = ("lost, left out", "lost by the usual steps", "race, s of training, s")
    return markdown(pd.DataFrame(lines), (*head, *last))


def _joined(rows: pd.DataFrame, names: list[str]) -> str:
    """The figures of a row, or nothing if there are none."""
    return "" if rows.dropna().empty else str(joined(rows, names).iloc[0])


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
    """A row a training by default, and beside it the best other system at P@1, plain and adjusted.

    The winner of a race that learnt from as many documents as the others is such a training, too.
    """
    peers = read("peers", folder)
    peers = peers[~peers["system"].str.startswith("mach_ext")]
    raced = read("race", folder).query("wins and `P@1`.notna()").rename(columns={"contender": "winner"})
    kept = pd.concat([read("defaults", folder), raced.assign(split="test")])
    kept = kept.drop_duplicates(["dataset", "seed", "documents"])
    kept = kept.merge(peers[["dataset", "split", "documents"]].drop_duplicates())
    kept = kept.sort_values(["dataset", "seed"])
    lines = []
    for _, row in kept.iterrows():
        same = peers[(peers["dataset"] == row["dataset"]) & (peers["split"] == row["split"])]
        same = same[same["documents"] == row["documents"]]
        columns = [P, [f"adjusted {name}" for name in P]]
        best = [_joined(same.nlargest(1, names[0])[names], names) for names in columns]
        chosen = str(row["winner"]).removeprefix("hidden layers, ") + ", names" * (
            str(row["label_names"]) == "True"
        )
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
