"""Certified robustness: predictions that no change within a threat model can alter, proven, and how many.

* `certify`: for each right label of the clean top k, how many labels can be made to reach its score; from
  that the share of P@k that is proven to stand, over a grid of epsilon, and the epsilon at which it is zero.
* `margin_bounds`: how far the lead of one label over another can fall.

An attack shows an upper bound of robust P@k, a certificate a lower one: certified <= robust <= attacked.

**Margins.** With `mean_logit` the lead of label t over label l is 1/R sum_r (z[r, b_r(t)] - z[r, b_r(l)]):
repetitions in which both share a bucket cancel. For linear MACH it is a linear function of the document, and
its minimum over the threat set is a closed form (a dual norm of the margin's weights within the document's
room): the certificate is exact. With hidden layers each unit is first enclosed in an interval, exact for the
first layer; where it may change sign, relu lies between lines (Zhang et al. 2018, CROWN; Singh et al. 2019),
and the margin above a linear function of the document, again minimised exactly. The best of the interval
and several slopes counts. All L labels are bounded this way with slopes that do not depend on the label;
those that this does not exclude, one by one. The other merges compare intervals of transformed bucket
logits, which follow from the same lines: sound, wider.

**Rounding.** What is proven is the ranking that the model computes. Bounds are taken in float64 and less a
slack for every rounding of the forward pass: a sum of n products in any order, fused or not, errs by at most
gamma_n = n u / (1 - n u) times the sum of their absolute values (Higham 2002), which is carried through the
layers; u = 2^-24 (float32; 2^-53 float64) + 2^-49, the latter for these bounds themselves. Exponentials and
logarithms of the other merges are taken to err by 16 u at most. Where sums might leave the range of float32,
which its infinities do not rank, nothing is shown. Matrix products that round their factors
(TF32, bfloat16: torch.set_float32_matmul_precision) are not covered.

Notation: as in `mach_ext.attack`; n: a document's own features; M: units of the layer at hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vector_norm

from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_errors
from mach_ext._progress import tqdm
from mach_ext.attack.threats import L1, L2, Delete, Dense, Insert, ThreatModel, round_down, threat_model
from mach_ext.data import check_csr, check_labels
from mach_ext.nn import MACH, MODEL_MERGES, checked_k, evaluating

__all__ = ["Certificate", "certify", "check", "margin_bounds"]

_HELD = 1 << 24  # float64 numbers of a table that are held at a time: 128 MiB
_CHUNK = 64  # labels that are bounded one by one, at a time
_UNDERFLOW = 1e-30  # far above what underflows add up to
_LARGEST = float(torch.finfo(torch.float32).max)


# ---------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class Certificate:
    """What `certify` found, for E sizes, N documents, the k labels of their clean top k.

    Attributes:
        threat_model: By name.
        epsilons: The sizes, ascending [E].
        labels: The clean top k [N, k].
        correct: Which of them are right [N, k].
        overtakers: How many labels could not be shown to stay behind this one, k for k or more [E, N, k]: its
            rank, from 0, is at most this. k for wrong labels.
        attained: The rank that it was seen to take in a perturbed document, k for k or more [E, N, k].
        zero: For k' = 1, 3, 5, k: the interval in which certified P@k' reaches zero: above zero at the
            first number (or -1), zero at the second (or inf where none was found); within 2 % by bisection,
            from the grid on. Without the documents that have no features, if these are all that may change.
    """

    threat_model: str
    epsilons: list[float]
    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]
    overtakers: NDArray[np.int64]
    attained: NDArray[np.int64]
    zero: dict[int, tuple[float, float]]

    def certified(self, k: int) -> NDArray[np.bool_]:  # [E, N, K]
        """Right labels that stay in the top k, whatever the change; k is at most that of `certify`."""
        return self.correct & (self.overtakers < self._within(k))

    def broken(self, k: int) -> NDArray[np.bool_]:  # [E, N, K]
        """Right labels of the clean top k that a change, found and tried on the model, takes out of it."""
        inside = self.correct & (np.arange(self.labels.shape[1]) < self._within(k))
        return np.asarray(inside & (self.attained >= k))

    def _within(self, k: int) -> int:
        """A checked k: beyond the labels that `certify` looked at, ranks are not known."""
        K = self.labels.shape[1]
        if not 1 <= k <= K:
            raise ValueError(f"Certificate: k must be in 1 ... {K}, the k of certify, got {k}")
        return k

    def precision(self, k: int) -> NDArray[np.float64]:  # [E]
        """Certified P@k at each size."""
        per_document = self.certified(k).sum(2) / k
        return np.asarray(per_document.mean(1) if per_document.shape[1] else np.zeros(len(self.epsilons)))

    def robust(self) -> NDArray[np.float64]:  # [E, 2]
        """P@1 under the worst changes is between these: certified, and what the documents tried leave."""
        left = (self.correct & ~self.broken(1))[:, :, 0]
        attained = left.mean(1) if left.shape[1] else np.zeros(len(left))
        return np.stack((self.precision(1), attained), 1)

    def as_dict(self, ks: Sequence[int] = (1, 3, 5)) -> dict[str, Any]:
        """{"threat_model", "documents", "sizes": [{"epsilon", "P@1", ..., "robust P@1": [low, high]}],
        "zero": {"P@1": [low, high], ...}}, JSON's numbers."""
        ks = [k for k in ks if k <= self.labels.shape[1]]
        curves = {f"P@{k}": self.precision(k) for k in ks}
        robust = self.robust()
        sizes = [
            {
                "epsilon": epsilon,
                **{name: float(curve[e]) for name, curve in curves.items()},
                "robust P@1": robust[e].tolist(),
            }
            for e, epsilon in enumerate(self.epsilons)
        ]
        zero = {f"P@{k}": [None if math.isinf(z) else z for z in self.zero[k]] for k in ks if k in self.zero}
        return {
            "threat_model": self.threat_model,
            "documents": len(self.labels),
            "sizes": sizes,
            "zero": zero,
        }


# ------------------------------------------------------------------------------------------ the threat set


