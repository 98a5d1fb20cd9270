"""A step of training, for linear MACH and for MACH with hidden layers."""

from __future__ import annotations

import functools
import math
from typing import Protocol

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext.data import Batch
from mach_ext.distributed.part import ModelPart
from mach_ext.functional._bucket_forward import takes_fused
from mach_ext.functional._products import (
    Group,
    Targets,
    bce_of_group,
    fused_bce_of_group,
    group_of,
)
from mach_ext.functional._repetitions import group_size, groups, of_group
from mach_ext.nn import MACH, Dropout
from mach_ext.training.dense_rows import DenseRows
from mach_ext.training.hyperparameters import Hyperparameters
from mach_ext.training.optimizer import RowOptimizer
from mach_ext.training.precision import RowsCopy, product_dtype, round_rows

# bucket_backward is faster than the dense products if at most this share of the entries is kept. The measured
# break-even at N=256, H=512, B=1000 is 0.4 with AVX-512 and 0.25 with AVX2.
WORTH_SKIPPING = 0.25


class LossNotFinite(ArithmeticError):
    """The loss of a step is NaN or infinite. `TrainingRun` adds the number of the step."""

    def __init__(self, loss: float) -> None:
        super().__init__(f"the loss became {loss}")
        self.loss = loss


class LossSum:
    """The sum of the losses of a step, over documents and groups of repetitions.

    On the CPU each group's loss is checked before anything is stepped by it. On a GPU this check would wait
    for each group. The losses therefore stay there, and their sum is checked when the step is over.
    """

    def __init__(self, device: torch.device) -> None:
        self.total, self.waits = 0.0, device.type != "cpu"
        self.waiting: list[Tensor] = []  # [N] of each group, on a GPU

    def add(self, losses: Tensor) -> None:  # [N]
        """Add the losses of a group."""
        if self.waits:
            self.waiting.append(losses)
        else:
            self.total += _finite(losses.sum().item())

    def mean(self, count: int) -> float:
        """Return the sum divided by `count`."""
        if self.waiting:
            self.total += float(torch.stack(self.waiting).sum())
            self.waiting = []
        return _finite(self.total) / count


class Step(Protocol):
    """A step on a batch, which returns the mean loss of its documents."""

    dense_rows: DenseRows

    def __call__(self, batch: Batch, dropout: Dropout) -> float:
        """Make the step."""


class LinearStep:
    """A step of linear MACH, a group of repetitions at a time.

    The logits [N, G, B] are replaced by their own gradient. Each row of the weight that occurs is stepped as
    soon as its gradient is known. The gradient of the whole weight is therefore never held. Up to rounding,
    the result is that of `loss.backward()` and `optimizer.step()`.

    Attributes:
        part: The part of a model that is trained. The loss averages over the repetitions of the whole.
    """

    def __init__(self, part: ModelPart, optimizer: RowOptimizer, settings: Hyperparameters) -> None:
        self.part, self.model, self.optimizer = part, part.model, optimizer
        model = part.model
        self.dense_rows = DenseRows(model, optimizer)
        self.rows = RowsCopy(product_dtype(model.bucket_bias.dtype, settings.precision))

    @torch.no_grad()
    def __call__(self, batch: Batch, dropout: Dropout) -> float:
        """Make the step, and return the mean loss of the documents."""
        model, optimizer = self.model, self.optimizer
        weight, bias, buckets = model.bucket_weight, model.bucket_bias, model.hash.buckets
        N, R = len(batch.indptr) - 1, model.num_repetitions
        values, order = _documents(model, batch, dropout)
        dense = self.dense_rows.features(batch, dropout)
        documents, labels = (values, batch.indices, batch.indptr), _labels(batch)
        total = LossSum(bias.device)
        optimizer.begin_step()
        rounded = self.rows.of(weight)
        grad_bias, scale = torch.empty_like(bias), 1 / self.part.num_repetitions / N
        for at in groups(R, group_size(N, bias.shape[1], bias.element_size(), bias.device)):
            gradient = _ops.sparse_linear(*documents, rounded[at], bias[at], False, order)  # [N, G, B]
            if dense is not None:
                for g, r in enumerate(range(R)[at]):
                    self.dense_rows.add(gradient[:, g], dense, rounded[r])
            total.add(_ops.bucket_bce(gradient, None, buckets[at], *labels, scale, None, grad_bias[at]))
            if weight.requires_grad:
                optimizer.step_sparse_linear(weight, at, gradient, values, order)
                round_rows(weight[at], rounded[at], order)
            if dense is not None:
                for g, r in enumerate(range(R)[at]):
                    self.dense_rows.step(r, dense, gradient[:, g], rounded)
        if bias.requires_grad:
            optimizer.step_rows(bias, slice(None), grad_bias)
        return total.mean(N * R)


