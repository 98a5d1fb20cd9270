"""The model folder: its record, digests and tensor files; how a model is saved and loaded.

`model.json` names the files of the model. Their names carry digests of their contents, so a new model never
writes over the files of the former one. `model.json` is replaced in one step. A lock on the folder lets one
writer in at a time. Readers take no lock. They begin again where `model.json` was replaced meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mach_ext import compression
from mach_ext._memory import check_memory, check_room, memory_shortage
from mach_ext.data import atomic_write, write_json
from mach_ext.data.files import delete_file, open_file
from mach_ext.data.locks import lock_folder
from mach_ext.data.records import ANY, check_record, digest_of, read_record, sealed
from mach_ext.hashing import LabelHash

if TYPE_CHECKING:
    from mach_ext.nn import MACH

# Of the model folder. 1 has the weights as they are, 2 has them compressed. 3, which `save` writes, has
# either, and its attachments also say how documents become rows.
_FORMATS = (1, 2, 3)
# A good step for `save`: within 0.07 points of P@1, 3, 5 on dev of two datasets (docs/accuracy.md).
STEP = 0.5
_FINER = 64  # Weights that take hidden units, few beside the encoder's, get a step so much finer.
_ATTACHMENT = re.compile(r"[\w-]+\.\w+")
# Files that `save` writes beside model.json. It deletes no others, and these only where a record names them.
_OWN_FILE = re.compile(r"[\w-]+-[0-9a-f]{12}\.\w+")
# While a save goes on, a record of the former files and the new ones. A kill leaves it to the next save.
_JOURNAL = re.compile(r"\.mach_ext-[0-9a-f]{16}\.journal")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADVICE = "free memory first, or make a smaller model"
# From so many bytes on, the table of a label hash must suit what else is known of the labels.
_LARGE = 1 << 26
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

Shape: TypeAlias = tuple[int, ...]
Header: TypeAlias = dict[str, tuple[str, Shape]]  # of a tensor file: dtype and shape by name

_size = range(1, 2**62)
MODEL_SCHEMA = {
    "num_features": _size,
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
_SCHEMA = {
    "format": int,
    "model": MODEL_SCHEMA,
    "hash": {"kind": {"seeded", "table"}, "seed": (int, type(None))},
    "weights": {"file": str, "sha256": _SHA256, "steps?": {"*": float}},
    "attachments": {"*": str},
    "sha256": _SHA256,
}


# ----------------------------------------------------------------------------------------------- record


def read_model_record(folder: Path) -> dict[str, Any]:
    """`model.json` of a folder: its types, its digest, and that it names files of its own.

    Raises:
        ValueError: It is missing, damaged, edited or of another format.
    """
    file = folder / "model.json"
    try:
        record: dict[str, Any] = read_record(file, "a model record", {"format": ANY, "*": ANY})
    except (FileNotFoundError, NotADirectoryError):
        what = "no folder" if folder.exists() else "no such folder"
        what = "no model.json in the folder" if folder.is_dir() else what
        raise ValueError(f"{folder}: not a mach_ext model: {what}") from None
    if type(record["format"]) is not int or record["format"] not in _FORMATS:
        raise ValueError(f"{file}: format must be 1 to 3 for this mach_ext, got {record['format']!r}")
    check_record(record, f"{file}: not a model record", _SCHEMA)
    if record["sha256"] != digest_of(record):
        raise ValueError(f"{file}: edited: its contents do not match their SHA-256")
    if record["weights"]["file"] != _own_name("weights.safetensors", record["weights"]["sha256"]):
        raise ValueError(f"{file}: not a model record: weights.file must carry the digest of the weights")
    for name, attached in record["attachments"].items():
        stem, dot, suffix = name.partition(".")
        own = re.escape(f"{stem}-") + "[0-9a-f]{12}" + re.escape(dot + suffix)
        if not _ATTACHMENT.fullmatch(name) or not re.fullmatch(own, attached):
            raise ValueError(
                f"{file}: not a model record: attachments must be named like labels.json and their files "
                f"like labels-0123456789ab.json, got {name!r}: {attached!r}"
            )
    return record


def _own_name(name: str, digest: str) -> str:
    """The file for contents of this digest: weights.safetensors -> weights-0123456789ab.safetensors."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{digest[:12]}{dot}{suffix}"


