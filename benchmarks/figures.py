"""What the kept results say in the prose of README, docs/ and docstrings; prose.py writes it there.

Each line has a piece of prose, with `{}` for each figure, and the figures. To add a figure, write the
sentence and one line here, then `make bench-table`. What a generated table shows needs no figure in prose.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from prose import ROOT, Line

RESULTS = ROOT / "benchmarks" / "results"

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
        self.kept = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}

    def only(self, module: str, within: str | None = None, **key: Any) -> Any:
        """The only result with these values."""
        results = self.kept[module] if within is None else self.kept[module][within]
        (result,) = (r for r in results if all(r.get(name) == value for name, value in key.items()))
        return result

    def peer(self, dataset: str, system: str, split: str = "test") -> Any:
        return self.only("peers", dataset=dataset, system=system, split=split)

    def precisions(self, dataset: str, system: str, split: str = "test", digits: int = 2) -> str:
        return precisions(self.peer(dataset, system, split), digits)

    def metric(self, dataset: str, system: str, metric: str, split: str = "test") -> str:
        return percent(self.peer(dataset, system, split)["metrics"][metric])

    def training(self, dataset: str, system: str, split: str = "test") -> str:
        return f"{self.peer(dataset, system, split)['training seconds']:.0f}"

    def megabytes(self, dataset: str, system: str) -> str:
        return f"{self.peer(dataset, system)['bytes'] / 1e6:,.0f}"

    def gains(self, dataset: str, system: str, other: str) -> list[float]:
        """How much higher P@1, P@3 and P@5 of a system are than another's."""
        ours, theirs = (self.peer(dataset, name)["metrics"] for name in (system, other))
        return [ours[f"P@{k}"] - theirs[f"P@{k}"] for k in (1, 3, 5)]

    def lever(self, dataset: str, lever: str) -> str:
        """P@1 / P@3 / P@5, means of the seeds."""
        runs = [r["metrics"] for r in self.kept["levers"] if (r["dataset"], r["lever"]) == (dataset, lever)]
        return precisions({"metrics": {f"P@{k}": mean(run[f"P@{k}"] for run in runs) for k in (1, 3, 5)}})

    def seed(self, dataset: str, lever: str, seed: int) -> str:
        return percent(self.only("levers", dataset=dataset, lever=lever, seed=seed)["metrics"]["P@1"])

    def seconds(self, module: str, name: str, provider: str = "mach_ext", digits: int = 1) -> str:
        return f"{self.only(module, name=name)['providers'][provider]['median']:.{digits}f}"

    def milliseconds(self, name: str, digits: int = 2) -> list[str]:
        """Of a document, of the 256 that are decoded, the fewer first."""
        runs = (self.only("merge_topk", name=f"test_decode[{t}threads-{name}]") for t in (1, 2))
        return [
            f"{ms:.{digits}f}" for ms in sorted(r["providers"]["mach_ext"]["median"] / 0.256 for r in runs)
        ]

    def ratio(self, module: str, name: str, over: str) -> float:
        (ratio,) = (r["ratio"] for r in self.only(module, name=name)["ratios"] if r["over"] == over)
        return float(ratio)

    def skipping_p1(self, dataset: str, negligible_gradient: float) -> str:
        """Dev P@1 with gradients below the threshold skipped, the mean of the seeds."""
        runs = self.only("training", name=f"test_negligible_gradient[{dataset}]")["runs"]
        return percent(mean(r["dev"]["P@1"] for r in runs if r["negligible_gradient"] == negligible_gradient))

    def attack(self, threat_model: str, epsilon: float) -> Any:
        """What an attack on wordnet leaves."""
        sizes = self.only("robustness", "threats", dataset="wordnet", threat_model=threat_model)[
            "adversarial"
        ]
        return next(size for size in sizes if size["epsilon"] == epsilon)

    def robustness(self, dataset: str, axis: str, value: int) -> Any:
        return self.only("robustness", "models", dataset=dataset, axis=axis, value=value)

    def shares_kept(self, dataset: str, axis: str, value: int, attack: str = "fgsm") -> list[str]:
        """The share of P@1 that is kept at 0.03, and its interval."""
        at = self.kept["robustness"]["epsilons"].index(0.03)
        return [f"{share:.2f}" for share in self.robustness(dataset, axis, value)[attack]["P@1 kept"][at]]

    def gap(self, order: str, kind: str) -> list[float]:
        """How far integrated gradients are from another order, by dataset and R."""
        return [abs(r["IG minus"][order][kind][0]) for r in self.kept["faithfulness"]["results"]]

    def certificate_seconds(self, model: str) -> str:
        """Seconds of a document and size."""
        record = self.kept["certified"]["results"][f"support, {model}"]
        return f"{record['seconds'] / record['documents'] / (len(record['sizes']) - 1):.2f}"


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}"


