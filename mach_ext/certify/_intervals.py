"""`ScoreIntervals` bounds scores of merges other than `mean_logit` by intervals of bucket scores."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import functional as F
from mach_ext.certify._forms import AffineForm
from mach_ext.certify._network import UNDERFLOW, Network


class ScoreIntervals:
    """Intervals of bucket scores, which all labels share, and the leads over a label that they allow."""

    def __init__(self, network: Network) -> None:
        """Takes the model."""
        self.network = network

    def buckets(self, form: AffineForm) -> tuple[Tensor, Tensor]:
        """Returns the lowest and the highest transformed score that the model may compute for each bucket."""
        flat = form.slope.flatten(1)
        wide = form.uncertainty() + UNDERFLOW
        low = form.base + form.reach.lowest(flat, quick=True).view_as(form.base) - wide
        high = form.base - form.reach.lowest(-flat, quick=True).view_as(form.base) + wide
        low, high = self.network.merge.transformed(low), self.network.merge.transformed(high)
        slack = 16 * self.network.unit
        return low - slack * low.abs() - UNDERFLOW, high + slack * high.abs() + UNDERFLOW

    def gains(self, scores: tuple[Tensor, Tensor], t: int) -> Tensor:
        """Returns a table [R, B]. Merged over a label's buckets, it is the label's highest lead over t."""
        low, high = scores
        mine = self.network.buckets[:, t, None]
        slack = self.network.gamma(self.network.model.num_repetitions + 4)
        reduction = self.network.merge.reduction
        if reduction == "mean":
            worst = low.gather(1, mine)  # [R, 1]
            gain = high - worst + slack * (high.abs() + worst.abs())
            shared = 2 * slack * torch.maximum(worst.abs(), high.gather(1, mine).abs())
            return gain.scatter(1, mine, shared)
        own = F.merge_scores(low[None], self.network.hash, mine.new_tensor([t]), reduction)[0, 0]
        return high - own + slack * (high.abs() + own.abs())
