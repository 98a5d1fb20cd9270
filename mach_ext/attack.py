"""Adversarial evaluation: small changes of documents that change their labels, and what they do to P@k.

* Threat models, `Dense`, `Support`, `Insert`, `L2`, `L1`, `Delete`: what may be changed, and by how much.
* Attacks, `FGSM`, `PGD`, `Greedy`, and `Random` as a control: `.perturb(X, Y, epsilon)`, a `Perturbation`.
* `evaluate`: P@k, nDCG@k, PSP@k clean and adversarial over a grid of epsilon, with bootstrap intervals.

**Goals.** "untargeted": the loss (bucket cross-entropy) of the true labels rises; "own": that of the model's
own top k, for which no labels are needed and none leak; "positive": the best-ranked true label of the top k
leaves it; "negative": a false label enters it, by default the best-ranked one outside. The two targeted goals
raise a difference of two labels' scores (means of logits). Losses are sums over buckets, a number a document:
means would let gradients vanish with B.

**All features without N x D.** An L-inf step on every feature is x + eps * sign(G W'), with G [N, M] the
gradient to the first layer and W [D, M] its weight. What it does to that layer is eps * sign(G W') W, summed
over tiles of features; so it is the same for every eps, and N x D never exists. `Perturbation` keeps G and
that *offset*; it is written out, tile by tile, only when asked for.

Notation: N documents, D features, L labels, R repetitions, B buckets, k top-k; the first layer has C blocks
of M units: the encoder (C = 1) or, for linear MACH, the R bucket classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import _ops
from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_errors
from mach_ext._progress import tqdm
from mach_ext.data import check_csr, check_labels
from mach_ext.metrics import KS, without_filtered
from mach_ext.nn import (
    MACH,
    MODEL_MERGES,
    USUAL_K,
    check_parameters,
    check_scores,
    checked_k,
    evaluating,
    predict_batch,
)

__all__ = [
    "FGSM",
    "GOALS",
    "L1",
    "L2",
    "PGD",
    "Delete",
    "Dense",
    "Greedy",
    "Insert",
    "Perturbation",
    "Random",
    "Support",
    "ThreatModel",
    "evaluate",
    "threat_model",
]

GOALS = ("untargeted", "own", "positive", "negative")
_FIRST_LAYER = 1 << 24  # numbers of the first layer that are held at a time: 64 MiB of float32
_TILE = 1 << 21  # numbers of a tile of documents x features: 8 MiB stay in cache from one product to the next
_ROUNDING = 1e-7  # how far inside what rounded sums must not exceed
_NEAREST = 100  # ranks in which a false label to push up is looked for


# ------------------------------------------------------------------------------------------ threat models


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may do to a document x: which features, and how far.

    With `nonnegative` values stay >= 0, as term weights are; documents with negative values are refused then.
    `epsilon` is the radius of a ball around x, or for `Delete` a number of words.
    """

    nonnegative: bool = True

    name = ""
    norm = math.inf  # of the ball

    def __str__(self) -> str:
        return self.name

    def check(self, op: str, X: Any, epsilon: float) -> None:
        """Raises ValueError where the threat model doesn't fit documents X or epsilon."""
        if not (isinstance(epsilon, (int, float, np.number)) and 0 <= epsilon < math.inf):
            raise ValueError(f"{op}: epsilon must be a number >= 0, got {epsilon!r}")
        if self.nonnegative and X.nnz and X.data.min() < 0:
            row = int(np.searchsorted(X.indptr, np.argmin(X.data), side="right")) - 1
            raise ValueError(
                f"{op}: threat model {self} keeps values >= 0, but X has {X.data.min():g} in row {row}: "
                f"{type(self).__name__}(nonnegative=False) is for such features"
            )

    def bounds(self, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """Lowest and highest values, float64, of features whose values are x, each by itself."""
        low, high = x.double() - epsilon, x.double() + epsilon
        return (low.clamp(min=0) if self.nonnegative else low), high

    def project(self, x: Tensor, y: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """Values y moved into the set around x; L2 and L1: on a straight line to x. Rounding stays inside."""
        low, high = self.bounds(x, epsilon)
        inside = y.double().clamp(low, high)
        if self.norm != math.inf:
            size = _norms(inside - x.double(), rows, N, self.norm)
            shrink = (epsilon * (1 - _ROUNDING) / size).clamp(max=1)  # 0 / 0 and eps / 0: nothing to shrink
            shrink = shrink.nan_to_num(1.0)
            inside = x.double() + (inside - x.double()) * shrink[rows]
        near = inside.to(x.dtype)
        beyond = (near.double() - x.double()).abs() > (inside - x.double()).abs()
        return torch.where(beyond, near.nextafter(x), near)

    def step(self, g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
        """The step of a given size, in the norm of the ball, that the gradient g rises most along."""
        return g.sign() * size

    def vertex(self, x: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """The point of the set in which FGSM ends: the step of size epsilon, projected."""
        return self.project(x, x + self.step(g, rows, N, epsilon), rows, N, epsilon)

    def advance(
        self, x: Tensor, now: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float, size: float, t: int
    ) -> Tensor:
        """PGD's point after `now`, the t-th (from 0): a step of a given size, projected."""
        return self.project(x, now + self.step(g, rows, N, size), rows, N, epsilon)

    def holds(self, X: Any, adversarial: Any, epsilon: float) -> bool:
        """Whether documents `adversarial` are within this threat model around X, every one of them.

        In float64, to its rounding; of what the numbers in the two matrices are.
        """
        X, adversarial = _wide(X), _wide(adversarial)
        change = adversarial - X
        change.eliminate_zeros()
        if self.nonnegative and adversarial.data.min(initial=0) < 0:
            return False
        return bool(np.isfinite(change.data).all()) and self._holds(X, change, epsilon)

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        return _within(change, self.norm, epsilon) and not _outside(X, change).nnz


@dataclass(frozen=True)
class Dense(ThreatModel):
    """Every feature by at most epsilon (L-inf), also those that the document lacks. Not a small change: it
    adds up to D non-zeros and has L2 norm up to epsilon * sqrt(D). Values may fall below 0 by default."""

    nonnegative: bool = False

    name = "dense"

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        return _within(change, self.norm, epsilon)


@dataclass(frozen=True)
class Support(ThreatModel):
    """The document's own features, each by at most epsilon (L-inf)."""

    name = "support"


@dataclass(frozen=True)
class Insert(ThreatModel):
    """As `Support`, and at most m features more, of at most epsilon."""

    m: int = 5

    name = "insert"

    def __str__(self) -> str:
        return f"insert({self.m})"

    def check(self, op: str, X: Any, epsilon: float) -> None:
        super().check(op, X, epsilon)
        most = X.shape[1] - int(np.diff(X.indptr).max(initial=0))
        if not 0 <= self.m <= most:
            raise ValueError(
                f"{op}: threat model {self}: m must be in 0 ... {most}, what a document of X lacks of its "
                f"D={X.shape[1]} features, got {self.m}"
            )

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        new = np.diff(_outside(X, change).indptr).max(initial=0)
        return _within(change, self.norm, epsilon) and bool(new <= self.m)


@dataclass(frozen=True)
class L2(ThreatModel):
    """The document's own features, within a Euclidean ball."""

    name = "l2"
    norm = 2.0

    def step(self, g: Tensor, rows: Tensor, N: int, size: float) -> Tensor:
        scale = (size / _norms(g.double(), rows, N, 2.0)).nan_to_num(0.0, posinf=0.0)
        return (g.double() * scale[rows]).to(g.dtype)


@dataclass(frozen=True)
class L1(ThreatModel):
    """The document's own features, by epsilon in all: the few that count most take it."""

    name = "l1"
    norm = 1.0

    def vertex(self, x: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """By falling gradient, each feature as far as it may go, until epsilon is used up."""
        low, high = self.bounds(x, epsilon)
        room = torch.where(g > 0, high - x.double(), torch.where(g < 0, x.double() - low, 0.0))
        order = _rank_in_rows(g.abs(), rows)
        used = room[order].cumsum(0) - room[order]  # by features before it, all documents'
        first = _first_of_rows(torch.arange(len(rows), device=rows.device), rows, N)
        start = used.new_zeros(N)
        start[rows[first]] = used[first]
        left = (epsilon - (used - start[rows])).clamp(min=0)  # `order` keeps documents together: same rows
        move = torch.empty_like(room)
        move[order] = torch.minimum(room[order], left)
        return self.project(x, (x.double() + g.sign() * move).to(x.dtype), rows, N, epsilon)

    def advance(
        self, x: Tensor, now: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float, size: float, t: int
    ) -> Tensor:
        """A conditional gradient (Frank-Wolfe): a part of the way to the vertex, which never sticks at a
        bound, as steps along the largest gradient do."""
        to = self.vertex(x, g, rows, N, epsilon)
        return self.project(x, now + 2 / (t + 2) * (to - now), rows, N, epsilon)


@dataclass(frozen=True)
class Delete(ThreatModel):
    """At most epsilon words are removed, and nothing else. For `Greedy`."""

    nonnegative: bool = False

    name = "delete"
    norm = 0.0

    def check(self, op: str, X: Any, epsilon: float) -> None:
        super().check(op, X, epsilon)
        if epsilon != int(epsilon):
            raise ValueError(f"{op}: epsilon of threat model {self} must be a number of words, got {epsilon}")

    def _holds(self, X: Any, change: Any, epsilon: float) -> bool:
        kept = X + change
        kept.eliminate_zeros()
        same = abs(kept - X.multiply(kept != 0)).max() == 0
        return bool(same and np.diff(change.indptr).max(initial=0) <= epsilon)


_THREATS: dict[str, type[ThreatModel]] = {t.name: t for t in (Dense, Support, Insert, L2, L1, Delete)}


def threat_model(text: str | ThreatModel, nonnegative: bool | None = None) -> ThreatModel:
    """A threat model from its name: "dense", "support", "insert" or "insert(10)", "l2", "l1", "delete".

    Example:
        >>> from mach_ext.attack import threat_model
        >>> threat_model("insert(3)")
        Insert(nonnegative=True, m=3)
    """
    if isinstance(text, ThreatModel):
        return text
    name, parenthesis, rest = str(text).partition("(")
    count = rest.removesuffix(")")
    if name not in _THREATS or (parenthesis and (name != "insert" or count == rest or not count.isdecimal())):
        known = ", ".join(_THREATS)
        raise ValueError(f"threat model must be one of {known}, or as insert(10), got {text!r}")
    options: dict[str, Any] = {} if nonnegative is None else {"nonnegative": nonnegative}
    if parenthesis:
        options["m"] = int(count)
    return _THREATS[name](**options)


def _wide(X: Any) -> Any:
    """CSR of float64; duplicates are summed as that, not in a small dtype of their own."""
    return scipy.sparse.csr_matrix(scipy.sparse.coo_matrix(X).astype(np.float64))


def _within(change: Any, norm: float, epsilon: float) -> bool:
    rows = np.repeat(np.arange(change.shape[0]), np.diff(change.indptr))
    size = np.abs(change.data)
    if norm == math.inf:
        reached = size
    elif norm == 1:
        reached = np.bincount(rows, size, minlength=1)
    else:
        reached = np.sqrt(np.bincount(rows, size**2, minlength=1))
    return bool(reached.max(initial=0.0) <= epsilon * (1 + 1e-12))


def _outside(X: Any, change: Any) -> Any:
    """The part of a change at features where X is 0."""
    outside = scipy.sparse.csr_matrix(change - change.multiply(X != 0))
    outside.eliminate_zeros()
    return outside


def _norms(v: Tensor, rows: Tensor, N: int, p: float) -> Tensor:  # [N]
    total = v.new_zeros(N).index_add_(0, rows, v.abs() if p == 1 else v.square())
    return total if p == 1 else total.sqrt()


def _rank_in_rows(key: Tensor, rows: Tensor) -> Tensor:
    """Positions, documents in their order, each one's by falling key."""
    falling = key.sort(descending=True, stable=True).indices
    return falling[rows[falling].sort(stable=True).indices]


def _first_of_rows(order: Tensor, rows: Tensor, N: int) -> Tensor:
    """Of positions in which documents keep together, the first one of each that has any."""
    start = torch.ones_like(order, dtype=torch.bool)
    start[1:] = rows[order[1:]] != rows[order[:-1]]
    return order[start]


# ------------------------------------------------------------------------------- the model, seen by attacks


class _Layer:
    """A model's first layer, and losses of documents as functions of what it gives."""

    def __init__(self, op: str, model: MACH) -> None:
        check_parameters(op, model)
        model.hash.check_contents()
        self.model, self.device = model, model.bucket_bias.device
        linear = model.is_linear
        weight, bias = (
            (model.bucket_weight, model.bucket_bias) if linear else (model.encoder_weight, model.encoder_bias)
        )
        self.weight = weight.detach() if linear else weight.detach()[None]  # [C, D, M]
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.bias = (bias.detach() if linear else bias.detach()[None]).to(self.dtype)  # [C, M]
        self.buckets = model.hash.buckets

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[2]

    def first(self, x: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [N, C, M]
        """Pre-activations (linear MACH: bucket logits) of documents."""
        return _ops.sparse_linear(x, indices, indptr, self.weight, self.bias, False)

    def to_values(self, gradient: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:  # [nnz]
        return _ops.sparse_linear_grad_values(gradient, indices, indptr, self.weight)

    def hidden(self, first: Tensor) -> Tensor:  # [N, H] or [N, R, H]
        return self.model.encode_hidden(first.flatten(1).relu(), dropout=False)

    def logits(self, first: Tensor) -> Tensor:  # [N, R, B]
        if self.model.is_linear:
            return first
        model = self.model
        return F.bucket_logits(self.hidden(first), model.bucket_weight.detach(), model.bucket_bias.detach())

    def topk(self, first: Tensor, k: int) -> tuple[Tensor, Tensor]:
        transform, merge = MODEL_MERGES[self.model.merge]
        logits = self.logits(first)
        return F.merge_topk(logits if transform is None else transform(logits), self.model.hash, k, merge)

    def losses(self, first: Tensor, goal: _Targets, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Losses [N] float64, to be raised, and their gradient to the first layer [N, C, M]."""
        # The weights are of now: a step that another thread takes meanwhile is no fault of this gradient.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
            leaf = first.detach().requires_grad_(gradient)
            last = leaf if self.model.is_linear else self.hidden(leaf)
            if goal.pairs is not None:
                return self._differences(leaf, last, goal, gradient)
        values = last.detach()
        loss = torch.zeros(len(first), dtype=torch.float64, device=self.device)
        to_last = torch.zeros_like(values) if gradient else None
        weight, bias = self.model.bucket_weight.detach(), self.model.bucket_bias.detach()
        for r in range(self.model.num_repetitions):
            if self.model.is_linear:
                z = values[:, r].clone(memory_format=torch.contiguous_format)
            else:
                h = values if values.dim() == 2 else values[:, r]
                w = weight[r].to(self.dtype)
                z = torch.addmm(bias[r].to(self.dtype), h, w)
            loss += _ops.bucket_bce(z, self.buckets[r], *goal.labels, 1.0, gradient)
            if to_last is None:
                continue
            if self.model.is_linear:
                to_last[:, r] = z
            elif values.dim() == 2:
                to_last.addmm_(z, w.T)
            else:
                to_last[:, r] = z @ w.T
        if to_last is None or self.model.is_linear:
            return loss, to_last
        (found,) = torch.autograd.grad(last, leaf, to_last)
        return loss, found

    def _differences(
        self, leaf: Tensor, last: Tensor, goal: _Targets, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
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
        found = torch.autograd.grad(loss.sum(), leaf)[0] if gradient else None
        return loss.detach().double(), found


def _as_it_is(t: Tensor) -> Tensor:
    return t


@dataclass
class _Targets:
    """What a batch's losses are about."""

    labels: tuple[Tensor, Tensor]  # indices, indptr of the labels whose loss is to rise
    pairs: Tensor | None = None  # [N, 2]: the label to raise, the label to lower
    active: Tensor | float = 1.0  # [N]: 0 where there is nothing to aim at
    targets: Tensor | None = None  # [N]: the label that is to leave or enter; -1


class _Direction:
    """An [N, D] matrix, tile by tile: a gradient G W', or noise."""

    def __init__(self, layer: _Layer, gradient: Tensor | None, N: int, seed: int = 0) -> None:
        self.layer, self.gradient, self.N, self.seed = layer, gradient, N, seed

    def tile(self, begin: int, end: int, buffer: Tensor | None = None) -> Tensor:  # [N, end - begin]
        """With a `buffer`, N * (end - begin) numbers or more, in its memory."""
        if self.gradient is None:
            # Torch's CPU generator takes the low 32 bits of a seed only.
            seed = int(np.random.SeedSequence([self.seed % (1 << 64), begin]).generate_state(1)[0])
            generator = torch.Generator(self.layer.device).manual_seed(seed)
            shape, dtype = (self.N, end - begin), self.layer.dtype
            return torch.randn(shape, generator=generator, device=self.layer.device, dtype=dtype)
        weight = self.layer.weight[:, begin:end].to(self.layer.dtype)
        out = None if buffer is None else buffer[: self.N * (end - begin)].view(self.N, -1)
        with F.own_precision(self.layer.device):
            tile = torch.mm(self.gradient[:, 0], weight[0].T, out=out)
            for c in range(1, len(weight)):
                tile.addmm_(self.gradient[:, c], weight[c].T)
        return tile

    @property
    def width(self) -> int:
        return min(self.layer.weight.shape[1], max(64, _TILE // max(1, self.N)))

    def tiles(self) -> Iterator[tuple[int, int]]:
        D, width = self.layer.weight.shape[1], self.width
        return ((begin, min(D, begin + width)) for begin in range(0, D, width))


class _Entries:
    """The non-zeros of documents, found again in tiles of features."""

    def __init__(self, rows: Tensor, indices: Tensor) -> None:
        self.order = indices.sort(stable=True).indices
        self.rows, self.columns = rows[self.order], indices[self.order].long()

    def within(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, rows, columns of the tile."""
        low, high = torch.searchsorted(self.columns, self.columns.new_tensor([begin, end])).tolist()
        at = slice(low, high)
        return self.order[at], self.rows[at], self.columns[at] - begin


def sign_pass(
    direction: _Direction, layer: _Layer, entries: _Entries, nonnegative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """offset[n] = sum over d of s[n, d] W[d] with s the signs of the direction, in tiles of features.

    Returns:
        offset [N, C, M] in `layer`, how many s are not 0 [N], s of the entries [nnz].
    """
    C, M = layer.shape
    offset = torch.zeros(C, direction.N, M, dtype=layer.dtype, device=layer.device)
    counts = torch.zeros(direction.N, dtype=torch.int64, device=layer.device)
    own = torch.empty(len(entries.order), dtype=layer.dtype, device=layer.device)
    buffer = torch.empty(direction.N * direction.width, dtype=layer.dtype, device=layer.device)
    for begin, end in direction.tiles():
        tile = direction.tile(begin, end, buffer)
        counts += _ops.signs(tile, nonnegative)
        positions, rows, columns = entries.within(begin, end)
        own[positions] = tile[rows, columns]
        for c in range(C):
            offset[c].addmm_(tile, layer.weight[c, begin:end].to(layer.dtype))
    return offset.transpose(0, 1), counts, own


def _best_new_features(direction: _Direction, entries: _Entries, m: int, nonnegative: bool) -> Tensor:
    """The m features [N, m], ascending, of the largest (absolute) direction that documents lack."""
    best = torch.full((direction.N, m), -math.inf, dtype=direction.layer.dtype, device=entries.rows.device)
    features = torch.zeros(direction.N, m, dtype=torch.int64, device=entries.rows.device)
    for begin, end in direction.tiles():
        tile = direction.tile(begin, end)
        tile = tile if nonnegative else tile.abs_()
        _, rows, columns = entries.within(begin, end)
        tile[rows, columns] = -math.inf
        values, at = tile.topk(min(m, end - begin), 1)
        best, chosen = torch.cat((best, values), 1).topk(m, 1)
        features = torch.cat((features, at + begin), 1).gather(1, chosen)
    return features.sort(1).values


# ------------------------------------------------------------------------------------------- perturbations


@dataclass
class _Batch:
    """Documents from `start` on: base [their CSR arrays] + sum of weight * signs of a direction."""

    start: int
    x: Tensor  # [nnz] clean values, 0 at features that were inserted
    values: Tensor  # [nnz] base
    indices: Tensor
    indptr: Tensor
    loss: Tensor  # [N]
    clean_loss: Tensor  # [N]
    directions: list[tuple[Tensor, _Direction]] = field(default_factory=list)  # weights [N]
    offset: Tensor | None = None  # [N, C, M]: offset * scale[N] is what the directions add to the first layer
    scale: Tensor | None = None
    counts: Tensor | None = None  # [N] non-zero signs; [N] of them at the document's own features
    own_counts: Tensor | None = None
    targets: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        return _rows(self.indptr)

    def added(self, first: Tensor) -> Tensor:
        """The first layer with the offset."""
        assert self.offset is not None
        assert self.scale is not None
        return torch.addcmul(first, self.offset, self.scale[:, None, None])


class Perturbation:
    """Adversarial documents, as changes of X: written out only when asked for.

    Attributes:
        X, epsilon, threat_model: What it is a perturbation of, and how large it may be.
        loss, clean_loss: Of each document, [N] float64; what the attack raised.
        targets: Of targeted goals, the label that was to leave or enter, [N]; -1 where there is none.
    """

    def __init__(
        self, model: MACH, threat: ThreatModel, X: Any, epsilon: float, batches: list[_Batch], given: Any
    ) -> None:
        self.model, self.threat_model, self.X, self.epsilon = model, threat, X, epsilon
        self._batches, self._given = batches, given

        def joined(name: str) -> NDArray[Any]:
            parts = [getattr(batch, name).cpu().numpy() for batch in batches]
            return np.concatenate(parts) if parts else np.empty(0)

        self.loss, self.clean_loss = joined("loss"), joined("clean_loss")
        targeted = bool(batches) and batches[0].targets is not None
        self.targets: NDArray[Any] | None = joined("targets") if targeted else None

    def __repr__(self) -> str:
        return f"Perturbation(N={self.X.shape[0]}, {self.threat_model}, epsilon={self.epsilon:g})"

    # ---------------------------------------------------------------- what the model makes of it

    def _first(self, layer: _Layer, batch: _Batch) -> Tensor:
        first = layer.first(batch.values.to(layer.dtype), batch.indices, batch.indptr)
        if batch.offset is None:
            return first
        if layer.model is self.model:
            return batch.added(first)
        entries = _Entries(batch.rows, batch.indices)  # the same signs through the other model's weight
        for weight, direction in batch.directions:
            offset, _, _ = sign_pass(direction, layer, entries, self.threat_model.nonnegative)
            first += offset * weight[:, None, None].to(layer.dtype)
        return first

    def _layer(self, model: MACH | None) -> _Layer:
        model = self.model if model is None else model
        if model.num_features != self.X.shape[1]:
            raise ValueError(
                f"Perturbation: model must have D={self.X.shape[1]} features, got {model.num_features}"
            )
        return _Layer("Perturbation", model)

    @memory_errors("perturb fewer documents at a time")
    def hidden(self, model: MACH | None = None) -> Tensor:
        """Hidden units of the adversarial documents that the bucket classifiers take, [N, H] or [N, R, H]."""
        layer = self._layer(model)
        if layer.model.is_linear:
            raise ValueError("Perturbation.hidden: linear MACH (hidden_size=0) has no hidden layer")
        none = torch.empty(0, *layer.shape, dtype=layer.dtype, device=layer.device)
        with evaluating(layer.model):
            parts = [layer.hidden(self._first(layer, batch)) for batch in self._batches]
            return torch.cat(parts or [layer.hidden(none)])

    @memory_errors("perturb fewer documents at a time or lower k")
    def predict(self, k: int | None = None, model: MACH | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores and labels [N, k] of the adversarial documents, by this model or another one (transfer).

        k None: 5, or all L labels where there are fewer.
        """
        layer = self._layer(model)
        k = checked_k("Perturbation.predict", k, layer.model.num_labels)
        N, some = self.X.shape[0], predict_batch(layer.model.num_repetitions, layer.model.num_buckets)
        scores, labels = np.empty((N, k), np.float32), np.empty((N, k), np.int64)
        with evaluating(layer.model):
            for batch in self._batches:
                first = self._first(layer, batch)
                for begin in range(0, len(first), some):
                    best, ids = layer.topk(first[begin : begin + some], k)
                    check_scores("Perturbation.predict", layer.model, best)
                    at = slice(batch.start + begin, batch.start + begin + len(ids))
                    scores[at], labels[at] = best.cpu().numpy(), ids.cpu().numpy()
        return scores, labels

    # ------------------------------------------------------------------------------- what it is

    def _changes(self, batch: _Batch) -> Iterator[tuple[int, int, Tensor]]:
        """The change [N, T] of tiles of features, with what the base differs by."""
        entries = _Entries(batch.rows, batch.indices)
        one = batch.directions[0][1]
        for begin, end in one.tiles():
            total = torch.zeros(one.N, end - begin, dtype=one.layer.dtype, device=one.layer.device)
            for weight, direction in batch.directions:
                tile = direction.tile(begin, end)
                _ops.signs(tile, self.threat_model.nonnegative)
                total += tile * weight[:, None].to(total.dtype)
            positions, rows, columns = entries.within(begin, end)
            total[rows, columns] += batch.values[positions] - batch.x[positions]
            yield begin, end, total

    @property
    @memory_errors("perturb fewer documents at a time")
    def norms(self) -> dict[str, NDArray[np.float64]]:
        """Of the change of each document, [N] each: linf, l2, l1; non-zeros added and removed."""
        parts = [self._batch_norms(batch) for batch in self._batches]
        names = ("linf", "l2", "l1", "added", "removed")
        return {name: np.concatenate([p[name] for p in parts] or [np.empty(0)]) for name in names}

    def _batch_norms(self, batch: _Batch) -> dict[str, NDArray[np.float64]]:
        N = len(batch.indptr) - 1
        if len(batch.directions) == 1 and batch.counts is not None and not self.threat_model.nonnegative:
            size, count = batch.directions[0][0].abs().double(), batch.counts.double()
            assert batch.own_counts is not None
            found = {
                "linf": size * (count > 0),
                "l2": size * count.sqrt(),
                "l1": size * count,
                "added": (count - batch.own_counts) * (size > 0),
                "removed": torch.zeros(N),
            }
        elif batch.directions:
            found = {n: torch.zeros(N, dtype=torch.float64) for n in ("linf", "l2", "l1", "added", "removed")}
            changed_own = torch.zeros(N, dtype=torch.float64)
            entries = _Entries(batch.rows, batch.indices)
            for begin, end, change in self._changes(batch):
                size = change.abs().double().cpu()
                found["linf"] = torch.maximum(found["linf"], size.amax(1))
                found["l2"] += size.square().sum(1)
                found["l1"] += size.sum(1)
                found["added"] += (size > 0).sum(1)
                positions, rows, columns = entries.within(begin, end)
                moved, x = change[rows, columns], batch.x[positions]
                changed_own.index_add_(0, rows.cpu(), ((moved != 0) & (x != 0)).cpu().double())
                gone = ((moved + x).abs() <= 1e-7 * x.abs()) & (x != 0)
                found["removed"].index_add_(0, rows.cpu(), gone.cpu().double())
            found["added"] -= changed_own
            found["l2"] = found["l2"].sqrt()
        else:
            change, rows = (batch.values.double() - batch.x.double()).abs(), batch.rows
            zero = change.new_zeros(N)
            found = {
                "linf": zero.scatter_reduce(0, rows, change, "amax"),
                "l2": _norms(change, rows, N, 2.0),
                "l1": _norms(change, rows, N, 1.0),
                "added": zero.index_add(0, rows, ((batch.x == 0) & (batch.values != 0)).double()),
                "removed": zero.index_add(0, rows, ((batch.x != 0) & (batch.values == 0)).double()),
            }
        return {name: t.cpu().double().numpy() for name, t in found.items()}

    @memory_errors("perturb fewer documents at a time")
    def to_csr(self, max_bytes: int = 1 << 30) -> Any:
        """The adversarial documents, SciPy CSR [N, D], canonical.

        For epsilon 0 the bits of X, in its dtype; where X has duplicates, their sums as the model takes them.

        Raises:
            ValueError: All features are changed, and N x D numbers and their columns take over max_bytes.
        """
        if self.epsilon == 0:
            clean = scipy.sparse.csr_matrix(self._given, copy=True)
            clean.sum_duplicates()  # in a dtype that may be too small for the sums
            return clean if clean.nnz == self._given.nnz else self.X.copy()
        N, D = self.X.shape
        if any(batch.directions for batch in self._batches) and max_bytes < 8 * N * D:
            raise ValueError(
                f"Perturbation.to_csr: N x D = {N} x {D} numbers take {8 * N * D:,} bytes, more than "
                f"max_bytes={max_bytes:,}; predict(), hidden() and norms need none of it"
            )
        if any(batch.directions for batch in self._batches):
            advice = "perturb fewer documents at a time, or lower max_bytes"
            check_memory("Perturbation.to_csr: documents of all features", 8 * N * D, advice, N=N, D=D)
        blocks = [self._block(batch) for batch in self._batches]
        return scipy.sparse.vstack(blocks, format="csr") if blocks else self.X.copy()

    def _block(self, batch: _Batch) -> Any:
        N, D = len(batch.indptr) - 1, self.X.shape[1]
        arrays = (t.cpu().numpy() for t in (batch.values, batch.indices, batch.indptr))
        if not batch.directions:
            block = scipy.sparse.csr_matrix(tuple(arrays), (N, D), copy=True)
            block.sort_indices()
            block.eliminate_zeros()
            return block
        return scipy.sparse.hstack([after for _, after in self._tiles(batch)], format="csr")

    def _tiles(self, batch: _Batch) -> Iterator[tuple[Any, Any]]:
        """Documents before and after, CSR, by tiles of features."""
        documents = self.X[batch.start : batch.start + len(batch.indptr) - 1].tocsc()
        nothing = torch.empty(0, dtype=torch.int64)
        for begin, end, change in self._changes(batch):
            before = documents[:, begin:end]
            x, change = torch.from_numpy(before.toarray()), change.cpu()
            moved = self.threat_model.project(x, x + change, nothing, len(x), self.epsilon)
            yield before, scipy.sparse.csr_matrix(torch.where(change == 0, x, moved).numpy())

    @memory_errors("perturb fewer documents at a time")
    def changes(self, n: int) -> list[tuple[int, float, float]]:
        """What became of document n: feature, old value, new value, by feature."""
        if not 0 <= n < self.X.shape[0]:
            raise ValueError(f"Perturbation.changes: n must be in [0, N={self.X.shape[0]}), got {n}")
        batch = next(b for b in reversed(self._batches) if b.start <= n)
        row = n - batch.start
        old = dict(zip(self.X[n].indices.tolist(), self.X[n].data.tolist(), strict=True))
        if batch.directions:
            moved: dict[int, float] = {}
            for begin, _, change in self._changes(batch):
                at = change[row].nonzero()[:, 0]
                moved.update(zip((at + begin).tolist(), change[row, at].tolist(), strict=True))
            return [(f, old.get(f, 0.0), old.get(f, 0.0) + by) for f, by in sorted(moved.items())]
        own = slice(int(batch.indptr[row]), int(batch.indptr[row + 1]))
        arrays = (batch.indices[own].tolist(), batch.x[own].tolist(), batch.values[own].tolist())
        return sorted((f, a, b) for f, a, b in zip(*arrays, strict=True) if a != b)

    def holds(self) -> bool:
        """Whether every document is within the threat model, by its numbers.

        Where all features are changed (`Dense`, which asks of each feature by itself), a tile of them at a
        time, in the memory of a tile; the model, whose answers are about the sum of sign matrices and not
        about the numbers written out, must stay within rounding of epsilon, too.
        """
        threat, dense = self.threat_model, [batch for batch in self._batches if batch.directions]
        if not dense:
            return threat.holds(self.X, self.to_csr(), self.epsilon)
        most = self.epsilon * (1 + 1e-6)
        weights = [torch.stack([weight for weight, _ in batch.directions]) for batch in dense]
        if any(bool((weight.abs().sum(0) > most).any()) for weight in weights):
            return False
        tiles = (tile for batch in dense for tile in self._tiles(batch))
        return all(threat.holds(before, after, self.epsilon) for before, after in tiles)


def _rows(indptr: Tensor) -> Tensor:
    lengths = indptr.diff().long()
    return torch.repeat_interleave(torch.arange(len(lengths), device=indptr.device), lengths)


# -------------------------------------------------------------------------------------------------- attacks


class _Attack:
    """What attacks share: checks, batches, goals."""

    name = ""
    usual_threat = "support"

    def __init__(
        self,
        model: MACH,
        threat_model: str | ThreatModel | None = None,  # None: `usual_threat`
        goal: str = "untargeted",
        k: int | None = None,
        *,
        keep_best: bool = True,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        op = type(self).__name__
        if not isinstance(model, MACH):
            raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
        if goal not in GOALS:
            raise ValueError(f"{op}: goal must be one of {', '.join(GOALS)}, got {goal!r}")
        self.model, self.goal = model, goal
        self.threat_model = _threat(self.usual_threat if threat_model is None else threat_model)
        self.k = _goal_k(op, model, goal, k)
        self.keep_best, self.seed = keep_best, seed
        self._layer = _Layer(op, model)
        C, M = self._layer.shape
        self.batch_size = batch_size or max(1, min(1024, _FIRST_LAYER // (C * M)))
        self._check_threat(op)

    def _check_threat(self, op: str) -> None:
        if isinstance(self.threat_model, Delete):
            raise ValueError(f"{op}: threat model delete is discrete: Greedy (--attack delete) is for it")

    @memory_errors("lower batch_size or pass fewer documents or epsilons")
    def perturb(
        self, X: Any, Y: Any = None, epsilon: float | Sequence[float] = 0.01, *,
        targets: Any = None, progress: Any = None,
    ) -> Any:  # fmt: skip
        """Adversarial documents of X.

        Args:
            X: Documents [N, D], a SciPy sparse matrix.
            Y: True labels [N, L], a SciPy sparse matrix; not needed for goal "own".
            epsilon: How far, or several numbers: then a list of perturbations, which share what they can.
            targets: For goal "negative", the false label of each document that is to enter [N], -1 for none;
                None: the best-ranked false label outside the top k.
            progress: Called with a number of documents when these are done.

        Raises:
            TypeError, ValueError: Labels missing or of other shape, epsilon < 0, a threat model that doesn't
                fit the features.
        """
        op = f"{type(self).__name__}.perturb"
        several = not isinstance(epsilon, (int, float, np.number))
        grid = [float(e) for e in epsilon] if several else [float(epsilon)]  # type: ignore[union-attr,arg-type]
        given, X = X, check_csr(X, f"{op}: X")
        if not (scipy.sparse.issparse(given) and given.ndim == 2):
            given = X
        if X.shape[1] != self.model.num_features:
            raise ValueError(f"{op}: X must have D={self.model.num_features} columns, got shape {X.shape}")
        if not (X.data != 0).all():
            X = X.copy()
            X.eliminate_zeros()
        for e in grid:
            self.threat_model.check(op, X, e)
        Y = self._check_labels(op, X, Y)
        if targets is not None and (self.goal != "negative" or np.shape(targets) != (X.shape[0],)):
            raise ValueError(f'{op}: targets [N] are for goal "negative", a label for each document')
        self._check_memory(op, X, sum(e > 0 for e in grid))
        batches: list[list[_Batch]] = [[] for _ in grid]
        with evaluating(self.model):
            for start in range(0, X.shape[0], self.batch_size):
                rows = slice(start, min(X.shape[0], start + self.batch_size))
                x, indices, indptr = self._tensors(X[rows])
                chosen = None if targets is None else np.asarray(targets)[rows]
                goal = self._targets(op, X[rows], None if Y is None else Y[rows], chosen)
                found = self._batch(start, x, indices, indptr, goal, grid)
                for batch, kept in zip(found, batches, strict=True):
                    batch.targets = goal.targets
                    kept.append(batch)
                if progress is not None:
                    progress(rows.stop - rows.start)
        result = [
            Perturbation(self.model, self.threat_model, X, e, b, given)
            for e, b in zip(grid, batches, strict=True)
        ]
        return result if several else result[0]

    def _check_memory(self, op: str, X: Any, sizes: int) -> None:
        """Of what is kept: documents for each size, or the gradient that all features are moved by."""
        threat, N, kept = self.threat_model, X.shape[0], 4 * X.nnz * sizes
        if isinstance(threat, Dense):
            kept = 4 * N * math.prod(self._layer.shape)
        elif isinstance(threat, Insert):
            kept += 4 * N * threat.m * sizes
        # Documents with words removed may be the same for several sizes.
        if self._layer.device.type == "cpu" and not isinstance(threat, Delete):
            advice = "pass fewer documents or sizes of epsilon at a time"
            check_memory(f"{op}: perturbed documents", kept, advice, N=N, sizes=sizes)

    def _check_labels(self, op: str, X: Any, Y: Any) -> Any:
        if Y is None:
            if self.goal != "own":
                raise ValueError(f'{op}: goal {self.goal!r} needs the true labels Y; goal "own" needs none')
            return None
        Y = check_labels(Y, f"{op}: Y")
        if Y.shape != (X.shape[0], self.model.num_labels):
            raise ValueError(
                f"{op}: Y must be [N, L] = [{X.shape[0]}, {self.model.num_labels}], got shape {Y.shape}"
            )
        return Y

    def _tensors(self, X: Any) -> tuple[Tensor, Tensor, Tensor]:
        device = self._layer.device
        x = torch.from_numpy(X.data).to(device, self._layer.dtype)
        return x, torch.from_numpy(X.indices).to(device).long(), torch.from_numpy(X.indptr).to(device).long()

    def _targets(self, op: str, X: Any, Y: Any, chosen: Any) -> _Targets:
        model, device, N, k = self.model, self._layer.device, X.shape[0], self.k
        if self.goal == "untargeted":
            labels = torch.from_numpy(Y.indices).long(), torch.from_numpy(Y.indptr).long()
            return _Targets((labels[0].to(device), labels[1].to(device)))
        ranked = model.predict(X, k if self.goal == "own" else min(model.num_labels, max(_NEAREST, k + 1)))[1]
        if self.goal == "own":
            indptr = torch.arange(N + 1, device=device) * k
            return _Targets((torch.from_numpy(ranked).flatten().to(device), indptr))
        true = _is_true(Y, ranked)
        if self.goal == "positive":
            wanted = true[:, :k]
            rival = ranked[:, k]
        else:
            wanted = ~true
            wanted[:, :k] = False
            rival = ranked[:, k - 1]
        target = _first(ranked, wanted)
        if chosen is not None:
            target = np.asarray(chosen, np.int64)
            if N and not (target.min() >= -1 and target.max() < model.num_labels):
                raise ValueError(f"{op}: targets must be labels in [0, L={model.num_labels}), or -1 for none")
            if (_is_true(Y, target[:, None])[:, 0] & (target >= 0)).any():
                raise ValueError(f"{op}: targets must be labels that are false for their documents")
        active = target >= 0
        safe = np.where(active, target, 0)
        pair = (rival, safe) if self.goal == "positive" else (safe, rival)
        return _Targets(
            (torch.empty(0), torch.empty(0)),
            torch.from_numpy(np.stack(pair, 1)).to(device),
            torch.from_numpy(active).to(device, self._layer.dtype),
            torch.from_numpy(target).to(device),
        )

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: _Targets, grid: list[float]
    ) -> list[_Batch]:
        raise NotImplementedError

    def _gradient(self, first: Tensor, goal: _Targets) -> tuple[Tensor, Tensor]:
        loss, gradient = self._layer.losses(first, goal, True)
        assert gradient is not None
        return loss, gradient

    def _loss(self, first: Tensor, goal: _Targets) -> Tensor:
        return self._layer.losses(first, goal, False)[0]

    def _better(self, loss: Tensor, best: Tensor) -> Tensor:
        return loss > best if self.keep_best else torch.ones_like(loss, dtype=torch.bool)


class FGSM(_Attack):
    """One step along the gradient at the clean document (Goodfellow et al. 2015), to the edge of the set.

    A document whose loss that does not raise stays as it is, unless `keep_best` is False.

    Args:
        model: Used in eval mode.
        threat_model: An object, or a name as of `threat_model`.
        goal: One of `GOALS`.
        k: Top k of goals "own", "positive", "negative"; None: 5. With fewer labels None is L, or L - 1 for
            the latter two, which need a label outside the top k.
        keep_best: False: the step is taken whatever it does.
        seed: Of noise.
        batch_size: Documents at a time; None: as many as keep the first layer within 64 MiB, at most 1,024.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> Y = scipy.sparse.csr_matrix(([1, 1, 1], ([0, 1, 2], [7, 80, 450])), (3, 500))
        >>> found = mach_ext.attack.FGSM(model, threat_model="dense").perturb(X, Y, epsilon=0.01)
        >>> bool((found.loss >= found.clean_loss).all()), found.to_csr().nnz > 200
        (True, True)
    """

    name = "fgsm"

    def _direction(self, start: int, gradient: Tensor) -> _Direction:
        return _Direction(self._layer, gradient, len(gradient))

    def _slope(self, batch: _Batch, direction: _Direction) -> Tensor:
        """The direction at the entries of a batch."""
        assert direction.gradient is not None
        return self._layer.to_values(direction.gradient, batch.indices, batch.indptr)

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: _Targets, grid: list[float]
    ) -> list[_Batch]:
        clean_loss, gradient = self._gradient(self._layer.first(x, indices, indptr), goal)
        direction = self._direction(start, gradient)
        if isinstance(self.threat_model, Dense):
            clean = _Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            vertex = self._dense_vertex(clean, direction)
            return [self._dense(clean, vertex, goal, epsilon) for epsilon in grid]
        if isinstance(self.threat_model, Insert):
            x, indices, indptr = self._with_new(x, indices, indptr, direction, self.threat_model.m)
        clean = _Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
        slope = self._slope(clean, direction)
        return [self._sparse(clean, slope, goal, epsilon) for epsilon in grid]

    # -------------------------------------------------------------- the document's own (and m new) features

    def _with_new(
        self, x: Tensor, indices: Tensor, indptr: Tensor, direction: _Direction, m: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """CSR arrays with m features more of value 0 in each document, behind its own."""
        rows = _rows(indptr)
        new = _best_new_features(direction, _Entries(rows, indices), m, self.threat_model.nonnegative)
        N = len(indptr) - 1
        positions = torch.arange(len(x), device=x.device) + m * rows
        added = indptr[1:, None] + m * torch.arange(N, device=x.device)[:, None]
        added = (added + torch.arange(m, device=x.device)).flatten()
        values = x.new_zeros(len(x) + N * m)
        columns = indices.new_empty(len(values))
        values[positions], columns[positions], columns[added] = x, indices, new.flatten()
        return values, columns, indptr + m * torch.arange(N + 1, device=x.device)

    def _sparse(self, clean: _Batch, slope: Tensor, goal: _Targets, epsilon: float) -> _Batch:
        N, rows = len(clean.indptr) - 1, clean.rows
        moved = self.threat_model.vertex(clean.x, slope, rows, N, epsilon) if epsilon else clean.x
        best = self._choose(clean, clean, moved, goal)
        return self._improve(clean, best, goal, epsilon) if epsilon else best

    def _choose(self, clean: _Batch, best: _Batch, values: Tensor, goal: _Targets) -> _Batch:
        """Of each document the better of two: the best so far or these values."""
        loss = self._loss(self._layer.first(values, clean.indices, clean.indptr), goal)
        better = self._better(loss, best.loss)
        return _Batch(
            clean.start, clean.x, torch.where(better[clean.rows], values, best.values), clean.indices,
            clean.indptr, torch.where(better, loss, best.loss), clean.loss,
        )  # fmt: skip

    def _improve(self, clean: _Batch, best: _Batch, goal: _Targets, epsilon: float) -> _Batch:
        return best  # FGSM is done

    # ------------------------------------------------------------------------------------- every feature

    def _dense_vertex(
        self, clean: _Batch, direction: _Direction
    ) -> tuple[_Direction, Tensor, Tensor, Tensor]:
        entries = _Entries(clean.rows, clean.indices)
        nonnegative = self.threat_model.nonnegative
        return direction, *sign_pass(direction, self._layer, entries, nonnegative)

    def _own_change(self, clean: _Batch, direction: _Direction, own: Tensor, epsilon: float) -> Tensor | None:
        """Where values may not fall below 0: what the document's own features do beside their sign."""
        if not self.threat_model.nonnegative:
            return None
        slope = self._slope(clean, direction)
        falling = (own == 0) & (slope < 0)
        return torch.where(falling, -clean.x.clamp(max=epsilon), torch.zeros_like(clean.x))

    def _dense(
        self, clean: _Batch, vertex: tuple[_Direction, Tensor, Tensor, Tensor], goal: _Targets, epsilon: float
    ) -> _Batch:
        direction, offset, counts, own = vertex
        N = len(clean.indptr) - 1
        size = clean.x.new_full((N,), _below(epsilon, clean.x.dtype))
        change = self._own_change(clean, direction, own, epsilon)
        values = clean.x if change is None else clean.x + change
        whole = _Batch(
            clean.start, clean.x, values, clean.indices, clean.indptr, clean.loss, clean.loss,
            [(size, direction)], offset, size, counts,
            torch.zeros(N, dtype=torch.int64, device=own.device).index_add_(0, clean.rows, (own != 0).long()),
        )  # fmt: skip
        whole.loss = self._loss(self._dense_first(whole), goal)
        better = self._better(whole.loss, clean.loss)
        best = _masked(whole, better, clean.loss)
        return self._improve_dense(clean, whole, best, goal, epsilon) if epsilon else best

    def _dense_first(self, batch: _Batch) -> Tensor:
        return batch.added(self._layer.first(batch.values, batch.indices, batch.indptr))

    def _improve_dense(
        self, clean: _Batch, step: _Batch, best: _Batch, goal: _Targets, epsilon: float
    ) -> _Batch:
        return best


def _masked(batch: _Batch, keep: Tensor, clean_loss: Tensor) -> _Batch:
    """The documents not kept are clean again."""
    assert batch.scale is not None
    return replace(
        batch,
        values=torch.where(keep[batch.rows], batch.values, batch.x),
        loss=torch.where(keep, batch.loss, clean_loss),
        directions=[(weight * keep, direction) for weight, direction in batch.directions],
        scale=batch.scale * keep,
    )


def _below(epsilon: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is not above epsilon."""
    near = torch.tensor(epsilon, dtype=dtype)
    if near.double().item() > epsilon:
        near = near.nextafter(near.new_tensor(0.0))
    return float(near)


class PGD(FGSM):
    """Several steps, each back into the set; the best point is kept, FGSM's and the clean one among them.

    The first run starts from the clean document, others (`restarts`) from random points. Over all features
    (`Dense`) there is one run, from FGSM's point, and steps are conditional gradients (Frank-Wolfe):
    x + (1 - a) * change + a * eps * sign(gradient) with a = 2 / (t + 2), which stays inside without a
    projection, so that a change remains a sum of few sign matrices. `L1` takes them, too, towards the
    vertices of its set.

    Args:
        steps: Of each run.
        step_size: As a part of epsilon; None: 2.5 / steps. Not of `Dense` and `L1`.
        restarts: Runs from random points, beside the first. Not for `Dense`.
        keep_best: False: the last point is kept, whatever it does.
        Others: as `FGSM`.
    """

    name = "pgd"

    def __init__(
        self, *args: Any, steps: int = 10, step_size: float | None = None, restarts: int = 0, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        steps, restarts = F.as_int("PGD", "steps", steps), F.as_int("PGD", "restarts", restarts)
        if steps < 0 or restarts < 0:
            raise ValueError(f"PGD: steps and restarts must be >= 0, got {steps} and {restarts}")
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f"PGD: step_size must be above 0, got {step_size}")
        self.steps, self.restarts = steps, restarts
        self.step_size = 2.5 / max(1, steps) if step_size is None else step_size

    def _improve(self, clean: _Batch, best: _Batch, goal: _Targets, epsilon: float) -> _Batch:
        N, rows, layer, threat = len(clean.indptr) - 1, clean.rows, self._layer, self.threat_model
        generator = torch.Generator(rows.device).manual_seed(self.seed + clean.start)
        for run in range(1 + self.restarts):
            values = clean.x
            if run:
                noise = torch.rand(values.shape, generator=generator, device=rows.device, dtype=values.dtype)
                values = threat.project(clean.x, clean.x + (2 * noise - 1) * epsilon, rows, N, epsilon)
            for t in range(self.steps):
                first = layer.first(values, clean.indices, clean.indptr)
                _, gradient = self._gradient(first, goal)
                slope = layer.to_values(gradient, clean.indices, clean.indptr)
                size = self.step_size * epsilon
                values = threat.advance(clean.x, values, slope, rows, N, epsilon, size, t)
                best = self._choose(clean, best, values, goal)
        return best

    def _improve_dense(
        self, clean: _Batch, step: _Batch, best: _Batch, goal: _Targets, epsilon: float
    ) -> _Batch:
        now = step
        for t in range(1, self.steps + 1):
            a = 2 / (t + 2)
            _, gradient = self._gradient(self._dense_first(now), goal)
            direction, offset, _, own = self._dense_vertex(clean, self._direction(clean.start, gradient))
            size = _below(epsilon, clean.x.dtype)
            change = self._own_change(clean, direction, own, epsilon)
            toward = clean.x if change is None else clean.x + change
            assert now.offset is not None
            assert now.scale is not None
            directions = [(weight * (1 - a), d) for weight, d in now.directions]
            directions.append((clean.x.new_full((direction.N,), a * size * (1 - _ROUNDING)), direction))
            now = _Batch(
                clean.start, clean.x, now.values * (1 - a) + toward * a if change is not None else clean.x,
                clean.indices, clean.indptr, clean.loss, clean.loss, directions,
                now.offset * (now.scale * (1 - a))[:, None, None] + offset * (a * size),
                torch.ones_like(now.scale),
            )  # fmt: skip
            now.loss = self._loss(self._dense_first(now), goal)
            best = _either(now, best, self._better(now.loss, best.loss))
        return best


def _either(new: _Batch, best: _Batch, better: Tensor) -> _Batch:
    """Of each document the new or the best so far."""
    assert new.offset is not None
    assert best.offset is not None
    assert new.scale is not None
    assert best.scale is not None
    both = [(w * better, d) for w, d in new.directions] + [(w * ~better, d) for w, d in best.directions]
    merged: dict[int, tuple[Tensor, _Direction]] = {}
    for weight, direction in both:
        other = merged.get(id(direction))
        merged[id(direction)] = (weight if other is None else weight + other[0], direction)
    return replace(
        new,
        values=torch.where(better[new.rows], new.values, best.values),
        loss=torch.where(better, new.loss, best.loss),
        clean_loss=best.clean_loss,
        directions=list(merged.values()),
        offset=torch.where(better[:, None, None], new.offset, best.offset),
        scale=torch.where(better, new.scale, best.scale),
        counts=None,  # norms of more than one direction are summed anew
        own_counts=None,
    )


class Random(FGSM):
    """The control: FGSM's step along noise in place of the gradient, of the same size, always taken.

    Args:
        words: The control of `Greedy`: of `Insert(m)` m new features alone, the document's own stay.
        Others: as `FGSM`, but `keep_best`, which is False.
    """

    name = "random"

    def __init__(self, *args: Any, words: bool = False, **options: Any) -> None:
        super().__init__(*args, keep_best=False, **options)
        self.words = words

    def _check_threat(self, op: str) -> None:
        pass

    def _direction(self, start: int, gradient: Tensor) -> _Direction:
        return _Direction(self._layer, None, len(gradient), self.seed + start)

    def _slope(self, batch: _Batch, direction: _Direction) -> Tensor:
        x = batch.x
        generator = torch.Generator(x.device).manual_seed(direction.seed)
        slope = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        if not isinstance(self.threat_model, Insert):
            return slope
        own = torch.zeros_like(slope) if self.words else slope
        return torch.where(batch.x == 0, slope.abs(), own)  # new features are really added

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: _Targets, grid: list[float]
    ) -> list[_Batch]:
        if isinstance(self.threat_model, Delete):
            generator = torch.Generator(x.device).manual_seed(self.seed + start)
            order = _rank_in_rows(torch.rand(x.shape, generator=generator, device=x.device), _rows(indptr))
            rank = torch.empty_like(order)
            rank[order] = torch.arange(len(order), device=x.device) - indptr[_rows(indptr)]
            clean_loss = self._loss(self._layer.first(x, indices, indptr), goal)
            clean = _Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            return [self._choose(clean, clean, torch.where(rank < e, 0.0, x), goal) for e in grid]
        return super()._batch(start, x, indices, indptr, goal, grid)


class Greedy(FGSM):
    """Words, one at a time, that of the largest first-order effect, with the gradient taken anew each time.

    With `Delete()` epsilon words are removed; with `Insert(m)` m words of weight epsilon are added and the
    document's own are left alone. The best document on the way is kept.
    """

    name = "greedy"
    usual_threat = "delete"

    def _check_threat(self, op: str) -> None:
        if not isinstance(self.threat_model, (Delete, Insert)):
            raise ValueError(f"{op}: threat model must be delete or insert(m), got {self.threat_model}")

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: _Targets, grid: list[float]
    ) -> list[_Batch]:
        clean_loss = self._loss(self._layer.first(x, indices, indptr), goal)
        if isinstance(self.threat_model, Insert):
            clean = _Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            return [self._insert(clean, goal, epsilon, self.threat_model.m) for epsilon in grid]
        clean = best = _Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
        values, asked, found = x, {int(epsilon) for epsilon in grid}, {0: clean}
        for count in range(1, max(asked, default=0) + 1):
            first = self._layer.first(values, indices, indptr)
            _, gradient = self._gradient(first, goal)
            effect = -self._layer.to_values(gradient, indices, indptr) * values
            effect[values == 0] = -math.inf
            chosen = _first_of_rows(_rank_in_rows(effect, clean.rows), clean.rows, len(indptr) - 1)
            chosen = chosen[effect[chosen] > 0]
            if not len(chosen):  # nothing more helps, in any document
                break
            values = values.clone()
            values[chosen] = 0
            best = self._choose(clean, best, values, goal)
            if count in asked:
                found[count] = best
        return [found.get(int(epsilon), best) for epsilon in grid]  # what more words would not have changed

    def _insert(self, clean: _Batch, goal: _Targets, epsilon: float, m: int) -> _Batch:
        best, now = clean, clean
        size = _below(epsilon, clean.x.dtype)
        for _ in range(m if epsilon else 0):
            first = self._layer.first(now.values, now.indices, now.indptr)
            _, gradient = self._gradient(first, goal)
            direction = self._direction(clean.start, gradient)
            wide = [
                self._with_new(v, now.indices, now.indptr, direction, 1)[0]
                for v in (now.x, now.values, best.values)
            ]
            _, indices, indptr = self._with_new(now.x, now.indices, now.indptr, direction, 1)
            new = indptr[1:] - 1
            slope = self._layer.to_values(gradient, indices, indptr)[new]
            values = wide[1].clone()
            values[new] = size * slope.sign().clamp(min=0 if self.threat_model.nonnegative else -1)
            last = _Batch(clean.start, wide[0], wide[0], indices, indptr, clean.loss, clean.loss)
            best = _Batch(clean.start, wide[0], wide[2], indices, indptr, best.loss, clean.loss)
            best = self._choose(last, best, values, goal)
            now = _Batch(clean.start, wide[0], values, indices, indptr, clean.loss, clean.loss)
        return best


_threat = threat_model  # attacks and evaluate have an argument of that name


def _goal_k(op: str, model: MACH, goal: str, k: int | None) -> int:
    """The k of a goal, checked; labels can leave and enter the top k only if there are others."""
    L = model.num_labels
    if goal not in ("positive", "negative"):
        return checked_k(op, k, L)
    if L < 2:
        raise ValueError(f"{op}: goal {goal!r} needs a label outside the top k, got L={L}")
    chosen = min(USUAL_K, L - 1) if k is None else checked_k(op, k, L)
    if chosen == L:
        raise ValueError(f"{op}: goal {goal!r} needs k < L={L}, got {chosen}")
    return chosen


def _first(ranked: NDArray[Any], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each document the first label that is wanted, or -1."""
    at = ranked[np.arange(len(ranked)), wanted.argmax(1)]
    return np.where(wanted.any(1), at, -1).astype(np.int64)


def _is_true(Y: Any, labels: NDArray[Any]) -> NDArray[np.bool_]:  # [N, K]
    """Whether labels [N, K] are true for their documents; -1 is none."""
    stride = Y.shape[1]
    keys = np.repeat(np.arange(Y.shape[0]), np.diff(Y.indptr)) * stride + Y.indices
    asked = np.arange(len(labels))[:, None] * stride + labels
    result: NDArray[np.bool_] = np.isin(asked, keys) & (labels >= 0)
    return result


# ----------------------------------------------------------------------------------------------- evaluation


def attack(
    name: str,
    model: MACH,
    threat: str | ThreatModel,
    goal: str,
    k: int | None,
    seed: int = 0,
    steps: int = 10,
) -> FGSM:
    """An attack by its name on the command line: "fgsm", "pgd", "delete" or "insert" (words)."""
    if name in ("delete", "insert"):
        greedy = Greedy(model, threat, goal, k, seed=seed)
        if not isinstance(greedy.threat_model, Delete if name == "delete" else Insert):
            raise ValueError(f"attack: {name!r} is not for the threat model {greedy.threat_model}")
        return greedy
    if name == "pgd":
        return PGD(model, threat, goal, k, steps=steps, seed=seed)
    return FGSM(model, threat, goal, k, seed=seed)


_named = attack  # evaluate has an argument of that name


@memory_errors("pass fewer documents or epsilons")
def evaluate(
    model: MACH,
    X: Any,
    Y: Any,
    *,
    attack: str = "fgsm",
    threat_model: str | ThreatModel = "support",
    epsilons: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    goal: str = "untargeted",
    targeted: bool = False,
    ks: Sequence[int] | None = None,
    k: int | None = None,
    inverse_propensity: Any = None,
    bands: Any = None,
    transfer: MACH | None = None,
    steps: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    truth: Any = None,
    filtered: Any = None,
    progress: bool = False,
) -> dict[str, Any]:
    """P@k, nDCG@k and PSP@k of documents, clean and adversarial, over a grid of epsilon.

    Beside each adversarial result stands that of noise of the same threat model and size. Memory: a batch of
    documents at a time.

    Args:
        model, X, Y: As for the attacks.
        attack: "fgsm", "pgd", "delete" (words, threat model delete) or "insert" (words, insert(m)).
        threat_model: Object or name.
        epsilons: The grid.
        goal: What the attack is after: "untargeted" or "own".
        targeted: Also both targeted goals: how many documents lose their best right label from the top k, by
            band of that label; how many get a wrong label of each band into it, the best-ranked one of the
            first 100.
        ks: Of the metrics. None: of 1, 3, 5 those up to k, and k.
        k: Of the goals. None: 5; with fewer labels L, or L - 1 if `targeted`, whose goals need a label that
            is outside the top k.
        inverse_propensity: [L], for PSP.
        bands: name -> booleans [L], as of `metrics.label_frequency_bands`.
        transfer: Another model, as one with other hash seeds, asked for the same adversarial documents.
        steps: Of "pgd".
        resamples: Of documents, for the 95 % intervals; 0: none.
        seed: Of noise and of resampling.
        truth: [N, L + U], what the metrics take for true in place of Y: with labels that the model does not
            know in the last U columns. `inverse_propensity` is [L + U] then.
        filtered: [N, L], non-zero where a label must not be answered, as of `metrics.without_filtered`.
        progress: Shows a bar.

    Returns:
        {"clean": METRICS, "transfer_clean": METRICS of the other model, "adversarial": [{"epsilon",
        "metrics": METRICS, "random": METRICS, "transfer": METRICS, "size": mean norms and non-zeros added and
        removed, "loss", "clean_loss", "targeted": {goal: {band: {"success", "documents"}}}}], ...}; METRICS:
        {"P@1": value, "P@1 interval": [low, high], ...}.

    Raises:
        TypeError, ValueError: As the attacks; no documents; a transfer model of other features or labels.
    """
    op = "evaluate"
    threat = _threat(threat_model)
    if attack not in ("fgsm", "pgd", "delete", "insert"):
        raise ValueError(f"{op}: attack must be fgsm, pgd, delete or insert, got {attack!r}")
    grid = [float(e) for e in epsilons]
    if not grid:
        raise ValueError(f"{op}: epsilons must be at least one number")
    k = _goal_k(op, model, "positive" if targeted else goal, k)
    if ks is None:
        ks = [one for one in dict.fromkeys((*KS, k)) if one <= k]
    ks = [checked_k(op, one, model.num_labels) for one in ks]
    goals = [goal, *(("positive", "negative") if targeted else ())]
    if transfer is not None:
        sizes_of = [(m.num_features, m.num_labels) for m in (model, transfer)]
        if sizes_of[0] != sizes_of[1]:
            raise ValueError(
                f"{op}: transfer must have the model's (features, labels) {sizes_of[0]}, got {sizes_of[1]}"
            )
    attacks = [_named(attack, model, threat, one, k, seed, steps) for one in goals]
    X = check_csr(X, f"{op}: X")
    if X.shape[0] == 0:
        raise ValueError(f"{op}: X must have at least one document, got N=0")
    Y = attacks[0]._check_labels(op, X, Y)
    if Y is None:
        raise ValueError(f"{op}: needs the true labels Y")
    truth = Y if truth is None else check_labels(truth, f"{op}: truth")
    filtered = None if filtered is None else check_labels(filtered, f"{op}: filtered")
    q = None if inverse_propensity is None else np.asarray(inverse_propensity, np.float64)
    N = X.shape[0]
    surplus = 0 if filtered is None else int(np.diff(filtered.indptr).max(initial=0))
    asked = min(max((*ks, k)) + surplus, model.num_labels)

    def measure(labels: NDArray[Any], rows: slice) -> NDArray[np.float64]:
        if filtered is not None:
            labels = without_filtered(labels, filtered[rows])
        return _by_document(truth[rows], labels, ks, q)

    bands = {"all": np.ones(model.num_labels, bool), **(bands or {})}

    columns: list[list[NDArray[np.float64]]] = [[] for _ in range(2 + 3 * len(grid))]  # transfer, clean: last
    sizes: list[list[dict[str, NDArray[np.float64]]]] = [[] for _ in grid]
    won: dict[tuple[str, str, int], list[NDArray[Any]]] = {}
    batch = attacks[0].batch_size
    with tqdm(total=N, unit="doc", disable=not progress, dynamic_ncols=True) as bar:
        for start in range(0, N, batch):
            rows = slice(start, start + batch)
            x, y = X[rows], Y[rows]
            found = attacks[0].perturb(x, y, grid)
            words = isinstance(attacks[0], Greedy)
            noise = Random(model, threat, goal, k, words=words, seed=seed + start).perturb(x, y, grid)
            clean = measure(model.predict(x, asked)[1], rows)
            columns[0].append(clean)
            if transfer is not None:
                columns[-1].append(measure(transfer.predict(x, asked)[1], rows))
            for i, (changed, random) in enumerate(zip(found, noise, strict=True)):
                for place, each in ((1 + i, changed), (1 + len(grid) + i, random)):
                    columns[place].append(measure(each.predict(asked)[1], rows) if grid[i] else clean)
                if transfer is not None:
                    labels = changed.predict(asked, transfer)[1]
                    columns[1 + 2 * len(grid) + i].append(measure(labels, rows))
                sizes[i].append(
                    {**changed.norms, "loss": changed.loss, "clean_loss": changed.clean_loss,
                     "random_l2": random.norms["l2"]}
                )  # fmt: skip
            for one in attacks[1:]:
                for band, chosen in _aims(one, x, y, bands):
                    for i, changed in enumerate(one.perturb(x, y, grid, targets=chosen)):
                        inside = (changed.predict(k)[1] == changed.targets[:, None]).any(1)
                        success = inside if one.goal == "negative" else ~inside
                        outcome = np.stack((changed.targets, success))
                        won.setdefault((one.goal, band, i), []).append(outcome)
            bar.update(x.shape[0])
    names = [f"{name}@{one}" for name in ("P", "nDCG", "PSP")[: 3 if q is not None else 2] for one in ks]
    everything = _summaries(columns, names, len(ks), resamples, seed)
    results = []
    for i, epsilon in enumerate(grid):
        parts = {name: np.concatenate([s[name] for s in sizes[i]]) for name in sizes[i][0]}
        means = {name: float(part.mean()) for name, part in parts.items()}
        entry: dict[str, Any] = {
            "epsilon": epsilon,
            "metrics": everything[1 + i],
            "random": everything[1 + len(grid) + i],
            "loss": means.pop("loss"),
            "clean_loss": means.pop("clean_loss"),
            "size": means,
        }
        if transfer is not None:
            entry["transfer"] = everything[1 + 2 * len(grid) + i]
        if targeted:
            entry["targeted"] = {}
            for aim in ("positive", "negative"):
                entry["targeted"][aim] = {
                    name: _rate(np.concatenate(won[aim, name if aim == "negative" else "all", i], 1), band)
                    for name, band in bands.items()
                }
        results.append(entry)
    result = {
        "attack": attack,
        "threat_model": str(threat),
        "nonnegative": threat.nonnegative,
        "goal": goal,
        "k": k,
        "steps": steps if attack == "pgd" else None,
        "seed": seed,
        "documents": N,
        "clean": everything[0],
        "adversarial": results,
    }
    return result if transfer is None else {**result, "transfer_clean": everything[-1]}


def _aims(one: _Attack, X: Any, Y: Any, bands: Any) -> Iterator[tuple[str, NDArray[np.int64] | None]]:
    """Targets of a goal: one run for "positive", one a band for "negative"."""
    if one.goal == "positive":
        yield "all", None
        return
    ranked = one.model.predict(X, min(one.model.num_labels, max(_NEAREST, one.k + 1)))[1]
    false = ~_is_true(Y, ranked)
    false[:, : one.k] = False
    for name, band in bands.items():
        yield name, _first(ranked, false & np.asarray(band)[ranked])


def _rate(won: NDArray[Any], band: Any) -> dict[str, float]:
    targets, success = won
    inside = (targets >= 0) & np.asarray(band)[np.maximum(targets, 0)]
    count = int(inside.sum())
    return {"success": float(success[inside].mean()) if count else math.nan, "documents": count}


def _by_document(Y: Any, labels: NDArray[Any], ks: Sequence[int], q: Any) -> NDArray[np.float64]:
    """Columns a document: P, nDCG at each k; with q also numerators and denominators of PSP."""
    hits = _is_true(Y, labels).astype(np.float64)
    discount = 1 / np.log2(np.arange(labels.shape[1]) + 2)
    ideal = np.concatenate(([1.0], np.cumsum(1 / np.log2(np.arange(max(ks)) + 2))))  # [count]
    counts = np.diff(Y.indptr)
    columns = [hits[:, :k].sum(1) / k for k in ks]
    columns += [hits[:, :k] @ discount[:k] / ideal[np.minimum(counts, k)] for k in ks]
    if q is not None:
        rows = np.repeat(np.arange(Y.shape[0]), counts)
        order = np.lexsort((-q[Y.indices], rows))
        rank = np.arange(len(rows)) - np.repeat(Y.indptr[:-1], counts)
        weights = q[Y.indices[order]]
        columns += [(hits * q[labels])[:, :k].sum(1) for k in ks]
        columns += [np.bincount(rows, weights * (rank < k), minlength=Y.shape[0]) for k in ks]
    return np.stack(columns, 1)


def _summaries(
    columns: list[list[NDArray[np.float64]]], names: list[str], num_ks: int, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Metrics of each column set with the 2.5 and 97.5 % quantiles over resampled documents."""
    tables = [np.concatenate(parts) if parts else None for parts in columns]
    wide = np.concatenate([t for t in tables if t is not None], 1)
    N = len(wide)
    rng = np.random.default_rng(seed)
    totals = [wide.mean(0, keepdims=True)]
    for begin in range(0, resamples, 50):
        draws = rng.integers(0, N, (min(50, resamples - begin), N))
        weights = np.stack([np.bincount(draw, minlength=N) for draw in draws])
        totals.append(weights @ wide / N)
    sums = np.concatenate(totals)  # [1 + resamples, columns]
    results: list[dict[str, Any]] = []
    at = 0
    for table in tables:
        if table is None:
            results.append({})
            continue
        part, at = sums[:, at : at + table.shape[1]], at + table.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = part[:, 2 * num_ks : 3 * num_ks] / part[:, 3 * num_ks :]
        values = np.concatenate((part[:, : 2 * num_ks], ratios), 1)
        entry: dict[str, Any] = {}
        for j, name in enumerate(names):
            entry[name] = float(values[0, j])
            if len(values) > 1:
                low, high = np.quantile(values[1:, j], (0.025, 0.975))
                entry[f"{name} interval"] = [float(low), float(high)]
        results.append(entry)
    return results
