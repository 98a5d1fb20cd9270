"""A model as attacks see it: its documents, its first layer, and losses as functions of its output."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import _ops
from mach_ext import functional as F
from mach_ext._dense_features import joined_documents
from mach_ext._memory import check_memory
from mach_ext._model_checks import values_dtype
from mach_ext.attack._part import without_zeros
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import Delete, Dense, Insert, ThreatModel
from mach_ext.data import HybridMatrix
from mach_ext.functional import _products
from mach_ext.functional._products import bce_of_group, group_of
from mach_ext.functional._repetitions import group_size, groups, of_group
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_parameters, evaluating, first_layer

_FIRST_LAYER = 1 << 24  # numbers of the first layer that are in memory at a time: 64 MiB of float32


class Layer:
    """A model's first layer, and losses of documents as functions of that layer's output."""

    is_sparse = True  # Documents are rows of few non-zeros, so steps on all features go through tiles.

    def __init__(self, op: str, model: MACH) -> None:
        """Checks the model's parameters and hash tables."""
        self._check_model(op, model)
        self.weight, bias = first_layer(model)  # [C, D, M]
        self.bias = bias.to(self.dtype)  # [C, M]

    def _check_model(self, op: str, model: Any) -> None:
        """Keeps a model or a head, after checks of its parameters and hash tables."""
        check_parameters(op, model)
        model.hash.check_contents()
        self.model, self.device = model, model.bucket_bias.device
        self.dtype = values_dtype(model)
        self.buckets = model.hash.buckets

    # ------------------------------------------------------------------------------------------- documents

    def documents(self, op: str, X: Any) -> tuple[Any, Any]:
        """Returns documents as the user passed them, and as checked CSR without stored zeros."""
        given, X = X, joined_documents(f"{op}: X", self.model, X)
        if not isinstance(given, HybridMatrix) and not (scipy.sparse.issparse(given) and given.ndim == 2):
            given = X
        return given, without_zeros(X, self.model.num_features)

    def check_threat(self, op: str, X: Any, threat: ThreatModel, grid: list[float]) -> None:
        """Checks that the threat model fits documents and sizes."""
        for epsilon in grid:
            threat.check(op, X, epsilon)

    def check_memory(self, op: str, X: Any, threat: ThreatModel, grid: list[float]) -> None:
        """Checks the memory of the result: documents of each size, or a gradient that moves all features."""
        N, sizes = X.shape[0], sum(epsilon > 0 for epsilon in grid)
        kept = 4 * X.nnz * sizes
        if isinstance(threat, Dense):
            kept = 4 * N * math.prod(self.shape)
        elif isinstance(threat, Insert):
            kept += 4 * N * threat.m * sizes
        # With Delete the sizes may share documents, so the memory is not known.
        if self.device.type == "cpu" and not isinstance(threat, Delete):
            advice = "pass fewer documents or sizes of epsilon at a time"
            check_memory(f"{op}: perturbed documents", kept, advice, N=N, sizes=sizes)

    def check_encoder(self, X: Any) -> None:
        """Checks that documents have the same hidden units each time, as those of a model have."""

    def tensors(self, X: Any, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
        """Returns values, indices and indptr of the entries that may change, on the model's device."""
        x = torch.from_numpy(X.data).to(self.device, self.dtype)
        indices, indptr = (torch.from_numpy(a).to(self.device).long() for a in (X.indices, X.indptr))
        return x, indices, indptr

    def ranked(self, X: Any, k: int) -> NDArray[np.int64]:  # [N, k]
        """Returns the top k of documents."""
        ranked: NDArray[np.int64] = self.model.predict(X, k)[1]
        return ranked

    def evaluating(self) -> contextlib.AbstractContextManager[Any]:
        """Switches off gradients, autocast and dropout."""
        return evaluating(self.model)

    @property
    def batch_size(self) -> int:
        """How many documents are attacked at a time, unless the user says so."""
        return max(1, min(1024, _FIRST_LAYER // math.prod(self.shape)))

    def for_documents(self, X: Any, batch_size: int | None) -> Layer:
        """Returns the layer for documents like X and a size of batches."""
        return self

    def of_rows(self, rows: slice) -> Layer:
        """Returns the layer for some of the documents that it is for."""
        return self

    # -------------------------------------------------------------------------------------------- functions

    @property
    def shape(self) -> tuple[int, int]:
        """The number of blocks C and the number of units M."""
        return self.weight.shape[0], self.weight.shape[2]

    @property
    def is_linear(self) -> bool:
        """Whether the first layer's output are the bucket logits."""
        return bool(self.model.is_linear)

    def first(self, x: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [N, C, M]
        """Returns the pre-activations of documents. For linear MACH these are the bucket logits."""
        return _ops.sparse_linear(x, indices, indptr, self.weight, self.bias, False)

    def to_values(self, gradient: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [nnz]
        """Returns the gradient to the documents' values."""
        return _ops.sparse_linear_grad_values(gradient, indices, indptr, self.weight)

    def hidden(self, first: Tensor) -> Tensor:  # [N, H] or [N, R, H]
        """Returns the last hidden layer."""
        hidden: Tensor = self.model.encode_hidden(first.flatten(1).relu(), dropout=False)
        return hidden

    def last(self, first: Tensor) -> Tensor:  # [N, H] or [N, R, H] or, for linear MACH, [N, R, B]
        """Returns what the losses take: the last hidden layer or, for linear MACH, the bucket logits."""
        return first if self.is_linear else self.hidden(first)

    def logits(self, first: Tensor) -> Tensor:  # [N, R, B]
        """Returns the bucket logits."""
        if self.is_linear:
            return first
        model = self.model
        return F.bucket_logits(self.hidden(first), model.bucket_weight.detach(), model.bucket_bias.detach())

    def topk(self, first: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns scores and labels of the top k."""
        return MODEL_MERGES[self.model.merge].topk(self.logits(first), self.model.hash, k)

    # ----------------------------------------------------------------------------------------------- losses

    def losses(self, first: Tensor, goal: Targets, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Returns losses [N] in float64 and their gradient to the first layer [N, C, M]."""
        with torch.enable_grad(), self._recording(gradient):
            leaf = first.detach().requires_grad_(gradient)
            last = self.last(leaf)
            if goal.pairs is not None:
                return self._differences(leaf, last, goal, gradient)
        loss, to_last = self._cross_entropy(last.detach(), goal.labels, gradient)
        if to_last is None or last is leaf:
            return loss, to_last
        return loss, self._to_first(last, leaf, to_last)

    def _recording(self, gradient: bool) -> contextlib.AbstractContextManager[Any]:
        """Lets autograd keep tensors that may change meanwhile.

        Another thread may train the model. Without these hooks PyTorch would refuse the gradient because the
        weights have changed.
        """
        return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)

    def _to_first(self, output: Tensor, leaf: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Returns the gradient to the first layer, for a gradient to an output of it."""
        return torch.autograd.grad(output, leaf, gradient)[0]

    def _cross_entropy(
        self, values: Tensor, labels: tuple[Tensor, Tensor], gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns bucket cross-entropies [N] and their gradient to the input of the bucket classifiers."""
        loss = torch.zeros(len(values), dtype=torch.float64, device=self.device)
        to_last = torch.zeros_like(values) if gradient else None
        weight, bias = self.model.bucket_weight.detach(), self.model.bucket_bias.detach()

        scale = 1.0 if gradient else None
        targets = _products.Targets(self.buckets, *labels, scale)
        for at in groups(
            len(bias), group_size(len(values), bias.shape[1], values.element_size(), self.device)
        ):
            if self.is_linear:
                z = values[:, at].clone(memory_format=torch.contiguous_format)
                loss += _ops.bucket_bce(z, None, self.buckets[at], *labels, scale)
                if to_last is not None:
                    to_last[:, at] = z
                continue
            group = group_of(values, weight, at, self.dtype)
            z = group.new_logits(self.dtype)
            z, losses = bce_of_group(group, bias[at].to(self.dtype), targets, at, z)
            loss += losses
            if to_last is not None:
                group.add_grad_hidden(z, of_group(to_last, at))
        return loss, to_last

    def _differences(
        self, leaf: Tensor, last: Tensor, goal: Targets, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns differences of two labels' scores [N] and their gradient to the first layer."""
        assert goal.pairs is not None
        model = self.model
        if self.is_linear:
            at = self.buckets.long()[:, goal.pairs].transpose(0, 1)  # [N, R, 2]
            votes = last.gather(2, at).transpose(1, 2)
        else:
            weight, bias = model.bucket_weight.detach(), model.bucket_bias.detach()
            votes = F.label_logits(last, weight, bias, model.hash, goal.pairs, validate=False)
        scores = votes.mean(2)
        loss = (scores[:, 0] - scores[:, 1]) * goal.active
        to_first = self._to_first(loss.sum(), leaf) if gradient else None
        return loss.detach().double(), to_first


def _as_it_is(t: Tensor) -> Tensor:
    """Returns the tensor. PyTorch then does not check whether it has changed."""
    return t
