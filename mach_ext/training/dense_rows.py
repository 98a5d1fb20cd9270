"""The rows of a model's first weight that take the dense features, in a step of training.

The sparse features go through the row operators. The dense features of a
batch [N, E] are a matrix. So their part of the layer and its gradient are dense products, which are several
times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mach_ext.data import Batch
from mach_ext.nn import MACH, Dropout
from mach_ext.training.optimizer import RowOptimizer


class DenseRows:
    """The rows D to D + E of the weight that takes the documents: their products and their steps.

    Attributes:
        wants_gradient: Whether the gradient to the dense features themselves is kept.
        gradient: That gradient for the last batch [N, E], before centring and scaling. `features` clears it.
    """

    def __init__(self, model: MACH, optimizer: RowOptimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.weight = model.bucket_weight if model.is_linear else model.encoder_weight
        self.rows = slice(model.num_features, None)
        self.wants_gradient = False
        self.gradient: Tensor | None = None
        self._kept: Tensor | None = None  # [N, E], what feature dropout multiplies by

    def features(self, batch: Batch, dropout: Dropout) -> Tensor | None:  # [N, E]
        """Return the centred and scaled dense features of a batch. None: they are apart in no matrix.

        Feature dropout drops them like other features.
        """
        if batch.dense is None:
            return None
        model, self.gradient, self._kept = self.model, None, None
        dense = (batch.dense.to(self.weight.dtype) - model.dense_center) * model.dense_scale
        if not model.feature_dropout:
            return dense
        self._kept = model.drop_features(torch.ones_like(dense), dropout=dropout)
        return dense * self._kept

    def add(self, first: Tensor, dense: Tensor, weight: Tensor) -> None:
        """Add the share of dense features to pre-activations [N, M], for a weight [D + E, M]."""
        weight = weight[self.rows]
        if first.dtype == weight.dtype:
            first.addmm_(dense, weight)  # with the same bits for a repetition alone or among others
        else:
            first += (dense.to(weight.dtype) @ weight).to(first.dtype)

    def step(
        self,
        at: int | None,  # the repetition of linear MACH
        dense: Tensor,  # [N, E]
        gradient: Tensor,  # [N, M] to the pre-activations
        rounded: Tensor,  # the weight in the precision of the products
    ) -> None:
        """Step the rows by their gradient, at their own rate, and round them for the next step."""
        product = rounded.dtype
        if self.wants_gradient:
            self._add_gradient(gradient.to(product) @ rounded[self._place(at)].T)
        if not self.weight.requires_grad:
            return
        grad_rows = (dense.to(product).T @ gradient.to(product)).to(gradient.dtype)
        place = self._place(at)
        group = next(group for group in self.optimizer.param_groups if "dense_lr" in group)
        self.optimizer.step_rows(self.weight, place, grad_rows, lr=group["dense_lr"])
        if product != self.weight.dtype:
            rounded[place] = self.weight.detach()[place].to(product)

    def _place(self, at: int | None) -> Any:
        """Return where the rows are in the weight: of a repetition of linear MACH, or of the encoder."""
        return self.rows if at is None else (at, self.rows)

    def _add_gradient(self, part: Tensor) -> None:
        """Add a part of the gradient to the dense features."""
        part = part.to(self.weight.dtype) * self.model.dense_scale
        if self._kept is not None:
            part *= self._kept
        self.gradient = part if self.gradient is None else self.gradient.add_(part)
