"""How the files of a model folder become a model."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mach_ext import compression
from mach_ext._memory import check_memory
from mach_ext._model_folder.extents import Extent, Shape, part_shapes, whole_extent
from mach_ext._model_folder.record import (
    configuration_of,
    kind_of,
    parameter_shapes,
    quantized_shapes,
    read_model_record,
    scaling_shapes,
    shards_of,
)
from mach_ext._model_folder.saving import ADVICE
from mach_ext._model_folder.shards import read_part
from mach_ext._model_folder.tensors import Header, check_dtypes, check_finite
from mach_ext.data.files import open_file
from mach_ext.hashing import LabelHash

# A label hash with a table of so many bytes must agree with the other files about the labels.
_LARGE = 1 << 26


def load(make: Mapping[str, Callable[..., Any]], folder: Path, device: torch.device | str) -> Any:
    """Implement `mach_ext.load`, where `make` has the constructors of "model", "head" and "int8"."""
    while True:
        stamp = _stamp(folder)
        try:
            return _load(make, folder, device)
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno != errno.ESTALE:
                raise
            if _stamp(folder) == stamp:
                raise ValueError(
                    f"{folder / 'model.json'}: a file that model.json names is missing: {error}"
                ) from None


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """Return a stamp of `model.json` that differs after each save, even of the same model."""
    try:
        status = (folder / "model.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns


def _load(make: Mapping[str, Callable[..., Any]], folder: Path, device: torch.device | str) -> Any:
    record = read_model_record(folder)
    attached = {name: _read_attachment(folder / file) for name, file in record["attachments"].items()}
    is_int8 = "precision" in record["weights"]
    if is_int8 and torch.device(device).type != "cpu":
        raise ValueError(f"{folder}: a quantized model predicts on the CPU, not on {device}")
    tensors = _read_weights(folder, record)
    configuration = configuration_of(record)
    try:
        label_hash = _label_hash(folder, record, tensors.pop("hash.buckets", None), attached)
        with torch.device("meta"):  # Its parameters become those of the file.
            model = make[kind_of(record)](**configuration, hash=label_hash)
        if is_int8:
            model = make["int8"](configuration, label_hash, tensors)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'model.json'}: not a model record: {error}") from None
    if not is_int8:
        model.load_parameters(tensors, assign=True)
    model.attachments = attached
    return model.eval().to(device)


def _read_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    configuration, steps = configuration_of(record), record["weights"].get("steps", {})
    shapes = parameter_shapes(configuration)
    tensors = read_weights(folder, record, whole_extent(configuration))
    decoded = sum(4 * math.prod(shapes[name]) for name in steps)
    file = folder / shards_of(record)[0].file
    check_memory(f"load: the compressed weights in {file}", decoded, ADVICE)
    for name, step in steps.items():
        try:
            tensors[name] = compression.decode(tensors[name], shapes[name], float(step))
        except ValueError as error:
            raise ValueError(f"{file}: {name}: {error}") from None
    check_finite(str(file), tensors)
    if "precision" in record["weights"]:
        _check_scales(file, tensors)
    return tensors


def read_weights(folder: Path, record: dict[str, Any], extent: Extent) -> dict[str, Tensor]:
    """Read the tensors of a model record that belong to an extent. Compressed weights stay streams."""
    configuration, shards = configuration_of(record), shards_of(record)
    shapes = parameter_shapes(configuration)

    def check(file: Path, header: Header, held: Extent) -> None:
        _check_header(file, header, record, part_shapes(shapes, configuration, held), held)

    if len(shards) > 1:
        held = part_shapes(shapes, configuration, extent).values()
        check_memory(f"load: the weights in the shards of {folder}", 4 * sum(map(math.prod, held)), ADVICE)
    return read_part(folder, shards, "truncated or edited", check, configuration, extent)


def _check_header(
    file: Path, header: Header, record: dict[str, Any], shapes: dict[str, Shape], extent: Extent
) -> None:
    """Compare the header of a tensor file with the claims of the record."""
    steps, configuration = record["weights"].get("steps", {}), configuration_of(record)
    scaling = part_shapes(scaling_shapes(configuration), configuration, extent)
    if "precision" in record["weights"]:
        _check_quantized(file, header, record, scaling)
        return
    expected = shapes | scaling
    if record["hash"]["kind"] == "table":
        expected["hash.buckets"] = (len(extent.repetitions), configuration["num_labels"])
    if "logit_adjustment" in header:
        expected["logit_adjustment"] = shapes["bucket_bias"]
    shapes_held = {name: shape for name, (_, shape) in header.items()}
    for name, step in steps.items():
        if not (name in shapes and name.endswith("weight") and step > 0):
            raise ValueError(f"{file}: a step must be above 0 and belong to a weight, got {step} for {name}")
        stream = shapes_held.get(name, ())
        # zlib expands a byte to at most 1,032 bytes, and a weight takes at least a byte.
        if len(stream) == 1 and header[name][0] == "U8" and math.prod(shapes[name]) <= 1032 * stream[0]:
            shapes_held[name] = shapes[name]
    if expected != shapes_held:
        raise ValueError(f"{file}: weights must have shapes {expected}, got {shapes_held}")
    if header.get("hash.buckets", ("I32",))[0] != "I32":
        raise ValueError(f"{file}: hash.buckets must be I32, got {header['hash.buckets'][0]}")
    if {header[name][0] for name in scaling} - {"F32"}:
        raise ValueError(f"{file}: {', '.join(scaling)} must be F32")
    others = ("hash.buckets", *steps, *scaling)
    dtypes = {name: dtype for name, (dtype, _) in header.items() if name not in others}
    check_dtypes(str(file), dtypes)
    if steps and dtypes["bucket_bias"] != "F32":
        raise ValueError(f"{file}: compressed weights must be F32, got {dtypes['bucket_bias']}")


def _check_quantized(file: Path, header: Header, record: dict[str, Any], scaling: dict[str, Shape]) -> None:
    """Compare the header of a file of 8-bit weights with the claims of the record."""
    configuration = configuration_of(record)
    expected: Header = quantized_shapes(configuration) | {name: ("F32", s) for name, s in scaling.items()}
    if record["hash"]["kind"] == "table":
        sizes = (configuration["num_repetitions"], configuration["num_labels"])
        expected["hash.buckets"] = ("I32", sizes)
    if "logit_adjustment" in header:
        expected["logit_adjustment"] = expected["bucket_bias"]
    if header != expected:
        raise ValueError(f"{file}: weights must have dtypes and shapes {expected}, got {header}")


def _check_scales(file: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse scales that no weight has: 0 or less, or so large that 127 times as much is infinite."""
    most = torch.finfo(torch.float32).max / 127
    for name in ("encoder_scale", "hidden_scale", "bucket_scale"):
        if name in tensors and not bool(((tensors[name] > 0) & (tensors[name] <= most)).all()):
            raise ValueError(f"{file}: {name}: must be above 0 and at most {most:.3g}")


