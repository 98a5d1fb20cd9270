"""Trains a run from a dataset: `mach-ext train` as a function."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mach_ext import data, nn, training
from mach_ext._model_folder.saving import failing_together
from mach_ext.distributed import Ranks, together
from mach_ext.distributed.agreement import check_agreement
from mach_ext.distributed.part import ModelPart
from mach_ext.distributed.ranks import note_launch, was_noted
from mach_ext.runs import labels, record
from mach_ext.runs.arguments import as_path, check_device, spell
from mach_ext.runs.dataset import log_remarks, log_without_features, sizes
from mach_ext.runs.evaluation import log_neighbors
from mach_ext.runs.files import check_folder, check_utf8, timer
from mach_ext.runs.finetuning import Finetuning, delete_encoders, finetune_run, is_finetuning
from mach_ext.runs.in_parts import RunInParts
from mach_ext.runs.metrics_file import write_metrics
from mach_ext.runs.race import CHOICES, run_race, table
from mach_ext.runs.recipe import Recipe
from mach_ext.runs.run import RUNS, Run
from mach_ext.runs.text_encoders import RunEncoder, check_apart, check_resumed, load_encoder, with_embeddings
from mach_ext.text_encoder import TextEncoder

log = logging.getLogger("mach_ext")

FEW_DOCUMENTS = 50  # held out of train: with fewer, the best epoch is mostly chance, which a remark says


def train(
    dataset: str | os.PathLike[str] | data.Dataset,
    *,
    output: str | os.PathLike[str] | None = None,
    num_repetitions: int | None = None,
    num_buckets: int | None = None,
    hidden_size: Any = None,
    encoder: str | None = None,
    merge: str | None = None,
    feature_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    text_encoder: TextEncoder | str | os.PathLike[str] | None = None,
    finetune: bool = False,
    finetune_epochs: int | None = None,
    text_learning_rate: float | None = None,
    seed: int = 0,
    svm: bool | None = None,
    C: float | None = None,
    quantization_step: float | None = None,
    choice: str = "race",
    label_names: bool | None = None,
    repetitions_at_a_time: int | None = None,
    holdout: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    svmlight_base: int | None = None,
    propensity: tuple[float, float] | None = None,
    device: str = "cpu",
    progress: bool = True,
    evaluate: bool = True,
    **hyperparameters: Any,
) -> Run:
    r"""Trains a model on a dataset and keeps everything in a run folder, as `mach-ext train` does.

    Sizes that are not given follow from the dataset by the rules of `mach_ext.training`. A short race on a
    sample of train decides between support vector machines and hidden layers with several rates. The same
    arguments give the same bits as the command.

    Args:
        dataset: A name such as "wordnet", a folder, or a dataset that `mach_ext.data.load` returned.
        output: The run folder. None: runs/ and the dataset's name.
        num_repetitions: Number of hash functions R.
        num_buckets: Number of buckets B of each hash function.
        hidden_size: Number of hidden units. 0: linear MACH. A pair: two layers.
        encoder: "shared" or "independent".
        merge: How the scores of a label's buckets are merged, as in `MACH`.
        feature_dropout: Probability that a non-zero feature is dropped in training.
        hidden_dropout: Probability that a hidden unit is dropped in training.
        text_encoder: A text encoder, or its folder or name as `TextEncoder.load` takes it. The embeddings of
            the texts become dense features beside the words. The run keeps the encoder's name and digest.
        finetune: Then train the text encoder and the model together, and keep the encoder in the run folder.
            A `TextEncoder` that is given is trained in place.
        finetune_epochs: Passes over the documents in this second training. None: 2.
        text_learning_rate: Learning rate of the text encoder. None: 5e-5.
        seed: Seed of the label hash, the weights and the batches.
        svm: True: a support vector machine for each bucket instead of gradient training. None: as `choice`
            says, if no argument is given that needs gradient training.
        C: Misclassification cost of each support vector machine. None: 1.
        quantization_step: Support vector machines are saved with rounded weights, as by `MACH.save`. Models
            with hidden layers are made small by `Run.compress`.
        choice: How the solver and its rates are chosen if they are not given. "race": by trying them on a
            sample, in about a fifth of the training's time, or ten seconds where that is more. With fewer
            than 200 documents to decide, rules choose. "rule": always by rules.
        label_names: Learn from the names of labels with at most three training documents, as
            `mach_ext.data.with_label_names` does. None: if `mach_ext.data.names_tell` says that it may help,
            and the race says that it does.
        repetitions_at_a_time: Number of repetitions that are trained together, to save memory. Linear MACH
            only. See `fit`.
        holdout: Without a dev split, hold a tenth of train out for validation.
        resume: Continue from the last checkpoint in the folder.
        overwrite: Replace a model in the folder.
        svmlight_base: Number of the first feature in svmlight files. None: the files decide.
        propensity: A and B of the propensity model. None: those of the field for the dataset's name.
        device: "cpu", "cuda" or "cuda:N".
        progress: Show progress bars on standard error.
        evaluate: Measure the dev and the test split at the end, and keep the metrics in the folder.
        **hyperparameters: Fields of `mach_ext.training.Hyperparameters`.

    Returns:
        The run, whose model has the weights of the best epoch.

    Raises:
        ImportError: A text encoder is given, and the package transformers is missing.
        TypeError: An argument or the dataset has the wrong type.
        ValueError: An argument or the dataset is bad, or the folder holds another run.
        OSError: The folder cannot be written to.
        MemoryError: Memory does not suffice.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> lines = [f'{{"text": "{animal} {i}", "labels": ["{animal}"]}}'
        ...          for i in range(20) for animal in ("cat", "dog", "owl")]
        >>> Path("animals").mkdir()
        >>> _ = Path("animals/train.jsonl").write_text("\n".join(lines))
        >>> run = mach_ext.train("animals", epochs=20, hidden_size=8, progress=False)
        >>> [[best.label for best in labels] for labels in run.predict(["an owl at night"], k=1)]
        [['owl']]
    """
    recipe = Recipe(
        num_repetitions=num_repetitions, num_buckets=num_buckets, hidden_size=hidden_size, encoder=encoder,
        merge=merge, feature_dropout=feature_dropout, hidden_dropout=hidden_dropout, seed=seed, svm=svm, C=C,
        quantization_step=quantization_step,
        label_names=label_names, repetitions_at_a_time=repetitions_at_a_time, resume=resume,
        hyperparameters=hyperparameters,
    )  # fmt: skip
    tuning = Finetuning.of(finetune, finetune_epochs, text_learning_rate, recipe, text_encoder)
    check_device(device)
    if choice not in CHOICES:
        raise ValueError(f"{spell('choice', 'train')} must be one of {', '.join(CHOICES)}, got {choice!r}")
    if output is not None:
        check_folder(spell("output", "train"), as_path("output", output, "train"))
    seconds: dict[str, float] = {}
    with together() as ranks:
        progress = progress and ranks.is_first
        with timer(seconds, "load"):
            encoded = None if text_encoder is None else load_encoder(text_encoder, device, progress)
            loaded = load_dataset(dataset, holdout=holdout, svmlight_base=svmlight_base, encoder=encoded)
        folder = _run_folder(loaded, output)
        job = _Job(folder, ranks, resume, overwrite, propensity, device, progress, seconds, choice)
        _check_agreement(job, recipe, loaded, evaluate)
        run = _train(recipe, tuning, loaded, encoded, job)
        if evaluate:
            write_training_metrics(run, measure(run))
    return run


@dataclass
class _Job:
    """Where and how a training is done, in one process or in several."""

    folder: Path
    ranks: Ranks
    resume: bool
    overwrite: bool
    propensity: tuple[float, float] | None
    device: str
    progress: bool
    seconds: dict[str, float]
    choice: str = "race"


def _check_agreement(job: _Job, recipe: Recipe, dataset: data.Dataset, evaluate: bool) -> None:
    """Refuses processes that were called with different arguments, or have other documents."""
    given = {**vars(recipe), **recipe.hyperparameters, "resume": job.resume, "overwrite": job.overwrite}
    given["choice"] = job.choice
    del given["hyperparameters"]
    given |= {"propensity": job.propensity, "evaluate": evaluate, "data": sizes(dataset)}
    check_agreement("train", job.ranks, given)


def _train(
    recipe: Recipe, tuning: Finetuning, loaded: data.Dataset, encoded: RunEncoder | None, job: _Job
) -> Run:
    """Trains on a dataset that is loaded, in one process or in several."""
    folder, ranks, seconds = job.folder, job.ranks, job.seconds
    if tuning.epochs and ranks.size > 1:
        raise ValueError(f"train: {spell('finetune')} is for one process, got {ranks.size} processes")
    if recipe.quantization_step is not None and ranks.size > 1:
        name = spell("quantization_step")
        raise ValueError(f"train: {name} is for one process, got {ranks.size} processes")
    resumed = _begin(job, loaded, encoded)
    with timer(seconds, "race"):
        recipe, chosen = _choose(recipe, tuning, loaded, job, resumed)
    recipe = replace(recipe, resume=job.resume)
    part = recipe.part(loaded, ranks)
    model = part.model.to(job.device)
    parameters = sum(ranks.collect(sum(p.numel() for p in model.parameters())))
    log.info("model: %s parameters; run folder %s", f"{parameters:,}", folder)
    if job.propensity is None and resumed:
        job.propensity = record.kept_propensity(folder)
    _attach(model, loaded, recipe.settings() | chosen | tuning.settings(), job.propensity)
    with timer(seconds, "train"):
        state = _learn(part, loaded, job, recipe, tuning)
        if tuning.epochs:
            state, loaded, encoded = finetune_run(
                model, loaded, encoded, folder, recipe, tuning, job.progress
            )
    if state.best_epoch is not None:
        log.info("best epoch %d of %d", state.best_epoch, state.epoch)
    seconds |= {"evaluate": 0.0, "fit": state.seconds}  # includes the time before a resume
    options: dict[str, Any] = {
        "history": state.history, "seconds": seconds, "dataset": loaded, "text_encoder": encoded
    }  # fmt: skip
    return Run(folder, model, **options) if part.is_alone else RunInParts(folder, part, **options)


def _choose(
    recipe: Recipe, tuning: Finetuning, dataset: data.Dataset, job: _Job, resumed: bool
) -> tuple[Recipe, dict[str, Any]]:
    """Returns the recipe with what was left open chosen, and what the run keeps of the choice."""
    if resumed:
        checkpoint = training.checkpoint_record(job.folder)
        if not checkpoint:  # It is damaged, and the training will say so.
            return recipe.with_solver(dataset, job.device), {"choice": "rule"}
        former = checkpoint.get("run", {}).get("settings", {})
        kept = {name: former[name] for name in ("choice", "race") if name in former}
        if recipe.label_names is None:
            recipe = replace(recipe, label_names=bool(former.get("label_names", False)))
        recipe = recipe.continued(checkpoint)
        if recipe.svm and recipe.quantization_step is None:
            recipe = replace(recipe, quantization_step=former.get("quantization_step"))
        recipe.check_solver()
        return recipe, kept
    recipe.check_names(dataset)
    if tuning.epochs:
        recipe = replace(recipe, svm=False, label_names=bool(recipe.label_names))
        return recipe.with_solver(dataset, job.device), {"choice": "rule"}
    race = None
    if job.choice == "race":
        with failing_together(job.ranks.collect):
            if job.ranks.is_first:
                race = run_race(recipe, dataset, job.device, job.progress, job.ranks.size)
        race = job.ranks.broadcast(race)
    if race is None:
        return recipe.with_solver(dataset, job.device).with_names(dataset), {"choice": "rule"}
    for line in table(race.record()):
        log.info("%s", line)
    return race.applied(recipe).with_names(dataset), {"choice": "race", "race": race.record()}


def _learn(
    part: ModelPart, dataset: data.Dataset, job: _Job, recipe: Recipe, tuning: Finetuning
) -> training.Progress:
    """Trains the model, unless a training that goes on has come to its fine-tuning."""
    if recipe.resume and tuning.epochs and is_finetuning(job.folder):
        return training.Progress()
    state = _fit(part, dataset, job, recipe)
    if job.ranks.is_first:
        delete_encoders(job.folder, part.model.attachments)
    return state


def _begin(job: _Job, dataset: data.Dataset, encoder: RunEncoder | None) -> bool:
    """Checks that the training may begin in its folder, and embeds texts. Returns whether it goes on there.

    A training that `torchrun` starts anew after a failure goes on by itself.

    Raises:
        ValueError: The folder holds another run.
    """
    folder, ranks, begun = job.folder, job.ranks, f"begun {job.folder.absolute()}"
    job.resume = job.resume or ranks.broadcast(was_noted(begun))  # The first rank alone makes the note.
    resumed: bool = ranks.broadcast(job.resume and training.has_checkpoint(folder))
    if not (job.overwrite or job.resume):
        record.refuse_to_replace(folder)
    if resumed and (started := training.checkpoint_record(folder).get("run")):
        check_resumed(started, encoder)
    check_apart(dataset, folder)
    log.info("dataset %s from %s: %s", dataset.name, dataset.path, sizes(dataset))
    if encoder is not None:
        with timer(job.seconds, "embed"):
            if not ranks.is_first:
                ranks.barrier()  # The first rank embeds the texts for all, by the cache.
            _embed(dataset)
            if ranks.is_first:
                ranks.barrier()
    _log_gaps(dataset)
    ranks.barrier()  # All have looked into the folder before any writes into it.
    with failing_together(ranks.collect):
        if ranks.size > 1 and ranks.is_first:
            if not resumed and folder.exists():
                with training.lock_run(folder):  # Another run may be training there.
                    training.delete_checkpoint(folder)
            note_launch(begun)
    return resumed


def _attach(
    model: nn.MACH,
    dataset: data.Dataset,
    settings: dict[str, Any],
    propensity: tuple[float, float] | None,
) -> None:
    """Gives the model what later commands need of the data. Bad A and B are refused before the work."""
    model.attachments = record.attachments(dataset, settings=settings, propensity=propensity)
    labels.TrainingLabels.of(model, dataset).inverse_propensity()


def measure(run: Run) -> dict[str, Any]:
    """Returns metrics of a newly trained run on its dev and test splits, as far as it has them."""
    splits = run.dataset().splits
    return {name: run.evaluate(name, save=False) for name in ("dev", "test") if name in splits}


def write_training_metrics(run: Run, results: dict[str, Any]) -> None:
    """Writes `metrics.json` of a newly trained run. Metrics of an earlier run in the folder are replaced."""
    file, former = run.folder / "metrics.json", {"history": run.history}
    write_metrics(file, run.folder, run.measured, run.dataset(), results, run.seconds, former)
    if isinstance(run.measured, nn.MACH):  # not a part of a model
        log_neighbors(run.measured, run.dataset())


def load_dataset(
    dataset: str | os.PathLike[str] | data.Dataset,
    *,
    holdout: bool = True,
    svmlight_base: int | None = None,
    encoder: RunEncoder | None = None,
) -> data.Dataset:
    """Loads a dataset with its own columns and logs its readers' remarks. A loaded one is only checked.

    With an encoder, the embeddings of the texts become dense features. They are not computed yet.
    """
    if isinstance(dataset, data.Dataset):
        _check_dataset(dataset)
        holdout = False
    else:
        as_path("dataset", dataset, "train")
        threads = torch.get_num_threads()
        dataset = data.load(dataset, holdout=False, svmlight_base=svmlight_base, num_threads=threads)
    if encoder is not None:  # before a part is held out, so that train is embedded as a whole
        dataset = with_embeddings(dataset, encoder)
    dataset = data.hold_out(dataset) if holdout else dataset
    log_remarks(dataset, svmlight_base)
    return dataset


def _check_dataset(dataset: data.Dataset) -> None:
    """Refuses a handmade dataset that training or metrics cannot use, before the work."""
    D, L = dataset.num_features, dataset.num_labels
    for name, split in dataset.splits.items():
        for what, matrix, columns in (("X", split.X, D), ("Y", split.Y, L)):
            where = f"train: dataset.{name}.{what}"
            if getattr(matrix, "format", "") != "csr":
                raise TypeError(f"{where} must be SciPy CSR, got {type(matrix).__name__}")
            if matrix.shape != (len(split), columns):
                raise ValueError(f"{where} must have shape {(len(split), columns)}, got {matrix.shape}")
        if (split.dense is None) != (dataset.train.dense is None):
            raise ValueError(f"train: dataset.{name}.dense must be given for all splits or for none")
        if split.dense is not None and not hasattr(split.dense, "shape"):
            kind = type(split.dense).__name__
            raise TypeError(f"train: dataset.{name}.dense must be a NumPy array [N, E], got {kind}")
        if split.dense is not None and tuple(split.dense.shape) != (len(split), dataset.num_dense):
            expected = (len(split), dataset.num_dense)
            raise ValueError(
                f"train: dataset.{name}.dense must have shape {expected}, got {split.dense.shape}"
            )


def _run_folder(dataset: data.Dataset, output: str | os.PathLike[str] | None) -> Path:
    """Returns the run folder, after a check that it can be written to."""
    name = dataset.name
    if output is None and (name in ("", "..") or Path(name).name != name):
        raise ValueError(
            f"train: no run folder can be named after the dataset {name!r}; give {spell('output')}"
        )
    folder = RUNS / name if output is None else Path(output)
    what = f"the run folder ({spell('output')} names another)"
    check_folder(what, folder)
    check_utf8(what, folder)
    if folder.exists() and dataset.path.exists() and folder.samefile(dataset.path):
        raise ValueError(f"{spell('output', 'train')} must not be the folder of the dataset, got {folder}")
    return folder


def _embed(dataset: data.Dataset) -> None:
    """Computes the embeddings of all splits."""
    for split in dataset.splits.values():
        assert isinstance(split.dense, data.TextEmbeddings)
        _ = split.dense.array


def _log_gaps(dataset: data.Dataset) -> None:
    """Logs if documents have no labels or no features."""
    if dataset.train.Y.nnz == 0:
        log.warning("no document of train has a label")
    for name, split in dataset.splits.items():
        log_without_features(f"{name}: ", split.without_features, len(split))
    held_out = dataset.dev if dataset.dev_rule == data.HOLDOUT_RULE else None
    if held_out is not None and len(held_out) < FEW_DOCUMENTS:
        log.info(
            "only %d documents of train are held out to choose the best epoch, which may be chance; "
            "%s trains on all documents",
            len(held_out), spell("holdout", value=False),
        )  # fmt: skip


def _fit(part: ModelPart, dataset: data.Dataset, job: _Job, recipe: Recipe) -> training.Progress:
    """Trains by gradients, or support vector machines."""
    folder = job.folder
    with failing_together(part.ranks.collect):
        goes_on = recipe.resume and training.has_checkpoint(folder)
        again = recipe.resume and recipe.svm and record.holds_run(folder, part)  # which keeps no checkpoint
        if not (job.overwrite or goes_on or again):
            record.refuse_to_replace(folder)  # another run may have ended in this folder meanwhile
    return recipe.train(part, dataset, folder, job.progress)
