"""A `MACHHead` on several ranks, each of which has some of its repetitions. For a training loop of your own.

Example:
    >>> import torch, mach_ext
    >>> from mach_ext.distributed.head import HeadPart
    >>> encoder = torch.nn.Linear(20, 16)
    >>> head = mach_ext.MACHHead(in_features=16, num_labels=5000, num_repetitions=8, num_buckets=64)
    >>> head = HeadPart(head)  # a process alone has all repetitions
    >>> x = torch.randn(2, 20)  # the same documents on all ranks
    >>> head(encoder(x), [[7, 4999], [12]]).backward()
    >>> scores, labels = head.topk(encoder(x), k=3)
    >>> labels.shape
    torch.Size([2, 3])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mach_ext import _prediction
from mach_ext._distributed import check_whole
from mach_ext._label_lists import Labels
from mach_ext._memory import memory_errors
from mach_ext._model_checks import checked_k
from mach_ext.distributed.decode import gather_logits, sharded_topk
from mach_ext.distributed.ranks import Ranks, share
from mach_ext.functional._autograd import first_order
from mach_ext.functional._checks import widen
from mach_ext.hashing import LabelHash, collisions_known
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES

__all__ = ["HeadPart"]


class HeadPart(nn.Module):
    """The part of a `MACHHead` that one of several ranks has: some of its repetitions.

    The ranks of the group take the same documents. Each computes the buckets of its own repetitions, so it
    has only their weights, gradients and state of the optimiser. The loss is that of the whole head on all
    ranks. Gradients to the hidden units are added up over the ranks, in the order of the ranks. Every rank
    gets the same bits, so encoders that are equal on all ranks stay equal.

    For different documents, use a device mesh of two dimensions. The ranks of one dimension share a head, and
    take the same documents. The ranks of the other take different documents, and have the same repetitions.
    Wrap the network of the encoder and this part by DistributedDataParallel or `fully_shard` over this other
    dimension. Each then compares the label hashes within this dimension, where they are the same.

    All ranks must call `forward`, `loss`, `topk` and `gather` at the same time. The gradients of a rank's
    parameters are those of its own repetitions. To clip the gradient by its norm, add up the squares of the
    parts' norms first. A `state_dict` is that of a part, and it fits the same rank of as many ranks.

    Args:
        head: The whole head, the same on all ranks. Its weights are copied.
        ranks: The ranks that share the head, as `Ranks.of_group` makes them of a process group. None is all
            processes.

    Attributes:
        head: A head of the part's repetitions, whose hash has all labels.
        repetitions: Which repetitions of the whole head these are.
        num_repetitions: R of the whole head.
        labels: The labels that this rank decodes.

    Raises:
        TypeError: `head` is no `MACHHead`.
        ValueError: There are more ranks than repetitions. Or the weights are on the meta device or in shards.

    Example:
        >>> import torch, mach_ext
        >>> from mach_ext.distributed.head import HeadPart
        >>> whole = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
        >>> part, hidden = HeadPart(whole), torch.randn(3, 4)
        >>> part.loss(hidden, [[7], [9, 3], []]).equal(whole.loss(hidden, [[7], [9, 3], []]))
        True
    """

    @memory_errors("use more processes, or make a smaller head")
    def __init__(self, head: MACHHead, ranks: Ranks | None = None) -> None:
        super().__init__()
        if not isinstance(head, MACHHead):
            raise TypeError(f"HeadPart: head must be a mach_ext.MACHHead, got {type(head).__name__}")
        check_whole("HeadPart", head.parameters())
        if head.bucket_bias.is_meta:
            raise ValueError("HeadPart: the head must have weights, got one on the meta device")
        ranks = Ranks.of_group() if ranks is None else ranks
        R = head.num_repetitions
        if ranks.size > R:
            raise ValueError(f"HeadPart: R={R} must be at least the number of ranks, got {ranks.size}")
        self.ranks, self.num_repetitions, self.seed = ranks, R, head.hash.seed
        self.repetitions = share(R, ranks.rank, ranks.size)
        self.labels = share(head.num_labels, ranks.rank, ranks.size)
        self.head = _part_of_head(head, self.repetitions)
        self.hash_of_labels = head.hash.part(self.labels) if self.labels else None

    def extra_repr(self) -> str:
        """Return which part this is, as `print(part)` shows it.

        Example:
            >>> import mach_ext
            >>> from mach_ext.distributed.head import HeadPart
            >>> HeadPart(mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)).extra_repr()
            'rank=0 of 1, repetitions=range(0, 8) of 8, labels=range(0, 20)'
        """
        own = f"rank={self.ranks.rank} of {self.ranks.size}"
        return f"{own}, repetitions={self.repetitions} of {self.num_repetitions}, labels={self.labels}"

    def forward(
        self,
        hidden: Tensor,  # [..., H]
        labels: Labels,
        *,
        reduction: str = "mean",
        validate: bool = True,
    ) -> Tensor:  # scalar
        """Return the training loss, as `loss` does. Wrappers need training to go through `forward`.

        Args:
            hidden: As in `loss`.
            labels: As in `loss`.
            reduction: As in `loss`.
            validate: As in `loss`.

        Returns:
            A scalar, the same on all ranks.

        Raises:
            TypeError: As in `MACHHead.loss`.
            ValueError: As there.

        Example:
            >>> import torch, mach_ext
            >>> from mach_ext.distributed.head import HeadPart
            >>> part = HeadPart(mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8))
            >>> part(torch.zeros(2, 4), [[7], [3, 9]]).shape
            torch.Size([])
        """
        return self.loss(hidden, labels, reduction=reduction, validate=validate)

    @memory_errors("pass fewer documents at a time")
    def loss(
        self,
        hidden: Tensor,  # [..., H]
        labels: Labels,
        *,
        reduction: str = "mean",
        validate: bool = True,
    ) -> Tensor:  # scalar
        """Return the loss of the whole head, up to rounding, and its gradients to the hidden units.

        Args:
            hidden: As in `MACHHead.loss`, the same on all ranks. A head with hidden units of its own for each
                repetition takes those of all R repetitions.
            labels: As in `MACHHead.loss`, the same on all ranks.
            reduction: As in `MACHHead.loss`.
            validate: As in `MACHHead.loss`.

        Returns:
            A scalar, the same on all ranks.

        Raises:
            TypeError: As in `MACHHead.loss`.
            ValueError: As there.

        Example:
            >>> import torch, mach_ext
            >>> from mach_ext.distributed.head import HeadPart
            >>> part = HeadPart(mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8))
            >>> round(part.loss(torch.zeros(2, 4), [[7], [3, 9]]).item(), 2)
            3.99
        """
        if isinstance(hidden, Tensor) and hidden.layout == torch.strided:  # The head refuses all else.
            # Widened first, so that the parts' gradients are added in the dtype of the weights.
            hidden = _SumGradients.apply(widen(hidden, self.head.bucket_weight), self.ranks)
        loss = self.head.loss(self._own(hidden), labels, reduction=reduction, validate=validate)
        total: Tensor = _SumOfRanks.apply(loss * (len(self.repetitions) / self.num_repetitions), self.ranks)
        return total

    @torch.no_grad()
    @memory_errors("pass fewer documents at a time or lower k")
    def topk(
        self,
        hidden: Tensor,  # [..., H]
        k: int | None = None,
        *,
        precision: str = "float32",
    ) -> tuple[Tensor, Tensor]:  # scores [..., k], labels [..., k]
        """Return the exact k best labels of each document by the merge of the whole head.

        Each rank decodes a range of the labels. For the same bucket logits, the answer has the bits of
        `MACHHead.topk`.

        Args:
            hidden: As in `loss`.
            k: As in `MACHHead.topk`.
            precision: As in `MACHHead.topk`.

        Returns:
            Scores [..., k] and labels [..., k], best first, the same on all ranks. They have no gradient.

        Raises:
            TypeError: As in `MACHHead.topk`.
            ValueError: As there.

        Example:
            >>> import torch, mach_ext
            >>> from mach_ext.distributed.head import HeadPart
            >>> part = HeadPart(mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8))
            >>> part.topk(torch.zeros(2, 3, 4), k=5)[1].shape
            torch.Size([2, 3, 5])
        """
        head, ranks = self.head, self.ranks
        k = checked_k("HeadPart.topk", k, head.num_labels, least=0)
        hidden = self._own(hidden)
        logits = head(hidden, **_prediction.precision_option(precision))
        logits = gather_logits(ranks, head._flatten(logits, hidden), self.num_repetitions)
        merge, overwrite = MODEL_MERGES[head.merge], ranks.size > 1
        place = self.hash_of_labels, self.labels.start, head.num_labels
        scores, labels = sharded_topk(ranks, logits, *place, k, merge, overwrite=overwrite)
        return head._unflatten(scores, hidden), head._unflatten(labels, hidden)

    @torch.no_grad()
    @memory_errors("free memory first")
    def gather(self) -> MACHHead:
        """Return the whole head, with the weights of all ranks. Its `save` writes it into a folder.

        Every rank needs memory for the whole head.

        Returns:
            A head of its own memory, the same on all ranks.

        Raises:
            ValueError: The weights are in shards.

        Example:
            >>> import mach_ext
            >>> from mach_ext.distributed.head import HeadPart
            >>> whole = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
            >>> HeadPart(whole).gather().bucket_weight.equal(whole.bucket_weight)
            True
        """
        check_whole("HeadPart.gather", self.head.parameters())
        L, B, R = self.head.num_labels, self.head.num_buckets, self.num_repetitions
        with collisions_known():
            if self.seed is None:
                hash = LabelHash.from_buckets(self._gathered(self.head.hash.buckets), B)
            else:
                hash = LabelHash(L, B, R, self.seed)
        tensors = {name: self._gathered(getattr(self.head, name).detach()) for name in _TENSORS}
        return _head_of(self.head, hash, tensors)

    def _gathered(self, t: Tensor) -> Tensor:
        """Return a tensor of all repetitions, in memory of its own."""
        sizes = [len(share(self.num_repetitions, rank, self.ranks.size)) for rank in range(self.ranks.size)]
        return self.ranks.gather(t, 0, sizes).clone()

    def _own(self, hidden: Tensor) -> Tensor:
        """Return the hidden units of this rank's repetitions, if each repetition has its own."""
        if not self.head.per_repetition or not isinstance(hidden, Tensor) or hidden.dim() < 2:
            return hidden
        if hidden.shape[-2] != self.num_repetitions:
            R, H = self.num_repetitions, self.head.in_features
            raise ValueError(f"HeadPart: hidden must be [..., R={R}, H={H}], got {list(hidden.shape)}")
        return hidden[..., self.repetitions.start : self.repetitions.stop, :]


