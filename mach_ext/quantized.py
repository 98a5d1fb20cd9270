"""Models with weights of 8 bits, which predict faster on the CPU and take a quarter of the memory.

Example:
    >>> import scipy.sparse, mach_ext
    >>> model = mach_ext.MACH(num_features=1000, num_labels=5000, num_repetitions=8, num_buckets=64)
    >>> X = scipy.sparse.random(3, 1000, density=0.01, format="csr", dtype="float32", random_state=0)
    >>> small = mach_ext.quantize(model)
    >>> bool((small.predict(X, k=1)[1] == model.predict(X, k=1)[1]).all())
    True
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mach_ext import _model_folder, _ops, _prediction
from mach_ext import functional as F
from mach_ext._dense_features import SCALING
from mach_ext._encoder import _Encoder
from mach_ext._hashed_labels import _OfLabelHash
from mach_ext._memory import check_memory, memory_errors
from mach_ext._model_checks import check_finite
from mach_ext._model_folder.record import TILE, WORD, of_hidden_units, packed_shape, parameter_shapes
from mach_ext.functional._checks import check_contents, check_documents
from mach_ext.hashing import LabelHash
from mach_ext.merges import MODEL_MERGES

__all__ = ["QuantizedMACH", "pack", "quantize", "unpack"]

MOST = 127  # the greatest magnitude of a weight in 8 bits
MOST_UNITS = 65_536  # of a hidden layer, so that a sum of products fits 32 bits
_BLOCK = 1 << 22  # So many weights are rounded at a time.


class QuantizedMACH(_OfLabelHash):
    """A MACH model whose weights are whole numbers from -127 to 127, each times a scale.

    The rows of the weight that takes the documents have a scale each. The buckets have a scale each in the
    weight that takes hidden units. Hidden units are rounded to 7 bits, with a scale for each document and
    repetition. Their products with the weights are summed in integers. So scores are the same bits on every
    CPU, with any number of threads, in any batch. The decode is exact for these scores.

    It predicts on the CPU. `quantize` makes one of a model, and `mach_ext.load` reads one from a folder. For
    gradients, `mach_ext.nn.in_float32` gives the model in float32 that has the same weights.

    Attributes:
        hash: The label hash.
        merge: How labels are scored, as in `mach_ext.MACH`.
        attachments: Files that belong to the model, by name.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
        >>> mach_ext.quantize(model)
        QuantizedMACH(num_features=10, num_labels=20, num_repetitions=8, num_buckets=8, hidden_size=[4])
    """

    encoder_weight: nn.Parameter  # [D, H] or [D, R * H] int8; with E dense features D + E rows
    encoder_scale: nn.Parameter  # [D]
    encoder_bias: nn.Parameter
    hidden_weight: nn.Parameter  # [R, H1, H2], packed; with a shared encoder R is 1 here
    hidden_scale: nn.Parameter
    hidden_bias: nn.Parameter
    bucket_weight: nn.Parameter  # [R, H, B], packed; [R, D, B] in linear MACH
    bucket_scale: nn.Parameter  # [R, B]; [D] in linear MACH
    bucket_bias: nn.Parameter  # [R, B]
    merge: str
    precision = "int8"  # of its predictions, which `_prediction` asks for

    def __init__(self, configuration: dict[str, Any], hash: LabelHash, tensors: dict[str, Tensor]) -> None:
        """Take tensors as they are, without a copy.

        Args:
            configuration: What `mach_ext.MACH.configuration` returns.
            hash: The label hash.
            tensors: Weights in int8, their scales and biases by name. Weights that take hidden units are in
                the order of `pack`.
        """
        super().__init__()
        self._configuration = configuration
        self.num_features, self.num_dense = configuration["num_features"], configuration.get("num_dense", 0)
        self.hidden_sizes = tuple(configuration["hidden_size"] or ())
        if max(self.hidden_sizes, default=0) > MOST_UNITS:
            raise ValueError(f"hidden_size must be at most {MOST_UNITS:,} in 8 bits, got {self.hidden_sizes}")
        self.encoder, self.merge, self.hash = configuration["encoder"], configuration["merge"], hash
        self.attachments: dict[str, bytes] = {}
        self.register_buffer("logit_adjustment", torch.zeros_like(tensors["bucket_bias"]))
        for name, tensor in tensors.items():
            if name in ("logit_adjustment", *SCALING):
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Keep the numbers of 8 bits and their scales as they are. No other device has operators for them."""
        probe = fn(torch.zeros(1))
        if not probe.is_cpu:
            raise ValueError(f"QuantizedMACH: a quantized model predicts on the CPU, not on {probe.device}")
        return self if probe.dtype != torch.float32 else super()._apply(fn, recurse)

    def __repr__(self) -> str:
        """Return the sizes of the model."""
        names = ("num_features", "num_labels", "num_repetitions", "num_buckets", "hidden_size")
        return f"QuantizedMACH({', '.join(f'{name}={self._configuration[name]}' for name in names)})"

    @property
    def is_linear(self) -> bool:
        """Whether this is linear MACH, which has no hidden layer.

        Example:
            >>> import mach_ext
            >>> mach_ext.quantize(mach_ext.MACH(10, 20, 8, 6, hidden_size=4)).is_linear
            False
        """
        return not self.hidden_sizes

    def configuration(self) -> dict[str, Any]:
        """Return the constructor arguments of the model in float32.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.quantize(mach_ext.MACH(10, 20, 8, 6, hidden_size=4))
            >>> mach_ext.MACH(**model.configuration()).num_buckets
            6
        """
        return dict(self._configuration)

    def forward(
        self, values: Tensor, indices: Tensor, indptr: Tensor, *, validate: bool = True
    ) -> Tensor:  # [N, R, B]
        """Return the bucket logits of documents in CSR form, with joined dense features if there are any.

        Args:
            values: Non-zeros of the documents, [nnz] float32.
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            validate: False skips the check of the contents.

        Returns:
            [N, R, B] float32.

        Raises:
            TypeError: An argument has a wrong type or dtype.
            ValueError: The documents are not valid.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.quantize(mach_ext.MACH(10, 20, 8, 6, hidden_size=4))
            >>> model(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])).shape
            torch.Size([1, 8, 6])
        """
        op = "QuantizedMACH"
        check_documents(op, values, indices, indptr)
        if values.dtype != torch.float32:
            raise TypeError(f"{op}: values must be float32, got {values.dtype}")
        check_contents(op, values, indices, indptr, self.num_features + self.num_dense, validate)
        is_linear = self.is_linear
        scale = self.bucket_scale if is_linear else self.encoder_scale
        scaled = values * scale.index_select(0, indices)
        weight, bias = (
            (self.bucket_weight, self.bucket_bias) if is_linear else (self.encoder_weight, self.encoder_bias)
        )
        out = _ops.sparse_linear(scaled, indices, indptr, weight, bias, not is_linear)
        if is_linear:
            return out
        if self.encoder == "independent":
            out = out.unflatten(1, (self.num_repetitions, self.hidden_sizes[0]))
        if len(self.hidden_sizes) == 2:
            second = (self.hidden_weight, self.hidden_scale, self.hidden_bias)
            out = _ops.bucket_forward_int8(out, *second).relu_()
            out = out.squeeze(1) if self.encoder == "shared" else out
        return _ops.bucket_forward_int8(out, self.bucket_weight, self.bucket_scale, self.bucket_bias)

    @memory_errors("pass fewer documents at a time or lower k")
    def topk(
        self, values: Tensor, indices: Tensor, indptr: Tensor, k: int, *, validate: bool = True
    ) -> tuple[Tensor, Tensor]:  # scores [N, k], labels [N, k]
        """Return the k best labels of one batch of documents. The decode is exact for the bucket scores.

        Args:
            values: As in `forward`.
            indices: As in `forward`.
            indptr: As in `forward`.
            k: The number of labels, from 0 to L.
            validate: As in `forward`.

        Returns:
            Scores [N, k] and labels [N, k], best first.

        Raises:
            TypeError: As in `forward`.
            ValueError: As in `forward`, or `k` is out of range.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.quantize(mach_ext.MACH(10, 20, 8, 6, hidden_size=4))
            >>> model.topk(torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1]), k=3)[1].shape
            torch.Size([1, 3])
        """
        merge = MODEL_MERGES[self.merge]
        scores = self(values, indices, indptr, validate=validate)
        _ops.transform_logits(scores, _prediction.transform_name(merge) or "none")
        return F.merge_topk(scores, self.hash, k, merge.reduction)

    def predict(
        self, X: Any, k: int | None = None, batch_size: int | None = None, precision: str = "int8"
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the k best labels of each document, as `mach_ext.MACH.predict` does.

        Args:
            X: As in `mach_ext.MACH.predict`.
            k: The number of labels, from 0 to L. None means 5, or L if there are fewer labels.
            batch_size: Documents in a batch. It changes no bit of the result. None takes as many as have
                bucket scores within 16 MiB, which a near cache holds.
            precision: "int8". A model of 8 bits has no other.

        Returns:
            Scores [N, k] float32 and labels [N, k] int64 as NumPy arrays, best first.

        Raises:
            TypeError: `X` is no matrix.
            ValueError: `X` does not have D columns or is not finite, `k` is out of range, or another
                precision was asked for.
            MemoryError: Memory does not suffice.

        Example:
            >>> import numpy as np, mach_ext
            >>> model = mach_ext.quantize(mach_ext.MACH(4, 20, 8, 6, hidden_size=4))
            >>> model.predict(np.eye(4, dtype=np.float32), k=2)[1].shape
            (4, 2)
        """
        return _prediction.predict(self, X, k, batch_size, precision)

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors by name, as `__init__` takes them and files have them.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.quantize(mach_ext.MACH(10, 20, 8, 6, hidden_size=4))
            >>> model.stored()["bucket_weight"].shape, model.stored()["bucket_scale"].shape
            (torch.Size([8, 1, 1, 64, 4]), torch.Size([8, 6]))
        """
        own = (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False))
        return {name: tensor.detach() for name, tensor in own}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model into a folder, as `mach_ext.MACH.save` does. `mach_ext.load` reads it.

        The file takes a quarter of the bytes. It is mapped, so processes that load it share its memory.

        Args:
            path: The folder. It is made if it does not exist.

        Raises:
            ValueError: Another run is training in the folder.
            OSError: The folder cannot be written. Nothing of the new model is left.

        Example:
            >>> import tempfile, mach_ext
            >>> folder = tempfile.mkdtemp()
            >>> mach_ext.quantize(mach_ext.MACH(10, 20, 8, 6, hidden_size=4)).save(folder)
            >>> mach_ext.load(folder).num_labels
            20
        """
        _model_folder.save_quantized("QuantizedMACH.save", self, Path(path))


@torch.no_grad()
@memory_errors("free memory first")
def quantize(model: Any) -> QuantizedMACH:
    """Return a model with weights of 8 bits, a quarter of the bytes, which predicts faster on the CPU.

    Each row of the weight that takes the documents is divided by its scale, the greatest magnitude in it /
    127, and rounded. In the weights that take hidden units each bucket has such a scale. So a weight moves by
    at most half of its scale. docs/results/performance.md has P@1, 3 and 5 of both.

    Weights that take hidden units have room for a multiple of 64 buckets. So a model with very few buckets is
    no smaller.

    Args:
        model: A `mach_ext.MACH` on the CPU. It stays as it is. Methods of a subclass are not taken over.

    Raises:
        TypeError: The argument is not a `MACH`, or is one in float64.
        ValueError: The model is not on the CPU, has more than 65,536 hidden units in a layer, or a weight is
            not finite.
        MemoryError: Memory does not suffice.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
        >>> mach_ext.quantize(model).encoder_weight.dtype
        torch.int8
    """
    if isinstance(model, QuantizedMACH):
        return model
    is_model = isinstance(model, _Encoder)  # A name, so that it does not narrow the type for mypy.
    if not is_model:
        raise TypeError(f"quantize: model must be a mach_ext.MACH, got {type(model).__name__}")
    if not model.bucket_bias.is_cpu:
        raise ValueError(
            f"quantize: int8 is for the CPU, got a model on {model.bucket_bias.device}; "
            "a GPU predicts faster with precision bfloat16"
        )
    if model.bucket_bias.dtype == torch.float64:
        raise TypeError("quantize: int8 is for float32, got a model in float64")
    configuration = model.configuration()
    packed = of_hidden_units(configuration)
    shapes = parameter_shapes(configuration)
    sizes = [math.prod(packed_shape(s) if name in packed else s) for name, s in shapes.items()]
    check_memory("quantize: the weights in 8 bits", sum(sizes), "free memory first")
    tensors = {"logit_adjustment": model.logit_adjustment.float().clone()}
    for name in shapes:
        weight = getattr(model, name).detach()  # A pruned or parametrized weight is what it computes with.
        if name.endswith("_bias"):
            tensors[name] = weight.float().clone()
        else:
            numbers, scale = _rounded(weight, -2 if name in packed else -1)
            tensors[name] = pack(numbers) if name in packed else numbers
            tensors[name.replace("weight", "scale")] = scale
    if not all(tensor.isfinite().all() for name, tensor in tensors.items() if not name.endswith("weight")):
        check_finite("quantize", model)
    tensors |= {name: getattr(model, name).clone() for name in SCALING if name in model._buffers}
    quantized = QuantizedMACH(configuration, model.hash, tensors)
    quantized.attachments = dict(model.attachments)
    return quantized


def _rounded(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return a weight in int8 and its scales: of its rows [D] if `dim` is -1, of its columns if it is -2."""
    matrices = weight.unsqueeze(0) if weight.dim() == 2 else weight
    scales = torch.stack([_greatest(each, dim) for each in matrices])
    if dim == -1:  # Repetitions share the scale of a row, which then multiplies the documents.
        scales = scales.amax(0, keepdim=True).expand_as(scales)
    scales = torch.where(scales == 0, 1.0, (scales / MOST).clamp(min=torch.finfo(torch.float32).tiny))
    numbers = torch.empty(weight.shape, dtype=torch.int8)
    for each, scale, out in zip(matrices, scales, numbers.view(matrices.shape), strict=True):
        for rows in _blocks(each):
            of_rows = scale[rows].unsqueeze(1) if dim == -1 else scale
            out[rows] = torch.round(each[rows].float() / of_rows)
    return numbers, (scales[0].clone() if dim == -1 else scales)


