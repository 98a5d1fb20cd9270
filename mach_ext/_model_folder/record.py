"""The record of a model folder, `model.json`: its schema, and the files that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mach_ext._model_folder.extents import (
    Shape,
    Shard,
    check_shards,
    cut_of,
    joint_digest,
    shard_of,
    whole_extent,
)
from mach_ext.data.records import ANY, check_record, digest_of, read_record

# The formats of a model folder. Format 1 has uncompressed weights, and format 2 has compressed weights.
# Format 3 has either. Its attachments also say how documents become rows. Format 4 also says whether it holds
# a model or a head alone. Format 5 may have a model with dense features. Format 6 may have its weights in
# several files. Format 7, which `save` writes, may have weights of 8 bits.
FORMATS = (1, 2, 3, 4, 5, 6, 7)
ATTACHMENT = re.compile(r"[\w-]+\.\w+")
# The names of files that `save` writes beside model.json. Only such files are ever deleted, and only if a
# record names them.
OWN_FILE = re.compile(r"[\w-]+-[0-9a-f]{12}\.\w+")
SHA256 = re.compile(r"[0-9a-f]{64}")

TILE, WORD = 64, 4  # buckets and hidden units that lie together in weights of 8 bits

_size = range(1, 2**62)
MODEL_SCHEMA = {
    "num_features": _size,
    "num_dense?": _size,
    "num_labels": range(1, 2**31 - 1),
    "num_repetitions": _size,
    "num_buckets": range(2, 2**31),
    "hidden_size": (range(1), [_size]),
    "encoder": str,
    "merge": str,
    "seed": int,
    "feature_dropout": float,
    "hidden_dropout": float,
}
_HEAD_SCHEMA = {
    "in_features": _size,
    "num_labels": range(1, 2**31 - 1),
    "num_repetitions": _size,
    "num_buckets": range(2, 2**31),
    "merge": str,
    "seed": int,
    "per_repetition": bool,
}
_start = range(2**62)
_SCHEMA = {
    "format": int,
    "hash": {"kind": {"seeded", "table"}, "seed": (int, type(None))},
    "weights": {
        "file?": str,
        "sha256": SHA256,
        "steps?": {"*": float},
        "precision?": {"int8"},
        "shards?": [
            {"file": str, "sha256": SHA256, "repetitions": [_start, _start], "units": [_start, _start]}
        ],
    },
    "attachments": {"*": str},
    "sha256": SHA256,
}


def read_model_record(folder: Path) -> dict[str, Any]:
    """Read `model.json` of a folder, and check its types, its digest and the names of its files.

    Raises:
        ValueError: The record is missing, damaged, edited or of another format.
    """
    file = folder / "model.json"
    try:
        record: dict[str, Any] = read_record(file, "a model record", {"format": ANY, "*": ANY})
    except (FileNotFoundError, NotADirectoryError):
        what = "no folder" if folder.exists() else "no such folder"
        what = "no model.json in the folder" if folder.is_dir() else what
        raise ValueError(f"{folder}: not a mach_ext model: {what}") from None
    if type(record["format"]) is not int or record["format"] not in FORMATS:
        raise ValueError(f"{file}: format must be 1 to 7 for this mach_ext, got {record['format']!r}")
    is_head = record["format"] >= 4 and "head" in record
    schema = {"head": _HEAD_SCHEMA} if is_head else {"model": MODEL_SCHEMA}
    check_record(record, f"{file}: not a model record", _SCHEMA | schema)
    if record["sha256"] != digest_of(record):
        raise ValueError(f"{file}: edited: its contents do not match their SHA-256")
    _check_weights(f"{file}: not a model record", record)
    for name, attached in record["attachments"].items():
        stem, dot, suffix = name.partition(".")
        own = re.escape(f"{stem}-") + "[0-9a-f]{12}" + re.escape(dot + suffix)
        if not ATTACHMENT.fullmatch(name) or not re.fullmatch(own, attached):
            raise ValueError(
                f"{file}: not a model record: attachments must be named like labels.json and their files "
                f"like labels-0123456789ab.json, got {name!r}: {attached!r}"
            )
    return record


def _check_weights(what: str, record: dict[str, Any]) -> None:
    """Refuse weights whose files and digests do not fit together."""
    weights = record["weights"]
    if ("file" in weights) == ("shards" in weights) or ("shards" in weights and "steps" in weights):
        raise ValueError(f"{what}: weights must have a file, or shards without steps")
    if "precision" in weights and record["format"] < 7:
        raise ValueError(f"{what}: weights of 8 bits must have format 7, got {record['format']}")
    if "precision" in weights and ("file" not in weights or "steps" in weights or "head" in record):
        raise ValueError(f"{what}: weights of 8 bits must be those of a model, in a file without steps")
    shards = shards_of(record)
    if "shards" in weights:
        check_shards(what, shards, configuration_of(record))
        if weights["sha256"] != joint_digest(shard.sha256 for shard in shards):
            raise ValueError(f"{what}: weights.sha256 must be the digest of the shards")
    if any(shard.file != own_name("weights.safetensors", shard.sha256) for shard in shards):
        raise ValueError(f"{what}: weights.file must carry the digest of the weights")


def shards_of(record: dict[str, Any]) -> list[Shard]:
    """Return the shards of a model record. A model in one file has one."""
    weights, configuration = record["weights"], configuration_of(record)
    if "shards" not in weights:
        return [Shard(weights["file"], weights["sha256"], whole_extent(configuration))]
    return [shard_of(entry) for entry in weights["shards"]]


def own_name(name: str, digest: str) -> str:
    """Add a digest to a name: weights.safetensors -> weights-0123456789ab.safetensors."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{digest[:12]}{dot}{suffix}"


