"""The MACH model: an encoder of sparse documents, R bucket classifiers and a merge.

Example:
    >>> import mach_ext
    >>> mach_ext.nn.ENCODERS
    ('shared', 'independent')
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mach_ext import _model_folder, _prediction
from mach_ext import functional as F
from mach_ext._deprecation import renamed_argument
from mach_ext._distributed import check_wrapper, is_distributed
from mach_ext._dropout import Dropout as Dropout
from mach_ext._dropout import drop
from mach_ext._memory import memory_errors
from mach_ext._model_checks import ENCODERS as ENCODERS
from mach_ext._model_checks import USUAL_K as USUAL_K
from mach_ext._model_checks import check_configuration, check_weights_fit
from mach_ext._model_checks import check_finite as check_finite
from mach_ext._model_checks import check_parameters as check_parameters
from mach_ext._model_checks import check_scores as check_scores
from mach_ext._model_checks import checked_k as checked_k
from mach_ext._model_checks import evaluating as evaluating
from mach_ext._model_folder import STEP as STEP
from mach_ext._model_folder import files_of as files_of
from mach_ext._model_folder import is_compressed as is_compressed
from mach_ext._model_folder import save_tensors as save_tensors
from mach_ext._prediction import precision_option as precision_option
from mach_ext._prediction import predict_batch as predict_batch
from mach_ext._prediction import rounded_model as rounded_model
from mach_ext.hashing import LabelHash
from mach_ext.merges import MODEL_MERGES as MODEL_MERGES
from mach_ext.merges import SCALES as SCALES
from mach_ext.merges import Merge as Merge

__all__ = ["ENCODERS", "MACH", "FirstLayer", "first_layer", "load"]


class MACH(nn.Module):
    """Merged-Averaged Classifiers via Hashing (Medini et al., NeurIPS 2019).

    R hash functions send L labels to B buckets each. An encoder turns a sparse document into hidden units. R
    classifiers then give B bucket logits each. The score of a label is merged from its R buckets. The number
    of parameters grows with D * H + R * H * B and not with L.

    With `hidden_size=0` there is no encoder. This is *linear MACH*: R linear bucket classifiers act on the
    features, with weights [R, D, B].

    The parameters are:

    * `encoder_weight` [D, H] or [D, R * H], and `encoder_bias`. This weight takes the documents and suits
      sparse gradients.
    * `hidden_weight` and `hidden_bias`, if there is a second hidden layer.
    * `bucket_weight` [R, H, B] and `bucket_bias` [R, B]. In linear MACH `bucket_weight` is [R, D, B] and
      takes the documents.

    The buffer `logit_adjustment` [R, B] is the part of `bucket_bias` that `adjust_logits` added.

    Args:
        num_features: D, the number of features.
        num_labels: L, the number of labels.
        num_repetitions: R, the number of hash functions. Each has a classifier of its own.
        num_buckets: B, the number of buckets of each repetition.
        hidden_size: H, the number of hidden units. 0 makes linear MACH. A pair (H1, H2) makes two hidden
            layers.
        encoder: "shared" is one encoder for all repetitions. "independent" is one encoder for each.
        merge: How labels are scored: "mean_logit", "mean_prob", "mean_logprob", "min_prob" or "median_prob".
        seed: Seed of the label hash and of the initial weights.
        feature_dropout: Probability of dropping a non-zero of a document in training.
        hidden_dropout: Probability of dropping a hidden unit in training.
        hash: A label hash with these L, B and R, to use in place of the seeded one. The buckets may be
            learned.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is out of range, or the encoder or the merge is unknown.
        MemoryError: The weights need more memory than there is. Nothing has been allocated in that case.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(num_features=1000, num_labels=5000, num_repetitions=8, num_buckets=64)
        >>> X = scipy.sparse.random(3, 1000, density=0.01, format="csr", dtype="float32")
        >>> scores, labels = model.predict(X, k=5)
        >>> labels.shape
        (3, 5)
    """

    hash: LabelHash  # The state_dict holds its fingerprint, because weights mean nothing without their hash.
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
        check_configuration(num_features, sizes, encoder, merge, feature_dropout, hidden_dropout)
        self.num_features = num_features
        self.hidden_sizes = tuple(size for size in sizes if size)  # () for linear MACH
        self.encoder = encoder
        self.merge = merge
        self.seed = seed
        self.feature_dropout = feature_dropout
        self.hidden_dropout = hidden_dropout
        self.hash = LabelHash(num_labels, num_buckets, num_repetitions, seed) if hash is None else hash
        # Files that belong to the model, by name. `save` and `load` keep them with the weights.
        self.attachments: dict[str, bytes] = {}
        shape = (self.hash.num_labels, self.hash.num_buckets, self.hash.num_repetitions)
        if shape != (num_labels, num_buckets, num_repetitions):
            raise ValueError(
                f"MACH: hash has (L, B, R) = {shape}, expected {(num_labels, num_buckets, num_repetitions)}"
            )

        R, B, D = num_repetitions, num_buckets, num_features
        copies = R if encoder == "independent" else 1
        check_weights_fit(D, R, B, self.hidden_sizes, copies)
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
        """The fingerprint of the label hash that the weights belong to, as uint8 characters.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> bytes(model.hash_fingerprint.tolist()).decode()
            'L=20 B=8 R=8 seed=0'
        """
        fingerprint: Tensor = self.hash.state_dict()["fingerprint"]
        return fingerprint

    @property
    def num_labels(self) -> int:
        """L, the number of labels.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4).num_labels
            20
        """
        return self.hash.num_labels

    @property
    def num_buckets(self) -> int:
        """B, the number of buckets of each repetition.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4).num_buckets
            6
        """
        return self.hash.num_buckets

    @property
    def num_repetitions(self) -> int:
        """R, the number of hash functions and of bucket classifiers.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4).num_repetitions
            8
        """
        return self.hash.num_repetitions

    @property
    def is_linear(self) -> bool:
        """Whether this is linear MACH, which has no hidden layer.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=0).is_linear
            True
        """
        return not self.hidden_sizes

    def extra_repr(self) -> str:
        """Return the sizes and settings that `print(model)` shows.

        Example:
            >>> import mach_ext
            >>> print(mach_ext.MACH(10, 20, 8, 6, hidden_size=(4, 3)).extra_repr()[:54])
            num_features=10, num_labels=20, num_repetitions=8, num
        """
        hidden = "x".join(map(str, self.hidden_sizes)) or "0 (linear)"
        return (
            f"num_features={self.num_features}, num_labels={self.num_labels}, "
            f"num_repetitions={self.num_repetitions}, num_buckets={self.num_buckets}, hidden_size={hidden}, "
            f"encoder={self.encoder}, merge={self.merge}, seed={self.seed}"
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from `seed` alone, whatever the state of PyTorch's global generator.

        Documents have a length of about 1. Encoder rows drawn from N(0, 0.1^2) therefore give pre-activations
        of that scale. The bucket biases start at the logit of 1 / B, because few buckets are positive. Linear
        MACH starts at zero. A model on the meta device has no memory for weights, so nothing is drawn for it.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> first = model.encoder_weight.detach().clone()
            >>> _ = model.encoder_weight.data.zero_()
            >>> model.reset_parameters()
            >>> model.encoder_weight.equal(first)
            True
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
        """Move the model, and with it the label hash, which other models may share."""
        for child in self.children() if recurse else ():
            if child is not self.hash:  # Other models may share the hash, so it is never changed in place.
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
        key = f"{prefix}hash.fingerprint"
        if (former := state_dict.pop(f"{prefix}hash_fingerprint", None)) is not None:  # its former name
            state_dict.setdefault(key, former)
        if key in state_dict and self.hash.fingerprint_fault(state_dict[key]):
            return  # PyTorch loads the hash next, and the hash reports the fault.
        bias = state_dict.get(f"{prefix}bucket_bias")
        if bias is not None:  # The state may be older than the adjustment, or have none.
            state_dict.setdefault(f"{prefix}logit_adjustment", torch.zeros_like(bias))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    @memory_errors("free memory first, or make a smaller model")
    def load_parameters(self, tensors: dict[str, Tensor], assign: bool = False) -> None:
        """Load parameters that are known to belong to this label hash.

        Args:
            tensors: The parameters by name, as `named_parameters` names them.
            assign: Take the tensors themselves as parameters in place of copying them.

        Raises:
            RuntimeError: A parameter is missing, unknown or of another shape.

        Example:
            >>> import mach_ext
            >>> sizes = {"num_repetitions": 8, "num_buckets": 8, "hidden_size": 4}
            >>> first, second = (mach_ext.MACH(10, 20, **sizes) for _ in range(2))
            >>> _ = first.bucket_bias.data.fill_(-2.0)
            >>> second.load_parameters(dict(first.named_parameters()))
            >>> second.bucket_bias[0, 0].item()
            -2.0
        """
        self.load_state_dict(tensors, assign=assign)

    @memory_errors("free memory first, or make a smaller model")
    def adjust_logits(self, label_counts: ArrayLike, tau: float) -> None:
        """Rank by score - tau * log(n + 1), where n is the number of training documents of a label.

        Training favours frequent labels beyond what the documents say. The effect is larger where the other
        labels have fewer documents. This method is post-hoc logit adjustment (Menon et al., Long-tail
        learning via logit adjustment, ICLR 2021, section 4.2) for hashed labels. The change of a label's
        score is spread over its R bucket biases by `LabelHash.spread`, with weights sqrt(n + 1). Nothing is
        therefore kept for each label.

        If R * B is well above L, each label gets its change to three digits, up to a constant for all labels.
        `fit` calls this method at its end. A former adjustment is taken away first, so tau = 0 removes it.

        Args:
            label_counts: [L], the number of training documents of each label, such as `Y.sum(0)` of 0/1
                labels.
            tau: Strength of the adjustment, within -100 and 100. Values of 0.1 to 0.5 helped in
                docs/results/accuracy.md.

        Raises:
            ValueError: `label_counts` is not [L], is negative or is not finite. `tau` is out of range. `tau`
                is not 0 and the model does not rank by mean_logit.

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
        """Return what `adjust_logits` would add to `bucket_bias`.

        Args:
            label_counts: As in `adjust_logits`.
            tau: As in `adjust_logits`.

        Returns:
            The offsets [R, B]. They are 0 for tau = 0.

        Raises:
            ValueError: As in `adjust_logits`.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.MACH(10, 3, num_repetitions=4, num_buckets=8, hidden_size=4)
            >>> offsets = model.logit_offsets([100, 10, 1], tau=0.5)
            >>> rare, frequent = model.hash.buckets[0, 2], model.hash.buckets[0, 0]
            >>> (offsets[0, rare] > offsets[0, frequent]).item()
            True
        """
        tau, counts = float(tau), np.asarray(label_counts, np.float64)
        if counts.ndim == 2 and 1 in counts.shape:  # Y.sum(0) of a SciPy matrix has two dimensions.
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
            raise ValueError(f"MACH.adjust_logits: merge must be mean_logit, got {self.merge}")
        by_label = -tau * np.log1p(counts)
        by_label -= np.average(by_label, weights=counts + 1)  # With this constant, scores change least.
        return torch.from_numpy(self.hash.spread(by_label, np.sqrt(counts + 1))).to(self.logit_adjustment)

    @torch.no_grad()
    def set_logit_adjustment(self, offsets: Tensor | float) -> None:
        """Put offsets into `bucket_bias`, in place of a former adjustment.

        Args:
            offsets: [R, B], as `logit_offsets` returns them. 0 removes a former adjustment.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> model.set_logit_adjustment(torch.ones(8, 8))
            >>> model.set_logit_adjustment(3 * torch.ones(8, 8))
            >>> model.logit_adjustment[0, 0].item()
            3.0
        """
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
        """Return the hidden units of documents, which the bucket classifiers take.

        Linear MACH has no hidden units, so it has no use for this method.

        Args:
            values: Non-zeros of the documents, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            sparse_grad: As in `forward`.
            validate: As in `forward`.
            dropout: As in `forward`.

        Returns:
            [N, H], or [N, R, H] with independent encoders.

        Raises:
            ValueError: The model is linear, or the documents are not valid.
            TypeError: The documents have a wrong dtype.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
            >>> model.encode(*X).shape
            torch.Size([1, 4])
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
        """Apply what follows the sparse layer of `encode`: dropout and a second layer, if there is one.

        Args:
            hidden: Output of the sparse layer, [N, H] or [N, R * H].
            dropout: As in `forward`.

        Returns:
            [N, H], or [N, R, H] with independent encoders.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=(4, 3))
            >>> model.encode_hidden(torch.ones(1, 4)).shape
            torch.Size([1, 3])
        """
        if self.encoder == "independent":
            hidden = hidden.unflatten(1, (self.num_repetitions, self.hidden_sizes[0]))
        hidden = drop(hidden, self.hidden_dropout, dropout, self.training)
        if len(self.hidden_sizes) == 2:
            hidden = F.bucket_logits(hidden, self.hidden_weight, self.hidden_bias).relu()
            if self.encoder == "shared":
                hidden = hidden.squeeze(1)
            hidden = drop(hidden, self.hidden_dropout, dropout, self.training)
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
        precision: str = "float32",
    ) -> Tensor:  # [N, R, B]; with labels the loss, a scalar
        """Return the bucket logits of documents in CSR form. If labels are given, return the training loss.

        The loss is that of `loss`. Wrappers such as DistributedDataParallel need training to go through
        `forward`. Call them with the labels.

        Args:
            values: Non-zeros of the documents, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            label_indices: Labels of the documents, [label nnz]. Give both label arguments or neither.
            label_indptr: Start of the labels of each document, [N + 1].
            sparse_grad: If true, the weight that takes the documents gets a sparse gradient of the rows that
                occur. `mach_ext.optim` and `torch.optim.SparseAdam` take it. If false, the gradient is dense,
                which every optimiser and wrapper takes.
            validate: As in `mach_ext.functional.sparse_linear`.
            dropout: None applies dropout in training mode only. False never applies it, and True always does.
                A `torch.Generator` on the model's device also always applies it. The masks are then drawn
                from that generator, and the global generator is left alone.
            precision: As in `mach_ext.functional.bucket_forward`. With bfloat16, linear MACH has no gradient
                to its weight, so call it under `torch.no_grad()`.

        Returns:
            [N, R, B]. If labels are given, the scalar loss.

        Raises:
            TypeError: As in `mach_ext.functional.bucket_forward` and `bucket_bce`.
            ValueError: As there. Only one of the label arguments is given, or a precision for the loss.

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
            if precision != "float32":
                raise ValueError(
                    f"MACH: precision is for bucket logits; the loss has none, got {precision!r}"
                )
            Y = (label_indices, label_indptr)
            return self.loss(*X, *Y, sparse_grad=sparse_grad, validate=validate, dropout=dropout)
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            return F.bucket_forward(
                *X, None, None, self.bucket_weight, self.bucket_bias, sparse_grad,
                validate=validate, precision=precision,
            )  # fmt: skip
        hidden = self.encode(*X, sparse_grad=sparse_grad, validate=validate, dropout=dropout)
        return F.bucket_logits(hidden, self.bucket_weight, self.bucket_bias, precision=precision)

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
        """Return the training loss (`mach_ext.functional.bucket_bce`) without ever holding [N, R, B].

        Under DistributedDataParallel, call the wrapper with the labels. It returns this loss. If you call
        this method directly, the gradients are not averaged over the ranks.

        Args:
            values: Non-zeros of the documents, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            label_indices: Labels of the documents, [label nnz].
            label_indptr: Start of the labels of each document, [N + 1].
            sparse_grad: As in `forward`.
            validate: As in `forward`.
            dropout: As in `forward`.

        Returns:
            The scalar loss, averaged over documents and repetitions.

        Raises:
            TypeError: As in `forward`.
            ValueError: As in `forward`.

        Warns:
            UserWarning: DistributedDataParallel wraps the model, and the call bypassed the wrapper.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=0)
            >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
            >>> Y = torch.tensor([7]), torch.tensor([0, 1])
            >>> round(model.loss(*X, *Y).item(), 4)  # log 8 for the bucket of label 7, and 7 log(8 / 7)
            3.0142
        """
        if not torch.compiler.is_compiling() and is_distributed():
            check_wrapper(self, sparse_grad)
        weight, bias, labels = self.bucket_weight, self.bucket_bias, (label_indices, label_indptr)
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            return F.linear_bucket_bce(*X, weight, bias, *labels, self.hash, sparse_grad, validate=validate)
        hidden = self.encode(
            values, indices, indptr, sparse_grad=sparse_grad, validate=validate, dropout=dropout
        )
        return F.bucket_bce(hidden, weight, bias, *labels, self.hash, validate=validate)

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
        """Return the logits of the R buckets of chosen labels, without computing any other bucket.

        These logits are the votes of the repetitions for a label.

        Args:
            values: Non-zeros of the documents, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            labels: [m], the same for every document, or [N, m].
            validate: As in `forward`.
            dropout: As in `forward`.

        Returns:
            [N, m, R].

        Raises:
            TypeError: As in `forward`.
            ValueError: As in `forward`, or a label is outside [0, L).

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
            >>> model.label_logits(*X, torch.tensor([7, 9, 11])).shape
            torch.Size([1, 3, 8])
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
        """Return the scores of chosen labels.

        The scores are differentiable with respect to the documents' values and the parameters.

        Args:
            values: Non-zeros of the documents, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            labels: [m], the same for every document, or [N, m].
            score: "logit" is the mean of the R bucket logits. "model" is the model's own merge.
            validate: As in `forward`.
            dropout: As in `forward`.

        Returns:
            [N, m].

        Raises:
            TypeError: As in `forward`.
            ValueError: As in `forward`, a label is outside [0, L), or `score` is unknown.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, 8, 8, hidden_size=0, merge="mean_prob")
            >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
            >>> model.label_scores(*X, torch.tensor([7]), score="model")  # an untrained model: 1 / B
            tensor([[0.1250]], grad_fn=<_MergeScoresBackward>)
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
        precision: str = "float32",
    ) -> tuple[Tensor, Tensor]:  # scores [N, k], labels [N, k]
        """Return the exact k best labels of one batch of documents by the model's merge.

        The scores are differentiable.

        Args:
            values: Non-zeros of the documents, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            k: The number of labels, from 0 to L.
            validate: As in `forward`.
            dropout: As in `forward`.
            precision: As in `forward`. The decode is exact for the bucket scores of either precision.

        Returns:
            Scores [N, k] and labels [N, k], best first.

        Raises:
            TypeError: As in `forward`.
            ValueError: As in `forward`, or `k` is out of range.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
            >>> scores, labels = model.topk(*X, k=3)
            >>> labels.shape
            torch.Size([1, 3])
        """
        X = (values, indices, indptr)
        if precision == "bfloat16":
            best = _prediction.rounded_topk(self, X, k, validate, dropout)
            if best is not None:
                return best
        options = _prediction.precision_option(precision)
        logits = self(*X, validate=validate, dropout=dropout, **options)
        return MODEL_MERGES[self.merge].topk(logits, self.hash, k, overwrite=self._owns_logits())

    def predict(
        self, X: Any, k: int | None = None, batch_size: int | None = None, precision: str = "float32"
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the k best labels of each document, without dropout and gradients, in batches.

        The model's mode and all other state stay as they are. Several threads may call this method at the
        same time, even while another thread trains the model.

        Args:
            X: [N, D], a SciPy sparse matrix, a NumPy array or a torch tensor. [D] is one document. Duplicates
                are summed. NaN and infinities are refused.
            k: The number of labels, from 0 to L. None means 5, or L if there are fewer labels.
            batch_size: Documents in a batch. None takes at most 256, with bucket scores within 256 MiB.
                Scores of different batch sizes may differ in their last bits, because BLAS sums in another
                order for each size.
            precision: "float32" or "bfloat16". bfloat16 rounds the bucket weights, once for a call, and the
                hidden units. Products are summed in float32. It is meant for the tensor cores of a GPU. The
                CPU computes by the same definition, but slower than in float32. Explanations, attacks and
                certificates always compute in float32.

        Returns:
            Scores [N, k] float32 and labels [N, k] int64 as NumPy arrays, best first. Scores are on the scale
            of the model's merge, such as mean log-probabilities for `mean_logprob`.

        Raises:
            TypeError: `X` is none of these, or bfloat16 was asked of a float64 model.
            ValueError: `X` does not have D columns or is not finite. `k` is out of range. The precision is
                unknown. NaN or infinite parameters made scores NaN or infinite.
            MemoryError: Memory does not suffice. On a GPU the error is `torch.OutOfMemoryError`.

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> X = scipy.sparse.csr_matrix(np.eye(4, dtype=np.float32))
            >>> model = mach_ext.MACH(4, 4, 8, 4, hidden_size=0, merge="mean_logprob")
            >>> mach_ext.fit_svm(model, X, X, progress=False)  # document n has label n
            >>> scores, labels = model.predict(X, k=2)
            >>> labels[:, 0]
            array([0, 1, 2, 3])
        """
        return _prediction.predict(self, X, k, batch_size, precision)

    def drop_features(self, values: Tensor, *, dropout: Dropout = None) -> Tensor:
        """Apply feature dropout to the values of documents.

        Args:
            values: Non-zeros of the documents, [nnz].
            dropout: As in `forward`.

        Returns:
            The values, [nnz]. Those that are dropped are 0, and the others are scaled up.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, 8, 8, hidden_size=4, feature_dropout=0.5)
            >>> kept = model.drop_features(torch.ones(1000), dropout=torch.Generator().manual_seed(0))
            >>> kept.unique()
            tensor([0., 2.])
        """
        return drop(values, self.feature_dropout, dropout, self.training)

    def _owns_logits(self, inputs: bool = False) -> bool:
        """Return whether nobody but `topk` sees the logits of `forward`, so that it may overwrite them.

        With `inputs`, also whether nobody sees the arguments of `forward`.
        """
        of_all = torch.nn.modules.module
        hooks = self._forward_hooks or of_all._global_forward_hooks
        if inputs:
            hooks = hooks or self._forward_pre_hooks or of_all._global_forward_pre_hooks
        forward, call = getattr(self.forward, "__func__", None), type(self).__call__
        return forward is _FORWARD and call is nn.Module.__call__ and not hooks

    # -------------------------------------------------------------------------------------- model folder

    def configuration(self) -> dict[str, Any]:
        """Return the constructor arguments, except a hash of your own.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=0)
            >>> copy = mach_ext.MACH(**model.configuration())
            >>> copy.configuration()["hidden_size"]
            0
        """
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

    @renamed_argument("step", "quantization_step")
    @memory_errors("free memory first, or make a smaller model")
    def save(self, path: str | os.PathLike[str], quantization_step: float | None = None) -> None:
        """Write the model into a folder: `model.json` and the weights that it names (safetensors).

        A kill at any moment leaves a whole model. The weights go to a file of a new name. `model.json` is
        then replaced in one step. Only after that are the former model's files removed. A failure leaves the
        folder's former model as it was. The folder is locked meanwhile. Another save is waited for, and files
        that a killed save left are removed.

        With a quantization step, the file is 10 to 20 times smaller (step 0.5, documents of length about 1).
        Each weight w that takes the documents is rounded to the nearest multiple w' of the step. Each weight
        that takes hidden units is rounded to a multiple of step / 64. zlib compresses the result. Biases stay
        as they are.

        For the first kind of weight, |w - w'| <= step / 2. In linear MACH a label's mean logit moves by at
        most step / 2 * sum |x|. Float32 rounding comes on top. `load` needs no flag and returns w' as
        float32. If that model is saved again with this step, the same bytes are written. Only the file is
        small. Each process that loads it holds all weights as float32, in memory of its own.

        Args:
            path: The folder. It is made if it does not exist.
            quantization_step: None writes the weights as they are. A number above 0 compresses them.

        Raises:
            TypeError: The step is not a number.
            ValueError: A weight is not finite, or its dtype is none of float16, bfloat16, float32 and
                float64. The step is not above 0 and finite, it rounds all of a weight to 0, or a weight is
                above 32,767 steps. An attachment is not bytes or has no plain name. Another run is training
                in the folder.
            OSError: The folder cannot be written. Nothing of the new model is left.
            MemoryError: Memory does not suffice.

        Example:
            >>> import tempfile, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> folder = tempfile.mkdtemp()
            >>> model.save(folder, quantization_step=0.01)
            >>> bool((mach_ext.load(folder).encoder_weight - model.encoder_weight).abs().max() < 0.00501)
            True
        """
        _model_folder.save(self, Path(path), quantization_step)


_FORWARD = MACH.forward  # Code of others may replace it in the class.


class FirstLayer(NamedTuple):
    """The weights that take the documents, in C parts.

    An encoder is a single part, so C = 1. In linear MACH each repetition is a part, so C = R.

    Attributes:
        weight: [C, D, M], the weights.
        bias: [C, M], the biases.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=0)
        >>> weight, bias = mach_ext.nn.first_layer(model)
        >>> weight.shape, bias.shape
        (torch.Size([8, 10, 6]), torch.Size([8, 6]))
    """

    weight: Tensor  # [C, D, M]
    bias: Tensor  # [C, M]


def first_layer(model: MACH) -> FirstLayer:
    """Return detached views of the first layer, which give pre-activations [N, C, M] of documents.

    An encoder is one part. It is M = H1 columns wide, or R * H1 if the encoders are independent. Unit h of
    repetition r is then column r * H1 + h. In linear MACH each repetition is a part, M = B columns wide.

    Args:
        model: The model.

    Returns:
        The weight [C, D, M] and the bias [C, M].

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4)
        >>> mach_ext.nn.first_layer(model).weight.shape
        torch.Size([1, 10, 4])
    """
    if model.is_linear:
        return FirstLayer(model.bucket_weight.detach(), model.bucket_bias.detach())
    return FirstLayer(model.encoder_weight.detach()[None], model.encoder_bias.detach()[None])


@memory_errors("free memory first, or make a smaller model")
def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> MACH:
    """Read a model folder that `MACH.save` wrote, and return the model in eval mode.

    On the CPU, weights that were saved uncompressed stay in their file, which is mapped. Processes that load
    the same model share this memory until they change it. Compressed weights become memory of each process.

    Nothing is allocated before the sizes in `model.json` were compared with the other files. No lock is
    taken, so this function may run while another process saves into the folder.

    Args:
        path: The folder.
        device: Where to put the model.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: Something is missing, truncated, edited or of another format. The message names the file
            and the rule.
        MemoryError: Memory does not suffice.

    Example:
        >>> import tempfile, mach_ext
        >>> folder = tempfile.mkdtemp()
        >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4).save(folder)
        >>> mach_ext.load(folder).num_labels
        20
    """
    return _model_folder.load(MACH, Path(path), device)