def is_compressed(folder: Path) -> bool:
    """Whether the model in a folder was saved with a step."""
    try:
        return "steps" in read_model_record(folder)["weights"]
    except (OSError, ValueError):
        return False


def files_of(folder: Path) -> set[str]:
    """Names of the files that the model record in a folder owns; none where there is no valid record."""
    try:
        record = read_model_record(folder)
    except ValueError:
        return set()
    return {record["weights"]["file"], *record["attachments"].values()}


# ------------------------------------------------------------------------------------------------ saving


def save(model: MACH, folder: Path, step: float | None) -> None:
    """`MACH.save`."""
    attached = {}
    for name, content in model.attachments.items():
        if not _ATTACHMENT.fullmatch(name) or not isinstance(content, bytes):
            raise ValueError(f"MACH.save: an attachment must be bytes, named like labels.json, got {name!r}")
        attached[name] = _own_name(name, hashlib.sha256(content).hexdigest())
    steps = {} if step is None else _steps(model, step)
    tensors = _tensors_of(model, steps)
    digest = tensors_digest(tensors)
    weights = {"file": _own_name("weights.safetensors", digest), "sha256": digest}
    record = {
        "format": _FORMATS[-1],
        "model": model.configuration(),
        "hash": {"kind": "table" if model.hash.seed is None else "seeded", "seed": model.hash.seed},
        "weights": weights | ({"steps": steps} if steps else {}),
        "attachments": attached,
    }
    with lock(folder, "MACH.save"), _replacing(folder, {weights["file"], *attached.values()}):
        save_tensors(folder / weights["file"], tensors)
        for name, file in attached.items():
            with atomic_write(folder / file) as out:
                out.write(model.attachments[name])
        write_json(folder / "model.json", sealed(record))


def _tensors_of(model: MACH, steps: dict[str, float]) -> dict[str, Tensor]:
    """What is written of a model, by name; weights that have a step as streams of bytes."""
    moved = sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_cpu)
    check_memory("MACH.save: a copy of the weights on the CPU", moved, _ADVICE)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    _check_dtypes("MACH.save", {name: tensor.dtype for name, tensor in tensors.items()})
    if steps:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if model.logit_adjustment.any():
        tensors["logit_adjustment"] = model.logit_adjustment.to(tensors["bucket_bias"])
    _check_finite("MACH.save", tensors, " and fit float32" if steps else "")
    for name, step in steps.items():
        try:
            tensors[name] = compression.encode(tensors[name], step)
        except ValueError as error:
            raise ValueError(f"MACH.save: {name}: {error}") from None
    if model.hash.seed is None:
        model.hash.check_contents()
        tensors["hash.buckets"] = model.hash.buckets.cpu()
    return tensors


def _steps(model: MACH, step: float) -> dict[str, float]:
    """What each weight, but for biases, is rounded to multiples of."""
    if isinstance(step, bool) or not isinstance(step, (int, float, np.floating, np.integer)):
        raise TypeError(f"MACH.save: step must be None or a number, got {type(step).__name__}")
    if not 0 < step <= torch.finfo(torch.float32).max:
        raise ValueError(f"MACH.save: step must be None or a finite number above 0, got {step!r}")
    step = float(step)
    first = "bucket_weight" if model.is_linear else "encoder_weight"
    names = (name for name, _ in model.named_parameters() if name.endswith("weight"))
    return {name: step if name == first else step / _FINER for name in names}


def delete(folder: Path) -> None:
    """Removes the model of a folder, if it has one; other files stay."""
    with lock(folder, "delete"), _replacing(folder, set()):
        (folder / "model.json").unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path, op: str, is_run: bool = False) -> Iterator[None]:
    """One writer at a time in the folder of a model or a run; what dead ones left is cleared.

    The thread of a run also saves into its folder. Runs exclude each other.

    Raises:
        ValueError: A run is training in the folder. A save is waited for.
    """
    with lock_folder(folder, op, lambda: any(_journals(folder)), is_run) as locked:
        if locked:
            for journal in list(_journals(folder)):
                _settle(folder, journal)
        yield