def _greatest(matrix: Tensor, dim: int) -> Tensor:
    """Return the greatest magnitudes of the rows of a matrix, or of its columns."""
    parts = [matrix[rows].float().abs().amax(dim) for rows in _blocks(matrix)]
    return torch.cat(parts) if dim == -1 else torch.stack(parts).amax(0)


def _blocks(matrix: Tensor) -> list[slice]:
    """Return blocks of rows of a matrix, which are rounded together."""
    size = max(1, _BLOCK // matrix.shape[1])
    return [slice(first, first + size) for first in range(0, len(matrix), size)]


def pack(weight: Tensor) -> Tensor:  # [R, H, B] -> [R, tiles, words, 64, 4]
    """Return a weight in the order in which `_ops.bucket_forward_int8` reads it.

    Args:
        weight: [R, H, B] int8.

    Returns:
        [R, tiles, words, 64, 4] of 64 buckets and 4 hidden units, padded with zeros.

    Example:
        >>> import torch
        >>> from mach_ext.quantized import pack
        >>> pack(torch.ones(2, 5, 70, dtype=torch.int8)).shape
        torch.Size([2, 2, 2, 64, 4])
    """
    R, H, B = weight.shape
    padded = nn.functional.pad(weight, (0, -B % TILE, 0, -H % WORD))
    tiles = padded.view(R, padded.shape[1] // WORD, WORD, padded.shape[2] // TILE, TILE)
    return tiles.permute(0, 3, 1, 4, 2).contiguous()


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:  # [R, tiles, words, 64, 4] -> [R, H, B]
    """Return the weight that `pack` was given.

    Args:
        packed: What it returned.
        shape: The shape of the weight, (R, H, B).

    Returns:
        [R, H, B] int8.

    Example:
        >>> import torch
        >>> from mach_ext.quantized import pack, unpack
        >>> weight = torch.arange(-10, 10, dtype=torch.int8).view(1, 5, 4)
        >>> unpack(pack(weight), (1, 5, 4)).equal(weight)
        True
    """
    R, tiles, words = packed.shape[:3]
    weight = packed.permute(0, 2, 4, 1, 3).reshape(R, words * WORD, tiles * TILE)
    return weight[:, : shape[1], : shape[2]].contiguous()
