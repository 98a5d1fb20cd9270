"""What the kept results say in the prose of README, docs/ and docstrings.

prose.py writes the figures there. Each line has a piece of prose, with `{}` for each figure, and the figures.
To add a figure, write the sentence and one line here, then `make bench-table`. What a generated table shows
needs no figure in prose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import scale_figures
from frames import KS, RESULTS, percent, points, read
from prose import Line
from tables.accuracy import COMPRESSED, DEFAULTS

BONSAI, PARABEL, PECOS = "omikuji (Bonsai)", "omikuji (Parabel)", "PECOS XR-Linear"
OWN = "independent encoders of 256"
SVMS = {  # by the number of buckets
    "256": "mach_ext (SVM, R 8, B 256)",
    "512": "mach_ext (SVM)",
    "1,024": "mach_ext (SVM, R 8, B 1024)",
}


class Results:
    """The kept results, and figures of them as they are written."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.kept = {file.stem: read(file.stem, folder) for file in folder.glob("*.csv")}
        self.models = points(self.kept["robustness_clean"])

    def rows(self, name: str, **key: Any) -> pd.DataFrame:
        """The rows with these values."""
        rows = self.kept[name]
        for column, value in key.items():
            rows = rows[rows[column] == value]
        return rows

    def only(self, name: str, **key: Any) -> pd.Series[Any]:
        """The only row with these values."""
        (_, row), *others = self.rows(name, **key).iterrows()
        assert not others, (name, key)
        return row

    def peer(self, dataset: str, system: str, split: str = "test") -> pd.Series[Any]:
        return self.only("peers", dataset=dataset, system=system, split=split)

    def precisions(self, dataset: str, system: str, split: str = "test", digits: int = 2) -> str:
        return precisions(self.peer(dataset, system, split), digits)

    def metric(self, dataset: str, system: str, metric: str, split: str = "test") -> str:
        return percent(self.peer(dataset, system, split)[metric])

    def training(self, dataset: str, system: str, split: str = "test") -> str:
        return f"{self.peer(dataset, system, split)['training_seconds']:.0f}"

    def megabytes(self, dataset: str, system: str) -> str:
        return f"{self.peer(dataset, system)['bytes'] / 1e6:,.0f}"

    def gains(self, dataset: str, system: str, other: str) -> list[float]:
        """How much higher P@1, P@3 and P@5 of a system are than another's."""
        ours, theirs = (self.peer(dataset, name) for name in (system, other))
        return [ours[f"P@{k}"] - theirs[f"P@{k}"] for k in KS]

    def compression(self) -> list[str]:
        """How many times smaller the compressed defaults are, the least and the most of the datasets."""
        pairs = ((name, DEFAULTS[name][1], system) for name, system in COMPRESSED.items())
        times = [self.peer(of, ours)["bytes"] / self.peer(of, small)["bytes"] for of, ours, small in pairs]
        return [f"{min(times):.0f}", f"{max(times):.0f}"]

    def default_seconds(self) -> list[str]:
        """The seconds of training with the defaults, the least and the most of the datasets."""
        seconds = [self.peer(name, of[1])["training_seconds"] for name, of in DEFAULTS.items()]
        return [f"{min(seconds):.0f}", f"{max(seconds):.0f}"]

    def lever(self, dataset: str, lever: str) -> str:
        """P@1 / P@3 / P@5, means of the seeds."""
        return precisions(self.rows("levers", dataset=dataset, lever=lever).mean(numeric_only=True))

    def seed(self, dataset: str, lever: str, seed: int) -> str:
        return percent(self.only("levers", dataset=dataset, lever=lever, seed=seed)["P@1"])

    def seconds(
        self, module: str, test: str, threads: int, provider: str = "mach_ext", digits: int = 1
    ) -> str:
        row = self.only(module, test=test, threads=threads, provider=provider)
        return f"{row['seconds']:.{digits}f}"

    def milliseconds(self, case: str, digits: int = 2) -> list[str]:
        """Of a document, of the 256 that are decoded, the fewer first."""
        rows = self.rows("merge_topk", test=f"decode[{case}]", provider="mach_ext")
        each = sorted(rows.drop_duplicates("threads")["seconds"] / 0.256)
        return [f"{ms:.{digits}f}" for ms in each]

    def ratio(self, module: str, test: str, over: str, **key: Any) -> float:
        return float(self.only(module, test=test, over=over, **key)["ratio"])

    def skipping_p1(self, dataset: str, threshold: float) -> str:
        """Dev P@1 with gradients below the threshold skipped, the mean of the seeds."""
        runs = self.rows("gradient_threshold", dataset=dataset, gradient_threshold=threshold)
        return percent(runs["P@1"].mean())

    def attack(self, threat_model: str, epsilon: float) -> pd.Series[Any]:
        """What an attack on wordnet leaves."""
        return self.only("threats", dataset="wordnet", threat_model=threat_model, epsilon=epsilon)

    def robustness(self, dataset: str, axis: str, value: int, attack: str = "fgsm") -> pd.Series[Any]:
        """P@1 of a model under an attack, by size."""
        about = pd.Series({"dataset": dataset, "axis": axis, "value": value})
        (model,) = self.models[(self.models[list(about.index)] == about).all(axis=1)].to_dict("records")
        key = {name: model[name] for name in ("dataset", "R", "B", "H", "merge")}
        return self.only("robustness", **key, attack=attack)

    def shares_kept(self, dataset: str, axis: str, value: int, attack: str = "fgsm") -> list[str]:
        """The share of P@1 that is kept at 0.03, and its interval."""
        row = self.robustness(dataset, axis, value, attack)
        return [f"{row[f'kept 0.03{end}']:.2f}" for end in ("", " low", " high")]

    def gap(self, order: str, curve: str) -> list[float]:
        """How far integrated gradients are from another order, by dataset and R."""
        return self.rows("faithfulness", order=order, curve=curve)["IG minus"].abs().tolist()

    def certificate_seconds(self, model: str) -> str:
        """Seconds of a document and size."""
        rows = self.rows("certified", threat_model="support", model=model)
        return f"{rows['seconds'].iloc[0] / rows['documents'].iloc[0] / (len(rows) - 1):.2f}"


