"""Robustness: P@1 under attacks and under noise, what changes it, and what is certified."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from frames import joined, markdown, points, read

MODEL = ["dataset", "R", "B", "H", "merge"]
SHOWN = [f"P@1 {epsilon:g}" for epsilon in (0.01, 0.03, 0.1)]


def robustness(folder: Path) -> str:
    """P@1 and the share of it that is kept, a row a model and axis."""
    curves = read("robustness", folder).set_index("attack")
    models = points(read("robustness_clean", folder))
    names = models["axis"] + " = " + models["value"].astype(str)
    seeds = models[["P@1 seed 0", "P@1 seed 1"]].map("{:.3f}".format, na_action="ignore")
    table = pd.DataFrame(
        {"data": models["dataset"], "": names.where(models["axis"] != "merge", models["value"])}
    )
    table["clean P@1"] = seeds.apply(lambda row: " / ".join(row.dropna()), axis=1)
    attacks = {kind: models.merge(curves.loc[kind], on=MODEL, how="left") for kind in curves.index.unique()}
    for kind in ("fgsm", "margin"):
        curve = attacks[kind]
        table[f"{kind} P@1"] = joined(curve, SHOWN, digits=3, scale=1)
        table[f"{kind} kept"] = interval(curve, "kept 0.03", 2)
        if kind == "fgsm":
            table["half"] = interval(curve, "half", 3)
    table["pgd"] = attacks["pgd"]["kept 0.03"].map("{:.2f}".format)
    transfer = attacks["transfer"]["kept 0.03"].map("{:.2f}".format, na_action="ignore")
    table["transfer"] = transfer.where(models["merge"] == "mean_logit").fillna("")
    table["noise"] = (attacks["noise"]["P@1 0.1"] / models["P@1"]).map("{:.2f}".format)
    head = ("data", "", "clean P@1", "FGSM, loss: P@1 at 0.01 / 0.03 / 0.1", "kept at 0.03")
    head += ("half kept at eps", "FGSM, margin: P@1 at 0.01 / 0.03 / 0.1", "kept at 0.03")
    return markdown(table, (*head, "PGD, loss: kept at 0.03", "transfer", "noise: kept at 0.1"))


def interval(frame: pd.DataFrame, column: str, digits: int) -> pd.Series:
    """`value [low, high]` of a column. A missing number is infinite."""
    ends = [
        frame[column + end].map(f"{{:.{digits}f}}".format, na_action="ignore")
        for end in ("", " low", " high")
    ]
    value, low, high = (end.fillna("> 0.3") for end in ends)
    return value + " [" + low + ", " + high + "]"


def certified(folder: Path) -> str:
    """P@1 of certificates and attacks, a row a threat model and model."""
    rows = []
    for (model, threat), of in read("certified", folder).groupby(["model", "threat_model"], sort=False):
        shown = (100 * of[["robust P@1", "robust P@1 bound"]]).map("{:.1f}".format)
        attacked = 100 * of[["untargeted P@1", "positive P@1"]].min(axis=1)
        cells = of["epsilon"].map("{:g}".format) + ": **" + shown["robust P@1"] + "** "
        cells += shown["robust P@1 bound"] + " (" + attacked.map("{:.1f}".format) + ")"
        clean = shown["robust P@1"].iloc[0]
        sizes = [*cells.iloc[1:], *[""] * (6 - len(cells))]
        rows.append((f"{threat}, {model}", clean, *sizes, f"{of['zero P@1'].iloc[0]:.3g}"))
    head = ("threat model, model", "clean", *(f"size {i}" for i in range(1, 6)), "zero at")
    return markdown(pd.DataFrame(rows, columns=head))


def threats(folder: Path) -> str:
    """P@1 of each threat model and size, beside noise of the same kind and size."""
    kept, rows = read("threats", folder), []
    kept = kept[~kept["dataset"].str.startswith("planted")]
    for (name, threat), of in kept.groupby(["dataset", "threat_model"], sort=False):
        shown = of[["P@1", "noise P@1"]].map("{:.3f}".format)
        cells = of["epsilon"].map("{:g}".format) + ": **" + shown["P@1"] + "** (" + shown["noise P@1"] + ")"
        rows.append((name, threat, shown["P@1"].iloc[0], *cells.iloc[1:]))
    head = ("data", "threat model", "clean", *(f"size {i}" for i in range(1, 7)))
    return markdown(pd.DataFrame(rows, columns=head))
