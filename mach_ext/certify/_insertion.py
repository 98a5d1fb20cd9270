"""`Insertion`: what features that a document lacks can take from a margin, where a threat model adds any."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.linalg import vector_norm

from mach_ext import functional as F
from mach_ext.attack.threats import Dense, Insert, ThreatModel
from mach_ext.certify._forms import AffineForm, relu_lines
from mach_ext.certify._network import HELD, Network


class Direction:
    """Margins of t over K labels as linear functions of all features [D, K], tile by tile.

    `a` [K, M]: their weights on the encoder's outputs; None for linear MACH.
    """

    def __init__(self, network: Network, t: int, labels: Tensor, a: Tensor | None) -> None:
        self.network, self.t, self.labels, self.a = network, t, labels, a

    def of(self, at: Tensor) -> Direction:
        """The direction of some of the labels, by position."""
        a = None if self.a is None else self.a[at]
        return Direction(self.network, self.t, self.labels[at], a)

    def tiles(self) -> Iterator[tuple[int, int]]:
        D = self.network.model.num_features
        width = self.network.bucket_bias.numel() if self.a is None else self.a.shape[1]
        step = max(64, HELD // (4 * max(width, len(self.labels))))
        return ((begin, min(D, begin + step)) for begin in range(0, D, step))

    def features(self, begin: int, end: int) -> Tensor:  # [T, K]
        network = self.network
        if self.a is not None:
            return network.first.weight[0, begin:end].double() @ self.a.T
        R = network.model.num_repetitions
        g = torch.zeros(end - begin, len(self.labels), dtype=torch.float64, device=network.device)
        for r in range(R):
            weight, buckets = network.bucket_weight[r, begin:end], network.buckets[r]
            g += weight[:, buckets[self.t], None].double() - weight[:, buckets[self.labels]].double()
        return g / R


class Insertion:
    """What an attacker may add: at most `count` features, or all of them (`everywhere`), by epsilon each."""

    def __init__(self, network: Network, threat: ThreatModel) -> None:
        self.network = network
        self.nonnegative = threat.nonnegative
        self.count = threat.m if isinstance(threat, Insert) else 0
        self.everywhere = isinstance(threat, Dense)
        self.possible = bool(self.count) or self.everywhere
        self.up, self.down = self._extremes()
        self.norm = 0.0  # of that many new features' rows of the encoder, the sum of norms
        if self.count and not network.model.is_linear and not network.two_layers:
            norms = vector_norm(network.first.weight[0], dim=1, dtype=torch.float64)
            self.norm = float(norms.topk(self.count).values.sum())

    @property
    def number(self) -> int:
        """The number of products that new features can add to a sum over features."""
        return self.network.model.num_features if self.everywhere else self.count

    # ------------------------------------------------------------------- bounds that hold for all documents

    def _extremes(self) -> tuple[Tensor, Tensor]:
        """What new features of weight 1 add to and take from each output of the first layer at most [C, M].

        Of all features: a document has some of the best ones itself; sound, and little wider.
        """
        layer = self.network.first.weight  # [C, D, M]
        if not self.possible:
            nothing = torch.zeros(layer.shape[0], layer.shape[2], dtype=torch.float64, device=layer.device)
            return nothing, nothing
        up, down = [], []
        for weight in layer:  # [D, M]
            up.append(self._best(weight if self.nonnegative else weight.abs()))
            down.append(self._best(-weight) if self.nonnegative else up[-1])
        return torch.stack(up), torch.stack(down)

    def _best(self, effect: Tensor) -> Tensor:  # [D, M] -> [M]
        effect = effect.clamp(min=0)
        if self.everywhere:
            return effect.sum(0, dtype=torch.float64)
        return effect.topk(self.count, 0).values.sum(0, dtype=torch.float64)

    def bound_losses(self, form: AffineForm, t: int, labels: Tensor) -> Tensor:
        """What new features add to each label's lead over t at most [K]; labels are consecutive numbers."""
        network, inserted = self.network, form.inserted[None]
        lost = F.merge_scores(inserted, network.hash, labels, validate=False)[0]
        lost = lost + F.merge_scores(inserted, network.hash, labels.new_tensor([t]), validate=False)[0]
        if self._label_vectors is None or form.hidden is None:
            return lost
        # Squares of small numbers vanish in float32: lines are 1e-18 at least, products lose 2^-126 at most.
        line = relu_lines(form.hidden.low, form.hidden.high)[0].clamp(min=1e-18).float().square()
        v, own = self._label_vectors[int(labels[0]) : int(labels[-1]) + 1], self._label_vectors[t]
        squares, square = v.square() @ line, own.square() @ line
        rounding = 8 * (len(line) + 8) * 2.0**-24 * (squares + square)  # of these float32 products
        rounding += 8 * (len(line) + 8) * 2.0**-126
        distance = (squares + square - 2 * (v @ (own * line))).clamp(min=0) + rounding
        return lost.minimum(form.reach.epsilon * self.norm * distance.double().sqrt())

    @functools.cached_property
    def _label_vectors(self) -> Tensor | None:
        """Labels' weights on the one shared hidden layer, means of their buckets' [L, H], where they fit."""
        network, model = self.network, self.network.model
        R, L = model.num_repetitions, model.num_labels
        if not self.norm or network.copies > 1 or L * model.hidden_sizes[0] > 1 << 26:
            return None
        vectors = torch.zeros(L, model.hidden_sizes[0], device=network.device)
        for r in range(R):
            vectors += network.bucket_weight[r].T[network.buckets[r]].float() / R
        return vectors

    # -------------------------------------------------------------------------- one document's, exactly

    def reduce(
        self, form: AffineForm, lower: Tensor, lost: Tensor, direction: Direction, signs_only: bool
    ) -> Tensor:
        """Bounds of margins less what new features take: `lost` [K] or, where it is not enough, exactly.

        `direction` is that of all K labels. With `signs_only` the exact loss is taken only where it decides
        whether a bound is above zero.
        """
        decisive = (lower > 0) & (lower + lost <= 0)
        at = (decisive if signs_only else torch.ones_like(decisive)).nonzero()[:, 0]
        if len(at):
            lost = lost.index_copy(0, at, self.loss(form, direction.of(at)))
        return lower + lost

    def loss(self, form: AffineForm, direction: Direction) -> Tensor:  # [K], <= 0
        """What margins can lose to features that the document lacks, exactly."""
        harm: Tensor | None = None
        for begin, end in direction.tiles():
            tile = self._harm(form, direction, begin, end)[0]
            if self.everywhere:
                harm = tile.sum(0, keepdim=True) if harm is None else harm + tile.sum(0, keepdim=True)
            else:
                both = tile if harm is None else torch.cat((harm, tile))
                harm = both.topk(min(self.count, len(both)), 0).values
        assert harm is not None
        return -form.reach.epsilon * harm.sum(0)

    def slopes(self, form: AffineForm, direction: Direction) -> Tensor:  # [D]
        """The first margin's slopes to features that the document lacks, 0 where they can't lower it."""
        pieces = []
        for begin, end in direction.tiles():
            harm, g = self._harm(form, direction, begin, end)
            pieces.append(torch.where(harm[:, 0] > 0, g[:, 0], 0.0))
        return torch.cat(pieces)

    def _harm(self, form: AffineForm, direction: Direction, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """The most that a new feature of weight 1 takes from each margin, and the margins' slopes [T, K]."""
        g = direction.features(begin, end)
        harm = (-g).clamp(min=0) if self.nonnegative else g.abs()
        own = form.own[(form.own >= begin) & (form.own < end)] - begin
        harm[own] = 0
        return harm, g
