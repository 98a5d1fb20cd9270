"""The path from a baseline to a document through each kind of encoder, with 0, 1 or 2 hidden layers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import scipy.sparse
import torch
from torch import Tensor

from mach_ext import functional as F
from mach_ext.explain._arguments import Names, check_model, document_tensors, values_dtype
from mach_ext.explain._path import (
    DocumentPath,
    Nodes,
    active_fraction,
    block_size,
    bucket_columns,
    is_mean_logit,
    merge_gradient,
)
from mach_ext.nn import MACH, check_parameters, first_layer


class LinearPath(DocumentPath):
    """The path of linear MACH. A bucket's logit is affine along it, and only the merge bends the score."""

    def __init__(self, op: str, model: MACH, X: Any, baseline: Any, feature_names: Names) -> None:
        """Checks the document and the baseline."""
        super().__init__(op, model, X, baseline, feature_names)
        self.numbers_a_label = model.num_repetitions * len(self.rows)

    def columns(self, buckets: Tensor) -> Tensor:  # [R, nnz, m]
        """Returns the bucket weights of the document's features."""
        weight = first_layer(self.model).weight
        return torch.stack([w[self.rows[:, None], b] for w, b in zip(weight, buckets, strict=True)])

    def logits(self, columns: Tensor, bias: Tensor) -> Tensor:
        """Returns the logits of the document and the baseline."""
        both = torch.stack((self.x, self.b)).to(values_dtype(self.model))
        at = torch.arange(both.numel(), device=self.device)
        indices, indptr = at % both.shape[1], at.new_tensor([0, both.shape[1], both.numel()])
        return F.bucket_forward(both.flatten(), indices, indptr, None, None, columns, bias, validate=False)

    def pull(self, columns: Tensor, bias: Tensor, score: str, nodes: Nodes | None) -> Tensor:  # [m, R]
        """Returns the derivative of the score to each bucket logit, averaged along the path."""
        R, _, m = columns.shape
        if is_mean_logit(self.model, score):
            return self.x.new_full((m, R), 1 / R)
        assert nodes is not None
        start, step = ((v @ columns.double()).T for v in (self.b, self.x - self.b))  # [m, R]
        start = start + bias.T
        pulled = torch.zeros_like(start)
        for position, weight in zip(*nodes, strict=True):
            pulled += weight * merge_gradient(self.model, start + position * step)
        return pulled

    def total(self, columns: Tensor, pulled: Tensor) -> Tensor:
        """Returns the sum of all attributions of each label."""
        return self.project(columns, pulled).sum(1)

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:
        """Returns the attribution of each feature."""
        return torch.einsum("mr,rdm->md", pulled, columns.double()) * (self.x - self.b)


