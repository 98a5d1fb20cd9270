"""The training loop: `fit`, with validation, the best epoch kept, checkpoints that a kill can't spoil.

A run is a function of (data, hyper-parameters, thread count): batches and dropout of step t follow from the
seed and t alone, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext import _ops, metrics, optim
from mach_ext._memory import check_room, memory_advice, memory_errors
from mach_ext._model_folder import (
    Header,
    read_model_record,
    read_tensors,
    safetensors_dtype,
    save_tensors,
    tensors_digest,
)
from mach_ext._progress import tqdm
from mach_ext.data import Batch, check_labels, iter_batches, iter_on_device, write_json
from mach_ext.data.files import delete_file
from mach_ext.data.records import ANY, parse_record, sealed
from mach_ext.hashing import LabelHash, collisions_known
from mach_ext.nn import MACH, Dropout, check_finite, load
from mach_ext.training.checkpoint import (
    CHECKPOINT,
    CHECKPOINT_FORMAT,
    Progress,
    delete_part,
    exclusive,
    forget,
    part_folders,
    read_checkpoint,
    tensor_files,
)
from mach_ext.training.defaults import suggested_tau
from mach_ext.training.documents import checked_data, checksum, typical_length
from mach_ext.training.evaluation import evaluate_model
from mach_ext.training.hyperparameters import METRICS, Hyperparameters
from mach_ext.training.memory import ROUNDED_TOGETHER, repetitions_together

# bucket_backward is faster than the dense products where at most so many of the entries are kept (measured
# break-even at N=256, H=512, B=1000: 0.4 with AVX-512, 0.25 with AVX2).
_WORTH_SKIPPING = 0.25


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in `fit`. The step in progress was finished; the message says what was saved."""


@memory_errors("lower batch_size, num_buckets or hidden_size")
def fit(
    model: MACH,
    X: Any,
    Y: Any,
    X_dev: Any = None,
    Y_dev: Any = None,
    *,
    filtered_dev: Any = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
    repetitions_at_a_time: int | None = None,
    progress: bool = True,
    **hyperparameters: Any,
) -> Progress:
    """Trains a model in place; with dev data it ends with the weights of its best epoch, in eval mode.

    Args:
        model: Linear or hidden-layer MACH, float32 or float64.
        X, Y: Documents [N, D] and labels [N, L], SciPy sparse. Checked in full, once.
        X_dev, Y_dev: Validation data; both or neither.
        filtered_dev: [N_dev, L], SciPy sparse, non-zero where a label is no answer of a validation document.
        output: Folder for checkpoints and the best model, in place of what a former run left there. None
            keeps everything in memory.
        resume: Go on from the checkpoint in `output`; without one there, start. The hyper-parameters, the
            model's shape and the sizes of the data must be those of the checkpoint.
        checkpoint_minutes: A checkpoint at least so often, besides the one after each epoch.
        repetitions_at_a_time: Linear MACH only, whose repetitions share nothing: train so many through all
            epochs, then the next ones, which keeps optimiser state for that many; dev data is
            then asked once, at the end. None: all together (with a warning where memory looks too short).
            Up to rounding the same weights as together; the same bits if R / repetitions_at_a_time is a
            power of two.
        progress: Progress bars on standard error.
        **hyperparameters: Fields of `Hyperparameters`; None means its default for this kind of model.

    Returns:
        `Progress`, whose `history` has one entry an epoch: loss (mean over documents), seconds, dev metrics.

    Raises:
        ValueError, TypeError: Bad data or hyper-parameters; a checkpoint of another run.
        FloatingPointError: The loss became NaN or infinite.
        MemoryError: Memory does not suffice; on a GPU torch.OutOfMemoryError.
        TrainingInterrupted: Ctrl-C; the state is saved in `output`.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> Y = scipy.sparse.csr_matrix(np.eye(20)[np.arange(200) % 20])
        >>> X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
        >>> model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=10, hidden_size=32)
        >>> record = mach_ext.fit(model, X, Y, epochs=30, learning_rate=0.02, batch_size=20, progress=False)
        >>> record.history[-1]["loss"] < record.history[0]["loss"] / 10
        True
    """
    settings = Hyperparameters.of(model, **hyperparameters)
    model.hash.check_contents()
    X, Y = checked_data("fit", "X", "Y", X, Y, model)
    dev = None
    if X_dev is not None or Y_dev is not None:
        if X_dev is None or Y_dev is None:
            raise ValueError("fit: X_dev and Y_dev must be given together")
        dev = checked_data("fit", "X_dev", "Y_dev", X_dev, Y_dev, model)
        if dev[0].shape[0] == 0:
            raise ValueError("fit: X_dev needs at least one document, got N=0")
        if settings.metric not in METRICS:
            raise ValueError(f"fit: metric must be one of {', '.join(METRICS)}, got {settings.metric!r}")
    if X.shape[0] == 0:
        raise ValueError("fit: needs at least one document, got N=0")
    if resume and output is None:
        raise ValueError("fit: resume needs the output folder of the run to go on with")
    together = repetitions_together(model, X, settings, repetitions_at_a_time)
    folder = None if output is None else Path(output)
    with exclusive(folder):
        run = TrainingRun(model, settings, X, Y, dev, folder, resume, progress)
        run.filtered_dev = None if filtered_dev is None else check_labels(filtered_dev, "fit: filtered_dev")
        if resume:
            run.resume()
        check_finite("fit", model)
        ended = run.state.epoch >= settings.epochs
        if together < model.num_repetitions and not ended and (run.state.epoch or run.state.batch):
            raise ValueError(
                f"fit: the checkpoint in {folder} is of all repetitions together; resume it without "
                "repetitions_at_a_time"
            )
        if together == model.num_repetitions or ended:
            run.train(checkpoint_minutes * 60)
        else:
            run.train_in_turn(together, checkpoint_minutes * 60)
    return run.state


