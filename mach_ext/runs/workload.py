"""The work that throughput is measured on: a batch of documents, and a call for each kernel and path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from mach_ext import _ops, attack, data, explain, optim
from mach_ext import functional as F
from mach_ext._dense_features import joined_when_taken
from mach_ext.hashing import LabelHash
from mach_ext.nn import MACH
from mach_ext.training import Hyperparameters
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

LABELS_ASKED = 5  # labels of a document, for works that take labels as an argument
SAMPLE = 32  # documents that attributions explain in turn, a document in each call


@dataclass(frozen=True)
class Work:
    """A kernel or path with its inputs.

    Attributes:
        name: The name in `WORKS`.
        call: Runs the work once.
        documents: The documents of a call.
        labels: The labels of a call, summed over its documents. `predict` and `merge_topk` count all L
            labels of each document. Training and attacks count the true labels. Attributions count the
            explained labels.
        bytes: The least data that a call must move between memory and processor. Each needed weight counts
            once for each time it is read or written. Inputs and outputs of the batch count, too. Data that
            can stay in the cache does not count.
    """

    name: str
    call: Callable[[], Any]
    documents: int
    labels: int
    bytes: float


@dataclass
class Workload:
    """A model with the documents [N, D] and labels [N, L] on which its works are measured.

    The documents of a model with dense features are a `HybridMatrix`.

    Example:
        >>> import mach_ext
        >>> from mach_ext.runs.workload import Workload, random_documents
        >>> model = mach_ext.MACH(500, 1000, num_repetitions=4, num_buckets=64, hidden_size=16)
        >>> workload = Workload(model, *random_documents(8, 500, 1000), k=3)
        >>> work = workload.work("predict")
        >>> work.documents, work.labels
        (8, 8000)
        >>> work.call()[1].shape
        (8, 3)
    """

    model: MACH
    X: Any
    Y: Any
    k: int = 5

    def names(self) -> list[str]:
        """Returns the names of the works that this model has on its device."""
        missing = set(_OF_HIDDEN) if self.model.is_linear else set()
        if self.device.type != "cpu":
            missing.update(_PATHS)
        return [name for name in WORKS if name not in missing]

    def work(self, name: str) -> Work:
        """Prepares a work. Its inputs are made here, so that its call makes none."""
        return Work(name, *WORKS[name](self))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.bucket_bias.device

    @cached_property
    def batch(self) -> data.Batch:
        """All documents and labels as a mini-batch on the device."""
        return self._batch_of(joined_when_taken(self.model, self.X))

    @cached_property
    def training_batch(self) -> data.Batch:
        """The same batch as training takes it, with the dense features apart."""
        return self._batch_of(self.X)

    def _batch_of(self, X: Any) -> data.Batch:
        (batch,) = data.iter_batches(X, self.Y, self.X.shape[0])
        moved: dict[str, Any] = {
            name: t.to(self.device) for name, t in batch._asdict().items() if isinstance(t, Tensor)
        }
        return batch._replace(**moved)

    @cached_property
    def documents(self) -> tuple[Tensor, Tensor, Tensor]:
        """The values, features and row starts of the batch."""
        return self.batch.values, self.batch.indices, self.batch.indptr

    @cached_property
    def rows(self) -> Tensor:
        """The features that occur in the batch, which are the needed rows of the first layer."""
        rows: Tensor = self.batch.indices.unique().long()
        return rows

    @cached_property
    def hidden(self) -> Tensor:
        """The hidden units of the batch."""
        with torch.no_grad():
            return self.model.encode(*self.documents).contiguous()

    @cached_property
    def logits(self) -> Tensor:
        """Bucket logits [N, R, B] like those of a trained model."""
        return peaky_logits(self.N, self.model.hash, 0).to(self.device)

    @property
    def N(self) -> int:
        """The number of documents."""
        return int(self.X.shape[0])

    @property
    def width(self) -> int:
        """The outputs of the first layer. For linear models they are those of a single repetition."""
        model = self.model
        return model.num_buckets if model.is_linear else int(model.encoder_weight.shape[1])

    def moved(self, times: int) -> float:
        """Returns the bytes of a product with the documents that moves each occurring row `times` times."""
        return 8.0 * int(self.X.nnz) + 4.0 * self.width * (times * len(self.rows) + self.N)

    @property
    def upper_bytes(self) -> float:
        """The bytes of all weights above the first layer."""
        model = self.model
        first = model.bucket_weight if model.is_linear else model.encoder_weight
        return 4.0 * (sum(p.numel() for p in model.parameters()) - int(first.numel()))

    @property
    def first_bytes(self) -> float:
        """The bytes of the first layer's rows that occur, in all repetitions."""
        repetitions = self.model.num_repetitions if self.model.is_linear else 1
        return 4.0 * len(self.rows) * self.width * repetitions

    def first_weight(self) -> Tensor:
        """Returns a random weight of the first layer's shape. Rows that do not occur are never written."""
        weight = torch.zeros(self.model.num_columns, self.width, device=self.device)
        weight[self.rows] = torch.randn(len(self.rows), self.width, device=self.device)
        return weight


