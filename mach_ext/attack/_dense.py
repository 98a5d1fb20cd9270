"""Steps on all D features of documents, in tiles of features: the matrix [N, D] never exists."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext import functional as F
from mach_ext.attack._layer import Layer

_TILE = 1 << 21  # numbers of a tile of documents x features: 8 MiB stay in cache from one product to the next


class Direction:
    """An [N, D] matrix, tile by tile: a gradient G W', or noise."""

    def __init__(self, layer: Layer, gradient: Tensor | None, N: int, seed: int = 0) -> None:
        self.layer, self.gradient, self.N, self.seed = layer, gradient, N, seed

    def tile(self, begin: int, end: int, buffer: Tensor | None = None) -> Tensor:  # [N, end - begin]
        """With a `buffer`, N * (end - begin) numbers or more, in its memory."""
        if self.gradient is None:
            # Torch's CPU generator takes the low 32 bits of a seed only.
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
        return min(self.layer.weight.shape[1], max(64, _TILE // max(1, self.N)))

    def tiles(self) -> Iterator[tuple[int, int]]:
        D, width = self.layer.weight.shape[1], self.width
        return ((begin, min(D, begin + width)) for begin in range(0, D, width))


class Entries:
    """The non-zeros of documents, found again in tiles of features."""

    def __init__(self, rows: Tensor, indices: Tensor) -> None:
        self.order = indices.sort(stable=True).indices
        self.rows, self.columns = rows[self.order], indices[self.order].long()

    def within(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, rows, columns of the tile."""
        low, high = torch.searchsorted(self.columns, self.columns.new_tensor([begin, end])).tolist()
        at = slice(low, high)
        return self.order[at], self.rows[at], self.columns[at] - begin


def sign_pass(
    direction: Direction, layer: Layer, entries: Entries, nonnegative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """offset[n] = sum over d of s[n, d] W[d] with s the signs of the direction, in tiles of features.

    Returns:
        offset [N, C, M] in `layer`, how many s are not 0 [N], s of the entries [nnz].
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
    """The m features [N, m], ascending, of the largest (absolute) direction that documents lack."""
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
