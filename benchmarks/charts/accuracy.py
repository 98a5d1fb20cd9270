"""Accuracy against model size, training time, and R x B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from frames import read
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from tables.accuracy import COMPRESSED, DEFAULTS

from charts.style import BLUE, BLUES, GREEN, GREY, ORANGE, PINK, RED, SKY, legend_above, new_figure

PEERS = {  # name in the chart -> the system of studies/peers.py, its colour and marker
    "omikuji (Bonsai)": ("omikuji (Bonsai)", RED, "s"),
    "omikuji (Parabel)": ("omikuji (Parabel)", ORANGE, "D"),
    "PECOS": ("PECOS XR-Linear", GREEN, "^"),
    "napkinXC": ("napkinXC PLT", PINK, "v"),
}
PLACES = {2: (16, -10), 4: (0, -14), 8: (0, 6)}  # of names, in points from the end of the line of this R
SIZE, SECONDS = "bytes", "training_seconds"
ARROW = {"arrowstyle": "->", "color": "0.35"}  # points to small, quick and accurate


def marks(kept: pd.DataFrame, dataset: str) -> dict[str, tuple[Any, str, str, bool]]:
    """Name in the chart -> the result, its colour, its marker, and whether it is filled."""
    of = kept[kept["dataset"] == dataset].set_index("system")
    chosen = {name: (system, colour, marker, True) for name, (system, colour, marker) in PEERS.items()}
    chosen["mach_ext, defaults"] = (DEFAULTS[dataset][1], BLUE, "o", True)
    chosen["mach_ext, compressed"] = (COMPRESSED[dataset], BLUE, "o", False)
    return {name: (of.loc[system], *look) for name, (system, *look) in chosen.items() if system in of.index}


def peers(folder: Path) -> Any:
    """P@1 on test against the size of the model and the seconds of training, by dataset."""
    kept = read("peers", folder)
    kept = kept[kept["split"] == "test"]
    figure = new_figure(4.9)
    grid = figure.subplots(2, len(DEFAULTS), sharey="col")
    for column, (dataset, (labels, *_)) in enumerate(DEFAULTS.items()):
        for row, measure in enumerate((SIZE, SECONDS)):
            axes = grid[row][column]
            for name, (result, colour, marker, filled) in marks(kept, dataset).items():
                if measure == SECONDS and "compressed" in name:
                    continue  # it is the same training
                x = result[SIZE] / 1e6 if measure == SIZE else result[SECONDS]
                face = colour if filled else "white"
                size = 62 if "mach_ext" in name else 42
                axes.scatter(
                    x, 100 * result["P@1"], size, face, marker, edgecolors=colour, linewidths=1.6, zorder=3
                )
            log_axis(axes, "model size, MB (log)" if measure == SIZE else "training, CPU s (log)")
        grid[0][column].set_title(f"{dataset}\n{labels:,} labels")
        grid[0][column].margins(y=0.18)
    for row in grid:
        row[0].set_ylabel("P@1 on test, %")
        row[0].annotate("better", (0.58, 0.34), (0.72, 0.14), "axes fraction", color="0.35", arrowprops=ARROW)
    names = ["mach_ext, defaults", "mach_ext, compressed", *PEERS]
    looks = [(BLUE, "o", BLUE), (BLUE, "o", "white"), *((c, m, c) for _, c, m in PEERS.values())]
    handles = [
        Line2D(
            [], [], color=colour, marker=marker, markerfacecolor=face, linestyle="", markersize=7, label=name
        )
        for name, (colour, marker, face) in zip(names, looks, strict=True)
    ]
    legend_above(figure, handles, 6, columnspacing=1.2, handletextpad=0.2)
    return figure


def log_axis(axes: Any, label: str) -> None:
    """A logarithmic x axis with plain numbers at 1, 2, 5, 10 ... as they fit."""
    low, high = axes.dataLim.intervalx
    axes.set_xscale("log")
    axes.set_xlim(low / 1.5, high * 1.5)
    steps = (1, 2, 5) if high / low < 40 else (1, 3) if high / low < 100 else (1,)
    ticks = [step * 10.0**power for power in range(-2, 5) for step in steps]
    axes.set_xticks([tick for tick in ticks if low / 1.5 <= tick <= high * 1.5])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel(label)


def accuracy(folder: Path) -> Any:
    """P@1 and P@5 against R B, a line for each R, with an encoder of 256 units for each repetition.

    From R = 2 on: one repetition can't tell the labels of a bucket apart.
    """
    kept = read("levers", folder)
    kept = kept[
        (kept["encoder"] == "independent") & (kept["H"] == 256) & kept["fit"].isna() & (kept["R"] > 1)
    ]
    datasets = sorted(kept["dataset"].unique())
    figure = new_figure(4.8)
    grid = figure.subplots(2, len(datasets), squeeze=False, sharex="col")
    for column, name in enumerate(datasets):
        of = kept[kept["dataset"] == name]
        labels = of["labels"].iloc[0]
        for row, metric in enumerate(("P@1", "P@5")):
            axes = grid[row][column]
            for (R, points), colour in zip(of.groupby("R"), (SKY, BLUE, BLUES[-1]), strict=False):
                mean = 100 * points.groupby("B")[metric].mean()
                axes.plot(R * mean.index, mean, marker="o", markersize=4, color=colour)
                last = (R * mean.index[-1], mean.iloc[-1])
                axes.annotate(f"R={R}", last, PLACES[R], textcoords="offset points", ha="center",
                              color=colour, fontweight="bold")  # fmt: skip
            axes.axvline(labels / 2, color=GREY, linestyle=":")
            axes.set_xscale("log", base=2)
            axes.margins(x=0.08, y=0.12)
            axes.xaxis.set_major_formatter("{x:,.0f}")
        top = grid[0][column]
        top.annotate("R B = L / 2", (labels / 2, 0.04), (4, 0), xycoords=("data", "axes fraction"),
                     textcoords="offset points", color=GREY)  # fmt: skip
        top.set_title(f"{name}, {labels:,} labels")
        grid[1][column].set_xlabel("R B, buckets of all repetitions")
    for row, metric in zip(grid, ("P@1", "P@5"), strict=True):
        row[0].set_ylabel(f"{metric} on dev, %")
    return figure