class _Reach:
    """How far a document's own features may move, all together, and what a linear function of them can lose.

    Functions g [n, K] are K columns; a change d is within `low` and `high`, and within the ball.
    """

    def __init__(self, threat: ThreatModel, x: Tensor, epsilon: float) -> None:
        self.threat, self.x, self.epsilon = threat, x, epsilon
        low, high = (
            (x.clamp(max=0), x.clamp(min=0)) if isinstance(threat, Delete) else threat.bounds(x, epsilon)
        )
        self.low, self.high = low - x, high - x  # [n]
        self.largest = torch.maximum(low.abs(), high.abs())  # of a value

    def change(self, g: Tensor) -> Tensor:  # [n, K]
        """The change along which each function falls most (L2: to rounding)."""
        threat, low, high = self.threat, self.low[:, None], self.high[:, None]
        if isinstance(threat, Delete):
            return self._deleted(g)
        if isinstance(threat, L1):
            room = torch.where(g > 0, -low, high)
            order = g.abs().sort(0, descending=True).indices
            room = room.gather(0, order)
            moved = (self.epsilon - (room.cumsum(0) - room)).clamp(min=0).minimum(room)
            return -g.sign() * torch.empty_like(g).scatter_(0, order, moved)
        if isinstance(threat, L2):
            return self._on_ball(g)[0]
        return torch.where(g > 0, low, high)

    def lowest(self, g: Tensor, quick: bool = False) -> Tensor:  # [K]
        """What each function can lose at most, <= 0. `quick`: a bound of it, for many columns."""
        threat, epsilon = self.threat, self.epsilon
        if not len(g):
            return g.new_zeros(g.shape[1])
        if isinstance(threat, Delete):
            effect = -self.x[:, None] * g
            return effect.topk(min(int(epsilon), len(g)), 0, largest=False).values.clamp(max=0).sum(0)
        if isinstance(threat, L1):
            return -epsilon * g.abs().amax(0) if quick else (g * self.change(g)).sum(0)
        if isinstance(threat, L2):
            if quick:
                size: Tensor = vector_norm(g, dim=0)
                return -epsilon * size
            change, t = self._on_ball(g)  # the Lagrangian's dual function: a lower bound for every t
            return (g * change).sum(0) + (change.square().sum(0) - epsilon * epsilon) / (2 * t)
        return self.low @ g.clamp(min=0) + self.high @ g.clamp(max=0)

    def _deleted(self, g: Tensor) -> Tensor:
        effect = -self.x[:, None] * g
        words = min(int(self.epsilon), len(g))
        worst, at = effect.topk(words, 0, largest=False)
        chosen = torch.zeros_like(g).scatter_(0, at, (worst < 0).to(g.dtype))
        return -self.x[:, None] * chosen

    def _on_ball(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """-t g within the bounds, with t [K] such that its norm is epsilon: Karush, Kuhn and Tucker."""
        t = self.epsilon / vector_norm(g, dim=0).clamp(min=1e-150)
        low, high = torch.zeros_like(t), torch.full_like(t, 64.0)  # log2 of what t is to be multiplied with
        for _ in range(36):
            middle = (low + high) / 2
            inside = vector_norm(self._clamped(t * middle.exp2(), g), dim=0) <= self.epsilon
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        t = t * low.exp2()
        return self._clamped(t, g), t

    def _clamped(self, t: Tensor, g: Tensor) -> Tensor:
        return (-t * g).clamp(self.low[:, None], self.high[:, None])


# -------------------------------------------------------------------------------- documents as affine forms


@dataclass
class _Local:
    """A document, and what the model makes of everything within its reach.

    A bucket's logit is base + slope' d for a change d of the document's own features, within `spread`, what
    lines leave of relu and the rounding of hidden units, and `inserted`, what new features do. `size` is the
    sum of absolute values that the logit is summed of; as the model computes it, it is off by rate * size.
    """

    n: int  # number of the document
    own: Tensor  # [n] its features
    reach: _Reach
    slope: Tensor  # [n, R, B]
    base: Tensor  # [R, B]
    spread: Tensor  # [R, B]
    inserted: Tensor  # [R, B]
    size: Tensor  # [R, B]
    rate: float
    hidden: _Hidden | None
    finite: bool  # all that is summed is in the range of float32; otherwise nothing is shown


@dataclass
class _Hidden:
    """The last hidden layer: pre-activations p + slope' d, within `spread`, in [low, high]; all [M]."""

    p: Tensor
    slope: Tensor  # [n, M]
    spread: Tensor
    low: Tensor
    high: Tensor
    wobble: Tensor  # by how much what the model computes for the unit is rounded
    most: float  # the largest sum of absolute values of a unit, with that of the layer before added


def _lines(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """relu(p) is in [slope * p, slope * p + gap] for p in [low, high]."""
    unsure = (low < 0) & (high > 0)
    slope = torch.where(unsure, high / (high - low), (low >= 0).to(low.dtype))
    return slope, torch.where(unsure, -slope * low, 0.0)


class _Model:
    """A model and a threat model, in float64."""

    def __init__(self, model: MACH, threat: ThreatModel) -> None:
        model.hash.check_contents()
        self.model, self.threat = model, threat
        self.buckets = model.hash.buckets.long()  # [R, L]
        self.device = self.buckets.device
        single = model.bucket_bias.dtype == torch.float32
        self.unit = (2.0**-24 if single else 2.0**-53) + 2.0**-49
        self.transform, self.merge = MODEL_MERGES[model.merge]
        self.by_margin = model.merge == "mean_logit"
        self.bucket_weight = model.bucket_weight.detach()
        self.bucket_bias = model.bucket_bias.detach().double()
        if not model.is_linear:
            self.encoder_bias = model.encoder_bias.detach().double()
        self.two_layers = len(model.hidden_sizes) == 2
        if self.two_layers:
            self.hidden_weight = model.hidden_weight.detach().double()  # [C, H1, H2]
            self.hidden_bias = model.hidden_bias.detach().double()
        self.copies = model.num_repetitions if model.encoder == "independent" else 1
        self.new = threat.m if isinstance(threat, Insert) else 0
        self.everywhere = isinstance(threat, Dense)
        self.up, self.down = self._new_features()
        self.limit = _LARGEST / (4 * model.num_repetitions)  # of a bucket's sum
        self.new_norm = 0.0  # of m new features' rows of the encoder, the sum of norms
        if self.new and not model.is_linear and not self.two_layers:
            norms = vector_norm(model.encoder_weight.detach(), dim=1, dtype=torch.float64)
            self.new_norm = float(norms.topk(self.new).values.sum())

    def gamma(self, n: int) -> float:
        return n * self.unit / (1 - n * self.unit)

    # ------------------------------------------------------------------- features that a document lacks

    def _new_features(self) -> tuple[Tensor, Tensor]:
        """What new features of weight 1 add to and take from each output of the first layer at most [C, M].

        Of all features: a document has some of the best ones itself; sound, and little wider.
        """
        linear = self.model.is_linear
        weight = self.bucket_weight if linear else self.model.encoder_weight.detach()[None]  # [C, D, M]
        if not self.new and not self.everywhere:
            nothing = torch.zeros(weight.shape[0], weight.shape[2], dtype=torch.float64, device=self.device)
            return nothing, nothing
        up, down = [], []
        for one in weight:  # [D, M]
            up.append(self._best(one if self.threat.nonnegative else one.abs()))
            down.append(self._best(-one) if self.threat.nonnegative else up[-1])
        return torch.stack(up), torch.stack(down)

    def _best(self, effect: Tensor) -> Tensor:  # [D, M] -> [M]
        effect = effect.clamp(min=0)
        if self.everywhere:
            return effect.sum(0, dtype=torch.float64)
        return effect.topk(self.new, 0).values.sum(0, dtype=torch.float64)

    def lost_to_new(self, local: _Local, direction: _Direction) -> Tensor:  # [K], <= 0
        """What margins can lose to features that the document lacks, exactly."""
        harm: Tensor | None = None
        for begin, end in direction.tiles():
            tile = self._harm(local, direction, begin, end)
            if self.everywhere:
                harm = tile.sum(0, keepdim=True) if harm is None else harm + tile.sum(0, keepdim=True)
            else:
                both = tile if harm is None else torch.cat((harm, tile))
                harm = both.topk(min(self.new, len(both)), 0).values
        assert harm is not None
        return -local.reach.epsilon * harm.sum(0)

    def _harm(self, local: _Local, direction: _Direction, begin: int, end: int) -> Tensor:  # [T, K]
        g = direction.features(begin, end)
        harm = (-g).clamp(min=0) if self.threat.nonnegative else g.abs()
        own = local.own[(local.own >= begin) & (local.own < end)] - begin
        harm[own] = 0
        return harm

    # -------------------------------------------------------------------------------------- affine forms

    def forms(self, X: Any, documents: Sequence[int], epsilon: float) -> Iterator[_Local]:
        """The documents' forms, a few at a time in memory."""
        model = self.model
        wide = max(model.num_repetitions * model.num_buckets, self.copies * sum(model.hidden_sizes))
        group: list[int] = []
        held = 0
        for n in documents:
            entries = int(X.indptr[n + 1] - X.indptr[n])
            if group and (held + entries + 4) * wide > _HELD:
                yield from self._group(X, group, epsilon)
                group, held = [], 0
            group.append(n)
            held += entries + 4
        if group:
            yield from self._group(X, group, epsilon)

    def _group(self, X: Any, documents: list[int], epsilon: float) -> Iterator[_Local]:
        rows = X[documents]
        x = torch.from_numpy(rows.data).to(self.device).double()
        own = torch.from_numpy(rows.indices).to(self.device).long()
        parts = list(zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True))
        reaches = [_Reach(self.threat, x[a:b], epsilon) for a, b in parts]
        R, B, H = self.model.num_repetitions, self.model.num_buckets, sum(self.model.hidden_sizes)
        new = self.model.num_features if self.everywhere else self.new
        if self.model.is_linear:
            slope = self.bucket_weight[:, own].transpose(0, 1).double()  # [nnz, R, B]
            for n, (a, b), reach in zip(documents, parts, reaches, strict=True):
                mine = slope[a:b]
                base = torch.tensordot(x[a:b], mine, 1) + self.bucket_bias
                size = torch.tensordot(reach.largest, mine.abs(), 1) + self.bucket_bias.abs()
                size = size + epsilon * (self.up + self.down)
                inserted = epsilon * torch.maximum(self.up, self.down)
                rate = self.gamma(b - a + new + R + 8)
                nothing = torch.zeros_like(base)
                finite = self._finite(reach, size)
                yield _Local(n, own[a:b], reach, mine, base, nothing, inserted, size, rate, None, finite)
            return
        first = self.model.encoder_weight.detach()[own].double()  # [nnz, C * H]
        lasts = [self._hidden(reach, first[a:b]) for (a, b), reach in zip(parts, reaches, strict=True)]
        p, ball, low, high, wobble = (
            torch.stack([getattr(last, name) for last in lasts])
            for name in ("p", "spread", "low", "high", "wobble")
        )  # [documents, M]
        line, gap = _lines(low, high)
        lengths = torch.tensor([b - a for a, b in parts], device=self.device)
        inner = torch.cat([last.slope for last in lasts]) * line.repeat_interleave(lengths, 0)
        middle = line * p + gap / 2
        error = line * ball + gap / 2 + wobble
        most = high.clamp(min=0) + wobble
        slope = inner.new_empty(len(inner), R, B)
        base, spread, inserted, size = (inner.new_zeros(len(documents), R, B) for _ in range(4))
        for r in range(R):
            weight = self.bucket_weight[r].double()  # [H, B]
            block = self._block(r)
            absolute = weight.abs()
            slope[:, r] = inner[:, block] @ weight
            base[:, r] = middle[:, block] @ weight + self.bucket_bias[r]
            spread[:, r] = error[:, block] @ absolute
            size[:, r] = most[:, block] @ absolute + self.bucket_bias[r].abs()
            if self.new_norm:  # unit by unit, or by Cauchy and Schwarz
                box = (line * epsilon * torch.maximum(self.up, self.down))[:, block] @ absolute
                norm = (line[:, block].square() @ weight.square()).sqrt()
                inserted[:, r] = box.minimum(epsilon * self.new_norm * norm)
        for i, (n, (a, b), reach) in enumerate(zip(documents, parts, reaches, strict=True)):
            rate = self.gamma(H + R + 8)
            tables = (slope[a:b], base[i], spread[i], inserted[i], size[i])
            finite = self._finite(reach, size[i], lasts[i].most)
            yield _Local(n, own[a:b], reach, *tables, rate, lasts[i], finite)

    def _finite(self, reach: _Reach, size: Tensor, hidden: float = 0.0) -> bool:
        """Whether values, hidden units and logits stay in the range of float32; False for NaN."""
        sums = (reach.epsilon, float(reach.largest.sum()), hidden, float(size.max()))
        return all(one < self.limit for one in sums)

    def _block(self, r: int) -> slice:
        """Of the last hidden layer, the units that repetition r takes."""
        H = self.model.hidden_sizes[-1]
        return slice(r * H, (r + 1) * H) if self.copies > 1 else slice(0, H)

    def _hidden(self, reach: _Reach, weight: Tensor) -> _Hidden:
        """Through the encoder [n, M], and the second layer where there is one."""
        epsilon = reach.epsilon
        p = reach.x @ weight + self.encoder_bias
        low = p + reach.lowest(weight) - epsilon * self.down[0]
        high = p - reach.lowest(-weight) + epsilon * self.up[0]
        size = reach.largest @ weight.abs() + epsilon * (self.up + self.down)[0] + self.encoder_bias.abs()
        wobble = self.gamma(len(weight) + self.new + 4) * size + _UNDERFLOW
        largest = float(size.max())
        if not self.two_layers:
            return _Hidden(p, weight, torch.zeros_like(p), low, high, wobble, largest)
        line, gap = _lines(low, high)
        C, H1, _ = self.hidden_weight.shape

        def through(rows: Tensor, matrix: Tensor) -> Tensor:  # [K, C * H1] -> [K, C * H2]
            return torch.einsum("kch,chm->kcm", rows.view(-1, C, H1), matrix).flatten(1)

        absolute = self.hidden_weight.abs()
        bias = self.hidden_bias.flatten()
        inserted = line * epsilon * torch.maximum(self.up[0], self.down[0])
        slope = through(weight * line, self.hidden_weight)
        second = through((line * p + gap / 2)[None], self.hidden_weight)[0] + bias
        spread = through((gap / 2 + inserted)[None], absolute)[0]
        most = high.clamp(min=0) + wobble
        size = through(most[None], absolute)[0] + bias.abs()
        largest += float(size.max())  # NaN stays NaN
        wobble = through(wobble[None], absolute)[0] + self.gamma(H1 + 4) * size + _UNDERFLOW
        low = second + reach.lowest(slope) - spread
        high = second - reach.lowest(-slope) + spread
        return _Hidden(second, slope, spread, low, high, wobble, largest)

    # -------------------------------------------------------------------------------- margins, one by one

    def margins(
        self, local: _Local, t: int, labels: Tensor, signs_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Lower bounds [K] of the lead of label t over others, and the functions [n, K] that gave them.

        `signs_only`: new features are looked at only where they decide whether a bound is above zero.
        """
        hash = self.model.hash
        both = torch.cat((labels.new_tensor([t]), labels))
        size = F.merge_scores(local.size[None], hash, both, validate=False)[0]
        slack = local.rate * (size[0] + size[1:]) + _UNDERFLOW
        if local.hidden is None:
            base = F.merge_scores(local.base[None], hash, both, validate=False)[0]
            slopes = F.merge_scores(local.slope, hash, both, validate=False)
            g = slopes[:, :1] - slopes[:, 1:]
            lower = base[0] - base[1:] + local.reach.lowest(g) - slack
            if self.new or self.everywhere:
                inserted = F.merge_scores(local.inserted[None], hash, both, validate=False)[0]
                lost = -(inserted[0] + inserted[1:])
                lower = self._with_new(local, t, labels, lower, lost, None, signs_only)
            return lower, g
        return self._relaxed(local, local.hidden, t, labels, slack, signs_only)

    def _with_new(
        self, local: _Local, t: int, labels: Tensor, lower: Tensor, lost: Tensor, a: Tensor | None,
        signs_only: bool,
    ) -> Tensor:  # fmt: skip
        """Bounds less what new features take: `lost` [K] or, where it is not enough, exactly."""
        decisive = (lower > 0) & (lower + lost <= 0)
        at = (decisive if signs_only else torch.ones_like(decisive)).nonzero()[:, 0]
        if len(at):
            direction = _Direction(self, t, labels[at], None if a is None else a[at])
            lost = lost.index_copy(0, at, self.lost_to_new(local, direction))
        return lower + lost

    def _relaxed(
        self, local: _Local, last: _Hidden, t: int, labels: Tensor, slack: Tensor, signs_only: bool
    ) -> tuple[Tensor, Tensor]:
        u, constant = self.difference(t, labels)  # [K, M], [K]
        low, high = last.low.clamp(min=0), last.high.clamp(min=0)
        best = torch.minimum(u * low, u * high).sum(1) + constant
        slack = slack + u.abs() @ last.wobble
        line, gap = _lines(last.low, last.high)
        constant = constant + u.clamp(max=0) @ gap
        unsure = (last.low < 0) & (last.high > 0)
        steep = torch.where(unsure, (last.high > -last.low).to(line.dtype), line)
        g, weights = u.new_zeros(len(last.slope), len(u)), torch.zeros_like(u)
        reached = torch.full_like(best, -math.inf)
        lower_line = line[None]
        for attempt in range(3):
            a = torch.where(u > 0, u * lower_line, u * line)
            slopes = last.slope @ a.T
            bound = constant + a @ last.p + local.reach.lowest(slopes) - a.abs() @ last.spread
            better = bound > reached
            reached, g = torch.maximum(bound, reached), torch.where(better, slopes, g)
            weights = torch.where(better[:, None], a, weights)
            if attempt == 0:
                lower_line = steep[None]
            else:  # where the worst document so far has the unit off, relu >= 0 is the better line
                worst = last.p + local.reach.change(g).T @ last.slope
                lower_line = torch.where(unsure, (worst > 0).to(line.dtype), line)
        best, reached = best - slack, reached - slack
        if self.new_norm:
            lost = -local.reach.epsilon * self.new_norm * vector_norm(weights, dim=1)
            reached = self._with_new(local, t, labels, reached, lost, weights, signs_only)
        return torch.maximum(best, reached), g

    def difference(self, t: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The margins' weights on the last hidden layer [K, M], shared buckets cancelled; their constants."""
        R = self.model.num_repetitions
        parts, constant = [], torch.zeros(len(labels), dtype=torch.float64, device=self.device)
        for r in range(R):
            at, mine = self.buckets[r, labels], self.buckets[r, t]
            weight = self.bucket_weight[r]
            parts.append((weight[:, mine, None].double() - weight[:, at].double()).T / R)
            constant += (self.bucket_bias[r, mine] - self.bucket_bias[r, at]) / R
        u = torch.cat(parts, 1) if self.copies > 1 else torch.stack(parts).sum(0)
        return u, constant

    # --------------------------------------------------------------------------------- margins, all labels

    def candidates(self, local: _Local, targets: list[int]) -> list[Tensor]:
        """For each target the labels whose lead over it these lines do not exclude, the likeliest first."""
        hash, L = self.model.hash, self.model.num_labels
        uncertain = (local.spread + local.rate * local.size)[None]
        mine = torch.tensor(targets, device=self.device)
        of_targets = F.merge_scores(local.slope, hash, mine, validate=False)  # [n, T]
        base_t = F.merge_scores(local.base[None], hash, mine, validate=False)[0]
        uncertain_t = F.merge_scores(uncertain, hash, mine, validate=False)[0] + _UNDERFLOW
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in targets]
        inserted = local.inserted[None] if self.new or self.everywhere else None
        step = max(1, _HELD // (2 * max(1, len(local.own))))
        for begin in range(0, L, step):
            labels = torch.arange(begin, min(L, begin + step), device=self.device)
            slopes = F.merge_scores(local.slope, hash, labels, validate=False)  # [n, labels]
            base, wide = (
                F.merge_scores(table, hash, labels, validate=False)[0]
                for table in (local.base[None], uncertain)
            )
            for i, t in enumerate(targets):
                lower = base_t[i] - base - (uncertain_t[i] + wide)
                lower += local.reach.lowest(of_targets[:, i : i + 1] - slopes, quick=True)
                if inserted is not None:
                    lower -= self._inserted(local, inserted, t, labels)
                at = (~(lower > 0) & (labels != t)).nonzero()[:, 0]
                found[i].append((lower[at], labels[at]))
        result = []
        for parts in found:
            bounds, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            result.append(labels[bounds.sort().indices])
        return result

    def _inserted(self, local: _Local, table: Tensor, t: int, labels: Tensor) -> Tensor:
        """What new features add to each label's lead over t at most [K]."""
        hash = self.model.hash
        lost = F.merge_scores(table, hash, labels, validate=False)[0]
        lost = lost + F.merge_scores(table, hash, labels.new_tensor([t]), validate=False)[0]
        if self.label_vectors is None or local.hidden is None:
            return lost
        # Squares of small numbers vanish in float32: lines are 1e-18 at least, products lose 2^-126 at most.
        line = _lines(local.hidden.low, local.hidden.high)[0].clamp(min=1e-18).float().square()
        v, own = self.label_vectors[int(labels[0]) : int(labels[-1]) + 1], self.label_vectors[t]
        squares, square = v.square() @ line, own.square() @ line
        rounding = 8 * (len(line) + 8) * 2.0**-24 * (squares + square)  # of these float32 products
        rounding += 8 * (len(line) + 8) * 2.0**-126
        distance = (squares + square - 2 * (v @ (own * line))).clamp(min=0) + rounding
        return lost.minimum(local.reach.epsilon * self.new_norm * distance.double().sqrt())

    @functools.cached_property
    def label_vectors(self) -> Tensor | None:
        """Labels' weights on the one shared hidden layer, means of their buckets' [L, H], where they fit."""
        R, L = self.model.num_repetitions, self.model.num_labels
        if not self.new_norm or self.copies > 1 or L * self.model.hidden_sizes[0] > 1 << 26:
            return None
        vectors = torch.zeros(L, self.model.hidden_sizes[0], device=self.device)
        for r in range(R):
            vectors += self.bucket_weight[r].T[self.buckets[r]].float() / R
        return vectors

    def likeliest(self, local: _Local, t: int, count: int) -> tuple[Tensor, bool]:
        """Labels by falling bound of their lead over t, repetition by repetition, without a sweep over L.

        Returns:
            At most `count` of them; whether all others are excluded.
        """
        mine = self.buckets[:, t, None]  # [R, 1]
        at = mine[None].expand(len(local.slope), -1, 1)
        loss = local.slope.gather(2, at) - local.slope
        lead = local.base.gather(1, mine) - local.base
        wide = local.spread + local.inserted + local.rate * local.size
        gain = wide + wide.gather(1, mine) - lead
        gain -= local.reach.lowest(loss.flatten(1), quick=True).view_as(gain)
        # A bucket that is shared cancels; the roundings of the two sums do not.
        gain.scatter_(1, mine, 2 * local.rate * local.size.gather(1, mine))
        return self._largest(gain, t, count)

    def _largest(self, gain: Tensor, t: int, count: int, merge: str = "mean") -> tuple[Tensor, bool]:
        """Labels of the largest merged gain [R, B], from a float32 table rounded up."""
        unit = 2.0**-23 * (len(gain) + 4)
        upper = (gain + unit * float(gain.abs().max()) + _UNDERFLOW).float()
        keys, labels = F.merge_topk(upper[None], self.model.hash, min(count, self.model.num_labels), merge)
        open_ = (keys[0] >= 0) & (labels[0] != t)
        return labels[0][open_], bool(keys[0, -1] < 0) or count >= self.model.num_labels

    # ------------------------------------------------------------------------------------- other merges

    def intervals(self, local: _Local) -> tuple[Tensor, Tensor]:
        """Lowest and highest transformed scores of all buckets [R, B], as the model computes them."""
        flat = local.slope.flatten(1)
        wide = local.spread + local.inserted + local.rate * local.size + _UNDERFLOW
        low = local.base + local.reach.lowest(flat, quick=True).view_as(local.base) - wide
        high = local.base - local.reach.lowest(-flat, quick=True).view_as(local.base) + wide
        if self.transform is None:
            return low, high
        low, high = self.transform(low), self.transform(high)
        slack = 16 * self.unit
        return low - slack * low.abs() - _UNDERFLOW, high + slack * high.abs() + _UNDERFLOW

    def gains(self, scores: tuple[Tensor, Tensor], t: int) -> tuple[Tensor, str]:
        """[R, B] and a merge: what it makes of a label's buckets is the label's highest lead over t."""
        low, high = scores
        mine = self.buckets[:, t, None]
        slack = self.gamma(self.model.num_repetitions + 4)
        if self.merge == "mean":
            worst = low.gather(1, mine)  # [R, 1]
            gain = high - worst + slack * (high.abs() + worst.abs())
            shared = 2 * slack * torch.maximum(worst.abs(), high.gather(1, mine).abs())
            return gain.scatter(1, mine, shared), "mean"
        own = F.merge_scores(low[None], self.model.hash, mine.new_tensor([t]), self.merge)[0, 0]
        return high - own + slack * (high.abs() + own.abs()), self.merge

    # ---------------------------------------------------------------------------------------- certificates

    def overtakers(self, local: _Local, targets: list[int], k: int, most: int) -> list[tuple[int, Any]]:
        """For each target how many labels (at most k) may reach it, and the document for the worst to try."""
        if not local.finite:
            return [(k, None)] * len(targets)
        result: list[tuple[int, Any]] = []
        lists: list[Tensor] | None = None
        if self.by_margin and not self._many_labels:
            lists = self.candidates(local, targets)
        scores = None if self.by_margin else self.intervals(local)
        for i, t in enumerate(targets):
            if scores is not None:
                gain, merge = self.gains(scores, t)
                labels, all_ = self._largest(gain, t, k + _CHUNK, merge)
                labels = self._without_twins(labels, t)
                count = min(len(labels), k) if all_ else k
                point = None
                if len(labels):
                    pair = torch.cat((labels[:1], labels.new_tensor([t])))  # as if logits were averaged
                    slopes = F.merge_scores(local.slope, self.model.hash, pair)
                    point = self.point(local, slopes[:, 1] - slopes[:, 0], t, labels[:1])
                result.append((count, point))
                continue
            if lists is None:
                first, all_ = self.likeliest(local, t, _CHUNK)
                found = self._count(local, t, first, k, most)
                if not all_ and found[0] < k:
                    found = self._count(local, t, self.candidates(local, [t])[0], k, most)
            else:
                found = self._count(local, t, lists[i], k, most)
            result.append(found)
        return result

    @property
    def _many_labels(self) -> bool:
        return self.model.num_labels > 4 * self.model.num_repetitions * self.model.num_buckets

    def _without_twins(self, labels: Tensor, t: int) -> Tensor:
        """Labels that share all buckets have the same score always: the lower number comes first."""
        same = (self.buckets[:, labels] == self.buckets[:, t, None]).all(0)
        return labels[~(same & (labels > t))]

    def _count(self, local: _Local, t: int, labels: Tensor, k: int, most: int) -> tuple[int, Any]:
        labels = self._without_twins(labels, t)
        most = len(labels) if local.hidden is None else most  # linear MACH: exact, and cheap
        count, worst, point = 0, math.inf, None
        for begin in range(0, min(len(labels), most), _CHUNK):
            chunk = labels[begin : begin + min(_CHUNK, most - begin)]
            bounds, g = self.margins(local, t, chunk, signs_only=True)
            count += int((~(bounds > 0)).sum())
            lowest = int(bounds.argmin())
            if bounds[lowest] <= 0 and float(bounds[lowest]) < worst:
                worst, point = float(bounds[lowest]), (g[:, lowest], chunk[lowest : lowest + 1])
            if count >= k:
                break
        else:
            if len(labels) > most:  # more than are looked at: nothing is shown
                count = k
        return min(count, k), None if point is None else self.point(local, point[0], t, point[1])

    def point(self, local: _Local, g: Tensor, t: int, label: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Features and float32 values of the document within reach where the function g is lowest."""
        reach, epsilon = local.reach, local.reach.epsilon
        moved = (reach.x + reach.change(g[:, None])[:, 0]).float()
        if not isinstance(self.threat, Delete):
            rows = torch.zeros(len(moved), dtype=torch.int64, device=self.device)
            moved = self.threat.project(reach.x.float(), moved, rows, 1, epsilon)
        features, values = local.own, moved
        if self.new or self.everywhere:
            a = None
            if local.hidden is not None:
                a = self.difference(t, label)[0] * _lines(local.hidden.low, local.hidden.high)[0]
            direction = _Direction(self, t, label, a)
            if not self.two_layers:
                pieces = [self._slopes(local, direction, begin, end) for begin, end in direction.tiles()]
                effect = torch.cat(pieces)
                size = -effect.sign() * round_down(epsilon, torch.float32)
                keep = effect.abs().topk(self.new).indices if self.new else effect.nonzero()[:, 0]
                keep = keep[effect[keep] != 0]
                features = torch.cat((features, keep))
                values = torch.cat((values, size[keep].float()))
        return features.cpu().numpy(), values.cpu().numpy()

    def _slopes(self, local: _Local, direction: _Direction, begin: int, end: int) -> Tensor:  # [T]
        """The margin's slopes to features that the document lacks, 0 where moving them can't lower it."""
        g = direction.features(begin, end)[:, 0]
        return torch.where(self._harm(local, direction, begin, end)[:, 0] > 0, g, 0.0)


class _Direction:
    """Margins of t over K labels as linear functions of all features [D, K], tile by tile.

    `a` [K, M]: their weights on the encoder's outputs; None for linear MACH.
    """

    def __init__(self, model: _Model, t: int, labels: Tensor, a: Tensor | None) -> None:
        self.model, self.t, self.labels, self.a = model, t, labels, a

    def tiles(self) -> Iterator[tuple[int, int]]:
        D = self.model.model.num_features
        width = self.model.bucket_bias.numel() if self.a is None else self.a.shape[1]
        step = max(64, _HELD // (4 * max(width, len(self.labels))))
        return ((begin, min(D, begin + step)) for begin in range(0, D, step))

    def features(self, begin: int, end: int) -> Tensor:  # [T, K]
        if self.a is not None:
            return self.model.model.encoder_weight.detach()[begin:end].double() @ self.a.T
        R = self.model.model.num_repetitions
        g = torch.zeros(end - begin, len(self.labels), dtype=torch.float64, device=self.model.device)
        for r in range(R):
            weight, buckets = self.model.bucket_weight[r, begin:end], self.model.buckets[r]
            g += weight[:, buckets[self.t], None].double() - weight[:, buckets[self.labels]].double()
        return g / R


# --------------------------------------------------------------------------------------------- what to call


def check(model: MACH, threat: str | ThreatModel, op: str = "certify") -> ThreatModel:
    """The threat model; raises TypeError or ValueError where it can't be certified for this model."""
    if not isinstance(model, MACH):
        raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
    threat = threat_model(threat)
    if isinstance(threat, Dense) and not model.is_linear:
        raise ValueError(
            f"{op}: threat model dense is certified for linear MACH (hidden_size=0) only: it moves every "
            f"hidden unit by up to epsilon times the sum of its D={model.num_features} absolute weights, and "
            "bounds are vacuous at every useful epsilon; support, insert(m), l1, l2, delete are certified"
        )
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        names = ", ".join(sorted(map(str, dtypes)))
        raise TypeError(
            f"{op}: parameters must be float32 or float64, model.float() makes them so, got {names}"
        )
    return threat


@memory_errors("pass fewer documents at a time, or lower k or candidates")
def certify(
    model: MACH,
    X: Any,
    Y: Any,
    epsilons: Sequence[float],
    *,
    threat_model: str | ThreatModel = "support",
    k: int | None = None,
    candidates: int = 1024,
    zero: bool = True,
    progress: bool = False,
) -> Certificate:
    """Which right labels of the top k stay there, whatever a threat model allows: proven, not tried.

    Exact for linear MACH with merge `mean_logit`, to rounding: a top-1 label is certified or some document
    within the threat set, found and tried, takes it from the top. With hidden layers, and for ranks below
    the first, a lower bound. A tie counts as overtaken, but where two labels share all their buckets: the
    lower number stays first. epsilon = 0 is the clean document.

    Memory: float64 tables [n, R, B] of a document's n features, 128 MiB of them where one does not need more;
    labels are swept in pieces, or, where they are many, by exact decoding of a table of bounds first.

    Args:
        model: Used in eval mode.
        X, Y: Documents [N, D] and true labels [N, L], SciPy sparse matrices.
        epsilons: Sizes, of delete numbers of words.
        threat_model: As of `mach_ext.attack`; dense for linear MACH only.
        k: Labels of the top that are looked at; None: 5, or L where there are fewer labels.
        candidates: With hidden layers so many labels, of those that bounds with common slopes don't exclude,
            are bounded one by one; with more of them nothing is shown for the label.
        zero: Also finds the epsilon at which each certified P@k' reaches zero, by bisection.
        progress: Shows a bar.

    Raises:
        TypeError, ValueError: As of `check`; epsilon < 0; k not in 1 ... L; X or Y of other shape.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> Y = scipy.sparse.csr_matrix(([1, 1, 1], ([0, 1, 2], model.predict(X, 1)[1][:, 0])), (3, 500))
        >>> found = mach_ext.certify.certify(model, X, Y, [0, 1e-6, 10], zero=False)
        >>> found.precision(1).tolist()
        [1.0, 1.0, 0.0]
    """
    op = "certify"
    threat = check(model, threat_model, op)
    k, candidates = checked_k(op, k, model.num_labels), F.as_int(op, "candidates", candidates)
    if candidates < 1:
        raise ValueError(f"{op}: candidates must be at least 1, got {candidates}")
    X = _documents(op, model, X)
    Y = check_labels(Y, f"{op}: Y")
    if Y.shape != (X.shape[0], model.num_labels):
        raise ValueError(f"{op}: Y must be [N, L] = [{X.shape[0]}, {model.num_labels}], got shape {Y.shape}")
    if not len(epsilons):
        raise ValueError(f"{op}: epsilons must be at least one number")
    for epsilon in epsilons:
        threat.check(op, X, epsilon)
    grid = sorted({float(epsilon) for epsilon in epsilons})
    E, N = len(grid), X.shape[0]
    advice = "pass fewer documents or epsilons at a time, or lower k"
    check_memory(f"{op}: ranks of the labels", 16 * E * N * k, advice, epsilons=E, N=N, k=k)
    labels = model.predict(X, k)[1]
    correct = np.zeros(labels.shape, bool)
    for n in range(len(labels)):
        correct[n] = np.isin(labels[n], Y[n].indices)

    with evaluating(model):
        bounds = _Model(model, threat)
        overtakers = np.full((len(grid), *labels.shape), k)
        attained = np.broadcast_to(np.arange(k), overtakers.shape).copy()
        alive = correct
        with tqdm(total=len(grid) * len(labels), unit="doc", disable=not progress, dynamic_ncols=True) as bar:
            for e, epsilon in enumerate(grid):
                if epsilon == 0:
                    overtakers[e][correct] = np.nonzero(correct)[1]
                else:
                    overtakers[e], attained[e] = _at(bounds, X, labels, alive, epsilon, candidates)
                alive = overtakers[e] < k
                bar.update(len(labels))
        attained = np.maximum.accumulate(attained, 0)
        # Threat sets grow: what holds at a size holds at all smaller ones.
        overtakers = np.minimum.accumulate(overtakers[::-1], 0)[::-1]
        zeros = {}
        for one in sorted({1, 3, 5, k} & set(range(k + 1))) if zero else ():
            zeros[one] = _zero(bounds, X, labels, correct, overtakers, grid, one, candidates)
    return Certificate(str(threat), grid, labels, correct, overtakers, attained, zeros)


@memory_errors("pass fewer documents at a time")
def margin_bounds(
    model: MACH, X: Any, pairs: Any, epsilon: float, *, threat_model: str | ThreatModel = "support"
) -> NDArray[np.float64]:
    """Lower bounds [N] of the lead of label pairs[n, 0] over pairs[n, 1], in the model's own scores.

    Over all documents of the threat set around document n, and of the scores as the model computes them.
    Exact for linear MACH with merge `mean_logit`, to rounding. -inf where float32 might overflow.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> scores, labels = model.predict(X, 2)
        >>> bounds = mach_ext.certify.margin_bounds(model, X, labels, 0.01)
        >>> bool((bounds <= scores[:, 0] - scores[:, 1]).all())
        True

    Raises:
        TypeError, ValueError: As of `certify`; pairs must be labels [N, 2].
    """
    op = "margin_bounds"
    threat = check(model, threat_model, op)
    X = _documents(op, model, X)
    threat.check(op, X, epsilon)
    pairs = np.asarray(pairs)
    if pairs.shape != (X.shape[0], 2) or pairs.dtype.kind not in "iu":
        raise ValueError(f"{op}: pairs must be labels [N, 2] = [{X.shape[0]}, 2], got shape {pairs.shape}")
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < model.num_labels):
        raise ValueError(f"{op}: pairs must be labels in [0, L={model.num_labels}), got {pairs.max()}")
    result = np.empty(len(pairs))
    with evaluating(model):
        bounds = _Model(model, threat)
        for local in bounds.forms(X, range(X.shape[0]), float(epsilon)):
            t, other = pairs[local.n].tolist()
            label = torch.tensor([other], device=bounds.device)
            if not local.finite:
                result[local.n] = -math.inf
                continue
            if bounds.by_margin:
                result[local.n] = float(bounds.margins(local, t, label)[0])
                continue
            gain, merge = bounds.gains(bounds.intervals(local), t)
            result[local.n] = -float(F.merge_scores(gain[None], model.hash, label, merge)[0, 0])
    return result


def _documents(op: str, model: MACH, X: Any) -> Any:
    X = check_csr(X, f"{op}: X")
    if X.shape[1] != model.num_features:
        raise ValueError(f"{op}: X must have D={model.num_features} columns, got shape {X.shape}")
    if not (X.data != 0).all():
        X = X.copy()
        X.eliminate_zeros()
    return X


def _at(
    bounds: _Model, X: Any, labels: NDArray[Any], alive: NDArray[np.bool_], epsilon: float, most: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """overtakers and attained ranks [N, k] at one size, of the labels still alive; k and clean for others."""
    k = labels.shape[1]
    overtakers = np.full(labels.shape, k)
    attained = np.broadcast_to(np.arange(k), labels.shape).copy()
    tried: list[tuple[int, int, Any]] = []
    documents = np.flatnonzero(alive.any(1)).tolist()
    for local in bounds.forms(X, documents, epsilon):
        ranks = np.flatnonzero(alive[local.n]).tolist()
        found = bounds.overtakers(local, labels[local.n, ranks].tolist(), k, most)
        for rank, (count, point) in zip(ranks, found, strict=True):
            overtakers[local.n, rank] = count
            if point is not None:
                tried.append((local.n, rank, point))
        if len(tried) >= 256:
            _try(bounds.model, labels, tried, attained)
            tried = []
    _try(bounds.model, labels, tried, attained)
    return overtakers, attained


def _try(
    model: MACH, labels: NDArray[Any], tried: list[tuple[int, int, Any]], attained: NDArray[Any]
) -> None:
    """The ranks that labels take in the documents found, by the model itself."""
    if not tried:
        return
    k = labels.shape[1]
    lengths = [len(features) for _, _, (features, _) in tried]
    X = scipy.sparse.csr_matrix(
        (
            np.concatenate([values for _, _, (_, values) in tried]),
            np.concatenate([features for _, _, (features, _) in tried]),
            np.concatenate(([0], np.cumsum(lengths))),
        ),
        (len(tried), model.num_features),
    )
    X.sort_indices()
    ranked = model.predict(X, k)[1]
    for (n, rank, _), found in zip(tried, ranked, strict=True):
        at = np.flatnonzero(found == labels[n, rank])
        attained[n, rank] = max(attained[n, rank], at[0] if len(at) else k)


def _zero(
    bounds: _Model, X: Any, labels: NDArray[Any], correct: NDArray[np.bool_], overtakers: NDArray[Any],
    grid: list[float], k: int, most: int,
) -> tuple[float, float]:  # fmt: skip
    """Where certified P@k is above zero and where it is zero, by bisection from the grid on."""
    correct = correct & (np.arange(labels.shape[1]) < k)
    if not (bounds.new or bounds.everywhere):  # nothing can change a document without features
        correct = correct & (np.diff(X.indptr) > 0)[:, None]
    words = isinstance(bounds.threat, Delete)
    holds = [bool((correct & (o < k)).any()) for o in overtakers]
    last = max((e for e, held in enumerate(holds) if held), default=-1)
    if not correct.any():
        return -1.0, 0.0
    low = grid[last] if last >= 0 else 0.0
    alive = correct & (overtakers[last] < k) if last >= 0 else correct
    high = next((epsilon for epsilon in grid if epsilon > low), math.inf)

    def survivors(epsilon: float) -> NDArray[np.bool_]:
        # Only the top k counts: labels below can't be overtaken into it.
        found = _at(bounds, X, labels[:, :k], alive[:, :k], epsilon, most)[0] < k
        wide = np.zeros_like(alive)
        wide[:, :k] = found
        return wide

    if math.isinf(high):
        size = max(2 * low, 1.0 if words else 1e-3)
        for _ in range(24):
            found = survivors(size)
            if not found.any():
                high = size
                break
            low, alive, size = size, found, 2 * size
        else:
            return low, math.inf
    for _ in range(16):
        middle = float((int(low) + int(high)) // 2) if words else (low + high) / 2
        if (words and middle == low) or (not words and high <= 1.02 * low):
            break
        found = survivors(middle)
        if found.any():
            low, alive = middle, found
        else:
            high = middle
    return low, high
