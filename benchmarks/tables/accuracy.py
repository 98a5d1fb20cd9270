"""Accuracy: MACH beside other systems, and what each setting brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from frames import joined, markdown, precision_columns, read

# The system of studies/peers.py that `mach-ext train` makes of a dataset without a flag, its labels, and the
# system with hidden layers that neighbours rank again.
DEFAULTS = {
    "wordnet": (20_430, "mach_ext", "mach_ext and neighbours"),
    "eurlex57k": (4_271, "mach_ext (SVM)", "mach_ext and neighbours"),
    "tibkat": (41_218, "mach_ext", "mach_ext and neighbours"),
    "bibtex": (159, "mach_ext (rows as given)", "mach_ext (rows as given) and neighbours"),
}
COMPRESSED = {  # their compressed models
    "wordnet": "mach_ext (compressed)",
    "eurlex57k": "mach_ext (SVM, compressed)",
    "tibkat": "mach_ext (compressed)",
    "bibtex": "mach_ext (rows as given, compressed)",
}
HALF = (  # systems of studies/peers.py with R x B at most L / 2
    ("eurlex57k", "mach_ext (SVM, R 8, B 256)", "8, 256, SVMs"),
    ("eurlex57k", "mach_ext (R 8, B 256)", "8, 256"),
    ("eurlex57k", "mach_ext (R 4, B 512)", "4, 512"),
    ("wordnet", "mach_ext (R 8, B 1024)", "8, 1,024"),
    ("wordnet", "mach_ext (R 4)", "4, 2,048"),
    ("tibkat", "mach_ext (R 8)", "8, 2,048"),
    ("bibtex", "mach_ext (R 4, B 16)", "4, 16"),
)
P = precision_columns()


def final_results(folder: Path) -> pd.DataFrame:
    """The final figures of studies/peers.py by dataset and system, with all precisions as one text."""
    kept = read("peers", folder)
    kept = kept.assign(precisions=joined(kept, P), seconds=kept["training_seconds"].map("{:.0f}".format))
    return kept[kept["split"] == "test"].set_index(["dataset", "system"])


def best_other(kept: pd.DataFrame, dataset: str) -> pd.Series[Any]:
    """The result of the system with the best P@1 that is not mach_ext. Its name is the system's."""
    systems = kept.loc[dataset]
    others = systems[~systems.index.str.startswith("mach_ext")]
    return others.loc[others["P@1"].idxmax()]


def standing(folder: Path) -> str:
    """The defaults beside the best other system."""
    kept, rows = final_results(folder), []
    for dataset, (labels, system, near) in DEFAULTS.items():
        ours, other = kept.loc[(dataset, system)], best_other(kept, dataset)
        cells = [dataset, f"{labels:,}", ours["precisions"], ours["seconds"]]
        cells += [kept.loc[(dataset, near), "precisions"], f"{other.name}: {other['precisions']}"]
        rows.append([*cells, other["seconds"]])
    head = ("data", "labels", "mach_ext", "training, s", "hidden layers, neighbors")
    return markdown(pd.DataFrame(rows), (*head, "the best other system", "training, s"))


def half(folder: Path) -> str:
    """Models with R x B at most L / 2 beside the best other system."""
    kept, rows = final_results(folder), []
    for dataset, system, sizes in HALF:
        ours, other = kept.loc[(dataset, system)], best_other(kept, dataset)
        beyond = " / ".join(f"{100 * (ours[metric] - other[metric]):+.2f}" for metric in P)
        rows.append((dataset, sizes, ours["precisions"], ours["seconds"], beyond))
    head = ("data", "R, B", "P@1 / P@3 / P@5", "training, s", "minus the best other system's")
    return markdown(pd.DataFrame(rows, columns=head))


