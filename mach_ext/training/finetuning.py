"""`finetune` trains a text encoder and a model together, from the texts to the labels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mach_ext._memory import memory_errors
from mach_ext.data import Batch, HybridMatrix
from mach_ext.data.parsing import quote
from mach_ext.nn import MACH, Dropout, check_finite, check_trainable
from mach_ext.training.documents import TrainingData, check_training_data
from mach_ext.training.folder import lock_run
from mach_ext.training.hyperparameters import METRICS, Hyperparameters
from mach_ext.training.progress import Progress
from mach_ext.training.run import TrainingRun
from mach_ext.training.trained_encoder import EncoderSettings, TrainedEncoder
from mach_ext.training.validation import Validation

# Rates of the model in fine-tuning, relative to those of `fit`. The model comes trained.
GENTLE = 0.25
FINETUNING_EPOCHS = 2


class EncodedValidation(Validation):
    """Validation that embeds the dev texts anew, by the encoder as it is."""

    def __init__(
        self, data: TrainingData, settings: Hyperparameters, encoder: Any, texts: Sequence[str] | None
    ) -> None:
        super().__init__(data, settings.metric, settings.patience)
        self.encoder, self.texts = encoder, texts

    def documents(self) -> tuple[Any, Any, Any]:
        """Return the dev documents with new embeddings, their labels, and what must not be answered."""
        assert self.texts is not None
        X, Y, filtered = super().documents()
        return HybridMatrix(X.sparse, self.encoder.encode(self.texts, progress=False)), Y, filtered


class FinetuningRun(TrainingRun):
    """A run whose dense features come from a text encoder, which each step trains as well."""

    def __init__(
        self, model: MACH, settings: Hyperparameters, data: TrainingData, companion: TrainedEncoder,
        texts_dev: Sequence[str] | None, folder: Path | None, **options: Any,
    ) -> None:  # fmt: skip
        self.companion = self.text = companion
        super().__init__(model, settings, data, folder, **options)
        self.do_step = self._step_both
        self.model_step.dense_rows.wants_gradient = True
        self.validation = EncodedValidation(data, settings, companion.encoder, texts_dev)

    def identity(self, length: float) -> dict[str, Any]:
        """Return what identifies the run, with the encoder and the texts."""
        checksum = 0
        for text in self.text.texts:
            checksum = zlib.crc32(text.encode("utf-8", "surrogatepass") + b"\0", checksum)
        identity = super().identity(length)
        identity["hyperparameters"] |= {"encoder": vars(self.text.settings)}
        identity["data"] |= {"texts": [len(self.text.texts), checksum]}
        return identity

    def _step_both(self, batch: Batch, dropout: Dropout) -> float:
        """Make a step of the model on the embeddings of the texts, then a step of the encoder."""
        state = self.state
        step = state.epoch * self.steps_an_epoch + state.batch
        self.text.set_step(step, self.settings.epochs * self.steps_an_epoch)
        self.text.encoder.train()
        with torch.enable_grad():
            dense = self.text.embed(batch.rows)
        loss = self.model_step(batch._replace(dense=dense.detach()), dropout)
        gradient = self.model_step.dense_rows.gradient
        assert gradient is not None
        self.text.step(dense, gradient.to(dense.dtype))
        return loss


@memory_errors("lower batch_size, num_buckets or hidden_size")
def finetune(
    model: MACH,
    encoder: Any,
    texts: Sequence[str],
    X: HybridMatrix,
    Y: Any,
    texts_dev: Sequence[str] | None = None,
    X_dev: HybridMatrix | None = None,
    Y_dev: Any = None,
    *,
    encoder_settings: EncoderSettings | None = None,
    filtered_dev: Any = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
    progress: bool = True,
    **hyperparameters: Any,
) -> Progress:
    """Train a text encoder and a model together, in place.

    Each step embeds the texts of its documents, steps the model as `fit` does, and goes on backwards into the
    encoder, which AdamW steps. The encoder has a learning rate for each layer. A model that `fit` trained on
    the embeddings is a good start. So the model's default rates are a quarter of those of `fit`.

    With validation data, model and encoder end as they were after their best epoch.

    Args:
        model: MACH with dense features, as many as the encoder gives.
        encoder: A `mach_ext.text_encoder.TextEncoder`.
        texts: The N texts of the training documents.
        X: Documents, with their embeddings by the encoder as it comes. The embeddings only fix the center and
            the scale of the dense features.
        Y: Labels [N, L].
        texts_dev: The texts of the validation documents. Give `texts_dev`, `X_dev` and `Y_dev` or none.
        X_dev: Documents for validation.
        Y_dev: Labels for validation.
        encoder_settings: How the encoder is trained.
        filtered_dev: As in `fit`.
        output: Folder for checkpoints and for the model and the encoder of the best epoch. None keeps
            everything in memory.
        resume: Continue from the checkpoint in `output`, or start if there is none.
        checkpoint_minutes: As in `fit`.
        progress: Whether to show progress bars on standard error.
        **hyperparameters: Fields of `Hyperparameters`. `epochs` is 2 by default.

    Returns:
        The progress of the run, as `fit` returns it.

    Raises:
        TypeError: As in `fit`, or a text is not a string.
        ValueError: As in `fit`. The texts are not as many as the documents, or the encoder gives another
            number of dense features than the model takes. No parameter of the encoder requires gradients, or
            the validation documents are no `HybridMatrix`.
        FloatingPointError: The loss became NaN or infinite.
        MemoryError: Memory does not suffice. On a GPU the error is `torch.OutOfMemoryError`.
        TrainingInterrupted: Ctrl-C was pressed. The state is saved in `output`.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> from mach_ext.text_encoder import TextEncoder
        >>> encoder = TextEncoder.load("encoder")
        >>> texts = ["a cat", "a dog"] * 20
        >>> Y = scipy.sparse.csr_matrix(np.eye(2)[np.arange(40) % 2])
        >>> dense = encoder.encode(texts, progress=False)
        >>> X = mach_ext.data.HybridMatrix(scipy.sparse.csr_matrix((40, 3), dtype=np.float32), dense)
        >>> model = mach_ext.MACH(3, 2, 4, 4, hidden_size=8, num_dense=encoder.num_dense)
        >>> record = mach_ext.training.finetune(model, encoder, texts, X, Y, batch_size=8, progress=False)
        >>> len(record.history)
        2
    """
    check_trainable("finetune", model)
    settings = _settings(model, hyperparameters)
    model.hash.check_contents()
    data = check_training_data(model, X, Y, X_dev, Y_dev, filtered_dev)
    if data.dev is not None and settings.metric not in METRICS:
        raise ValueError(f"finetune: metric must be one of {', '.join(METRICS)}, got {settings.metric!r}")
    if resume and output is None:
        raise ValueError("finetune: resume needs the output folder of the run to continue")
    _check_texts(model, encoder, data, texts, texts_dev)
    companion = TrainedEncoder(
        encoder, texts, encoder_settings or EncoderSettings(), settings.seed, settings.precision
    )
    folder = None if output is None else Path(output)
    with lock_run(folder):
        run = FinetuningRun(
            model, settings, data, companion, texts_dev, folder, resuming=resume, show_progress=progress
        )
        if resume:
            run.resume()
        check_finite("finetune", model)
        try:
            run.train(checkpoint_minutes * 60)
        finally:
            encoder.eval()
    return run.state


def _settings(model: MACH, given: dict[str, Any]) -> Hyperparameters:
    """Return the hyper-parameters, with gentle rates in place of the defaults."""
    usual = Hyperparameters.of(model)
    names = ("learning_rate", "encoder_learning_rate", "dense_learning_rate")
    defaults: dict[str, Any] = {name: GENTLE * getattr(usual, name) for name in names}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Hyperparameters.of(model, **{"epochs": FINETUNING_EPOCHS, **defaults, **chosen})


def _check_texts(
    model: MACH, encoder: Any, data: TrainingData, texts: Sequence[str], texts_dev: Sequence[str] | None
) -> None:
    """Refuse texts that are not those of the documents, and an encoder of another size."""
    if not isinstance(data.X, HybridMatrix) or encoder.num_dense != model.num_dense:
        raise ValueError(
            "finetune: needs a model with as many dense features as the encoder gives, "
            f"{encoder.num_dense}, and documents as a HybridMatrix, got num_dense={model.num_dense}"
        )
    if not any(p.requires_grad for p in encoder.parameters()):
        raise ValueError(
            "finetune: encoder must have parameters that require gradients, got none; fit trains a model on "
            "the embeddings of an encoder that stays as it is"
        )
    dev = None if data.dev is None else data.dev[0]
    if dev is not None and not isinstance(dev, HybridMatrix):
        raise ValueError(f"finetune: X_dev must be a HybridMatrix like X, got {type(dev).__name__}")
    for name, given, documents in (("texts", texts, data.X), ("texts_dev", texts_dev, dev)):
        each = () if given is None else given
        if isinstance(given, str) or not all(isinstance(text, str) for text in each):
            raise TypeError(f"finetune: {name} must be a list of strings, got {quote(given)}")
        count = "none" if given is None else len(given)
        expected = "none" if documents is None else documents.shape[0]
        if count != expected:
            raise ValueError(f"finetune: {name} must be as many as the documents, {expected}, got {count}")
