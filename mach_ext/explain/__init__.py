"""Explanations: what each feature of a document adds to the score of any label, and how MACH came to it.

* `integrated_gradients`, `contrast`, `explain_topk`: exact attributions, many labels in one product.
* `captum_inputs`: the same scores for any Captum algorithm.
* `votes`, `collisions`, `leave_one_out`: how the repetitions voted, whether a score is a label's own or its
  bucket mates', what removing a feature does to the top k.

**Integrated Gradients** (Sundararajan et al., 2017) of a score F along the straight path from a baseline b
to the document x: IG_d = (x_d - b_d) * mean over a in [0, 1] of dF/dx_d at b + a (x - b). Its sum is
F(x) - F(b); what is left of that, by rounding or by steps, is the *delta*. A feature that is absent from x
and b has IG_d = 0, so sums over the union of their supports are the whole.

With ReLU layers and a score that is a mean of logits, F is piecewise linear along the path, and the mean is
known in closed form (`method="exact"`). A first-layer unit's pre-activation is affine in a, so the fraction
f_j of the path on which it is active is the length of an interval; IG_d = (x_d - b_d) sum_j W[d, j] f_j u_j
with u_j the label's weight on unit j. With a second layer, the path is cut where first-layer units switch; on
each piece the second layer's pre-activations are affine, too, and f_j u_j becomes sum_k W2[j, k] C[j, k] u_k
with C[j, k] the fraction on which units j and k are active together. Neither f nor C depends on the label.

The path through the encoder is computed in float64; scores F are the model's own forward pass, so a delta is
also a check of the model's arithmetic against this module's.

Notation: N documents, D features, L labels, m labels asked for, R repetitions, B buckets, H hidden units.
"""

from mach_ext._deprecation import renamed_names
from mach_ext.explain._arguments import SCORES as SCORES
from mach_ext.explain._arguments import Labels as Labels
from mach_ext.explain._arguments import Names as Names
from mach_ext.explain._arguments import Numbers as Numbers
from mach_ext.explain._arguments import resolve_labels as resolve_labels
from mach_ext.explain.ablation import LeaveOneOut, leave_one_out
from mach_ext.explain.attribution import METHODS as METHODS
from mach_ext.explain.attribution import StepsWarning, contrast, explain_topk, integrated_gradients
from mach_ext.explain.captum import CaptumForward as CaptumForward
from mach_ext.explain.captum import captum_inputs
from mach_ext.explain.collision_check import Collisions, Mate, collisions
from mach_ext.explain.result import Explanation
from mach_ext.explain.voting import Votes, votes

__all__ = [
    "Collisions",
    "Explanation",
    "LeaveOneOut",
    "Mate",
    "StepsWarning",
    "Votes",
    "captum_inputs",
    "collisions",
    "contrast",
    "explain_topk",
    "integrated_gradients",
    "leave_one_out",
    "votes",
]

__getattr__ = renamed_names(
    __name__, removals="mach_ext.explain.leave_one_out", Removals="mach_ext.explain.LeaveOneOut"
)
