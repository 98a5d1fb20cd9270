"""Steps on all D features of documents, in tiles of features, so that no matrix [N, D] exists."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext import functional as F
from mach_ext.attack._layer import Layer

_TILE = 1 << 21  # numbers of a tile of documents x features; 8 MiB stay in the cache between two products


class Direction:
    """A matrix [N, D] over the sparse features, only tile by tile. It is a gradient G W', or noise."""

    def __init__(self, layer: Layer, gradient: Tensor | None, N: int, seed: int = 0) -> None:
        """Makes a direction. None as gradient means noise."""
        self.layer, self.gradient, self.N, self.seed = layer, gradient, N, seed

    def tile(self, begin: int, end: int, buffer: Tensor | None = None) -> Tensor:  # [N, end - begin]
        """Returns the columns from begin to end.

        The memory of `buffer` is used if it is given. It must hold at least N * (end - begin) numbers.
        """
        if self.gradient is None:
            # PyTorch's CPU generator uses only the low 32 bits of a seed.
            seed = int(np.random.SeedSequence([self.seed % (1 << 64), begin]).generate_state(1)[0])
            generator = torch.Generator(self.layer.device).manual_seed(seed)
            shape, dtype = (self.N, end - begin), self.layer.dtype
            return torch.randn(shape, generator=generator, device=self.layer.device, dtype=dtype)
        weight = self.layer.weight[:, begin:end].to(self.layer.dtype)
        out = None if buffer is None else buffer[: self.N * (end - begin)].view(self.N, -1)
        with F.own_precision(self.layer.device):
            tile = torch.mm(self.gradient[:, 0], weight[0].T, out=out)
            for c in range(1, len(weight)):
                tile.addmm_(self.gradient[:, c], weight[c].T)
        return tile

    @property
    def width(self) -> int:
        """The number of features in a tile."""
        features: int = self.layer.model.num_features
        return min(features, max(64, _TILE // max(1, self.N)))

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yields the first feature and the end of each tile."""
        D, width = self.layer.model.num_features, self.width
        return ((begin, min(D, begin + width)) for begin in range(0, D, width))


class Entries:
    """The non-zeros of documents, ordered so that those of a tile of features stand together."""

    def __init__(self, rows: Tensor, indices: Tensor) -> None:
        """Sorts the entries by feature."""
        self.order = indices.sort(stable=True).indices
        self.rows, self.columns = rows[self.order], indices[self.order].long()

    def within(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns positions, rows and columns of the entries in a tile."""
        low, high = torch.searchsorted(self.columns, self.columns.new_tensor([begin, end])).tolist()
        at = slice(low, high)
        return self.order[at], self.rows[at], self.columns[at] - begin


def sign_pass(
    direction: Direction, layer: Layer, entries: Entries, nonnegative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns offset[n] = sum over d of s[n, d] W[d], where s are the signs of the direction.

    The sum is taken in tiles of features.

    Returns:
        The offset [N, C, M] in `layer`, the number of non-zero signs [N], and the signs at the entries [nnz].
    """
    C, M = layer.shape
    offset = torch.zeros(C, direction.N, M, dtype=layer.dtype, device=layer.device)
    counts = torch.zeros(direction.N, dtype=torch.int64, device=layer.device)
    own = torch.empty(len(entries.order), dtype=layer.dtype, device=layer.device)
    buffer = torch.empty(direction.N * direction.width, dtype=layer.dtype, device=layer.device)
    for begin, end in direction.tiles():
        tile = direction.tile(begin, end, buffer)
        counts += _ops.signs(tile, nonnegative)
        positions, rows, columns = entries.within(begin, end)
        own[positions] = tile[rows, columns]
        for c in range(C):
            offset[c].addmm_(tile, layer.weight[c, begin:end].to(layer.dtype))
    return offset.transpose(0, 1), counts, own


def best_new_features(direction: Direction, entries: Entries, m: int, nonnegative: bool) -> Tensor:
    """Returns the m features [N, m] of the largest direction that documents lack, ascending.

    Without `nonnegative` the absolute direction counts.
    """
    best = torch.full((direction.N, m), -math.inf, dtype=direction.layer.dtype, device=entries.rows.device)
    features = torch.zeros(direction.N, m, dtype=torch.int64, device=entries.rows.device)
    for begin, end in direction.tiles():
        tile = direction.tile(begin, end)
        tile = tile if nonnegative else tile.abs_()
        _, rows, columns = entries.within(begin, end)
        tile[rows, columns] = -math.inf
        values, at = tile.topk(min(m, end - begin), 1)
        best, chosen = torch.cat((best, values), 1).topk(m, 1)
        features = torch.cat((features, at + begin), 1).gather(1, chosen)
    return features.sort(1).values