def _some_repetitions(model: MACH, first: int, last: int) -> MACH:
    """Repetitions [first, last) of a linear model as a model of their own, on the same memory."""
    some = LabelHash.from_buckets(model.hash.buckets[first:last], model.num_buckets)
    some = some.to(model.hash.buckets.device)
    configuration = {**model.configuration(), "num_repetitions": last - first}
    with torch.device("meta"):
        part = MACH(**configuration, hash=some)
    part.bucket_weight = torch.nn.Parameter(model.bucket_weight.data[first:last])
    part.bucket_bias = torch.nn.Parameter(model.bucket_bias.data[first:last])
    part.logit_adjustment = model.logit_adjustment[first:last]
    return part


class TrainingRun:
    """One training run: its data, its optimiser, where it stands, its folder."""

    def __init__(
        self,
        model: MACH,
        settings: Hyperparameters,
        X: Any,
        Y: Any,
        dev: tuple[Any, Any] | None,
        folder: Path | None,
        resume: bool,
        progress: bool,
    ) -> None:
        self.model = model
        self.X, self.Y, self.dev = X, Y, dev
        self.filtered_dev: Any = None
        self.label_counts = metrics.label_counts(Y)
        if settings.tau is None:
            settings = replace(settings, tau=suggested_tau(model, self.label_counts))
        self.settings = settings
        self.folder, self.resuming, self.progress = folder, resume, progress
        self.device = model.bucket_bias.device
        master = model.bucket_bias.dtype
        self.product_dtype = master if settings.precision == "float32" else torch.bfloat16
        self._rounded: Tensor | None = None  # of the weight that takes the documents
        self._dropout: Dropout = True  # or the generator that draws it
        self.state = Progress()
        self.interrupted = False
        self.share = 1.0  # of all repetitions, that this run has: the loss averages over all of them
        self.best_weights: dict[str, Tensor] | None = None  # where there is no folder to keep them in
        self.saved: str | None = None  # digest of the weights in the folder, where there is one
        self.steps_an_epoch = math.ceil(X.shape[0] / settings.batch_size)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for part in () if resume else part_folders(folder):
                delete_part(part)

        named = dict(model.named_parameters())
        linear, adam = model.is_linear, settings.optimizer == "adam"
        self.length = typical_length(X)
        rows = named.pop("bucket_weight" if linear else "encoder_weight")
        rate = settings.learning_rate if linear else settings.encoder_learning_rate
        # Each repetition's loss counts 1 / R, and so does the gradient of an encoder of its own.
        copies = model.num_repetitions if model.encoder == "independent" else 1
        eps = {"eps": settings.encoder_eps / copies} if adam and not linear else {}
        groups = [
            {"params": list(named.values()), "lr": settings.learning_rate},
            {"params": [rows], "lr": rate / self.length, **eps},
        ]
        make = optim.SparseAdam if adam else optim.SparseAdagrad
        self.optimizer = make(groups[::-1] if linear else groups)  # as checkpoints number their states
        self.optimizer.param_groups[0 if linear else 1]["eps"] *= self.length
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    # ------------------------------------------------------------------------------------------- the loop

    def train(self, checkpoint_seconds: float) -> None:
        state, settings = self.state, self.settings
        if state.epoch < settings.epochs:
            self.model.set_logit_adjustment(0)
        if not self.resuming:  # from now on the folder's checkpoint is of this run, not of a former one
            self.checkpoint()
        advice = "lower batch_size, num_buckets or hidden_size"
        if self.model.is_linear:
            advice = "lower repetitions_at_a_time, batch_size or num_buckets"
        with (
            _finish_step_on_interrupt() as interrupted,
            self._generator_kept(),
            memory_advice("fit", advice, self.model),
        ):
            last_checkpoint = time.monotonic()
            while state.epoch < settings.epochs and not self._patience_is_out():
                self.model.train()
                started, seconds_before = time.monotonic(), state.seconds
                with self._bar() as bar:
                    for batch in self._batches():
                        self._step(batch)
                        state.seconds = seconds_before + time.monotonic() - started
                        bar.update(len(batch.rows))
                        bar.set_postfix(loss=f"{state.loss_sum / state.documents:.4f}", refresh=False)
                        if interrupted.is_set():
                            self._stop()
                        if self.folder and time.monotonic() - last_checkpoint > checkpoint_seconds:
                            self.checkpoint()
                            last_checkpoint = time.monotonic()
                self._finish_epoch()
                self.checkpoint()
                last_checkpoint = time.monotonic()
                if interrupted.is_set() and state.epoch < settings.epochs:
                    self._stop()
            self.interrupted = interrupted.is_set()  # too late to stop this run, not one that comes after it
        self._finish()

    def train_in_turn(self, together: int, checkpoint_seconds: float) -> None:
        """Linear MACH, `together` repetitions at a time: runs of their own, in folders of their own."""
        R = self.model.num_repetitions
        self.model.set_logit_adjustment(0)
        settings = replace(self.settings, tau=0.0)  # all of them are adjusted together
        if self.folder is not None and not self.resuming:
            forget(self.folder)
        for first in range(0, R, together):
            last = min(first + together, R)
            if self.progress:
                tqdm.write(f"repetitions {first + 1} to {last} of {R}")
            with collisions_known():  # a few repetitions alone do collide
                part = _some_repetitions(self.model, first, last)
                folder = None if self.folder is None else self.folder / f"repetitions-{first}"
                run = TrainingRun(part, settings, self.X, self.Y, None, folder, self.resuming, self.progress)
                run.share = (last - first) / R
                if self.resuming:
                    run.resume()
                run.train(checkpoint_seconds)
            if run.interrupted and last < R:
                raise TrainingInterrupted(
                    f"training stopped after {last} of {R} repetitions: --resume goes on"
                )
            self.state.seconds += run.state.seconds
            self.state.history += [{"repetitions": [first, last], **e} for e in run.state.history]
        self.model.set_logit_adjustment(self._offsets)
        self.state.epoch = self.state.best_epoch = self.settings.epochs
        if self.dev is not None:
            self.state.history.append(
                {
                    "epoch": self.state.epoch,
                    "dev": self._dev_metrics(),
                }
            )
        if self.folder is not None:
            self._save(self.folder)
            self._make_current(None, {})
            for part_folder in part_folders(self.folder):
                delete_part(part_folder)
        self.model.eval()

    def _batches(self) -> Iterator[Batch]:
        batches = iter_batches(
            self.X,
            self.Y,
            self.settings.batch_size,
            seed=self.settings.seed,
            epoch=self.state.epoch,
            start=self.state.batch,
        )
        return iter_on_device(batches, self.device)

    def _step(self, batch: Batch) -> None:
        state, settings = self.state, self.settings
        step = state.epoch * self.steps_an_epoch + state.batch
        if settings.schedule == "linear":
            left = 1 - step / (settings.epochs * self.steps_an_epoch)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * left
        # Dropout of step t depends on (seed, t) alone.
        self._seed_dropout(
            int(np.random.SeedSequence([settings.seed, step]).generate_state(1, np.uint64)[0] >> 1)
        )
        values = batch.values.to(self.model.bucket_bias.dtype)  # documents are float32
        do = self._linear_step if self.model.is_linear else self._hidden_step
        value = do(values, *batch[1:5])
        state.batch += 1
        state.loss_sum += value * len(batch.rows)
        state.documents += len(batch.rows)

    def _seed_dropout(self, seed: int) -> None:
        """On the CPU dropout has a generator of its own, so that threads that draw meanwhile change nothing.

        On a GPU PyTorch's own dropout, faster and leaner, is for the global generators alone.
        """
        self._dropout = True
        if self.device.type == "cuda":
            torch.manual_seed(seed)
        else:
            self._dropout = torch.Generator(self.device).manual_seed(seed)

    def _generator_kept(self) -> contextlib.AbstractContextManager[Any]:
        """Brings back the state of the global generators, where a run draws from them."""
        if self.device.type == "cuda":
            return torch.random.fork_rng(devices=[self.device])
        return contextlib.nullcontext()

    @torch.no_grad()
    def _linear_step(
        self, values: Tensor, indices: Tensor, indptr: Tensor, label_indices: Tensor, label_indptr: Tensor
    ) -> float:
        """A step of linear MACH, one repetition at a time; returns the loss.

        The logits [N, B] become their own gradient, and each row of the weight that occurs is stepped as soon
        as its gradient is known: no gradient of the weight is ever held. Up to rounding what
        `loss.backward(); optimizer.step()` does.
        """
        model, optimizer = self.model, self.optimizer
        weight, bias, buckets = model.bucket_weight, model.bucket_bias, model.hash.buckets
        N, R = len(indptr) - 1, model.num_repetitions
        values = model.drop_features(values, dropout=self._dropout)
        order = _ops.feature_order(indices, indptr, model.num_features)
        labels = (label_indices.long(), label_indptr)
        total: float | Tensor = 0.0
        optimizer.begin_step()
        rounded = self._rounded_rows(weight)
        for r in range(R):
            one = slice(r, r + 1)
            z = _ops.sparse_linear(values, indices, indptr, rounded[one], bias[one], False, order)
            loss = _ops.bucket_bce(z[:, 0], buckets[r], *labels, self.share / R / N, True)  # z: its gradient
            total = self._add_loss(total, loss)
            if weight.requires_grad:
                optimizer.step_sparse_linear(weight, r, z, values, order)
                self._round_rows(weight[r], rounded[r], order)
            if bias.requires_grad:
                optimizer.step_rows(bias, r, z.sum(0))
        return self._finite(float(total)) / (N * R)

    def _hidden_step(
        self, values: Tensor, indices: Tensor, indptr: Tensor, label_indices: Tensor, label_indptr: Tensor
    ) -> float:
        """A step of MACH with hidden layers; returns the loss.

        Autograd is asked only for what lies between the encoder's rows and the bucket classifiers (dropout, a
        second layer). A classifier's logits [N, B] become their own gradient, and its weight is stepped as
        soon as its gradient is known, in memory [H, B] that all R share. Up to rounding what
        `loss.backward(); optimizer.step()` does.
        """
        model, optimizer = self.model, self.optimizer
        weight, bias, buckets = model.bucket_weight, model.bucket_bias, model.hash.buckets
        N, R = len(indptr) - 1, model.num_repetitions
        values = model.drop_features(values, dropout=self._dropout)
        order = _ops.feature_order(indices, indptr, model.num_features)
        labels = (label_indices.long(), label_indptr)
        with torch.no_grad():
            rounded = self._rounded_rows(model.encoder_weight)
            first = _ops.sparse_linear(values, indices, indptr, rounded, model.encoder_bias, True, order)
        first.requires_grad_()
        encoded = model.encode_hidden(first, dropout=self._dropout)
        hidden = encoded.detach()  # [N, H] or [N, R, H]
        total: float | Tensor = 0.0
        optimizer.zero_grad()
        optimizer.begin_step()
        with torch.no_grad():
            grad_hidden, grad_weight, logits = torch.zeros_like(hidden), self._grad_weight, self._logits[:N]
            factor = hidden.to(self.product_dtype)
            for r in range(R):
                at = slice(None) if hidden.dim() == 2 else (slice(None), r)
                classifier = weight[r].to(self.product_dtype)
                self._add_product(bias[r], factor[at], classifier, logits)
                loss = _ops.bucket_bce(logits, buckets[r], *labels, 1 / R / N, True)
                total = self._add_loss(total, loss)
                # logits now holds its own gradient.
                self._classifier_backward(logits, factor[at], classifier, grad_hidden[at], grad_weight)
                if weight.requires_grad:
                    optimizer.step_rows(weight, r, grad_weight)
                if bias.requires_grad:
                    optimizer.step_rows(bias, r, logits.sum(0))
        encoded.backward(grad_hidden)
        with torch.no_grad():
            assert first.grad is not None
            grad_first = torch.where(first > 0, first.grad, 0)
            if model.encoder_weight.requires_grad:
                optimizer.step_sparse_linear(
                    model.encoder_weight, None, grad_first.unsqueeze(1), values, order
                )
                self._round_rows(model.encoder_weight, rounded, order)
            if model.encoder_bias.requires_grad:
                optimizer.step_rows(model.encoder_bias, slice(None), grad_first.sum(0))
            for parameter in (model.hidden_weight, model.hidden_bias) if len(model.hidden_sizes) == 2 else ():
                if parameter.grad is not None:
                    optimizer.step_rows(parameter, slice(None), parameter.grad)
        return self._finite(float(total)) / (N * R)

    def _classifier_backward(
        self,
        gradient: Tensor,  # [N, B] to the logits
        hidden: Tensor,  # [N, H]
        weight: Tensor,  # [H, B]
        grad_hidden: Tensor,  # [N, H], added to
        grad_weight: Tensor,  # [H, B], overwritten
    ) -> None:
        """One repetition's gradients, by BLAS or without the negligible entries, whichever is faster."""
        N, B = gradient.shape
        if self.settings.negligible_gradient > 0:
            negligible = self.settings.negligible_gradient / self.model.num_repetitions / N
            most = int(_WORTH_SKIPPING * N * B)
            outputs = (grad_hidden, grad_weight)
            exact = hidden.to(gradient.dtype), weight.to(gradient.dtype)
            if _ops.bucket_backward(gradient, *exact, negligible, most, *outputs) <= most:
                return
        gradient = gradient.to(self.product_dtype)
        self._add_product(grad_hidden, gradient, weight.T, grad_hidden)
        self._add_product(None, hidden.T, gradient, grad_weight)

    def _add_product(self, term: Tensor | None, a: Tensor, b: Tensor, out: Tensor) -> None:
        """term + a b -> out, float32 (or float64); a and b are of the run's precision."""
        if a.dtype == out.dtype:
            torch.mm(a, b, out=out) if term is None else torch.addmm(term, a, b, out=out)
            return
        if not a.is_cuda:
            check_room()  # without, oneDNN crashes
            product = torch.mm(a, b)
        elif term is out:
            product = torch.mm(a, b, out_dtype=out.dtype)
        else:  # in place. (What addmm takes with another out_dtype has changed between releases.)
            product = torch.mm(a, b, out_dtype=out.dtype, out=out)
        if term is not None:
            torch.add(term, product, out=out)
        elif product is not out:
            out.copy_(product)

    def _rounded_rows(self, weight: Tensor) -> Tensor:
        """The weight that takes the documents, in the run's precision: itself, or its copy."""
        if weight.dtype == self.product_dtype:
            return weight.detach()
        if self._rounded is None:
            self._rounded = weight.detach().to(self.product_dtype)
        return self._rounded

    def _round_rows(self, weight: Tensor, rounded: Tensor, order: _ops.FeatureOrder) -> None:
        """The rows [., M] of the copy that a step has changed."""
        if rounded.dtype != weight.dtype:
            for some in order.features.split(max(1, ROUNDED_TOGETHER // weight.shape[-1])):
                rounded[some] = weight.detach()[some].to(rounded.dtype)

    # One repetition's [N, B] and [H, B], kept from step to step: fresh memory would cost page faults.

    @functools.cached_property
    def _logits(self) -> Tensor:
        bias = self.model.bucket_bias
        return bias.new_empty(min(self.settings.batch_size, self.X.shape[0]), bias.shape[1])

    @functools.cached_property
    def _grad_weight(self) -> Tensor:
        return self.model.bucket_weight.new_empty(self.model.bucket_weight.shape[1:])

    def _add_loss(self, total: float | Tensor, loss: Tensor) -> float | Tensor:
        """`total` and a repetition's loss [N].

        On the CPU it is checked before anything is stepped by it. On a GPU that would be a wait for each
        repetition, so the total stays there, and is checked when the step is over.
        """
        repetition = loss.sum()
        return total + (repetition if repetition.is_cuda else self._finite(repetition.item()))

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"fit: the loss became {loss} in epoch {self.state.epoch + 1}, step {self.state.batch + 1}; "
                "try a smaller learning_rate"
            )
        return loss

    def _finish_epoch(self) -> None:
        state = self.state
        entry: dict[str, Any] = {"epoch": state.epoch + 1, "loss": state.loss_sum / state.documents}
        trained = self.model.bucket_bias.detach().clone()
        if self.dev is not None or self.folder is not None:
            self.model.set_logit_adjustment(self._offsets)
        if self.dev is not None:
            entry["dev"] = self._dev_metrics()
        state.epoch, state.batch, state.loss_sum, state.documents = state.epoch + 1, 0, 0.0, 0
        state.history.append(entry)
        kept = state.best_epoch
        if kept is None or self._rank(entry) > self._rank(state.history[kept - 1]):
            state.best, state.best_epoch = self._rank(entry)[0], state.epoch
            if self.folder is not None:
                self._save(self.folder)
            elif self.dev is not None:
                self.best_weights = {k: tensor.clone() for k, tensor in self.model.state_dict().items()}
        with torch.no_grad():  # training goes on without the adjustment, to the bit
            self.model.bucket_bias.copy_(trained)
            self.model.logit_adjustment.zero_()
        if self.progress:
            scores = "  ".join(f"{k} {v:.4f}" for k, v in entry.get("dev", {}).items() if k[0] == "P")
            tqdm.write(f"epoch {state.epoch}: loss {entry['loss']:.4f}  {scores}".rstrip())

    def _rank(self, entry: dict[str, Any]) -> tuple[float, float]:
        """An epoch's dev metric and, for ties, minus its loss; without dev data the last one ranks first."""
        if self.dev is None:
            return float(entry["epoch"]), 0.0
        return entry["dev"][self.settings.metric], -entry["loss"]

    def _dev_metrics(self) -> dict[str, float]:
        assert self.dev is not None
        if self.filtered_dev is None:
            return evaluate_model(self.model, *self.dev)
        return evaluate_model(self.model, *self.dev, filtered=self.filtered_dev)

    def _patience_is_out(self) -> bool:
        """Counted from the first epoch of the best metric: later ones are kept for their loss alone."""
        if self.settings.patience is None or not self.state.history:
            return False
        first = max(self.state.history, key=lambda entry: self._rank(entry)[0])["epoch"]
        return bool(self.state.epoch - first >= self.settings.patience)

    def _finish(self) -> None:
        """The best epoch's weights into the model; the checkpoint shrinks to the record of the run."""
        if self.folder is not None:
            if self.state.best_epoch is None:  # no epoch at all: the model as it came
                self._save(self.folder)
            self._check_saved(self.folder)
            with collisions_known():  # said when the model was made
                self.model.load_state_dict(load(self.folder).state_dict())
            self._make_current(None, {})
        elif self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        elif self.state.epoch:
            self.model.set_logit_adjustment(self._offsets)
        self.model.eval()

    @functools.cached_property
    def _offsets(self) -> Tensor:
        """The logit adjustment; the same after each epoch."""
        assert self.settings.tau is not None
        return self.model.logit_offsets(self.label_counts, self.settings.tau)

    def _bar(self) -> Any:
        return tqdm(
            total=self.X.shape[0],
            initial=self.state.documents,
            desc=f"epoch {self.state.epoch + 1}/{self.settings.epochs}",
            unit="doc",
            disable=not self.progress,
            leave=False,
            dynamic_ncols=True,
        )

    def _stop(self) -> None:
        if self.folder is None:
            raise TrainingInterrupted("training stopped after a whole step; nothing saved (no output folder)")
        self.checkpoint()
        raise TrainingInterrupted(
            f"training stopped; {self.folder} holds a checkpoint after epoch {self.state.epoch}, "
            f"step {self.state.batch}: go on with resume (--resume)"
        )

    # --------------------------------------------------------------------------------------- checkpoints

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What makes this run this run."""
        return {
            "hyperparameters": asdict(self.settings),
            "model": self.model.configuration(),
            "hash": self.model.hash.fingerprint(),
            "length": self.length,
            "data": {
                name: [*matrix.shape, int(matrix.nnz), checksum(matrix)]
                for name, matrix in zip(
                    ("X", "Y", "X_dev", "Y_dev"), (self.X, self.Y, *(self.dev or ())), strict=False
                )
            },
        }

    def checkpoint(self) -> None:
        """Writes weights, optimiser state and progress; until that is whole, the former one stands."""
        if self.folder is None:
            return
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        scalars: dict[str, Any] = {}
        for i, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                key = f"optimizer.{i}.{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value
                else:
                    scalars[key] = value
        # A new name each time: the JSON that names it is what makes a checkpoint current.
        tensors = {key: value.cpu() for key, value in tensors.items()}
        digest = tensors_digest(tensors)
        name = f"{CHECKPOINT}-{self.state.epoch}-{self.state.batch}-{digest[:12]}.safetensors"
        save_tensors(self.folder / name, tensors)
        self._make_current(name, scalars, digest)

    def _make_current(self, name: str | None, scalars: dict[str, Any], digest: str | None = None) -> None:
        assert self.folder is not None
        record = {
            "format": CHECKPOINT_FORMAT, **self._identity, "progress": asdict(self.state), "scalars": scalars,
            "tensors": name, "tensors_sha256": digest, "weights_sha256": self.saved,
        }  # fmt: skip
        if "run.json" in self.model.attachments:  # which the model itself keeps only from its first epoch on
            run = self.model.attachments["run.json"]
            record["run"] = parse_record(run, "fit: the attachment run.json", {"*": ANY})
        former = tensor_files(self.folder)
        write_json(self.folder / f"{CHECKPOINT}.json", sealed(record))
        for old in former - {name}:
            delete_file(self.folder / old)

    def resume(self) -> None:
        """Takes up the checkpoint in the folder, if there is one."""
        assert self.folder is not None
        file = self.folder / f"{CHECKPOINT}.json"
        if not os.path.lexists(file):
            return
        record = read_checkpoint(self.folder)
        identity = {key: record[key] for key in ("hyperparameters", "model", "hash", "data")}
        identity["length"] = record.get("length", 1.0)  # before there was one, rates did not depend on it
        # A run of before there was a hyper-parameter had its default; before encoder_eps, Adam's own;
        # before tau, none.
        fields = Hyperparameters.__dataclass_fields__.items()
        defaults = {name: field.default for name, field in fields} | {"encoder_eps": 1e-8, "tau": 0.0}
        identity["hyperparameters"] = {**defaults, **identity["hyperparameters"]}
        differences = _differences(identity, self._identity)
        if differences:
            raise ValueError(
                f"{file}: resume needs the run's own settings and data; different: {'; '.join(differences)}"
            )
        state, self.saved = Progress(**record["progress"]), record.get("weights_sha256")
        if record["tensors"] is not None:
            if "sha256" not in record:
                warnings.warn(
                    f"{file}: is of before checkpoints had digests: damage can't be told from contents",
                    stacklevel=4,
                )
            self._check_progress(file, state)
            self._take_tensors(self.folder / record["tensors"], record)
        else:  # The run had ended; train() loads the best epoch. A kill may have left repetitions in turn.
            for part in part_folders(self.folder):
                delete_part(part)
        self.state = state

    def _check_progress(self, file: Path, state: Progress) -> None:
        """Refuses what no run can have written: older checkpoints have no digest."""
        epochs = [entry["epoch"] for entry in state.history]
        keys = {"epoch", "loss"} | ({"dev"} if self.dev is not None else set())
        if (
            state.epoch > self.settings.epochs
            or state.batch > self.steps_an_epoch
            or (state.documents == 0) != (state.batch == 0)
            or len(epochs) != state.epoch
            or epochs != list(range(1, len(epochs) + 1))
            or any(not keys <= entry.keys() for entry in state.history)
            or any(self.settings.metric not in entry["dev"] for entry in state.history if "dev" in keys)
            or (state.best_epoch not in epochs if epochs else state.best_epoch is not None)
        ):
            raise ValueError(f"{file}: not a checkpoint: its progress contradicts itself")
        for entry in state.history:  # JSON has no NaN
            for name, value in entry.get("dev", {}).items():
                entry["dev"][name] = math.nan if value is None else value

    def _take_tensors(self, file: Path, record: dict[str, Any]) -> None:
        """Weights and optimiser state of a checkpoint, once its tensors are known to be those of this run."""
        expected, scalars = self._expected_tensors(), record["scalars"]

        def check(header: Header) -> None:
            kept = {name for name in expected if name in header or name.startswith("model.")}
            # The state of a parameter is there whole, or not at all: before its first step.
            owners = {name.rpartition(".")[0] for name in (*kept, *scalars) if name.startswith("optimizer.")}
            kept |= {name for name in expected if name.rpartition(".")[0] in owners}
            if header != {name: expected[name] for name in kept if expected[name] is not None}:
                raise ValueError(f"{file}: not the tensors of a checkpoint: other names, dtypes or shapes")
            if scalars.keys() != {name for name in kept if expected[name] is None}:
                names = ", ".join(sorted(scalars)) or "none"
                raise ValueError(f"{file}: not the tensors of a checkpoint: scalars of others, {names}")

        digest = record.get("tensors_sha256")
        try:
            tensors = read_tensors(file, "not the tensors of a checkpoint", check, digest)
        except FileNotFoundError:
            missing = f"a file that it names is missing: {file}: no such file"
            raise ValueError(f"{file.with_name(CHECKPOINT)}.json: {missing}") from None
        optimizer = self.optimizer.state_dict()
        for key, value in {**tensors, **scalars}.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                i, _, entry = rest.partition(".")
                optimizer["state"].setdefault(int(i), {})[entry] = value
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_parameters(weights)
        self.optimizer.load_state_dict(optimizer)

    def _expected_tensors(self) -> dict[str, tuple[str, tuple[int, ...]] | None]:
        """dtype and shape of all that a checkpoint may hold, by name; None for scalars."""
        expected: dict[str, tuple[str, tuple[int, ...]] | None] = {}
        for name, parameter in self.model.named_parameters():
            expected[f"model.{name}"] = (safetensors_dtype(parameter), tuple(parameter.shape))
        groups = self.optimizer.param_groups
        for i, parameter in enumerate(p for group in groups for p in group["params"]):
            for moment in self.optimizer._moments:
                expected[f"optimizer.{i}.{moment}"] = (safetensors_dtype(parameter), tuple(parameter.shape))
            if isinstance(self.optimizer, optim.SparseAdam):
                expected[f"optimizer.{i}.step"] = None
        return expected

    def _save(self, folder: Path) -> None:
        self.model.save(folder)
        self.saved = read_model_record(folder)["weights"]["sha256"]

    def _check_saved(self, folder: Path) -> None:
        """Refuses a model that came into the folder from elsewhere."""
        digest = read_model_record(folder)["weights"]["sha256"]
        if self.saved is not None and self.saved != digest:
            raise ValueError(
                f"{folder / 'model.json'}: must be the model of this run's best epoch, "
                f"with weights of SHA-256 {self.saved}, got {digest}"
            )


def _differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(then.keys() | now.keys()):
        a, b = then.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {a}, now {b}")
    return found


@contextlib.contextmanager
def _finish_step_on_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of tearing a step apart; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    former = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)
