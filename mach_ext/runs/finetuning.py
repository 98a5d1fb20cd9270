"""Fine-tuning of a run: its text encoder is trained with the model, and kept in the run's folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mach_ext import data, nn, training
from mach_ext.data import attachments as kept
from mach_ext.data.atomic import new_folder
from mach_ext.runs.arguments import spell
from mach_ext.runs.recipe import Recipe
from mach_ext.runs.text_encoders import RunEncoder, encoder_of, with_embeddings
from mach_ext.training.finetuning import GENTLE

_RATES = ("learning_rate", "encoder_learning_rate", "dense_learning_rate")
_SHARED = (
    *_RATES, "batch_size", "optimizer", "schedule", "gradient_threshold", "precision", "metric", "patience",
    "encoder_eps", "eps", "tau",
)  # fmt: skip


@dataclass(frozen=True)
class Finetuning:
    """The arguments of `train` about fine-tuning.

    Attributes:
        epochs: Passes over the documents. 0: the encoder stays as it is.
        learning_rate: Learning rate of the encoder. None: that of `EncoderSettings`.
    """

    epochs: int = 0
    learning_rate: float | None = None

    @classmethod
    def of(
        cls, finetune: bool, epochs: int | None, learning_rate: float | None, recipe: Recipe, encoder: Any
    ) -> Finetuning:
        """Checks the arguments of `train`.

        Raises:
            ValueError: They do not fit each other.
        """
        flag = spell("finetune", value=True)
        if not finetune:
            for name, given in (("finetune_epochs", epochs), ("text_learning_rate", learning_rate)):
                if given is not None:
                    raise ValueError(f"{spell(name)} needs {flag}")
            return cls()
        if encoder is None:
            raise ValueError(f"{flag} needs {spell('text_encoder')}")
        if recipe.svm:
            raise ValueError(f"{spell('svm', value=True)} takes no {flag}")
        epochs = training.FINETUNING_EPOCHS if epochs is None else epochs
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"{spell('finetune_epochs')} must be an int of at least 1, got {epochs!r}")
        return cls(epochs, learning_rate)

    def settings(self) -> dict[str, Any]:
        """Returns the arguments for the record of the run."""
        return (
            {"finetune": {"epochs": self.epochs, "learning_rate": self.learning_rate}} if self.epochs else {}
        )

    @property
    def encoder_settings(self) -> training.EncoderSettings:
        """How the encoder is trained."""
        if self.learning_rate is None:
            return training.EncoderSettings()
        return training.EncoderSettings(learning_rate=self.learning_rate)


def is_finetuning(folder: Path) -> bool:
    """Returns whether a folder has a checkpoint of fine-tuning, so that the first training is over."""
    return "encoder" in training.checkpoint_record(folder).get("hyperparameters", {})


def finetune_run(
    model: nn.MACH,
    dataset: data.Dataset,
    encoded: RunEncoder | None,
    folder: Path,
    recipe: Recipe,
    finetuning: Finetuning,
    progress: bool,
) -> tuple[training.Progress, data.Dataset, RunEncoder]:
    """Trains the text encoder of a run together with its model.

    Args:
        model: The model, trained on the embeddings of the encoder as it is.
        dataset: The dataset, with these embeddings.
        encoded: The encoder.
        folder: The run folder.
        recipe: The arguments of the training.
        finetuning: The arguments of fine-tuning.
        progress: Show progress bars.

    Returns:
        The progress, the dataset with the embeddings of the trained encoder, and this encoder.
    """
    assert encoded is not None  # `Finetuning.of` refuses to do without.
    given: dict[str, Any] = {name: recipe.hyperparameters.get(name) for name in _SHARED}
    given |= {name: GENTLE * given[name] for name in _RATES if given[name] is not None}
    dev = dataset.dev
    of_dev = (None, None, None) if dev is None else (dev.texts, _whole(dev), dev.Y)
    state = training.finetune(
        model,
        encoded.encoder,
        dataset.train.texts or [],
        _whole(dataset.train),
        dataset.train.Y,
        *of_dev,
        encoder_settings=finetuning.encoder_settings,
        filtered_dev=None if dev is None else dev.filtered,
        output=folder,
        resume=recipe.resume and is_finetuning(folder),
        progress=progress,
        epochs=finetuning.epochs,
        seed=recipe.seed,
        **given,
    )
    device = model.bucket_bias.device
    tuned = encoder_of(model.attachments, model.num_dense, None, device, progress, folder)
    assert tuned is not None
    splits: dict[str, Any] = {name: replace(split, dense=None) for name, split in dataset.splits.items()}
    return state, with_embeddings(replace(dataset, **splits), tuned), tuned


def _whole(split: data.Split) -> data.HybridMatrix:
    """Returns the documents of a split with their embeddings."""
    documents = split.documents
    assert isinstance(documents, data.HybridMatrix)
    return documents


def delete_encoders(folder: Path, attachments: kept.Attachments) -> None:
    """Removes trained encoders of former runs from a run folder."""
    record = kept.run_encoder(attachments)
    for other in folder.glob("text_encoder-*"):
        if kept.RUN_ENCODER.fullmatch(other.name) and other.name != record:
            shutil.rmtree(other)


def copy_encoder(source: Path, target: Path, attachments: kept.Attachments) -> None:
    """Copies the trained encoder of a run into the folder of its copy. Nothing is done if there is none.

    An encoder that is not in the run's folder any more stays where it is.
    """
    name = kept.run_encoder(attachments)
    if name is None or (target / name).exists() or not (source / name).is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    with new_folder(target / name) as temporary:
        shutil.copytree(source / name, temporary, dirs_exist_ok=True)