def is_compressed(folder: Path) -> bool:
    """Return whether the model in a folder was saved with a quantization step, or in 8 bits."""
    try:
        return not {"steps", "precision"}.isdisjoint(read_model_record(folder)["weights"])
    except (OSError, ValueError):
        return False


def files_of(folder: Path) -> set[str]:
    """Return the names of the files that the model record in a folder owns.

    Without a valid record there are none.
    """
    try:
        record = read_model_record(folder)
    except ValueError:
        return set()
    return {*(shard.file for shard in shards_of(record)), *record["attachments"].values()}


def kind_of(record: dict[str, Any]) -> str:
    """Return whether a record describes a "model", in 8 bits or not, or a "head"."""
    return "head" if "head" in record else "model"


def configuration_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of the model or head that a record describes."""
    configuration: dict[str, Any] = record[kind_of(record)]
    return configuration


def parameter_shapes(configuration: dict[str, Any]) -> dict[str, Shape]:
    """Return the shapes of the parameters of a model or head with this configuration.

    No model is made for this, because a damaged record may claim any size.
    """
    R, B = (configuration[f"num_{name}"] for name in ("repetitions", "buckets"))
    shapes: dict[str, Shape] = {}
    if "in_features" in configuration:
        last = configuration["in_features"]
    else:
        last = configuration["num_features"] + configuration.get("num_dense", 0)
        sizes = configuration["hidden_size"] or []
        copies = R if configuration["encoder"] == "independent" else 1
        if sizes:
            shapes |= {"encoder_weight": (last, copies * sizes[0]), "encoder_bias": (copies * sizes[0],)}
        if len(sizes) > 1:
            shapes |= {"hidden_weight": (copies, *sizes), "hidden_bias": (copies, *sizes[1:])}
        last = sizes[-1] if sizes else last
    return shapes | {"bucket_weight": (R, last, B), "bucket_bias": (R, B)}


def scaling_shapes(configuration: dict[str, Any]) -> dict[str, Shape]:
    """Return the shapes of the float32 buffers that center and scale dense features, if the model has any."""
    E = configuration.get("num_dense", 0)
    return {"dense_center": (E,), "dense_scale": (1,), "dense_is_scaled": (1,)} if E else {}


def of_hidden_units(configuration: dict[str, Any]) -> set[str]:
    """Return the names of the weights [R, H, B] that take hidden units.

    The other weight takes the documents. It is [D, M], or [R, D, B] in linear MACH.
    """
    layers = len(configuration["hidden_size"] or ())
    return {"hidden_weight", "bucket_weight"} if layers == 2 else {"bucket_weight"} if layers else set()


def packed_shape(shape: Shape) -> Shape:
    """Return the shape of a weight [R, H, B] of 8 bits in the order in which the CPU reads it.

    It is [R, tiles of 64 buckets, words of 4 hidden units, 64, 4].
    """
    R, H, B = shape
    return R, -(-B // TILE), -(-H // WORD), TILE, WORD


def quantized_shapes(configuration: dict[str, Any]) -> dict[str, tuple[str, Shape]]:
    """Return the dtypes and shapes of the weights, scales and biases of a model in 8 bits.

    The weight that takes the documents has a scale for each row [D]. Other weights have one for each column
    [R, B], and are packed.
    """
    shapes, packed = {}, of_hidden_units(configuration)
    for name, shape in parameter_shapes(configuration).items():
        if not name.endswith("weight"):
            shapes[name] = ("F32", shape)
            continue
        shapes[name] = ("I8", packed_shape(shape) if name in packed else shape)
        of_scale = (shape[0], shape[2]) if name in packed else (shape[-2],)
        shapes[name.replace("weight", "scale")] = ("F32", of_scale)
    return shapes


def has_uncut(configuration: dict[str, Any]) -> bool:
    """Return whether a model has tensors that are not cut: a second shared layer, or scaled features."""
    names = (*parameter_shapes(configuration), *scaling_shapes(configuration))
    return any(cut_of(name, configuration) is None for name in names)
