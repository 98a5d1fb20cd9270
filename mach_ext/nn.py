"""The MACH model: an encoder of sparse documents, R bucket classifiers, a merge."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from mach_ext import _model_folder
from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_advice, memory_errors
from mach_ext._model_folder import STEP as STEP
from mach_ext._model_folder import files_of as files_of
from mach_ext._model_folder import is_compressed as is_compressed
from mach_ext._model_folder import save_tensors as save_tensors
from mach_ext.data import check_columns, iter_on_device
from mach_ext.hashing import LabelHash
from mach_ext.merges import MODEL_MERGES as MODEL_MERGES
from mach_ext.merges import SCALES as SCALES
from mach_ext.merges import Merge as Merge

ENCODERS = ("shared", "independent")
USUAL_K = 5  # labels of a document where nothing else is asked for
# Whether to drop: None, as the module's mode says; False, not; True; or drawn by a generator of one's own.
Dropout: TypeAlias = bool | torch.Generator | None
_DROPPED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SCORES_IN_MEMORY = 1 << 26  # bucket scores that predict holds at a time: 256 MiB of float32


# The wrappers of this process, and the models that have said that a loss went past theirs.
_WRAPPERS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _note_wrapper(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """A wrapped module knows nothing of its wrapper, so wrappers are noted when they are made."""
    if isinstance(module, DistributedDataParallel) and submodule is not None:
        _WRAPPERS.add(module)
        _check_hashes_of_ranks(submodule, module.process_group)


def _check_hashes_of_ranks(module: nn.Module, group: Any) -> None:
    """Refuses label hashes that differ between ranks: all ranks get the weights of rank 0.

    Every rank wraps its module, so all of them are here, and all of them raise.
    """
    fingerprints = [part.fingerprint() for part in module.modules() if isinstance(part, LabelHash)]
    if not fingerprints:
        return
    digest = torch.tensor(list(hashlib.sha256("\n".join(fingerprints).encode()).digest()), dtype=torch.int32)
    device = next(module.parameters()).device
    bytes_and_opposites = torch.cat((digest, -digest)).to(device)
    torch.distributed.all_reduce(bytes_and_opposites, torch.distributed.ReduceOp.MAX, group=group)
    largest, smallest = bytes_and_opposites[: len(digest)], -bytes_and_opposites[len(digest) :]
    if not torch.equal(largest, smallest):
        raise ValueError(
            "DistributedDataParallel: the label hash must be the same on every rank, got "
            f"{', '.join(fingerprints)} on rank {torch.distributed.get_rank(group)} and another one on "
            "another rank. Pass the same seed to MACH or LabelHash on every rank"
        )


register_module_module_registration_hook(_note_wrapper)


class MACH(nn.Module):
    """Merged-Averaged Classifiers via Hashing (Medini et al., NeurIPS 2019).

    L labels are hashed R times into B buckets. An encoder turns a sparse document into hidden units, R
    classifiers give B bucket logits each, a label's score is merged from its R buckets. Parameters grow with
    D * H + R * H * B, not with L.

    With `hidden_size=0` there is no encoder (*linear MACH*): R linear bucket classifiers on the features,
    weights [R, D, B].

    Args:
        num_features: D.
        num_labels: L.
        num_repetitions: R.
        num_buckets: B.
        hidden_size: H; 0 for linear MACH; a pair (H1, H2) for two hidden layers.
        encoder: "shared": one encoder for all repetitions; "independent": one each.
        merge: How labels are scored: "mean_logit", "mean_prob", "mean_logprob", "min_prob", "median_prob".
        seed: Of the label hash and of the initial weights.
        feature_dropout, hidden_dropout: Probability of dropping a non-zero, a hidden unit, in training.
        hash: A label hash of your own (learned buckets) with L, B, R as given, in place of the seeded one.

    Parameters (the encoder's weight takes the documents and suits sparse gradients):
        encoder_weight [D, H] or [D, R * H], encoder_bias; hidden_weight, hidden_bias for a second layer;
        bucket_weight [R, H, B] (linear MACH: [R, D, B]), bucket_bias [R, B].

    Buffer `logit_adjustment` [R, B]: the part of bucket_bias that `adjust_logits` has put there.

    Raises:
        TypeError, ValueError: A size is not an integer or out of range, or an unknown encoder or merge.
        MemoryError: The weights need more memory than there is. Nothing has been allocated then.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(num_features=1000, num_labels=5000, num_repetitions=8, num_buckets=64)
        >>> X = scipy.sparse.random(3, 1000, density=0.01, format="csr", dtype="float32")
        >>> scores, labels = model.predict(X, k=5)
        >>> labels.shape
        (3, 5)
    """

    hash: LabelHash  # of the state_dict its fingerprint: weights mean nothing without it
    logit_adjustment: Tensor

    @memory_errors("lower hidden_size, num_buckets or num_repetitions")
    def __init__(
        self,
        num_features: int,
        num_labels: int,
        num_repetitions: int = 16,
        num_buckets: int = 512,
        hidden_size: int | Sequence[int] = 512,
        encoder: str = "shared",
        merge: str = "mean_logit",
        seed: int = 0,
        feature_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        hash: LabelHash | None = None,
    ) -> None:
        super().__init__()
        num_features = F.as_int("MACH", "num_features", num_features)
        num_labels = F.as_int("MACH", "num_labels", num_labels)
        num_repetitions = F.as_int("MACH", "num_repetitions", num_repetitions)
        num_buckets = F.as_int("MACH", "num_buckets", num_buckets)
        seed = F.as_int("MACH", "seed", seed)
        given = tuple(hidden_size) if isinstance(hidden_size, (tuple, list)) else (hidden_size,)
        sizes = tuple(F.as_int("MACH", "hidden_size", size) for size in given)
        feature_dropout, hidden_dropout = float(feature_dropout), float(hidden_dropout)
        _check_configuration(num_features, sizes, encoder, merge, feature_dropout, hidden_dropout)
        self.num_features = num_features
        self.hidden_sizes = tuple(size for size in sizes if size)  # () for linear MACH
        self.encoder = encoder
        self.merge = merge
        self.seed = seed
        self.feature_dropout = feature_dropout
        self.hidden_dropout = hidden_dropout
        self.hash = LabelHash(num_labels, num_buckets, num_repetitions, seed) if hash is None else hash
        # Files kept with the model, by name: what `save` writes beside the weights and `load` brings back.
        self.attachments: dict[str, bytes] = {}
        shape = (self.hash.num_labels, self.hash.num_buckets, self.hash.num_repetitions)
        if shape != (num_labels, num_buckets, num_repetitions):
            raise ValueError(
                f"MACH: hash has (L, B, R) = {shape}, expected {(num_labels, num_buckets, num_repetitions)}"
            )

        R, B, D = num_repetitions, num_buckets, num_features
        copies = R if encoder == "independent" else 1
        _check_weights_fit(D, R, B, self.hidden_sizes, copies)
        last = D
        if self.hidden_sizes:
            last = self.hidden_sizes[0]
            self.encoder_weight = nn.Parameter(torch.empty(D, copies * last))
            self.encoder_bias = nn.Parameter(torch.empty(copies * last))
        if len(self.hidden_sizes) == 2:
            first, last = self.hidden_sizes
            self.hidden_weight = nn.Parameter(torch.empty(copies, first, last))
            self.hidden_bias = nn.Parameter(torch.empty(copies, last))
        self.bucket_weight = nn.Parameter(torch.empty(R, last, B))
        self.bucket_bias = nn.Parameter(torch.empty(R, B))
        self.register_buffer("logit_adjustment", torch.zeros(R, B))
        self.reset_parameters()

    @property
    def hash_fingerprint(self) -> Tensor:
        """Which label hash the weights are for, as uint8."""
        fingerprint: Tensor = self.hash.state_dict()["fingerprint"]
        return fingerprint

    @property
    def num_labels(self) -> int:
        return self.hash.num_labels

    @property
    def num_buckets(self) -> int:
        return self.hash.num_buckets

    @property
    def num_repetitions(self) -> int:
        return self.hash.num_repetitions

    @property
    def is_linear(self) -> bool:
        return not self.hidden_sizes

    def extra_repr(self) -> str:
        hidden = "x".join(map(str, self.hidden_sizes)) or "0 (linear)"
        return (
            f"num_features={self.num_features}, num_labels={self.num_labels}, "
            f"num_repetitions={self.num_repetitions}, num_buckets={self.num_buckets}, hidden_size={hidden}, "
            f"encoder={self.encoder}, merge={self.merge}, seed={self.seed}"
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial weights from `seed` alone, whatever the state of PyTorch's global generator.

        Documents have about unit length, so encoder rows N(0, 0.1^2) give pre-activations of that scale. The
        bucket biases start at the logit of 1 / B: few buckets are positive. Linear MACH starts at zero.
        Nothing is drawn for a model on the meta device, which has no memory for weights.
        """
        if self.bucket_weight.is_meta:
            return
        self.logit_adjustment.zero_()
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        for name, parameter in self.named_parameters():
            if name == "bucket_bias":
                parameter.fill_(-math.log(self.num_buckets - 1))
            elif name.endswith("_bias") or self.is_linear:
                parameter.zero_()
            else:
                std = 0.1 if name == "encoder_weight" else parameter.shape[-2] ** -0.5
                drawn = parameter if parameter.is_cpu else torch.empty_like(parameter, device="cpu")
                parameter.copy_(drawn.normal_(0, std, generator=generator))

    def _apply(self, fn: Any, recurse: bool = True) -> MACH:
        for child in self.children() if recurse else ():
            if child is not self.hash:  # which other models may share
                child._apply(fn)
        super()._apply(fn, recurse=False)
        if not self.bucket_bias.is_meta:
            self.hash = self.hash.to(self.bucket_bias.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        """Refuses weights of another label hash before anything is copied."""
        key = f"{prefix}hash.fingerprint"
        if (former := state_dict.pop(f"{prefix}hash_fingerprint", None)) is not None:  # its former name
            state_dict.setdefault(key, former)
        if key in state_dict and self.hash.fingerprint_fault(state_dict[key]):
            return  # The hash, which is asked next, says what is wrong.
        bias = state_dict.get(f"{prefix}bucket_bias")
        if bias is not None:  # of before there was an adjustment, or without one
            state_dict.setdefault(f"{prefix}logit_adjustment", torch.zeros_like(bias))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    @memory_errors("free memory first, or make a smaller model")
    def load_parameters(self, tensors: dict[str, Tensor], assign: bool = False) -> None:
        """`load_state_dict` of the parameters alone, already known to be of this label hash."""
        self.load_state_dict(tensors, assign=assign)

    @memory_errors("free memory first, or make a smaller model")
    def adjust_logits(self, label_counts: ArrayLike, tau: float) -> None:
        """Ranks by score - tau * log(n + 1), n being how many training documents a label has.

        Learning favours frequent labels beyond what the documents say, the more so the fewer documents the
        other labels have. This is post-hoc logit adjustment (Menon et al., Long-tail learning via logit
        adjustment, ICLR 2021, section 4.2) for hashed labels: what a label's score is to change by is spread
        over its R bucket biases (`LabelHash.spread`, weights sqrt(n + 1)), so nothing is kept by label. With
        R B well above L each label gets its change, to three digits, but for a constant that is the same for
        all. `fit` does it at its end. A former adjustment is taken away first; tau = 0 leaves it at that.

        Args:
            label_counts: [L], training documents of each label: `Y.sum(0)` of 0/1 labels.
            tau: Within -100 and 100. 0.1 to 0.5 pays; docs/accuracy.md.

        Raises:
            ValueError: label_counts is not [L], negative or not finite; tau is out of range; tau is not 0
                and the model does not rank by mean_logit.

        Example:
            >>> import mach_ext, scipy.sparse
            >>> model = mach_ext.MACH(10, 3, num_repetitions=4, num_buckets=8, hidden_size=4)
            >>> X = scipy.sparse.csr_matrix((1, 10), dtype="float32")  # no words: all labels equal
            >>> model.adjust_logits([100, 10, 1], tau=0.5)
            >>> model.predict(X, k=3)[1]
            array([[2, 1, 0]])
        """
        self.set_logit_adjustment(self.logit_offsets(label_counts, tau))

    def logit_offsets(self, label_counts: ArrayLike, tau: float) -> Tensor:  # [R, B]
        """What `adjust_logits` adds to bucket_bias; arguments and errors as there."""
        tau, counts = float(tau), np.asarray(label_counts, np.float64)
        if counts.ndim == 2 and 1 in counts.shape:  # as Y.sum(0) comes
            counts = counts.ravel()
        if not abs(tau) <= 100:
            raise ValueError(f"MACH.adjust_logits: tau must be within -100 and 100, got {tau}")
        if counts.shape != (self.num_labels,) or not (np.isfinite(counts) & (counts >= 0)).all():
            raise ValueError(
                f"MACH.adjust_logits: label_counts must be [L={self.num_labels}], finite and not negative, "
                f"got shape {counts.shape}" + (f", smallest {counts.min()}" if counts.size else "")
            )
        if tau == 0:
            return torch.zeros_like(self.logit_adjustment)
        if self.merge != "mean_logit":
            raise ValueError(f"MACH.adjust_logits: is for models that rank by mean_logit, not {self.merge}")
        wanted = -tau * np.log1p(counts)
        wanted -= np.average(wanted, weights=counts + 1)  # the constant that changes scores least
        return torch.from_numpy(self.hash.spread(wanted, np.sqrt(counts + 1))).to(self.logit_adjustment)

    @torch.no_grad()
    def set_logit_adjustment(self, offsets: Tensor | float) -> None:
        """`offsets` [R, B], or 0, in bucket_bias in place of what a former adjustment put there."""
        self.bucket_bias.sub_(self.logit_adjustment)
        self.logit_adjustment.copy_(torch.as_tensor(offsets))
        self.bucket_bias.add_(self.logit_adjustment)

    @memory_errors("pass fewer documents at a time")
    def encode(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        *,
        sparse_grad: bool = False,
        validate: bool = True,
        dropout: Dropout = None,
    ) -> Tensor:  # [N, H] or, with independent encoders, [N, R, H]
        """Hidden units that the bucket classifiers take. Not for linear MACH, which has none.

        Arguments as in `forward`.
        """
        if self.is_linear:
            raise ValueError("MACH.encode: linear MACH (hidden_size=0) has no hidden layer")
        hidden = F.sparse_linear(
            self.drop_features(values, dropout=dropout),
            indices,
            indptr,
            self.encoder_weight,
            self.encoder_bias,
            "relu",
            sparse_grad,
            validate=validate,
        )
        return self.encode_hidden(hidden, dropout=dropout)

    def encode_hidden(self, hidden: Tensor, *, dropout: Dropout = None) -> Tensor:
        """What `encode` does behind its sparse layer [N, H] or [N, R * H]: dropout, a second layer."""
        if self.encoder == "independent":
            hidden = hidden.unflatten(1, (self.num_repetitions, self.hidden_sizes[0]))
        hidden = self._drop(hidden, self.hidden_dropout, dropout)
        if len(self.hidden_sizes) == 2:
            hidden = F.bucket_logits(hidden, self.hidden_weight, self.hidden_bias).relu()
            if self.encoder == "shared":
                hidden = hidden.squeeze(1)
            hidden = self._drop(hidden, self.hidden_dropout, dropout)
        return hidden

    @memory_errors("pass fewer documents at a time")
    def forward(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        label_indices: Tensor | None = None,  # [label nnz]
        label_indptr: Tensor | None = None,  # [N + 1]
        *,
        sparse_grad: bool = False,
        validate: bool = True,
        dropout: Dropout = None,
    ) -> Tensor:  # [N, R, B]; with labels the loss, a scalar
        """Bucket logits of a batch of documents in CSR form; with their labels, the training loss.

        The loss is that of `loss`. A wrapper that wants training to go through `forward`, such as
        DistributedDataParallel, is called with the labels.

        Args:
            values, indices, indptr: Documents in CSR form.
            label_indices, label_indptr: Labels of each document in CSR form; both or neither.
            sparse_grad: True: the weight that takes the documents gets a gradient of the rows that occur, a
                sparse tensor, for `mach_ext.optim` and `torch.optim.SparseAdam`. False: a dense one, which
                every optimiser and wrapper takes.
            validate: As in `mach_ext.functional.sparse_linear`.
            dropout: None: in training mode. False: none; True: in any mode; a `torch.Generator` on the
                model's device: in any mode, drawn by it, so that the global generator is left alone.

        Raises:
            TypeError, ValueError: As in `mach_ext.functional.sparse_linear` and `bucket_bce`; labels by half.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
            >>> Y = torch.tensor([7]), torch.tensor([0, 1])
            >>> model(*X).shape, model(*X, *Y).shape
            (torch.Size([1, 8, 8]), torch.Size([]))
        """
        X = (values, indices, indptr)
        if label_indices is not None or label_indptr is not None:
            if label_indices is None or label_indptr is None:
                raise ValueError("MACH: label_indices and label_indptr must be given together")
            Y = (label_indices, label_indptr)
            return self.loss(*X, *Y, sparse_grad=sparse_grad, validate=validate, dropout=dropout)
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            return F.bucket_forward(
                *X, None, None, self.bucket_weight, self.bucket_bias, sparse_grad, validate=validate
            )
        hidden = self.encode(*X, sparse_grad=sparse_grad, validate=validate, dropout=dropout)
        return F.bucket_logits(hidden, self.bucket_weight, self.bucket_bias)

    @memory_errors("pass fewer documents at a time")
    def loss(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        label_indices: Tensor,  # [label nnz]
        label_indptr: Tensor,  # [N + 1]
        *,
        sparse_grad: bool = False,
        validate: bool = True,
        dropout: Dropout = None,
    ) -> Tensor:  # scalar
        """Training loss (`mach_ext.functional.bucket_bce`); never holds [N, R, B].

        Arguments as in `forward`. Under DistributedDataParallel call the wrapper with the labels, which
        returns this loss: gradients of what goes past the wrapper are not averaged.

        Warns:
            UserWarning: The model is wrapped by DistributedDataParallel, and the call went past it.
        """
        if not torch.compiler.is_compiling() and _is_distributed():
            self._check_distributed(sparse_grad)
        weight, bias, labels = self.bucket_weight, self.bucket_bias, (label_indices, label_indptr)
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            return F.linear_bucket_bce(*X, weight, bias, *labels, self.hash, sparse_grad, validate=validate)
        hidden = self.encode(
            values, indices, indptr, sparse_grad=sparse_grad, validate=validate, dropout=dropout
        )
        return F.bucket_bce(hidden, weight, bias, *labels, self.hash, validate=validate)

    def _check_distributed(self, sparse_grad: bool) -> None:
        """Says, once, that a loss goes past the wrapper that would average its gradients."""
        if not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())):
            return
        wrappers = [wrapper for wrapper in _WRAPPERS if any(self is part for part in wrapper.modules())]
        if not wrappers:
            return
        if getattr(DistributedDataParallel, "_active_ddp_module", None) in wrappers:
            if sparse_grad:
                raise ValueError(
                    "MACH: DistributedDataParallel averages dense gradients, got sparse_grad=True"
                )
        elif self not in _WARNED:
            _WARNED.add(self)
            warnings.warn(
                "MACH.loss: the model is wrapped by DistributedDataParallel, but this call goes past the "
                "wrapper. Gradients are not averaged and the replicas drift apart. Call the wrapper, which "
                "returns the loss: ddp(values, indices, indptr, label_indices, label_indptr)",
                stacklevel=3,
            )

    @memory_errors("pass fewer documents at a time or fewer labels")
    def label_logits(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        labels: Tensor,  # [m] or [N, m]
        *,
        validate: bool = True,
        dropout: Dropout = None,
    ) -> Tensor:  # [N, m, R]
        """Logits of the labels' R buckets, how each repetition votes; no other bucket is computed.

        `validate` and `dropout` as in `forward`.
        """
        weight, bias = self.bucket_weight, self.bucket_bias
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            return F.linear_label_logits(*X, weight, bias, self.hash, labels, validate=validate)
        hidden = self.encode(values, indices, indptr, validate=validate, dropout=dropout)
        return F.label_logits(hidden, weight, bias, self.hash, labels, validate=validate)

    @memory_errors("pass fewer documents at a time or fewer labels")
    def label_scores(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        labels: Tensor,  # [m] or [N, m]
        score: str = "logit",
        *,
        validate: bool = True,
        dropout: Dropout = None,
    ) -> Tensor:  # [N, m]
        """Scores of chosen labels, differentiable to the documents' values and to the parameters.

        Args:
            values, indices, indptr: Documents in CSR form.
            labels: [m], the same for every document, or [N, m].
            score: "logit": mean of the R bucket logits; "model": by the model's own merge.
            validate, dropout: As in `forward`.
        """
        if score not in ("logit", "model"):
            raise ValueError(f'MACH.label_scores: score must be "logit" or "model", got {score!r}')
        logits = self.label_logits(values, indices, indptr, labels, validate=validate, dropout=dropout)
        merge = MODEL_MERGES["mean_logit" if score == "logit" else self.merge]
        return merge.label_scores(logits)

    @memory_errors("pass fewer documents at a time or lower k")
    def topk(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        k: int,
        *,
        validate: bool = True,
        dropout: Dropout = None,
    ) -> tuple[Tensor, Tensor]:  # scores [N, k], labels [N, k]
        """The k best labels of each document by the model's merge, exactly; one batch, differentiable.

        `validate` and `dropout` as in `forward`.
        """
        logits = self(values, indices, indptr, validate=validate, dropout=dropout)
        return MODEL_MERGES[self.merge].topk(logits, self.hash, k)

    def predict(
        self, X: Any, k: int | None = None, batch_size: int | None = None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The k best labels of each document of a SciPy CSR matrix: no dropout, no gradients, in batches.

        Neither the model's mode nor any other state is touched. Threads may call it at the same time, also
        beside one that trains the model.

        Args:
            X: [N, D], any SciPy sparse matrix; duplicates are summed, NaN and infinities refused.
            k: 0 ... L; None: 5, or all L labels where there are fewer.
            batch_size: Documents at a time; None: as many as keep bucket scores within 256 MiB, at most 256.
                Scores may differ in their last bits with it: BLAS sums in an order of its own for each size.

        Returns:
            scores [N, k] float32 and labels [N, k] int64 (NumPy), best first. Scores are on the scale of the
            model's merge, such as mean log-probabilities for `mean_logprob`.

        Raises:
            TypeError: X is not sparse. ValueError: X has not D columns or is not finite; k out of range; NaN
                or infinite parameters have made scores NaN or infinite.
            MemoryError: Memory does not suffice; on a GPU torch.OutOfMemoryError.
        """
        X = check_columns(X, "MACH.predict: X", self.num_features)
        k = checked_k("MACH.predict", k, self.num_labels, least=0)
        if batch_size is None:
            batch_size = predict_batch(self.num_repetitions, self.num_buckets)
        if batch_size < 1:
            raise ValueError(f"MACH.predict: batch_size must be at least 1, got {batch_size}")
        N = X.shape[0]
        on_cpu = self.bucket_bias.is_cpu
        check_memory(
            "MACH.predict: scores and labels",
            12 * N * k + (self._batch_bytes(min(batch_size, N)) if on_cpu else 0),
            "pass fewer documents, or lower batch_size or k",
            N=N, k=k, batch_size=batch_size,
        )  # fmt: skip
        scores = np.empty((N, k), np.float32)
        labels = np.empty((N, k), np.int64)
        with torch.inference_mode(), memory_advice("MACH.predict", "lower batch_size", self):
            batches = iter_on_device(_batches(X, batch_size), self.bucket_bias.device)
            for start, values, indices, indptr in batches:
                if self.bucket_weight.dtype == torch.float64:
                    values = values.double()
                best, ids = self.topk(values, indices, indptr, k, validate=False, dropout=False)
                check_scores("MACH.predict", self, best)
                scores[start : start + batch_size] = best.cpu().numpy()
                labels[start : start + batch_size] = ids.cpu().numpy()
        return scores, labels

    def _batch_bytes(self, documents: int) -> int:
        """What `predict` holds of so many documents: bucket scores, what they become, hidden units."""
        scores = MODEL_MERGES[self.merge].num_arrays
        encoders = self.num_repetitions if self.encoder == "independent" else 1
        hidden = encoders * self.hidden_sizes[-1] if self.hidden_sizes else 0
        numbers = scores * self.num_repetitions * self.num_buckets + hidden
        return documents * numbers * self.bucket_bias.element_size()

    def drop_features(self, values: Tensor, *, dropout: Dropout = None) -> Tensor:
        """Feature dropout of values [nnz]; `dropout` as in `forward`."""
        return self._drop(values, self.feature_dropout, dropout)

    def _drop(self, t: Tensor, p: float, dropout: Dropout) -> Tensor:
        if t.dtype not in _DROPPED:  # which operators refuse
            return t
        if isinstance(dropout, torch.Generator):
            if p == 0:
                return t
            # On the CPU the bits of nn.functional.dropout, had the global generator this state.
            kept = torch.empty_like(t).bernoulli_(1 - p, generator=dropout)
            return t * kept.div_(1 - p)
        if not (dropout is None or isinstance(dropout, bool)):
            kind = type(dropout).__name__
            raise TypeError(f"MACH: dropout must be None, a bool or a torch.Generator, got {kind}")
        return nn.functional.dropout(t, p, self.training if dropout is None else dropout)

    # -------------------------------------------------------------------------------------- model folder

    def configuration(self) -> dict[str, Any]:
        """Constructor arguments, but for a hash of one's own."""
        return {
            "num_features": self.num_features,
            "num_labels": self.num_labels,
            "num_repetitions": self.num_repetitions,
            "num_buckets": self.num_buckets,
            "hidden_size": list(self.hidden_sizes) or 0,
            "encoder": self.encoder,
            "merge": self.merge,
            "seed": self.seed,
            "feature_dropout": self.feature_dropout,
            "hidden_dropout": self.hidden_dropout,
        }

    @memory_errors("free memory first, or make a smaller model")
    def save(self, path: str | os.PathLike[str], step: float | None = None) -> None:
        """Writes the model into folder `path`: `model.json` and the weights it names (safetensors).

        Safe at any moment: weights go to a file of a new name, `model.json` is replaced in one step, and the
        former model's files are removed only then. A failure leaves the folder's former model as it was. The
        folder is locked meanwhile. Another save is waited for, and what a killed one left is removed.

        Args:
            path: Folder, made where it does not exist.
            step: None: the weights as they are. A number: a small file (10 to 20 times smaller at 0.5, for
                documents of about unit length). Each weight w that takes the documents becomes the nearest
                multiple w' of it, each that takes hidden units of step / 64, and what is left is zlib's; so
                |w - w'| <= step / 2, and for linear MACH a label's mean logit moves by at most
                step / 2 * sum |x|. Float32 rounding comes on top. Biases stay. `load` needs no flag, gives
                w' as float32, and saving that again with this step writes the same bytes. Only the file is
                small: each process that loads it holds all weights as float32, in memory of its own.

        Raises:
            TypeError: step is not a number.
            ValueError: A weight is not finite, or of another dtype than float16, bfloat16, float32, float64.
                step is not above 0 and finite, rounds all of a weight to 0, or a weight is above 32,767
                steps. An attachment is not bytes or has no plain name. Another run is training in the folder.
            OSError: The folder cannot be written; nothing of the new model is left.
            MemoryError: Memory does not suffice.

        Example:
            >>> import tempfile, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> folder = tempfile.mkdtemp()
            >>> model.save(folder, step=0.01)
            >>> bool((mach_ext.load(folder).encoder_weight - model.encoder_weight).abs().max() < 0.00501)
            True
        """
        _model_folder.save(self, Path(path), step)


class FirstLayer(NamedTuple):
    """The weights that take the documents, in C parts: C = 1 for an encoder, C = R for linear MACH."""

    weight: Tensor  # [C, D, M]
    bias: Tensor  # [C, M]


def first_layer(model: MACH) -> FirstLayer:
    """Detached views of the first layer, which give pre-activations [N, C, M] of documents.

    An encoder is one part, M = H1 columns wide, or R * H1 of independent encoders (unit h of repetition r is
    column r * H1 + h). Of linear MACH each repetition is a part, M = B columns wide.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4)
        >>> mach_ext.nn.first_layer(model).weight.shape
        torch.Size([1, 10, 4])
    """
    if model.is_linear:
        return FirstLayer(model.bucket_weight.detach(), model.bucket_bias.detach())
    return FirstLayer(model.encoder_weight.detach()[None], model.encoder_bias.detach()[None])


def checked_k(op: str, k: int | None, num_labels: int, least: int = 1, name: str = "k") -> int:
    """A checked k of the top k; None: the usual 5, or all L labels where there are fewer."""
    if k is None:
        return min(USUAL_K, num_labels)
    k = F.as_int(op, "k", k)
    if not least <= k <= num_labels:
        raise ValueError(f"{op}: {name} must be in {least} ... L={num_labels}, got {k}")
    return k


def check_scores(op: str, model: MACH, scores: Tensor) -> None:
    """Refuses scores that parameters which are NaN or infinite have made NaN or infinite.

    Parameters are looked at only where scores tell that it may be so: finite ones can overflow.
    """
    if not bool((scores < math.inf).all()):
        check_finite(op, model)


def check_finite(op: str, model: MACH) -> None:
    """Refuses parameters that are NaN or infinite."""
    for name, parameter in model.named_parameters():
        low, high = parameter.detach().aminmax()  # unlike isfinite, without a copy
        if not bool((high - low).isfinite()) and not bool(parameter.isfinite().all()):
            raise ValueError(
                f"{op}: the model's {name} must be finite, got "
                f"{int((~parameter.isfinite()).sum())} of {parameter.numel()} numbers NaN or infinite"
            )


def _check_weights_fit(D: int, R: int, B: int, hidden_sizes: tuple[int, ...], copies: int) -> None:
    """Of a model's parameters and buffers, where they are to be made in this process's memory."""
    probe = torch.empty(0)
    if not probe.is_cpu or type(probe) is not Tensor:
        return
    last, count = D, 0
    for size in hidden_sizes:
        count += copies * (last + 1) * size
        last = size
    count += R * (last + 2) * B
    hidden = ",".join(f"{size:,}" for size in hidden_sizes) or 0
    check_memory(
        "MACH: the weights",
        probe.element_size() * count,
        "lower hidden_size, num_buckets or num_repetitions",
        num_features=D, hidden_size=hidden, num_buckets=B, num_repetitions=R,
    )  # fmt: skip


def predict_batch(num_repetitions: int, num_buckets: int) -> int:
    """Documents that `predict` takes at a time by default: at most 256, bucket scores within 256 MiB."""
    return max(1, min(256, _SCORES_IN_MEMORY // (num_repetitions * num_buckets)))


@contextlib.contextmanager
def evaluating(model: MACH) -> Iterator[None]:
    """No gradients, and products in the model's precision, autocast or not; in this thread alone."""
    with torch.no_grad(), F.own_precision(model.bucket_bias.device):
        yield


def check_parameters(op: str, model: MACH) -> None:
    """Refuses parameters of dtypes that the operators don't take."""
    narrow = (torch.bfloat16, torch.float16) if model.bucket_bias.is_cuda else (torch.bfloat16,)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float64} and not dtypes <= {torch.float32, *narrow}:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in (torch.float32, *narrow))
        given = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise TypeError(f"{op}: parameters must be {names}, or all float64, got {given}")


@memory_errors("free memory first, or make a smaller model")
def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> MACH:
    """Reads a model folder written by `MACH.save`, in eval mode.

    On CPU, weights that were saved as they are stay in their file, which is mapped: processes that load one
    model share its memory, until they change it. Compressed weights become each process's own.

    Nothing is allocated before the sizes that `model.json` claims were found in the other files. It takes no
    lock, and may be called while another process saves into the folder.

    Raises:
        ValueError: Something is missing, truncated, edited or of another format; names the file and the rule.
        MemoryError: Memory does not suffice.

    Example:
        >>> import tempfile, mach_ext
        >>> folder = tempfile.mkdtemp()
        >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4).save(folder)
        >>> mach_ext.load(folder).num_labels
        20
    """
    return _model_folder.load(MACH, Path(path), device)


def _batches(X: Any, batch_size: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Consecutive documents of a canonical CSR matrix, the first one's number before them; its own memory."""
    for start in range(0, X.shape[0], batch_size):
        indptr = X.indptr[start : start + batch_size + 1]
        at = slice(indptr[0], indptr[-1])
        arrays = (X.data[at], X.indices[at], indptr - indptr[0])
        values, indices, indptr = map(torch.from_numpy, arrays)
        yield start, values, indices, indptr


def _check_configuration(
    num_features: int,
    sizes: tuple[int, ...],
    encoder: str,
    merge: str,
    feature_dropout: float,
    hidden_dropout: float,
) -> None:
    if num_features < 1:
        raise ValueError(f"MACH: num_features must be at least 1, got {num_features}")
    if len(sizes) not in (1, 2) or any(size < (len(sizes) == 2) for size in sizes):
        raise ValueError(
            f"MACH: hidden_size must be 0 (linear), one size or a pair of positive sizes, got {sizes}"
        )
    if encoder not in ENCODERS:
        raise ValueError(f"MACH: encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    if merge not in MODEL_MERGES:
        raise ValueError(f"MACH: merge must be one of {', '.join(MODEL_MERGES)}, got {merge!r}")
    for name, p in (("feature_dropout", feature_dropout), ("hidden_dropout", hidden_dropout)):
        if not 0 <= p < 1:
            raise ValueError(f"MACH: {name} must be in [0, 1), got {p}")
