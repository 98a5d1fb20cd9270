"""An evaluation batch by batch: the measurements of each document, and their summary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._user_encoder import Encoder
from mach_ext.attack._part import unchanged_features
from mach_ext.attack._scores import Truth, success_rate, summaries
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import NEAREST, first_label, is_true
from mach_ext.attack.methods import create
from mach_ext.attack.noise import Random
from mach_ext.attack.threats import ThreatModel
from mach_ext.distributed import Ranks


@dataclass(frozen=True)
class Settings:
    """The checked arguments of an evaluation."""

    model: Any  # the model or, with an encoder, the head
    encoder: Encoder | None
    method: str
    threat: ThreatModel
    grid: list[float]
    goal: str
    targeted: bool
    k: int
    transfer: Any
    steps: int
    seed: int

    def attacks(self) -> list[FGSM]:
        """Returns the attack of the goal, followed by those of the targeted goals."""
        goals = [self.goal, *(("positive", "negative") if self.targeted else ())]
        return [
            create(self.method, self.model, self.threat, goal, self.k, self.seed, self.steps, self.encoder)
            for goal in goals
        ]

    def noise(self, start: int) -> Random:
        """Returns the control for the batch that begins at document `start`."""
        words = self.method in ("delete", "insert")
        seed = self.seed + start
        return Random(
            self.model, self.threat, self.goal, self.k, words=words, seed=seed, encoder=self.encoder
        )

    def _unchanged(self) -> dict[str, str]:
        """Returns which features the threat model leaves as they are, if the model has two kinds."""
        unchanged = unchanged_features(self.model, self.threat, self.encoder is not None)
        return {} if unchanged is None else {"unchanged": unchanged}

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings, ready for JSON."""
        return {
            "attack": self.method,
            "threat_model": str(self.threat),
            **self._unchanged(),
            "nonnegative": self.threat.nonnegative,
            "goal": self.goal,
            "k": self.k,
            "steps": self.steps if self.method == "pgd" else None,
            "seed": self.seed,
        }


