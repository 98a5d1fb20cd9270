"""The adversarial evaluation of a run: metrics, certificates, sample documents and the page."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mach_ext import attack, certify, data, explain, metrics, nn, report
from mach_ext import functional as F
from mach_ext.runs.arguments import as_real, plain, spell
from mach_ext.runs.dataset import log, split_of
from mach_ext.runs.files import timer, write, write_record
from mach_ext.runs.labels import TrainingLabels

GOALS = ("untargeted", "own")
METHODS = (*attack.METHODS, "words")
_OF_WORDS = ("delete", "words")  # methods whose sizes are numbers of words


@dataclass(frozen=True)
class AttackSettings:
    """What is done to which documents in an adversarial evaluation.

    Attributes:
        method: "fgsm", "pgd", "delete", "insert" or "words". "delete" removes features. "words" deletes words
            of the texts, and all features are made again from the changed texts.
        epsilons: Requested sizes, or a single size. None: 0.01, or 1, 2 and 3 words for "delete" and "words".
        threat_model: A threat model or its name, as in `mach_ext.attack.threat_model`. None: the method's
            own, else "support".
        signed: Whether values may fall below 0.
        goal: "untargeted" or "own".
        targeted: Also measure how often a right label leaves the top k, and how often a wrong label enters.
        k: Size of the top k in metrics and goals. None: 5, or L if there are fewer labels.
        steps: Steps of "pgd".
        seed: Seed of random changes.
        split: The split that is attacked.
        sample: Number of documents, from the first on. None: all.
        certify: Also certify the part of P@k that no change of this threat model can take away.
        propensity: A and B of the propensity model. None: those that the run keeps.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.

    Example:
        >>> from mach_ext.runs import AttackSettings
        >>> settings = AttackSettings("insert", epsilons=[0.1, 0.2])
        >>> str(settings.threat), settings.grid
        ('insert(3)', [0.0, 0.1, 0.2])
    """

    method: str = "fgsm"
    epsilons: Sequence[float] | float | None = None
    threat_model: str | attack.ThreatModel | None = None
    signed: bool = False
    goal: str = "untargeted"
    targeted: bool = False
    k: int | None = None
    steps: int = 10
    seed: int = 0
    split: str = "test"
    sample: int | None = None
    certify: bool = False
    propensity: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Checks the attributes, and converts numbers to Python's own."""
        for name, value, allowed in (("method", self.method, METHODS), ("goal", self.goal, GOALS)):
            if value not in allowed:
                raise ValueError(f"attack: {name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, least in (("sample", 1), ("steps", 1), ("seed", 0)):
            if (given := getattr(self, name)) is None and name == "sample":
                continue
            number = F.as_int("attack", name, given)
            if number < least:
                none = "None or " if name == "sample" else ""
                raise ValueError(f"attack: {name} must be {none}at least {least}, got {number}")
            object.__setattr__(self, name, number)
        if self.epsilons is not None:
            object.__setattr__(self, "epsilons", _checked_sizes(self.epsilons))
        if self.method == "words":
            for name in ("threat_model", "signed", "certify"):
                if getattr(self, name):
                    raise ValueError(
                        f"attack: method words changes texts, so {spell(name)} must not be given, "
                        f"got {getattr(self, name)!r}"
                    )
            if not all(size.is_integer() for size in self.sizes):
                raise ValueError(f"attack: sizes of words must be whole numbers, got {self.epsilons!r}")

    @property
    def threat(self) -> attack.ThreatModel:
        """The threat model.

        Example:
            >>> from mach_ext.runs import AttackSettings
            >>> AttackSettings("delete").threat
            Delete(nonnegative=False)
        """
        default = {"delete": "delete", "words": "delete", "insert": "insert(3)"}.get(self.method, "support")
        return attack.threat_model(self.threat_model or default, False if self.signed else None)

    @property
    def sizes(self) -> list[float]:
        """The requested sizes.

        Example:
            >>> from mach_ext.runs import AttackSettings
            >>> AttackSettings(epsilons=0.05).sizes, AttackSettings("delete").sizes
            ([0.05], [1.0, 2.0, 3.0])
        """
        if self.epsilons is not None:
            return _checked_sizes(self.epsilons)
        return [1.0, 2.0, 3.0] if self.method in _OF_WORDS else [0.01]

    @property
    def grid(self) -> list[float]:
        """The requested sizes and 0. A single size is expanded to a curve of six.

        Example:
            >>> from mach_ext.runs import AttackSettings
            >>> AttackSettings(epsilons=0.01).grid
            [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
        """
        grid = {0.0, *self.sizes}
        if len(self.sizes) == 1 and self.method not in _OF_WORDS:
            grid |= {round(self.sizes[0] * factor, 12) for factor in (0.1, 0.3, 3, 10, 30)}
        return sorted(grid)


def _checked_sizes(epsilons: Any) -> list[float]:
    """Returns sizes as floats. A number is a single size."""
    given = plain(epsilons)
    sizes = [as_real(each) for each in given] if isinstance(given, (list, tuple)) else [as_real(given)]
    if not sizes or not all(isinstance(size, float) and 0 <= size < math.inf for size in sizes):
        raise ValueError(f"attack: epsilons must be numbers >= 0, at least one, got {epsilons!r}")
    return sizes


@dataclass(frozen=True)
class RunAttack:
    r"""Metrics of a run, clean and under attack, as `mach-ext attack` shows them.

    Attributes:
        settings: What was done.
        result: The result of `mach_ext.attack.evaluate`. If it was certified, each size also has "certified".
        model, dataset: The model and the attacked dataset.
        labels: How often labels occur in training.
        seconds: Time of each stage in seconds.
        text_encoder: The encoder that made the dense features, for method "words".

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> result = run.attack("delete", epsilons=1, progress=False, save=False)
        >>> result.title, result.clean["P@1"], result.adversarial[-1]["metrics"]["P@1"]
        ('pets, test', 1.0, 0.5)
    """

    settings: AttackSettings
    result: dict[str, Any]
    model: nn.MACH = field(repr=False)
    dataset: data.Dataset = field(repr=False)
    labels: TrainingLabels = field(repr=False)
    seconds: dict[str, float] = field(repr=False)
    text_encoder: Any = field(default=None, repr=False)

    @property
    def clean(self) -> dict[str, Any]:
        """Metrics without an attack, by name.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> run.attack("delete", epsilons=1, progress=False, save=False).clean["P@1"]
            1.0
        """
        clean: dict[str, Any] = self.result["clean"]
        return clean

    @property
    def adversarial(self) -> list[dict[str, Any]]:
        """A list with an entry for each size, ascending: "epsilon", "metrics", "random", "size" and more.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> for entry in run.attack("delete", epsilons=[1, 2], progress=False, save=False).adversarial:
            ...     print(f"{entry['epsilon']:g} words removed: P@1 {entry['metrics']['P@1']}")
            0 words removed: P@1 1.0
            1 words removed: P@1 0.5
            2 words removed: P@1 0.5
        """
        entries: list[dict[str, Any]] = self.result["adversarial"]
        return entries

    @property
    def title(self) -> str:
        """Dataset and split in words.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> run.attack("delete", epsilons=1, progress=False, save=False).title
            'pets, test'
        """
        return f"{self.dataset.name}, {self.settings.split}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `attack.json`, ready for JSON.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> content = run.attack("delete", epsilons=1, progress=False, save=False).as_dict()
            >>> content["attack"], content["documents"], content["dataset"]
            ('delete', 40, 'pets')
        """
        return {
            **self.result, "split": self.settings.split, "dataset": self.dataset.name,
            "model": self.model.configuration(), "propensity": self.labels.as_dict(),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
        }  # fmt: skip

    def entry(self, is_own: bool) -> tuple[str, dict[str, Any]]:
        """Returns name and content of the entry in `metrics.json`.

        Args:
            is_own: Whether the dataset is the run's own.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> result = run.attack("fgsm", epsilons=[0.5], progress=False, save=False)
            >>> name, content = result.entry(is_own=True)
            >>> name, content["clean"]["P@1"]
            ('fgsm support untargeted test', 1.0)
        """
        settings, result, threat = self.settings, self.result, self.settings.threat
        where = self.dataset.name if is_own else self.dataset.path.absolute()
        whole = "" if is_own and settings.sample is None else f" {where} {result['documents']}"
        how = {key: result[key] for key in ("attack", "threat_model", "goal", "nonnegative", "steps")}
        signed = "" if threat.nonnegative else " signed"
        steps = "" if result["steps"] is None else f" {result['steps']} steps"
        of = "" if settings.method == "words" else f" {threat}{signed}"
        name = f"{settings.method}{of}{steps} {settings.goal} {settings.split}{whole}"
        short = {f"{entry['epsilon']:g}": entry["metrics"] for entry in self.adversarial}
        return name, {**how, "clean": self.clean, "adversarial": short}

    def write_record(self, folder: Path) -> None:
        """Writes `attack.json` into a folder.

        Args:
            folder: The folder. It is created if needed.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> run.attack("delete", epsilons=1, progress=False, save=False).write_record(Path("results"))
            >>> [file.name for file in Path("results").iterdir()]
            ['attack.json']
        """
        write_record(folder / "attack.json", self.as_dict())

    def write_chart(self, folder: Path) -> None:
        """Writes `attack.png` into a folder.

        Args:
            folder: The folder. It is created if needed.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> run.attack("delete", epsilons=1, progress=False, save=False).write_chart(Path("charts"))
            >>> [file.name for file in Path("charts").iterdir()]
            ['attack.png']
        """
        picture = io.BytesIO()
        report.plot_attack(self.result, self.settings.sizes).savefig(picture, dpi=150, format="png")
        write(folder / "attack.png", picture.getvalue(), "chart")

    def page(self) -> str:
        """Returns the result as a self-contained HTML page, with documents before and after.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> page = run.attack("delete", epsilons=1, progress=False, save=False).page()
            >>> "<h1>pets, test: delete</h1>" in page
            True
        """
        sizes, title = self.settings.sizes, f"{self.title}: {self.settings.method}"
        return report.attack_page(self.result, sizes, samples(self), title)

    def to_html(self, file: str | os.PathLike[str]) -> None:
        """Writes the page.

        Args:
            file: The file to write.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunAttack`
            >>> run.attack("delete", epsilons=1, progress=False, save=False).to_html("attack.html")
            >>> Path("attack.html").read_text().startswith("<!DOCTYPE html>")
            True
        """
        write(Path(file), self.page().encode())


def attack_run(
    model: nn.MACH,
    dataset: data.Dataset,
    settings: AttackSettings,
    *,
    transfer: nn.MACH | None = None,
    text_encoder: Any = None,
    progress: bool = True,
    load_seconds: float = 0.0,
) -> RunAttack:
    """Attacks a split of a dataset that was read with the model's columns.

    Args:
        model: The attacked model.
        dataset: Documents and their labels.
        settings: What is done.
        transfer: Another model that also labels the changed documents.
        text_encoder: The encoder that made the dense features, for method "words".
        progress: Show progress bars.
        load_seconds: Time to load the model and the dataset in seconds, for the record.
    """
    split, part = split_of(dataset, settings.split), slice(0, settings.sample)
    Y, truth = split.Y[part], split.truth[part]
    threat, grid = settings.threat, settings.grid
    if settings.method == "words":
        _check_texts(split, dataset, transfer)
    if settings.certify:
        certify.check(model, threat, spell("certify"))
        if split.filtered is not None:
            log.warning("certified figures count the answers that the filter file excludes, too")
    labels = TrainingLabels.of(model, dataset, settings.propensity)
    seconds = {"load": load_seconds}
    shared: dict[str, Any] = {
        "goal": settings.goal, "targeted": settings.targeted, "k": settings.k,
        "inverse_propensity": labels.inverse_propensity(truth.shape[1] - model.num_labels),
        "bands": labels.bands(), "truth": truth, "seed": settings.seed, "progress": progress,
        "filtered": None if split.filtered is None else split.filtered[part],
    }  # fmt: skip
    if settings.method == "words":
        with timer(seconds, "attack"):
            shared |= {"encoder": text_encoder, "vectorizer": dataset.vectorizer}
            texts = [] if split.texts is None else split.texts[part]
            result = attack.evaluate_texts(model, texts, Y, words=[int(size) for size in grid], **shared)
        return RunAttack(settings, result, model, dataset, labels, seconds, text_encoder)
    X = split.documents[part]
    with timer(seconds, "attack"):
        how: dict[str, Any] = {"method": settings.method, "threat_model": threat, "steps": settings.steps}
        result = attack.evaluate(model, X, Y, epsilons=grid, transfer=transfer, **how, **shared)
    if settings.certify:
        with timer(seconds, "certify"):
            certificate = certify.certify(
                model, X, Y, grid, threat_model=threat, k=result["k"], progress=progress
            )
        _add_certificate(result, certificate)
    return RunAttack(settings, result, model, dataset, labels, seconds)


def _check_texts(split: data.Split, dataset: data.Dataset, transfer: nn.MACH | None) -> None:
    """Refuses what an attack on texts cannot use."""
    if transfer is not None:
        raise ValueError(f"attack: method words must be without {spell('transfer')}, because texts change")
    if split.texts is None or dataset.vectorizer is None:
        lacks = "texts" if split.texts is None else "a vectorizer, which makes features of texts"
        raise ValueError(
            f"attack: method words needs texts and a vectorizer, but {dataset.name} has no {lacks}"
        )


def _add_certificate(result: dict[str, Any], certificate: certify.Certificate) -> None:
    """Adds a certificate to a result."""
    k = result["k"]
    proven = certificate.as_dict([each for each in dict.fromkeys((*metrics.KS, k)) if each <= k])
    result["certified_zero"] = proven["zero"]
    for entry, size in zip(result["adversarial"], proven["sizes"], strict=True):
        entry["certified"] = {name: value for name, value in size.items() if name != "epsilon"}


def samples(run: RunAttack) -> list[dict[str, Any]]:
    """Returns eight documents before and after the attack.

    They are the documents with the largest rise of the loss among the first 256.
    """
    settings, model, dataset, k = run.settings, run.model, run.dataset, run.result["k"]
    split = dataset.splits[settings.split]
    perturbation, before = _perturbed(run, split, slice(0, min(256, settings.sample or 256)))
    after, Y = perturbation.predict(k)[1], split.Y
    label_names: Any = dataset.label_names or explain.Numbers()
    feature_names: Any = dataset.feature_names or explain.Numbers()
    clean_loss, loss = perturbation.clean_loss, perturbation.loss

    def name_of(feature: Any) -> str:
        if isinstance(feature, str):
            return feature
        dense = feature - model.num_features
        return f"dense feature {dense}" if dense >= 0 else str(feature_names[feature])

    records = []
    for n in sorted(range(len(before)), key=lambda n: clean_loss[n] - loss[n])[:8]:
        changes = _changes(perturbation, n)
        largest = sorted(changes, key=lambda change: -abs(change[2] - change[1]))[:12]
        true = set(Y[n].indices.tolist())
        records.append({
            "number": n,
            "text": None if split.texts is None else split.texts[n],
            "loss": (float(clean_loss[n]), float(loss[n])),
            "true": [label_names[label] for label in sorted(true)],
            "before": [(label_names[label], label in true) for label in before[n].tolist()],
            "after": [(label_names[label], label in true) for label in after[n].tolist()],
            "changes": [(name_of(feature), old, new) for feature, old, new in largest],
            "others": len(changes) - len(largest),
        })  # fmt: skip
    return records


def _perturbed(run: RunAttack, split: data.Split, rows: slice) -> tuple[Any, Any]:
    """Returns some documents under the attack, and their clean top k."""
    settings, model, k = run.settings, run.model, run.result["k"]
    if settings.method == "words":
        assert split.texts is not None
        deletion = attack.WordDeletion(model, run.text_encoder, run.dataset.vectorizer, settings.goal, k)
        texts = deletion.perturb(split.texts[rows], split.Y[rows], int(settings.sizes[-1]))
        return texts, model.predict(split.documents[rows], k)[1]
    method = attack.create(
        settings.method, model, settings.threat, settings.goal, k, settings.seed, settings.steps
    )
    X = split.documents[rows]
    return method.perturb(X, split.Y[rows], settings.sizes[-1]), model.predict(X, k)[1]


def _changes(perturbation: Any, n: int) -> list[tuple[Any, float, float]]:
    """Returns the changes of a document: feature, or word of a text, with its old and new value."""
    if isinstance(perturbation, attack.TextPerturbation):
        return [(word, 1.0, 0.0) for _, word in perturbation.deleted(n)]
    changes: list[tuple[Any, float, float]] = perturbation.changes(n)
    return changes