def precisions(result: pd.Series[Any], digits: int = 2) -> str:
    return " / ".join(percent(result[f"P@{k}"], digits) for k in KS)


def lines(folder: Path = RESULTS) -> list[Line]:
    results = Results(folder)
    parts = (readme, accuracy, performance, robustness, scale_figures.lines)
    return [line for part in parts for line in part(results)]


def readme(r: Results) -> list[Line]:
    demo = r.peer("wordnet", "mach_ext")
    labels = r.rows("levers", dataset="wordnet")["labels"].iloc[0]
    whole, small = r.peer("eurlex57k", "mach_ext"), r.peer("eurlex57k", "mach_ext (compressed)")
    lost = max(map(abs, r.gains("eurlex57k", "mach_ext", "mach_ext (compressed)")))
    moved, step = r.attack("support", 0.1), r.attack("dense", 0.01)
    clean = r.attack("support", 0)
    deletion, insertion = (
        r.gap("gradient x input", kind) + r.gap("ablation", kind) for kind in ("deletion", "insertion")
    )
    memory, labels_10m = "memory_of_the_dense_pass", "extreme_labels[10000000]"
    shape = dict(item.split("=") for item in r.only("attack", test=memory)["shape"].split())
    return [
        (
            "chose from {} labels. It learnt them from {} definitions",
            f"{labels:,}",
            f"{demo['documents']:,}",
        ),
        ("in {} seconds on one CPU core", r.training("wordnet", "mach_ext")),
        (
            "has a P@1 of {} on bibtex after {} seconds",
            r.metric("bibtex", "scikit-learn one-vs-rest", "P@1"),
            r.training("bibtex", "scikit-learn one-vs-rest"),
        ),
        ("makes them {} to {} times smaller", *r.compression()),
        ("mach_ext took {} to {} seconds", *r.default_seconds()),
        (
            "With twice the buckets, eurlex57k has {} ({} s) and wordnet has {} ({} s).",
            r.precisions("eurlex57k", "mach_ext (SVM, R 8, B 1024)", digits=1),
            r.training("eurlex57k", "mach_ext (SVM, R 8, B 1024)"),
            r.precisions("wordnet", "mach_ext (B 4096)", digits=1),
            r.training("wordnet", "mach_ext (B 4096)"),
        ),
        (
            "shrinks from {} to {} MB, where omikuji takes {} and {} MB",
            r.megabytes("tibkat", "mach_ext"),
            r.megabytes("tibkat", "mach_ext (compressed)"),
            r.megabytes("tibkat", BONSAI),
            r.megabytes("tibkat", PARABEL),
        ),
        (
            "too large there: P@1 falls from {} to {}",
            r.metric("bibtex", "mach_ext (rows as given)", "P@1"),
            r.metric("bibtex", "mach_ext (rows as given, compressed)", "P@1"),
        ),
        ("is {} and {} on eurlex57k", r.skipping_p1("eurlex57k", 0.0), r.skipping_p1("eurlex57k", 0.01)),
        ("on eurlex57k, {} and {} on wordnet", r.skipping_p1("wordnet", 0.0), r.skipping_p1("wordnet", 0.01)),
        (
            "with hidden layers falls from {} to {} MB",
            r.megabytes("eurlex57k", "mach_ext"),
            r.megabytes("eurlex57k", "mach_ext (compressed)"),
        ),
        ("change by at most {} points", percent(lost)),
        ("About {} of a weight's 32 bits are left", f"{32 * small['bytes'] / whole['bytes']:.1f}"),
        ("leads the other two by {} to {} in deletion", f"{min(deletion):.3f}", f"{max(deletion):.3f}"),
        ("trails them by {} to {} in insertion", f"{min(insertion):.3f}", f"{max(insertion):.3f}"),
        ("or by {} in L2", f"{moved['l2']:.2f}"),
        ("takes P@1 from {} to {}, and", percent(clean["P@1"], 1), percent(moved["P@1"], 1)),
        ("noise of the same size takes it to {}", percent(moved["noise P@1"], 1)),
        ("adds {} non-zeros of L2 norm {}", f"{step['added']:,.0f}", f"{step['l2']:.2f}"),
        ("six epsilons take {} s and", r.seconds("attack", "a_grid_is_one_pass", 2)),
        ("and {} MB more than before", f"{r.ratio('attack', memory, 'MB'):.0f}"),
        ("N x D is {} GB", f"{4 * int(shape['N']) * int(shape['D']) / 1e9:.1f}"),
        ("the gradient takes {} s, FGSM", r.seconds("attack", labels_10m, 2, digits=2)),
        ("FGSM at six epsilons {} s", r.seconds("attack", labels_10m, 2, "FGSM, 6 eps")),
        ("the exact decode {} s", r.seconds("attack", labels_10m, 2, "decode")),
        ("A document and size takes {} s with hidden layers", r.certificate_seconds("hidden 512, R = 16")),
        ("and {} s for linear MACH", r.certificate_seconds("linear, R = 8")),
    ]


