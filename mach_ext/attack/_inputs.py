"""Inputs of an encoder as attacks see them: arrays of any shape in the place of a model's first layer."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext._memory import check_memory
from mach_ext._user_encoder import (
    Encoder,
    check_finite_hidden,
    check_finite_inputs,
    check_inputs,
    check_output,
    check_repeatable,
    in_eval_mode,
)
from mach_ext.attack._batch import Batch
from mach_ext.attack._layer import Layer
from mach_ext.attack._rows import rows_of
from mach_ext.attack._threat_checks import check_epsilon, negative_values
from mach_ext.attack.threats import Support, ThreatModel
from mach_ext.nn import check_scores, evaluating, predict_batch

# So many entries of inputs go through an encoder at a time, and so many inputs at most.
_ENTRIES = 1 << 20
_MOST_INPUTS = 256


class InputLayer(Layer):
    """A head behind an encoder. The inputs [N, ...] are in the place of a model's first layer.

    Attributes:
        encoder: A callable from inputs [N, ...] to hidden units [N, H], or [N, R, H].
        input_shape: The shape of an input, as soon as the attack knows it.
    """

    is_sparse = False

    def __init__(self, op: str, head: Any, encoder: Encoder) -> None:
        """Checks the head's parameters and hash tables."""
        self._check_model(op, head)
        self.op, self.encoder = op, encoder
        self.input_shape: tuple[int, ...] = ()
        self._batch_size: int | None = None

    def for_documents(self, X: Any, batch_size: int | None) -> InputLayer:
        """Returns the layer for inputs of this shape. None as batch size stands for the usual one."""
        layer = copy.copy(self)
        layer.input_shape, layer._batch_size = tuple(X.shape[1:]), batch_size
        return layer

    @property
    def batch_size(self) -> int:
        """How many inputs go through the encoder at a time."""
        usual = max(1, min(_MOST_INPUTS, _ENTRIES // max(1, math.prod(self.input_shape))))
        return usual if self._batch_size is None else self._batch_size

    def write(self, batch: Batch, result: Tensor) -> Batch:
        """Writes the values of a batch to the result, and returns the batch without its entries."""
        rows = result[batch.start : batch.start + len(batch.indptr) - 1].view(-1)
        values = batch.values.to(result.device)
        if len(values) == len(rows):
            rows.copy_(values)
        else:
            rows[self.positions(batch.indices, batch.indptr).to(result.device)] = values
        none = batch.indices[:0]
        return replace(batch, x=none, values=none, indices=none, indptr=none)

    # ------------------------------------------------------------------------------------------- documents

    def documents(self, op: str, X: Any) -> tuple[Any, Any]:
        """Returns checked inputs."""
        X = checked_inputs(op, self.model, X)
        return X, X

    def check_threat(self, op: str, X: Tensor, threat: ThreatModel, grid: list[float]) -> None:
        """Checks that the threat model fits inputs and sizes."""
        for epsilon in grid:
            check_epsilon(op, epsilon)
        if threat.nonnegative and X.numel() and (lowest := float(X.min())) < 0:
            row = X.flatten(1).amin(1).argmin()
            raise negative_values(op, threat, lowest, int(row))

    def check_memory(self, op: str, X: Tensor, threat: ThreatModel, grid: list[float]) -> None:
        """Checks the memory of the result: inputs of each size."""
        if X.device.type == "cpu":
            needed = X.element_size() * X.numel() * len(grid)
            advice = "pass fewer inputs or sizes of epsilon at a time"
            check_memory(f"{op}: perturbed inputs", needed, advice, N=len(X), sizes=len(grid))

    def check_encoder(self, X: Tensor) -> None:
        """Refuses an encoder with dropout, or one that lets an input of a batch depend on the others."""
        first = X[:2].to(self.device)
        check_repeatable(self.op, self.hidden(first)[:1], self.hidden(first[:1]))

    def tensors(self, X: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the entries that may change in CSR form, with each input as a row."""
        rows = X.to(self.device).flatten(1)
        N, size = rows.shape
        if isinstance(threat, Support):
            kept = rows != 0
            counts = torch.cat((kept.new_zeros(1, dtype=torch.int64), kept.sum(1)))
            return rows[kept], kept.nonzero()[:, 1], counts.cumsum(0)
        columns = torch.arange(size, device=self.device)
        # The copy is no tensor of inference mode, whatever X is.
        return rows.flatten().clone(), columns.repeat(N), torch.arange(N + 1, device=self.device) * size

    def ranked(self, X: Tensor, k: int) -> NDArray[np.int64]:  # [N, k]
        """Returns the top k of inputs."""
        return self.predict(self.op, X, k)[1]

    def predict(self, op: str, X: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns scores and labels of the top k of inputs."""
        N, decoded = len(X), predict_batch(self.model.num_repetitions, self.model.num_buckets)
        scores, labels = np.empty((N, k), np.float32), np.empty((N, k), np.int64)
        with self.evaluating():
            start = 0
            for last in self._last_by_batch(X):
                for part in last.split(decoded):
                    best, ids = self.decode(part, k)
                    check_scores(op, self.model, best)
                    at = slice(start, start + len(part))
                    scores[at], labels[at] = best.cpu().numpy(), ids.cpu().numpy()
                    start = at.stop
        return scores, labels

    def all_hidden(self, X: Tensor) -> Tensor:  # [N, H] or [N, R, H]
        """Returns the hidden units of inputs."""
        with self.evaluating():
            none = torch.empty(self._hidden_shape(0), dtype=self.dtype, device=self.device)
            return torch.cat([none, *self._last_by_batch(X)])

    def _last_by_batch(self, X: Tensor) -> Iterator[Tensor]:
        """Yields what `last` returns for inputs, batch by batch."""
        for start in range(0, len(X), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.of_rows(rows).last(X[rows].to(self.device))

    def decode(self, last: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns scores and labels of the top k, for what `last` returned."""
        return self.model.topk(last, k)  # type: ignore[no-any-return]

    def inputs(self, X: Any) -> Tensor:  # [N, ...]
        """Returns what the attack changes of checked documents."""
        inputs: Tensor = X
        return inputs

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switches off gradients, autocast and inference mode, and puts modules into eval mode."""
        with torch.inference_mode(False), evaluating(self.model), in_eval_mode(self.encoder, self.model):
            yield

    # -------------------------------------------------------------------------------------------- functions

    @property
    def is_linear(self) -> bool:
        """Whether the inputs are the bucket logits. They are not."""
        return False

    def positions(self, indices: Tensor, indptr: Tensor) -> Tensor:  # [nnz]
        """Returns where entries stand in the flattened inputs of a batch."""
        return rows_of(indptr) * math.prod(self.input_shape) + indices

    def first(self, x: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [N, ...]
        """Returns inputs, for the entries that are not 0."""
        shape = (len(indptr) - 1, *self.input_shape)
        if len(x) == math.prod(shape):  # All entries are there, and in order.
            return x.view(shape)
        return x.new_zeros(math.prod(shape)).index_copy(0, self.positions(indices, indptr), x).view(shape)

    def to_values(self, gradient: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [nnz]
        """Returns the gradient to entries, for the gradient to inputs."""
        flat = gradient.reshape(-1)
        return flat if len(indices) == len(flat) else flat[self.positions(indices, indptr)]

    def hidden(self, first: Tensor) -> Tensor:  # [N, H] or [N, R, H]
        """Returns the hidden units of inputs. The encoder may overwrite its argument."""
        hidden = check_output(self.op, self.model, self.encoder(first.clone()), len(first)).to(self.dtype)
        check_finite_hidden(self.op, hidden)
        return hidden

    def _hidden_shape(self, N: int) -> tuple[int, ...]:
        """Returns the shape of hidden units: (N, H) or (N, R, H)."""
        head = self.model
        return (N, head.num_repetitions, head.in_features) if head.per_repetition else (N, head.in_features)

    def _recording(self, gradient: bool) -> contextlib.AbstractContextManager[Any]:
        """Lets autograd record only what a gradient needs, and check tensors as usual.

        A gradient through an encoder that overwrites a tensor is then refused in place of being wrong.
        """
        return torch.set_grad_enabled(gradient)

    def _to_first(self, output: Tensor, leaf: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Returns the gradient to inputs. Parameters get no gradient."""
        found: Tensor | None = None
        if output.requires_grad:
            (found,) = torch.autograd.grad(output, leaf, gradient, allow_unused=True)
        if found is None:
            raise ValueError(
                f"{self.op}: encoder must be differentiable, but autograd found no way from its output to X"
            )
        if not bool(found.isfinite().all()):
            raise ValueError(f"{self.op}: encoder must have finite gradients, got NaN or infinity")
        return found


def checked_inputs(op: str, head: Any, X: Any) -> Tensor:
    """Returns checked inputs [N, ...] as a dense tensor. Its memory may be the user's."""
    inputs = check_inputs(op, head, X)
    if inputs.dtype not in (torch.float32, torch.float64):
        kind = str(inputs.dtype).removeprefix("torch.")
        raise TypeError(
            f"{op}: X must be float32 or float64 with encoder=, got {kind}; pass X.float(), and let the "
            "encoder convert it"
        )
    if inputs.dim() < 2:
        raise ValueError(f"{op}: X must be inputs [N, ...] with encoder=, got shape {list(inputs.shape)}")
    check_finite_inputs(op, inputs)
    return inputs
