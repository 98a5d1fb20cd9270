"""How a model ranks labels: a transform of the bucket logits, then a merge over the R repetitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext.hashing import LabelHash


class Merge(NamedTuple):
    """A transform of the bucket logits, or None, and the reduction over the repetitions: one of `F.MERGES`.

    Example:
        >>> import torch, mach_ext
        >>> merge = mach_ext.nn.MODEL_MERGES["mean_prob"]
        >>> merge.label_scores(torch.tensor([[[0.0, 0.0], [9.0, -9.0]]]))
        tensor([[0.5000, 0.5000]])
    """

    transform: Callable[[Tensor], Tensor] | None
    reduction: str

    @property
    def num_arrays(self) -> int:
        """Arrays of the logits' size that a ranking holds: the logits and, with a transform, its result."""
        return 1 if self.transform is None else 2

    def transformed(self, logits: Tensor) -> Tensor:
        """The transform of logits of any shape; without a transform, the logits themselves."""
        return logits if self.transform is None else self.transform(logits)

    def label_scores(self, logits: Tensor) -> Tensor:  # [N, m, R] -> [N, m]
        """Scores of labels, of which each has its R logits."""
        return F.merge_repetitions(self.transformed(logits), self.reduction)

    def topk(self, logits: Tensor, hash: LabelHash, k: int) -> tuple[Tensor, Tensor]:
        """The k best labels of each document of bucket logits [N, R, B]: scores [N, k], labels [N, k]."""
        return F.merge_topk(self.transformed(logits), hash, k, self.reduction)


MODEL_MERGES: dict[str, Merge] = {
    "mean_logit": Merge(None, "mean"),
    "mean_prob": Merge(torch.sigmoid, "mean"),
    "mean_logprob": Merge(nn.functional.logsigmoid, "mean"),
    "min_prob": Merge(torch.sigmoid, "min"),
    "median_prob": Merge(torch.sigmoid, "median"),
}
# The same in words, for screens and pages.
SCALES = {
    "mean_logit": "mean logit",
    "mean_prob": "mean probability",
    "mean_logprob": "mean log-probability",
    "min_prob": "lowest probability",
    "median_prob": "median probability",
}
