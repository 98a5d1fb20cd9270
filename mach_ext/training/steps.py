"""A step of training, for linear MACH and for MACH with hidden layers."""

from __future__ import annotations

import functools
import math
from typing import Protocol

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext.data import Batch
from mach_ext.functional._repetitions import bucket_bce_by_repetition, of_repetition
from mach_ext.nn import MACH, Dropout
from mach_ext.training.hyperparameters import Hyperparameters
from mach_ext.training.optimizer import RowOptimizer
from mach_ext.training.precision import RowsCopy, add_product, product_dtype, round_rows

# bucket_backward is faster than the dense products if at most this share of the entries is kept. The measured
# break-even at N=256, H=512, B=1000 is 0.4 with AVX-512 and 0.25 with AVX2.
WORTH_SKIPPING = 0.25


class LossNotFinite(ArithmeticError):
    """The loss of a step is NaN or infinite. `TrainingRun` adds the number of the step."""

    def __init__(self, loss: float) -> None:
        super().__init__(f"the loss became {loss}")
        self.loss = loss


class Step(Protocol):
    """A step on a batch, which returns the mean loss of its documents."""

    def __call__(self, batch: Batch, dropout: Dropout) -> float:
        """Make the step."""


class LinearStep:
    """A step of linear MACH, one repetition at a time.

    The logits [N, B] are replaced by their own gradient. Each row of the weight that occurs is stepped as
    soon as its gradient is known. The gradient of the whole weight is therefore never held. Up to rounding,
    the result is that of `loss.backward()` and `optimizer.step()`.

    Attributes:
        share: The part of all repetitions that the model has. The loss averages over all repetitions.
    """

    def __init__(
        self,
        model: MACH,
        optimizer: RowOptimizer,
        settings: Hyperparameters,
        share: float = 1.0,
    ) -> None:
        self.model, self.optimizer, self.share = model, optimizer, share
        self.rows = RowsCopy(product_dtype(model.bucket_bias.dtype, settings.precision))

    @torch.no_grad()
    def __call__(self, batch: Batch, dropout: Dropout) -> float:
        """Make the step, and return the mean loss of the documents."""
        model, optimizer = self.model, self.optimizer
        weight, bias, buckets = model.bucket_weight, model.bucket_bias, model.hash.buckets
        N, R = len(batch.indptr) - 1, model.num_repetitions
        values, order = _documents(model, batch, dropout)
        documents, labels = (values, batch.indices, batch.indptr), _labels(batch)
        total: float | Tensor = 0.0
        optimizer.begin_step()
        rounded = self.rows.of(weight)

        def logits(r: int) -> Tensor:  # [N, B]
            at = slice(r, r + 1)
            return _ops.sparse_linear(*documents, rounded[at], bias[at], False, order)[:, 0]

        for r, gradient, losses in bucket_bce_by_repetition(
            logits, buckets, *labels, self.share / R / N, True
        ):
            total = _add_loss(total, losses)
            if weight.requires_grad:
                optimizer.step_sparse_linear(weight, r, gradient.unsqueeze(1), values, order)
                round_rows(weight[r], rounded[r], order)
            if bias.requires_grad:
                optimizer.step_rows(bias, r, gradient.sum(0))
        return _finite(float(total)) / (N * R)


