"""A batch of perturbed documents, kept as CSR arrays and a few directions over all features."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext.attack._dense import Direction
from mach_ext.attack._rows import rows_of


@dataclass
class Batch:
    """Documents from number `start` on.

    A document is the sum of its base, kept in CSR arrays, and of the weighted signs of directions.
    """

    start: int
    x: Tensor  # [nnz] clean values, 0 at features that were inserted
    values: Tensor  # [nnz] values of the base
    indices: Tensor
    indptr: Tensor
    loss: Tensor  # [N]
    clean_loss: Tensor  # [N]
    directions: list[tuple[Tensor, Direction]] = field(default_factory=list)  # weights [N]
    offset: Tensor | None = None  # [N, C, M]: offset * scale[N] is what the directions add to the first layer
    scale: Tensor | None = None
    counts: Tensor | None = None  # [N] number of non-zero signs
    own_counts: Tensor | None = None  # [N] number of non-zero signs at the document's own features
    targets: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The document of each entry [nnz]."""
        return rows_of(self.indptr)

    def add_offset(self, first: Tensor) -> Tensor:
        """Returns the first layer with the offset added."""
        assert self.offset is not None
        assert self.scale is not None
        return torch.addcmul(first, self.offset, self.scale[:, None, None])


def joined(batches: list[Batch], name: str) -> NDArray[Any]:
    """Returns an attribute of all batches as one array."""
    parts = [getattr(batch, name).cpu().numpy() for batch in batches]
    return np.concatenate(parts) if parts else np.empty(0)


def joined_targets(batches: list[Batch]) -> NDArray[np.int64] | None:
    """Returns the targets of all batches, or None if the goal has none."""
    return joined(batches, "targets") if batches and batches[0].targets is not None else None


def restore_others(batch: Batch, keep: Tensor, clean_loss: Tensor) -> Batch:
    """Returns the batch with all documents clean again except those of `keep`."""
    assert batch.scale is not None
    return replace(
        batch,
        values=torch.where(keep[batch.rows], batch.values, batch.x),
        loss=torch.where(keep, batch.loss, clean_loss),
        directions=[(weight * keep, direction) for weight, direction in batch.directions],
        scale=batch.scale * keep,
    )


def merge_batches(new: Batch, best: Batch, better: Tensor) -> Batch:
    """Returns the new batch for documents that are `better`, and the best batch so far for the others."""
    assert new.offset is not None
    assert best.offset is not None
    assert new.scale is not None
    assert best.scale is not None
    both = [(w * better, d) for w, d in new.directions] + [(w * ~better, d) for w, d in best.directions]
    merged: dict[int, tuple[Tensor, Direction]] = {}
    for weight, direction in both:
        other = merged.get(id(direction))
        merged[id(direction)] = (weight if other is None else weight + other[0], direction)
    return replace(
        new,
        values=torch.where(better[new.rows], new.values, best.values),
        loss=torch.where(better, new.loss, best.loss),
        clean_loss=best.clean_loss,
        directions=list(merged.values()),
        offset=torch.where(better[:, None, None], new.offset, best.offset),
        scale=torch.where(better, new.scale, best.scale),
        counts=None,  # the norms of several directions must be computed from the directions
        own_counts=None,
    )
