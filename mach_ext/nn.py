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
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mach_ext import _model_folder, _prediction
from mach_ext import functional as F
from mach_ext._deprecation import renamed_argument
from mach_ext._distributed import check_wrapper, is_distributed
from mach_ext._dropout import Dropout as Dropout
from mach_ext._encoder import _Encoder
from mach_ext._first_layer import FirstLayer as FirstLayer
from mach_ext._first_layer import first_layer as first_layer
from mach_ext._hashed_labels import _HashedLabels
from mach_ext._memory import check_memory, memory_errors
from mach_ext._model_checks import ENCODERS as ENCODERS
from mach_ext._model_checks import USUAL_K as USUAL_K
from mach_ext._model_checks import (
    check_configuration,
    check_score,
    check_weights_fit,
    checked_probability,
    is_of_other_hash,
)
from mach_ext._model_checks import check_finite as check_finite
from mach_ext._model_checks import check_parameters as check_parameters
from mach_ext._model_checks import check_scores as check_scores
from mach_ext._model_checks import checked_k as checked_k
from mach_ext._model_checks import evaluating as evaluating
from mach_ext._model_folder import STEP as STEP
from mach_ext._model_folder import files_of as files_of
from mach_ext._model_folder import is_compressed as is_compressed
from mach_ext._model_folder import save_tensors as save_tensors
from mach_ext._model_folder.record import of_hidden_units
from mach_ext._prediction import PRECISIONS as PRECISIONS
from mach_ext._prediction import other_precision as other_precision
from mach_ext._prediction import own_precision as own_precision
from mach_ext._prediction import precision_option as precision_option
from mach_ext._prediction import predict_batch as predict_batch
from mach_ext.hashing import LabelHash
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES as MODEL_MERGES
from mach_ext.merges import SCALES as SCALES
from mach_ext.merges import Merge as Merge
from mach_ext.quantized import QuantizedMACH as QuantizedMACH
from mach_ext.quantized import quantize as quantize
from mach_ext.quantized import unpack

__all__ = ["ENCODERS", "MACH", "FirstLayer", "first_layer", "linear_model", "load"]


