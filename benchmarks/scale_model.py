"""What a rank of MACH holds, does and receives, by layout. Arithmetic alone, from shapes.

Every rank is a process with a GPU or a CPU core. A layout says what a rank has of the model, what it does in
a step, and what it receives from the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mach_ext.functional._repetitions import group_size
from mach_ext.training.precision import ROUNDED_TOGETHER

FLOAT, NARROW = 4, 2  # bytes
MOMENTS = {"shared": 2, "independent": 2, "none": 1, "svm": 0}  # Adam, Adagrad, a solver


@dataclass(frozen=True)
class Shape:
    """A model, its data, and the batch of all ranks together.

    Attributes:
        encoder: "shared" or "independent" encoders, "none" for linear MACH, "svm" for its solver.
        labels_each: Labels of a document.
    """

    documents: int
    features: int  # D
    nonzeros: float  # of a document
    labels: int  # L
    repetitions: int  # R
    buckets: int  # B
    hidden: int  # H
    batch: int  # N
    encoder: str = "shared"
    half: bool = False
    labels_each: int = 5

    @property
    def outputs(self) -> int:
        return self.repetitions * self.buckets

    @property
    def columns(self) -> int:
        """Of the weight that takes the documents."""
        if self.encoder in ("none", "svm"):
            return self.outputs
        return self.hidden * (self.repetitions if self.encoder == "independent" else 1)

    @property
    def has_hidden(self) -> bool:
        return self.encoder in ("shared", "independent")


def occurring(documents: float, shape: Shape) -> float:
    """Features that occur in so many documents, if each document draws them evenly. Text repeats more."""
    D = shape.features
    return D * (1 - (1 - min(1.0, shape.nonzeros / D)) ** documents)


# ----------------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Exchange:
    """What a rank receives in a step.

    Attributes:
        operation: Of torch.distributed.
        received: Bytes.
        ranks: That take part.
        stride: From the number of one that takes part to the next.
    """

    operation: str
    received: float
    ranks: int
    stride: int = 1


@dataclass(frozen=True)
class Part:
    """What a rank holds of the model, and what it does in a step. The rank with the most counts.

    Attributes:
        documents: Of a step.
        repetitions: Whose label hash it holds. A rank may hold a part of the buckets of one.
        outputs: Buckets of all its repetitions.
        columns: Of the weight that takes the documents.
        rows: Of that weight, stepped in a step.
        merged: Rows of the gradients of all copies, which are added up.
        exchanges: One after the other, in a step.
        copies: Of this part, among the ranks.
    """

    shape: Shape
    documents: int
    repetitions: int
    outputs: int
    columns: int
    rows: float
    exchanges: tuple[Exchange, ...] = ()
    copies: int = 1
    merged: float = 0

    @property
    def buckets(self) -> int:
        """Of a repetition."""
        return self.outputs // self.repetitions

    @property
    def classifiers(self) -> int:
        """Weights between hidden units and buckets."""
        return self.outputs * self.shape.hidden if self.shape.has_hidden else 0

    @property
    def parameters(self) -> int:
        rows = self.shape.features * self.columns + (self.columns if self.shape.has_hidden else 0)
        return rows + self.classifiers + self.outputs

    @property
    def received(self) -> float:
        return sum(exchange.received for exchange in self.exchanges)

    @property
    def flops(self) -> float:
        """Of a step: three products of the classifiers, two of the documents."""
        encoder = 4 * self.documents * self.shape.nonzeros * self.columns
        return encoder + 6 * self.documents * self.classifiers


class NotPossible(ValueError):
    """A layout has no part for so many ranks."""


def by_repetition(shape: Shape, ranks: int) -> Part:
    """A rank trains R/G repetitions with encoders of their own. It receives nothing."""
    if shape.encoder == "shared":
        raise NotPossible("repetitions share their encoder")
    if ranks > shape.repetitions:
        raise NotPossible(f"{ranks} ranks for {shape.repetitions} repetitions")
    own = math.ceil(shape.repetitions / ranks)
    outputs = own * shape.buckets
    columns = own * shape.hidden if shape.has_hidden else outputs
    return Part(shape, shape.batch, own, outputs, columns, occurring(shape.batch, shape))


def by_unit(shape: Shape, ranks: int) -> Part:
    """A rank has R/G classifiers and H/G columns of a shared encoder.

    All ranks gather the hidden units, and then the partial gradient to them of every rank.
    """
    if ranks > shape.repetitions:
        raise NotPossible(f"{ranks} ranks for {shape.repetitions} repetitions")
    return _of_units(shape, ranks, gathers_gradients=True)


def by_unit_columns(shape: Shape, ranks: int) -> Part:
    """As `by_unit`, but a rank receives the gradients to its own hidden units alone."""
    if ranks > shape.repetitions:
        raise NotPossible(f"{ranks} ranks for {shape.repetitions} repetitions")
    return _of_units(shape, ranks, gathers_gradients=False)


def by_bucket(shape: Shape, ranks: int) -> Part:
    """As `by_unit_columns`, but a rank may have a part of the buckets of a repetition.

    The loss is a sum over buckets, so a part of a repetition needs nothing from the others.
    """
    return _of_units(shape, ranks, gathers_gradients=False)


def _of_units(shape: Shape, ranks: int, gathers_gradients: bool) -> Part:
    if shape.encoder != "shared":
        raise NotPossible("no encoder is shared")
    if ranks > shape.hidden:
        raise NotPossible(f"{ranks} ranks for {shape.hidden} hidden units")
    if ranks <= shape.repetitions:
        own = math.ceil(shape.repetitions / ranks)
        outputs = own * shape.buckets
    else:
        own, outputs = 1, math.ceil(shape.outputs / ranks)
    columns = math.ceil(shape.hidden / ranks)
    units = FLOAT * shape.batch * shape.hidden
    hidden = Exchange("all_gather", units * (ranks - 1) / ranks, ranks)
    if gathers_gradients:
        gradients = Exchange("all_gather", units * (ranks - 1), ranks)
    else:
        gradients = Exchange("all_to_all", units * (ranks - 1) / ranks, ranks)
    exchanges = (hidden, gradients) if ranks > 1 else ()
    return Part(shape, shape.batch, own, outputs, columns, occurring(shape.batch, shape), exchanges)


def whole(shape: Shape, ranks: int) -> Part:
    """The whole model on each rank. Only copies make it use of several ranks."""
    if ranks > 1:
        raise NotPossible("the model is whole")
    R = shape.repetitions
    return Part(shape, shape.batch, R, shape.outputs, shape.columns, occurring(shape.batch, shape))


LAYOUTS: dict[str, Callable[[Shape, int], Part]] = {
    "by repetition": by_repetition,
    "by unit": by_unit,
    "by unit, columns": by_unit_columns,
    "by bucket": by_bucket,
    "data parallel": whole,
}


def plan(layout: str, shape: Shape, ranks: int, copies: int = 1) -> Part:
    """A rank's part. Each of the `copies` of the model takes its share of the documents of a step.

    Copies reduce the dense gradient of the classifiers. They gather the rows of the other weight that occur.
    "data parallel" has a copy on each rank.
    """
    if layout == "data parallel":
        copies = ranks
    if ranks % copies or shape.batch % copies:
        raise NotPossible(f"{copies} copies on {ranks} ranks for {shape.batch} documents")
    own = replace(shape, batch=shape.batch // copies)
    part = LAYOUTS[layout](own, ranks // copies)
    if copies == 1:
        return part
    rows = occurring(own.batch, shape)
    shards = ranks // copies
    exchanges = [Exchange("all_gather", (copies - 1) * rows * (FLOAT * part.columns + 8), copies, shards)]
    if part.classifiers:
        dense = 2 * (copies - 1) / copies * FLOAT * part.classifiers
        exchanges.insert(0, Exchange("all_reduce", dense, copies, shards))
    stepped = occurring(shape.batch, shape)
    more = {"exchanges": (*part.exchanges, *exchanges), "copies": copies, "merged": copies * rows}
    return replace(part, shape=shape, rows=stepped, **more)


# ------------------------------------------------------------------------------------------------ memory


def memory(part: Part, device: str = "cuda") -> dict[str, float]:
    """Bytes of a rank in training, as training.expected_memory counts them, and what layouts add.

    Tensors of a second hidden layer and of dense features are left out.
    """
    s, N, R, B = part.shape, part.documents, part.repetitions, part.buckets
    weights = FLOAT * part.parameters
    G = min(R, group_size(N, B, FLOAT, torch.device(device)))
    step = FLOAT * (G + 1) * N * B + 32 * s.nonzeros * N
    if s.has_hidden:
        hidden = N * s.hidden * (R if s.encoder == "independent" else 1)
        step += FLOAT * G * s.hidden * B + 16 * hidden + (FLOAT * G * N * s.hidden if G > 1 else 0)
    if device == "cuda":
        step += 32 * s.nonzeros * N
    if s.half:
        rounded = part.columns // (R if s.encoder == "none" else 1) * min(s.features, N * s.nonzeros)
        step += NARROW * s.features * part.columns + 6 * min(rounded, ROUNDED_TOGETHER)
        if s.has_hidden:
            step += G * (2 * N * B + 4 * s.hidden * B) + 4 * N * s.hidden + 2 * hidden
    gathered = sum(e.received for e in part.exchanges if e.operation != "all_reduce")
    dense = FLOAT * part.classifiers if part.copies > 1 else 0
    return {
        "weights": weights,
        "moments": MOMENTS[s.encoder] * weights,
        "label hash": FLOAT * R * s.labels,
        "step": step,
        "exchanges": gathered + dense,
    }
