"""Certified robustness: how many predictions provably stay, whatever change a threat model allows.

* `certify` counts, for each right label of the clean top k, how many labels may reach its score. From these
  counts follows the share of P@k that provably remains, over a grid of epsilon.
* `margin_bounds` says how far the lead of a label over another can fall.

An attack gives an upper bound of robust P@k, and a certificate gives a lower bound: certified <= robust <=
attacked.

For a model with dense features, a threat model of words leaves these as they are. `Embedding` encloses a
change of the dense features alone. Neither covers an attacker who changes both. An encoder that embeds other
words is such an attacker.

A `MACHHead` is certified as linear MACH. The threat is then a change of its hidden units.

**Margins.** With the merge `mean_logit` the lead of label t over label l is 1/R sum_r (z[r, b_r(t)] - z[r,
b_r(l)]). Repetitions in which both labels share a bucket cancel. For linear MACH this margin is a linear
function of the document. Its minimum over the threat set has a closed form: a dual norm of the margin's
weights, limited by how far each value may move. So the certificate is exact.

With hidden layers, each unit is first enclosed in an interval, which is exact for the first layer. If a unit
may change its sign, ReLU lies between two lines (Zhang et al. 2018, CROWN, and Singh et al. 2019). So the
margin lies above a linear function of the document, which is again minimised exactly. The best of the
interval and of several slopes is used. All L labels are first bounded with slopes that do not depend on the
label. Labels that remain are bounded one by one.

The other merges compare intervals of transformed bucket logits. These follow from the same lines. They are
sound but wider.

**Rounding.** The certificate covers the ranking that the model really computes. Bounds are computed in
float64 and lowered by a slack for every rounding of the forward pass. Let gamma_n = n u / (1 - n u). A sum of
n products in any order, fused or not, is wrong by at most gamma_n times the sum of their absolute values.
The source is Higham 2002.
This error is carried through the layers. u is 2^-24 for float32 or 2^-53 for float64, plus 2^-49 for the
bounds themselves. Exponentials and logarithms of the other merges are assumed to be wrong by at most 16 u.

If sums might leave the range of float32, nothing is certified. Matrix products that round their factors are
not covered. These are TF32 and bfloat16, see `torch.set_float32_matmul_precision`.

Notation: as in `mach_ext.attack`. n is a document's own features, and M is the units of a layer.

Example:
    >>> from scipy import sparse
    >>> import mach_ext
    >>> Y = sparse.eye(6, format="csr")  # document i has label i
    >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
    >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
    >>> mach_ext.fit_svm(model, X, Y, progress=False)
    >>> sizes = [0.3, 0.5]
    >>> attacked = mach_ext.attack.evaluate(model, X, Y, epsilons=sizes, k=1, resamples=0)["adversarial"]
    >>> certified = mach_ext.certify.certify(model, X, Y, sizes, k=1, zero=False).precision(1)
    >>> for size, low, entry in zip(sizes, certified, attacked, strict=True):
    ...     print(f"eps {size}: {low:.2f} <= robust P@1 <= {entry['metrics']['P@1']:.2f}")
    eps 0.3: 1.00 <= robust P@1 <= 1.00
    eps 0.5: 0.17 <= robust P@1 <= 0.17
"""

from mach_ext.certify.certificate import certify, check, margin_bounds
from mach_ext.certify.result import Certificate

__all__ = ["Certificate", "certify", "check", "margin_bounds"]
