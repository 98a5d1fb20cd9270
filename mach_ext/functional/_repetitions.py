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
    for r in range(buckets.shape[0]):
        z = logits(r)
        losses = _ops.bucket_bce(z, buckets[r], label_indices, label_indptr, scale, gradient)
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
