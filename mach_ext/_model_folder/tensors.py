"""Tensor files: safetensors, written whole or not at all, and read without an allocation."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mach_ext._memory import check_room, memory_shortage
from mach_ext._model_folder.record import Shape
from mach_ext.data import atomic_write
from mach_ext.data.files import open_file

# What tensor files hold, in their words, in the order in which safetensors puts tensors.
_DTYPES = {
    torch.uint8: "U8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


Header: TypeAlias = dict[str, tuple[str, Shape]]  # of a tensor file: dtype and shape by name


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes safetensors, whole or not at all. (The library's own writer leaves its halves after a kill.)"""
    with atomic_write(path) as file:
        _write_tensors(file, tensors)


def _write_tensors(file: BinaryIO, tensors: dict[str, Tensor]) -> None:
    """The format: a length of 8 bytes, a JSON header of this length, the contents; large items first."""
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
    """The dtype of a tensor in the words of tensor files: "F32"."""
    return _DTYPES[tensor.dtype]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def read_tensors(
    file: Path, what: str, check: Callable[[Header], None], digest: str | None
) -> dict[str, Tensor]:
    """Tensors of a file, on the CPU, mapped: nothing is allocated for them.

    Args:
        file: The file.
        what: What to say of a file that is damaged: "truncated or edited".
        check: Raises where the header is not as it must be; nothing was read by then.
        digest: `tensors_digest` of its contents; None: not known.

    Raises:
        ValueError: It is damaged, or holds something else; names the file.
        FileNotFoundError: It is not there.
    """
    open_file(file).close()  # the library would wait for a pipe
    check_room()  # without which it would end the process
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
    except RuntimeError as error:  # The library opens the file twice. It may be gone in between.
        if memory_shortage(error) is not None:
            raise
        if "No such file or directory" in str(error):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(file)) from None
        raise OSError(f"{file}: cannot be read: {error}") from None
    if digest is not None and tensors_digest(tensors) != digest:
        raise ValueError(f"{file}: {what}: not the contents that the record names ({digest})")
    return tensors


def check_dtypes(what: str, dtypes: Mapping[str, Any]) -> None:
    """Parameters must be floating-point numbers of one dtype."""
    allowed = {*_WEIGHT_DTYPES, *(_DTYPES[dtype] for dtype in _WEIGHT_DTYPES)}
    for name, dtype in dtypes.items():
        if dtype not in allowed:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _WEIGHT_DTYPES)
            raise ValueError(f"{what}: {name}: must be one of {names}, got {dtype}")
    if len(set(dtypes.values())) > 1:
        names = ", ".join(sorted(map(str, set(dtypes.values()))))
        raise ValueError(f"{what}: weights must be of one dtype, got {names}")


def check_finite(what: str, tensors: Mapping[str, Tensor], rest: str = "") -> None:
    for name, tensor in tensors.items():
        # One pass in a sixth of the time that the digest takes; NaN is its own minimum.
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise ValueError(f"{what}: {name}: must be finite{rest}")
