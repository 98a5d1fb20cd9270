"""Witnesses: documents of the threat set in which a label may fall, and the ranks that it gets in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import functional as F
from mach_ext.attack._part import changed_part
from mach_ext.attack._threat_checks import round_down
from mach_ext.attack.threats import Delete, ThreatModel
from mach_ext.certify._forms import AffineForm, relu_lines
from mach_ext.certify._insertion import Direction, Insertion
from mach_ext.certify._network import Network
from mach_ext.nn import MACH


class Witness(NamedTuple):
    """A document: its features and their float32 values."""

    features: NDArray[Any]
    values: NDArray[Any]


class Witnesses:
    """Makes the documents to try, for a model and a threat model."""

    def __init__(self, network: Network, threat: ThreatModel, insertion: Insertion) -> None:
        """Takes the model, the threat model and what an attacker may insert."""
        self.network, self.threat, self.insertion = network, threat, insertion
        self.part = changed_part("certify", network.model, threat)

    def minimizer(self, form: AffineForm, g: Tensor, t: int, label: Tensor) -> Witness:
        """Returns the document within reach at which g [n], a bound of t's lead over a label, is lowest."""
        reach, epsilon = form.reach, form.reach.inner
        moved = (reach.x + reach.change(g[:, None])[:, 0]).float()
        if not isinstance(self.threat, Delete):
            rows = torch.zeros(len(moved), dtype=torch.int64, device=moved.device)
            threat = self.part.on(self.threat, form.own)
            moved = threat.project(reach.x.float(), moved, rows, 1, epsilon)
        features, values = form.own, moved
        if self.insertion.possible and not self.network.two_layers:
            new, sizes = self._inserted(form, t, label)
            features, values = torch.cat((features, new)), torch.cat((values, sizes))
        return Witness(features.cpu().numpy(), values.cpu().numpy())

    def of_logits(self, form: AffineForm, t: int, label: Tensor) -> Witness:
        """Returns the document of `minimizer` as if logits were averaged, whatever the merge is."""
        pair = torch.cat((label, label.new_tensor([t])))
        slopes = F.merge_scores(form.slope, self.network.hash, pair)
        return self.minimizer(form, slopes[:, 1] - slopes[:, 0], t, label)

    def _inserted(self, form: AffineForm, t: int, label: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the new features that lower the lead of t over the label most, and their values."""
        a = None
        if form.hidden is not None:
            a = self.network.difference(t, label)[0] * relu_lines(form.hidden.low, form.hidden.high)[0]
        effect = self.insertion.slopes(form, Direction(self.network, t, label, a))
        size = -effect.sign() * round_down(form.reach.epsilon, torch.float32)
        count = self.insertion.count
        keep = effect.abs().topk(count).indices if count else effect.nonzero()[:, 0]
        keep = keep[effect[keep] != 0]
        return keep, size[keep].float()


def record_ranks(
    model: MACH, labels: NDArray[Any], tried: list[tuple[int, int, Witness]], attained: NDArray[Any]
) -> None:
    """Writes to `attained` [N, k] the ranks that the model gives labels in the witnesses.

    `tried` holds numbers of documents, ranks of their labels in [N, k], and witnesses.
    """
    if not tried:
        return
    k = labels.shape[1]
    lengths = [len(witness.features) for _, _, witness in tried]
    X = scipy.sparse.csr_matrix(
        (
            np.concatenate([witness.values for _, _, witness in tried]),
            np.concatenate([witness.features for _, _, witness in tried]),
            np.concatenate(([0], np.cumsum(lengths))),
        ),
        (len(tried), model.num_columns),
    )
    X.sort_indices()
    ranked = model.predict(X, k)[1]
    for (n, rank, _), top in zip(tried, ranked, strict=True):
        at = np.flatnonzero(top == labels[n, rank])
        attained[n, rank] = max(attained[n, rank], at[0] if len(at) else k)
