"""How a model ranks labels: a transform of the bucket logits, then a merge over the R repetitions.

Example:
    >>> from mach_ext.merges import MODEL_MERGES, SCALES
    >>> list(MODEL_MERGES)
    ['mean_logit', 'mean_prob', 'mean_logprob', 'min_prob', 'median_prob']
    >>> SCALES["min_prob"]
    'lowest probability'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext.hashing import LabelHash

__all__ = ["MODEL_MERGES", "SCALES", "Merge"]

# An in-place transform without an operator of its own holds the results of so many elements at a time. On the
# CPU they stay in the cache. On a GPU each part is a launch, so there are few of them.
_ON_CPU, _ON_CUDA = 1 << 18, 1 << 22


class Merge(NamedTuple):
    """A transform of the bucket logits, and a reduction over the repetitions.

    Attributes:
        transform: A function of a tensor, such as `torch.sigmoid`, or None for the logits themselves.
        reduction: "mean", "min" or "median", as in `mach_ext.functional.MERGES`.

    Example:
        >>> import torch, mach_ext
        >>> merge = mach_ext.nn.MODEL_MERGES["mean_prob"]
        >>> merge.label_scores(torch.tensor([[[0.0, 0.0], [9.0, -9.0]]]))
        tensor([[0.5000, 0.5000]])
    """

    transform: Callable[[Tensor], Tensor] | None
    reduction: str

    def transformed(self, logits: Tensor) -> Tensor:
        """Apply the transform to logits of any shape. Without a transform, return the logits themselves.

        Args:
            logits: Bucket logits.

        Returns:
            A tensor of the same shape.

        Example:
            >>> import torch
            >>> from mach_ext.merges import MODEL_MERGES
            >>> MODEL_MERGES["mean_prob"].transformed(torch.tensor([0.0, 100.0]))
            tensor([0.5000, 1.0000])
        """
        return logits if self.transform is None else self.transform(logits)

    def transform_in_place(self, logits: Tensor) -> Tensor:
        """Apply the transform, and write its result into the memory of the logits where this is possible.

        The bits are those of `transformed`. A second array of the logits' size is not held. Where a gradient
        is recorded, the logits stay as they are and the result is a new tensor. So it is for expanded logits,
        and for inference tensors outside `torch.inference_mode()`.

        Args:
            logits: Bucket logits that nobody else needs.

        Returns:
            A tensor of the same shape.

        Example:
            >>> import torch
            >>> from mach_ext.merges import MODEL_MERGES
            >>> logits = torch.tensor([0.0, 100.0])
            >>> MODEL_MERGES["mean_prob"].transform_in_place(logits) is logits
            True
            >>> logits
            tensor([0.5000, 1.0000])
        """
        if self.transform is None or not _is_writable(logits):
            return self.transformed(logits)
        if self.transform is torch.sigmoid:
            return logits.sigmoid_()
        flat = _flat(logits)
        if flat is None:
            return self.transformed(logits)
        for part in flat.split(_ON_CUDA if logits.is_cuda else _ON_CPU):
            part.copy_(self.transform(part))
        return logits

    def label_scores(self, logits: Tensor) -> Tensor:  # [N, m, R] -> [N, m]
        """Return scores of labels from the R logits of each label.

        Args:
            logits: [N, m, R], the logits of m labels in each repetition.

        Returns:
            [N, m].

        Example:
            >>> import torch
            >>> from mach_ext.merges import MODEL_MERGES
            >>> MODEL_MERGES["mean_logit"].label_scores(torch.tensor([[[1.0, 2.0], [0.0, 5.0]]]))
            tensor([[1.5000, 2.5000]])
        """
        return F.merge_repetitions(self.transformed(logits), self.reduction)

    def topk(
        self, logits: Tensor, hash: LabelHash, k: int, *, overwrite: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the k best labels of each document.

        Args:
            logits: Bucket logits, [N, R, B].
            hash: Label hash with R repetitions and B buckets.
            k: The number of labels, from 0 to L.
            overwrite: Let the transform overwrite the logits, as in `transform_in_place`.

        Returns:
            Scores [N, k] and labels [N, k], best first.

        Example:
            >>> import torch, mach_ext
            >>> from mach_ext.merges import MODEL_MERGES
            >>> hash = mach_ext.LabelHash.from_buckets([[0, 1, 1], [1, 0, 1]])
            >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
            >>> MODEL_MERGES["mean_logit"].topk(logits, hash, k=2)
            (tensor([[2.5000, 2.0000]]), tensor([[2, 0]]))
        """
        scores = self.transform_in_place(logits) if overwrite else self.transformed(logits)
        return F.merge_topk(scores, hash, k, self.reduction)


def _is_writable(logits: Tensor) -> bool:
    """Return whether the logits may be overwritten: PyTorch allows it, and no gradient is recorded."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return False
    if logits.is_inference() and not torch.is_inference_mode_enabled():
        return False
    return all(step > 0 or size < 2 for size, step in zip(logits.shape, logits.stride(), strict=True))


def _flat(logits: Tensor) -> Tensor | None:
    """Return a view of all elements as [n]. None: the elements are not adjacent in memory."""
    order = sorted(range(logits.dim()), key=logits.stride, reverse=True)
    ordered = logits.permute(order)
    return ordered.view(-1) if ordered.is_contiguous() else None


MODEL_MERGES: dict[str, Merge] = {
    "mean_logit": Merge(None, "mean"),
    "mean_prob": Merge(torch.sigmoid, "mean"),
    "mean_logprob": Merge(nn.functional.logsigmoid, "mean"),
    "min_prob": Merge(torch.sigmoid, "min"),
    "median_prob": Merge(torch.sigmoid, "median"),
}
# The merges in words, for screens and pages.
SCALES = {
    "mean_logit": "mean logit",
    "mean_prob": "mean probability",
    "mean_logprob": "mean log-probability",
    "min_prob": "lowest probability",
    "median_prob": "median probability",
}
