"""The initial weights of a part of a model: those that the whole model would have, without the whole."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mach_ext._encoder import initial_std
from mach_ext._model_folder import parameter_shapes
from mach_ext._model_folder.extents import Extent, cut_of

# PyTorch draws normal numbers in blocks of 16, so pieces of whole blocks have the bits of one large draw. The
# last block may be shorter, and PyTorch then draws its last 16 numbers anew. It stays with the piece before.
_BLOCK = 16
_PIECE = 1 << 22  # numbers drawn at a time


def draw_weights(
    configuration: dict[str, Any], extent: Extent, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the initial weights of a part by name, float32 on the CPU. Biases are left to the model.

    Every part draws the numbers of all parts, in the order of `MACH.reset_parameters`, and keeps its own.
    """
    drawn = {}
    if not configuration["hidden_size"]:
        return {}  # linear MACH starts at zero
    for name, shape in parameter_shapes(configuration).items():
        if name.endswith("_bias"):
            continue
        std, cut = initial_std(name, shape), cut_of(name, configuration)
        # The tensor as a matrix, of which the part keeps rows and columns.
        rows, columns = range(math.prod(shape[:-1])), range(shape[-1])
        if cut == (1, "units"):
            columns = extent.units
        elif cut is not None:
            each = math.prod(shape[1:-1])
            rows = range(extent.repetitions.start * each, extent.repetitions.stop * each)
        matrix = _draw(math.prod(shape[:-1]), shape[-1], std, generator, rows, columns)
        kept = shape if cut is None or cut[0] == 1 else (len(extent.repetitions), *shape[1:])
        drawn[name] = matrix.view(*kept[:-1], len(columns))
    return drawn


def _draw(
    num_rows: int, num_columns: int, std: float, generator: torch.Generator, rows: range, columns: range
) -> Tensor:
    """Draw a matrix piece by piece, and return its entries in a range of rows and of columns."""
    kept = torch.empty(len(rows), len(columns))
    together = max(_BLOCK, _PIECE // max(1, num_columns) // _BLOCK * _BLOCK)
    start = 0
    while start < num_rows:
        stop = start + together
        if num_rows - stop < _BLOCK:
            stop = num_rows
        piece = torch.empty(stop - start, num_columns).normal_(0, std, generator=generator)
        first, last = max(start, rows.start), min(stop, rows.stop)
        if first < last:
            own = piece[first - start : last - start, columns.start : columns.stop]
            kept[first - rows.start : last - rows.start] = own
        start = stop
    return kept
