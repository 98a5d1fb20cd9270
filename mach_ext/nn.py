"""The MACH model: an encoder of sparse documents, R bucket classifiers, a merge."""

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
from mach_ext._prediction import predict_batch as predict_batch
from mach_ext.hashing import LabelHash
from mach_ext.merges import MODEL_MERGES as MODEL_MERGES
from mach_ext.merges import SCALES as SCALES
from mach_ext.merges import Merge as Merge


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
        check_configuration(num_features, sizes, encoder, merge, feature_dropout, hidden_dropout)
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
            tau: Within -100 and 100. 0.1 to 0.5 pays; docs/results/accuracy.md.

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
        by_label = -tau * np.log1p(counts)
        by_label -= np.average(by_label, weights=counts + 1)  # the constant that changes scores least
        return torch.from_numpy(self.hash.spread(by_label, np.sqrt(counts + 1))).to(self.logit_adjustment)

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
        return _prediction.predict(self, X, k, batch_size)

    def drop_features(self, values: Tensor, *, dropout: Dropout = None) -> Tensor:
        """Feature dropout of values [nnz]; `dropout` as in `forward`."""
        return drop(values, self.feature_dropout, dropout, self.training)

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

    @renamed_argument("step", "quantization_step")
    @memory_errors("free memory first, or make a smaller model")
    def save(self, path: str | os.PathLike[str], quantization_step: float | None = None) -> None:
        """Writes the model into folder `path`: `model.json` and the weights it names (safetensors).

        Safe at any moment: weights go to a file of a new name, `model.json` is replaced in one step, and the
        former model's files are removed only then. A failure leaves the folder's former model as it was. The
        folder is locked meanwhile. Another save is waited for, and what a killed one left is removed.

        Args:
            path: Folder, made where it does not exist.
            quantization_step: None: the weights as they are. A number, the step: a small file (10 to 20 times
                smaller at 0.5, for documents of about unit length). Each weight w that takes the documents
                becomes the nearest multiple w' of it, each that takes hidden units of step / 64, and what is
                left is zlib's; so |w - w'| <= step / 2, and for linear MACH a label's mean logit moves by at
                most step / 2 * sum |x|. Float32 rounding comes on top. Biases stay. `load` needs no flag,
                gives w' as float32, and saving that again with this step writes the same bytes. Only the file
                is small: each process that loads it holds all weights as float32, in memory of its own.

        Raises:
            TypeError: The step is not a number.
            ValueError: A weight is not finite, or of another dtype than float16, bfloat16, float32, float64.
                The step is not above 0 and finite, rounds all of a weight to 0, or a weight is above 32,767
                steps. An attachment is not bytes or has no plain name. Another run is training in the folder.
            OSError: The folder cannot be written; nothing of the new model is left.
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
