"""The loop of the training loss over the repetitions, which holds the logits of one repetition at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from mach_ext import _ops


def bucket_bce_by_repetition(
    logits: Callable[[int], Tensor],  # r -> [N, B] in memory of its own, which is written to
    buckets: Tensor,  # [R, L] int32
    label_indices: Tensor,  # [label nnz] int64
    label_indptr: Tensor,  # [N + 1]
    scale: float,
    gradient: bool,
) -> Iterator[tuple[int, Tensor, Tensor]]:  # r, z [N, B], each document's loss [N] float64
    """For each repetition its number, its logits z, and the losses, summed over the buckets and not scaled.

    With `gradient`, z holds `scale` times the gradient of the loss to the logits, in place of the logits. The
    caller forms its products with z before it asks for the next repetition: `logits` may reuse the memory.

    Example:
        >>> import torch
        >>> from mach_ext.functional import bucket_bce_by_repetition
        >>> buckets, Y = torch.tensor([[0, 1]], dtype=torch.int32), (torch.tensor([1]), torch.tensor([0, 1]))
        >>> for r, z, loss in bucket_bce_by_repetition(lambda r: torch.zeros(1, 2), buckets, *Y, 1.0, True):
        ...     print(r, z.tolist(), round(loss.item(), 4))
        0 [[0.5, -0.5]] 1.3863
    """
    for r in range(buckets.shape[0]):
        z = logits(r)
        losses = _ops.bucket_bce(z, buckets[r], label_indices, label_indptr, scale, gradient)
        yield r, z, losses


def of_repetition(hidden: Tensor, r: int) -> Tensor:
    """[N, H] of hidden units [N, H], which all repetitions share, or [N, R, H]."""
    return hidden if hidden.dim() == 2 else hidden[:, r]
