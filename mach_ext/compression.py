"""Weights in few bytes: rounded to multiples of a step, then zlib. `MACH.save` writes them.

Trained with steps as large as the evidence (`encoder_eps`), the rows of rare features are small: most of
their weights become 0, which costs next to nothing, and about 1.7 bits are left of a weight's 32.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 22  # weights at a time; of the format, where a weight takes two bytes
_PIECE = 1 << 20  # bytes of a stream at a time


def encode(weight: Tensor, step: float) -> Tensor:
    """A matrix [..., M] as a zlib stream, uint8 [bytes]; the same bits for the same weights and zlib.

    The stream: bytes a weight (1 or 2); a class of each row [rows], by the sum of its magnitudes; the
    multiples [rows, M] as 0, -1, 1, -2, ... -> 0, 1, 2, 3, ..., rows of low class first, because a Huffman
    code suits what is alike. Those of two bytes as all low bytes of a block, then all high ones.

    Raises:
        ValueError: Weights that are not finite, of 32,768 steps or more, or that all become 0.
    """
    rows = weight.detach().reshape(-1, weight.shape[-1])
    sums, largest = torch.empty(len(rows), dtype=torch.float64), 0.0
    for chunk in _blocks(torch.arange(len(rows)), rows.shape[1]):
        codes = _codes(rows[chunk], step).abs()
        sums[chunk], largest = codes.double().sum(1), max(float(codes.max()), largest)
    if not sums.isfinite().all():
        raise ValueError(f"weights / {step:g} must be finite")
    if largest >= 2**15:
        raise ValueError(f"weights must be below 32,768 steps of {step:g}, got {largest * step:g}")
    if largest == 0 and rows.any():
        raise ValueError(f"weights must not all be rounded to 0, as they are by step {step:g}")
    width = 1 if largest < 2**7 else 2
    classes = (8 * torch.log2(1 + sums)).round().to(torch.uint8)
    coder = zlib.compressobj(9, wbits=15, memLevel=9, strategy=zlib.Z_RLE)
    parts = [coder.compress(bytes([width]) + classes.numpy().tobytes())]
    for chunk in _blocks(_order(classes), rows.shape[1]):
        codes = _codes(rows[chunk], step)
        numbers = torch.where(codes < 0, -2 * codes - 1, 2 * codes).numpy().astype(f"<u{width}")
        parts.append(coder.compress(numbers.view(np.uint8).reshape(-1, width).T.tobytes()))
    return torch.frombuffer(bytearray(b"".join([*parts, coder.flush()])), dtype=torch.uint8)


def decode(stream: Tensor, shape: Sequence[int], step: float) -> Tensor:
    """The matrix float32 of this shape that `encode` made a stream of: the nearest multiples of the step.

    Raises:
        ValueError: Not such a stream, or of another shape.
    """
    weight = torch.empty(tuple(shape))
    rows = weight.view(-1, shape[-1])
    other = ValueError(f"must be a zlib stream of weights {list(shape)}, got other contents")
    content = _Inflater(stream)
    try:
        width = content.read(1)[0]
        if width not in (1, 2):
            raise other
        classes = torch.frombuffer(bytearray(content.read(len(rows))), dtype=torch.uint8)
        numbers = torch.arange(256**width, dtype=torch.int32)
        values = ((numbers >> 1) ^ -(numbers & 1)).float() * step
        for chunk in _blocks(_order(classes), rows.shape[1]):
            planes = np.frombuffer(content.read(width * len(chunk) * rows.shape[1]), np.uint8)
            block = np.ascontiguousarray(planes.reshape(width, -1).T).view(f"<u{width}")
            block = np.take(values.numpy(), block, mode="clip")  # Nothing is out of range.
            rows[chunk] = torch.from_numpy(block).view(len(chunk), -1)
        if not content.at_end():
            raise other
    except zlib.error as error:
        raise ValueError(f"must be a zlib stream, got {error}") from None
    except EOFError:
        raise other from None
    return weight


class _Inflater:
    """Reads a zlib stream piece by piece. Its whole content would be up to half as large as the matrix."""

    def __init__(self, stream: Tensor) -> None:
        self._decoder = zlib.decompressobj()
        self._pieces = iter(torch.split(stream, _PIECE))

    def read(self, count: int) -> bytes:
        """The next `count` bytes. EOFError where there are fewer."""
        parts = []
        while count > 0:
            part = self._decoder.decompress(self._decoder.unconsumed_tail, count)
            if not part:
                piece = next(self._pieces, None)
                if piece is None:
                    raise EOFError
                part = self._decoder.decompress(piece.numpy().data, count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def at_end(self) -> bool:
        """Whether the stream ends here, whole."""
        rest = (piece.numpy().tobytes() for piece in self._pieces)
        more = self._decoder.decompress(b"".join([self._decoder.unconsumed_tail, *rest]), 1)
        return self._decoder.eof and not more


def _codes(rows: Tensor, step: float) -> Tensor:
    return torch.round(rows.float() / step)


def _order(classes: Tensor) -> Tensor:
    return torch.sort(classes, stable=True).indices


def _blocks(order: Tensor, columns: int) -> Sequence[Tensor]:
    """Numbers of rows of so many columns, a block at a time."""
    return torch.split(order, max(1, _BLOCK // columns))