Parts = tuple[Callable[[], Any], int, int, float]  # the fields of a Work after its name


def _sparse_linear(w: Workload) -> Parts:
    weight = w.first_weight()
    return lambda: F.sparse_linear(*w.documents, weight, validate=False), w.N, w.Y.nnz, w.moved(1)


def _sparse_linear_backward(w: Workload) -> Parts:
    """The gradient of the weight in the rows that occur."""
    weight = w.first_weight().requires_grad_()
    out = F.sparse_linear(*w.documents, weight, sparse_grad=True, validate=False)
    gradient = torch.randn_like(out)
    call = partial(torch.autograd.grad, out, weight, gradient, retain_graph=True)
    return call, w.N, w.Y.nnz, w.moved(1)


def _sparse_linear_step(w: Workload) -> Parts:
    """The gradient and Adam's step of the rows that occur. It reads and writes weight and two moments."""
    weight = torch.nn.Parameter(w.first_weight())
    optimizer = optim.SparseAdam([weight], lr=1e-6)
    gradient = torch.randn(w.N, 1, w.width, device=w.device)

    def call() -> None:
        order = _ops.feature_order(w.batch.indices, w.batch.indptr, len(weight))
        optimizer.begin_step()
        optimizer.step_sparse_linear(weight, None, gradient, w.batch.values, order)

    return call, w.N, w.Y.nnz, w.moved(6)


def _bucket_bce(w: Workload) -> Parts:
    """The loss of all buckets, and the gradients of hidden units, weight and bias."""
    model = w.model
    hidden = w.hidden.clone().requires_grad_()
    labels = w.batch.label_indices, w.batch.label_indptr
    parameters = model.bucket_weight, model.bucket_bias

    def call() -> Any:
        loss = F.bucket_bce(hidden, *parameters, *labels, model.hash, validate=False)
        return torch.autograd.grad(loss, (hidden, *parameters))

    return call, w.N, w.Y.nnz, 8.0 * (hidden.numel() + sum(p.numel() for p in parameters))


def _merge_topk(w: Workload, path: str) -> Parts:
    """The best k labels. A bucket number takes two bytes, and a returned label takes twelve."""
    hash, logits = w.model.hash, w.logits
    index = hash.label_index()
    bytes_moved = 4.0 * logits.numel() + 2.0 * hash.buckets.numel() + 12.0 * w.N * w.k
    call = partial(_ops.merge_topk, logits, hash.buckets, index, w.k, "mean", path=path)
    return call, w.N, w.N * hash.num_labels, bytes_moved