class MACH(_Encoder, _HashedLabels):
    """Merged-Averaged Classifiers via Hashing (Medini et al., NeurIPS 2019).

    R hash functions send L labels to B buckets each. An encoder turns a sparse document into hidden units. R
    classifiers then give B bucket logits each. The score of a label is merged from its R buckets. The number
    of parameters grows with D * H + R * H * B and not with L.

    With `hidden_size=0` there is no encoder. This is *linear MACH*: R linear bucket classifiers act on the
    features, with weights [R, D, B].

    The parameters are:

    * `encoder_weight` [D, H] or [D, R * H], and `encoder_bias`. This weight takes the documents and suits
      sparse gradients. With E dense features it has D + E rows, and so has `bucket_weight` in linear MACH.
    * `hidden_weight` and `hidden_bias`, if there is a second hidden layer.
    * those of `head`, a `mach_ext.MACHHead`: `bucket_weight` [R, H, B] and `bucket_bias` [R, B]. In linear
      MACH `bucket_weight` is [R, D, B] and takes the documents. The head also holds `logit_adjustment`,
      `hash` and `merge`. All five are attributes of the model as well.

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
        num_dense: E, the number of dense features beside the D sparse ones, such as the size of a sentence
            embedding. Documents are then a `mach_ext.data.HybridMatrix`. The model centres and scales the
            dense features by those of the first `fit`, as `scale_dense` says.

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

    head: MACHHead

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
        num_dense: int = 0,
    ) -> None:
        super().__init__()
        num_features = F.as_int("MACH", "num_features", num_features)
        num_dense = F.as_int("MACH", "num_dense", num_dense)
        num_labels = F.as_int("MACH", "num_labels", num_labels)
        num_repetitions = F.as_int("MACH", "num_repetitions", num_repetitions)
        num_buckets = F.as_int("MACH", "num_buckets", num_buckets)
        seed = F.as_int("MACH", "seed", seed)
        given = tuple(hidden_size) if isinstance(hidden_size, (tuple, list)) else (hidden_size,)
        sizes = tuple(F.as_int("MACH", "hidden_size", size) for size in given)
        feature_dropout = checked_probability("feature_dropout", feature_dropout)
        hidden_dropout = checked_probability("hidden_dropout", hidden_dropout)
        check_configuration(num_features, num_dense, sizes, encoder, merge, feature_dropout, hidden_dropout)
        self.num_features, self.num_dense = num_features, num_dense
        self.hidden_sizes = tuple(size for size in sizes if size)  # () for linear MACH
        self.encoder = encoder
        self.seed = seed
        self.feature_dropout = feature_dropout
        self.hidden_dropout = hidden_dropout
        # Files that belong to the model, by name. `save` and `load` keep them with the weights.
        self.attachments: dict[str, bytes] = {}
        R, B = num_repetitions, num_buckets
        hash = LabelHash(num_labels, B, R, seed) if hash is None else hash
        if (shape := (hash.num_labels, hash.num_buckets, hash.num_repetitions)) != (num_labels, B, R):
            raise ValueError(f"MACH: hash has (L, B, R) = {shape}, expected {(num_labels, B, R)}")
        is_independent = encoder == "independent" and not self.is_linear
        copies = R if is_independent else 1
        check_weights_fit(self.num_columns, R, B, self.hidden_sizes, copies)
        self._make_scaling()
        width = self._make_layers(copies)
        device = torch.get_default_device()
        with torch.device("meta"):  # Weights are drawn in one go, the encoder's first.
            head = MACHHead(width, num_labels, R, B, merge, seed, hash, is_independent)
        self.head = _in_memory(head, device)
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        """Give the head what is the head's. A head may take the place of one that fits the same encoder."""
        if name in _OF_HEAD:
            setattr(self.head, name, value)
            return
        former = self.__dict__.get("_modules", {}).get("head") if name == "head" else None
        if isinstance(former, MACHHead) and isinstance(value, MACHHead):
            expected, given = former._hidden_shape, value._hidden_shape
            if given != expected:
                raise ValueError(f"MACH: head must take hidden units {expected}, got a head of {given}")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Return what is the head's."""
        return getattr(self.head, name) if name in _OF_HEAD else super().__getattr__(name)

    @property
    def hash_fingerprint(self) -> Tensor:
        """The fingerprint of the label hash that the weights belong to, as uint8 characters.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> bytes(model.hash_fingerprint.tolist()).decode()
            'L=20 B=8 R=8 seed=0'
        """
        return self.hash.get_extra_state()

    def extra_repr(self) -> str:
        """Return the sizes and settings that `print(model)` shows.

        Example:
            >>> import mach_ext
            >>> print(mach_ext.MACH(10, 20, 8, 6, hidden_size=(4, 3)).extra_repr()[:54])
            num_features=10, num_labels=20, num_repetitions=8, num
        """
        hidden = "x".join(map(str, self.hidden_sizes)) or "0 (linear)"
        dense = f"num_dense={self.num_dense}, " if self.num_dense else ""
        return (
            f"num_features={self.num_features}, {dense}num_labels={self.num_labels}, "
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
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        self._draw_layers(generator)
        if self.is_linear:
            self.bucket_weight.zero_()
            self.head.reset_biases()
        else:
            self.head.reset_parameters(generator)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        """Take former names, and refuse weights of another label hash before anything is copied."""
        for former, name in _FORMER_NAMES.items():
            if (value := state_dict.pop(prefix + former, None)) is not None:
                state_dict.setdefault(f"{prefix}head.{name}", value)
        if not is_of_other_hash(self.hash, state_dict, f"{prefix}head."):
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    @memory_errors("pass fewer documents at a time")
    def forward(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        label_indices: Tensor | None = None,  # [label nnz]
        label_indptr: Tensor | None = None,  # [N + 1]
        *,
        dense: Tensor | None = None,  # [N, E]
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
            dense: The dense features of a model with `num_dense=E`, [N, E]. They are centred and scaled here.
                None means that the documents have D + E columns already, as `join` returns them.
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
            return self.loss(*X, *Y, dense=dense, sparse_grad=sparse_grad, validate=validate, dropout=dropout)
        values, indices, indptr = X = self.join_tensors(*X, dense, validate)
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            return F.bucket_forward(
                *X, None, None, self.bucket_weight, self.bucket_bias, sparse_grad,
                validate=validate, precision=precision,
            )  # fmt: skip
        hidden = self.encode(*X, sparse_grad=sparse_grad, validate=validate, dropout=dropout)
        logits: Tensor = self.head(hidden, precision=precision)
        return logits

    @memory_errors("pass fewer documents at a time")
    def loss(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        label_indices: Tensor,  # [label nnz]
        label_indptr: Tensor,  # [N + 1]
        *,
        dense: Tensor | None = None,  # [N, E]
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
            dense: As in `forward`.
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
            call = "ddp(values, indices, indptr, label_indices, label_indptr)"
            check_wrapper("MACH.loss", self, call, sparse_grad)
        labels = (label_indices, label_indptr)
        values, indices, indptr = self.join_tensors(values, indices, indptr, dense, validate)
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            weight, bias = self.bucket_weight, self.bucket_bias
            return F.linear_bucket_bce(*X, weight, bias, *labels, self.hash, sparse_grad, validate=validate)
        hidden = self.encode(
            values, indices, indptr, sparse_grad=sparse_grad, validate=validate, dropout=dropout
        )
        loss: Tensor = self.head(hidden, labels, validate=validate)
        return loss

    @memory_errors("pass fewer documents at a time or fewer labels")
    def label_logits(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        labels: Tensor,  # [m] or [N, m]
        *,
        dense: Tensor | None = None,  # [N, E]
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
            dense: As in `forward`.
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
        values, indices, indptr = self.join_tensors(values, indices, indptr, dense, validate)
        if self.is_linear:
            X = (self.drop_features(values, dropout=dropout), indices, indptr)
            weight, bias = self.bucket_weight, self.bucket_bias
            return F.linear_label_logits(*X, weight, bias, self.hash, labels, validate=validate)
        hidden = self.encode(values, indices, indptr, validate=validate, dropout=dropout)
        return self.head.label_logits(hidden, labels, validate=validate)

    @memory_errors("pass fewer documents at a time or fewer labels")
    def label_scores(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        labels: Tensor,  # [m] or [N, m]
        score: str = "logit",
        *,
        dense: Tensor | None = None,  # [N, E]
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
            dense: As in `forward`.
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
        check_score("MACH.label_scores", score)
        X = self.join_tensors(values, indices, indptr, dense, validate)
        logits = self.label_logits(*X, labels, validate=validate, dropout=dropout)
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
        dense: Tensor | None = None,  # [N, E]
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
            dense: As in `forward`.
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
        X = self.join_tensors(values, indices, indptr, dense, validate)
        if precision == "bfloat16" and not self.is_linear and self._owns_logits(inputs=True):
            return self.head.topk(self.encode(*X, validate=validate, dropout=dropout), k, precision=precision)
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
                are summed. NaN and infinities are refused. A model with dense features takes a
                `mach_ext.data.HybridMatrix`. A matrix [N, D + E] is taken as what `join` returned, so its
                last E columns must be centred and scaled already.
            k: The number of labels, from 0 to L. None means 5, or L if there are fewer labels.
            batch_size: Documents in a batch. None takes at most 256, with bucket scores within 256 MiB.
                Scores of different batch sizes may differ in their last bits, because BLAS sums in another
                order for each size.
            precision: "float32", "bfloat16" or "int8". Explanations, attacks and certificates always compute
                in float32.

                * bfloat16 rounds the bucket weights, once for a call, and the hidden units. Products are
                  summed in float32. It is meant for the tensor cores of a GPU. The CPU computes by the same
                  definition, but slower than in float32.
                * int8 is for the CPU. It rounds all weights, once for a call, as `mach_ext.quantize` does.
                  Keep what that function returns if you predict often.

        Returns:
            Scores [N, k] float32 and labels [N, k] int64 as NumPy arrays, best first. Scores are on the scale
            of the model's merge, such as mean log-probabilities for `mean_logprob`.

        Raises:
            TypeError: `X` is none of these, or bfloat16 or int8 was asked of a float64 model.
            ValueError: `X` does not have D columns or is not finite. `k` is out of range. The precision is
                unknown, or is int8 on a GPU. NaN or infinite parameters made scores NaN or infinite.
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
        if precision == "int8":
            return quantize(self).predict(X, k, batch_size)
        return _prediction.predict(self, X, k, batch_size, precision)

    def _owns_logits(self, inputs: bool = False) -> bool:
        """Return whether nobody but `topk` sees the logits of `forward`, so that it may overwrite them.

        With `inputs`, also whether nobody sees the arguments of `forward`.
        """
        alone = _prediction.owns_logits(self, _FORWARD, inputs)
        return alone and (self.is_linear or self.head.owns_logits())

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
            **({"num_dense": self.num_dense} if self.num_dense else {}),
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

        Dense features are a part of x, centred and scaled. Their sum |x| is about 16 for E = 384 and length
        1, but their errors are of either sign. On wordnet with embeddings, step 0.5 on their rows changed
        P@1, 3 and 5 by at most 0.1 points.

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
        _model_folder.save("MACH.save", self, Path(path), quantization_step)


def _in_memory(head: MACHHead, device: torch.device) -> MACHHead:
    """Give a head on the meta device memory without contents.

    `to_empty` does so, too, but it first imports SymPy, which takes a second.
    """
    head.bucket_weight = nn.Parameter(torch.empty(head.bucket_weight.shape, device=device))
    head.bucket_bias = nn.Parameter(torch.empty(head.bucket_bias.shape, device=device))
    head.logit_adjustment = torch.zeros(head.bucket_bias.shape, device=device)
    if device.type != "meta":
        head.hash = head.hash.to(device)
    return head


_FORWARD = MACH.forward  # Code of others may replace it in the class.
_OF_HEAD = {"bucket_weight", "bucket_bias", "logit_adjustment", "hash", "merge"}
# Names in the state of a model of before it had a head, and what the head calls them.
_FORMER_NAMES = {
    "bucket_weight": "bucket_weight",
    "bucket_bias": "bucket_bias",
    "logit_adjustment": "logit_adjustment",
    "hash.fingerprint": "hash.fingerprint",
    "hash_fingerprint": "hash.fingerprint",
}


def linear_model(head: MACHHead) -> MACH:
    """Return the linear MACH that a head is, with the hidden units as its features.

    It shares the head, so a change of either is a change of both. Functions for models then work for the
    head: its documents are matrices [N, H] of hidden units.

    Args:
        head: A head whose hidden units are shared by the repetitions.

    Raises:
        TypeError: The argument is not a `MACHHead`.
        ValueError: Each repetition has hidden units of its own.

    Example:
        >>> import torch, mach_ext
        >>> head = mach_ext.MACHHead(4, 20, num_repetitions=8, num_buckets=6)
        >>> hidden = torch.randn(3, 4)
        >>> scores, labels = mach_ext.nn.linear_model(head).predict(hidden, k=2)
        >>> labels.tolist() == head.topk(hidden, k=2)[1].tolist()
        True
    """
    if not isinstance(head, MACHHead):
        raise TypeError(f"linear_model: head must be a mach_ext.MACHHead, got {type(head).__name__}")
    if head.per_repetition:
        raise ValueError(
            "linear_model: hidden units must be shared by the repetitions, got per_repetition=True"
        )
    sizes = (head.in_features, head.num_labels, head.num_repetitions, head.num_buckets)
    with torch.device("meta"):  # The head takes the place of its own.
        model = MACH(*sizes, hidden_size=0, merge=head.merge, seed=head.seed, hash=head.hash)
    model.head, model.attachments = head, head.attachments
    model.training = head.training  # `eval` and `train` would change the head.
    return model


def check_trainable(op: str, model: Any) -> None:
    """Refuse what is no model. A head is to be passed as a linear MACH.

    Raises:
        TypeError: The argument is not a `MACH`.
    """
    if not isinstance(model, MACH):
        hint = "; pass mach_ext.nn.linear_model(head)" if isinstance(model, MACHHead) else ""
        hint = "; pass mach_ext.nn.in_float32(model)" if isinstance(model, QuantizedMACH) else hint
        raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}{hint}")


def check_model(op: str, model: Any) -> MACH:
    """Return a model. A head becomes the linear MACH that it is on its hidden units.

    Raises:
        TypeError: The argument is neither a `MACH` nor a `MACHHead`.
        ValueError: Each repetition of the head has hidden units of its own.
    """
    if isinstance(model, MACHHead):
        if model.per_repetition:
            raise ValueError(
                f"{op}: model must be a head whose repetitions share their hidden units, "
                "got per_repetition=True"
            )
        return linear_model(model)
    if not isinstance(model, MACH):
        hint = "; pass mach_ext.nn.in_float32(model)" if isinstance(model, QuantizedMACH) else ""
        raise TypeError(
            f"{op}: model must be a mach_ext.MACH or a mach_ext.MACHHead, got {type(model).__name__}{hint}"
        )
    return model


AnyMACH: TypeAlias = MACH | QuantizedMACH  # what a run predicts with


def in_float32(model: AnyMACH) -> MACH:
    """Return the model in float32 that has the weights of a quantized model: scale times number.

    Its hidden units are not rounded, so its scores differ a little. Explanations and attacks take it.

    Args:
        model: A quantized model. Any other model is returned as it is.

    Returns:
        The model in float32, in eval mode.

    Raises:
        MemoryError: Memory does not suffice.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
        >>> again = mach_ext.nn.in_float32(mach_ext.quantize(model))
        >>> bool((again.encoder_weight - model.encoder_weight).abs().max() < 0.002)
        True
    """
    if isinstance(model, MACH):
        return model
    configuration = model.configuration()
    shapes, packed = _model_folder.parameter_shapes(configuration), of_hidden_units(configuration)
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    check_memory("in_float32: the weights", size, "free memory first")
    tensors, weights = model.stored(), [name for name in shapes if name.endswith("weight")]
    scales = {name: tensors.pop(name.replace("weight", "scale")) for name in weights}
    for name, tensor in tensors.items():  # Nothing is shared, so that the model can be trained.
        if name in packed:
            tensors[name] = unpack(tensor, shapes[name]).float() * scales[name].unsqueeze(1)
        elif name in weights:
            tensors[name] = tensor.float() * scales[name].unsqueeze(-1)
        else:
            tensors[name] = tensor.clone()
    with torch.device("meta"):  # Its parameters become these tensors.
        wide = MACH(**configuration, hash=model.hash)
    wide.load_parameters(tensors, assign=True)
    wide.attachments = dict(model.attachments)
    return wide.eval()


def rounded_model(model: AnyMACH, precision: str | None) -> Any:
    """Return a model whose weights are rounded once for predictions in a precision.

    Args:
        model: The model.
        precision: A precision as `MACH.predict` takes it. None is the model's own.

    Returns:
        For int8 a `QuantizedMACH`, for bfloat16 a model that shares all but the bucket weight, else the model
        itself.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
        >>> mach_ext.nn.rounded_model(model, "int8")
        QuantizedMACH(num_features=10, num_labels=20, num_repetitions=8, num_buckets=8, hidden_size=[4])
    """
    return quantize(model) if precision == "int8" else _prediction.rounded_model(model, precision)


@memory_errors("free memory first, or make a smaller model")
def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """Read a folder that `save` of a model or head wrote, and return the model or head in eval mode.

    On the CPU, weights that were saved uncompressed stay in their file, which is mapped. Processes that load
    the same model share this memory until they change it. Compressed weights become memory of each process.

    Nothing is allocated before the sizes in `model.json` were compared with the other files. No lock is
    taken, so this function may run while another process saves into the folder.

    Args:
        path: The folder.
        device: Where to put the model.

    Returns:
        The `MACH`, the `MACHHead` or the `QuantizedMACH`, in eval mode.

    Raises:
        ValueError: Something is missing, truncated, edited or of another format. The message names the file
            and the rule. Or a quantized model was to go to a GPU.
        MemoryError: Memory does not suffice.

    Example:
        >>> import tempfile, mach_ext
        >>> folder = tempfile.mkdtemp()
        >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4).save(folder)
        >>> mach_ext.load(folder).num_labels
        20
    """
    kinds = {"model": MACH, "head": MACHHead, "int8": QuantizedMACH}
    return _model_folder.load(kinds, Path(path), device)
