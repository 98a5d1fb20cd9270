"""Linear MACH trained by a solver: a support vector machine for each bucket."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext import functional as F
from mach_ext._dense_features import joined_documents
from mach_ext._memory import check_memory, memory_errors
from mach_ext._model_folder.saving import check_step, failing_together
from mach_ext._progress import tqdm
from mach_ext.distributed.agreement import check_agreement
from mach_ext.distributed.part import ModelPart
from mach_ext.nn import MACH, check_trainable
from mach_ext.training.documents import TrainingData, check_documents, sparse_features, typical_length
from mach_ext.training.folder import lock_run
from mach_ext.training.progress import TrainingInterrupted, finish_step_on_interrupt
from mach_ext.training.svm_folder import SvmFolder

# A margin of 1, where the hinge ends, becomes a logit of 4, a probability of 0.98.
SLOPE = 4.0
MAX_FACTOR = 4096  # D of the factor for Newton's method: 128 MB in float64
NOTICEABLE = 0.5  # A violation below it does not change the metrics, see `fit_svm`.
DENSE_LENGTH = 1.0  # of centred dense features, relative to the sparse ones


class ConvergenceWarning(UserWarning):
    """Some SVMs of `fit_svm` are so far from their optimum that metrics suffer.

    Example:
        >>> import warnings
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> X = scipy.sparse.csr_matrix(np.eye(4, dtype=np.float32))
        >>> model = mach_ext.MACH(4, 4, 8, 4, hidden_size=0, merge="mean_logprob")
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", mach_ext.svm.ConvergenceWarning)
        ...     mach_ext.fit_svm(  # doctest: +ELLIPSIS
        ...         model, X, X, C=1e4, max_passes=1, progress=False
        ...     )
        Traceback (most recent call last):
        mach_ext.training.svm.ConvergenceWarning: fit_svm: up to 32 of 32 buckets have violations above ...
    """


@memory_errors("pass fewer documents, or lower torch.set_num_threads")
def fit_svm(
    model: MACH | ModelPart,
    X: Any,
    Y: Any,
    *,
    C: float = 1.0,
    tolerance: float = 0.3,
    max_passes: int = 100,
    output: str | Path | None = None,
    quantization_step: float | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
    progress: bool = True,
) -> None:
    """Train linear MACH to the optimum: an L2-regularised squared-hinge SVM for each bucket.

    For bucket b, y_n is 1 if document n has a label in b, else -1. The solver finds the w and the bias that
    minimise the following sum.

    ```text
    (|w|^2 + bias^2) / 2 + C sum_n max(0, 1 - y_n (w x_n + bias))^2
    ```

    One-vs-rest systems solve the same problem for each label. x_n is row n of X, divided by the median length
    of the rows. C is therefore for documents of length about 1.

    The method follows from the shape of X. If D^2 is at most the number of non-zeros, and D at most 4,096, it
    is Newton's method. (Keerthi and DeCoste, A modified finite Newton method for fast solution of large scale
    linear SVMs, JMLR 2005.) Otherwise it is dual coordinate descent. (Hsieh et al., A dual coordinate descent
    method for large-scale linear SVM, ICML 2008.) That is faster on text, but slow if documents share most
    features. The tolerance means the same for both.

    `bucket_weight` and `bucket_bias` become 4 (w, bias), so that sigmoids of bucket logits are about
    probabilities. `merge="mean_logprob"` then ranks best. There is no learning rate and no number of epochs
    to choose. The result depends neither on the model's weights before nor on a seed. The number of threads
    and the instruction set do not change it either.

    Time grows with nnz * R * B. In float32, each thread takes 64 (N + D) bytes beside the model and the data.
    With Newton's method, it takes 192 N + 8 D^2 bytes.
    A bucket without documents gets w = 0 and a margin of -1. Margins from -0.95 to -4 ranked alike where 4 to
    46 % of the buckets were empty: P@1, P@3 and P@5 stayed within 0.02 points.

    Args:
        model: Linear MACH (hidden_size=0), float32 or float64, on the CPU. It is trained in place and ends in
            eval mode. After Ctrl-C, only a part of its buckets is solved. Of several processes, each gives
            its `mach_ext.distributed.part.ModelPart`.
        X: Documents [N, D], a SciPy, NumPy or torch matrix.
        Y: Labels [N, L], a SciPy, NumPy or torch matrix.
        C: Cost of a document on the wrong side.
        tolerance: The largest allowed violation of a bucket. This is the distance between the largest and the
            smallest entry of the dual's projected gradient. The entry of a document that is longer than the
            median is divided by its length, at most by 10.
        max_passes: After so many passes over the documents, a tile of 16 buckets counts as done.
        output: Folder for checkpoints, and for the model at the end. None keeps everything in memory.
        quantization_step: The model in `output` is saved with rounded weights, as by `MACH.save`, and has
            them in memory, too. 0.8 suits documents of about unit length. For one process.
        resume: Continue from the checkpoint in `output`, or start if there is none. The settings, the model's
            shape and the data must be those of the checkpoint. The result has the bits of a run that was not
            stopped. The checkpoint is removed at the end.
        checkpoint_minutes: Maximum minutes between checkpoints. A checkpoint is also written after every
            repetition.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: The data or a number has a wrong type.
        ValueError: The model has hidden units or is on another device, the data is not valid, or a number is
            out of range. Or the checkpoint belongs to another run.
        MemoryError: Memory does not suffice.
        TrainingInterrupted: Ctrl-C was pressed. The solved buckets are saved in `output`.

    Warns:
        ConvergenceWarning: Violations above both 0.5 and the tolerance are left after `max_passes`. On
            held-out documents, violations up to 0.5 changed P@1 and P@5 by less than 0.2 points. Violations
            of 1 cost up to 1.5 points, and those above 2 cost 3 to 40 points.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> Y = scipy.sparse.csr_matrix(np.eye(20)[np.arange(200) % 20])
        >>> X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
        >>> model = mach_ext.MACH(20, 20, 8, 10, hidden_size=0, merge="mean_logprob")
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> bool((model.predict(X, k=1)[1][:, 0] == np.arange(200) % 20).all())
        True
    """
    settings = _checked_settings(C, tolerance, max_passes)
    _check_model(model.model if isinstance(model, ModelPart) else model)
    part = model if isinstance(model, ModelPart) else ModelPart.alone(model)
    model = part.model
    if resume and output is None:
        raise ValueError("fit_svm: resume needs the output folder of the run to continue")
    if quantization_step is not None:
        _check_step(quantization_step, output, part)
    X, Y = check_documents("fit_svm", "X", "Y", X, Y, model)
    data = TrainingData(X, Y)
    length = typical_length(sparse_features(model, X))
    model.hash.check_contents()
    if X.shape[0] == 0:
        raise ValueError("fit_svm: needs at least one document, got N=0")
    model.scale_for_training(X, DENSE_LENGTH * length)
    X = joined_documents("fit_svm: X", model, X)
    check_memory(
        "fit_svm: a copy of X, and what each thread keeps of a bucket", _memory(model, X),
        "pass fewer documents, or lower torch.set_num_threads", N=X.shape[0], D=X.shape[1],
    )  # fmt: skip
    problem = _Problem.of(model, X, Y, length, **settings)
    with contextlib.ExitStack() as stack:
        folder = None
        if output is not None:
            folder = SvmFolder(Path(output), part, _identity(part, data, length, settings))
            with failing_together(part.ranks.collect):
                if part.ranks.is_first:
                    stack.enter_context(lock_run(folder.folder))
            folder.begin(resume)
        unfinished = _solve(part, problem, folder, 60 * checkpoint_minutes, progress)
        model.eval()
        if folder is not None:
            folder.end(quantization_step)
    if unfinished:
        total = model.num_repetitions * model.num_buckets
        warnings.warn(
            f"fit_svm: up to {unfinished} of {total} buckets have violations above {problem.noticeable} "
            f"after max_passes={max_passes}; raise max_passes, lower C, or train in float64",
            ConvergenceWarning,
            stacklevel=3,  # above `memory_errors`
        )


def _checked_settings(C: Any, tolerance: Any, max_passes: Any) -> dict[str, Any]:
    """Return the settings of the solver after their checks."""
    settings = {
        "C": float(C),
        "tolerance": float(tolerance),
        "max_passes": F.as_int("fit_svm", "max_passes", max_passes),
    }
    limits = {"C": (1e-6, 1e6), "tolerance": (1e-12, 1e6), "max_passes": (1, 2**31 - 1)}
    for name, (low, high) in limits.items():
        if not low <= settings[name] <= high:
            raise ValueError(f"fit_svm: {name} must be within {low} and {high}, got {settings[name]}")
    return settings


def _check_step(step: Any, output: Any, part: ModelPart) -> None:
    if output is None:
        raise ValueError("fit_svm: quantization_step needs the output folder, where the model is saved")
    if not part.is_alone:
        raise ValueError(f"fit_svm: quantization_step is for one process, got {part.ranks.size}")
    check_step("fit_svm", step)


def _identity(part: ModelPart, data: TrainingData, length: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a run. The same on all ranks, or they are refused."""
    identity = {
        "format": 1,
        "solver": settings,
        "model": part.configuration(),
        "hash": part.fingerprint,
        "dtype": str(part.model.bucket_weight.dtype).removeprefix("torch."),
        "length": length,
        "data": data.fingerprint(),
    }
    check_agreement("fit_svm", part.ranks, identity)
    return identity


