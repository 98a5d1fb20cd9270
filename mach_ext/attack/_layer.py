"""A model as attacks see it: its first layer, and losses as functions of that layer's output."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext import functional as F
from mach_ext.attack.goals import Targets
from mach_ext.functional import _products
from mach_ext.functional._products import bce_of_group, group_of
from mach_ext.functional._repetitions import group_size, groups, of_group
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_parameters, first_layer


class Layer:
    """A model's first layer, and losses of documents as functions of that layer's output."""

    def __init__(self, op: str, model: MACH) -> None:
        """Checks the model's parameters and hash tables."""
        check_parameters(op, model)
        model.hash.check_contents()
        self.model, self.device = model, model.bucket_bias.device
        self.weight, bias = first_layer(model)  # [C, D, M]
        self.dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        self.bias = bias.to(self.dtype)  # [C, M]
        self.buckets = model.hash.buckets

    @property
    def shape(self) -> tuple[int, int]:
        """The number of blocks C and the number of units M."""
        return self.weight.shape[0], self.weight.shape[2]

    def first(self, x: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [N, C, M]
        """Returns the pre-activations of documents. For linear MACH these are the bucket logits."""
        return _ops.sparse_linear(x, indices, indptr, self.weight, self.bias, False)

    def to_values(self, gradient: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [nnz]
        """Returns the gradient to the documents' values."""
        return _ops.sparse_linear_grad_values(gradient, indices, indptr, self.weight)

    def hidden(self, first: Tensor) -> Tensor:  # [N, H] or [N, R, H]
        """Returns the last hidden layer."""
        return self.model.encode_hidden(first.flatten(1).relu(), dropout=False)

    def logits(self, first: Tensor) -> Tensor:  # [N, R, B]
        """Returns the bucket logits."""
        if self.model.is_linear:
            return first
        model = self.model
        return F.bucket_logits(self.hidden(first), model.bucket_weight.detach(), model.bucket_bias.detach())

    def topk(self, first: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns scores and labels of the top k."""
        return MODEL_MERGES[self.model.merge].topk(self.logits(first), self.model.hash, k)

    def losses(self, first: Tensor, goal: Targets, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Returns losses [N] in float64 and their gradient to the first layer [N, C, M]."""
        # Another thread may train the model meanwhile. Without these hooks PyTorch would refuse the gradient
        # because the weights have changed.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
            leaf = first.detach().requires_grad_(gradient)
            last = leaf if self.model.is_linear else self.hidden(leaf)
            if goal.pairs is not None:
                return self._differences(leaf, last, goal, gradient)
        loss, to_last = self._cross_entropy(last.detach(), goal.labels, gradient)
        if to_last is None or self.model.is_linear:
            return loss, to_last
        (to_first,) = torch.autograd.grad(last, leaf, to_last)
        return loss, to_first

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
            if self.model.is_linear:
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
        if model.is_linear:
            at = self.buckets.long()[:, goal.pairs].transpose(0, 1)  # [N, R, 2]
            votes = last.gather(2, at).transpose(1, 2)
        else:
            weight, bias = model.bucket_weight.detach(), model.bucket_bias.detach()
            votes = F.label_logits(last, weight, bias, model.hash, goal.pairs, validate=False)
        scores = votes.mean(2)
        loss = (scores[:, 0] - scores[:, 1]) * goal.active
        to_first = torch.autograd.grad(loss.sum(), leaf)[0] if gradient else None
        return loss.detach().double(), to_first


def _as_it_is(t: Tensor) -> Tensor:
    """Returns the tensor. PyTorch then does not check whether it has changed."""
    return t
