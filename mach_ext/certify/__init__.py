"""Certified robustness: predictions that no change within a threat model can alter, proven, and how many.

* `certify`: for each right label of the clean top k, how many labels can be made to reach its score; from
  that the share of P@k that is proven to stand, over a grid of epsilon, and the epsilon at which it is zero.
* `margin_bounds`: how far the lead of one label over another can fall.

An attack shows an upper bound of robust P@k, a certificate a lower one: certified <= robust <= attacked.

**Margins.** With `mean_logit` the lead of label t over label l is 1/R sum_r (z[r, b_r(t)] - z[r, b_r(l)]):
repetitions in which both share a bucket cancel. For linear MACH it is a linear function of the document, and
its minimum over the threat set is a closed form (a dual norm of the margin's weights within the document's
room): the certificate is exact. With hidden layers each unit is first enclosed in an interval, exact for the
first layer; where it may change sign, relu lies between lines (Zhang et al. 2018, CROWN; Singh et al. 2019),
and the margin above a linear function of the document, again minimised exactly. The best of the interval
and several slopes counts. All L labels are bounded this way with slopes that do not depend on the label;
those that this does not exclude, one by one. The other merges compare intervals of transformed bucket
logits, which follow from the same lines: sound, wider.

**Rounding.** What is proven is the ranking that the model computes. Bounds are taken in float64 and less a
slack for every rounding of the forward pass: a sum of n products in any order, fused or not, errs by at most
gamma_n = n u / (1 - n u) times the sum of their absolute values (Higham 2002), which is carried through the
layers; u = 2^-24 (float32; 2^-53 float64) + 2^-49, the latter for these bounds themselves. Exponentials and
logarithms of the other merges are taken to err by 16 u at most. Where sums might leave the range of float32,
which its infinities do not rank, nothing is shown. Matrix products that round their factors
(TF32, bfloat16: torch.set_float32_matmul_precision) are not covered.

Notation: as in `mach_ext.attack`; n: a document's own features; M: units of the layer at hand.
"""

from mach_ext.certify.certificate import certify, check, margin_bounds
from mach_ext.certify.result import Certificate

__all__ = ["Certificate", "certify", "check", "margin_bounds"]
