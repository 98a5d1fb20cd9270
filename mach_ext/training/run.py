"""A run of training: its steps, its epochs, and the best epoch at the end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mach_ext._memory import memory_advice
from mach_ext.data import Batch, iter_batches, iter_on_device
from mach_ext.distributed.agreement import check_agreement
from mach_ext.distributed.part import ModelPart
from mach_ext.functional import own_precision
from mach_ext.nn import MACH, Dropout
from mach_ext.training.adjustment import choose_tau
from mach_ext.training.checkpoint import check_progress
from mach_ext.training.companion import Companion
from mach_ext.training.defaults import default_tau
from mach_ext.training.documents import TrainingData, sparse_features, typical_length
from mach_ext.training.dropout import keep_generators, step_dropout
from mach_ext.training.hyperparameters import Hyperparameters
from mach_ext.training.keeping import BestInMemory, RunFolder
from mach_ext.training.optimizer import Schedule, make_optimizer
from mach_ext.training.precision import product_precision
from mach_ext.training.progress import (
    Progress,
    TrainingInterrupted,
    epoch_bar,
    finish_step_on_interrupt,
    write_epoch,
)
from mach_ext.training.steps import HiddenStep, LinearStep, LossNotFinite, Step
from mach_ext.training.validation import Validation

# Ranks agree on checkpoints and on Ctrl-C after so many steps. Between them, independent parts do not wait.
TOGETHER = 16


class TrainingRun:
    """The training of a model on its data, step after step.

    Attributes:
        part: The part of the model that this process trains, which may be all of it.
        state: The progress of the run. `resume` replaces it by that of the checkpoint.
        optimizer: The optimiser of the weights.
        schedule: The learning rates of each step.
        model_step: The step of this kind of model.
        do_step: What makes a step on a batch. Subclasses may do more than `model_step`.
        validation: The dev metrics and the order of the epochs.
        folder: Keeps the best epoch and the checkpoints, if the run has a folder.
        memory: Keeps the best epoch of a run without a folder.
        interrupted: Whether Ctrl-C came too late to stop this run. It then stops the next run.
        companion: What is trained together with the model, or None.
        chooses_tau: Whether the strength of the logit adjustment is chosen on dev in the end.
    """

    companion: Companion | None = None

    def __init__(
        self,
        model: MACH | ModelPart,
        settings: Hyperparameters,
        data: TrainingData,
        folder: Path | None = None,
        *,
        resuming: bool = False,
        show_progress: bool = False,
    ) -> None:
        """Prepare a run. All ranks that hold parts of the model do so at the same time."""
        self.part = part = model if isinstance(model, ModelPart) else ModelPart.alone(model)
        model, self.ranks = part.model, part.ranks
        self.chooses_tau = settings.tau is None and model.merge == "mean_logit" and data.dev is not None
        if settings.tau is None:
            settings = replace(settings, tau=default_tau(model, data.label_counts))
        self.model, self.settings, self.data = model, settings, data
        self.resuming, self.show_progress = resuming, show_progress
        self.device = model.bucket_bias.device
        self.state = Progress()
        self._offsets: dict[float, Tensor] = {}  # the logit adjustment by tau, the same after each epoch
        self.interrupted = False
        self.steps_an_epoch = math.ceil(data.num_documents / settings.batch_size)
        length = typical_length(sparse_features(model, data.X))
        model.scale_for_training(data.X, settings.dense_length * length)
        self.optimizer = make_optimizer(part, settings, length)
        self.schedule = Schedule(self.optimizer, settings, settings.epochs * self.steps_an_epoch)
        step: Step
        if model.is_linear:
            step = LinearStep(part, self.optimizer, settings)
        else:
            max_documents = min(settings.batch_size, data.num_documents)
            step = HiddenStep(part, self.optimizer, settings, max_documents)
        self.model_step = step
        self.do_step: Callable[[Batch, Dropout], float] = step
        self.validation = Validation(data, settings.metric, settings.patience)
        self.memory = BestInMemory(model, self.companion)
        self.folder: RunFolder | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            identity = self.identity(length)
            check_agreement("fit", self.ranks, identity["data"])
            self.folder = RunFolder(folder, part, self.optimizer, identity, self.companion)
            if not resuming and self.ranks.is_first:
                self.folder.delete_parts()

    def identity(self, length: float) -> dict[str, Any]:
        """Return what identifies the run, whose documents have this typical length."""
        return {
            "hyperparameters": asdict(self.settings),
            "model": self.part.configuration(),
            "hash": self.part.fingerprint,
            "length": length,
            "data": self.data.fingerprint(),
        }

    def train(self, checkpoint_seconds: float) -> None:
        """Train from the current progress to the end."""
        state, epochs = self.state, self.settings.epochs
        if state.epoch < epochs:
            self.model.set_logit_adjustment(0)
        advice = "lower batch_size, num_buckets or hidden_size"
        if self.model.is_linear:
            advice = "lower repetitions_at_a_time, batch_size or num_buckets"
        with (
            finish_step_on_interrupt() as interrupted,
            keep_generators(self.device),
            memory_advice("fit", advice, self.model),
        ):
            if not self.resuming:  # This replaces the checkpoint of a former run in the folder.
                self.checkpoint()
            last_checkpoint = time.monotonic()
            while state.epoch < epochs and not self.validation.patience_is_out(state):
                self.model.train()
                started, seconds_before = time.monotonic(), state.seconds
                with epoch_bar(state, epochs, self.data.num_documents, self.show_progress) as bar:
                    for batch in self.batches():
                        self.step(batch)
                        state.seconds = seconds_before + time.monotonic() - started
                        bar.update(len(batch.rows))
                        bar.set_postfix(loss=f"{state.loss_sum / state.documents:.4f}", refresh=False)
                        if state.batch % TOGETHER and not self.part.is_alone:
                            continue
                        is_due = time.monotonic() - last_checkpoint > checkpoint_seconds
                        stops, saves = self.ranks.any(interrupted.is_set(), is_due)
                        if stops:
                            self._stop()
                        if self.folder and saves:
                            self.checkpoint()
                            last_checkpoint = time.monotonic()
                self.finish_epoch()
                self.checkpoint()
                last_checkpoint = time.monotonic()
                if self.ranks.any(interrupted.is_set())[0] and state.epoch < epochs:
                    self._stop()
            self.interrupted = interrupted.is_set()  # The run is over, but a following run has to stop.
        self.finish()

    def batches(self) -> Iterator[Batch]:
        """Yield the remaining batches of the current epoch."""
        batches = iter_batches(
            self.data.X,
            self.data.Y,
            self.settings.batch_size,
            seed=self.settings.seed,
            epoch=self.state.epoch,
            start=self.state.batch,
        )
        return iter_on_device(batches, self.device)

    def step(self, batch: Batch) -> None:
        """Make a step on the next batch."""
        state = self.state
        step = state.epoch * self.steps_an_epoch + state.batch
        self.schedule.set_rates(step)
        try:
            with own_precision(self.device), product_precision(self.settings.precision):
                dropout = self.part.dropout(step_dropout(self.device, self.settings.seed, step))
                loss = self.do_step(batch, dropout)
        except LossNotFinite as error:
            raise FloatingPointError(
                f"fit: {error} in epoch {state.epoch + 1}, step {state.batch + 1}; "
                "try a smaller learning_rate"
            ) from None
        state.add_step(loss, len(batch.rows))

    def finish_epoch(self) -> None:
        """Add the epoch to the history, and keep the model if it is the best so far."""
        state, dev = self.state, self.data.dev
        loss = self.part.whole_loss(state.loss_sum) / state.documents
        entry: dict[str, Any] = {"epoch": state.epoch + 1, "loss": loss}
        with self._adjusted() if dev is not None or self.folder is not None else contextlib.nullcontext():
            if dev is not None:
                # From the first rank, so that processors that round differently agree on the best epoch.
                entry["dev"] = self.ranks.broadcast(self.validation.metrics(self.part.predictor))
            state.end_epoch(entry)
            if self.validation.note_best(state):
                if self.folder is not None:
                    self.folder.keep_model()
                elif dev is not None:
                    self.memory.keep_model()
        if self.show_progress:
            write_epoch(state)

    @contextlib.contextmanager
    def _adjusted(self) -> Iterator[None]:
        """Give the model its logit adjustment for a block. Training then continues with the same bits."""
        trained = self.model.bucket_bias.detach().clone()
        self.adjust(self.usual_tau)
        yield
        self._restore(trained, torch.zeros_like(self.model.logit_adjustment))

    def finish(self) -> None:
        """Load the best epoch's weights into the model, and shrink the checkpoint to the run's record."""
        if self.folder is not None:
            if self.state.best_epoch is None:  # There was no epoch, so the model is kept as it came.
                self.folder.keep_model()
            self.folder.load_model()
            if self.choose_tau():
                self.folder.accept_any_model()  # A kill may come before or after the model is replaced.
                self.folder.keep_model()
            self.folder.write_end(self.state)
        elif self.memory.weights is not None:
            self.memory.load_model()
            self.choose_tau()
        elif self.state.epoch:
            self.adjust(self.usual_tau)
        self.model.eval()

    def choose_tau(self) -> bool:
        """Give the model the logit adjustment that is best on dev. Return whether this changes the model."""
        if not (self.chooses_tau and self.state.history):
            return False
        former = (self.model.bucket_bias.detach().clone(), self.model.logit_adjustment.clone())

        def adjust(tau: float) -> None:
            self._restore(*former)
            self.adjust(tau)

        tau = choose_tau(self.part.predictor, adjust, *self.validation.documents(), self.usual_tau)
        tau = self.ranks.broadcast(tau)
        self.state.history[-1]["tau"] = tau
        adjust(tau)
        if torch.equal(self.model.logit_adjustment, former[1]):
            self._restore(*former)  # Rounding would change the last bits.
            return False
        return True

    @property
    def usual_tau(self) -> float:
        """The strength of the adjustment while the model is trained."""
        assert self.settings.tau is not None
        return self.settings.tau

    def adjust(self, tau: float) -> None:
        """Give the model the logit adjustment of a tau."""
        if tau not in self._offsets:
            self._offsets[tau] = self.part.logit_offsets(self.data.label_counts, tau)
        self.model.set_logit_adjustment(self._offsets[tau])

    @torch.no_grad()
    def _restore(self, bias: Tensor, adjustment: Tensor) -> None:
        """Put back the bucket biases and their adjustment, to the bit."""
        self.model.bucket_bias.copy_(bias)
        self.model.logit_adjustment.copy_(adjustment)

    def checkpoint(self) -> None:
        """Write a checkpoint if there is a folder."""
        if self.folder is not None:
            self.folder.write_checkpoint(self.state)

    def resume(self) -> None:
        """Continue from the checkpoint in the folder if there is one."""
        assert self.folder is not None
        record = self.folder.read_record()
        found = None if record is None else record.get("sha256")
        check_agreement("fit", self.ranks, {f"the checkpoint in {self.folder.folder}": found})
        if record is None:
            return
        state = Progress(**record["progress"])
        if record["tensors"] is not None:
            has_dev = self.data.dev is not None
            check_progress(self.folder.file, state, self.settings, self.steps_an_epoch, has_dev)
            self.folder.load_tensors(record)
            state.loss_sum = self.part.part_of_loss(state.loss_sum)
        elif self.ranks.is_first:  # The run had ended, and train() loads the best epoch.
            self.folder.delete_parts()  # A kill may have left folders of parts.
        self.state = state

    def _stop(self) -> None:
        if self.folder is None:
            raise TrainingInterrupted("training stopped after a whole step; nothing saved (no output folder)")
        self.checkpoint()
        raise TrainingInterrupted(
            f"training stopped; {self.folder.folder} holds a checkpoint after epoch {self.state.epoch}, "
            f"step {self.state.batch}: continue with resume=True (--resume)"
        )
