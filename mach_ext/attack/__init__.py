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

from mach_ext._deprecation import renamed_names
from mach_ext.attack.evaluation import evaluate
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import GOALS
from mach_ext.attack.greedy import Greedy
from mach_ext.attack.methods import METHODS, create
from mach_ext.attack.noise import Random
from mach_ext.attack.perturbation import Perturbation
from mach_ext.attack.pgd import PGD
from mach_ext.attack.threats import L1, L2, Delete, Dense, Insert, Support, ThreatModel, threat_model

__all__ = [
    "FGSM",
    "GOALS",
    "L1",
    "L2",
    "METHODS",
    "PGD",
    "Delete",
    "Dense",
    "Greedy",
    "Insert",
    "Perturbation",
    "Random",
    "Support",
    "ThreatModel",
    "create",
    "evaluate",
    "threat_model",
]

__getattr__ = renamed_names(
    __name__,
    attack="mach_ext.attack.create",
    sign_pass="mach_ext.attack._dense.sign_pass",
    # Pickles of attacks and perturbations name these.
    _Batch="mach_ext.attack._batch.Batch",
    _Direction="mach_ext.attack._dense.Direction",
    _Layer="mach_ext.attack._layer.Layer",
)
