"""`Overtakers` counts how many labels may reach a label's score, and finds the worst document."""

from __future__ import annotations

import math

from torch import Tensor

from mach_ext.certify._candidates import Candidates, largest_gains
from mach_ext.certify._forms import AffineForm
from mach_ext.certify._intervals import ScoreIntervals
from mach_ext.certify._margins import Margins
from mach_ext.certify._network import Network
from mach_ext.certify._witness import Witness, Witnesses

_CHUNK = 64  # number of labels that are bounded at a time


class Overtakers:
    """Counts labels that may reach a label's score. It finds candidates and then bounds them one by one."""

    def __init__(
        self,
        network: Network,
        margins: Margins,
        candidates: Candidates,
        intervals: ScoreIntervals,
        witnesses: Witnesses,
    ) -> None:
        """Takes the parts that find and bound candidates."""
        self.network, self.margins, self.candidates = network, margins, candidates
        self.intervals, self.witnesses = intervals, witnesses

    @property
    def many_labels(self) -> bool:
        """Whether candidates are first decoded from a table of bounds instead of a sweep over all labels."""
        model = self.network.model
        return model.num_labels > 4 * model.num_repetitions * model.num_buckets

    def counts(
        self, form: AffineForm, targets: list[int], k: int, limit: int
    ) -> list[tuple[int, Witness | None]]:
        """Returns for each target how many labels (at most k) may reach it, and the worst document to try.

        With hidden layers, at most `limit` candidates are bounded one by one.
        """
        if not form.finite:
            return [(k, None)] * len(targets)
        if not self.network.by_margin:
            return self._by_intervals(form, targets, k)
        if self.many_labels:
            return [self._decoded(form, t, k, limit) for t in targets]
        swept = self.candidates.sweep(form, targets)
        return [self._one_by_one(form, t, labels, k, limit) for t, labels in zip(targets, swept, strict=True)]

    def _by_intervals(self, form: AffineForm, targets: list[int], k: int) -> list[tuple[int, Witness | None]]:
        """Counts with intervals of bucket scores."""
        network, result = self.network, list[tuple[int, Witness | None]]()
        scores = self.intervals.buckets(form)
        for t in targets:
            gain = self.intervals.gains(scores, t)
            labels, complete = largest_gains(network, gain, t, k + _CHUNK, network.merge.reduction)
            labels = network.without_twins(labels, t)
            witness = self.witnesses.of_logits(form, t, labels[:1]) if len(labels) else None
            result.append((min(len(labels), k) if complete else k, witness))
        return result

    def _decoded(self, form: AffineForm, t: int, k: int, limit: int) -> tuple[int, Witness | None]:
        """Bounds the likeliest labels first, and sweeps over all labels only if these do not decide."""
        first, complete = self.candidates.decode(form, t, _CHUNK)
        count, witness = self._one_by_one(form, t, first, k, limit)
        if complete or count >= k:
            return count, witness
        return self._one_by_one(form, t, self.candidates.sweep(form, [t])[0], k, limit)

    def _one_by_one(
        self, form: AffineForm, t: int, labels: Tensor, k: int, limit: int
    ) -> tuple[int, Witness | None]:
        """Bounds each candidate."""
        labels = self.network.without_twins(labels, t)
        limit = len(labels) if form.hidden is None else limit  # bounds of linear MACH are exact and cheap
        count, worst, least = 0, math.inf, None
        for begin in range(0, min(len(labels), limit), _CHUNK):
            chunk = labels[begin : begin + min(_CHUNK, limit - begin)]
            bounds, g = self.margins.lower(form, t, chunk, signs_only=True)
            count += int((~(bounds > 0)).sum())
            lowest = int(bounds.argmin())
            if bounds[lowest] <= 0 and float(bounds[lowest]) < worst:
                worst, least = float(bounds[lowest]), (g[:, lowest], chunk[lowest : lowest + 1])
            if count >= k:
                break
        else:
            if len(labels) > limit:  # some candidates are not bounded, so nothing is certified
                count = k
        return min(count, k), None if least is None else self.witnesses.minimizer(form, least[0], t, least[1])
