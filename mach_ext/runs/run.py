"""A run: a folder with a trained model and what is known of it, and the questions one can ask it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mach_ext import attack, data, explain, nn
from mach_ext import functional as F
from mach_ext.runs import compressed, evaluation, record
from mach_ext.runs.adversarial import AttackSettings, RunAttack, attack_run
from mach_ext.runs.arguments import as_path, check_device, spell, spell_training
from mach_ext.runs.dataset import load_dataset, log_no_svmlight, log_remarks, split_of
from mach_ext.runs.explanation import RunExplanation, document_of_split, document_of_text, explain_document
from mach_ext.runs.files import check_folder, check_utf8, timer
from mach_ext.runs.labels import TrainingLabels
from mach_ext.runs.metrics_file import add_attack, add_metrics, output_folder, read_metrics
from mach_ext.runs.prediction import Answer, Prediction, answers, checked_texts, documents, rows
from mach_ext.runs.summary import summary

log = logging.getLogger("mach_ext")

RUNS = Path("runs")  # where runs are kept whose folder is not named
PathLike = str | os.PathLike[str]


def load_model(folder: Path, device: str = "cpu", argument: str = "folder") -> nn.MACH:
    """The model of a folder; a message for one that has none says which argument names another."""
    check_utf8(spell(argument), folder)
    try:
        return nn.load(folder, device)
    except ValueError as error:
        if (folder / "model.json").exists():
            raise
        raise ValueError(f"{error} ({spell(argument)} names the folder of a run)") from None


def newest_run() -> Path:
    """The folder in runs/ whose model was written last; compressed copies don't count.

    Raises:
        ValueError: There is none.
    """
    folders = [file.parent for file in RUNS.glob("*/model.json") if not nn.is_compressed(file.parent)]
    if not folders:
        raise ValueError(
            f"no model in {RUNS.absolute()}: give {spell('folder')}, or train one, as: "
            f"{spell_training('wordnet')}"
        )
    newest = max(folders, key=lambda folder: (folder / "model.json").stat().st_mtime)
    log.info("using the newest run, %s", newest)
    return newest


def _working_folder() -> Path | None:
    """None where it was removed meanwhile: absolute paths go without it."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


