"""The training loop: `fit`, with validation, the best epoch kept, checkpoints that a kill can't spoil.

A run is a function of (data, hyper-parameters, thread count): batches and dropout of step t follow from the
seed and t alone, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext import _model_folder, _ops, metrics, optim
from mach_ext._memory import available_memory as _available_memory
from mach_ext._memory import check_memory, check_room, memory_advice, memory_errors
from mach_ext._model_folder import (
    Header,
    read_model_record,
    read_tensors,
    safetensors_dtype,
    save_tensors,
    tensors_digest,
)
from mach_ext._progress import tqdm
from mach_ext.data import (
    Batch,
    check_csr,
    check_labels,
    iter_batches,
    iter_on_device,
    row_lengths,
    write_json,
)
from mach_ext.data.files import delete_file
from mach_ext.data.records import ANY, digest_of, parse_record, read_record, sealed
from mach_ext.hashing import LabelHash, collisions_known
from mach_ext.nn import MACH, MODEL_MERGES, Dropout, check_finite, load, predict_batch

OPTIMIZERS = ("adam", "adagrad")
SCHEDULES = ("linear", "constant")
PRECISIONS = ("float32", "bfloat16")
METRICS = tuple(f"{name}@{k}" for name in ("P", "nDCG") for k in (1, 3, 5))
CHECKPOINT = "checkpoint"
CHECKPOINT_FORMAT = 1  # Before it had a number, it had no digests.
_DIGEST_KEYS = {"format", "sha256", "tensors_sha256", "weights_sha256"}
_TENSORS_WITH_DIGEST = re.compile(r"checkpoint-\d+-\d+-[0-9a-f]{12}\.safetensors")
_TENSORS = re.compile(r"checkpoint-\d+-\d+(-[0-9a-f]{12})?\.safetensors")
_SHA256 = (re.compile(r"[0-9a-f]{64}"), type(None))
_count = range(2**53)  # as floats count
_CHECKPOINT_SCHEMA = {
    "format?": {CHECKPOINT_FORMAT},
    "hyperparameters": {"epochs": _count, "*": ANY},
    "model": {"*": ANY},
    "hash": str,
    "length?": float,
    "data": {"*": ANY},
    "progress": {
        "epoch": _count,
        "batch": _count,
        "loss_sum": float,
        "documents": _count,
        "seconds": float,
        "best_epoch": (_count, type(None)),
        "best": (float, type(None)),
        "history": [{"epoch": _count, "loss?": float, "dev?": {"*": (float, type(None))}, "*": ANY}],
    },
    "scalars": {"*": _count},
    "tensors": (_TENSORS, type(None)),
    "run?": {"*": ANY},
    "tensors_sha256?": _SHA256,
    "weights_sha256?": _SHA256,
    "sha256?": _SHA256[0],
}
_HALF_WRITTEN = (
    r"\.(model|checkpoint|weights-|labels-|label_counts-|features-|vectorizer-|run-).*\.(\d+)\.tmp"
)
# bucket_backward is faster than the dense products where at most so many of the entries are kept (measured
# break-even at N=256, H=512, B=1000: 0.4 with AVX-512, 0.25 with AVX2).
_WORTH_SKIPPING = 0.25

# Elements of a weight that are rounded to its copy at a time: what lies in between takes little memory.
_ROUNDED_TOGETHER = 1 << 22


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in `fit`. The step in progress was finished; the message says what was saved."""


