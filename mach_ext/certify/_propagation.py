"""`Propagation` carries documents and their threat sets through the layers, as affine forms and intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mach_ext.attack._part import changed_part
from mach_ext.attack.threats import ThreatModel
from mach_ext.certify._forms import AffineForm, HiddenForm, relu_lines
from mach_ext.certify._insertion import Insertion
from mach_ext.certify._network import HELD, UNDERFLOW, Network
from mach_ext.certify._reach import Reach


@dataclass
class _Group:
    """Documents that are in memory together, with nnz features in all.

    The features of each document are a part (a, b) of them.
    """

    documents: list[int]
    own: Tensor  # [nnz]
    parts: list[tuple[int, int]]
    reaches: list[Reach]

    def __iter__(self) -> Iterator[tuple[int, Tensor, slice, Reach]]:
        """Yields number, features, part and reach of each document."""
        for n, (a, b), reach in zip(self.documents, self.parts, self.reaches, strict=True):
            yield n, self.own[a:b], slice(a, b), reach


class Propagation:
    """Makes the forms of documents, for a model and a threat model."""

    def __init__(self, network: Network, threat: ThreatModel, insertion: Insertion) -> None:
        """Takes the model, the threat model and what an attacker may insert."""
        self.network, self.threat, self.insertion = network, threat, insertion
        self.part = changed_part("certify", network.model, threat)

    def forms(self, X: Any, documents: Sequence[int], epsilon: float) -> Iterator[AffineForm]:
        """Yields the documents' forms. A few documents at a time are in memory."""
        model = self.network.model
        wide = max(model.num_repetitions * model.num_buckets, self.network.copies * sum(model.hidden_sizes))
        forms_of = self._linear if model.is_linear else self._relaxed
        group: list[int] = []
        held = 0
        for n in documents:
            entries = int(X.indptr[n + 1] - X.indptr[n])
            if group and (held + entries + 4) * wide > HELD:
                yield from forms_of(self._group(X, group, epsilon), epsilon)
                group, held = [], 0
            group.append(n)
            held += entries + 4
        if group:
            yield from forms_of(self._group(X, group, epsilon), epsilon)

    def _group(self, X: Any, documents: list[int], epsilon: float) -> _Group:
        """Makes a group of documents."""
        rows = X[documents]
        x = torch.from_numpy(rows.data).to(self.network.device).double()
        own = torch.from_numpy(rows.indices).to(self.network.device).long()
        parts = list(zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True))
        free, part = self.part.contains(own), self.part
        reaches = [Reach(self.threat, x[a:b], epsilon, free[a:b], part) for a, b in parts]
        return _Group(documents, own, parts, reaches)

    def _linear(self, group: _Group, epsilon: float) -> Iterator[AffineForm]:
        """Yields the forms of linear MACH, whose logits are affine functions already."""
        network, inserted = self.network, self.insertion
        slopes = network.bucket_weight[:, group.own].transpose(0, 1).double()  # [nnz, R, B]
        for n, own, at, reach in group:
            slope = slopes[at]
            base = torch.tensordot(reach.x, slope, 1) + network.bucket_bias
            size = torch.tensordot(reach.largest, slope.abs(), 1) + network.bucket_bias.abs()
            size = size + epsilon * (inserted.up + inserted.down)
            lost = epsilon * torch.maximum(inserted.up, inserted.down)
            rate = network.gamma(len(own) + inserted.number + network.model.num_repetitions + 8)
            spread = torch.zeros_like(base)
            finite = self._finite(reach, size)
            yield AffineForm(n, own, reach, slope, base, spread, lost, size, rate, None, finite)

    def _relaxed(self, group: _Group, epsilon: float) -> Iterator[AffineForm]:
        """Yields the forms of hidden layers, with ReLU between its lines."""
        network, insertion, model = self.network, self.insertion, self.network.model
        R, B, H = model.num_repetitions, model.num_buckets, sum(model.hidden_sizes)
        encoder = network.first.weight[0, group.own].double()  # [nnz, C * H]
        hidden = [self._hidden(reach, encoder[at]) for _, _, at, reach in group]
        p, ball, low, high, rounding = (
            torch.stack([getattr(form, name) for form in hidden])
            for name in ("p", "spread", "low", "high", "rounding")
        )  # [documents, M]
        line, gap = relu_lines(low, high)
        lengths = torch.tensor([b - a for a, b in group.parts], device=network.device)
        inner = torch.cat([form.slope for form in hidden]) * line.repeat_interleave(lengths, 0)
        middle = line * p + gap / 2
        error = line * ball + gap / 2 + rounding
        output = high.clamp(min=0) + rounding  # upper bound of each unit's output
        slope = inner.new_empty(len(inner), R, B)
        base, spread, inserted, size = (inner.new_zeros(len(hidden), R, B) for _ in range(4))
        for r in range(R):
            weight = network.bucket_weight[r].double()  # [H, B]
            block = network.block(r)
            absolute = weight.abs()
            slope[:, r] = inner[:, block] @ weight
            base[:, r] = middle[:, block] @ weight + network.bucket_bias[r]
            spread[:, r] = error[:, block] @ absolute
            size[:, r] = output[:, block] @ absolute + network.bucket_bias[r].abs()
            if insertion.norm:  # the smaller of two bounds: unit by unit, and by Cauchy and Schwarz
                box = (line * epsilon * torch.maximum(insertion.up, insertion.down))[:, block] @ absolute
                norm = (line[:, block].square() @ weight.square()).sqrt()
                inserted[:, r] = box.minimum(epsilon * insertion.norm * norm)
        rate = network.gamma(H + R + 8)
        for i, (n, own, at, reach) in enumerate(group):
            tables = (slope[at], base[i], spread[i], inserted[i], size[i])
            finite = self._finite(reach, size[i], hidden[i].magnitude)
            yield AffineForm(n, own, reach, *tables, rate, hidden[i], finite)

    def _finite(self, reach: Reach, size: Tensor, hidden: float = 0.0) -> bool:
        """Returns whether values, hidden units and logits stay in the range of float32. NaN gives False."""
        sums = (reach.epsilon, float(reach.largest.sum()), hidden, float(size.max()))
        return all(total < self.network.limit for total in sums)

    # ------------------------------------------------------------------------------------ hidden layers

    def _hidden(self, reach: Reach, weight: Tensor) -> HiddenForm:
        """Carries a document through the encoder [n, M], and through the second layer if there is one."""
        network, epsilon = self.network, reach.epsilon
        up, down = self.insertion.up, self.insertion.down
        p = reach.x @ weight + network.encoder_bias
        low = p + reach.lowest(weight) - epsilon * down[0]
        high = p - reach.lowest(-weight) + epsilon * up[0]
        size = reach.largest @ weight.abs() + epsilon * (up + down)[0] + network.encoder_bias.abs()
        rounding = network.gamma(len(weight) + self.insertion.number + 4) * size + UNDERFLOW
        form = HiddenForm(p, weight, torch.zeros_like(p), low, high, rounding, float(size.max()))
        return self._second(reach, form) if network.two_layers else form

    def _second(self, reach: Reach, first: HiddenForm) -> HiddenForm:
        """Carries a form from the first to the second hidden layer."""
        network = self.network
        line, gap = relu_lines(first.low, first.high)
        C, H1, _ = network.hidden_weight.shape

        def through(rows: Tensor, matrix: Tensor) -> Tensor:  # [K, C * H1] -> [K, C * H2]
            return torch.einsum("kch,chm->kcm", rows.view(-1, C, H1), matrix).flatten(1)

        absolute = network.hidden_weight.abs()
        bias = network.hidden_bias.flatten()
        inserted = line * reach.epsilon * torch.maximum(self.insertion.up[0], self.insertion.down[0])
        slope = through(first.slope * line, network.hidden_weight)
        p = through((line * first.p + gap / 2)[None], network.hidden_weight)[0] + bias
        spread = through((gap / 2 + inserted)[None], absolute)[0]
        output = first.high.clamp(min=0) + first.rounding  # upper bound of each unit's output
        size = through(output[None], absolute)[0] + bias.abs()
        rounding = through(first.rounding[None], absolute)[0] + network.gamma(H1 + 4) * size + UNDERFLOW
        low = p + reach.lowest(slope) - spread
        high = p - reach.lowest(-slope) + spread
        magnitude = first.magnitude + float(size.max())  # NaN stays NaN
        return HiddenForm(p, slope, spread, low, high, rounding, magnitude)
