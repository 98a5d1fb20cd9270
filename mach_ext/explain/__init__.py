"""Explains predictions: how much each feature of a document adds to the score of any label, and why.

* `integrated_gradients`, `contrast` and `explain_topk` compute exact attributions. Many labels cost little
  more than a single label.
* `captum_inputs` gives the same scores to any algorithm of Captum.
* `votes` says how the repetitions voted. `collisions` tells whether a score is a label's own or comes from
  labels in the same buckets. `leave_one_out` shows what removing a feature does to the top k.

Documents of a model with dense features are a `mach_ext.data.HybridMatrix`. Each dense feature gets an
attribution, and charts show their sum as one bar. The baseline of a dense feature is its average over the
training documents, which is the zero of the model.

These functions also take a `MACHHead`. They explain its hidden units, or with `encoder=` the input of any
differentiable encoder in front of it.

**Integrated Gradients** (Sundararajan et al., 2017) explain a score F along the straight path from a baseline
b to the document x. The attribution of feature d is IG_d = (x_d - b_d) * mean over a in [0, 1] of dF/dx_d at
b + a (x - b). The attributions sum to F(x) - F(b). The *delta* is the difference that rounding or too few
steps leave. A feature that is absent from x and b has IG_d = 0. So only features of x or b are computed.

With ReLU layers and a mean of logits as the score, F is piecewise linear along the path. Then the mean has a
closed form (`method="exact"`). A first-layer unit's pre-activation is affine in a. The unit is active on an
interval of the path, whose length is f_j. So IG_d = (x_d - b_d) sum_j W[d, j] f_j u_j, where u_j is the
label's weight on unit j.

With a second layer, the path is cut where first-layer units switch on or off. On each piece the second
layer's pre-activations are affine, too. Then f_j u_j becomes sum_k W2[j, k] C[j, k] u_k. Here C[j, k] is the
fraction of the path on which units j and k are active together. Neither f nor C depends on the label.

The path through the encoder of a `MACH` is computed in float64. An encoder of your own computes in its own
precision, and has no closed form. The scores F come from the model's own forward pass. So a
small delta also confirms that the model and this module agree.

Notation: N documents, D features, L labels, m explained labels, R repetitions, B buckets, H hidden units.

Example:
    >>> from scipy import sparse
    >>> import mach_ext
    >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
    >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
    >>> mach_ext.fit_svm(model, X, Y, progress=False)
    >>> names = {
    ...     "feature_names": ["meow", "bark", "hoot", "moo", "oink", "cluck"],
    ...     "label_names": ["cat", "dog", "owl", "cow", "pig", "hen"],
    ... }
    >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])  # barks, and hoots a little
    >>> (result,) = mach_ext.explain.explain_topk(model, x, k=2, **names)
    >>> for label, name in zip(result.labels, result.label_names, strict=True):
    ...     print(name, [(word, round(effect, 2)) for word, effect in result.top(2, label)])
    dog [('bark', 2.8), ('hoot', -0.6)]
    owl [('hoot', 1.76), ('bark', -0.42)]
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
from mach_ext.explain.captum import HeadForward as HeadForward
from mach_ext.explain.captum import captum_inputs
from mach_ext.explain.collision_check import Collisions, Mate, collisions
from mach_ext.explain.result import Explanation
from mach_ext.explain.tokens import TokenExplanation, token_attributions
from mach_ext.explain.voting import Votes, votes

__all__ = [
    "Collisions",
    "Explanation",
    "LeaveOneOut",
    "Mate",
    "StepsWarning",
    "TokenExplanation",
    "Votes",
    "captum_inputs",
    "collisions",
    "contrast",
    "explain_topk",
    "integrated_gradients",
    "leave_one_out",
    "token_attributions",
    "votes",
]

__getattr__ = renamed_names(
    __name__, removals="mach_ext.explain.leave_one_out", Removals="mach_ext.explain.LeaveOneOut"
)
