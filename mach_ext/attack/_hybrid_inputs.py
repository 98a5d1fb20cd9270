"""Inputs of an encoder in front of the dense features of a model, with sparse features beside them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import functional as F
from mach_ext._user_encoder import Encoder, check_repeatable
from mach_ext.attack._inputs import InputLayer, checked_inputs
from mach_ext.attack._layer import Layer
from mach_ext.attack.hybrid_inputs import HybridInputs
from mach_ext.attack.threats import ThreatModel
from mach_ext.data import check_columns
from mach_ext.merges import MODEL_MERGES


class _FirstLayer(torch.autograd.Function):
    """The first layer of a model, with the gradient to documents alone and none to weights."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, indptr: Tensor, layer: Layer) -> Tensor:
        ctx.save_for_backward(indices, indptr)
        ctx.layer = layer
        return layer.first(values, indices, indptr)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.layer.to_values(gradients[0].contiguous(), *ctx.saved_tensors), None, None, None


class HybridInputLayer(InputLayer):
    """A model behind an encoder that gives its dense features. The sparse features stay as they are."""

    def __init__(self, op: str, model: Any, encoder: Encoder) -> None:
        """Checks the model's parameters and hash tables."""
        super().__init__(op, model, encoder)
        self.behind = Layer(op, model)
        self.sparse: Any = None  # [N, D], of the documents that the layer is for

    # ------------------------------------------------------------------------------------------- documents

    def documents(self, op: str, X: Any) -> tuple[Any, Any]:
        """Returns checked inputs with their sparse features."""
        if not isinstance(X, HybridInputs):
            raise TypeError(
                f"{op}: X must be a mach_ext.attack.HybridInputs with encoder= and a model with dense "
                f"features, got {type(X).__name__}"
            )
        inputs = checked_inputs(op, self.model, X.inputs)
        sparse = check_columns(X.sparse, f"{op}: X.sparse", self.model.num_features)
        if sparse.shape[0] != len(inputs):
            raise ValueError(
                f"{op}: X must have as many sparse rows as inputs, got {sparse.shape[0]} and {len(inputs)}"
            )
        checked = HybridInputs(inputs, sparse)
        return checked, checked

    def inputs(self, X: Any) -> Tensor:
        """Returns what the attack changes of checked documents."""
        return X.inputs  # type: ignore[no-any-return]

    def for_documents(self, X: Any, batch_size: int | None) -> HybridInputLayer:
        """Returns the layer for these documents."""
        layer = super().for_documents(X, batch_size)
        assert isinstance(layer, HybridInputLayer)
        layer.sparse = X.sparse
        return layer

    def of_rows(self, rows: slice) -> HybridInputLayer:
        """Returns the layer for some of the documents that it is for."""
        layer = copy.copy(self)
        layer.sparse = self.sparse[rows]
        return layer

    def check_threat(self, op: str, X: Any, threat: ThreatModel, grid: list[float]) -> None:
        """Checks that the threat model fits inputs and sizes."""
        super().check_threat(op, X.inputs, threat, grid)

    def check_memory(self, op: str, X: Any, threat: ThreatModel, grid: list[float]) -> None:
        """Checks the memory of the result: inputs of each size."""
        super().check_memory(op, X.inputs, threat, grid)

    def check_encoder(self, X: Any) -> None:
        """Refuses an encoder with dropout, or one that lets an input of a batch depend on the others."""
        first = X.inputs[:2].to(self.device)
        check_repeatable(self.op, self._dense(first)[:1], self._dense(first[:1]), "dense features")

    def tensors(self, X: Any, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the entries that may change in CSR form, with each input as a row."""
        return super().tensors(X.inputs, threat)

    def ranked(self, X: Any, k: int) -> NDArray[np.int64]:
        """Returns the top k of inputs with their sparse features."""
        layer: HybridInputLayer = self.for_documents(X, self._batch_size)
        return layer.predict(self.op, X.inputs, k)[1]

    # -------------------------------------------------------------------------------------------- functions

    @property
    def is_linear(self) -> bool:
        """Whether `last` returns the bucket logits."""
        return self.behind.is_linear

    def last(self, first: Tensor) -> Tensor:
        """Returns the last hidden layer of the model or, for linear MACH, its bucket logits."""
        words = self.sparse
        arrays = (torch.from_numpy(a).to(self.device) for a in (words.data, words.indices, words.indptr))
        values, indices, indptr = arrays
        joined = self.model.join_tensors(
            values.to(self.dtype), indices.long(), indptr.long(), self._dense(first)
        )
        units: Tensor = _FirstLayer.apply(*joined, self.behind)
        return units if self.is_linear else self.behind.hidden(units)

    def decode(self, last: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns scores and labels of the top k, for what `last` returned."""
        model = self.model
        if not self.is_linear:
            last = F.bucket_logits(last, model.bucket_weight.detach(), model.bucket_bias.detach())
        return MODEL_MERGES[model.merge].topk(last, model.hash, k)

    def all_hidden(self, X: Tensor) -> Tensor:
        """Returns the last hidden layer of inputs."""
        if self.is_linear:
            raise ValueError("InputPerturbation.hidden: linear MACH (hidden_size=0) has no hidden layer")
        with self.evaluating():
            return torch.cat([*self._last_by_batch(X)])

    def _dense(self, inputs: Tensor) -> Tensor:  # [N, E]
        """Returns the dense features of inputs. The encoder may overwrite its argument."""
        dense, expected = self.encoder(inputs.clone()), (len(inputs), self.model.num_dense)
        if not isinstance(dense, Tensor) or not dense.is_floating_point() or tuple(dense.shape) != expected:
            got = f"{dense.dtype} {list(dense.shape)}" if isinstance(dense, Tensor) else type(dense).__name__
            raise ValueError(
                f"{self.op}: encoder must return dense features [N={expected[0]}, E={expected[1]}] as a "
                f"tensor of floating-point numbers, got {got}"
            )
        if not bool(dense.detach().isfinite().all()):
            raise ValueError(f"{self.op}: encoder must return finite dense features, got NaN or infinity")
        return dense