_TENSORS = ("bucket_weight", "bucket_bias", "logit_adjustment")


def _part_of_head(head: MACHHead, repetitions: range) -> MACHHead:
    """Return a head of some repetitions of another, with weights of its own."""
    own = slice(repetitions.start, repetitions.stop)
    hash = head.hash.part(repetitions=repetitions)
    return _head_of(head, hash, {name: getattr(head, name).detach()[own].clone() for name in _TENSORS})


def _head_of(like: MACHHead, hash: LabelHash, tensors: dict[str, Tensor]) -> MACHHead:
    """Return a head with the settings of another, and with this hash and these tensors."""
    sizes = hash.num_labels, hash.num_repetitions, hash.num_buckets
    # On the meta device no initial weights are drawn.
    head = MACHHead(like.in_features, *sizes, like.merge, like.seed, hash, like.per_repetition, device="meta")
    head.attachments = dict(like.attachments)
    head.bucket_weight = nn.Parameter(tensors["bucket_weight"], like.bucket_weight.requires_grad)
    head.bucket_bias = nn.Parameter(tensors["bucket_bias"], like.bucket_bias.requires_grad)
    head.logit_adjustment = tensors["logit_adjustment"]
    head.hash = hash.to(head.bucket_bias.device)
    return head.train(like.training)


class _SumOfRanks(torch.autograd.Function):
    """The sum over the ranks. Each rank's own term gets the gradient."""

    @staticmethod
    def forward(ctx, t, ranks):  # type: ignore[no-untyped-def]
        return ranks.sum(t) if ranks.size > 1 else t.view_as(t)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


class _SumGradients(torch.autograd.Function):
    """What all ranks have alike. Its gradient is the sum over the ranks."""

    @staticmethod
    def forward(ctx, t, ranks):  # type: ignore[no-untyped-def]
        ctx.ranks = ranks
        return t.view_as(t)

    @staticmethod
    @first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return ctx.ranks.sum(grad), None