def peers(folder: Path) -> str:
    """A row a system, by dataset: the final figures, then those on dev."""
    kept = read("peers", folder).sort_values("P@1", ascending=False, kind="stable")
    table = pd.DataFrame({"system": kept["system"]})
    for metric in ("P", "nDCG", "PSP"):
        columns = precision_columns(metric)
        table[" / ".join(columns)] = joined(kept, columns)
    table["R@50"] = joined(kept, ["R@50"])
    table["training, s"] = kept["training_seconds"].map("{:.0f}".format)
    times = kept[["ms_single", "ms_batch"]].map("{:.3g}".format)
    table["ms a document, single / batch"] = times.agg(" / ".join, axis=1)
    table["MB"] = joined(kept, ["bytes"], digits=1, scale=1e-6)
    text = ""
    for split, about in (("test", "final"), ("dev", "dev")):
        for name, of in kept[kept["split"] == split].groupby("dataset"):
            counts = (
                f"{of['documents'].iloc[0]:,} documents for training, {of['asked'].iloc[0]:,} for the figures"
            )
            text += f"**{name}**, {about}: {counts}.\n\n" + markdown(table.loc[of.index]) + "\n"
    return text


def adjusted(folder: Path) -> str:
    """The final figures of each system that has tau: as it ranks, and with the adjustment, the best first.

    The default of mach_ext stands there even without tau, as its first column is adjusted.
    """
    kept = final_results(folder).reset_index()
    defaults = [(dataset, system) for dataset, (_, system, _) in DEFAULTS.items()]
    own = pd.Series(list(zip(kept["dataset"], kept["system"], strict=True)), kept.index).isin(defaults)
    kept = kept[kept["tau"].notna() | own].copy()
    has = kept["tau"].notna()
    kept["order"] = kept["adjusted P@1"].fillna(kept["P@1"])
    kept = kept.sort_values(["dataset", "order"], ascending=[True, False], kind="stable")
    table = kept[["dataset", "system", "precisions"]].copy()
    table["adjusted"] = joined(kept, [f"adjusted {name}" for name in P]).where(has, "")
    table["tau"] = kept["tau"].map("{:.2f}".format).where(has, "")
    return markdown(table, ("data", "system", "P@1 / P@3 / P@5", "adjusted", "tau"))


def embeddings(folder: Path) -> str:
    """Words, embeddings and both: test before dev, by documents for training, the best first."""
    kept = read("embeddings", folder)
    kept = kept.sort_values(["dataset", "split", "documents", "P@1"], ascending=False, kind="stable")
    columns = ["dataset", "split", "documents", "system", "features"]
    table = kept[columns].rename(columns={"dataset": "data"})
    seeds = kept.duplicated(columns, keep=False)  # rows that differ in their seeds alone
    table.loc[seeds, "system"] += ", seed " + kept.loc[seeds, "seed"].astype(str)
    table["documents"] = table["documents"].map("{:,}".format)
    table["P@1 / P@3 / P@5"] = joined(kept, P)
    table["training, s"] = kept["training_seconds"].map("{:.0f}".format)
    return markdown(table)


def levers(folder: Path) -> str:
    """A row a lever, by dataset, the best mean P@1 first."""
    kept = read("levers", folder)
    by_lever = kept.groupby(["dataset", "lever"])
    mean = by_lever[[*P, "R@50", "training_seconds"]].mean()
    table = pd.DataFrame({"P@1 / P@3 / P@5, mean of the seeds": joined(mean, P)})
    shown = kept.assign(shown=joined(kept, ["P@1"])).groupby(["dataset", "lever"])["shown"]
    table["P@1 of each seed"] = shown.agg(", ".join)
    table["R@50"] = joined(mean, ["R@50"])
    table["training, s"] = mean["training_seconds"].map("{:.0f}".format)
    table["million parameters"] = (by_lever["parameters"].first() / 1e6).map("{:.1f}".format)
    table = table.assign(order=-mean["P@1"]).sort_values(["dataset", "order"], kind="stable")
    return markdown(table.drop(columns="order").reset_index().rename(columns={"dataset": "data"}))
