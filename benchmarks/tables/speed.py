"""Speed: each work beside the other forms of it, on the CPU and on a GPU."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from frames import joined, markdown, milliseconds, precision_columns, read, timings

from tables.cuda import cuda

HEAD = ("work", "floor, ms", "of it reached", "beside", "ratio", "target", "met")
SUMMARISED = {  # works with one line: its name, and what stands beside
    "decode grid": ("decode", "torch"),
    "decode paths": ("decode, the path chosen by cost", "path forced"),
}


def prediction(folder: Path) -> str:
    """A row a dataset and system: ms a document, alone and in a batch, P@k, and resident memory."""
    kept = read("prediction", folder)
    table = kept[["dataset", "system"]].rename(columns={"dataset": "data"})
    for column, title in {"ms_single": "alone, ms", "ms_batch": "in a batch, ms"}.items():
        table[title] = kept[column].map("{:.3f}".format)
    table["P@1 / P@3 / P@5"] = joined(kept, precision_columns())
    table["resident, MB"] = [f"{size / 1e6:,.0f}" if size == size else "" for size in kept["resident"]]
    return markdown(table)


def benchmarks(folder: Path) -> str:
    """The table in Markdown. What stands with a slash is for 1 and 2 threads."""
    kept = timings(folder)
    if kept.empty:
        return "No results are kept: `make bench`.\n"
    compared = kept[kept["over"].notna()]
    compared = compared.assign(turn=compared.groupby(["test", "threads"], dropna=False).cumcount())
    each = compared[~compared["work"].isin(SUMMARISED)]
    rows = [
        line(title if turn == 0 else "same", of.sort_values("threads", kind="stable"))
        for (title, turn), of in each.groupby(["title", "turn"], sort=False)
    ]
    for work in SUMMARISED:
        if len(grid := compared[compared["work"] == work]):
            rows.append(summary_line(work, grid))
    text = markdown(pd.DataFrame(rows, columns=list(HEAD))) + "\n" + footnotes(kept, compared, folder)
    names = [name for name in ("cuda", "cuda_predicted") if (folder / f"{name}.csv").exists()]
    return text + ("\n" + cuda(read(names[0], folder)) if names else "")


def line(name: str, of: pd.DataFrame) -> tuple[str, ...]:
    """The line of one ratio, with all numbers of threads."""
    first = of.iloc[0]
    if first["provider"] != "mach_ext":
        name += f" ({first['provider']})"
    timed = of[of["floor_seconds"].notna()] if first["provider"].startswith("mach_ext") else of[:0]
    floors = " / ".join(timed["floor_seconds"].map(milliseconds))
    reached = " / ".join((timed["floor_seconds"] / timed["seconds"]).map("{:.0%}".format))
    bound = f" ({first['bound']})" if floors else ""
    ratios = " / ".join(of["ratio"].map("{:.3g}".format))
    return (name, floors + bound, reached, " / ".join(of["over"].unique()), ratios, *promise(of))


def promise(of: pd.DataFrame) -> tuple[str, str]:
    first = of.iloc[0]
    for sign, target in (("≥", first["at_least"]), ("<", first["at_most"])):
        if pd.notna(target):
            met = "yes" if of["met"].all() else "**not at all threads**" if of["met"].any() else "**no**"
            return f"{sign} {target:g}", met
    return "", ""


def summary_line(work: str, grid: pd.DataFrame) -> tuple[str, ...]:
    name, beside = SUMMARISED[work]
    worst = " / ".join(grid.groupby("threads")["ratio"].min().map("{:.3g}".format))
    under = (~grid["met"]).sum()
    met = f"**no**, {under} of {len(grid)} under" if under else "yes"
    points = f"{name}, {grid['title'].nunique()} shapes and inputs, the least ratio"
    return points, "", "", beside, worst, f"≥ {grid['at_least'].iloc[0]:g}", met


def footnotes(kept: pd.DataFrame, compared: pd.DataFrame, folder: Path) -> str:
    text = (
        "A ratio is the median time of the other form over that of mach_ext, both timed in turn in one run. "
        "The floor is the longer of two times: to move the bytes at STREAM's speed, and to do the sums. "
        "Work that the cache keeps, or that is skipped, can go below it. The floor counts this:\n\n"
    )
    floors = kept[["work"]].drop_duplicates().merge(read("floors", folder), on="work")
    floors["work"] = floors["work"].str.split(" ").str[0].str.strip(",")
    works = floors.groupby("floor", sort=False)["work"].agg(lambda works: ", ".join(works.unique()))
    text += markdown(works.reset_index()[["work", "floor"]]) + "\n"
    under = compared[compared["work"].isin(SUMMARISED) & ~compared["met"]].sort_values(
        "threads", kind="stable"
    )
    if len(under):
        text += "These shapes missed the target of a table's line:\n\n"
        text += markdown(
            pd.DataFrame(
                {
                    "work": under["title"],
                    "threads": under["threads"].map("{:.0f}".format),
                    "ratio": under["ratio"].map("{:.2f}".format),
                }
            )
        )
        text += "\n"
    for row in (
        kept[["cpu", "isa", "torch"]].drop_duplicates().sort_values(["cpu", "isa", "torch"]).itertuples()
    ):
        text += f"The machine has an {row.cpu} with {row.isa}, and torch {row.torch}.\n"
    stream = kept["stream_gb_per_s"].dropna()
    if len(stream):
        text += f"STREAM's triad moved {stream.min():.0f} to {stream.max():.0f} GB/s in these runs.\n"
    return text


def processes(folder: Path) -> str:
    """Several processes beside one: weights and P@1 of each number, and the speed on all cores."""
    kept = read("processes", folder)
    lines = []
    for kind, rows in kept.groupby("kind", sort=False):
        bits = rows[rows["study"] == "bits"].set_index("processes")
        far = [f"{each:.1g}" if each else "0" for each in bits["difference"].drop(1)]
        speed = rows[rows["study"] == "speed"]
        ratio = "-" if speed.empty else f"{speed['speed'].iloc[0]:.2f}"
        lines.append({
            "model": kind,
            "P@1, 1 process": f"{100 * bits['P@1'][1]:.2f}",
            "P@1, 2 / 3 / 4": " / ".join(f"{100 * each:.2f}" for each in bits["P@1"].drop(1)),
            "largest difference of weights, 2 / 3 / 4": " / ".join(far),
            "speed of 2 processes": ratio,
        })  # fmt: skip
    return markdown(pd.DataFrame(lines))
