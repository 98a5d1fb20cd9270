"""`Insertion` bounds the effect of features that a document lacks, for threat models that add features."""

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

    `a` [K, M] are the margins' weights on the encoder's outputs. It is None for linear MACH.
    """

    def __init__(self, network: Network, t: int, labels: Tensor, a: Tensor | None) -> None:
        """Takes the labels and the weights."""
        self.network, self.t, self.labels, self.a = network, t, labels, a

    def of(self, at: Tensor) -> Direction:
        """Returns the direction of some labels, by their positions."""
        a = None if self.a is None else self.a[at]
        return Direction(self.network, self.t, self.labels[at], a)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yields the first feature and the end of each tile."""
        D = self.network.model.num_features  # A dense feature is never new.
        width = self.network.bucket_bias.numel() if self.a is None else self.a.shape[1]
        step = max(64, HELD // (4 * max(width, len(self.labels))))
        return ((begin, min(D, begin + step)) for begin in range(0, D, step))

    def features(self, begin: int, end: int) -> Tensor:  # [T, K]
        """Returns the margins' slopes to the features of a tile."""
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
    """The features that an attacker may add: at most `count`, or all (`everywhere`), by epsilon each."""

    def __init__(self, network: Network, threat: ThreatModel) -> None:
        """Prepares the bounds for a model and a threat model."""
        self.network = network
        self.nonnegative = threat.nonnegative
        self.count = threat.m if isinstance(threat, Insert) else 0
        self.everywhere = isinstance(threat, Dense)
        self.possible = bool(self.count) or self.everywhere
        self.up, self.down = self._extremes()
        self.norm = 0.0  # the largest sum of norms of `count` rows of the encoder
        if self.count and not network.model.is_linear and not network.two_layers:
            words = network.first.weight[0, : network.model.num_features]
            norms = vector_norm(words, dim=1, dtype=torch.float64)
            self.norm = float(norms.topk(self.count).values.sum())

    @property
    def number(self) -> int:
        """The number of products that new features can add to a sum over features."""
        return self.network.model.num_columns if self.everywhere else self.count

    # ------------------------------------------------------------------- bounds that hold for all documents

    def _extremes(self) -> tuple[Tensor, Tensor]:
        """Returns how much new features of weight 1 can raise and lower each first-layer output [C, M].

        All features count as new. A document has some of the best features itself, so the bounds are sound
        and a little wider.
        """
        layer = self.network.first.weight  # [C, D, M]
        if not self.possible:
            nothing = torch.zeros(layer.shape[0], layer.shape[2], dtype=torch.float64, device=layer.device)
            return nothing, nothing
        up, down = [], []
        for weight in layer[:, : self.network.model.num_features]:  # [D, M]
            up.append(self._best(weight if self.nonnegative else weight.abs()))
            down.append(self._best(-weight) if self.nonnegative else up[-1])
        return torch.stack(up), torch.stack(down)

    def _best(self, effect: Tensor) -> Tensor:  # [D, M] -> [M]
        """Returns the largest sum of the effects of new features."""
        effect = effect.clamp(min=0)
        if self.everywhere:
            return effect.sum(0, dtype=torch.float64)
        return effect.topk(self.count, 0).values.sum(0, dtype=torch.float64)

    def bound_losses(self, form: AffineForm, t: int, labels: Tensor) -> Tensor:
        """Returns how much new features can raise each label's lead over t [K]. Labels are consecutive."""
        network, inserted = self.network, form.inserted[None]
        lost = F.merge_scores(inserted, network.hash, labels, validate=False)[0]
        lost = lost + F.merge_scores(inserted, network.hash, labels.new_tensor([t]), validate=False)[0]
        if self._label_vectors is None or form.hidden is None:
            return lost
        # Squares of small numbers vanish in float32. So lines are at least 1e-18, and a product loses at most
        # 2^-126.
        line = relu_lines(form.hidden.low, form.hidden.high)[0].clamp(min=1e-18).float().square()
        v, own = self._label_vectors[int(labels[0]) : int(labels[-1]) + 1], self._label_vectors[t]
        squares, square = v.square() @ line, own.square() @ line
        rounding = 8 * (len(line) + 8) * 2.0**-24 * (squares + square)  # rounding of these float32 products
        rounding += 8 * (len(line) + 8) * 2.0**-126
        distance = (squares + square - 2 * (v @ (own * line))).clamp(min=0) + rounding
        return lost.minimum(form.reach.epsilon * self.norm * distance.double().sqrt())

    @functools.cached_property
    def _label_vectors(self) -> Tensor | None:
        """The labels' mean bucket weights on a single shared hidden layer [L, H]. None: they do not fit."""
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
        """Subtracts from margins what new features can take.

        The bound `lost` [K] is used if it suffices, and the exact loss otherwise. `direction` is that of all
        K labels. With `signs_only` the exact loss is computed only if it decides whether a bound is above
        zero.
        """
        decisive = (lower > 0) & (lower + lost <= 0)
        at = (decisive if signs_only else torch.ones_like(decisive)).nonzero()[:, 0]
        if len(at):
            lost = lost.index_copy(0, at, self.loss(form, direction.of(at)))
        return lower + lost

    def loss(self, form: AffineForm, direction: Direction) -> Tensor:  # [K], <= 0
        """Returns exactly how much margins can lose to features that the document lacks."""
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
        """Returns the first margin's slopes to features that the document lacks.

        A slope that cannot lower the margin is 0.
        """
        pieces = []
        for begin, end in direction.tiles():
            harm, g = self._harm(form, direction, begin, end)
            pieces.append(torch.where(harm[:, 0] > 0, g[:, 0], 0.0))
        return torch.cat(pieces)

    def _harm(self, form: AffineForm, direction: Direction, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Returns the most that a new feature of weight 1 takes from each margin, and the slopes [T, K]."""
        g = direction.features(begin, end)
        harm = (-g).clamp(min=0) if self.nonnegative else g.abs()
        own = form.own[(form.own >= begin) & (form.own < end)] - begin
        harm[own] = 0
        return harm, g
