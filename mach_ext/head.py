"""The multi-label head of MACH for any encoder: R bucket classifiers, a label hash and a merge.

Example:
    >>> import torch, mach_ext
    >>> encoder = torch.nn.Linear(20, 16)
    >>> head = mach_ext.MACHHead(in_features=16, num_labels=5000, num_repetitions=8, num_buckets=64)
    >>> x = torch.randn(2, 20)
    >>> loss = head.loss(encoder(x), [[7, 4999], [12]])  # the labels of two documents
    >>> loss.backward()
    >>> scores, labels = head.topk(encoder(x), k=3)
    >>> labels.shape
    torch.Size([2, 3])
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mach_ext import _model_folder, _prediction
from mach_ext import functional as F
from mach_ext._distributed import check_sharding, check_wrapper, is_distributed
from mach_ext._hashed_labels import _HashedLabels
from mach_ext._label_lists import Labels as Labels
from mach_ext._label_lists import label_csr
from mach_ext._memory import memory_errors
from mach_ext._model_checks import (
    USUAL_K,
    check_head_fits,
    check_hidden,
    check_merge,
    check_score,
    is_of_other_hash,
)
from mach_ext.hashing import LabelHash
from mach_ext.merges import MODEL_MERGES

__all__ = ["MACHHead"]

REDUCTIONS = ("mean", "sum")


class MACHHead(_HashedLabels):
    """The multi-label output layer of MACH, for the hidden units of any encoder.

    R hash functions send L labels to B buckets each. R linear classifiers give B bucket logits each. The
    score of a label is merged from its R buckets. The number of parameters grows with R * H * B and not with
    L. The source is Medini et al., NeurIPS 2019.

    The head is an ordinary module. It works with every optimiser of PyTorch, gradient accumulation, autocast,
    `torch.compile`, activation checkpointing, DistributedDataParallel and `fully_shard`.

    Hidden units have any leading dimensions, as those of `torch.nn.Linear`. Each vector of H hidden units is
    a document here. N is the number of documents.

    The parameters are `bucket_weight` [R, H, B] and `bucket_bias` [R, B]. The buffer `logit_adjustment` [R,
    B] is the part of `bucket_bias` that `adjust_logits` added. The `state_dict` also holds the fingerprint of
    the label hash. `load_state_dict` refuses weights that were trained with another hash.

    Args:
        in_features: H, the number of hidden units.
        num_labels: L, the number of labels.
        num_repetitions: R, the number of hash functions. Each has a classifier of its own. [default: 16]
        num_buckets: B, the number of buckets of each repetition. [default: 512]
        merge: How labels are scored: "mean_logit", "mean_prob", "mean_logprob", "min_prob" or "median_prob".
            [default: "mean_logit"]
        seed: Seed of the label hash and of the initial weights. [default: 0]
        hash: A label hash with these L, B and R, to use in place of the seeded one. The buckets may be
            learned.
        per_repetition: If true, each repetition has hidden units of its own: hidden is [..., R, H] in place
            of [..., H]. [default: False]
        device: Where to put the weights and the hash.
        dtype: Dtype of the weights. float32 and float64 can be trained.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is out of range, the merge is unknown, or the hash has other sizes.
        MemoryError: The weights need more memory than there is. Nothing has been allocated in that case.

    Example:
        >>> import torch, mach_ext
        >>> head = mach_ext.MACHHead(in_features=16, num_labels=5000, num_repetitions=8, num_buckets=64)
        >>> hidden = torch.randn(3, 16)
        >>> head(hidden).shape, head.loss(hidden, [[7], [4999, 3], []]).shape
        (torch.Size([3, 8, 64]), torch.Size([]))
    """

    @memory_errors("lower in_features, num_buckets or num_repetitions")
    def __init__(
        self,
        in_features: int,
        num_labels: int,
        num_repetitions: int = 16,
        num_buckets: int = 512,
        merge: str = "mean_logit",
        seed: int = 0,
        hash: LabelHash | None = None,
        per_repetition: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_features = F.as_int("MACHHead", "in_features", in_features)
        num_labels = F.as_int("MACHHead", "num_labels", num_labels)
        R = F.as_int("MACHHead", "num_repetitions", num_repetitions)
        B = F.as_int("MACHHead", "num_buckets", num_buckets)
        if in_features < 1:
            raise ValueError(f"MACHHead: in_features must be at least 1, got {in_features}")
        check_merge("MACHHead", merge)
        self.in_features = in_features
        self.merge = merge
        self.seed = F.as_int("MACHHead", "seed", seed)
        if not isinstance(per_repetition, (bool, np.bool_)):
            kind = type(per_repetition).__name__
            raise TypeError(f"MACHHead: per_repetition must be a bool, got {kind}")
        self.per_repetition = bool(per_repetition)
        # Files that belong to the head, by name. `save` and `load` keep them with the weights.
        self.attachments: dict[str, bytes] = {}
        self.hash = LabelHash(num_labels, B, R, self.seed) if hash is None else hash
        if not isinstance(self.hash, LabelHash):
            raise TypeError(f"MACHHead: hash must be a mach_ext.LabelHash, got {type(hash).__name__}")
        if (shape := (self.num_labels, self.num_buckets, self.num_repetitions)) != (num_labels, B, R):
            raise ValueError(f"MACHHead: hash has (L, B, R) = {shape}, expected {(num_labels, B, R)}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        check_head_fits(R, in_features, B, torch.empty(0, **place))
        self.bucket_weight = nn.Parameter(torch.empty(R, in_features, B, **place))
        self.bucket_bias = nn.Parameter(torch.empty(R, B, **place))
        self.register_buffer("logit_adjustment", torch.zeros(R, B, **place))
        if not self.bucket_bias.is_meta:
            self.hash = self.hash.to(self.bucket_bias.device)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Return the sizes and settings that `print(head)` shows.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=6).extra_repr()
            'in_features=4, num_labels=20, num_repetitions=8, num_buckets=6, merge=mean_logit, seed=0'
        """
        own = ", per_repetition=True" if self.per_repetition else ""
        return (
            f"in_features={self.in_features}, num_labels={self.num_labels}, "
            f"num_repetitions={self.num_repetitions}, num_buckets={self.num_buckets}, merge={self.merge}, "
            f"seed={self.seed}{own}"
        )

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights from `seed` alone, whatever the state of PyTorch's global generator.

        Weights are drawn from N(0, 1 / H). Hidden units of size about 1 therefore give logits of that size.
        The biases start at the logit of 1 / B, because few buckets are positive. A head on the meta device
        has no memory for weights, so nothing is drawn for it.

        Args:
            generator: A generator on the CPU to draw from. None makes one from `seed`.

        Example:
            >>> import mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
            >>> first = head.bucket_weight.detach().clone()
            >>> _ = head.bucket_weight.data.zero_()
            >>> head.reset_parameters()
            >>> head.bucket_weight.equal(first)
            True
        """
        weight = self.bucket_weight
        if weight.is_meta:
            return
        if generator is None:
            generator = torch.Generator().manual_seed(self.seed % 2**63)
        drawn = weight if weight.is_cpu else torch.empty_like(weight, device="cpu")
        weight.copy_(drawn.normal_(0, self.in_features**-0.5, generator=generator))
        self.reset_biases()

    @torch.no_grad()
    def reset_biases(self) -> None:
        """Set the biases to the logit of 1 / B, without a logit adjustment.

        Example:
            >>> import mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
            >>> _ = head.bucket_bias.data.zero_()
            >>> head.reset_biases()
            >>> round(head.bucket_bias[0, 0].sigmoid().item(), 4)
            0.125
        """
        self.logit_adjustment.zero_()
        self.bucket_bias.fill_(-math.log(self.num_buckets - 1))

    # ------------------------------------------------------------------------------------ state and device

    def _apply(self, fn: Any, recurse: bool = True) -> MACHHead:
        """Move the head, and with it the label hash, which other modules may share."""
        for child in self.children() if recurse else ():
            if child is not self.hash:  # Other modules may share the hash, so it is never changed in place.
                child._apply(fn)
        super()._apply(fn, recurse=False)
        if not self.bucket_bias.is_meta:
            self.hash = self.hash.to(self.bucket_bias.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        """Refuse weights of another label hash before anything is copied."""
        if is_of_other_hash(self.hash, state_dict, prefix):
            return  # PyTorch loads the hash next, and the hash reports the fault.
        bias = state_dict.get(f"{prefix}bucket_bias")
        if bias is not None:  # The state may be older than the adjustment, or have none.
            state_dict.setdefault(f"{prefix}logit_adjustment", torch.zeros_like(bias))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    # --------------------------------------------------------------------------------- training and scores

    @memory_errors("pass fewer documents at a time")
    def forward(
        self,
        hidden: Tensor,  # [..., H]
        labels: Labels | None = None,
        *,
        reduction: str = "mean",
        validate: bool = True,
        precision: str = "float32",
    ) -> Tensor:  # [..., R, B]; with labels the loss, a scalar
        """Return the bucket logits of documents. If labels are given, return the training loss.

        The loss is that of `loss`. Wrappers such as DistributedDataParallel and `fully_shard` need training
        to go through `forward`.

        Args:
            hidden: [..., H], or [..., R, H] if `per_repetition` is set.
            labels: As in `loss`, or None.
            reduction: As in `loss`.
            validate: As in `loss`.
            precision: As in `mach_ext.functional.bucket_logits`.

        Returns:
            [..., R, B]. If labels are given, the scalar loss.

        Raises:
            TypeError: As in `mach_ext.functional.bucket_logits` and `loss`.
            ValueError: As there, or a precision is given for the loss.

        Example:
            >>> import torch, mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=6)
            >>> head(torch.zeros(2, 3, 4)).shape, head(torch.zeros(2, 4), [[7], [9]]).shape
            (torch.Size([2, 3, 8, 6]), torch.Size([]))
        """
        if labels is not None:
            if precision != "float32":
                raise ValueError(
                    f"MACHHead: precision is for bucket logits; the loss has none, got {precision!r}"
                )
            return self.loss(hidden, labels, reduction=reduction, validate=validate)
        rows = self._rows("MACHHead", hidden)
        logits = F.bucket_logits(rows, self.bucket_weight, self.bucket_bias, precision=precision)
        return self._unflatten(logits, hidden)

    @memory_errors("pass fewer documents at a time")
    def loss(
        self,
        hidden: Tensor,  # [..., H]
        labels: Labels,
        *,
        reduction: str = "mean",
        validate: bool = True,
    ) -> Tensor:  # scalar
        """Return the training loss (`mach_ext.functional.bucket_bce`) without ever holding [N, R, B].

        The gradients are computed in the same pass. They take the memory of the weights once.

        Args:
            hidden: [..., H], or [..., R, H] if `per_repetition` is set. Half precision, as autocast gives it,
                is widened.
            labels: The labels of the N documents, in one of these forms:

                * a tuple (indices, indptr) in CSR form. indices are [nnz] and indptr is [N + 1], as tensors
                  or NumPy arrays. Only this form works with `torch.compile(fullgraph=True)`, and on a GPU
                  only this form does not wait for the device.
                * a SciPy sparse matrix or a sparse tensor [N, L], whose non-zeros are the labels.
                * label ids as an integer tensor or array [..., m], padded with -1 or -100.
                * a 0/1 tensor or array [..., L] of floats or bools.
                * a list with a list of label ids for each document.
            reduction: "mean" divides by N. "sum" does not. Both divide by R. With gradient accumulation over
                micro-batches of unequal sizes, use "sum" and divide by the number of all documents. [default:
                "mean"]
            validate: False skips the check of the labels.

        Returns:
            A scalar in the dtype of the weights.

        Raises:
            TypeError: An argument has a wrong type or dtype.
            ValueError: A shape, a device or a label is not valid, or the reduction is unknown.

        Warns:
            UserWarning: DistributedDataParallel wraps the head, and the call bypassed the wrapper.

        Example:
            >>> import torch, mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
            >>> hidden = torch.zeros(2, 4)
            >>> csr = torch.tensor([7, 3, 9]), torch.tensor([0, 1, 3])
            >>> padded = torch.tensor([[7, -100], [3, 9]])
            >>> [round(head.loss(hidden, labels).item(), 2) for labels in (csr, padded, [[7], [3, 9]])]
            [3.99, 3.99, 3.99]
        """
        op = "MACHHead.loss"
        if reduction not in REDUCTIONS:
            raise ValueError(f"{op}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        if not torch.compiler.is_compiling() and is_distributed():
            check_wrapper(op, self, "the wrapped module")
        rows = self._rows(op, hidden)
        csr = label_csr(
            op, labels, tuple(hidden.shape[: self._leading(hidden)]), self.num_labels, rows.device
        )
        loss = F.bucket_bce(rows, self.bucket_weight, self.bucket_bias, *csr, self.hash, validate=validate)
        return loss if reduction == "mean" else loss * len(rows)

    @memory_errors("pass fewer documents at a time or fewer labels")
    def label_logits(
        self,
        hidden: Tensor,  # [..., H]
        labels: Tensor,  # [m] or [..., m]
        *,
        validate: bool = True,
    ) -> Tensor:  # [..., m, R]
        """Return the logits of the R buckets of chosen labels, without computing any other bucket.

        These logits are the votes of the repetitions for a label.

        Args:
            hidden: As in `forward`.
            labels: [m], the same for every document, or [..., m] with the leading dimensions of `hidden`.
            validate: False skips the check that labels are in [0, L).

        Returns:
            [..., m, R].

        Raises:
            TypeError: An argument has a wrong type or dtype.
            ValueError: A shape, a device or a label is not valid.

        Example:
            >>> import torch, mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=6)
            >>> head.label_logits(torch.zeros(5, 4), torch.tensor([7, 9, 11])).shape
            torch.Size([5, 3, 8])
        """
        op = "MACHHead.label_logits"
        rows = self._rows(op, hidden)
        if isinstance(labels, Tensor) and labels.dim() > 1:
            leading = hidden.shape[: self._leading(hidden)]
            if labels.shape[:-1] != leading:
                expected = f"[m] or [{', '.join(map(str, (*leading, 'm')))}]"
                raise ValueError(f"{op}: labels must be {expected} like hidden, got {list(labels.shape)}")
            labels = labels.reshape(len(rows), labels.shape[-1])
        weight, bias = self.bucket_weight, self.bucket_bias
        logits = F.label_logits(rows, weight, bias, self.hash, labels, validate=validate)
        return self._unflatten(logits, hidden)

    @memory_errors("pass fewer documents at a time or fewer labels")
    def label_scores(
        self,
        hidden: Tensor,  # [..., H]
        labels: Tensor,  # [m] or [..., m]
        score: str = "logit",
        *,
        validate: bool = True,
    ) -> Tensor:  # [..., m]
        """Return the scores of chosen labels.

        The scores are differentiable with respect to the hidden units and the parameters.

        Args:
            hidden: As in `forward`.
            labels: As in `label_logits`.
            score: "logit" is the mean of the R bucket logits. "model" is the head's own merge.
            validate: As in `label_logits`.

        Returns:
            [..., m].

        Raises:
            TypeError: As in `label_logits`.
            ValueError: As in `label_logits`, or `score` is unknown.

        Example:
            >>> import torch, mach_ext
            >>> head = mach_ext.MACHHead(4, 20, 8, 8, merge="mean_prob")
            >>> head.label_scores(torch.zeros(1, 4), torch.tensor([7]), score="model").round(decimals=4)
            tensor([[0.1250]], grad_fn=<RoundBackward1>)
        """
        check_score("MACHHead.label_scores", score)
        logits = self.label_logits(hidden, labels, validate=validate)
        merge = MODEL_MERGES["mean_logit" if score == "logit" else self.merge]
        return self._unflatten(merge.label_scores(self._flatten(logits, hidden)), hidden)

    @memory_errors("pass fewer documents at a time or lower k")
    def topk(
        self,
        hidden: Tensor,  # [..., H]
        k: int | None = None,
        *,
        precision: str = "float32",
    ) -> tuple[Tensor, Tensor]:  # scores [..., k], labels [..., k]
        """Return the exact k best labels of each document by the head's merge.

        The scores are differentiable. Call it under `torch.no_grad()` for prediction, which needs less
        memory.

        Args:
            hidden: As in `forward`.
            k: The number of labels, from 0 to L. None means 5, or L if there are fewer labels.
            precision: As in `forward`. The decode is exact for the bucket scores of either precision.

        Returns:
            Scores [..., k] and labels [..., k], best first.

        Raises:
            TypeError: As in `forward`.
            ValueError: As in `forward`, or `k` is out of range.

        Example:
            >>> import torch, mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=6)
            >>> scores, labels = head.topk(torch.zeros(2, 3, 4), k=5)
            >>> labels.shape
            torch.Size([2, 3, 5])
        """
        if k is None:
            k = min(USUAL_K, self.num_labels)
        best = None
        if precision == "bfloat16" and self.owns_logits(inputs=True):
            best = _prediction.fused_topk(self, self._rows("MACHHead.topk", hidden), k)
        if best is None:
            logits = self(hidden, **_prediction.precision_option(precision))
            logits = self._flatten(logits, hidden)
            best = MODEL_MERGES[self.merge].topk(logits, self.hash, k, overwrite=self.owns_logits())
        scores, labels = best
        return self._unflatten(scores, hidden), self._unflatten(labels, hidden)

    def owns_logits(self, inputs: bool = False) -> bool:
        """Return whether nobody but `topk` sees the logits of `forward`, so that it may overwrite them.

        Args:
            inputs: Ask also whether nobody sees the arguments of `forward`.

        Example:
            >>> import mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
            >>> handle = head.register_forward_hook(lambda module, inputs, logits: None)
            >>> head.owns_logits()
            False
        """
        return _prediction.owns_logits(self, _FORWARD, inputs)

    def _leading(self, hidden: Tensor) -> int:
        """Return how many leading dimensions hidden units have."""
        return hidden.dim() - (2 if self.per_repetition else 1)

    def _rows(self, op: str, hidden: Any) -> Tensor:  # [N, H] or [N, R, H]
        """Check the shape of hidden units and return them with a single leading dimension."""
        if not isinstance(hidden, Tensor):
            raise TypeError(f"{op}: hidden must be a torch.Tensor, got {type(hidden).__name__}")
        if not torch.compiler.is_compiling():
            check_sharding(op, self.bucket_weight)
        H, R = self.in_features, self.num_repetitions
        expected = (R, H) if self.per_repetition else (H,)
        if tuple(hidden.shape[-len(expected) :]) != expected:
            shape = f"[..., R={R}, H={H}]" if self.per_repetition else f"[..., H={H}]"
            raise ValueError(f"{op}: hidden must be {shape}, got {list(hidden.shape)}")
        check_hidden(op, hidden, self.bucket_weight)
        return self._flatten(hidden, hidden)

    def _flatten(self, t: Tensor, hidden: Tensor) -> Tensor:
        """Give a tensor with the leading dimensions of the hidden units a single leading dimension."""
        count = self._leading(hidden)
        return t.flatten(0, count - 1) if count else t.unsqueeze(0)

    def _unflatten(self, rows: Tensor, hidden: Tensor) -> Tensor:
        """Give results of rows [N, ...] the leading dimensions of the hidden units."""
        leading = hidden.shape[: self._leading(hidden)]
        return rows if len(leading) == 1 else rows.reshape(*leading, *rows.shape[1:])

    # ---------------------------------------------------------------------------------------- model folder

    def configuration(self) -> dict[str, Any]:
        """Return the constructor arguments, except a hash of your own.

        Example:
            >>> import mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
            >>> mach_ext.MACHHead(**head.configuration()).configuration()["in_features"]
            4
        """
        return {
            "in_features": self.in_features,
            "num_labels": self.num_labels,
            "num_repetitions": self.num_repetitions,
            "num_buckets": self.num_buckets,
            "merge": self.merge,
            "seed": self.seed,
            "per_repetition": self.per_repetition,
        }

    @memory_errors("free memory first, or make a smaller head")
    def save(self, path: str | os.PathLike[str], quantization_step: float | None = None) -> None:
        """Write the head into a folder, as `mach_ext.MACH.save` writes a model. `mach_ext.load` reads it.

        Args:
            path: The folder. It is made if it does not exist.
            quantization_step: None writes the weights as they are. A number above 0 rounds each weight to a
                multiple of `quantization_step` / 64 and compresses the result.

        Raises:
            TypeError: As in `mach_ext.MACH.save`.
            ValueError: As there.
            OSError: The folder cannot be written. Nothing of the new head is left.
            MemoryError: Memory does not suffice.

        Example:
            >>> import tempfile, mach_ext
            >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=8)
            >>> folder = tempfile.mkdtemp()
            >>> head.save(folder)
            >>> mach_ext.load(folder).bucket_weight.equal(head.bucket_weight)
            True
        """
        _model_folder.save("MACHHead.save", self, Path(path), quantization_step)

    @memory_errors("free memory first, or make a smaller head")
    def load_parameters(self, tensors: dict[str, Tensor], assign: bool = False) -> None:
        """Load parameters that are known to belong to this label hash.

        Args:
            tensors: The parameters by name, as `named_parameters` names them.
            assign: Take the tensors themselves as parameters in place of copying them.

        Raises:
            RuntimeError: A parameter is missing, unknown or of another shape.

        Example:
            >>> import mach_ext
            >>> first, second = (mach_ext.MACHHead(4, 20, 8, 8) for _ in range(2))
            >>> _ = first.bucket_bias.data.fill_(-2.0)
            >>> second.load_parameters(dict(first.named_parameters()))
            >>> second.bucket_bias[0, 0].item()
            -2.0
        """
        self.load_state_dict(tensors, assign=assign)


_FORWARD = MACHHead.forward  # Code of others may replace it in the class.
