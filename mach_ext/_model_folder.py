"""The model folder: its record, digests and tensor files; how a model is saved and loaded."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mach_ext import compression
from mach_ext._memory import check_memory, check_room, memory_shortage
from mach_ext.data import atomic_path, write_json
from mach_ext.hashing import LabelHash

if TYPE_CHECKING:
    from mach_ext.nn import MACH

# Of the model folder. 1 has the weights as they are, 2 has them compressed. 3, which `save` writes, has
# either, and its attachments also say how documents become rows.
_FORMATS = (1, 2, 3)
# A good step for `save`: within 0.07 points of P@1, 3, 5 on dev of two datasets (docs/accuracy.md).
STEP = 0.5
_FINER = 64  # Weights that take hidden units, few beside the encoder's, get a step so much finer.
_ADVICE = "free memory first, or make a smaller model"
_WEIGHTS = re.compile(r"weights-[0-9a-f]{12}\.safetensors")


def save(model: MACH, folder: Path, step: float | None) -> None:
    """`MACH.save`."""
    for name, content in model.attachments.items():
        if not re.fullmatch(r"[\w-]+\.\w+", name) or not isinstance(content, bytes):
            raise ValueError(f"MACH.save: an attachment must be bytes, named like labels.json, got {name!r}")
    moved = sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_cpu)
    check_memory("MACH.save: a copy of the weights on the CPU", moved, _ADVICE)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    steps = {} if step is None else _steps(model, step)
    if steps:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"MACH.save: {name}: must be finite and fit float32")
    for name, each in steps.items():
        try:
            tensors[name] = compression.encode(tensors[name], each)
        except ValueError as error:
            raise ValueError(f"MACH.save: {name}: {error}") from None
    if model.hash.seed is None:
        tensors["hash.buckets"] = model.hash.buckets.cpu()
    if model.logit_adjustment.any():
        tensors["logit_adjustment"] = model.logit_adjustment.to(tensors["bucket_bias"])
    folder.mkdir(parents=True, exist_ok=True)
    former = files_of(folder)
    digest = _digest(tensors)
    weights = f"weights-{digest[:12]}.safetensors"
    save_tensors(folder / weights, tensors)
    attached = {}
    for name, content in model.attachments.items():
        stem, dot, suffix = name.partition(".")
        attached[name] = f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}{dot}{suffix}"
        with atomic_path(folder / attached[name]) as temporary:
            temporary.write_bytes(content)
    record = {
        "format": _FORMATS[-1],
        "model": model.configuration(),
        "hash": {"kind": "table" if model.hash.seed is None else "seeded", "seed": model.hash.seed},
        "weights": {"file": weights, "sha256": digest} | ({"steps": steps} if steps else {}),
        "attachments": attached,
    }
    write_json(folder / "model.json", {**record, "sha256": _record_digest(record)})
    former |= {file.name for file in folder.iterdir() if _WEIGHTS.fullmatch(file.name)}
    for old in former - {weights, *attached.values()}:
        (folder / old).unlink(missing_ok=True)


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


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes safetensors, whole or not at all."""
    try:
        with atomic_path(path) as temporary:
            check_room()
            save_file(tensors, temporary)
    except SafetensorError as error:  # how that library reports a full disk
        if memory_shortage(error) is not None:
            raise
        raise OSError(f"{path}: cannot be written: {error}") from None


def is_compressed(folder: Path) -> bool:
    """Whether the model in a folder was saved with a step."""
    try:
        return "steps" in json.loads((folder / "model.json").read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def files_of(folder: Path) -> set[str]:
    """Names of the files that the model record in a folder owns; none where there is no readable record."""
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        names = {record["weights"]["file"], *record["attachments"].values()}
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def load(make: type[MACH], folder: Path, device: torch.device | str) -> MACH:
    """`mach_ext.load`, by the constructor `make`."""
    while True:
        record = _record_bytes(folder)
        try:
            return _load(make, folder, device)
        except FileNotFoundError as error:
            if _record_bytes(folder) == record:
                raise ValueError(f"{folder}: a file that model.json names is missing: {error}") from None
            # A training run has replaced the model meanwhile: the new one is there.


def _record_bytes(folder: Path) -> bytes | None:
    try:
        return (folder / "model.json").read_bytes()
    except OSError:
        return None


def _load(make: type[MACH], folder: Path, device: torch.device | str) -> MACH:
    record_file = folder / "model.json"
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "no model.json in the folder" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: not a mach_ext model: {what}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, NotADirectoryError) as error:
        raise ValueError(f"{record_file}: not a model record: {error}") from None
    try:
        if record["format"] not in _FORMATS:
            raise ValueError(
                f"{record_file}: format must be 1 to 3 for this mach_ext, got {record['format']}"
            )
        if record.pop("sha256") != _record_digest(record):
            raise ValueError(f"{record_file}: edited: its contents do not match their SHA-256")
        configuration, hash_record = record["model"], record["hash"]
        for file in (record["weights"]["file"], *record["attachments"].values()):
            if Path(file).name != file:
                raise ValueError(f"{record_file}: names a file outside the folder: {file}")
        weights = folder / record["weights"]["file"]
        tensors = _read_weights(weights, record["weights"]["sha256"])
        if hash_record["kind"] == "table":
            label_hash = LabelHash.from_buckets(tensors.pop("hash.buckets"), configuration["num_buckets"])
        else:
            sizes = {key: configuration[key] for key in ("num_labels", "num_buckets", "num_repetitions")}
            label_hash = LabelHash(**sizes, seed=hash_record["seed"])
        with torch.device("meta"):  # Its parameters become those of the file.
            model = make(**configuration, hash=label_hash)
        attached = record["attachments"]
        if record["weights"].get("steps"):
            decoded = sum(4 * model.get_parameter(name).numel() for name in record["weights"]["steps"])
            check_memory(f"load: the compressed weights of {folder}", decoded, _ADVICE)
        for name, step in record["weights"].get("steps", {}).items():
            try:
                tensors[name] = compression.decode(tensors[name], model.get_parameter(name).shape, step)
            except ValueError as error:
                raise ValueError(f"{weights}: {name}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{record_file}: not a model record: {type(error).__name__}: {error}") from None
    adjustment = {"logit_adjustment": model.logit_adjustment} if "logit_adjustment" in tensors else {}
    named = {**dict(model.named_parameters()), **adjustment}
    expected = {name: tuple(tensor.shape) for name, tensor in named.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise ValueError(f"{weights}: weights must have shapes {expected}, got {found}")
    model.load_parameters(tensors, assign=True)
    for name, file in attached.items():
        content = (folder / file).read_bytes()
        if f"-{hashlib.sha256(content).hexdigest()[:12]}." not in file:
            raise ValueError(f"{folder / file}: truncated or edited: its name does not match its SHA-256")
        model.attachments[name] = content
    return model.eval().to(device)


def _read_weights(weights: Path, digest: str) -> dict[str, Tensor]:
    try:
        check_room()
        tensors: dict[str, Tensor] = load_file(weights)
    except SafetensorError as error:
        if memory_shortage(error) is not None:
            raise
        raise ValueError(f"{weights}: truncated or edited: {error}") from None
    except RuntimeError:  # opened twice, and gone in between
        if weights.exists():
            raise
        raise FileNotFoundError(weights) from None
    if _digest(tensors) != digest:
        raise ValueError(
            f"{weights}: truncated or edited: not the contents that model.json records ({digest})"
        )
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
