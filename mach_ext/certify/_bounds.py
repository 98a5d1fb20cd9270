"""Lower bounds of label margins within a threat set, and the labels that they do not exclude."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vector_norm

from mach_ext import functional as F
from mach_ext.attack.threats import Delete, Dense, Insert, ThreatModel, round_down
from mach_ext.certify._forms import Hidden, Local, lines
from mach_ext.certify._reach import Reach
from mach_ext.nn import MACH, MODEL_MERGES

_HELD = 1 << 24  # float64 numbers of a table that are held at a time: 128 MiB
_CHUNK = 64  # labels that are bounded one by one, at a time
_UNDERFLOW = 1e-30  # far above what underflows add up to
_LARGEST = float(torch.finfo(torch.float32).max)


class Model:
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

    def lost_to_new(self, local: Local, direction: Direction) -> Tensor:  # [K], <= 0
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

    def _harm(self, local: Local, direction: Direction, begin: int, end: int) -> Tensor:  # [T, K]
        g = direction.features(begin, end)
        harm = (-g).clamp(min=0) if self.threat.nonnegative else g.abs()
        own = local.own[(local.own >= begin) & (local.own < end)] - begin
        harm[own] = 0
        return harm

    # -------------------------------------------------------------------------------------- affine forms

    def forms(self, X: Any, documents: Sequence[int], epsilon: float) -> Iterator[Local]:
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

    def _group(self, X: Any, documents: list[int], epsilon: float) -> Iterator[Local]:
        rows = X[documents]
        x = torch.from_numpy(rows.data).to(self.device).double()
        own = torch.from_numpy(rows.indices).to(self.device).long()
        parts = list(zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True))
        reaches = [Reach(self.threat, x[a:b], epsilon) for a, b in parts]
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
                yield Local(n, own[a:b], reach, mine, base, nothing, inserted, size, rate, None, finite)
            return
        first = self.model.encoder_weight.detach()[own].double()  # [nnz, C * H]
        lasts = [self._hidden(reach, first[a:b]) for (a, b), reach in zip(parts, reaches, strict=True)]
        p, ball, low, high, wobble = (
            torch.stack([getattr(last, name) for last in lasts])
            for name in ("p", "spread", "low", "high", "wobble")
        )  # [documents, M]
        line, gap = lines(low, high)
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
            yield Local(n, own[a:b], reach, *tables, rate, lasts[i], finite)

    def _finite(self, reach: Reach, size: Tensor, hidden: float = 0.0) -> bool:
        """Whether values, hidden units and logits stay in the range of float32; False for NaN."""
        sums = (reach.epsilon, float(reach.largest.sum()), hidden, float(size.max()))
        return all(one < self.limit for one in sums)

    def _block(self, r: int) -> slice:
        """Of the last hidden layer, the units that repetition r takes."""
        H = self.model.hidden_sizes[-1]
        return slice(r * H, (r + 1) * H) if self.copies > 1 else slice(0, H)

    def _hidden(self, reach: Reach, weight: Tensor) -> Hidden:
        """Through the encoder [n, M], and the second layer where there is one."""
        epsilon = reach.epsilon
        p = reach.x @ weight + self.encoder_bias
        low = p + reach.lowest(weight) - epsilon * self.down[0]
        high = p - reach.lowest(-weight) + epsilon * self.up[0]
        size = reach.largest @ weight.abs() + epsilon * (self.up + self.down)[0] + self.encoder_bias.abs()
        wobble = self.gamma(len(weight) + self.new + 4) * size + _UNDERFLOW
        largest = float(size.max())
        if not self.two_layers:
            return Hidden(p, weight, torch.zeros_like(p), low, high, wobble, largest)
        line, gap = lines(low, high)
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
        return Hidden(second, slope, spread, low, high, wobble, largest)

    # -------------------------------------------------------------------------------- margins, one by one

    def margins(
        self, local: Local, t: int, labels: Tensor, signs_only: bool = False
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
        self, local: Local, t: int, labels: Tensor, lower: Tensor, lost: Tensor, a: Tensor | None,
        signs_only: bool,
    ) -> Tensor:  # fmt: skip
        """Bounds less what new features take: `lost` [K] or, where it is not enough, exactly."""
        decisive = (lower > 0) & (lower + lost <= 0)
        at = (decisive if signs_only else torch.ones_like(decisive)).nonzero()[:, 0]
        if len(at):
            direction = Direction(self, t, labels[at], None if a is None else a[at])
            lost = lost.index_copy(0, at, self.lost_to_new(local, direction))
        return lower + lost

    def _relaxed(
        self, local: Local, last: Hidden, t: int, labels: Tensor, slack: Tensor, signs_only: bool
    ) -> tuple[Tensor, Tensor]:
        u, constant = self.difference(t, labels)  # [K, M], [K]
        low, high = last.low.clamp(min=0), last.high.clamp(min=0)
        best = torch.minimum(u * low, u * high).sum(1) + constant
        slack = slack + u.abs() @ last.wobble
        line, gap = lines(last.low, last.high)
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

    def candidates(self, local: Local, targets: list[int]) -> list[Tensor]:
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

    def _inserted(self, local: Local, table: Tensor, t: int, labels: Tensor) -> Tensor:
        """What new features add to each label's lead over t at most [K]."""
        hash = self.model.hash
        lost = F.merge_scores(table, hash, labels, validate=False)[0]
        lost = lost + F.merge_scores(table, hash, labels.new_tensor([t]), validate=False)[0]
        if self.label_vectors is None or local.hidden is None:
            return lost
        # Squares of small numbers vanish in float32: lines are 1e-18 at least, products lose 2^-126 at most.
        line = lines(local.hidden.low, local.hidden.high)[0].clamp(min=1e-18).float().square()
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

    def likeliest(self, local: Local, t: int, count: int) -> tuple[Tensor, bool]:
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

    def intervals(self, local: Local) -> tuple[Tensor, Tensor]:
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

    def overtakers(self, local: Local, targets: list[int], k: int, most: int) -> list[tuple[int, Any]]:
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

    def _count(self, local: Local, t: int, labels: Tensor, k: int, most: int) -> tuple[int, Any]:
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

    def point(self, local: Local, g: Tensor, t: int, label: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
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
                a = self.difference(t, label)[0] * lines(local.hidden.low, local.hidden.high)[0]
            direction = Direction(self, t, label, a)
            if not self.two_layers:
                pieces = [self._slopes(local, direction, begin, end) for begin, end in direction.tiles()]
                effect = torch.cat(pieces)
                size = -effect.sign() * round_down(epsilon, torch.float32)
                keep = effect.abs().topk(self.new).indices if self.new else effect.nonzero()[:, 0]
                keep = keep[effect[keep] != 0]
                features = torch.cat((features, keep))
                values = torch.cat((values, size[keep].float()))
        return features.cpu().numpy(), values.cpu().numpy()

    def _slopes(self, local: Local, direction: Direction, begin: int, end: int) -> Tensor:  # [T]
        """The margin's slopes to features that the document lacks, 0 where moving them can't lower it."""
        g = direction.features(begin, end)[:, 0]
        return torch.where(self._harm(local, direction, begin, end)[:, 0] > 0, g, 0.0)


class Direction:
    """Margins of t over K labels as linear functions of all features [D, K], tile by tile.

    `a` [K, M]: their weights on the encoder's outputs; None for linear MACH.
    """

    def __init__(self, model: Model, t: int, labels: Tensor, a: Tensor | None) -> None:
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
