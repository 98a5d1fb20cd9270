"""The MACH model: an encoder of sparse documents, R bucket classifiers, a merge."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mach_ext import compression
from mach_ext import functional as F
from mach_ext.data import atomic_path, check_csr, iter_on_device, write_json
from mach_ext.hashing import LabelHash

# What a model ranks by: a transform of the bucket logits, then a merge over the R repetitions.
MODEL_MERGES = {
    "mean_logit": (None, "mean"),
    "mean_prob": (torch.sigmoid, "mean"),
    "mean_logprob": (nn.functional.logsigmoid, "mean"),
    "min_prob": (torch.sigmoid, "min"),
    "median_prob": (torch.sigmoid, "median"),
}
# The same in words, for screens and pages.
SCALES = {
    "mean_logit": "mean logit",
    "mean_prob": "mean probability",
    "mean_logprob": "mean log-probability",
    "min_prob": "lowest probability",
    "median_prob": "median probability",
}
ENCODERS = ("shared", "independent")
USUAL_K = 5  # labels of a document where nothing else is asked for
# Of the model folder. 1 has the weights as they are, 2 has them compressed. 3, which `save` writes, has
# either, and its attachments also say how documents become rows.
_FORMATS = (1, 2, 3)
# A good step for `save`: within 0.07 points of P@1, 3, 5 on dev of two datasets (docs/accuracy.md).
STEP = 0.5
_FINER = 64  # Weights that take hidden units, few beside the encoder's, get a step so much finer.
_WEIGHTS = re.compile(r"weights-[0-9a-f]{12}\.safetensors")
_SCORES_IN_MEMORY = 1 << 26  # bucket scores that predict holds at a time: 256 MiB of float32


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

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(num_features=1000, num_labels=5000, num_repetitions=8, num_buckets=64)
        >>> X = scipy.sparse.random(3, 1000, density=0.01, format="csr", dtype="float32")
        >>> scores, labels = model.predict(X, k=5)
        >>> labels.shape
        (3, 5)
    """

    hash_fingerprint: Tensor
    logit_adjustment: Tensor

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
        # Part of the state_dict: weights mean nothing without the label hash they were trained for.
        fingerprint = torch.frombuffer(bytearray(self.hash.fingerprint().encode()), dtype=torch.uint8)
        self.register_buffer("hash_fingerprint", fingerprint)
        # Files kept with the model, by name: what `save` writes beside the weights and `load` brings back.
        self.attachments: dict[str, bytes] = {}
        shape = (self.hash.num_labels, self.hash.num_buckets, self.hash.num_repetitions)
        if shape != (num_labels, num_buckets, num_repetitions):
            raise ValueError(
                f"MACH: hash has (L, B, R) = {shape}, expected {(num_labels, num_buckets, num_repetitions)}"
            )

        R, B, D = num_repetitions, num_buckets, num_features
        copies = R if encoder == "independent" else 1
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
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        for name, parameter in self.named_parameters():
            if name == "bucket_bias":
                parameter.fill_(-math.log(self.num_buckets - 1))
            elif name.endswith("_bias") or self.is_linear:
                parameter.zero_()
            else:
                std = 0.1 if name == "encoder_weight" else parameter.shape[-2] ** -0.5
                parameter.copy_(
                    torch.empty_like(parameter, device="cpu").normal_(0, std, generator=generator)
                )

    def _apply(self, fn: Any, recurse: bool = True) -> MACH:
        super()._apply(fn, recurse)
        self.hash = self.hash.to(self.bucket_bias.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        """Refuses weights of another label hash before anything is copied."""
        theirs = state_dict.get(f"{prefix}hash_fingerprint")
        if theirs is not None and not torch.equal(theirs.cpu(), self.hash_fingerprint.cpu()):
            name = bytes(theirs.tolist()).decode(errors="replace")
            errors.append(f"the weights are of label hash {name}, this model has {self.hash.fingerprint()}")
            return
        bias = state_dict.get(f"{prefix}bucket_bias")
        if bias is not None:  # of before there was an adjustment, or without one
            state_dict.setdefault(f"{prefix}logit_adjustment", torch.zeros_like(bias))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def load_parameters(self, tensors: dict[str, Tensor], assign: bool = False) -> None:
        """`load_state_dict` of the parameters alone, already known to be of this label hash."""
        self.load_state_dict({**tensors, "hash_fingerprint": self.hash_fingerprint}, assign=assign)

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

    def encode(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        *,
        sparse_grad: bool = False,
        validate: bool = True,
    ) -> Tensor:  # [N, H] or, with independent encoders, [N, R, H]
        """Hidden units that the bucket classifiers take. Not for linear MACH, which has none."""
        if self.is_linear:
            raise ValueError("MACH.encode: linear MACH (hidden_size=0) has no hidden layer")
        hidden = F.sparse_linear(
            self.drop_features(values),
            indices,
            indptr,
            self.encoder_weight,
            self.encoder_bias,
            "relu",
            sparse_grad,
            validate=validate,
        )
        return self.encode_hidden(hidden)

    def encode_hidden(self, hidden: Tensor) -> Tensor:
        """What `encode` does behind its sparse layer [N, H] or [N, R * H]: dropout, a second layer."""
        if self.encoder == "independent":
            hidden = hidden.unflatten(1, (self.num_repetitions, self.hidden_sizes[0]))
        hidden = nn.functional.dropout(hidden, self.hidden_dropout, self.training)
        if len(self.hidden_sizes) == 2:
            hidden = F.bucket_logits(hidden, self.hidden_weight, self.hidden_bias).relu()
            if self.encoder == "shared":
                hidden = hidden.squeeze(1)
            hidden = nn.functional.dropout(hidden, self.hidden_dropout, self.training)
        return hidden

    def forward(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        *,
        sparse_grad: bool = False,
        validate: bool = True,
    ) -> Tensor:  # [N, R, B]
        """Bucket logits of a batch of documents in CSR form.

        Errors and options as in `mach_ext.functional.sparse_linear`.
        """
        X = (values, indices, indptr)
        if self.is_linear:
            X = (self.drop_features(values), indices, indptr)
            return F.bucket_forward(
                *X, None, None, self.bucket_weight, self.bucket_bias, sparse_grad, validate=validate
            )
        hidden = self.encode(*X, sparse_grad=sparse_grad, validate=validate)
        return F.bucket_logits(hidden, self.bucket_weight, self.bucket_bias)

    def loss(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        label_indices: Tensor,  # [label nnz]
        label_indptr: Tensor,  # [N + 1]
        *,
        sparse_grad: bool = True,
        validate: bool = True,
    ) -> Tensor:  # scalar
        """Training loss (`mach_ext.functional.bucket_bce`); never holds [N, R, B].

        With `sparse_grad` the weight that takes the documents gets a row-sparse gradient, as `mach_ext.optim`
        wants it.
        """
        weight, bias, labels = self.bucket_weight, self.bucket_bias, (label_indices, label_indptr)
        if self.is_linear:
            X = (self.drop_features(values), indices, indptr)
            return F.linear_bucket_bce(*X, weight, bias, *labels, self.hash, sparse_grad, validate=validate)
        hidden = self.encode(values, indices, indptr, sparse_grad=sparse_grad, validate=validate)
        return F.bucket_bce(hidden, weight, bias, *labels, self.hash, validate=validate)

    def label_logits(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        labels: Tensor,  # [m] or [N, m]
        *,
        validate: bool = True,
    ) -> Tensor:  # [N, m, R]
        """Logits of the labels' R buckets, how each repetition votes; no other bucket is computed."""
        weight, bias = self.bucket_weight, self.bucket_bias
        if self.is_linear:
            X = (self.drop_features(values), indices, indptr)
            return F.linear_label_logits(*X, weight, bias, self.hash, labels, validate=validate)
        hidden = self.encode(values, indices, indptr, validate=validate)
        return F.label_logits(hidden, weight, bias, self.hash, labels, validate=validate)

    def label_scores(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        labels: Tensor,  # [m] or [N, m]
        score: str = "logit",
        *,
        validate: bool = True,
    ) -> Tensor:  # [N, m]
        """Scores of chosen labels, differentiable to the documents' values and to the parameters.

        Args:
            values, indices, indptr: Documents in CSR form.
            labels: [m], the same for every document, or [N, m].
            score: "logit": mean of the R bucket logits; "model": by the model's own merge.
            validate: As in `mach_ext.functional.sparse_linear`.
        """
        if score not in ("logit", "model"):
            raise ValueError(f'MACH.label_scores: score must be "logit" or "model", got {score!r}')
        logits = self.label_logits(values, indices, indptr, labels, validate=validate)
        transform, merge = MODEL_MERGES["mean_logit" if score == "logit" else self.merge]
        return F.merge_repetitions(logits if transform is None else transform(logits), merge)

    def topk(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        k: int,
        *,
        validate: bool = True,
    ) -> tuple[Tensor, Tensor]:  # scores [N, k], labels [N, k]
        """The k best labels of each document by the model's merge, exactly; one batch, differentiable."""
        logits = self(values, indices, indptr, validate=validate)
        transform, merge = MODEL_MERGES[self.merge]
        return F.merge_topk(logits if transform is None else transform(logits), self.hash, k, merge)

    def predict(
        self, X: Any, k: int | None = None, batch_size: int | None = None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The k best labels of each document of a SciPy CSR matrix: eval mode, no gradients, in batches.

        Args:
            X: [N, D], any SciPy sparse matrix; duplicates are summed, NaN and infinities refused.
            k: 0 ... L; None: 5, or all L labels where there are fewer.
            batch_size: Documents at a time; None: as many as keep bucket scores within 256 MiB, at most 256.
                Scores may differ in their last bits with it: BLAS sums in an order of its own for each size.

        Returns:
            scores [N, k] float32 and labels [N, k] int64 (NumPy), best first. Scores are on the scale of the
            model's merge, such as mean log-probabilities for `mean_logprob`.

        Raises:
            TypeError: X is not sparse. ValueError: X has not D columns or is not finite; k out of range.
        """
        X, k = check_csr(X, "MACH.predict: X"), checked_k("MACH.predict", k, self.num_labels, least=0)
        if X.shape[1] != self.num_features:
            raise ValueError(f"MACH.predict: X must have D={self.num_features} columns, got shape {X.shape}")
        if batch_size is None:
            batch_size = predict_batch(self.num_repetitions, self.num_buckets)
        if batch_size < 1:
            raise ValueError(f"MACH.predict: batch_size must be at least 1, got {batch_size}")
        N = X.shape[0]
        scores = np.empty((N, k), np.float32)
        labels = np.empty((N, k), np.int64)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode(), memory_advice("MACH.predict", "lower batch_size", self):
                batches = iter_on_device(_batches(X, batch_size), self.bucket_bias.device)
                for start, values, indices, indptr in batches:
                    if self.bucket_weight.dtype == torch.float64:
                        values = values.double()
                    best, ids = self.topk(values, indices, indptr, k, validate=False)
                    scores[start : start + batch_size] = best.cpu().numpy()
                    labels[start : start + batch_size] = ids.cpu().numpy()
        finally:
            self.train(was_training)
        return scores, labels

    def drop_features(self, values: Tensor) -> Tensor:
        """Feature dropout, in training."""
        return nn.functional.dropout(values, self.feature_dropout, self.training)

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

    def save(self, path: str | os.PathLike[str], step: float | None = None) -> None:
        """Writes the model into folder `path`: `model.json` and the weights it names (safetensors).

        Safe at any moment: weights go to a file of a new name, `model.json` is replaced in one step, and old
        weights are removed only then. A failure leaves the folder's former model as it was.

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
            ValueError: step is not above 0 and finite; it rounds all of a weight to 0, or a weight is not
                finite or above 32,767 steps; an attachment is not bytes or has no plain name.

        Example:
            >>> import tempfile, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> folder = tempfile.mkdtemp()
            >>> model.save(folder, step=0.01)
            >>> bool((mach_ext.load(folder).encoder_weight - model.encoder_weight).abs().max() < 0.00501)
            True
        """
        folder = Path(path)
        for name, content in self.attachments.items():
            if not re.fullmatch(r"[\w-]+\.\w+", name) or not isinstance(content, bytes):
                raise ValueError(
                    f"MACH.save: an attachment must be bytes, named like labels.json, got {name!r}"
                )
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.named_parameters()}
        steps = {} if step is None else self._steps(step)
        if steps:
            tensors = {name: tensor.float() for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"MACH.save: {name}: must be finite and fit float32")
        for name, each in steps.items():
            try:
                tensors[name] = compression.encode(tensors[name], each)
            except ValueError as error:
                raise ValueError(f"MACH.save: {name}: {error}") from None
        if self.hash.seed is None:
            tensors["hash.buckets"] = self.hash.buckets.cpu()
        if self.logit_adjustment.any():
            tensors["logit_adjustment"] = self.logit_adjustment.to(tensors["bucket_bias"])
        folder.mkdir(parents=True, exist_ok=True)
        former = files_of(folder)
        digest = _digest(tensors)
        weights = f"weights-{digest[:12]}.safetensors"
        save_tensors(folder / weights, tensors)
        attached = {}
        for name, content in self.attachments.items():
            stem, dot, suffix = name.partition(".")
            attached[name] = f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}{dot}{suffix}"
            with atomic_path(folder / attached[name]) as temporary:
                temporary.write_bytes(content)
        record = {
            "format": _FORMATS[-1],
            "model": self.configuration(),
            "hash": {"kind": "table" if self.hash.seed is None else "seeded", "seed": self.hash.seed},
            "weights": {"file": weights, "sha256": digest} | ({"steps": steps} if steps else {}),
            "attachments": attached,
        }
        write_json(folder / "model.json", {**record, "sha256": _record_digest(record)})
        former |= {file.name for file in folder.iterdir() if _WEIGHTS.fullmatch(file.name)}
        for old in former - {weights, *attached.values()}:
            (folder / old).unlink(missing_ok=True)

    def _steps(self, step: float) -> dict[str, float]:
        """What each weight, but for biases, is rounded to multiples of."""
        if isinstance(step, bool) or not isinstance(step, (int, float, np.floating, np.integer)):
            raise TypeError(f"MACH.save: step must be None or a number, got {type(step).__name__}")
        if not 0 < step <= torch.finfo(torch.float32).max:
            raise ValueError(f"MACH.save: step must be None or a finite number above 0, got {step!r}")
        step = float(step)
        first = "bucket_weight" if self.is_linear else "encoder_weight"
        names = (name for name, _ in self.named_parameters() if name.endswith("weight"))
        return {name: step if name == first else step / _FINER for name in names}


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes safetensors, whole or not at all."""
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
    except SafetensorError as error:  # how that library reports a full disk
        raise OSError(f"{path}: cannot be written: {error}") from None


def is_compressed(folder: Path) -> bool:
    """Whether the model in a folder was saved with a step."""
    try:
        return "steps" in json.loads((folder / "model.json").read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def files_of(folder: Path) -> set[str]:
    """Names of the files that the model record in a folder owns; none where there is no readable record."""
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        names = {record["weights"]["file"], *record["attachments"].values()}
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def checked_k(op: str, k: int | None, num_labels: int, least: int = 1, name: str = "k") -> int:
    """A checked k of the top k; None: the usual 5, or all L labels where there are fewer."""
    if k is None:
        return min(USUAL_K, num_labels)
    k = F.as_int(op, "k", k)
    if not least <= k <= num_labels:
        raise ValueError(f"{op}: {name} must be in {least} ... L={num_labels}, got {k}")
    return k


def predict_batch(num_repetitions: int, num_buckets: int) -> int:
    """Documents that `predict` takes at a time by default: at most 256, bucket scores within 256 MiB."""
    return max(1, min(256, _SCORES_IN_MEMORY // (num_repetitions * num_buckets)))


@contextlib.contextmanager
def evaluating(model: MACH) -> Iterator[None]:
    """Eval mode, no gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def memory_advice(op: str, advice: str, model: MACH) -> Iterator[None]:
    """A GPU that is out of memory says what would help; the error is torch.OutOfMemoryError.

    Where one of mach_ext's operators asked PyTorch for the memory, all that comes back is which call failed.
    """
    try:
        yield
    except RuntimeError as error:
        asked = model.bucket_bias.is_cuda and "aten::" in str(error) and "API call failed" in str(error)
        if not asked and not isinstance(error, torch.OutOfMemoryError):
            raise
        B, R = model.num_buckets, model.num_repetitions
        raise torch.OutOfMemoryError(
            f"{op}: out of memory on {model.bucket_bias.device}: {advice} (the model has R={R} repetitions "
            f"of B={B} buckets; `mach-ext info` states what it takes). PyTorch says: {error}"
        ) from None


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> MACH:
    """Reads a model folder written by `MACH.save`, in eval mode.

    On CPU, weights that were saved as they are stay in their file, which is mapped: processes that load one
    model share its memory, until they change it. Compressed weights become each process's own.

    Raises:
        ValueError: Something is missing, truncated, edited or of another format; names the file and the rule.

    Example:
        >>> import tempfile, mach_ext
        >>> folder = tempfile.mkdtemp()
        >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4).save(folder)
        >>> mach_ext.load(folder).num_labels
        20
    """
    folder = Path(path)
    while True:
        record = _record_bytes(folder)
        try:
            return _load(folder, device)
        except FileNotFoundError as error:
            if _record_bytes(folder) == record:
                raise ValueError(f"{folder}: a file that model.json names is missing: {error}") from None
            # A training run has replaced the model meanwhile: the new one is there.


def _record_bytes(folder: Path) -> bytes | None:
    try:
        return (folder / "model.json").read_bytes()
    except OSError:
        return None


def _load(folder: Path, device: torch.device | str) -> MACH:
    record_file = folder / "model.json"
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "no such folder" if not folder.exists() else "no folder"
        what = "no model.json in the folder" if folder.is_dir() else what
        raise ValueError(f"{folder}: not a mach_ext model: {what}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{record_file}: not a model record: {error}") from None
    try:
        if record["format"] not in _FORMATS:
            raise ValueError(
                f"{record_file}: format must be 1 to 3 for this mach_ext, got {record['format']}"
            )
        if record.pop("sha256") != _record_digest(record):
            raise ValueError(f"{record_file}: edited: its contents do not match their SHA-256")
        configuration, hash_record = record["model"], record["hash"]
        for file in (record["weights"]["file"], *record["attachments"].values()):
            if Path(file).name != file:
                raise ValueError(f"{record_file}: names a file outside the folder: {file}")
        weights = folder / record["weights"]["file"]
        tensors = _read_weights(weights, record["weights"]["sha256"])
        if hash_record["kind"] == "table":
            label_hash = LabelHash.from_buckets(tensors.pop("hash.buckets"), configuration["num_buckets"])
        else:
            sizes = {key: configuration[key] for key in ("num_labels", "num_buckets", "num_repetitions")}
            label_hash = LabelHash(**sizes, seed=hash_record["seed"])
        with torch.device("meta"):  # Its parameters become those of the file.
            model = MACH(**configuration, hash=label_hash)
        attached = record["attachments"]
        for name, step in record["weights"].get("steps", {}).items():
            try:
                tensors[name] = compression.decode(tensors[name], model.get_parameter(name).shape, step)
            except ValueError as error:
                raise ValueError(f"{weights}: {name}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{record_file}: not a model record: {type(error).__name__}: {error}") from None
    adjustment = {"logit_adjustment": model.logit_adjustment} if "logit_adjustment" in tensors else {}
    named = {**dict(model.named_parameters()), **adjustment}
    expected = {name: tuple(tensor.shape) for name, tensor in named.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise ValueError(f"{weights}: weights must have shapes {expected}, got {found}")
    model.load_parameters(tensors, assign=True)
    for name, file in attached.items():
        content = (folder / file).read_bytes()
        if f"-{hashlib.sha256(content).hexdigest()[:12]}." not in file:
            raise ValueError(f"{folder / file}: truncated or edited: its name does not match its SHA-256")
        model.attachments[name] = content
    return model.eval().to(device)


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


def _read_weights(weights: Path, digest: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights}: truncated or edited: {error}") from None
    except RuntimeError:  # opened twice, and gone in between
        if weights.exists():
            raise
        raise FileNotFoundError(weights) from None
    if _digest(tensors) != digest:
        raise ValueError(
            f"{weights}: truncated or edited: not the contents that model.json records ({digest})"
        )
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
