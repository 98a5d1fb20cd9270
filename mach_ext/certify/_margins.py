"""`Margins` bounds the lead of a label over others, pair by pair, for the merge `mean_logit`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from mach_ext import functional as F
from mach_ext.certify._forms import AffineForm, HiddenForm, relu_lines
from mach_ext.certify._insertion import Direction, Insertion
from mach_ext.certify._network import UNDERFLOW, Network


class Margins:
    """Margins, which are exact for linear MACH.

    Hidden layers are bounded by intervals and by lines of several slopes.
    """

    def __init__(self, network: Network, insertion: Insertion) -> None:
        """Takes the model and what an attacker may insert."""
        self.network, self.insertion = network, insertion

    def lower(
        self, form: AffineForm, t: int, labels: Tensor, signs_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns lower bounds [K] of the lead of label t over others, and their linear functions [n, K].

        With `signs_only` new features are considered only if they decide whether a bound is above zero.
        """
        hash = self.network.hash
        both = torch.cat((labels.new_tensor([t]), labels))
        size = F.merge_scores(form.size[None], hash, both, validate=False)[0]
        slack = form.rate * (size[0] + size[1:]) + UNDERFLOW
        if form.hidden is not None:
            return self._relaxed(form, form.hidden, t, labels, slack, signs_only)
        base = F.merge_scores(form.base[None], hash, both, validate=False)[0]
        slopes = F.merge_scores(form.slope, hash, both, validate=False)
        g = slopes[:, :1] - slopes[:, 1:]
        lower = base[0] - base[1:] + form.reach.lowest(g) - slack
        if self.insertion.possible:
            inserted = F.merge_scores(form.inserted[None], hash, both, validate=False)[0]
            lost = -(inserted[0] + inserted[1:])
            direction = Direction(self.network, t, labels, None)
            lower = self.insertion.reduce(form, lower, lost, direction, signs_only)
        return lower, g

    def _relaxed(
        self, form: AffineForm, last: HiddenForm, t: int, labels: Tensor, slack: Tensor, signs_only: bool
    ) -> tuple[Tensor, Tensor]:
        """Returns the better of the last hidden layer's intervals and its lines."""
        u, constant = self.network.difference(t, labels)  # [K, M], [K]
        low, high = last.low.clamp(min=0), last.high.clamp(min=0)
        interval = torch.minimum(u * low, u * high).sum(1) + constant
        slack = slack + u.abs() @ last.rounding
        reached, g, weights = self._lines(form, last, u, constant)
        interval, reached = interval - slack, reached - slack
        if self.insertion.norm:
            lost = -form.reach.epsilon * self.insertion.norm * vector_norm(weights, dim=1)
            direction = Direction(self.network, t, labels, weights)
            reached = self.insertion.reduce(form, reached, lost, direction, signs_only)
        return torch.maximum(interval, reached), g

    def _lines(
        self, form: AffineForm, last: HiddenForm, u: Tensor, constant: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the best bounds of three choices of ReLU's lower lines, for margins with weights u [K, M].

        Returns:
            Bounds [K], and the linear functions behind them: of the document [n, K] and of p [K, M].
        """
        line, gap = relu_lines(last.low, last.high)
        constant = constant + u.clamp(max=0) @ gap
        unsure = (last.low < 0) & (last.high > 0)
        steep = torch.where(unsure, (last.high > -last.low).to(line.dtype), line)
        g, weights = u.new_zeros(len(last.slope), len(u)), torch.zeros_like(u)
        reached = u.new_full((len(u),), -math.inf)
        lower_line = line[None]
        for attempt in range(3):
            a = torch.where(u > 0, u * lower_line, u * line)
            slopes = last.slope @ a.T
            bound = constant + a @ last.p + form.reach.lowest(slopes) - a.abs() @ last.spread
            better = bound > reached
            reached, g = torch.maximum(bound, reached), torch.where(better, slopes, g)
            weights = torch.where(better[:, None], a, weights)
            if attempt == 0:
                lower_line = steep[None]
            else:  # if the unit is off in the worst document so far, relu >= 0 is the better line
                worst = last.p + form.reach.change(g).T @ last.slope
                lower_line = torch.where(unsure, (worst > 0).to(line.dtype), line)
        return reached, g, weights