class Run:
    """A trained model in its folder, with the dataset it was trained on. `Run.open` or `train` makes one.

    Every method does what the command of its name does: the same default rules, the same results, the same
    files in the run's folder. Remarks go to the logger "mach_ext".

    Attributes:
        folder: The run's folder, absolute once the program has gone to another one.
        model: The model, in eval mode.
        history: Of a run that was trained just now: one entry an epoch.
        seconds: What loading, training and evaluation have taken so far, by stage.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> lines = [f'{{"text": "{animal} {i}", "labels": ["{animal}"]}}'
        ...          for i in range(20) for animal in ("cat", "dog", "owl")]
        >>> Path("pets").mkdir()
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text("\\n".join(lines))
        >>> _ = mach_ext.train("pets", epochs=20, hidden_size=8, progress=False)
        >>> run = mach_ext.Run.open("runs/pets")
        >>> run.evaluate("test")["P@1"]
        1.0
        >>> run.explain("a cat that sleeps", labels=["cat"]).top(1)[0][0]
        'cat'
    """

    def __init__(
        self,
        folder: PathLike,
        model: nn.MACH,
        *,
        history: list[dict[str, Any]] | None = None,
        seconds: dict[str, float] | None = None,
        dataset: data.Dataset | None = None,
    ) -> None:
        self._folder, self._home = Path(folder), _working_folder()
        self.model = model
        self.history = history
        self.seconds = {} if seconds is None else seconds
        self._datasets: dict[tuple[str | None, int | None, Path | None], data.Dataset] = {}
        if dataset is not None:
            self._datasets[None, None, None] = dataset

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        return self._placed(self._folder)

    def _placed(self, path: Path) -> Path:
        """A path of when the run was opened or trained."""
        if self._home is None or self._home == _working_folder():
            return path
        return self._home / path

    @classmethod
    def open(cls, folder: PathLike | None = None, device: str = "cpu") -> Run:
        """The run of a folder.

        Args:
            folder: None: the newest one in runs/.
            device: "cpu", "cuda" or "cuda:N".

        Raises:
            ValueError: There is no model, or it is damaged.
        """
        check_device(device)
        path = newest_run() if folder is None else as_path("folder", folder, "Run.open")
        seconds: dict[str, float] = {}
        with timer(seconds, "load"):
            model = load_model(path, device)
        return cls(path, model, seconds=seconds)

    @functools.cached_property
    def columns(self) -> data.Columns:
        """What the model's features and labels mean: names, and how files are read."""
        return record.columns_of(self.model)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``; empty where nothing was measured."""
        return read_metrics(self.folder / "metrics.json")

    def info(self) -> dict[str, Any]:
        """Shape, parameters, memory, collisions and training record, ready for JSON."""
        return summary(self.folder, self.model)

    def dataset(self, dataset: PathLike | None = None, svmlight_base: int | None = None) -> data.Dataset:
        """The dataset the run was trained on, or another one, read by the model's columns.

        It is kept in memory, so that further questions don't read it again.

        Args:
            dataset: Other data: a name, a folder, or a file of documents with labels.
            svmlight_base: Number of the first feature in svmlight files, where the model does not keep it.
        """
        if isinstance(dataset, data.Dataset):
            raise TypeError(
                f"{spell('dataset')} must be a name or a path, got a Dataset; for its metrics there is "
                "mach_ext.runs.evaluate(run.model, dataset, split)"
            )
        place = None if dataset is None else str(as_path("dataset", dataset))
        key = (place, svmlight_base, None if place is None else _working_folder())
        if key not in self._datasets:
            with timer(self.seconds, "load"):
                loaded = load_dataset(self.model, self.folder, dataset, svmlight_base=svmlight_base)
            log_remarks(loaded, svmlight_base)
            self._datasets[key] = loaded
        loaded, path = self._datasets[key], self._placed(self._datasets[key].path)
        return loaded if dataset is not None or path == loaded.path else replace(loaded, path=path)

    def evaluate(
        self,
        split: str = "test",
        *,
        dataset: PathLike | None = None,
        neighbors: bool = False,
        propensity: tuple[float, float] | None = None,
        svmlight_base: int | None = None,
        output: PathLike | None = None,
        save: bool = True,
    ) -> dict[str, Any]:
        """P, nDCG, PSP, PSnDCG and R of a split, overall and, under "bands", by label frequency.

        Args:
            split: "train", "dev" or "test".
            dataset: Other data than the run's own.
            neighbors: Re-rank the best labels by those of the nearest documents of train.
            propensity: A and B of the propensity model. None: as the run keeps them.
            svmlight_base: As in `dataset`.
            output: Folder for the metrics in place of the run's.
            save: Add the metrics to ``metrics.json``.

        Raises:
            ValueError: No such split; the model can't be re-ranked; a bad file.
        """
        self._check_output("evaluate", output)
        loaded = self.dataset(dataset, svmlight_base)
        split_of(loaded, split)  # before any work
        train = evaluation.neighbors_for(self.model, loaded, split) if neighbors else None
        with timer(self.seconds, "evaluate"):
            result = evaluation.evaluate(self.model, loaded, split, neighbors=train, propensity=propensity)
        if save:
            name = f"{split}+neighbors" if neighbors else split
            self.save_metrics({name: result}, dataset, svmlight_base, output)
        return result

    def save_metrics(
        self,
        results: dict[str, Any],
        dataset: PathLike | None = None,
        svmlight_base: int | None = None,
        output: PathLike | None = None,
    ) -> None:
        """Adds results by split to ``metrics.json``; arguments as in `evaluate`."""
        folder = self._check_output("evaluate", output)
        loaded = self.dataset(dataset, svmlight_base)
        add_metrics(folder, self.folder, self.model, loaded, results, self.seconds, dataset is None)

    def predict(self, texts: Iterable[str] | str | None = None, **source: Any) -> list[list[Prediction]]:
        """The best labels of documents, best first, by name with scores.

        Args:
            texts: Documents as texts; one alone may be a plain string.
            **source: Documents from elsewhere, and k, as in `iter_predict`.

        Returns:
            For each document its predictions. Scores of a document without features are NaN.
        """
        return [answer.labels for block in self.iter_predict(texts=texts, **source) for answer in block]

    def iter_predict(
        self,
        *,
        texts: Iterable[str] | str | None = None,
        X: Any = None,
        file: PathLike | None = None,
        stream: Any = None,
        split: str | None = None,
        dataset: PathLike | None = None,
        k: int | None = None,
        format: str | None = None,
        svmlight_base: int | None = None,
    ) -> Iterator[list[Answer]]:
        """Answers block by block, as they are computed, from exactly one source of documents.

        Args:
            texts: Documents as texts; one alone may be a plain string.
            X: [N, D], SciPy sparse.
            file: .jsonl, .txt (XMC), .svm or .npz, also compressed.
            stream: A binary stream of lines.
            split: Of the run's dataset, or of `dataset`.
            dataset: Other data than the run's own.
            k: Labels of a document. None: 5, or all where there are fewer.
            format: "text" or "jsonl", of a stream or a file of any name.
            svmlight_base: As in `dataset`.

        Raises:
            ValueError: Not exactly one source; k out of range; bad documents.
        """
        given = [each for each in (texts, X, file, stream, split) if each is not None]
        if len(given) != 1:
            raise ValueError(f"predict: needs one of texts, X, file, stream, split, got {len(given)}")
        if dataset is not None and split is None:
            raise ValueError(f"{spell('dataset')} needs {spell('split')}")
        if format is not None and file is None and stream is None:
            raise ValueError("predict: format is for file and stream")
        k = nn.checked_k("predict", k, self.model.num_labels, least=0, name=spell("k"))
        if texts is not None:
            texts = checked_texts(texts, self.columns)
        blocks: Iterator[Any]
        if X is not None:
            blocks = rows(data.check_csr(X, "predict: X"))
        elif split is not None:
            blocks = rows(split_of(self.dataset(dataset, svmlight_base), split).X)
        else:
            blocks = documents(
                self.columns, texts=texts, file=file, stream=stream, format=format,
                svmlight_base=svmlight_base,
            )  # fmt: skip
        names: Any = self.columns.label_names or explain.Numbers()
        return answers(self.model, names, blocks, k)

    def explain(
        self,
        text: str | None = None,
        *,
        sample_id: int | None = None,
        split: str = "test",
        dataset: PathLike | None = None,
        labels: Sequence[int | str] | int | str | None = None,
        k: int | None = None,
        features: int = 10,
        svmlight_base: int | None = None,
        output: PathLike | None = None,
        **options: Any,
    ) -> RunExplanation:
        """Which features give a document its labels, and why.

        Args:
            text: The document as text.
            sample_id: Or its number in a split of the run's dataset.
            split: Of the sample.
            dataset: Other data than the run's own.
            labels: Names or numbers; one alone may stand by itself. None: the top k.
            k: Labels explained, and the top k that ranks refer to. None: 5, or all where there are fewer.
            features: Features of each label that the page's last table leaves out in turn.
            svmlight_base: As in `dataset`.
            output: Folder for explanation.json, .png and .html. None: nothing is written.
            **options: `method`, `score`, `n_steps` and more of `mach_ext.explain.integrated_gradients`.

        Raises:
            ValueError: Not exactly one of text and sample_id; nothing to explain; an unknown label.
        """
        if (text is None) == (sample_id is None):
            raise ValueError("explain: needs either text or sample_id")
        if output is not None:
            check_folder(spell("output", "explain"), as_path("output", output, "explain"))
        k = nn.checked_k("explain", k, self.model.num_labels, name=spell("k"))
        if (features := F.as_int("explain", "features", features)) < 1:
            raise ValueError(f"explain: features must be at least 1, got {features}")
        if text is not None:
            log_no_svmlight(svmlight_base)
            document = document_of_text(text, self.columns)
        else:
            sample_id = F.as_int("explain", "sample_id", sample_id)
            document = document_of_split(self.model, self.dataset(dataset, svmlight_base), split, sample_id)
        result = explain_document(self.model, self.columns, document, labels, k, features, options)
        if output is not None:
            result.save(output)
        return result

    def attack(
        self,
        method: str = "fgsm",
        *,
        epsilons: Sequence[float] | float | None = None,
        threat_model: str | attack.ThreatModel | None = None,
        dataset: PathLike | None = None,
        transfer: Run | PathLike | None = None,
        svmlight_base: int | None = None,
        output: PathLike | None = None,
        progress: bool = True,
        save: bool = True,
        **settings: Any,
    ) -> RunAttack:
        """P@k and nDCG@k clean and under attack, by size.

        Args:
            method: "fgsm" (one step), "pgd" (several), "delete" or "insert" (words).
            epsilons: Sizes. None: 0.01; of delete 1, 2 and 3 words. One is shown within a curve of six.
            threat_model: "support", "dense", "insert(3)", "l2", "l1" or "delete". None: by the method.
            dataset: Other data than the run's own.
            transfer: Another run, which is asked about the changed documents, too.
            svmlight_base: As in `dataset`.
            output: Folder for the files in place of the run's.
            progress: Show progress bars.
            save: Write attack.json and attack.png, and add the result to ``metrics.json``.
            **settings: Other fields of `AttackSettings`: split, sample, goal, targeted, signed, k, steps,
                seed, certify, propensity.

        Raises:
            ValueError: The threat model does not fit the documents; a bad argument.
        """
        folder = self._check_output("attack", output)
        chosen = AttackSettings(method, epsilons, threat_model, **settings)
        loaded = self.dataset(dataset, svmlight_base)
        other = transfer.model if isinstance(transfer, Run) else None
        if transfer is not None and not isinstance(transfer, Run):
            path = as_path("transfer", transfer, "attack")
            with timer(self.seconds, "load"):
                other = load_model(path, str(self.model.bucket_bias.device), "transfer")
        seconds = self.seconds.get("load", 0.0)
        result = attack_run(
            self.model, loaded, chosen, transfer=other, progress=progress, load_seconds=seconds
        )
        if save:
            result.write_record(folder)
            add_attack(folder, self.folder, self.model, *result.entry(dataset is None))
            result.write_chart(folder)
        return result

    def add_attack(self, result: RunAttack, is_own: bool = True, output: PathLike | None = None) -> None:
        """Adds an attack to ``metrics.json``; `is_own`: it was of the run's own dataset."""
        folder = self._check_output("attack", output)
        add_attack(folder, self.folder, self.model, *result.entry(is_own))

    def compress(
        self,
        output: PathLike | None = None,
        *,
        quantization_step: float = nn.STEP,
        split: str | None = "test",
        dataset: PathLike | None = None,
        propensity: tuple[float, float] | None = None,
        svmlight_base: int | None = None,
        overwrite: bool = False,
    ) -> Run:
        """A copy of the run whose model takes a tenth of the bytes or less, with rounded weights.

        Only the file is small. In memory the copy is as large as the model.

        Args:
            output: The copy's folder. None: beside the run, with "-small" behind its name.
            quantization_step: As in `MACH.save`.
            split: Measured for the copy's ``metrics.json``. None: nothing is measured.
            dataset: Other data than the run's own.
            propensity: A and B of the propensity model. None: as the run keeps them.
            svmlight_base: As in `dataset`.
            overwrite: Replace the model that is in the folder.

        Raises:
            ValueError: The folder holds another run.
        """
        copy = self.make_copy(
            output, quantization_step, split, dataset=dataset, propensity=propensity,
            svmlight_base=svmlight_base, overwrite=overwrite, compare=False,
        )  # fmt: skip
        copy.write_metrics()
        return Run(copy.folder, copy.model, dataset=copy.dataset)

    def make_copy(
        self,
        output: PathLike | None = None,
        quantization_step: float = nn.STEP,
        split: str | None = "test",
        *,
        dataset: PathLike | None = None,
        propensity: tuple[float, float] | None = None,
        svmlight_base: int | None = None,
        overwrite: bool = False,
        compare: bool = True,
    ) -> compressed.Copy:
        """What `compress` does, without writing the metrics.

        With `compare` the run is measured, too; without, only its bytes are known.
        """
        folder = compressed.copy_folder(
            self.folder, None if output is None else as_path("output", output, "compress")
        )
        if not overwrite:
            record.refuse_to_replace(folder, self.model)
        loaded = None
        if split is not None and (dataset is not None or "run.json" in self.model.attachments):
            loaded = self.dataset(dataset, svmlight_base)
            split_of(loaded, split)  # before any work
        name = split or ""
        if loaded is not None:
            TrainingLabels.of(self.model, loaded, propensity).inverse_propensity()  # refuses A and B
        before = compressed.measure(self.folder, self.model, loaded if compare else None, name, propensity)
        compressed.save_copy(self.model, folder, quantization_step, overwrite)
        log.info("model: %s", folder)
        model = nn.load(folder, self.model.bucket_bias.device)
        after = compressed.measure(folder, model, loaded, name, propensity)
        return compressed.Copy(folder, model, loaded, name, before, after)

    def _check_output(self, op: str, output: PathLike | None) -> Path:
        """Where results go, once it is known that they can be written there."""
        path = None if output is None else as_path("output", output, op)
        if path is not None:
            check_folder(spell("output", op), path)
        return output_folder(path, self.folder)