def accuracy(r: Results) -> list[Line]:
    systems = r.rows("peers", dataset="eurlex57k", split="test")["system"]
    short = max(max(r.gains("eurlex57k", system, "mach_ext (SVM)")) for system in systems)
    wider = " / ".join(map(percent, r.gains("wordnet", "mach_ext (B 4096)", "mach_ext")))
    eps = "Adam's usual eps for the encoder"
    few, shared = "mach_ext (R 4, B 512)", "mach_ext (R 4, B 512, shared H 512)"
    four = r.only("levers", dataset="wordnet", lever=f"R 4, B 2048, {OWN}")
    return [
        (
            "take {} MB on eurlex57k, at {}, and",
            r.megabytes("eurlex57k", "mach_ext (SVM, compressed)"),
            r.precisions("eurlex57k", "mach_ext (SVM, compressed)"),
        ),
        (
            "and {} MB on tibkat, at {}.",
            r.megabytes("tibkat", "mach_ext (compressed)"),
            r.precisions("tibkat", "mach_ext (compressed)"),
        ),
        (
            "take {} to {} MB on eurlex57k and",
            r.megabytes("eurlex57k", BONSAI),
            r.megabytes("eurlex57k", PARABEL),
        ),
        (
            "on eurlex57k and {} to {} MB on tibkat",
            r.megabytes("tibkat", BONSAI),
            r.megabytes("tibkat", PARABEL),
        ),
        ("On eurlex57k, R=4, B=512 needs {} s", r.training("eurlex57k", few)),
        (
            "above napkinXC ({} s), PECOS ({} s), Parabel ({} s) and Bonsai ({} s)",
            r.training("eurlex57k", "napkinXC PLT"),
            r.training("eurlex57k", PECOS),
            r.training("eurlex57k", PARABEL),
            r.training("eurlex57k", BONSAI),
        ),
        (
            "With one shared encoder it needs {} s and has {} where Bonsai has {}",
            r.training("eurlex57k", shared),
            r.metric("eurlex57k", shared, "P@1"),
            r.metric("eurlex57k", BONSAI, "P@1"),
        ),
        (
            "R=4 has {} after {} s, and",
            r.metric("wordnet", "mach_ext (R 4)", "P@1"),
            r.training("wordnet", "mach_ext (R 4)"),
        ),
        (
            "and {} after {} s with one shared encoder",
            r.metric("wordnet", "mach_ext (R 4, shared H 512)", "P@1"),
            r.training("wordnet", "mach_ext (R 4, shared H 512)"),
        ),
        ("Bonsai has {} after {} s", r.metric("wordnet", BONSAI, "P@1"), r.training("wordnet", BONSAI)),
        ("Parabel {} after {} s", r.metric("wordnet", PARABEL, "P@1"), r.training("wordnet", PARABEL)),
        ("PECOS {} after {} s", r.metric("wordnet", PECOS, "P@1"), r.training("wordnet", PECOS)),
        (
            "hidden units have {} with R=8, B=1,024 and {} with R=16",
            r.metric("eurlex57k", "mach_ext (R 8, B 1024)", "P@5", "dev"),
            r.metric("eurlex57k", "mach_ext (R 16, B 1024)", "P@5", "dev"),
        ),
        (
            "SVMs have {} with R=8, B=512 and {} with B=1,024",
            r.metric("eurlex57k", "mach_ext (SVM)", "P@5", "dev"),
            r.metric("eurlex57k", "mach_ext (SVM, R 8, B 1024)", "P@5", "dev"),
        ),
        (
            "Bonsai has {} and {} at P@5",
            r.metric("eurlex57k", BONSAI, "P@5", "dev"),
            r.metric("eurlex57k", BONSAI, "P@5"),
        ),
        ("dev have {} and {} with Adam's", r.seed("eurlex57k", eps, 0), r.seed("eurlex57k", eps, 1)),
        ("and {} and {} with this one", r.seed("eurlex57k", "base", 0), r.seed("eurlex57k", "base", 1)),
        ("means of two seeds, they have {}. One", r.lever("eurlex57k", f"R 4, B 1024, {OWN}")),
        ("One encoder of 512 has {} in the same time", r.lever("eurlex57k", "base")),
        ("on wordnet dev they have {}, and", r.lever("wordnet", f"R 8, B 2048, {OWN}")),
        ("and one of 512 has {}. They cost", r.lever("wordnet", "R 8, B 2048")),
        ("encoder of 1,024 units has {} on eurlex57k", r.lever("eurlex57k", "hidden 1024")),
        ("shared encoder has {} with B=256", r.lever("eurlex57k", "B 256")),
        ("{} with B=512, {} with B=1,024", r.lever("eurlex57k", "B 512"), r.lever("eurlex57k", "base")),
        ("and {} with B=2,048", r.lever("eurlex57k", "B 2048")),
        ("--no-holdout` has {} on the binary rows", r.precisions("bibtex", "mach_ext (rows as given)")),
        ("and {} on rows of length 1", r.precisions("bibtex", "mach_ext")),
        *(
            (
                f"| eurlex57k | 8 x {buckets} | {{}} | {{}} | {{}} |",
                r.precisions("eurlex57k", system, "dev"),
                r.metric("eurlex57k", system, "R@50", "dev"),
                r.training("eurlex57k", system, "dev"),
            )
            for buckets, system in SVMS.items()
        ),
        ("wordnet has {} after {} s. 16 buckets", precisions(four), f"{four['training_seconds']:.0f}"),
        ("solved side by side, {} times", f"{r.ratio('training', 'svm', 'liblinear', threads=1):.0f}"),
        ("SVMs have {} there. One dataset", r.precisions("bibtex", "mach_ext (SVM)")),
        ("the defaults are within {} points of the best found on eurlex57k", percent(short)),
        ("On wordnet B=4,096 is {} better", wider),
    ]