class Tally:
    """The measurements of each document, gathered batch by batch, and their summary."""

    def __init__(
        self, settings: Settings, attacks: list[FGSM], truth: Truth, bands: dict[str, NDArray[np.bool_]]
    ) -> None:
        """Starts without documents."""
        self.settings, self.truth, self.bands = settings, truth, bands
        self.attack, *self.targeted = attacks
        self.num_answers = min(max((*truth.ks, settings.k)) + truth.surplus, settings.model.num_labels)
        # A table for each measurement and epsilon. Resampling takes their columns in this order.
        kinds = ("metrics", "random", *(() if settings.transfer is None else ("transfer",)))
        self.tables: dict[tuple[str, int], list[NDArray[np.float64]]] = {
            ("clean", 0): [],
            **{(kind, i): [] for kind in kinds for i in range(len(settings.grid))},
            **({} if settings.transfer is None else {("transfer_clean", 0): []}),
        }
        self.sizes: list[list[dict[str, NDArray[np.float64]]]] = [[] for _ in settings.grid]
        self.outcomes: dict[tuple[str, str, int], list[NDArray[Any]]] = {}

    def add(self, X: Any, Y: Any, rows: slice) -> None:
        """Measures a batch of documents. `rows` are their numbers."""
        grid, transfer = self.settings.grid, self.settings.transfer
        adversarial = self.attack.perturb(X, Y, grid)
        noise = self.settings.noise(rows.start).perturb(X, Y, grid)
        clean = self._measure("clean", 0, self.attack._ranked(X, self.num_answers), rows)
        if transfer is not None:
            self._measure("transfer_clean", 0, transfer.predict(X, self.num_answers)[1], rows)
        for i, (changed, random) in enumerate(zip(adversarial, noise, strict=True)):
            for kind, documents in (("metrics", changed), ("random", random)):
                if grid[i]:
                    self._measure(kind, i, documents.predict(self.num_answers)[1], rows)
                else:
                    self.tables[kind, i].append(clean)
            if transfer is not None:
                self._measure("transfer", i, changed.predict(self.num_answers, transfer)[1], rows)
            self.sizes[i].append(
                {**changed.norms, "loss": changed.loss, "clean_loss": changed.clean_loss,
                 "random_l2": random.norms["l2"]}
            )  # fmt: skip
        for attack in self.targeted:
            self._add_targeted(attack, X, Y)

    def _measure(self, kind: str, i: int, labels: NDArray[Any], rows: slice) -> NDArray[np.float64]:
        """Adds the metrics of predicted labels to a table."""
        table = self.truth.measure(labels, rows)
        self.tables[kind, i].append(table)
        return table

    def _add_targeted(self, attack: FGSM, X: Any, Y: Any) -> None:
        """Adds the outcomes of a targeted goal."""
        for band, targets in _aims(attack, X, Y, self.bands):
            for i, changed in enumerate(attack.perturb(X, Y, self.settings.grid, targets=targets)):
                inside = (changed.predict(self.settings.k)[1] == changed.targets[:, None]).any(1)
                success = inside if attack.goal == "negative" else ~inside
                outcome = np.stack((changed.targets, success))
                self.outcomes.setdefault((attack.goal, band, i), []).append(outcome)

    def gather(self, ranks: Ranks) -> None:
        """Takes the measurements of all ranks, of which each has measured its part of the documents."""
        if ranks.size == 1:
            return
        others = ranks.collect((self.tables, self.sizes, self.outcomes))
        self.tables = {key: [t for tables, _, _ in others for t in tables[key]] for key in self.tables}
        self.sizes = [[b for _, sizes, _ in others for b in sizes[i]] for i in range(len(self.sizes))]
        self.outcomes = {}
        for _, _, outcomes in others:
            for outcome, parts in outcomes.items():
                self.outcomes.setdefault(outcome, []).extend(parts)

    def result(self, resamples: int) -> dict[str, Any]:
        """Returns the result of `evaluate`."""
        tables = {key: np.concatenate(parts) for key, parts in self.tables.items()}
        metrics = summaries(tables, self.truth.names, resamples, self.settings.seed)
        result = {
            **self.settings.as_dict(),
            "documents": len(tables["clean", 0]),
            "clean": metrics["clean", 0],
            "adversarial": [self._entry(i, metrics) for i in range(len(self.settings.grid))],
        }
        if self.settings.transfer is not None:
            result["transfer_clean"] = metrics["transfer_clean", 0]
        return result

    def _entry(self, i: int, metrics: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
        """Returns the result at the i-th epsilon."""
        batches = self.sizes[i]
        means = {name: float(np.concatenate([b[name] for b in batches]).mean()) for name in batches[0]}
        entry: dict[str, Any] = {
            "epsilon": self.settings.grid[i],
            "metrics": metrics["metrics", i],
            "random": metrics["random", i],
            "loss": means.pop("loss"),
            "clean_loss": means.pop("clean_loss"),
            "size": means,
        }
        if self.settings.transfer is not None:
            entry["transfer"] = metrics["transfer", i]
        if self.targeted:
            entry["targeted"] = {attack.goal: self._rates(attack.goal, i) for attack in self.targeted}
        return entry

    def _rates(self, goal: str, i: int) -> dict[str, dict[str, float]]:
        """Returns how often a targeted goal was reached, for each band of the target."""
        rates = {}
        for name, band in self.bands.items():
            outcomes = self.outcomes[goal, name if goal == "negative" else "all", i]
            rates[name] = success_rate(np.concatenate(outcomes, 1), band)
        return rates


def _aims(attack: FGSM, X: Any, Y: Any, bands: Any) -> Iterator[tuple[str, NDArray[np.int64] | None]]:
    """Yields the targets of a goal: a single run for "positive", a run for each band for "negative"."""
    if attack.goal == "positive":
        yield "all", None
        return
    ranked = attack._ranked(X, min(attack.model.num_labels, max(NEAREST, attack.k + 1)))
    false = ~is_true(Y, ranked)
    false[:, : attack.k] = False
    for name, band in bands.items():
        yield name, first_label(ranked, false & np.asarray(band)[ranked])