def _label_logits(w: Workload) -> Parts:
    """The logits of given labels. It reads hidden units and the columns of the labels' buckets."""
    model, R = w.model, w.model.num_repetitions
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(model.num_labels, (w.N, LABELS_ASKED), generator=generator).to(w.device)
    columns = sum(len(model.hash.buckets[r].long()[labels].unique()) for r in range(R))
    bytes_moved = 4.0 * (w.hidden.numel() + columns * model.bucket_weight.shape[1] + R * labels.numel())
    call = partial(F.label_logits, w.hidden, model.bucket_weight.detach(), model.bucket_bias.detach())
    return partial(call, model.hash, labels, validate=False), w.N, labels.numel(), bytes_moved


def _predict(w: Workload) -> Parts:
    """From SciPy's matrix to the best labels. It reads each needed weight and bucket number once."""
    codes = 2.0 * w.model.hash.buckets.numel()
    bytes_moved = 8 * w.X.nnz + w.first_bytes + w.upper_bytes + codes + 12.0 * w.N * w.k
    return partial(w.model.predict, w.X, w.k), w.N, w.N * w.model.num_labels, bytes_moved


def _attributions(w: Workload) -> Parts:
    """Exact Integrated Gradients of five labels. It reads the document's rows and the buckets' columns."""
    model, sample = w.model, w.X[:SAMPLE]
    documents = [sample[n] for n in range(sample.shape[0]) if sample[n].nnz]
    labels = np.random.default_rng(0).integers(0, model.num_labels, (len(documents), LABELS_ASKED))
    turns = itertools.cycle(zip(documents, labels, strict=True))
    nonzeros = sample.nnz / len(documents)
    outputs = LABELS_ASKED * model.num_repetitions if model.is_linear else w.width
    upper = 0 if model.is_linear else LABELS_ASKED * model.num_repetitions * model.bucket_weight.shape[1]

    def call() -> Any:
        x, asked = next(turns)
        return explain.integrated_gradients(model, x, asked)

    return call, 1, LABELS_ASKED, 4.0 * (nonzeros * outputs + upper)


def _attack(w: Workload) -> Parts:
    """FGSM of a single size. Its forward and backward pass each read all needed weights."""
    # Centred dense features are of either sign.
    fgsm = attack.FGSM(w.model, attack.Support(nonnegative=not w.model.num_dense))
    bytes_moved = 16 * w.X.nnz + 2 * (w.first_bytes + w.upper_bytes)
    return partial(fgsm.perturb, w.X, w.Y, 0.01), w.N, w.Y.nnz, bytes_moved


def _training_step(w: Workload) -> Parts:
    """A step of `fit`. It reads and writes weights and moments. Adam has two moments, and Adagrad has one."""
    settings = Hyperparameters.of(w.model, batch_size=w.N)
    run = TrainingRun(w.model.train(), settings, TrainingData(w.X, w.Y))
    times = 4 if w.model.is_linear else 6
    bytes_moved = 8 * w.X.nnz + times * (w.first_bytes + w.upper_bytes)
    return partial(run.do_step, w.training_batch, True), w.N, w.Y.nnz, bytes_moved


_PATHS = {f"merge_topk, {path}": partial(_merge_topk, path=path) for path in ("direct", "scan", "lists")}
_OF_HIDDEN = {"bucket_bce": _bucket_bce, "label_logits": _label_logits}

# The training step runs last, because it changes the weights of the model.
WORKS: dict[str, Callable[[Workload], Parts]] = {
    "sparse_linear": _sparse_linear,
    "sparse_linear, backward": _sparse_linear_backward,
    "sparse_linear, fused step": _sparse_linear_step,
    **_OF_HIDDEN,
    "merge_topk": partial(_merge_topk, path="auto"),
    **_PATHS,
    "predict": _predict,
    "integrated_gradients": _attributions,
    "FGSM": _attack,
    "training step": _training_step,
}