class HiddenStep:
    """A step of MACH with hidden layers.

    Autograd is used only between the encoder's rows and the bucket classifiers, for dropout and a second
    layer. The classifiers are taken in groups of repetitions. The gradient replaces a group's logits
    [N, G, B], or it is written beside them in bfloat16. The group's weight is stepped as soon as its gradient
    is known, in memory [G, H, B] that all groups share. Up to rounding, the result is that of
    `loss.backward()` and `optimizer.step()`.

    Of a shared encoder, each process has some units. They are gathered for the classifiers, and the gradients
    that the classifiers of each process give them are summed.

    Attributes:
        part: The part of a model that is trained. The loss averages over the repetitions of the whole.
        max_documents: The largest number of documents in a batch.
    """

    def __init__(
        self, part: ModelPart, optimizer: RowOptimizer, settings: Hyperparameters, max_documents: int
    ) -> None:
        self.part, self.model, self.optimizer, self.max_documents = part, part.model, optimizer, max_documents
        model = part.model
        self.dense_rows = DenseRows(model, optimizer)
        self.gradient_threshold = settings.gradient_threshold
        self.product_dtype = product_dtype(model.bucket_bias.dtype, settings.precision)
        self.rows = RowsCopy(self.product_dtype)

    @functools.cached_property
    def is_fused(self) -> bool:
        """Whether one kernel makes the gradient of a group, so that its logits have no memory."""
        return self.gradient_threshold == 0 and takes_fused(self.model.bucket_weight, self.product_dtype)

    @functools.cached_property
    def group_size(self) -> int:
        """The number of repetitions in a group, the same for every batch."""
        if self.gradient_threshold > 0:  # bucket_backward takes one.
            return 1
        bias = self.model.bucket_bias
        element_size = self.product_dtype.itemsize if self.is_fused else bias.element_size()
        size = group_size(self.max_documents, bias.shape[1], element_size, bias.device)
        return min(size, self.model.num_repetitions)

    # The arrays [N, G, B] and [G, H, B] of a group are kept from step to step. New memory would cause page
    # faults in every step.

    @functools.cached_property
    def _logits(self) -> Tensor:
        bias = self.model.bucket_bias
        return bias.new_empty(self.max_documents * self.group_size * bias.shape[1])

    @functools.cached_property
    def _narrow_gradient(self) -> Tensor | None:
        """Memory of the gradient in the precision of the products, unless it replaces the logits."""
        if self.product_dtype == self._logits.dtype or self.gradient_threshold > 0:
            return None
        return torch.empty_like(self._logits, dtype=self.product_dtype)

    @functools.cached_property
    def _grad_weight(self) -> Tensor:
        return torch.empty_like(self.model.bucket_weight[: self.group_size])

    def __call__(self, batch: Batch, dropout: Dropout) -> float:
        """Make the step, and return the mean loss of the documents."""
        model, optimizer = self.model, self.optimizer
        values, order = _documents(model, batch, dropout)
        dense = self.dense_rows.features(batch, dropout)
        with torch.no_grad():
            rounded = self.rows.of(model.encoder_weight)
            documents = (values, batch.indices, batch.indptr)
            first = _ops.sparse_linear(*documents, rounded, model.encoder_bias, dense is None, order)
            if dense is not None:
                self.dense_rows.add(first, dense, rounded)
                first.relu_()
        units = self.part.gather_units(first).requires_grad_()
        encoded = model.encode_hidden(units, dropout=dropout)
        optimizer.zero_grad()
        optimizer.begin_step()
        total, grad_hidden = self._step_classifiers(encoded.detach(), _labels(batch))
        encoded.backward(self.part.sum_of_parts(grad_hidden))
        assert units.grad is not None
        with torch.no_grad():
            grad_first = torch.where(first > 0, self.part.own_units(units.grad), 0)
            self._step_encoder(grad_first, values, order, rounded)
            if dense is not None:
                self.dense_rows.step(None, dense, grad_first, rounded)
        return total.mean(len(first) * model.num_repetitions)

    @torch.no_grad()
    def _step_classifiers(
        self,
        hidden: Tensor,  # [N, H] or [N, R, H]
        labels: tuple[Tensor, Tensor],
    ) -> tuple[LossSum, Tensor]:
        """Step the bucket classifiers. Return the sum of the losses and the gradient to `hidden`."""
        model, optimizer = self.model, self.optimizer
        weight, bias = model.bucket_weight, model.bucket_bias
        N, R = len(hidden), model.num_repetitions
        factor = hidden.to(self.product_dtype)
        grad_hidden, grad_bias = torch.zeros_like(hidden), torch.empty_like(bias)
        scale = 1 / self.part.num_repetitions / N
        total, targets = LossSum(bias.device), Targets(model.hash.buckets, *labels, scale)
        for at in groups(R, self.group_size):
            group = group_of(factor, weight, at, self.product_dtype)
            gradient, losses = self._gradient(group, bias[at], targets, at, grad_bias[at])
            total.add(losses)
            grad_weight = self._grad_weight[: len(group.weight)]
            self._classifier_backward(group, gradient, of_group(grad_hidden, at), grad_weight)
            if weight.requires_grad:
                optimizer.step_rows(weight, at, grad_weight)
        if bias.requires_grad:
            optimizer.step_rows(bias, slice(None), grad_bias)
        return total, grad_hidden

    def _gradient(
        self,
        group: Group,
        bias: Tensor,  # [G, B]
        targets: Targets,
        at: slice,
        grad_bias: Tensor,  # [G, B], overwritten
    ) -> tuple[Tensor, Tensor]:  # gradient to the logits [N, G, B], losses [N]
        """Compute a group's gradient to its logits, and the loss of each document."""
        if self.is_fused:
            return fused_bce_of_group(group, bias, targets, at, grad_bias)
        logits, narrow = group.new_logits(bias.dtype, self._logits), None
        if self._narrow_gradient is not None:
            narrow = group.new_logits(self.product_dtype, self._narrow_gradient)
        return bce_of_group(group, bias, targets, at, logits, narrow, grad_bias)

    def _step_encoder(
        self, grad_first: Tensor, values: Tensor, order: _ops.FeatureOrder, rounded: Tensor
    ) -> None:
        """Step the encoder by the gradient to its pre-activations, and a second layer by its own gradient."""
        model, optimizer = self.model, self.optimizer
        if model.encoder_weight.requires_grad:
            optimizer.step_sparse_linear(model.encoder_weight, None, grad_first.unsqueeze(1), values, order)
            round_rows(model.encoder_weight, rounded, order)
        if model.encoder_bias.requires_grad:
            optimizer.step_rows(model.encoder_bias, slice(None), self._sum_of_documents(grad_first))
        for parameter in (model.hidden_weight, model.hidden_bias) if len(model.hidden_sizes) == 2 else ():
            if parameter.grad is not None:
                optimizer.step_rows(parameter, slice(None), parameter.grad)

    def _sum_of_documents(self, gradient: Tensor) -> Tensor:  # [N, M] -> [M]
        """Return the gradient to the encoder's bias, with bits that do not depend on other repetitions.

        PyTorch adds up the rows of a matrix in an order that depends on the number of its columns. It adds up
        each row for itself, so the documents of a unit are put into a row.
        """
        return gradient.sum(0) if self.model.encoder == "shared" else gradient.T.contiguous().sum(1)

    def _classifier_backward(
        self,
        group: Group,
        gradient: Tensor,  # [N, G, B] to the logits
        grad_hidden: Tensor,  # [N, H] or [N, G, H], added to
        grad_weight: Tensor,  # [G, H, B], overwritten
    ) -> None:
        """Compute a group's gradients, by BLAS or without negligible entries, whichever is faster."""
        if self.gradient_threshold > 0:
            N, _, B = gradient.shape
            negligible = self.gradient_threshold / self.part.num_repetitions / N
            max_kept = int(WORTH_SKIPPING * N * B)
            exact = group.hidden.to(gradient.dtype), group.weight[0].to(gradient.dtype)
            if grad_hidden.dim() == 3:
                grad_hidden = grad_hidden[:, 0]
            outputs = (grad_hidden, grad_weight[0])
            if _ops.bucket_backward(gradient[:, 0], *exact, negligible, max_kept, *outputs) <= max_kept:
                return
            gradient = gradient.to(self.product_dtype)
        group.add_grad_hidden(gradient, grad_hidden)
        group.write_grad_weight(gradient, grad_weight)


def _documents(model: MACH, batch: Batch, dropout: Dropout) -> tuple[Tensor, _ops.FeatureOrder]:
    """Return the values of a batch after dropout, in the dtype of the weights, and its feature order."""
    values = batch.values.to(model.bucket_bias.dtype)  # documents are float32
    order = _ops.feature_order(batch.indices, batch.indptr, model.num_columns)
    return model.drop_features(values, dropout=dropout), order


def _labels(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.label_indices.long(), batch.label_indptr


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise LossNotFinite(loss)
    return loss