@dataclass(frozen=True)
class Hyperparameters:
    """What decides the result of a run. `--resume` insists that they are the same.

    Attributes:
        epochs: Passes over the documents.
        batch_size: Documents a step.
        optimizer: "adam" or "adagrad", with row-sparse steps for the weight that takes the documents.
        learning_rate: Of everything but the encoder's rows.
        encoder_learning_rate: Of the weight that takes the documents, if there is a hidden layer.
            The rate of that weight, with a hidden layer or without, is for documents of length 1: `fit`
            divides it by the median of their lengths and multiplies eps by it, so that 8 X and a first
            weight of an eighth take the steps of X and the weight.
        encoder_eps: Adam's eps for that weight. With Adam's usual 1e-8 the row of a rare feature moves as far
            as that of a frequent one, and so learns its few documents by heart. With an eps far above the
            root of its second moment the steps are those of SGD with momentum, as large as the evidence;
            docs/accuracy.md has what that is worth. Gradients are of the mean over documents: eps and rate
            are for a batch of 256. Independent encoders get 1 / R of it, as of the loss.
        schedule: "linear": rates fall to 0 over the run; "constant".
        seed: Of the order of the documents and of dropout.
        patience: Stop after so many epochs without a better dev metric; None: never. A lower loss at the same
            metric is no gain.
        metric: Which dev metric picks the best epoch. Of epochs with equal metrics the one of the lowest
            training loss is kept, of these the earliest.
        negligible_gradient: Hidden layers only. A negative bucket of probability p = sigmoid(z) has the
            gradient p / (N R), and most p are tiny. Those below this number go into the products of the
            backward pass all together, as one rank-one matrix with their sums over buckets and over
            documents, which costs next to nothing. 0, the default, computes each. The loss and the bucket
            biases' gradient stay exact; with p this number, entries of the gradient to a document's hidden
            units are off by at most 2 p B max |bucket_weight| / (N R), of bucket_weight's by 2 p max |hidden|
            / R. 0.01 keeps 3 to 5 % of the entries on wordnet (R=16, B=1000). On the CPU only: a GPU
            multiplies dense matrices faster than it could leave entries out.
        precision: Of what goes into the products of a step. "bfloat16" rounds weights, hidden units and the
            logits' gradient for them; the sums are float32 (on CPU the result of a dense product is bfloat16,
            too). Weights and moments stay float32, so that small steps are not lost; the weight that takes
            the documents has a bfloat16 copy beside it.
        tau: Of the logit adjustment that the model gets in the end, and for its dev metrics
            (`MACH.adjust_logits`); training goes without. 0: none. None: 1 / sqrt(n), at most 0.5, n being
            the mean number of documents of the labels that have any; 0 for models that don't rank by
            mean_logit.
    """

    epochs: int = 5
    batch_size: int = 256
    optimizer: str = "adam"
    learning_rate: float = 0.002
    encoder_learning_rate: float = 0.3
    encoder_eps: float = 1e-4
    schedule: str = "linear"
    seed: int = 0
    patience: int | None = None
    metric: str = "P@1"
    negligible_gradient: float = 0.0
    precision: str = "float32"
    tau: float | None = None

    @classmethod
    def of(cls, model: MACH, **given: Any) -> Hyperparameters:
        """Defaults for this kind of model (linear: Adagrad); what is given and not None replaces them."""
        defaults: dict[str, Any] = {}
        if model.is_linear:
            defaults = {"optimizer": "adagrad", "learning_rate": 0.5}
        known = cls.__dataclass_fields__
        for name in given:
            if name not in known:
                raise TypeError(f"fit: unknown hyper-parameter {name!r}; known: {', '.join(known)}")
        settings = cls(**{**defaults, **{name: value for name, value in given.items() if value is not None}})
        if model.is_linear and settings.negligible_gradient > 0:
            raise ValueError("fit: negligible_gradient is for models with a hidden layer")
        _check_dtypes(model)
        device = model.bucket_bias.device
        if settings.negligible_gradient > 0 and device.type != "cpu":
            raise ValueError(f"fit: negligible_gradient is for models on the CPU, this one is on {device}")
        if settings.precision != "float32" and any(p.dtype != torch.float32 for p in model.parameters()):
            raise ValueError("fit: precision is for float32 models (their weights are the master copy)")
        if settings.tau and model.merge != "mean_logit":
            raise ValueError(f"fit: tau is for models that rank by mean_logit, this one by {model.merge}")
        return settings

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"fit: {name} must be an int of at least {least}, got {value!r}")
        for name in ("learning_rate", "encoder_learning_rate", "encoder_eps"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"fit: {name} must be finite and not negative, got {value!r}")
        choices = (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"fit: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.negligible_gradient < 1:
            raise ValueError(f"fit: negligible_gradient must be in [0, 1), got {self.negligible_gradient}")
        if self.tau is not None and not (isinstance(self.tau, (int, float)) and 0 <= self.tau <= 100):
            raise ValueError(f"fit: tau must be None or within 0 and 100, got {self.tau!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"fit: patience must be None or at least 1, got {self.patience}")


def _check_dtypes(model: MACH) -> None:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        given = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise TypeError(
            f"fit: parameters must be float32 or float64, all of one dtype, got {given}. Training in half "
            'precision keeps float32 weights: model.float(), and precision="bfloat16"'
        )


def suggested(num_documents: int, num_features: int, num_labels: int) -> dict[str, Any]:
    """Sizes and epochs for N training documents, D features and L labels, where nothing else is known.

    R is 8; 16 with more than 16,384 labels, which share buckets most; 32 with fewer than 10,000 documents,
    where models differ most. B is the power of two next to L / 2, within 16 ... 2,048. Each repetition has an
    encoder of its own, of 256 units or, where all of them would take more than 3 x 10^8 floats (1.2 GB), of
    128; where those would, too (D above 146,000 with R = 16), they share one of 512. Epochs are as many as
    show about 225,000 documents, within 5 ... 10. Measured on four datasets: docs/accuracy.md.

    Example:
        >>> from mach_ext.training import suggested
        >>> suggested(num_documents=45_000, num_features=56_758, num_labels=4271)["num_buckets"]
        2048
    """
    R = 32 if num_documents < 10_000 else 16 if num_labels > 16_384 else 8
    buckets = 2 ** round(math.log2(max(num_labels, 2) / 2))
    own = next((H for H in (256, 128) if num_features * R * H <= 3e8), None)
    return {
        "num_repetitions": R,
        "num_buckets": min(max(buckets, 16), 2048),
        "hidden_size": own or 512,
        "encoder": "independent" if own else "shared",
        "epochs": min(max(round(225_000 / max(num_documents, 1)), 5), 10),
    }


@dataclass
class Progress:
    """Where a run stands; the part of a checkpoint that is not tensors."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch finished
    loss_sum: float = 0.0  # over the documents of the current epoch so far
    documents: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch


@memory_errors("lower batch_size, num_buckets or hidden_size")
def fit(
    model: MACH,
    X: Any,
    Y: Any,
    X_dev: Any = None,
    Y_dev: Any = None,
    *,
    filtered_dev: Any = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
    repetitions_at_a_time: int | None = None,
    progress: bool = True,
    **hyperparameters: Any,
) -> Progress:
    """Trains a model in place; with dev data it ends with the weights of its best epoch, in eval mode.

    Args:
        model: Linear or hidden-layer MACH, float32 or float64.
        X, Y: Documents [N, D] and labels [N, L], SciPy sparse. Checked in full, once.
        X_dev, Y_dev: Validation data; both or neither.
        filtered_dev: [N_dev, L], SciPy sparse, non-zero where a label is no answer of a validation document.
        output: Folder for checkpoints and the best model, in place of what a former run left there. None
            keeps everything in memory.
        resume: Go on from the checkpoint in `output`; without one there, start. The hyper-parameters, the
            model's shape and the sizes of the data must be those of the checkpoint.
        checkpoint_minutes: A checkpoint at least so often, besides the one after each epoch.
        repetitions_at_a_time: Linear MACH only, whose repetitions share nothing: train so many through all
            epochs, then the next ones, which keeps optimiser state for that many; dev data is
            then asked once, at the end. None: all together (with a warning where memory looks too short).
            Up to rounding the same weights as together; the same bits if R / repetitions_at_a_time is a
            power of two.
        progress: Progress bars on standard error.
        **hyperparameters: Fields of `Hyperparameters`; None means its default for this kind of model.

    Returns:
        `Progress`, whose `history` has one entry an epoch: loss (mean over documents), seconds, dev metrics.

    Raises:
        ValueError, TypeError: Bad data or hyper-parameters; a checkpoint of another run.
        FloatingPointError: The loss became NaN or infinite.
        MemoryError: Memory does not suffice; on a GPU torch.OutOfMemoryError.
        TrainingInterrupted: Ctrl-C; the state is saved in `output`.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> Y = scipy.sparse.csr_matrix(np.eye(20)[np.arange(200) % 20])
        >>> X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
        >>> model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=10, hidden_size=32)
        >>> record = mach_ext.fit(model, X, Y, epochs=30, learning_rate=0.02, batch_size=20, progress=False)
        >>> record.history[-1]["loss"] < record.history[0]["loss"] / 10
        True
    """
    settings = Hyperparameters.of(model, **hyperparameters)
    model.hash.check_contents()
    X, Y = checked_data("fit", "X", "Y", X, Y, model)
    dev = None
    if X_dev is not None or Y_dev is not None:
        if X_dev is None or Y_dev is None:
            raise ValueError("fit: X_dev and Y_dev must be given together")
        dev = checked_data("fit", "X_dev", "Y_dev", X_dev, Y_dev, model)
        if dev[0].shape[0] == 0:
            raise ValueError("fit: X_dev needs at least one document, got N=0")
        if settings.metric not in METRICS:
            raise ValueError(f"fit: metric must be one of {', '.join(METRICS)}, got {settings.metric!r}")
    if X.shape[0] == 0:
        raise ValueError("fit: needs at least one document, got N=0")
    if resume and output is None:
        raise ValueError("fit: resume needs the output folder of the run to go on with")
    together = _repetitions_together(model, X, settings, repetitions_at_a_time)
    folder = None if output is None else Path(output)
    with exclusive(folder):
        run = _Run(model, settings, X, Y, dev, folder, resume, progress)
        run.filtered_dev = None if filtered_dev is None else check_labels(filtered_dev, "fit: filtered_dev")
        if resume:
            run.resume()
        check_finite("fit", model)
        ended = run.state.epoch >= settings.epochs
        if together < model.num_repetitions and not ended and (run.state.epoch or run.state.batch):
            raise ValueError(
                f"fit: the checkpoint in {folder} is of all repetitions together; resume it without "
                "repetitions_at_a_time"
            )
        if together == model.num_repetitions or ended:
            run.train(checkpoint_minutes * 60)
        else:
            run.train_in_turn(together, checkpoint_minutes * 60)
    return run.state


@contextlib.contextmanager
def exclusive(folder: Path | None) -> Iterator[None]:
    """One run a folder: locks it (the lock goes with the process) and clears what a kill left half-written.

    The thread that holds the lock may save into the folder; others can't.

    Raises:
        ValueError: Another run is training in the folder.
    """
    if folder is None:
        yield
        return
    with _model_folder.lock(folder, "fit", is_run=True):
        for left in folder.iterdir():  # by versions that had the number of the process in the name
            written = re.fullmatch(_HALF_WRITTEN, left.name)
            if written and not Path(f"/proc/{written[2]}").exists():
                delete_file(left)
        yield


def _repetitions_together(model: MACH, X: Any, settings: Hyperparameters, wanted: int | None) -> int:
    """How many repetitions to train at a time; warns where all of them would not fit in memory."""
    R = model.num_repetitions
    if wanted is not None:
        if not model.is_linear:
            raise ValueError("fit: repetitions_at_a_time is for linear MACH; a shared encoder needs them all")
        if not 1 <= wanted <= R:
            raise ValueError(f"fit: repetitions_at_a_time must be in 1 ... R={R}, got {wanted}")
        if wanted < R and settings.patience is not None:
            raise ValueError("fit: patience needs dev scores by epoch, so all repetitions at a time")
        _check_state_fits(model, settings, wanted)
        return wanted
    _check_state_fits(model, settings, R)
    device = model.bucket_bias.device
    nonzeros, batch_size = math.ceil(X.nnz / X.shape[0]), min(settings.batch_size, X.shape[0])
    needed = expected_memory(model, batch_size, nonzeros, device.type, settings.precision)
    more = needed["training, peak"] - needed["weights"] - needed["label hash"]
    free = _available_memory(device)
    if more > free:
        advice = ""
        if model.is_linear:
            fit_in = max(1, int(0.8 * free / (more / R)))
            advice = f"; repetitions_at_a_time={fit_in} would fit"
        warnings.warn(
            f"fit: training takes about {more / 2**30:.1f} GiB beside the weights, "
            f"{free / 2**30:.1f} GiB are free on {device}{advice}",
            ResourceWarning,
            stacklevel=4,  # behind `memory_errors`
        )
    return R


def _check_state_fits(model: MACH, settings: Hyperparameters, together: int) -> None:
    """What the optimiser keeps of so many repetitions, without which no step can be made."""
    if not model.bucket_bias.is_cpu:
        return
    moments = 2 if settings.optimizer == "adam" else 1
    state = moments * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    advice = "lower hidden_size, num_buckets or num_repetitions"
    if model.is_linear:
        state = state * together // model.num_repetitions
        advice = "lower repetitions_at_a_time or num_buckets"
    sizes = {"optimizer": settings.optimizer, "repetitions": together}
    check_memory("fit: the optimiser's state", state, advice, **sizes)


def _some_repetitions(model: MACH, first: int, last: int) -> MACH:
    """Repetitions [first, last) of a linear model as a model of their own, on the same memory."""
    some = LabelHash.from_buckets(model.hash.buckets[first:last], model.num_buckets)
    some = some.to(model.hash.buckets.device)
    configuration = {**model.configuration(), "num_repetitions": last - first}
    with torch.device("meta"):
        part = MACH(**configuration, hash=some)
    part.bucket_weight = torch.nn.Parameter(model.bucket_weight.data[first:last])
    part.bucket_bias = torch.nn.Parameter(model.bucket_bias.data[first:last])
    part.logit_adjustment = model.logit_adjustment[first:last]
    return part


@memory_errors("pass fewer documents at a time")
def evaluate_model(
    model: MACH,
    X: Any,
    Y: Any,
    ks: Sequence[int] = (1, 3, 5),
    recall_ks: Sequence[int] = (),
    inverse_propensity: Any = None,
    filtered: Any = None,
) -> dict[str, float]:
    """Metrics of the model's exact top-k on documents X with labels Y; see `mach_ext.metrics.evaluate`.

    `filtered`: [N, L], non-zero where a label is no answer (`metrics.without_filtered`).
    """
    labels = answers(model, X, max((*ks, *recall_ks), default=0), filtered)
    return metrics.evaluate(Y, labels, ks, recall_ks, inverse_propensity)


@memory_errors("pass fewer documents at a time or lower k")
def answers(
    model: MACH, X: Any, k: int, filtered: Any = None, rerank: Any = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The k best labels of each document, without those that are no answers.

    Args:
        model: The model.
        X: Documents [N, D], SciPy CSR.
        k: How many.
        filtered: [N, L], SciPy CSR, non-zero where a label is no answer; None: all are.
        rerank: (X, k) -> labels [N, k] in place of the model's `predict`.

    Returns:
        [N, k] label ids, filled up with -1 where the model has no more labels.
    """
    ask = rerank or (lambda some, count: model.predict(some, count)[1])
    excluded = np.zeros(X.shape[0], np.int64) if filtered is None else np.diff(filtered.indptr)
    N = X.shape[0]
    check_memory("answers: labels", 8 * N * k, "pass fewer documents or lower k", N=N, k=k)
    labels = np.full((N, k), -1, np.int64)
    # Few documents have many labels excluded: those of a size are asked for as many more labels.
    sizes = np.ceil(np.log2(excluded + 1)).astype(int)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        some = X if len(rows) == X.shape[0] else X[rows]
        found = ask(some, min(k + int(excluded[rows].max()), model.num_labels))
        if size:
            found = metrics.without_filtered(found, filtered[rows])
        labels[rows, : found.shape[1]] = found[:, :k]
    return labels


def expected_memory(
    model: MACH,
    batch_size: int = 256,
    nonzeros: int = 100,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, int]:
    """Bytes that a model takes, beyond the data and PyTorch itself: at rest, in training, in predicting.

    Counted from the shapes, for `nonzeros` features a document; a batch names at most batch_size * nonzeros
    rows of the weight that takes the documents. `device`: "cpu" or "cuda", of the model in use; it need not
    be there. `precision`: of training, as in `Hyperparameters`.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = (1 if model.is_linear else 2) * 4 * sum(p.numel() for p in model.parameters())
    R, B = model.num_repetitions, model.num_buckets
    hidden = 4 * batch_size * sum(model.hidden_sizes) * (R if model.encoder == "independent" else 1)
    table = model.hash.buckets.numel() * model.hash.buckets.element_size()
    index = model.hash.label_index_bytes()
    # A step holds one repetition's logits, which become their gradient, a second table of that size to find
    # its negligible entries, and the batch's features in order; with hidden layers also one repetition's
    # weight gradient, the hidden units, their gradient, and what autograd keeps of a second layer.
    step = 8 * batch_size * B + 32 * nonzeros * batch_size
    if not model.is_linear:
        between = sum(p.numel() for name, p in model.named_parameters() if name.startswith("hidden_"))
        step += 4 * model.hidden_sizes[-1] * B + 4 * between + 4 * hidden
    if precision == "bfloat16":  # the copy of that weight, the rows rounded after a step, factors, products
        rows = model.bucket_weight if model.is_linear else model.encoder_weight
        copied = rows.shape[-1] * min(rows.shape[-2], batch_size * nonzeros)
        step += 2 * rows.numel() + 6 * min(copied, _ROUNDED_TOGETHER)
        if not model.is_linear:
            H = model.hidden_sizes[-1]
            step += 2 * batch_size * B + 4 * H * B + 4 * batch_size * H + hidden // 2
    documents = predict_batch(R, B)
    decode = 4 * documents * R * B * (1 if MODEL_MERGES[model.merge][0] is None else 2)  # transformed scores
    if device == "cuda":  # what merge_topk's scan takes: scores as bytes, candidates of the default k
        decode += documents * (R * B + 8 * min(model.num_labels, 2048 + 4 * math.isqrt(5 * model.num_labels)))
        step += 32 * nonzeros * batch_size  # the library's sort, the next batch
    return {
        "weights": weights,
        "label hash": table,
        "predicting, peak": weights + table + index + decode + hidden,
        "training, peak": weights + moments + table + step,
    }


def checked_data(op: str, x_name: str, y_name: str, X: Any, Y: Any, model: MACH) -> tuple[Any, Any]:
    """Documents and labels in canonical CSR form, of the model's sizes."""
    X, Y = check_csr(X, f"{op}: {x_name}"), check_labels(Y, f"{op}: {y_name}", allow_weights=False)
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"{op}: {x_name} and {y_name} must have as many rows, got {X.shape[0]} and {Y.shape[0]}"
        )
    for name, matrix, columns in ((x_name, X, model.num_features), (y_name, Y, model.num_labels)):
        if matrix.shape[1] != columns:
            raise ValueError(
                f"{op}: {name} must have the model's {columns} columns, got shape {matrix.shape}"
            )
    return X, Y


