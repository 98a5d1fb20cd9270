"""The plan for a billion labels, what predicting takes there, and predictions beside runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import scale
from frames import markdown, milliseconds, read
from scale_model import plan as part_of

CARD = "H200"
CAPACITY = {card: scale.Cluster(card).capacity for card in ("H100", "H200")}


def rows(folder: Path, work: str) -> pd.DataFrame:
    kept = read("scale", folder)
    return kept[(kept["work"] == work) & (kept["card"] == CARD)]


def gigabytes(size: float) -> str:
    """With the names of the cards that have so much."""
    cards = [card for card, capacity in CAPACITY.items() if size <= capacity]
    return f"{size / 1e9:,.0f}" + ("" if len(cards) == 2 else f" ({cards[0]})" if cards else " (none)")


def plan(folder: Path) -> str:
    """Training, a row for each layout and number of GPUs."""
    lines = []
    for row in rows(folder, "train").to_dict("records"):
        copies = int(row["copies"])
        name = "data parallel" if row["layout"] == "data parallel" else row["layout"]
        if copies > 1 and name != "data parallel":
            name += f", {copies} copies"
        lines.append({
            "encoder": row["model"],
            "GPUs": row["gpus"],
            "layout": name,
            "GB a GPU": gigabytes(row["memory"]),
            "received, MB a step": f"{row['received'] / 1e6:,.0f}",
            "work, ms": milliseconds(row["work_seconds"]),
            "exchanges, ms": milliseconds(row["exchange_seconds"]),
            "epoch, hours": f"{row['epoch_seconds'] / 3600:.2g}",
            "reads, GB/s a GPU": f"{row['epoch_read'] / row['epoch_seconds'] / 1e9:.2g}",
        })  # fmt: skip
    return markdown(pd.DataFrame(lines))


def prediction(folder: Path) -> str:
    """Predicting, a row for each layout and number of GPUs. Times are of a document that all are asked."""
    lines = []
    for row in rows(folder, "predict").to_dict("records"):
        fits = row["memory"] <= CAPACITY[CARD]
        fixed = row["work_seconds"] + row["exchange_seconds"]
        slow, quick = (1 / (fixed + row[name]) for name in ("scan_seconds", "lists_seconds"))
        times = {
            "scores, us": f"{1e6 * row['work_seconds']:.2g}",
            "exchange, us": f"{1e6 * row['exchange_seconds']:.2g}",
            "decode by lists, us": f"{1e6 * row['lists_seconds']:.3g}",
            "decode by scan, us": f"{1e6 * row['scan_seconds']:,.0f}",
            "documents/s": f"{slow:,.0f} to {quick:,.0f}",
        }
        lines.append({
            "GPUs": row["gpus"],
            "layout": row["layout"],
            "GB a GPU": gigabytes(row["memory"]),
            "received, KB": f"{row['received'] / 1e3:,.0f}",
            **{name: text if fits else "-" for name, text in times.items()},
        })  # fmt: skip
    return markdown(pd.DataFrame(lines))


def title(row: dict[str, str]) -> str:
    """What a row of scale_measured.csv measured."""
    items = dict(item.split("=") for item in row["shape"].split())
    if row["part"].startswith("all_"):
        return f"{row['part']}, {items['rows']} x {items['columns']}"
    names = {"step": "one process"}
    names |= {part: f"2 processes, {layout}" for part, layout in scale.REHEARSED.items()}
    encoder = "independent, " if items["encoder"] == "independent" else ""
    sizes = ", ".join(f"{name} {items[name]}" for name in ("D", "nnz", "R", "B", "H"))
    return f"{names[row['part']]}: {encoder}{sizes}"


def measured(folder: Path) -> str:
    """What was held out: predicted, measured, and the first over the second."""
    lines = []
    for row, predicted in scale.against_runs(folder):
        seconds = float(row["seconds"])
        lines.append({
            "what": title(row), "predicted, ms": milliseconds(predicted),
            "measured, ms": milliseconds(seconds), "ratio": f"{predicted / seconds:.2f}",
        })  # fmt: skip
    return markdown(pd.DataFrame(lines))


def exchanged(folder: Path) -> str:
    """Why a shared encoder is divided by unit: bytes and time of a step on two processes."""
    lines = []
    runs = [(scale.measured_shape(row["shape"]), row) for row in scale.rehearsed(folder)]
    for (shape, ranks), row in sorted(runs, key=lambda run: run[0][0].nonzeros):
        layout = scale.REHEARSED[row["part"]]
        eight = part_of(layout, shape, 8)
        lines.append({
            "documents": "short (wordnet)" if shape.nonzeros < 100 else "long",
            "layout": layout,
            "received by one of 2, MB": f"{part_of(layout, shape, ranks).received / 1e6:.3g}",
            "by one of 8, MB": f"{eight.received / 1e6:.3g}",
            "step on 2 processes, ms": milliseconds(float(row["seconds"])),
        })  # fmt: skip
    return markdown(pd.DataFrame(lines))
