"""Differentiable functions on flat CSR documents, for a training loop of your own.

A batch of N documents is `values` [nnz] (float32 or float64), `indices` [nnz] and `indptr` [N + 1], as in
SciPy's CSR. The index tensors are int32 or int64 and may be mixed. Labels are `label_indices` and
`label_indptr` in the same form.

On the CPU, every call checks its whole input in one pass over the non-zeros: structure, range, duplicates and
NaN. `validate=False` skips this check. CUDA tensors and `torch.compile` skip it as well. Kernels stay inside
their arrays in any case. An index out of range gives NaN and not a plausible number.

Autocast changes nothing here. Products are in the dtype of the weights, in the forward and in the backward
pass. A layer under autocast may return hidden units and bucket scores in bfloat16 or float16. These are
widened, and their gradients come back in their own dtype.

Code can write to the tensors of a `LabelHash`, so kernels also check what they read there. A bucket outside
[0, B) gives NaN and passes no gradient on. This holds for a label's score or logit and for a document's loss.
`merge_topk` puts such labels after every number. On the CPU, with `validate`, a NaN in the result makes a
function check the hash. If a bucket is out of range, it raises a ValueError that names the label.
`LabelHash.label_index` does the same when it builds the index.

Shapes use these letters: N documents, D features, L labels, R repetitions, B buckets, H hidden units, k best
labels.

Example:
    >>> import torch
    >>> from mach_ext import functional as F
    >>> F.MERGES, F.PRECISIONS
    (('mean', 'min', 'median'), ('float32', 'bfloat16'))
    >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])  # a document of 2 features
    >>> F.sparse_linear(*X, torch.ones(3, 4))
    tensor([[3., 3., 3., 3.]])
"""

from mach_ext.functional._autograd import own_precision
from mach_ext.functional._bucket_bce import bucket_bce, linear_bucket_bce
from mach_ext.functional._bucket_logits import bucket_forward, bucket_logits
from mach_ext.functional._checks import MERGES, PRECISIONS, as_int, check_precision
from mach_ext.functional._label_logits import label_logits, linear_label_logits
from mach_ext.functional._merge import merge_repetitions, merge_scores, merge_topk
from mach_ext.functional._repetitions import bucket_bce_by_repetition, of_repetition
from mach_ext.functional._sparse_linear import sparse_linear

__all__ = [
    "MERGES",
    "PRECISIONS",
    "as_int",
    "bucket_bce",
    "bucket_bce_by_repetition",
    "bucket_forward",
    "bucket_logits",
    "check_precision",
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
