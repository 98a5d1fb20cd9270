"""Weights in few bytes: rounded to multiples of a step and compressed by zlib, for `MACH.save`.

If a model is trained with steps as large as the evidence (`encoder_eps`), the rows of rare features are
small. Most of their weights become 0, which takes almost no space. About 1.7 of a weight's 32 bits are left.

Example:
    >>> import torch
    >>> from mach_ext.compression import encode
    >>> sparse = 0.2 * torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> 4 * sparse.numel() > 20 * len(encode(sparse, step=0.5))  # 20 times smaller
    True
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["decode", "encode", "round_to"]

_BLOCK = 1 << 22  # So many weights are packed at a time. It is a part of the format of two-byte weights.
_PIECE = 1 << 20  # So many bytes of a stream are read at a time.


def encode(weight: Tensor, step: float) -> Tensor:
    """Turn a matrix [..., M] into a zlib stream, uint8 [bytes].

    The bits are the same for the same weights and the same zlib. The stream holds the following:

    * The bytes of a weight (1 or 2).
    * A class of each row [rows], from the sum of its magnitudes.
    * The multiples [rows, M], numbered 0, -1, 1, -2, ... -> 0, 1, 2, 3, ... .

    Rows of low class come first, because a Huffman code suits numbers that are alike. If a weight takes two
    bytes, all low bytes of a block come before all high bytes.

    Args:
        weight: The matrix.
        step: The weights are rounded to multiples of it.

    Returns:
        The stream, uint8 [bytes].

    Raises:
        ValueError: Weights are not finite, are 32,768 steps or more, or all become 0.

    Example:
        >>> import torch
        >>> from mach_ext.compression import decode, encode
        >>> weight = torch.tensor([[0.5, 0.1, -0.7], [0.0, 0.02, 0.0]])
        >>> stream = encode(weight, step=0.5)
        >>> decode(stream, weight.shape, step=0.5)
        tensor([[ 0.5000,  0.0000, -0.5000],
                [ 0.0000,  0.0000,  0.0000]])
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
    """Return the float32 matrix that `encode` made a stream of: the nearest multiples of the step.

    Args:
        stream: The stream, uint8 [bytes].
        shape: The shape of the matrix.
        step: The step that `encode` was given.

    Returns:
        The matrix, float32.

    Raises:
        ValueError: The stream is damaged or belongs to another shape.

    Example:
        >>> import torch
        >>> from mach_ext.compression import decode, encode
        >>> decode(encode(torch.tensor([[1.0, 2.0, 3.4]]), step=1.0), (1, 3), step=1.0)
        tensor([[1., 2., 3.]])
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
            block = np.take(values.numpy(), block, mode="clip")  # Nothing is clipped. This skips a check.
            rows[chunk] = torch.from_numpy(block).view(len(chunk), -1)
        if not content.at_end():
            raise other
    except zlib.error as error:
        raise ValueError(f"must be a zlib stream, got {error}") from None
    except EOFError:
        raise other from None
    return weight


class _Inflater:
    """A reader of a zlib stream in pieces. Its whole content could be half as large as the matrix."""

    def __init__(self, stream: Tensor) -> None:
        self._decoder = zlib.decompressobj()
        self._pieces = iter(torch.split(stream, _PIECE))

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, or raise EOFError if there are fewer."""
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
        """Return whether the stream ends here and is complete."""
        rest = (piece.numpy().tobytes() for piece in self._pieces)
        more = self._decoder.decompress(b"".join([self._decoder.unconsumed_tail, *rest]), 1)
        return self._decoder.eof and not more


def round_to(weight: Tensor, step: float) -> None:
    """Round a matrix [..., M] in place, to what `decode` would give after `encode`.

    Example:
        >>> import torch
        >>> from mach_ext.compression import round_to
        >>> weight = torch.tensor([[0.5, 0.1, -0.7]])
        >>> round_to(weight, step=0.5)
        >>> weight
        tensor([[ 0.5000,  0.0000, -0.5000]])
    """
    rows = weight.view(-1, weight.shape[-1])
    for block in torch.split(rows, max(1, _BLOCK // rows.shape[1])):
        block.copy_(_codes(block, step) * step + 0.0)  # which makes -0.0 a 0.0


def _codes(rows: Tensor, step: float) -> Tensor:
    return torch.round(rows.float() / step)


def _order(classes: Tensor) -> Tensor:
    return torch.sort(classes, stable=True).indices


def _blocks(order: Tensor, columns: int) -> Sequence[Tensor]:
    """Split numbers of rows with so many columns into blocks."""
    return torch.split(order, max(1, _BLOCK // columns))