def _check_model(model: MACH) -> None:
    check_trainable("fit_svm", model)
    weight, bias = model.bucket_weight, model.bucket_bias
    if (
        not model.is_linear
        or weight.device.type != "cpu"
        or weight.dtype not in (torch.float32, torch.float64)
        or bias.dtype != weight.dtype
    ):
        raise ValueError(
            "fit_svm: is for linear MACH (hidden_size=0) in float32 or float64 on the CPU, got hidden_size="
            f"{model.hidden_sizes}, {weight.dtype} (bias {bias.dtype}) on {weight.device}"
        )


def _prefers_newton(X: Any) -> bool:
    """Return whether Newton's method solves the buckets of documents [N, D].

    It needs a matrix of D x D numbers, which must be at most as many as the non-zeros and as 4096 x 4096.
    """
    D = X.shape[1]
    return bool(D <= MAX_FACTOR and X.nnz >= D * D)


def _memory(model: MACH, X: Any) -> int:
    """Return the bytes that solving takes beside the model and the data."""
    threads = min(torch.get_num_threads(), math.ceil(model.num_buckets / _ops.SVM_TILE))
    (N, D), size, tile = X.shape, model.bucket_weight.element_size(), _ops.SVM_TILE
    if not _prefers_newton(X):
        return int(size * (X.nnz + threads * tile * (N + D)))
    factor = (D + 1) ** 2
    return int(size * (X.nnz + factor + threads * tile * (3 * N + 5 * D)) + 8 * factor * threads)


