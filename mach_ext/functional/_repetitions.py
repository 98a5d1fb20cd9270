"""The loop of the training loss over the repetitions, a group of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mach_ext import _ops

# A group of repetitions has at most so many bytes of logits. Launches of kernels then cost little, and of a
# large model [N, R, B] is never held.
GROUP_BYTES = 64 << 20
# The same on the CPU.
CPU_GROUP_BYTES = 512 << 10


def group_size(num_documents: int, num_buckets: int, element_size: int, device: torch.device) -> int:
    """Return how many repetitions a group has: at least one.

    On the CPU the logits of a group stay in the cache between two products. Groups there save the calls of
    small models. Where a repetition has as many logits as that, a group of several was measured to be slower.
    Under `torch.compile` a number that depends on N would make a new graph for every N.

    Args:
        num_documents: Documents in a batch.
        num_buckets: Buckets of a repetition.
        element_size: Bytes of a logit.
        device: The device of the logits.
    """
    if torch.compiler.is_compiling():
        return 1
    limit = GROUP_BYTES if device.type == "cuda" else CPU_GROUP_BYTES
    return max(1, limit // max(1, num_documents * num_buckets * element_size))


def groups(num_repetitions: int, size: int) -> Iterator[slice]:
    """Yield the groups of repetitions in order. All but the last have `size` of them."""
    for first in range(0, num_repetitions, size):
        yield slice(first, min(first + size, num_repetitions))


def of_group(hidden: Tensor, at: slice) -> Tensor:
    """Return the hidden units of a group: [N, H] of all repetitions, or [N, G, H] of [N, R, H]."""
    return hidden if hidden.dim() == 2 else hidden[:, at]


def bucket_bce_by_repetition(
    logits: Callable[[int], Tensor],  # r -> [N, B] in memory of its own, which is written to
    buckets: Tensor,  # [R, L] int32
    label_indices: Tensor,  # [label nnz] int64
    label_indptr: Tensor,  # [N + 1]
    scale: float,
    gradient: bool,
) -> Iterator[tuple[int, Tensor, Tensor]]:  # r, z [N, B], each document's loss [N] float64
    """Yield the number, the logits and the losses of each repetition.

    With `gradient`, the logits are replaced by `scale` times the gradient of the loss to them. Form the
    products with this gradient before you ask for the next repetition, because `logits` may reuse the memory.

    Args:
        logits: A function of r that returns [N, B]. The result is written to.
        buckets: [R, L] int32, the buckets of a label hash.
        label_indices: Labels of the documents in CSR form, [label nnz] int64.
        label_indptr: Start of the labels of each document, [N + 1].
        scale: Factor of the gradient. The losses are not scaled.
        gradient: Whether to compute the gradient.

    Yields:
        r, then the logits or their gradient [N, B], then each document's loss [N] float64, summed over the
        buckets.

    Example:
        >>> import torch
        >>> from mach_ext.functional import bucket_bce_by_repetition
        >>> buckets, Y = torch.tensor([[0, 1]], dtype=torch.int32), (torch.tensor([1]), torch.tensor([0, 1]))
        >>> for r, z, loss in bucket_bce_by_repetition(lambda r: torch.zeros(1, 2), buckets, *Y, 1.0, True):
        ...     print(r, z.tolist(), round(loss.item(), 4))
        0 [[0.5, -0.5]] 1.3863
    """
    labels, factor = (label_indices, label_indptr), scale if gradient else None
    for r in range(buckets.shape[0]):
        z = logits(r)
        losses = _ops.bucket_bce(z.unsqueeze(1), None, buckets[r : r + 1], *labels, factor)
        yield r, z, losses


def of_repetition(hidden: Tensor, r: int) -> Tensor:
    """Return the hidden units [N, H] of one repetition.

    Args:
        hidden: [N, H], shared by all repetitions, or [N, R, H].
        r: The repetition.

    Example:
        >>> import torch
        >>> from mach_ext.functional import of_repetition
        >>> of_repetition(torch.tensor([[[1.0], [2.0]]]), 1)
        tensor([[2.]])
    """
    return hidden if hidden.dim() == 2 else hidden[:, r]