def _label_hash(
    folder: Path, record: dict[str, Any], table: Tensor | None, attached: dict[str, bytes]
) -> LabelHash:
    L, B, R = (configuration_of(record)[f"num_{name}"] for name in ("labels", "buckets", "repetitions"))
    if table is not None:
        return LabelHash.from_buckets(table, B)
    if 4 * L * R >= _LARGE:
        _check_plausible(L, attached)
        check_memory(f"load: the label hash of {folder}", 4 * L * R, ADVICE, num_labels=L, num_repetitions=R)
    return LabelHash(L, B, R, record["hash"]["seed"])


def _check_plausible(num_labels: int, attached: dict[str, bytes]) -> None:
    """Refuse a number of labels that is too large for the kept names and counts of the labels."""
    # A label takes at least so many bytes: an empty string with a comma, or a count.
    for name, least in (
        ("labels.json", 3),
        ("label_counts.npy", 1),
    ):
        if name in attached and len(attached[name]) < least * num_labels:
            raise ValueError(f"num_labels must match {name}, got L={num_labels:,}")


def _read_attachment(file: Path) -> bytes:
    with open_file(file) as content:
        check_memory(f"load: the attachment {file}", os.fstat(content.fileno()).st_size, ADVICE)
        attachment = content.read()
    if f"-{hashlib.sha256(attachment).hexdigest()[:12]}." not in file.name:
        raise ValueError(f"{file}: truncated or edited: its name does not match its SHA-256")
    return attachment