@dataclass(frozen=True)
class _Problem:
    """What the SVMs of all buckets share."""

    documents: tuple[Tensor, Tensor, Tensor]  # values, indices, indptr
    labels: tuple[Tensor, Tensor]  # indices, indptr
    length: float
    factor: Tensor | None
    C: float
    tolerance: float
    max_passes: int

    @classmethod
    def of(cls, model: MACH, X: Any, Y: Any, length: float, **settings: Any) -> _Problem:
        documents = (
            torch.from_numpy(X.data).to(model.bucket_weight.dtype) / length,
            torch.from_numpy(X.indices.astype(np.int32, copy=False)),
            torch.from_numpy(X.indptr.astype(np.int64, copy=False)),
        )
        labels = tuple(torch.from_numpy(a.astype(np.int64, copy=False)) for a in (Y.indices, Y.indptr))
        factor = _ops.svm_factor(*documents, X.shape[1], settings["C"]) if _prefers_newton(X) else None
        return cls(documents, labels, length, factor, **settings)  # type: ignore[arg-type]

    @property
    def noticeable(self) -> float:
        """The violation from which on a bucket counts as not solved."""
        return max(self.tolerance, NOTICEABLE)

    def solve(self, buckets: Tensor, first: int, weight: Tensor, bias: Tensor) -> int:
        """Solve some buckets of a repetition, and return how many may not be near the optimum."""
        _, violations = _ops.bucket_svm(
            *self.documents,
            buckets,
            *self.labels,
            first=first,
            C=self.C,
            tolerance=self.tolerance,
            max_passes=self.max_passes,
            factor=self.factor,
            weight=weight,
            bias=bias,
        )
        weight.mul_(SLOPE / self.length)
        bias.mul_(SLOPE)
        return min(_ops.SVM_TILE * int((violations > self.noticeable).sum()), bias.shape[0])


@torch.no_grad()
def _solve(
    part: ModelPart, problem: _Problem, folder: SvmFolder | None, seconds: float, progress: bool
) -> int:
    """Solve each bucket, and return how many may not be near the optimum.

    The folder keeps each repetition when it is solved, and the first buckets of one after so many seconds.
    """
    model, B = part.model, part.model.num_buckets
    total, unfinished = model.num_repetitions * B, 0
    together = 4 * _ops.SVM_TILE * torch.get_num_threads()  # The bar moves after so many buckets.
    model.set_logit_adjustment(0)
    last = time.monotonic()
    with (
        tqdm(total=total, unit="bucket", disable=not progress, dynamic_ncols=True) as bar,
        finish_step_on_interrupt() as interrupted,
    ):
        for r in range(model.num_repetitions):
            solved, bad = folder.load(r) if folder is not None else (0, 0)
            bar.update(solved)
            weight, bias = model.bucket_weight[r], model.bucket_bias[r]
            for first in range(solved, B, together):
                end = min(first + together, B)
                bad += problem.solve(model.hash.buckets[r], first, weight[:, first:end], bias[first:end])
                bar.update(end - first)
                is_due = end == B or interrupted.is_set() or time.monotonic() - last > seconds
                if folder is not None and is_due:
                    folder.keep(r, end, bad)
                    last = time.monotonic()
                if interrupted.is_set() and r * B + end < total:
                    raise TrainingInterrupted(_stopped(folder, r * B + end, total))
            unfinished += bad
    return unfinished


def _stopped(folder: SvmFolder | None, solved: int, total: int) -> str:
    """Return the message after Ctrl-C."""
    if folder is None:
        return f"training stopped after {solved} of {total} buckets; nothing saved (no output folder)"
    return (
        f"training stopped; {folder.folder} holds a checkpoint of {solved} of {total} buckets: "
        "continue with resume=True (--resume)"
    )