class HiddenPath(DocumentPath):
    """The path through one or two hidden layers.

    The repetitions share an encoder (C = 1) or have one each (C = R). The first layer's pre-activations are
    `start + a * step`, both [C, H1], at position a of the path.
    """

    def __init__(self, op: str, model: MACH, X: Any, baseline: Any, feature_names: Names) -> None:
        """Computes the first layer's pre-activations at the baseline, and how they change along the path."""
        super().__init__(op, model, X, baseline, feature_names)
        self.copies = model.num_repetitions if model.encoder == "independent" else 1
        self.numbers_a_label = model.num_repetitions * max(model.hidden_sizes)
        bias = first_layer(model).bias[0].double()
        start, step = bias.clone(), torch.zeros_like(bias)
        for at, weight in self._encoder_rows():
            start += self.b[at] @ weight
            step += (self.x - self.b)[at] @ weight
        self.start, self.step = (t.view(self.copies, -1) for t in (start, step))

    def _encoder_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields rows [nnz, C * H1] of the encoder's weight for the document's features, block by block."""
        encoder = first_layer(self.model).weight[0]
        size = block_size(encoder.shape[1])
        for begin in range(0, len(self.rows), size):
            at = slice(begin, begin + size)
            if self._only_rows is None or size < len(self.rows):
                self._only_rows = encoder.index_select(0, self.rows[at]).double()
            yield at, self._only_rows

    _only_rows: Tensor | None = None  # the rows, if they fit in a single block

    def columns(self, buckets: Tensor) -> Tensor:  # [R, H, m]
        """Returns the bucket weights on the last hidden layer."""
        return bucket_columns(self.model, buckets)

    def logits(self, columns: Tensor, bias: Tensor) -> Tensor:
        """Returns the logits of the document and the baseline."""
        return F.bucket_logits(self._hidden, columns, bias)

    @functools.cached_property
    def _hidden(self) -> Tensor:
        """The last hidden layer of the document and the baseline."""
        both = scipy.sparse.vstack([self.document, self.baseline], format="csr")
        return self.model.encode(*document_tensors(self.model, both), validate=False, dropout=False)

    def total(self, columns: Tensor, pulled: Tensor) -> Tensor:
        """Returns the sum of all attributions of each label."""
        return pulled @ self.step.flatten()

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:
        """Returns the attribution of each feature."""
        rows = torch.cat([pulled @ weight.T for _, weight in self._encoder_rows()], 1)
        return rows * (self.x - self.b)

    def pull(self, columns: Tensor, bias: Tensor, score: str, nodes: Nodes | None) -> Tensor:  # [m, C * H1]
        """Returns the derivative of the score to each first-layer unit, averaged along the path."""
        if not is_mean_logit(self.model, score):
            assert nodes is not None
            return self._pull_merged(columns, bias, nodes)
        # `units` is R times the label's weight on each last-layer unit, [C, H, m]. With a shared encoder it
        # is the sum over the label's R buckets. With independent encoders each bucket has its own units.
        R = self.model.num_repetitions
        units = columns.double() if self.copies == R else columns.sum(0, keepdim=True, dtype=torch.float64)
        if len(self.model.hidden_sizes) == 1:
            first = units * self.activity(nodes).unsqueeze(2)
        else:
            first = self.joint_weight(nodes) @ units
        return first.flatten(0, 1).T / R

    def activity(self, nodes: Nodes | None) -> Tensor:  # [C, H1]
        """Returns the fraction of the path on which each first-layer unit is active."""
        if nodes is None:
            return active_fraction(self.start, self.start + self.step)
        activity = torch.zeros_like(self.start)
        for position, weight in zip(*nodes, strict=True):
            activity += weight * (self.start + position * self.step > 0)
        return activity

    def joint_weight(self, nodes: Nodes | None) -> Tensor:  # [C, H1, H2]
        """Returns the second layer's weight times the fraction of the path on which both units are active.

        For each piece of the path (or each node), a second-layer unit is active on a part of known length. A
        matrix product with the first layer's state on the pieces sums these lengths.
        """
        joint = []
        for c, (start, step) in enumerate(zip(self.start, self.step, strict=True)):
            weight = self.model.hidden_weight[c].detach().double()
            bias = self.model.hidden_bias[c].detach().double()
            if nodes is None:
                cuts = -start / step  # NaN or infinite if a unit does not change
                cuts = cuts[(cuts > 0) & (cuts < 1)].unique()  # sorted
                cuts = torch.cat((cuts.new_zeros(1), cuts, cuts.new_ones(1)))
                at, length = (cuts[1:] + cuts[:-1]) / 2, cuts.diff()
                second = (start + cuts[:, None] * step).relu() @ weight + bias  # [T + 1, H2]
                measure = active_fraction(second[:-1], second[1:]) * length[:, None]
            else:
                at, length = nodes
                second = (start + at[:, None] * step).relu() @ weight + bias  # [S, H2]
                measure = (second > 0) * length[:, None]
            first = start + at[:, None] * step > 0
            joint.append(weight * (first.double().T @ measure))
        return torch.stack(joint)

    def _pull_merged(self, columns: Tensor, bias: Tensor, nodes: Nodes) -> Tensor:  # [m, C * H1]
        """Applies the chain rule at each node, for scores that are not linear in the logits.

        It processes as many nodes at a time as fit in memory.
        """
        model, C = self.model, self.copies
        R, _, m = columns.shape
        columns, bias = columns.double(), bias.double().unsqueeze(1)
        two = len(model.hidden_sizes) == 2
        if two:
            second_weight = model.hidden_weight.detach().double()  # [C, H1, H2]
            second_bias = model.hidden_bias.detach().double().unsqueeze(1)  # [C, 1, H2]
        pulled = self.x.new_zeros(C, m, self.start.shape[1])
        size = block_size(m * C * max(model.hidden_sizes))
        for at, node_weights in zip(nodes[0].split(size), nodes[1].split(size), strict=True):
            first = self.start[:, None] + at[:, None] * self.step[:, None]  # [C, S, H1]
            last = first.relu()
            if two:
                second = last @ second_weight + second_bias  # [C, S, H2]
                last = second.relu()
            logits = last.expand(R, -1, -1) @ columns + bias  # [R, S, m]
            gradient = merge_gradient(model, logits.permute(1, 2, 0)) * node_weights[:, None, None]
            # The gradient to the last hidden layer, [C, S, m, H], summed over the repetitions that share it.
            subscripts = "smr,rhm->smh" if C == 1 else "smr,rhm->rsmh"
            back = torch.einsum(subscripts, gradient, columns).view(C, len(at), m, -1)
            if two:
                back = (back * (second > 0).unsqueeze(2)) @ second_weight.mT.unsqueeze(1)
            pulled += (back * (first > 0).unsqueeze(2)).sum(1)
        return pulled.transpose(0, 1).flatten(1)


def document_path(op: str, model: Any, X: Any, baseline: Any, feature_names: Names) -> DocumentPath:
    """Returns the path from a baseline to a document through a model, or to hidden units through a head."""
    model = check_model(op, model)
    check_parameters(op, model)
    return (LinearPath if model.is_linear else HiddenPath)(op, model, X, baseline, feature_names)