def precisions(result: Any, digits: int = 2) -> str:
    return " / ".join(percent(result["metrics"][f"P@{k}"], digits) for k in (1, 3, 5))


def lines(folder: Path = RESULTS) -> list[Line]:
    results = Results(folder)
    return [*readme(results), *accuracy(results), *performance(results), *robustness(results)]


def readme(r: Results) -> list[Line]:
    demo = r.peer("wordnet", "mach_ext")
    labels = r.only("levers", dataset="wordnet", lever="R 8, B 2048")["model"]["num_labels"]
    whole, small = r.peer("eurlex57k", "mach_ext"), r.peer("eurlex57k", "mach_ext (compressed)")
    lost = max(map(abs, r.gains("eurlex57k", "mach_ext", "mach_ext (compressed)")))
    moved, step = r.attack("support", 0.1), r.attack("dense", 0.01)
    clean = r.only("robustness", "threats", dataset="wordnet", threat_model="support")["clean"]
    deletion, insertion = (
        r.gap("gradient x input", kind) + r.gap("ablation", kind) for kind in ("deletion", "insertion")
    )
    memory, labels_10m = "test_memory_of_the_dense_pass", "test_extreme_labels[2threads-10000000]"
    shape = r.only("attack", name=memory)["shape"]
    return [
        ("({} documents, {} labels), hashed", f"{demo['documents']:,}", f"{labels:,}"),
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
        ("is {} and {} on eurlex57k", r.skipping_p1("eurlex57k", 0.0), r.skipping_p1("eurlex57k", 0.01)),
        ("on eurlex57k, {} and {} on wordnet", r.skipping_p1("wordnet", 0.0), r.skipping_p1("wordnet", 0.01)),
        (
            "with hidden layers falls from {} to {} MB",
            r.megabytes("eurlex57k", "mach_ext"),
            r.megabytes("eurlex57k", "mach_ext (compressed)"),
        ),
        ("change by at most {} points", percent(lost)),
        ("about {} bits are left of a weight's 32", f"{32 * small['bytes'] / whole['bytes']:.1f}"),
        ("leads the other two by {} to {} in deletion", f"{min(deletion):.3f}", f"{max(deletion):.3f}"),
        ("trails them by {} to {} in insertion", f"{min(insertion):.3f}", f"{max(insertion):.3f}"),
        ("or by {} in L2", f"{moved['size']['l2']:.2f}"),
        ("takes P@1 from {} to {}, and", percent(clean["P@1"], 1), percent(moved["metrics"]["P@1"], 1)),
        ("noise of the same size takes it to {}", percent(moved["random"]["P@1"], 1)),
        ("adds {} non-zeros of L2 norm {}", f"{step['size']['added']:,.0f}", f"{step['size']['l2']:.2f}"),
        ("six epsilons take {} s and", r.seconds("attack", "test_a_grid_is_one_pass[2threads]")),
        ("and {} MB more than before", f"{r.ratio('attack', memory, 'MB'):.0f}"),
        ("N x D is {} GB", f"{4 * shape['N'] * shape['D'] / 1e9:.1f}"),
        ("the gradient takes {} s, FGSM", r.seconds("attack", labels_10m, digits=2)),
        ("FGSM at six epsilons {} s", r.seconds("attack", labels_10m, "FGSM, 6 eps")),
        ("the exact decode {} s", r.seconds("attack", labels_10m, "decode")),
        ("A document and size takes {} s with hidden layers", r.certificate_seconds("hidden 512, R = 16")),
        ("and {} s for linear MACH", r.certificate_seconds("linear, R = 8")),
    ]


def accuracy(r: Results) -> list[Line]:
    systems = [m["system"] for m in r.kept["peers"] if (m["dataset"], m["split"]) == ("eurlex57k", "test")]
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
        ("wordnet has {} after {} s. 16 buckets", precisions(four), f"{four['training seconds']:.0f}"),
        ("solved side by side, {} times", f"{r.ratio('training', 'test_svm[1threads]', 'liblinear'):.0f}"),
        ("SVMs have {} there. One dataset", r.precisions("bibtex", "mach_ext (SVM)")),
        ("the defaults are within {} points of the best found on eurlex57k", percent(short)),
        ("On wordnet B=4,096 is {} better", wider),
    ]


def performance(r: Results) -> list[Line]:
    over = "points of difference, mean of the seeds"
    gain = {
        name: f"{r.ratio('training', f'test_negligible_gradient[{name}]', over):.2f}"
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
    at = r.kept["robustness"]["epsilons"].index(0.1)
    widest, narrowest = (f"{r.robustness('eurlex57k', 'B', B)['fgsm']['P@1'][at][0]:.3f}" for B in (2048, 64))
    linear, narrow, wide = (
        f"{r.robustness('eurlex57k', 'H', H)['fgsm']['P@1 half'][0]:.2f}" for H in (0, 32, 512)
    )
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
