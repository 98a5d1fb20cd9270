"""A run: a folder with a trained model, and methods that predict, measure, explain and attack it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mach_ext import attack, explain, nn
from mach_ext import functional as F
from mach_ext.runs import compressed, evaluation, record
from mach_ext.runs.adversarial import AttackSettings, RunAttack, attack_run
from mach_ext.runs.arguments import as_path, spell
from mach_ext.runs.dataset import log_no_svmlight, split_of
from mach_ext.runs.explanation import RunExplanation, document_of_split, document_of_text, explain_document
from mach_ext.runs.files import check_folder, timer
from mach_ext.runs.finetuning import copy_encoder
from mach_ext.runs.folders import RUNS as RUNS
from mach_ext.runs.folders import load_model
from mach_ext.runs.labels import TrainingLabels
from mach_ext.runs.metrics_file import add_attack, add_metrics
from mach_ext.runs.opened import OpenedRun
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

log = logging.getLogger("mach_ext")

PathLike = str | os.PathLike[str]


class Run(OpenedRun):
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
        precision: str | None = None,
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
            precision: As in `MACH.predict`. None: float32, or int8 if the model is quantized. Metrics of
                another precision have a name and an entry that say so.

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
        precision = nn.other_precision("evaluate", self.model, precision)
        train = evaluation.neighbors_for(self.model, loaded, split) if neighbors else None
        with timer(self.seconds, "evaluate"):
            # The parts of a model compute in its own precision, so another one takes the whole model.
            measured = self.measured if precision is None else self.model
            result = evaluation.evaluate(
                measured, loaded, split, neighbors=train, propensity=propensity, precision=precision
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
        add_metrics(folder, self.folder, self.measured, loaded, results, self.seconds, dataset is None)

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
        precision: str | None = None,
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
            precision: As in `MACH.predict`. None: float32, or int8 if the model is quantized.

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
        precision = nn.other_precision("predict", self.model, precision)
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
        return answers(self.model, names, blocks, k, precision, share=stream is None)

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
        result = explain_document(self.float_model, self.columns, document, labels, k, features, options)
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
            method: "fgsm" (a single step) or "pgd" (several steps). "delete" and "insert" are about words of
                the sparse features. "words" deletes words of the texts. All features are then made again.
            epsilons: Sizes. None: 0.01, or 1, 2 and 3 words for "delete" and "words". A single size is
                expanded to a curve of six.
            threat_model: "support", "dense", "insert(3)", "l2", "l1", "delete", "embedding" or
                "embedding(l2)". None: the method decides.
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
        if chosen.certify and self.is_quantized:
            raise ValueError(
                f"attack: {spell('certify')} is for float32, and the model in {self.folder} has weights of "
                "8 bits; certify the run that it was made from"
            )
        other = transfer.float_model if isinstance(transfer, Run) else None
        if transfer is not None and not isinstance(transfer, Run):
            path = as_path("transfer", transfer, "attack")
            with timer(self.seconds, "load"):
                other = nn.in_float32(load_model(path, str(self.model.bucket_bias.device), "transfer"))
        seconds = self.seconds.get("load", 0.0)
        encoder = self.text_encoder if chosen.method == "words" else None
        result = attack_run(
            self.float_model, loaded, chosen, transfer=other, text_encoder=encoder, progress=progress,
            load_seconds=seconds,
        )  # fmt: skip
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
        quantization_step: float | None = None,
        split: str | None = "test",
        precision: str = "float32",
        dataset: PathLike | None = None,
        propensity: tuple[float, float] | None = None,
        svmlight_base: int | None = None,
        overwrite: bool = False,
    ) -> Run:
        """Makes a copy of the run with rounded weights, whose model takes fewer bytes.

        In float32 the file takes a tenth or less, and in memory the copy is as large as the model. In int8
        the file takes a quarter, so do the weights in memory, and predictions on the CPU are faster.

        Args:
            output: The copy's folder. None: beside the run, with "-small" or "-int8" behind its name.
            quantization_step: As in `MACH.save`. None: 0.5, or no step in int8.
            split: The split that is measured for the copy's `metrics.json`. None: nothing is measured.
            precision: "float32", or "int8" for a `mach_ext.QuantizedMACH`.
            dataset: Other data than the run's own.
            propensity: A and B of the propensity model. None: those that the run keeps.
            svmlight_base: As in `dataset`.
            overwrite: Replace a model in the folder.

        Returns:
            The copy as a run.

        Raises:
            ValueError: The folder holds another run, a step was given for int8, or the run's model has
                weights of 8 bits already.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `Run`
            >>> copy = run.compress("pets-small", overwrite=True)
            >>> copy, copy.metrics["test"]["P@1"]
            (Run('pets-small'), 1.0)
        """
        copy = self.make_copy(
            output, compressed.checked_step(quantization_step, precision), split, dataset=dataset,
            propensity=propensity, svmlight_base=svmlight_base, overwrite=overwrite, compare=False,
        )  # fmt: skip
        copy.write_metrics()
        return Run(copy.folder, copy.model, dataset=copy.dataset, text_encoder=self._encoder)

    def make_copy(
        self,
        output: PathLike | None = None,
        quantization_step: float | None = nn.STEP,
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
            quantization_step: As in `MACH.save`. None: weights of 8 bits.
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
        if self.is_quantized:
            raise ValueError("compress: the model has 8 bits already; compress the run that it was made from")
        place = None if output is None else as_path("output", output, "compress")
        folder = compressed.copy_folder(self.folder, place, quantization_step is None)
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
        compressed.save_copy(self.float_model, folder, quantization_step, overwrite)
        copy_encoder(self.folder, folder, self.model.attachments)
        log.info("model: %s", folder)
        model = nn.load(folder, self.model.bucket_bias.device)
        after = compressed.measure(folder, model, loaded, name, propensity)
        return compressed.Copy(folder, model, loaded, name, before, after)
