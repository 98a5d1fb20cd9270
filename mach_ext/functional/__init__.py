"""Differentiable functions on flat CSR documents: what a training loop of your own calls.

A batch of N documents is `values [nnz]` (float32 or float64), `indices [nnz]` and `indptr [N + 1]` (int32 or
int64, also mixed), as in SciPy's CSR; labels are `label_indices`, `label_indptr` likewise. On CPU every call
checks its input in full, one pass over the non-zeros: structure, range, duplicates, NaN. `validate=False`
leaves that out, as do CUDA tensors and `torch.compile`; kernels stay inside their arrays all the same, and
an out-of-range index gives NaN, not a plausible number.

Autocast changes nothing here: products are in the dtype of the weights, in the forward and in the backward
pass. Hidden units and bucket scores in bfloat16 or float16, as a layer under autocast gives them, are
widened. Their gradients come back in their own dtype.

The tensors of a `LabelHash` can be written to, so kernels check what they read in them, too. What needs a
bucket outside [0, B) is NaN and passes no gradient on: a label's score or logit, a document's loss. In
`merge_topk` such a label comes after every number. On CPU, with `validate`, a NaN in the result makes a
function look at the hash, and it refuses one with such a bucket: ValueError, with the label. So does
`LabelHash.label_index` when it builds the index.

Notation: N documents, D features, L labels, R repetitions, B buckets, H hidden units, k top-k.
"""

from mach_ext.functional._autograd import own_precision
from mach_ext.functional._bucket_bce import bucket_bce, linear_bucket_bce
from mach_ext.functional._bucket_logits import bucket_forward, bucket_logits
from mach_ext.functional._checks import MERGES, as_int
from mach_ext.functional._label_logits import label_logits, linear_label_logits
from mach_ext.functional._merge import merge_repetitions, merge_scores, merge_topk
from mach_ext.functional._repetitions import bucket_bce_by_repetition, of_repetition
from mach_ext.functional._sparse_linear import sparse_linear

__all__ = [
    "MERGES",
    "as_int",
    "bucket_bce",
    "bucket_bce_by_repetition",
    "bucket_forward",
    "bucket_logits",
    "label_logits",
    "linear_bucket_bce",
    "linear_label_logits",
    "merge_repetitions",
    "merge_scores",
    "merge_topk",
    "of_repetition",
    "own_precision",
    "sparse_linear",
]