class HiddenStep:
    """A step of MACH with hidden layers.

    Autograd is used only between the encoder's rows and the bucket classifiers, for dropout and a second
    layer. The logits [N, B] of a classifier are replaced by their own gradient. Its weight is stepped as soon
    as its gradient is known, in memory [H, B] that all R share. Up to rounding, the result is that of
    `loss.backward()` and `optimizer.step()`.

    Attributes:
        max_documents: The largest number of documents in a batch.
    """

    def __init__(
        self,
        model: MACH,
        optimizer: RowOptimizer,
        settings: Hyperparameters,
        max_documents: int,
    ) -> None:
        self.model, self.optimizer, self.max_documents = model, optimizer, max_documents
        self.gradient_threshold = settings.gradient_threshold
        self.product_dtype = product_dtype(model.bucket_bias.dtype, settings.precision)
        self.rows = RowsCopy(self.product_dtype)

    # The arrays [N, B] and [H, B] of a repetition are kept from step to step. New memory would cause page
    # faults in every step.

    @functools.cached_property
    def _logits(self) -> Tensor:
        bias = self.model.bucket_bias
        return bias.new_empty(self.max_documents, bias.shape[1])

    @functools.cached_property
    def _grad_weight(self) -> Tensor:
        return self.model.bucket_weight.new_empty(self.model.bucket_weight.shape[1:])

    def __call__(self, batch: Batch, dropout: Dropout) -> float:
        """Make the step, and return the mean loss of the documents."""
        model, optimizer = self.model, self.optimizer
        values, order = _documents(model, batch, dropout)
        with torch.no_grad():
            rounded = self.rows.of(model.encoder_weight)
            documents = (values, batch.indices, batch.indptr)
            first = _ops.sparse_linear(*documents, rounded, model.encoder_bias, True, order)
        first.requires_grad_()
        encoded = model.encode_hidden(first, dropout=dropout)
        optimizer.zero_grad()
        optimizer.begin_step()
        total, grad_hidden = self._step_classifiers(encoded.detach(), _labels(batch))
        encoded.backward(grad_hidden)
        assert first.grad is not None
        with torch.no_grad():
            grad_first = torch.where(first > 0, first.grad, 0)
            self._step_encoder(grad_first, values, order, rounded)
        return _finite(float(total)) / (len(first) * model.num_repetitions)

    @torch.no_grad()
    def _step_classifiers(
        self,
        hidden: Tensor,  # [N, H] or [N, R, H]
        labels: tuple[Tensor, Tensor],
    ) -> tuple[float | Tensor, Tensor]:
        """Step the bucket classifiers. Return the sum of the losses and the gradient to `hidden`."""
        model, optimizer = self.model, self.optimizer
        weight, bias, buckets = model.bucket_weight, model.bucket_bias, model.hash.buckets
        N, R = len(hidden), model.num_repetitions
        grad_hidden, grad_weight = torch.zeros_like(hidden), self._grad_weight
        factor, classifier = hidden.to(self.product_dtype), weight[0]
        total: float | Tensor = 0.0

        def logits(r: int) -> Tensor:  # [N, B]
            nonlocal classifier
            classifier = weight[r].to(self.product_dtype)
            add_product(bias[r], of_repetition(factor, r), classifier, self._logits[:N])
            return self._logits[:N]

        for r, gradient, losses in bucket_bce_by_repetition(logits, buckets, *labels, 1 / R / N, True):
            total = _add_loss(total, losses)
            outputs = of_repetition(grad_hidden, r), grad_weight
            self._classifier_backward(gradient, of_repetition(factor, r), classifier, *outputs)
            if weight.requires_grad:
                optimizer.step_rows(weight, r, grad_weight)
            if bias.requires_grad:
                optimizer.step_rows(bias, r, gradient.sum(0))
        return total, grad_hidden

    def _step_encoder(
        self, grad_first: Tensor, values: Tensor, order: _ops.FeatureOrder, rounded: Tensor
    ) -> None:
        """Step the encoder by the gradient to its pre-activations, and a second layer by its own gradient."""
        model, optimizer = self.model, self.optimizer
        if model.encoder_weight.requires_grad:
            optimizer.step_sparse_linear(model.encoder_weight, None, grad_first.unsqueeze(1), values, order)
            round_rows(model.encoder_weight, rounded, order)
        if model.encoder_bias.requires_grad:
            optimizer.step_rows(model.encoder_bias, slice(None), grad_first.sum(0))
        for parameter in (model.hidden_weight, model.hidden_bias) if len(model.hidden_sizes) == 2 else ():
            if parameter.grad is not None:
                optimizer.step_rows(parameter, slice(None), parameter.grad)

    def _classifier_backward(
        self,
        gradient: Tensor,  # [N, B] to the logits
        hidden: Tensor,  # [N, H]
        weight: Tensor,  # [H, B]
        grad_hidden: Tensor,  # [N, H], added to
        grad_weight: Tensor,  # [H, B], overwritten
    ) -> None:
        """Compute a repetition's gradients, by BLAS or without negligible entries, whichever is faster."""
        N, B = gradient.shape
        if self.gradient_threshold > 0:
            negligible = self.gradient_threshold / self.model.num_repetitions / N
            max_kept = int(WORTH_SKIPPING * N * B)
            outputs = (grad_hidden, grad_weight)
            exact = hidden.to(gradient.dtype), weight.to(gradient.dtype)
            if _ops.bucket_backward(gradient, *exact, negligible, max_kept, *outputs) <= max_kept:
                return
        gradient = gradient.to(self.product_dtype)
        add_product(grad_hidden, gradient, weight.T, grad_hidden)
        add_product(None, hidden.T, gradient, grad_weight)


def _documents(model: MACH, batch: Batch, dropout: Dropout) -> tuple[Tensor, _ops.FeatureOrder]:
    """Return the values of a batch after dropout, in the dtype of the weights, and its feature order."""
    values = batch.values.to(model.bucket_bias.dtype)  # documents are float32
    order = _ops.feature_order(batch.indices, batch.indptr, model.num_features)
    return model.drop_features(values, dropout=dropout), order


def _labels(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.label_indices.long(), batch.label_indptr


def _add_loss(total: float | Tensor, loss: Tensor) -> float | Tensor:
    """Add a repetition's loss [N] to the total.

    On the CPU the loss is checked before anything is stepped by it. On a GPU this check would wait for each
    repetition. The total therefore stays there, and is checked when the step is over.
    """
    repetition = loss.sum()
    return total + (repetition if repetition.is_cuda else _finite(repetition.item()))


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise LossNotFinite(loss)
    return loss