class _Run:
    """One training run: its data, its optimiser, where it stands, its folder."""

    def __init__(
        self,
        model: MACH,
        settings: Hyperparameters,
        X: Any,
        Y: Any,
        dev: tuple[Any, Any] | None,
        folder: Path | None,
        resume: bool,
        progress: bool,
    ) -> None:
        self.model = model
        self.X, self.Y, self.dev = X, Y, dev
        self.filtered_dev: Any = None
        self.label_counts = metrics.label_counts(Y)
        if settings.tau is None:
            settings = replace(settings, tau=_suggested_tau(model, self.label_counts))
        self.settings = settings
        self.folder, self.resuming, self.progress = folder, resume, progress
        self.device = model.bucket_bias.device
        master = model.bucket_bias.dtype
        self.product_dtype = master if settings.precision == "float32" else torch.bfloat16
        self._rounded: Tensor | None = None  # of the weight that takes the documents
        self._dropout: Dropout = True  # or the generator that draws it
        self.state = Progress()
        self.interrupted = False
        self.share = 1.0  # of all repetitions, that this run has: the loss averages over all of them
        self.best_weights: dict[str, Tensor] | None = None  # where there is no folder to keep them in
        self.saved: str | None = None  # digest of the weights in the folder, where there is one
        self.steps_an_epoch = math.ceil(X.shape[0] / settings.batch_size)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for part in () if resume else _parts(folder):
                _delete_part(part)

        named = dict(model.named_parameters())
        linear, adam = model.is_linear, settings.optimizer == "adam"
        self.length = typical_length(X)
        rows = named.pop("bucket_weight" if linear else "encoder_weight")
        rate = settings.learning_rate if linear else settings.encoder_learning_rate
        # Each repetition's loss counts 1 / R, and so does the gradient of an encoder of its own.
        copies = model.num_repetitions if model.encoder == "independent" else 1
        eps = {"eps": settings.encoder_eps / copies} if adam and not linear else {}
        groups = [
            {"params": list(named.values()), "lr": settings.learning_rate},
            {"params": [rows], "lr": rate / self.length, **eps},
        ]
        make = optim.SparseAdam if adam else optim.SparseAdagrad
        self.optimizer = make(groups[::-1] if linear else groups)  # as checkpoints number their states
        self.optimizer.param_groups[0 if linear else 1]["eps"] *= self.length
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    # ------------------------------------------------------------------------------------------- the loop

    def train(self, checkpoint_seconds: float) -> None:
        state, settings = self.state, self.settings
        if state.epoch < settings.epochs:
            self.model.set_logit_adjustment(0)
        if not self.resuming:  # from now on the folder's checkpoint is of this run, not of a former one
            self.checkpoint()
        advice = "lower batch_size, num_buckets or hidden_size"
        if self.model.is_linear:
            advice = "lower repetitions_at_a_time, batch_size or num_buckets"
        with (
            _finish_step_on_interrupt() as interrupted,
            self._generator_kept(),
            memory_advice("fit", advice, self.model),
        ):
            last_checkpoint = time.monotonic()
            while state.epoch < settings.epochs and not self._patience_is_out():
                self.model.train()
                started, seconds_before = time.monotonic(), state.seconds
                with self._bar() as bar:
                    for batch in self._batches():
                        self._step(batch)
                        state.seconds = seconds_before + time.monotonic() - started
                        bar.update(len(batch.rows))
                        bar.set_postfix(loss=f"{state.loss_sum / state.documents:.4f}", refresh=False)
                        if interrupted.is_set():
                            self._stop()
                        if self.folder and time.monotonic() - last_checkpoint > checkpoint_seconds:
                            self.checkpoint()
                            last_checkpoint = time.monotonic()
                self._finish_epoch()
                self.checkpoint()
                last_checkpoint = time.monotonic()
                if interrupted.is_set() and state.epoch < settings.epochs:
                    self._stop()
            self.interrupted = interrupted.is_set()  # too late to stop this run, not one that comes after it
        self._finish()

    def train_in_turn(self, together: int, checkpoint_seconds: float) -> None:
        """Linear MACH, `together` repetitions at a time: runs of their own, in folders of their own."""
        R = self.model.num_repetitions
        self.model.set_logit_adjustment(0)
        settings = replace(self.settings, tau=0.0)  # all of them are adjusted together
        if self.folder is not None and not self.resuming:
            forget(self.folder)
        for first in range(0, R, together):
            last = min(first + together, R)
            if self.progress:
                tqdm.write(f"repetitions {first + 1} to {last} of {R}")
            with collisions_known():  # a few repetitions alone do collide
                part = _some_repetitions(self.model, first, last)
                folder = None if self.folder is None else self.folder / f"repetitions-{first}"
                run = _Run(part, settings, self.X, self.Y, None, folder, self.resuming, self.progress)
                run.share = (last - first) / R
                if self.resuming:
                    run.resume()
                run.train(checkpoint_seconds)
            if run.interrupted and last < R:
                raise TrainingInterrupted(
                    f"training stopped after {last} of {R} repetitions: --resume goes on"
                )
            self.state.seconds += run.state.seconds
            self.state.history += [{"repetitions": [first, last], **e} for e in run.state.history]
        self.model.set_logit_adjustment(self._offsets)
        self.state.epoch = self.state.best_epoch = self.settings.epochs
        if self.dev is not None:
            self.state.history.append(
                {
                    "epoch": self.state.epoch,
                    "dev": self._dev_metrics(),
                }
            )
        if self.folder is not None:
            self._save(self.folder)
            self._make_current(None, {})
            for part_folder in _parts(self.folder):
                _delete_part(part_folder)
        self.model.eval()

    def _batches(self) -> Iterator[Batch]:
        batches = iter_batches(
            self.X,
            self.Y,
            self.settings.batch_size,
            seed=self.settings.seed,
            epoch=self.state.epoch,
            start=self.state.batch,
        )
        return iter_on_device(batches, self.device)

    def _step(self, batch: Batch) -> None:
        state, settings = self.state, self.settings
        step = state.epoch * self.steps_an_epoch + state.batch
        if settings.schedule == "linear":
            left = 1 - step / (settings.epochs * self.steps_an_epoch)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * left
        # Dropout of step t depends on (seed, t) alone.
        self._seed_dropout(
            int(np.random.SeedSequence([settings.seed, step]).generate_state(1, np.uint64)[0] >> 1)
        )
        values = batch.values.to(self.model.bucket_bias.dtype)  # documents are float32
        do = self._linear_step if self.model.is_linear else self._hidden_step
        value = do(values, *batch[1:5])
        state.batch += 1
        state.loss_sum += value * len(batch.rows)
        state.documents += len(batch.rows)

    def _seed_dropout(self, seed: int) -> None:
        """On the CPU dropout has a generator of its own, so that threads that draw meanwhile change nothing.

        On a GPU PyTorch's own dropout, faster and leaner, is for the global generators alone.
        """
        self._dropout = True
        if self.device.type == "cuda":
            torch.manual_seed(seed)
        else:
            self._dropout = torch.Generator(self.device).manual_seed(seed)

    def _generator_kept(self) -> contextlib.AbstractContextManager[Any]:
        """Brings back the state of the global generators, where a run draws from them."""
        if self.device.type == "cuda":
            return torch.random.fork_rng(devices=[self.device])
        return contextlib.nullcontext()

    @torch.no_grad()
    def _linear_step(
        self, values: Tensor, indices: Tensor, indptr: Tensor, label_indices: Tensor, label_indptr: Tensor
    ) -> float:
        """A step of linear MACH, one repetition at a time; returns the loss.

        The logits [N, B] become their own gradient, and each row of the weight that occurs is stepped as soon
        as its gradient is known: no gradient of the weight is ever held. Up to rounding what
        `loss.backward(); optimizer.step()` does.
        """
        model, optimizer = self.model, self.optimizer
        weight, bias, buckets = model.bucket_weight, model.bucket_bias, model.hash.buckets
        N, R = len(indptr) - 1, model.num_repetitions
        values = model.drop_features(values, dropout=self._dropout)
        order = _ops.feature_order(indices, indptr, model.num_features)
        labels = (label_indices.long(), label_indptr)
        total: float | Tensor = 0.0
        optimizer.begin_step()
        rounded = self._rounded_rows(weight)
        for r in range(R):
            one = slice(r, r + 1)
            z = _ops.sparse_linear(values, indices, indptr, rounded[one], bias[one], False, order)
            loss = _ops.bucket_bce(z[:, 0], buckets[r], *labels, self.share / R / N, True)  # z: its gradient
            total = self._add_loss(total, loss)
            if weight.requires_grad:
                optimizer.step_sparse_linear(weight, r, z, values, order)
                self._round_rows(weight[r], rounded[r], order)
            if bias.requires_grad:
                optimizer.step_rows(bias, r, z.sum(0))
        return self._finite(float(total)) / (N * R)

    def _hidden_step(
        self, values: Tensor, indices: Tensor, indptr: Tensor, label_indices: Tensor, label_indptr: Tensor
    ) -> float:
        """A step of MACH with hidden layers; returns the loss.

        Autograd is asked only for what lies between the encoder's rows and the bucket classifiers (dropout, a
        second layer). A classifier's logits [N, B] become their own gradient, and its weight is stepped as
        soon as its gradient is known, in memory [H, B] that all R share. Up to rounding what
        `loss.backward(); optimizer.step()` does.
        """
        model, optimizer = self.model, self.optimizer
        weight, bias, buckets = model.bucket_weight, model.bucket_bias, model.hash.buckets
        N, R = len(indptr) - 1, model.num_repetitions
        values = model.drop_features(values, dropout=self._dropout)
        order = _ops.feature_order(indices, indptr, model.num_features)
        labels = (label_indices.long(), label_indptr)
        with torch.no_grad():
            rounded = self._rounded_rows(model.encoder_weight)
            first = _ops.sparse_linear(values, indices, indptr, rounded, model.encoder_bias, True, order)
        first.requires_grad_()
        encoded = model.encode_hidden(first, dropout=self._dropout)
        hidden = encoded.detach()  # [N, H] or [N, R, H]
        total: float | Tensor = 0.0
        optimizer.zero_grad()
        optimizer.begin_step()
        with torch.no_grad():
            grad_hidden, grad_weight, logits = torch.zeros_like(hidden), self._grad_weight, self._logits[:N]
            factor = hidden.to(self.product_dtype)
            for r in range(R):
                at = slice(None) if hidden.dim() == 2 else (slice(None), r)
                classifier = weight[r].to(self.product_dtype)
                self._add_product(bias[r], factor[at], classifier, logits)
                loss = _ops.bucket_bce(logits, buckets[r], *labels, 1 / R / N, True)
                total = self._add_loss(total, loss)
                # logits now holds its own gradient.
                self._classifier_backward(logits, factor[at], classifier, grad_hidden[at], grad_weight)
                if weight.requires_grad:
                    optimizer.step_rows(weight, r, grad_weight)
                if bias.requires_grad:
                    optimizer.step_rows(bias, r, logits.sum(0))
        encoded.backward(grad_hidden)
        with torch.no_grad():
            assert first.grad is not None
            grad_first = torch.where(first > 0, first.grad, 0)
            if model.encoder_weight.requires_grad:
                optimizer.step_sparse_linear(
                    model.encoder_weight, None, grad_first.unsqueeze(1), values, order
                )
                self._round_rows(model.encoder_weight, rounded, order)
            if model.encoder_bias.requires_grad:
                optimizer.step_rows(model.encoder_bias, slice(None), grad_first.sum(0))
            for parameter in (model.hidden_weight, model.hidden_bias) if len(model.hidden_sizes) == 2 else ():
                if parameter.grad is not None:
                    optimizer.step_rows(parameter, slice(None), parameter.grad)
        return self._finite(float(total)) / (N * R)

    def _classifier_backward(
        self,
        gradient: Tensor,  # [N, B] to the logits
        hidden: Tensor,  # [N, H]
        weight: Tensor,  # [H, B]
        grad_hidden: Tensor,  # [N, H], added to
        grad_weight: Tensor,  # [H, B], overwritten
    ) -> None:
        """One repetition's gradients, by BLAS or without the negligible entries, whichever is faster."""
        N, B = gradient.shape
        if self.settings.negligible_gradient > 0:
            negligible = self.settings.negligible_gradient / self.model.num_repetitions / N
            most = int(_WORTH_SKIPPING * N * B)
            outputs = (grad_hidden, grad_weight)
            exact = hidden.to(gradient.dtype), weight.to(gradient.dtype)
            if _ops.bucket_backward(gradient, *exact, negligible, most, *outputs) <= most:
                return
        gradient = gradient.to(self.product_dtype)
        self._add_product(grad_hidden, gradient, weight.T, grad_hidden)
        self._add_product(None, hidden.T, gradient, grad_weight)

    def _add_product(self, term: Tensor | None, a: Tensor, b: Tensor, out: Tensor) -> None:
        """term + a b -> out, float32 (or float64); a and b are of the run's precision."""
        if a.dtype == out.dtype:
            torch.mm(a, b, out=out) if term is None else torch.addmm(term, a, b, out=out)
            return
        if not a.is_cuda:
            check_room()  # without, oneDNN crashes
            product = torch.mm(a, b)
        elif term is out:
            product = torch.mm(a, b, out_dtype=out.dtype)
        else:  # in place. (What addmm takes with another out_dtype has changed between releases.)
            product = torch.mm(a, b, out_dtype=out.dtype, out=out)
        if term is not None:
            torch.add(term, product, out=out)
        elif product is not out:
            out.copy_(product)

    def _rounded_rows(self, weight: Tensor) -> Tensor:
        """The weight that takes the documents, in the run's precision: itself, or its copy."""
        if weight.dtype == self.product_dtype:
            return weight.detach()
        if self._rounded is None:
            self._rounded = weight.detach().to(self.product_dtype)
        return self._rounded

    def _round_rows(self, weight: Tensor, rounded: Tensor, order: _ops.FeatureOrder) -> None:
        """The rows [., M] of the copy that a step has changed."""
        if rounded.dtype != weight.dtype:
            for some in order.features.split(max(1, _ROUNDED_TOGETHER // weight.shape[-1])):
                rounded[some] = weight.detach()[some].to(rounded.dtype)

    # One repetition's [N, B] and [H, B], kept from step to step: fresh memory would cost page faults.

    @functools.cached_property
    def _logits(self) -> Tensor:
        bias = self.model.bucket_bias
        return bias.new_empty(min(self.settings.batch_size, self.X.shape[0]), bias.shape[1])

    @functools.cached_property
    def _grad_weight(self) -> Tensor:
        return self.model.bucket_weight.new_empty(self.model.bucket_weight.shape[1:])

    def _add_loss(self, total: float | Tensor, loss: Tensor) -> float | Tensor:
        """`total` and a repetition's loss [N].

        On the CPU it is checked before anything is stepped by it. On a GPU that would be a wait for each
        repetition, so the total stays there, and is checked when the step is over.
        """
        repetition = loss.sum()
        return total + (repetition if repetition.is_cuda else self._finite(repetition.item()))

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"fit: the loss became {loss} in epoch {self.state.epoch + 1}, step {self.state.batch + 1}; "
                "try a smaller learning_rate"
            )
        return loss

    def _finish_epoch(self) -> None:
        state = self.state
        entry: dict[str, Any] = {"epoch": state.epoch + 1, "loss": state.loss_sum / state.documents}
        trained = self.model.bucket_bias.detach().clone()
        if self.dev is not None or self.folder is not None:
            self.model.set_logit_adjustment(self._offsets)
        if self.dev is not None:
            entry["dev"] = self._dev_metrics()
        state.epoch, state.batch, state.loss_sum, state.documents = state.epoch + 1, 0, 0.0, 0
        state.history.append(entry)
        kept = state.best_epoch
        if kept is None or self._rank(entry) > self._rank(state.history[kept - 1]):
            state.best, state.best_epoch = self._rank(entry)[0], state.epoch
            if self.folder is not None:
                self._save(self.folder)
            elif self.dev is not None:
                self.best_weights = {k: tensor.clone() for k, tensor in self.model.state_dict().items()}
        with torch.no_grad():  # training goes on without the adjustment, to the bit
            self.model.bucket_bias.copy_(trained)
            self.model.logit_adjustment.zero_()
        if self.progress:
            scores = "  ".join(f"{k} {v:.4f}" for k, v in entry.get("dev", {}).items() if k[0] == "P")
            tqdm.write(f"epoch {state.epoch}: loss {entry['loss']:.4f}  {scores}".rstrip())

    def _rank(self, entry: dict[str, Any]) -> tuple[float, float]:
        """An epoch's dev metric and, for ties, minus its loss; without dev data the last one ranks first."""
        if self.dev is None:
            return float(entry["epoch"]), 0.0
        return entry["dev"][self.settings.metric], -entry["loss"]

    def _dev_metrics(self) -> dict[str, float]:
        assert self.dev is not None
        if self.filtered_dev is None:
            return evaluate_model(self.model, *self.dev)
        return evaluate_model(self.model, *self.dev, filtered=self.filtered_dev)

    def _patience_is_out(self) -> bool:
        """Counted from the first epoch of the best metric: later ones are kept for their loss alone."""
        if self.settings.patience is None or not self.state.history:
            return False
        first = max(self.state.history, key=lambda entry: self._rank(entry)[0])["epoch"]
        return bool(self.state.epoch - first >= self.settings.patience)

    def _finish(self) -> None:
        """The best epoch's weights into the model; the checkpoint shrinks to the record of the run."""
        if self.folder is not None:
            if self.state.best_epoch is None:  # no epoch at all: the model as it came
                self._save(self.folder)
            self._check_saved(self.folder)
            with collisions_known():  # said when the model was made
                self.model.load_state_dict(load(self.folder).state_dict())
            self._make_current(None, {})
        elif self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        elif self.state.epoch:
            self.model.set_logit_adjustment(self._offsets)
        self.model.eval()

    @functools.cached_property
    def _offsets(self) -> Tensor:
        """The logit adjustment; the same after each epoch."""
        assert self.settings.tau is not None
        return self.model.logit_offsets(self.label_counts, self.settings.tau)

    def _bar(self) -> Any:
        return tqdm(
            total=self.X.shape[0],
            initial=self.state.documents,
            desc=f"epoch {self.state.epoch + 1}/{self.settings.epochs}",
            unit="doc",
            disable=not self.progress,
            leave=False,
            dynamic_ncols=True,
        )

    def _stop(self) -> None:
        if self.folder is None:
            raise TrainingInterrupted("training stopped after a whole step; nothing saved (no output folder)")
        self.checkpoint()
        raise TrainingInterrupted(
            f"training stopped; {self.folder} holds a checkpoint after epoch {self.state.epoch}, "
            f"step {self.state.batch}: go on with resume (--resume)"
        )

    # --------------------------------------------------------------------------------------- checkpoints

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What makes this run this run."""
        return {
            "hyperparameters": asdict(self.settings),
            "model": self.model.configuration(),
            "hash": self.model.hash.fingerprint(),
            "length": self.length,
            "data": {
                name: [*matrix.shape, int(matrix.nnz), checksum(matrix)]
                for name, matrix in zip(
                    ("X", "Y", "X_dev", "Y_dev"), (self.X, self.Y, *(self.dev or ())), strict=False
                )
            },
        }

    def checkpoint(self) -> None:
        """Writes weights, optimiser state and progress; until that is whole, the former one stands."""
        if self.folder is None:
            return
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        scalars: dict[str, Any] = {}
        for i, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                key = f"optimizer.{i}.{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value
                else:
                    scalars[key] = value
        # A new name each time: the JSON that names it is what makes a checkpoint current.
        tensors = {key: value.cpu() for key, value in tensors.items()}
        digest = tensors_digest(tensors)
        name = f"{CHECKPOINT}-{self.state.epoch}-{self.state.batch}-{digest[:12]}.safetensors"
        save_tensors(self.folder / name, tensors)
        self._make_current(name, scalars, digest)

    def _make_current(self, name: str | None, scalars: dict[str, Any], digest: str | None = None) -> None:
        assert self.folder is not None
        record = {
            "format": CHECKPOINT_FORMAT, **self._identity, "progress": asdict(self.state), "scalars": scalars,
            "tensors": name, "tensors_sha256": digest, "weights_sha256": self.saved,
        }  # fmt: skip
        if "run.json" in self.model.attachments:  # which the model itself keeps only from its first epoch on
            run = self.model.attachments["run.json"]
            record["run"] = parse_record(run, "fit: the attachment run.json", {"*": ANY})
        former = _tensor_files(self.folder)
        write_json(self.folder / f"{CHECKPOINT}.json", sealed(record))
        for old in former - {name}:
            delete_file(self.folder / old)

    def resume(self) -> None:
        """Takes up the checkpoint in the folder, if there is one."""
        assert self.folder is not None
        file = self.folder / f"{CHECKPOINT}.json"
        if not os.path.lexists(file):
            return
        record = read_checkpoint(self.folder)
        identity = {key: record[key] for key in ("hyperparameters", "model", "hash", "data")}
        identity["length"] = record.get("length", 1.0)  # before there was one, rates did not depend on it
        # A run of before there was a hyper-parameter had its default; before encoder_eps, Adam's own;
        # before tau, none.
        fields = Hyperparameters.__dataclass_fields__.items()
        defaults = {name: field.default for name, field in fields} | {"encoder_eps": 1e-8, "tau": 0.0}
        identity["hyperparameters"] = {**defaults, **identity["hyperparameters"]}
        differences = _differences(identity, self._identity)
        if differences:
            raise ValueError(
                f"{file}: resume needs the run's own settings and data; different: {'; '.join(differences)}"
            )
        state, self.saved = Progress(**record["progress"]), record.get("weights_sha256")
        if record["tensors"] is not None:
            if "sha256" not in record:
                warnings.warn(
                    f"{file}: is of before checkpoints had digests: damage can't be told from contents",
                    stacklevel=4,
                )
            self._check_progress(file, state)
            self._take_tensors(self.folder / record["tensors"], record)
        else:  # The run had ended; train() loads the best epoch. A kill may have left repetitions in turn.
            for part in _parts(self.folder):
                _delete_part(part)
        self.state = state

    def _check_progress(self, file: Path, state: Progress) -> None:
        """Refuses what no run can have written: older checkpoints have no digest."""
        epochs = [entry["epoch"] for entry in state.history]
        keys = {"epoch", "loss"} | ({"dev"} if self.dev is not None else set())
        if (
            state.epoch > self.settings.epochs
            or state.batch > self.steps_an_epoch
            or (state.documents == 0) != (state.batch == 0)
            or len(epochs) != state.epoch
            or epochs != list(range(1, len(epochs) + 1))
            or any(not keys <= entry.keys() for entry in state.history)
            or any(self.settings.metric not in entry["dev"] for entry in state.history if "dev" in keys)
            or (state.best_epoch not in epochs if epochs else state.best_epoch is not None)
        ):
            raise ValueError(f"{file}: not a checkpoint: its progress contradicts itself")
        for entry in state.history:  # JSON has no NaN
            for name, value in entry.get("dev", {}).items():
                entry["dev"][name] = math.nan if value is None else value

    def _take_tensors(self, file: Path, record: dict[str, Any]) -> None:
        """Weights and optimiser state of a checkpoint, once its tensors are known to be those of this run."""
        expected, scalars = self._expected_tensors(), record["scalars"]

        def check(header: Header) -> None:
            kept = {name for name in expected if name in header or name.startswith("model.")}
            # The state of a parameter is there whole, or not at all: before its first step.
            owners = {name.rpartition(".")[0] for name in (*kept, *scalars) if name.startswith("optimizer.")}
            kept |= {name for name in expected if name.rpartition(".")[0] in owners}
            if header != {name: expected[name] for name in kept if expected[name] is not None}:
                raise ValueError(f"{file}: not the tensors of a checkpoint: other names, dtypes or shapes")
            if scalars.keys() != {name for name in kept if expected[name] is None}:
                names = ", ".join(sorted(scalars)) or "none"
                raise ValueError(f"{file}: not the tensors of a checkpoint: scalars of others, {names}")

        digest = record.get("tensors_sha256")
        try:
            tensors = read_tensors(file, "not the tensors of a checkpoint", check, digest)
        except FileNotFoundError:
            missing = f"a file that it names is missing: {file}: no such file"
            raise ValueError(f"{file.with_name(CHECKPOINT)}.json: {missing}") from None
        optimizer = self.optimizer.state_dict()
        for key, value in {**tensors, **scalars}.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                i, _, entry = rest.partition(".")
                optimizer["state"].setdefault(int(i), {})[entry] = value
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_parameters(weights)
        self.optimizer.load_state_dict(optimizer)

    def _expected_tensors(self) -> dict[str, tuple[str, tuple[int, ...]] | None]:
        """dtype and shape of all that a checkpoint may hold, by name; None for scalars."""
        expected: dict[str, tuple[str, tuple[int, ...]] | None] = {}
        for name, parameter in self.model.named_parameters():
            expected[f"model.{name}"] = (safetensors_dtype(parameter), tuple(parameter.shape))
        groups = self.optimizer.param_groups
        for i, parameter in enumerate(p for group in groups for p in group["params"]):
            for moment in self.optimizer._moments:
                expected[f"optimizer.{i}.{moment}"] = (safetensors_dtype(parameter), tuple(parameter.shape))
            if isinstance(self.optimizer, optim.SparseAdam):
                expected[f"optimizer.{i}.step"] = None
        return expected

    def _save(self, folder: Path) -> None:
        self.model.save(folder)
        self.saved = read_model_record(folder)["weights"]["sha256"]

    def _check_saved(self, folder: Path) -> None:
        """Refuses a model that came into the folder from elsewhere."""
        digest = read_model_record(folder)["weights"]["sha256"]
        if self.saved is not None and self.saved != digest:
            raise ValueError(
                f"{folder / 'model.json'}: must be the model of this run's best epoch, "
                f"with weights of SHA-256 {self.saved}, got {digest}"
            )


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The record of the checkpoint in a folder, checked by itself.

    Raises:
        ValueError: It is damaged or no checkpoint. Older ones have no digest, and less is told of them.
        OSError: It is not there, or can't be read.
    """
    file = folder / f"{CHECKPOINT}.json"
    record: dict[str, Any] = read_record(file, "a checkpoint", _CHECKPOINT_SCHEMA)
    if not _DIGEST_KEYS.isdisjoint(record):
        for key in sorted(_DIGEST_KEYS - record.keys()):
            raise ValueError(f"{file}: not a checkpoint: {key} is missing")
        if record["sha256"] != digest_of(record):
            raise ValueError(f"{file}: not a checkpoint: edited: its contents do not match their SHA-256")
    return record


def _tensor_files(folder: Path) -> set[str]:
    """The tensor files of checkpoints in a folder: those of a name that only a checkpoint can have.

    Names of before there were digests could be a user's, and count where the record has them.
    """
    names = {file.name for file in folder.iterdir() if _TENSORS_WITH_DIGEST.fullmatch(file.name)}
    with contextlib.suppress(OSError, ValueError):
        names |= {read_checkpoint(folder)["tensors"]} - {None}
    return names


def forget(folder: Path) -> None:
    """Removes the checkpoint of a former run: nothing is left to resume."""
    tensors = _tensor_files(folder)
    (folder / f"{CHECKPOINT}.json").unlink(missing_ok=True)
    for name in tensors:
        delete_file(folder / name)
    for part in _parts(folder):
        _delete_part(part)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in the folder can be gone on with, or was cut off, or has ended."""
    return any((each / f"{CHECKPOINT}.json").exists() for each in (folder, *_parts(folder)))


def checkpoint_record(folder: Path) -> dict[str, Any]:
    """What the checkpoint in a folder says of its run; empty where there is none that can be read."""
    try:
        return read_checkpoint(folder)
    except (OSError, ValueError):
        return {}


def _parts(folder: Path) -> list[Path]:
    """Folders of repetitions trained in turn, also those that a kill left half deleted."""
    parts = (part for part in folder.glob("repetitions-*") if re.fullmatch(r"repetitions-\d+", part.name))
    return [part for part in parts if part.is_dir() and not part.is_symlink() and _is_part(part)]


def _is_part(folder: Path) -> bool:
    has_record = (folder / f"{CHECKPOINT}.json").exists()
    return has_record or bool(_tensor_files(folder)) or not any(folder.iterdir())


def _delete_part(part: Path) -> None:
    """Removes what a run has written into the folder of its repetitions, and the folder if that was all."""
    with exclusive(part):
        _model_folder.delete(part)
        forget(part)
    with contextlib.suppress(OSError):
        part.rmdir()


def _suggested_tau(model: MACH, label_counts: np.ndarray[Any, Any]) -> float:
    if model.merge != "mean_logit" or not label_counts.any():
        return 0.0
    return min(0.5, 1 / math.sqrt(label_counts[label_counts > 0].mean()))


def typical_length(X: Any) -> float:
    """Median length of the rows that have any; 1 where none has.

    To 20 bits: rows of unit length up to rounding count as of length 1, and X times a power of two as so
    many times as long.
    """
    lengths = row_lengths(X)
    if not lengths.any():
        return 1.0
    mantissa, exponent = math.frexp(np.median(lengths[lengths > 0]))
    return math.ldexp(round(math.ldexp(mantissa, 20)), exponent - 20)


def checksum(matrix: Any) -> int:
    """CRC-32 of a CSR matrix."""
    crc = 0
    for array in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc)
    return crc


def _differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(then.keys() | now.keys()):
        a, b = then.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {a}, now {b}")
    return found


@contextlib.contextmanager
def _finish_step_on_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of tearing a step apart; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    former = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)
