"""`Candidates` finds the labels that may overtake a label, among all L labels together."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext import functional as F
from mach_ext.certify._forms import AffineForm
from mach_ext.certify._insertion import Insertion
from mach_ext.certify._network import HELD, UNDERFLOW, Network


def largest_gains(
    network: Network, gain: Tensor, t: int, count: int, reduction: str = "mean"
) -> tuple[Tensor, bool]:
    """Returns labels of the largest merged gain [R, B] over t. The table is rounded up to float32.

    Returns:
        At most `count` labels whose gain may be above zero, and whether there are no others.
    """
    hash, L = network.hash, network.model.num_labels
    unit = 2.0**-23 * (len(gain) + 4)
    upper = (gain + unit * float(gain.abs().max()) + UNDERFLOW).float()
    keys, labels = F.merge_topk(upper[None], hash, min(count, L), reduction)
    possible = (keys[0] >= 0) & (labels[0] != t)
    return labels[0][possible], bool(keys[0, -1] < 0) or count >= L


class Candidates:
    """Bounds all labels with lines whose slopes do not depend on the label, for the merge `mean_logit`."""

    def __init__(self, network: Network, insertion: Insertion) -> None:
        """Prepares the bounds for a model and for what an attacker may insert."""
        self.network, self.insertion = network, insertion

    def sweep(self, form: AffineForm, targets: list[int]) -> list[Tensor]:
        """Returns for each target the labels that may overtake it by these lines, the likeliest first."""
        network, hash, L = self.network, self.network.hash, self.network.model.num_labels
        uncertain = (form.spread + form.rate * form.size)[None]
        mine = torch.tensor(targets, device=network.device)
        of_targets = F.merge_scores(form.slope, hash, mine, validate=False)  # [n, T]
        base_t = F.merge_scores(form.base[None], hash, mine, validate=False)[0]
        uncertain_t = F.merge_scores(uncertain, hash, mine, validate=False)[0] + UNDERFLOW
        kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in targets]
        step = max(1, HELD // (2 * max(1, len(form.own))))
        for begin in range(0, L, step):
            labels = torch.arange(begin, min(L, begin + step), device=network.device)
            slopes = F.merge_scores(form.slope, hash, labels, validate=False)  # [n, labels]
            base, wide = (
                F.merge_scores(table, hash, labels, validate=False)[0]
                for table in (form.base[None], uncertain)
            )
            for i, t in enumerate(targets):
                lower = base_t[i] - base - (uncertain_t[i] + wide)
                lower += form.reach.lowest(of_targets[:, i : i + 1] - slopes, quick=True)
                if self.insertion.possible:
                    lower -= self.insertion.bound_losses(form, t, labels)
                at = (~(lower > 0) & (labels != t)).nonzero()[:, 0]
                kept[i].append((lower[at], labels[at]))
        result = []
        for parts in kept:
            bounds, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            result.append(labels[bounds.sort().indices])
        return result

    def decode(self, form: AffineForm, t: int, count: int) -> tuple[Tensor, bool]:
        """Returns labels by falling bound of their lead over t, without a sweep over all L labels.

        Returns:
            At most `count` labels, and whether all others are excluded.
        """
        mine = self.network.buckets[:, t, None]  # [R, 1]
        at = mine[None].expand(len(form.slope), -1, 1)
        loss = form.slope.gather(2, at) - form.slope
        lead = form.base.gather(1, mine) - form.base
        wide = form.uncertainty()
        gain = wide + wide.gather(1, mine) - lead
        gain -= form.reach.lowest(loss.flatten(1), quick=True).view_as(gain)
        # A shared bucket cancels, but the roundings of the two sums do not.
        gain.scatter_(1, mine, 2 * form.rate * form.size.gather(1, mine))
        return largest_gains(self.network, gain, t, count)
