"""A run: a folder with a trained model, and methods that predict, measure, explain and attack it."""

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
from mach_ext.runs.arguments import as_path, check_device, spell
from mach_ext.runs.dataset import load_dataset, log_no_svmlight, log_remarks, split_of
from mach_ext.runs.explanation import RunExplanation, document_of_split, document_of_text, explain_document
from mach_ext.runs.files import check_folder, timer
from mach_ext.runs.folders import RUNS as RUNS
from mach_ext.runs.folders import load_model, newest_run, working_folder
from mach_ext.runs.labels import TrainingLabels
from mach_ext.runs.metrics_file import add_attack, add_metrics, output_folder, read_metrics
from mach_ext.runs.prediction import (
    Answer,
    Prediction,
    answers,
    check_source,
    checked_texts,
    documents,
    matrix,
    rows,
)
from mach_ext.runs.summary import summary

log = logging.getLogger("mach_ext")

PathLike = str | os.PathLike[str]


class Run:
    r"""A trained model in its folder, with the dataset that it was trained on.

    `Run.open` opens a run, and `mach_ext.train` makes one. Each method does the same as the command of its
    name. Default rules, results and files in the run's folder are the same. Remarks go to the logger
    "mach_ext".

    Attributes:
        model: The model, in eval mode.
        history: An entry for each epoch, if the run was trained just now.
        seconds: Time of loading, training and evaluation so far, by stage in seconds.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> run = mach_ext.Run.open("runs/pets")
        >>> run.evaluate("test")["P@1"]
        1.0
        >>> [best.label for best in run.predict("a dog in the garden")[0]]
        ['dog', 'cat']
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
        """Makes a run of a model that is in memory already.

        Args:
            folder: The run's folder.
            model: The model.
            history: An entry for each epoch.
            seconds: Time of each stage in seconds.
            dataset: The dataset that the model was trained on.
        """
        self._folder, self._home = Path(folder), working_folder()
        self.model = model
        self.history = history
        self.seconds = {} if seconds is None else seconds
        self._datasets: dict[tuple[str | None, int | None, Path | None], data.Dataset] = {}
        if dataset is not None:
            self._datasets[None, None, None] = dataset

    def __repr__(self) -> str:
        """Returns the folder."""
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """The run's folder. It is absolute if the program has changed to another folder.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> run.folder
            PosixPath('runs/pets')
        """
        return self._placed(self._folder)

    def _placed(self, path: Path) -> Path:
        """Returns a path that was relative when the run was opened or trained."""
        if self._home is None or self._home == working_folder():
            return path
        return self._home / path

    @classmethod
    def open(cls, folder: PathLike | None = None, device: str = "cpu") -> Run:
        """Opens the run in a folder.

        Args:
            folder: The run's folder. None: the newest run in runs/.
            device: "cpu", "cuda" or "cuda:N".

        Raises:
            ValueError: There is no model, or it is damaged.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> mach_ext.Run.open("runs/pets")
            Run('runs/pets')
        """
        check_device(device)
        path = newest_run() if folder is None else as_path("folder", folder, "Run.open")
        seconds: dict[str, float] = {}
        with timer(seconds, "load"):
            model = load_model(path, device)
        return cls(path, model, seconds=seconds)

    @functools.cached_property
    def columns(self) -> data.Columns:
        """The meaning of the model's features and labels: names, and how files are read.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> run.columns.label_names, run.columns.feature_names
            (['cat', 'dog'], ['a', 'cat', 'dog'])
        """
        return record.columns_of(self.model)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`. It is empty if nothing was measured.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> run.metrics["test"]["P@1"]
            1.0
        """
        return read_metrics(self.folder / "metrics.json")

    def info(self) -> dict[str, Any]:
        """Returns shape, parameters, memory, collisions and the training record, ready for JSON.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> run.info()["model"]["num_labels"]
            2
        """
        return summary(self.folder, self.model)

    def dataset(self, dataset: PathLike | None = None, svmlight_base: int | None = None) -> data.Dataset:
        """Returns the dataset that the run was trained on, or another one, read with the model's columns.

        It stays in memory, so that it is read only once.

        Args:
            dataset: Other data: a name, a folder, or a file of documents with labels.
            svmlight_base: Number of the first feature in svmlight files, if the model does not keep it.

        Raises:
            TypeError: `dataset` is not a name or a path.
            ValueError: The dataset is not there, has other columns than the model, or a file is bad.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> {name: len(split) for name, split in run.dataset().splits.items()}
            {'train': 36, 'dev': 4, 'test': 40}
        """
        if isinstance(dataset, data.Dataset):
            raise TypeError(
                f"{spell('dataset')} must be a name or a path, got a Dataset; for its metrics there is "
                "mach_ext.runs.evaluate(run.model, dataset, split)"
            )
        place = None if dataset is None else str(as_path("dataset", dataset))
        key = (place, svmlight_base, None if place is None else working_folder())
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
        precision: str = "float32",
    ) -> dict[str, Any]:
        """Returns P, nDCG, PSP, PSnDCG and R of a split, in all and, under "bands", by label frequency.

        Args:
            split: "train", "dev" or "test".
            dataset: Other data than the run's own.
            neighbors: Re-rank the best labels with the labels of the nearest documents of train.
            propensity: A and B of the propensity model. None: those that the run keeps.
            svmlight_base: As in `dataset`.
            output: Folder of the metrics. None: the run's folder.
            save: Add the metrics to `metrics.json`.
            precision: As in `MACH.predict`. Metrics in bfloat16 have a name and an entry that say so.

        Raises:
            ValueError: There is no such split, the model cannot be re-ranked, or a file is bad.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> result = run.evaluate("test")
            >>> result["P@1"], result["nDCG@1"]
            (1.0, 1.0)
        """
        self._check_output("evaluate", output)
        loaded = self.dataset(dataset, svmlight_base)
        split_of(loaded, split)  # refuses a missing split before any work
        train = evaluation.neighbors_for(self.model, loaded, split) if neighbors else None
        with timer(self.seconds, "evaluate"):
            result = evaluation.evaluate(
                self.model, loaded, split, neighbors=train, propensity=propensity, precision=precision
            )
        if save:
            name = evaluation.result_name(split, neighbors, precision)
            self.save_metrics({name: result}, dataset, svmlight_base, output)
        return result

    def save_metrics(
        self,
        results: dict[str, Any],
        dataset: PathLike | None = None,
        svmlight_base: int | None = None,
        output: PathLike | None = None,
    ) -> None:
        """Adds results to `metrics.json`.

        Args:
            results: Metrics by split.
            dataset: Other data than the run's own.
            svmlight_base: As in `dataset`.
            output: Folder of the metrics. None: the run's folder.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> run.save_metrics({"mine": {"P@1": 0.75}})
            >>> run.metrics["mine"]
            {'P@1': 0.75}
        """
        folder = self._check_output("evaluate", output)
        loaded = self.dataset(dataset, svmlight_base)
        add_metrics(folder, self.folder, self.model, loaded, results, self.seconds, dataset is None)

    def predict(self, texts: Iterable[str] | str | None = None, **source: Any) -> list[list[Prediction]]:
        """Returns the best labels of documents with their names and scores, best first.

        Args:
            texts: Documents as texts. A plain string is a single document.
            **source: Documents from another source, k and precision, as in `iter_predict`.

        Returns:
            Predictions of each document. Scores of a document without features are NaN.

        Raises:
            TypeError: As `iter_predict`.
            ValueError: As `iter_predict`.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> [[best.label for best in labels] for labels in run.predict(["a dog", "my cat"], k=1)]
            [['dog'], ['cat']]
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
        dense: Any = None,
        svmlight_base: int | None = None,
        precision: str = "float32",
    ) -> Iterator[list[Answer]]:
        """Yields answers block by block, as they are computed, from exactly one source of documents.

        Args:
            texts: Documents as texts. A plain string is a single document.
            X: Documents [N, D], a SciPy, NumPy or torch matrix, or a `mach_ext.data.HybridMatrix`.
            file: A file that ends in .jsonl, .txt (XMC), .svm or .npz, also compressed.
            stream: A binary stream of lines.
            split: A split of the run's dataset, or of `dataset`.
            dataset: Other data than the run's own.
            k: Number of labels of a document. None: 5, or L if there are fewer labels.
            format: "text" or "jsonl", for a stream or a file of any name.
            dense: Dense features [N, E] of the documents, a matrix or a npy file. None: the run's text
                encoder makes them, or they are in the file beside `file`.
            svmlight_base: As in `dataset`.
            precision: As in `MACH.predict`.

        Yields:
            A list of answers for each block of documents.

        Raises:
            TypeError: The documents have the wrong type.
            ValueError: There is not exactly one source, k is out of range, or documents are bad.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> for block in run.iter_predict(split="test", k=1):
            ...     print(len(block), block[0].labels[0].label)
            40 cat
        """
        check_source((texts, X, file, stream), split, dataset, format, dense)
        F.check_precision("predict", precision, self.model.bucket_weight.detach())
        k = nn.checked_k("predict", k, self.model.num_labels, least=0, name=spell("k"))
        texts = None if texts is None else checked_texts(texts, self.columns)
        blocks: Iterator[Any]
        if X is not None:
            blocks = rows(matrix(X, dense, self.model.num_dense))
        elif split is not None:
            blocks = rows(split_of(self.dataset(dataset, svmlight_base), split).documents)
        else:
            blocks = documents(
                self.columns, texts=texts, file=file, stream=stream, format=format,
                svmlight_base=svmlight_base, dense=dense,
            )  # fmt: skip
        names: Any = self.columns.label_names or explain.Numbers()
        return answers(self.model, names, blocks, k, precision)

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
        """Explains which features give a document its labels, and why.

        Args:
            text: The document as text.
            sample_id: Or its number in a split of the run's dataset.
            split: The split of the sample.
            dataset: Other data than the run's own.
            labels: Labels by name or number, or a single label. None: the top k.
            k: Size of the top k. None: 5, or L if there are fewer labels.
            features: How many features of each label are removed in turn for the page's last table.
            svmlight_base: As in `dataset`.
            output: Folder for explanation.json, .png and .html. None: nothing is written.
            **options: `method`, `score`, `n_steps` and further arguments of
                `mach_ext.explain.integrated_gradients`.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: Not exactly one of text and sample_id is given, a label is unknown, or the document
                has no features.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> for name, effect in run.explain("a cat that sleeps", labels="cat").top():
            ...     print(f"{name}: {'for' if effect > 0 else 'against'} the label")
            cat: for the label
            a: for the label
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
        """Measures P@k and nDCG@k, clean and under attack, for each size of the change.

        Args:
            method: "fgsm" (a single step), "pgd" (several steps), "delete" or "insert" (words).
            epsilons: Sizes. None: 0.01, or 1, 2 and 3 words for "delete". A single size is expanded to a
                curve of six.
            threat_model: "support", "dense", "insert(3)", "l2", "l1" or "delete". None: the method decides.
            dataset: Other data than the run's own.
            transfer: Another run, which also labels the changed documents.
            svmlight_base: As in `dataset`.
            output: Folder of the files. None: the run's folder.
            progress: Show progress bars.
            save: Write attack.json and attack.png, and add the result to `metrics.json`.
            **settings: Other fields of `AttackSettings`: split, sample, goal, targeted, signed, k, steps,
                seed, certify, propensity.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The threat model does not fit the documents, or an argument is out of range.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> result = run.attack("delete", epsilons=1, progress=False)
            >>> result.clean["P@1"], result.adversarial[-1]["metrics"]["P@1"]  # without "cat" or "dog"
            (1.0, 0.5)
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
        """Adds an attack to `metrics.json`.

        Args:
            result: The attack.
            is_own: Whether the attacked dataset is the run's own.
            output: Folder of the metrics. None: the run's folder.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> run.add_attack(run.attack("fgsm", epsilons=[0.5], progress=False, save=False))
            >>> list(run.metrics["attacks"])
            ['fgsm support untargeted test']
        """
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
        """Makes a copy of the run whose model takes a tenth of the bytes or less, with rounded weights.

        Only the file is small. In memory the copy is as large as the model.

        Args:
            output: The copy's folder. None: beside the run, with "-small" behind its name.
            quantization_step: As in `MACH.save`.
            split: The split that is measured for the copy's `metrics.json`. None: nothing is measured.
            dataset: Other data than the run's own.
            propensity: A and B of the propensity model. None: those that the run keeps.
            svmlight_base: As in `dataset`.
            overwrite: Replace a model in the folder.

        Returns:
            The copy as a run.

        Raises:
            ValueError: The folder holds another run.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> copy = run.compress("pets-small", overwrite=True)
            >>> copy, copy.metrics["test"]["P@1"]
            (Run('pets-small'), 1.0)
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
        """Makes the copy of `compress`, without writing its metrics.

        Args:
            output: As in `compress`.
            quantization_step: As in `compress`.
            split: As in `compress`.
            dataset: As in `compress`.
            propensity: As in `compress`.
            svmlight_base: As in `compress`.
            overwrite: As in `compress`.
            compare: Also measure the run itself. False: only its bytes are known.

        Returns:
            The copy, with its size in bytes and its metrics before and after.

        Raises:
            ValueError: The folder holds another run.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> copy = run.make_copy("pets-smaller", overwrite=True)
            >>> copy.after["bytes"] < copy.before["bytes"], copy.before["P@1"], copy.after["P@1"]
            (True, 1.0, 1.0)
        """
        folder = compressed.copy_folder(
            self.folder, None if output is None else as_path("output", output, "compress")
        )
        if not overwrite:
            record.refuse_to_replace(folder, self.model)
        loaded = None
        if split is not None and (dataset is not None or "run.json" in self.model.attachments):
            loaded = self.dataset(dataset, svmlight_base)
            split_of(loaded, split)  # refuses a missing split before any work
        name = split or ""
        if loaded is not None:
            TrainingLabels.of(self.model, loaded, propensity).inverse_propensity()  # refuses bad A and B
        before = compressed.measure(self.folder, self.model, loaded if compare else None, name, propensity)
        compressed.save_copy(self.model, folder, quantization_step, overwrite)
        log.info("model: %s", folder)
        model = nn.load(folder, self.model.bucket_bias.device)
        after = compressed.measure(folder, model, loaded, name, propensity)
        return compressed.Copy(folder, model, loaded, name, before, after)

    def _check_output(self, op: str, output: PathLike | None) -> Path:
        """Returns the folder of results, after a check that it can be written to."""
        path = None if output is None else as_path("output", output, op)
        if path is not None:
            check_folder(spell("output", op), path)
        return output_folder(path, self.folder)
