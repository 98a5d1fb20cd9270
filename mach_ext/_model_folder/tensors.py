"""Tensor files: safetensors, written completely or not at all, and read without an allocation."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mach_ext._memory import check_room, memory_shortage
from mach_ext._model_folder.extents import Shape
from mach_ext.data.atomic import atomic_write
from mach_ext.data.files import open_file

# The dtypes in tensor files by their names there, in the order in which safetensors sorts tensors.
_DTYPES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


Header: TypeAlias = dict[str, tuple[str, Shape]]  # dtype and shape of each tensor of a file, by name


def named_weights(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters by their names in files, which are older than the head of a model."""
    return {name.removeprefix("head."): parameter for name, parameter in model.named_parameters()}


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file completely or not at all.

    The library's own writer leaves half-written files after a kill.
    """
    with atomic_write(path) as file:
        _write_tensors(file, tensors)


def _write_tensors(file: BinaryIO, tensors: dict[str, Tensor]) -> None:
    """Write the format: a length of 8 bytes, a JSON header of this length, then the contents.

    Tensors with large items come first.
    """
    ranks = list(_DTYPES)
    order = sorted(tensors, key=lambda name: (-ranks.index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entry = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # contents begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_bytes_of(tensors[name]))


def safetensors_dtype(tensor: Tensor) -> str:
    """Return the dtype of a tensor as tensor files name it, such as "F32"."""
    return _DTYPES[tensor.dtype]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def read_tensors(
    file: Path, what: str, check: Callable[[Header], None], digest: str | None
) -> dict[str, Tensor]:
    """Read the tensors of a file, mapped on the CPU, so that nothing is allocated for them.

    Args:
        file: The file.
        what: How the message describes a damaged file: "truncated or edited".
        check: A function that raises if the header is not valid. Nothing has been read by then.
        digest: `tensors_digest` of the contents, or None if it is not known.

    Raises:
        ValueError: The file is damaged or holds something else. The message names the file.
        FileNotFoundError: The file does not exist.
    """
    open_file(file).close()  # This refuses a pipe, for which the library would wait.
    check_room()  # Without memory for its buffers, the library would end the process.
    try:
        with safe_open(file, "pt") as content:
            entries = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            header = {name: (e.get_dtype(), tuple(e.get_shape())) for name, e in entries.items()}
            check(header)
            tensors = {name: content.get_tensor(name) for name in header}
    except SafetensorError as error:
        if memory_shortage(error) is not None:
            raise
        raise ValueError(f"{file}: {what}: {error}") from None
    except RuntimeError as error:  # The library opens the file twice. The file may vanish in between.
        if memory_shortage(error) is not None:
            raise
        if "No such file or directory" in str(error):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(file)) from None
        raise OSError(f"{file}: cannot be read: {error}") from None
    if digest is not None and tensors_digest(tensors) != digest:
        raise ValueError(f"{file}: {what}: not the contents that the record names ({digest})")
    return tensors


def check_dtypes(what: str, dtypes: Mapping[str, Any]) -> None:
    """Refuse parameters that are not floating-point numbers of a single dtype."""
    allowed = {*_WEIGHT_DTYPES, *(_DTYPES[dtype] for dtype in _WEIGHT_DTYPES)}
    for name, dtype in dtypes.items():
        if dtype not in allowed:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _WEIGHT_DTYPES)
            raise ValueError(f"{what}: {name}: must be one of {names}, got {dtype}")
    if len(set(dtypes.values())) > 1:
        names = ", ".join(sorted(map(str, set(dtypes.values()))))
        raise ValueError(f"{what}: weights must be of one dtype, got {names}")


def check_finite(what: str, tensors: Mapping[str, Tensor], rest: str = "") -> None:
    """Refuse tensors with NaN or infinities."""
    for name, tensor in tensors.items():
        # aminmax takes a single pass, in a sixth of the digest's time. If there is a NaN, it returns NaN.
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise ValueError(f"{what}: {name}: must be finite{rest}")