def random_documents(
    num_documents: int,
    num_features: int,
    num_labels: int,
    nonzeros: int = 75,
    labels: int = 5,
    seed: int = 0,
    num_dense: int = 0,
) -> tuple[scipy.sparse.csr_matrix | data.HybridMatrix, scipy.sparse.csr_matrix]:
    """Returns documents [N, D] and labels [N, L]. Features follow Zipf's law, as words do.

    With dense features, the documents are a `HybridMatrix`. Its dense features are drawn from N(0, 1 / E), so
    that rows have a length of about 1.

    Args:
        num_documents: The number of documents, N.
        num_features: The number of features, D.
        num_labels: The number of labels, L.
        nonzeros: The number of words that are drawn for a document. A word that is drawn twice counts once.
        labels: The number of labels that are drawn for a document.
        seed: The seed of the random numbers.
        num_dense: The number of dense features, E.

    Example:
        >>> from mach_ext.runs.workload import random_documents
        >>> X, Y = random_documents(10, num_features=500, num_labels=100)
        >>> X.shape, Y.shape
        ((10, 500), (10, 100))
    """
    rng = np.random.default_rng(seed)
    frequency = np.arange(1, num_features + 1) ** -0.8
    words = rng.choice(num_features, (num_documents, nonzeros), p=frequency / frequency.sum())
    words = rng.permutation(num_features)[words]  # features are numbered at random, as in vocabularies
    wanted = rng.integers(0, num_labels, (num_documents, labels))
    X, Y = _matrix(words, num_features, rng), _matrix(wanted, num_labels)
    if not num_dense:
        return X, Y
    dense = rng.standard_normal((num_documents, num_dense), np.float32) / math.sqrt(num_dense)
    return data.HybridMatrix(X, dense), Y


def _matrix(columns: Any, width: int, rng: np.random.Generator | None = None) -> scipy.sparse.csr_matrix:
    """Returns rows with values in these columns: ones, or random values that give each row length 1."""
    rows = np.repeat(np.arange(len(columns)), columns.shape[1])
    ones = np.ones(columns.size, np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (rows, columns.ravel())), (len(columns), width))
    matrix.sum_duplicates()
    matrix.data[:] = 1 if rng is None else rng.random(matrix.nnz, np.float32) + 0.5
    if rng is not None:
        matrix.data /= np.repeat(data.row_lengths(matrix), np.diff(matrix.indptr))
    return matrix


def peaky_logits(num_documents: int, hash: LabelHash, seed: int | torch.Generator) -> Tensor:
    """Returns logits [N, R, B] like those of a trained model: few buckets are high, and most are low.

    Most logits are drawn from N(-9, 1.5). Each document has 5 true labels, whose logits are about 4, 3, 2, 1
    and 0. Noise from N(0, 1) is added in each repetition. Each document also has up to 200 related labels,
    with logits from N(-4, 1.5). All of these labels come from a pool of up to 2,000 that all documents share.
    """
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    N, R, B, L = num_documents, hash.num_repetitions, hash.num_buckets, hash.num_labels
    logits = torch.empty(N, R, B).normal_(-9, 1.5, generator=generator)
    pool = torch.randint(L, (min(L, 2000),), generator=generator)
    related = pool[torch.randint(len(pool), (N, min(200, B // 8)), generator=generator)]
    strength = torch.empty(N, R, related.shape[1]).normal_(-4, 1.5, generator=generator)
    raise_buckets(logits, hash, related, strength)
    true = pool[torch.randint(len(pool), (N, 5), generator=generator)]
    strength = torch.empty(N, R, 5).normal_(0, 1, generator=generator) + torch.arange(4.0, -1, -1)
    raise_buckets(logits, hash, true, strength)
    return logits


def raise_buckets(logits: Tensor, hash: LabelHash, labels: Tensor, strength: Tensor) -> None:
    """Raises the R buckets of each document's labels [N, m] to at least strength [N, R, m]."""
    for r in range(hash.num_repetitions):
        buckets = hash.buckets[r].cpu().long()[labels]
        logits[:, r].scatter_reduce_(1, buckets, strength[:, r], "amax")
