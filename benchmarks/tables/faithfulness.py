"""Faithfulness of attributions, in short: a row a dataset and R."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from frames import markdown, read

ORDERS = ("integrated gradients", "gradient x input", "ablation", "random")


def faithfulness(folder: Path) -> str:
    key = ["dataset", "R"]
    kept, checks = read("faithfulness", folder), read("collisions", folder).groupby(key)
    deletion = kept[kept["curve"] == "deletion"]
    areas = deletion.pivot(index=key, columns="order", values="area")
    table = areas[list(ORDERS)].map("{:.3f}".format).rename(columns={ORDERS[0]: "IG"})
    random = deletion[deletion["order"] == "random"].set_index(key)
    parts = [random[f"IG minus{end}"].map("{:.3f}".format) for end in ("", " low", " high")]
    table["IG - random"] = parts[0] + " [" + parts[1] + ", " + parts[2] + "]"
    table["IG across seeds"] = checks["stability"].first().map("{:.2f}".format)
    for verdict, name in (("signal", "right: signals"), ("collision", "collisions")):
        table[name] = checks.apply(share_right, verdict)
    near = checks["near signal right"].mean()
    table["signals of their scores"] = near.map("{:.0%}".format).where(near.notna(), "-")
    return markdown(table.reset_index().rename(columns={"dataset": "data"}))


def share_right(of: pd.DataFrame, verdict: str) -> str:
    """Of the predictions of all seeds with this verdict."""
    count = of[verdict].sum()
    return f"{(of[verdict] * of[f'{verdict} right']).sum() / count:.0%} of {count}" if count else "-"