def performance(r: Results) -> list[Line]:
    over = "points of difference, mean of the seeds"
    gain = {
        name: f"{r.ratio('training', f'negligible_gradient[{name}]', over):.2f}"
        for name in ("eurlex57k", "wordnet")
    }
    return [
        ("k=5* takes {} to {} ms a document", *r.milliseconds("670K k5")),
        ("*k=100* takes {} to {} ms", *r.milliseconds("670K k100")),
        ("*Flat scores* (670K, k=5) take {} to {} ms", *r.milliseconds("670K flat")),
        ("*31K, R=32, B=1,000* takes {} to {} ms", *r.milliseconds("31K R32", 3)),
        ("eurlex57k gains {}, the mean of two seeds", gain["eurlex57k"]),
        ("wordnet gains {}, which is above 0.1", gain["wordnet"]),
    ]


def robustness(r: Results) -> list[Line]:
    widest, narrowest = (f"{r.robustness('eurlex57k', 'B', B)['P@1 0.1']:.3f}" for B in (2048, 64))
    linear, narrow, wide = (f"{r.robustness('eurlex57k', 'H', H)['half']:.2f}" for H in (0, 32, 512))
    return [
        (
            "rises from {} to {} on eurlex57k and from {} to {} on wordnet",
            r.shares_kept("eurlex57k", "R", 2)[0],
            r.shares_kept("eurlex57k", "R", 32)[0],
            r.shares_kept("wordnet", "R", 2)[0],
            r.shares_kept("wordnet", "R", 32)[0],
        ),
        (
            "it goes from {} to {} on eurlex57k and from {} to {} on wordnet",
            r.shares_kept("eurlex57k", "R", 2, "margin")[0],
            r.shares_kept("eurlex57k", "R", 32, "margin")[0],
            r.shares_kept("wordnet", "R", 2, "margin")[0],
            r.shares_kept("wordnet", "R", 32, "margin")[0],
        ),
        ("smallest on eurlex57k, {} against {}", widest, narrowest),
        (
            "under the margin attack: {}, {}, {} for 32, 128, 512",
            r.shares_kept("eurlex57k", "H", 32, "margin")[0],
            r.shares_kept("eurlex57k", "H", 128, "margin")[0],
            r.shares_kept("eurlex57k", "H", 512, "margin")[0],
        ),
        ("It keeps {} [{}, {}] at 0.03", *r.shares_kept("eurlex57k", "H", 0)),
        ("half at eps {} where 32 to 512 units keep half at {} to {}", linear, narrow, wide),
        ("it keeps {} [{}, {}], and 512 units", *r.shares_kept("eurlex57k", "H", 0, "margin")),
        ("and 512 units keep {} [{}, {}]", *r.shares_kept("eurlex57k", "H", 512, "margin")),
        ("less than they do, {} [{}, {}]", *r.shares_kept("wordnet", "H", 0, "margin")),
        ("against {} [{}, {}]. So the attack", *r.shares_kept("wordnet", "H", 512, "margin")),
        ("the model itself keeps {} and", *r.shares_kept("eurlex57k", "R", 16, "pgd")[:1]),
        ("and the other keeps {}", *r.shares_kept("eurlex57k", "R", 16, "transfer")[:1]),
    ]
