"""`Bounds` combines all parts of a certificate of a model within a threat model."""

from __future__ import annotations

import math

import torch

from mach_ext import functional as F
from mach_ext.attack.threats import ThreatModel
from mach_ext.certify._candidates import Candidates
from mach_ext.certify._forms import AffineForm
from mach_ext.certify._insertion import Insertion
from mach_ext.certify._intervals import ScoreIntervals
from mach_ext.certify._margins import Margins
from mach_ext.certify._network import Network
from mach_ext.certify._overtakers import Overtakers
from mach_ext.certify._propagation import Propagation
from mach_ext.certify._witness import Witnesses
from mach_ext.nn import MACH


class Bounds:
    """Leads from documents to forms, from forms to margins, and from margins to overtakers."""

    def __init__(self, model: MACH, threat: ThreatModel) -> None:
        """Prepares all parts for a model and a threat model."""
        self.threat = threat
        self.network = Network(model)
        self.insertion = Insertion(self.network, threat)
        self.propagation = Propagation(self.network, threat, self.insertion)
        self.margins = Margins(self.network, self.insertion)
        self.intervals = ScoreIntervals(self.network)
        self.candidates = Candidates(self.network, self.insertion)
        witnesses = Witnesses(self.network, threat, self.insertion)
        self.overtakers = Overtakers(self.network, self.margins, self.candidates, self.intervals, witnesses)

    def lead(self, form: AffineForm, t: int, other: int) -> float:
        """Returns a lower bound of the lead of label t over another label, with any merge."""
        if not form.finite:
            return -math.inf
        network = self.network
        label = torch.tensor([other], device=network.device)
        if network.by_margin:
            return float(self.margins.lower(form, t, label)[0])
        gain = self.intervals.gains(self.intervals.buckets(form), t)
        return -float(F.merge_scores(gain[None], network.hash, label, network.merge.reduction)[0, 0])