def _journals(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from (file for file in folder.iterdir() if _JOURNAL.fullmatch(file.name))


@contextlib.contextmanager
def _replacing(folder: Path, files: set[str]) -> Iterator[None]:
    """Leaves the former model's files or these, as `model.json` says in the end; also after a kill."""
    journal = folder / f".mach_ext-{secrets.token_hex(8)}.journal"
    record = {"files": sorted(files_of(folder) | files)}
    write_json(journal, sealed(record))
    try:
        yield
    finally:
        _settle(folder, journal)


def _settle(folder: Path, journal: Path) -> None:
    """Removes the files that a journal names and `model.json` does not, then the journal."""
    with contextlib.suppress(ValueError):  # a damaged journal says nothing
        record = read_record(journal, "a journal", {"files": [_OWN_FILE], "sha256": _SHA256})
        if record["sha256"] == digest_of(record):
            text = _record_text(folder)
            for name in record["files"]:
                if json.dumps(name).encode() not in text:
                    delete_file(folder / name)
    journal.unlink(missing_ok=True)


def _record_text(folder: Path) -> bytes:
    """`model.json` as it is: what a damaged one names, or one of a later format, stays as well."""
    try:
        with open_file(folder / "model.json") as file:
            return file.read()
    except (FileNotFoundError, ValueError):
        return b""


# ---------------------------------------------------------------------------------------------- tensors


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


def _check_dtypes(what: str, dtypes: Mapping[str, Any]) -> None:
    """Parameters must be floating-point numbers of one dtype."""
    allowed = {*_WEIGHT_DTYPES, *(_DTYPES[dtype] for dtype in _WEIGHT_DTYPES)}
    for name, dtype in dtypes.items():
        if dtype not in allowed:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _WEIGHT_DTYPES)
            raise ValueError(f"{what}: {name}: must be one of {names}, got {dtype}")
    if len(set(dtypes.values())) > 1:
        names = ", ".join(sorted(map(str, set(dtypes.values()))))
        raise ValueError(f"{what}: weights must be of one dtype, got {names}")


def _check_finite(what: str, tensors: Mapping[str, Tensor], rest: str = "") -> None:
    for name, tensor in tensors.items():
        # One pass in a sixth of the time that the digest takes; NaN is its own minimum.
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise ValueError(f"{what}: {name}: must be finite{rest}")


# ----------------------------------------------------------------------------------------------- loading


def load(make: type[MACH], folder: Path, device: torch.device | str) -> MACH:
    """`mach_ext.load`, by the constructor `make`."""
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
            # The model was replaced meanwhile: the new one is there.


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """Another one after each save, even of the same model."""
    try:
        status = (folder / "model.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns


def _load(make: type[MACH], folder: Path, device: torch.device | str) -> MACH:
    record = read_model_record(folder)
    attached = {name: _read_attachment(folder / file) for name, file in record["attachments"].items()}
    tensors = _read_weights(folder, record)
    try:
        label_hash = _label_hash(folder, record, tensors.pop("hash.buckets", None), attached)
        with torch.device("meta"):  # Its parameters become those of the file.
            model = make(**record["model"], hash=label_hash)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'model.json'}: not a model record: {error}") from None
    model.load_parameters(tensors, assign=True)
    model.attachments = attached
    return model.eval().to(device)


def _read_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    file, steps = folder / record["weights"]["file"], record["weights"].get("steps", {})
    shapes = parameter_shapes(record["model"])
    tensors = read_tensors(
        file,
        "truncated or edited",
        lambda header: _check_header(file, header, record, shapes),
        record["weights"]["sha256"],
    )
    decoded = sum(4 * math.prod(shapes[name]) for name in steps)
    check_memory(f"load: the compressed weights in {file}", decoded, _ADVICE)
    for name, step in steps.items():
        try:
            tensors[name] = compression.decode(tensors[name], shapes[name], float(step))
        except ValueError as error:
            raise ValueError(f"{file}: {name}: {error}") from None
    _check_finite(str(file), tensors)
    return tensors


def parameter_shapes(configuration: dict[str, Any]) -> dict[str, Shape]:
    """Of a model with this configuration, without making one: a damaged record may claim any size."""
    D, R, B = (configuration[f"num_{name}"] for name in ("features", "repetitions", "buckets"))
    sizes = configuration["hidden_size"] or []
    copies = R if configuration["encoder"] == "independent" else 1
    shapes: dict[str, Shape] = {}
    if sizes:
        shapes |= {"encoder_weight": (D, copies * sizes[0]), "encoder_bias": (copies * sizes[0],)}
    if len(sizes) > 1:
        shapes |= {"hidden_weight": (copies, *sizes), "hidden_bias": (copies, *sizes[1:])}
    return shapes | {"bucket_weight": (R, sizes[-1] if sizes else D, B), "bucket_bias": (R, B)}


def _check_header(file: Path, header: Header, record: dict[str, Any], shapes: dict[str, Shape]) -> None:
    """Holds what a tensor file says of itself against what the record claims."""
    steps = record["weights"].get("steps", {})
    R, B = shapes["bucket_bias"]
    expected = dict(shapes)
    if record["hash"]["kind"] == "table":
        expected["hash.buckets"] = (R, record["model"]["num_labels"])
    if "logit_adjustment" in header:
        expected["logit_adjustment"] = (R, B)
    found = {name: shape for name, (_, shape) in header.items()}
    for name, step in steps.items():
        if not (name in shapes and name.endswith("weight") and step > 0):
            raise ValueError(f"{file}: steps must be above 0 and of weights, got {step} of {name}")
        stream = found.get(name, ())
        # zlib makes at most 1,032 bytes of one, and a weight takes at least a byte.
        if len(stream) == 1 and header[name][0] == "U8" and math.prod(shapes[name]) <= 1032 * stream[0]:
            found[name] = shapes[name]
    if expected != found:
        raise ValueError(f"{file}: weights must have shapes {expected}, got {found}")
    if header.get("hash.buckets", ("I32",))[0] != "I32":
        raise ValueError(f"{file}: hash.buckets must be I32, got {header['hash.buckets'][0]}")
    dtypes = {name: dtype for name, (dtype, _) in header.items() if name not in ("hash.buckets", *steps)}
    _check_dtypes(str(file), dtypes)
    if steps and dtypes["bucket_bias"] != "F32":
        raise ValueError(f"{file}: compressed weights must be F32, got {dtypes['bucket_bias']}")


def _label_hash(
    folder: Path, record: dict[str, Any], table: Tensor | None, attached: dict[str, bytes]
) -> LabelHash:
    L, B, R = (record["model"][f"num_{name}"] for name in ("labels", "buckets", "repetitions"))
    if table is not None:
        return LabelHash.from_buckets(table, B)
    if 4 * L * R >= _LARGE:
        _check_plausible(L, attached)
        check_memory(f"load: the label hash of {folder}", 4 * L * R, _ADVICE, num_labels=L, num_repetitions=R)
    return LabelHash(L, B, R, record["hash"]["seed"])


def _check_plausible(num_labels: int, attached: dict[str, bytes]) -> None:
    """Names and counts of the labels, where they are kept, must be long enough for so many labels."""
    for name, least in (
        ("labels.json", 3),
        ("label_counts.npy", 1),
    ):  # bytes a label: at least "", or a count
        if name in attached and len(attached[name]) < least * num_labels:
            raise ValueError(f"num_labels must be that of {name}, got L={num_labels:,}")


def _read_attachment(file: Path) -> bytes:
    with open_file(file) as content:
        check_memory(f"load: the attachment {file}", os.fstat(content.fileno()).st_size, _ADVICE)
        attachment = content.read()
    if f"-{hashlib.sha256(attachment).hexdigest()[:12]}." not in file.name:
        raise ValueError(f"{file}: truncated or edited: its name does not match its SHA-256")
    return attachment
