"""Damaged model folders and run folders: what is loaded or resumed must be what was written, or refused.

The naive reader compares contents: of JSON the values, of tensor files the tensors, of other files the bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

import mach_ext

from .naive import ANY, Refused

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))
import make_checkpoint  # noqa: E402

Files = dict[str, bytes]
Options = dict[str, Any]


def contents(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# ------------------------------------------------------------------------------------- undamaged folders


@functools.cache
def models() -> dict[str, Files]:
    """Model folders of every format, and of every kind that the format in force has."""
    found = {
        name: contents(FIXTURES / name) for name in ("model_v1", "model_v2", "model_v3", "model_v3_small")
    }
    labels = np.arange(15)
    table = mach_ext.LabelHash.from_buckets([labels % 7, labels // 3, labels % 5, labels // 7], 7)
    sizes = {"num_repetitions": 4, "num_buckets": 7}
    made = {
        "table": mach_ext.MACH(19, 15, **sizes, hidden_size=(6, 5), hash=table).double(),
        "table, small": mach_ext.MACH(19, 15, **sizes, hidden_size=6, encoder="independent", hash=table),
        "linear": mach_ext.MACH(19, 15, num_repetitions=6, num_buckets=8, hidden_size=0).bfloat16(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, model in made.items():
            model.attachments = {"labels.json": json.dumps([*map(str, range(15))]).encode()}
            model.adjust_logits(np.arange(15), tau=0.3)
            model.save(Path(folder) / name, 0.01 if "small" in name else None)
            found[name] = contents(Path(folder) / name)
    return found


@functools.cache
def runs() -> dict[str, Files]:
    """Run folders: of a run that was stopped, of the same with another seed, and of one that has ended."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_checkpoint.train(folder / "stopped")
        make_checkpoint.train(folder / "other", seed=1)
        make_checkpoint.train(folder / "ended", steps=10**6)
        return {name: contents(folder / name) for name in ("stopped", "other", "ended")}


# ------------------------------------------------------------------------------------------------ damage


def damage(rng: random.Random, file: bytes, other: bytes) -> bytes:
    """Mostly a flipped bit; else the file is cut, emptied, made longer, or the other folder's."""
    kind = rng.choice(("bit",) * 12 + ("cut", "empty", "longer", "other"))
    if kind == "bit":
        at = rng.randrange(8 * len(file))
        return file[: at // 8] + bytes([file[at // 8] ^ 1 << at % 8]) + file[at // 8 + 1 :]
    if kind == "cut":
        return file[: rng.randrange(len(file))]
    return {"empty": b"", "longer": file + b"\0" * rng.randint(1, 9), "other": other}[kind]


def draw(folders: dict[str, Files], names: tuple[str, ...], rng: random.Random) -> tuple[Files, Options]:
    """A folder with one damaged file, or, one time in eight, none."""
    source = rng.choice(names)
    files = dict(folders[source])
    if rng.random() < 0.875:
        name = rng.choice(sorted(files))
        stem = name.partition("-")[0]
        others = [other for other in folders if other != source]
        other = {key.partition("-")[0]: file for key, file in folders[rng.choice(others)].items()}
        files[name] = damage(rng, files[name], other.get(stem, b"?"))
    return files, {"source": source}


# ------------------------------------------------------------------------------------------- naive reading


def tensors(file: bytes) -> dict[str, Any]:
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    data, end = file[8 + length :], 0
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry.pop("data_offsets")
        if start != end or entry.keys() != {"dtype", "shape"}:
            raise ValueError(name)
        found[name], end = (entry, data[start:stop]), stop
    if end != len(data):
        raise ValueError("more data")
    return found


def meaning(name: str, file: bytes) -> Any:
    if name in ("model.json", "checkpoint.json"):
        return json.loads(file)
    return tensors(file) if name.endswith(".safetensors") else file


def naive(folders: dict[str, Files], reads: Any, files: Files, options: Options) -> str:
    """The right answer, where all that is read means what it meant."""
    right = folders[options["source"]]
    for name in right:
        if reads(name, options["source"]):
            try:
                same = meaning(name, files[name]) == meaning(name, right[name])
            except Exception:
                same = False
            if not same:
                raise Refused(ANY)
    return options["source"]


def naive_model(files: Files, options: Options) -> str:
    return naive(models(), lambda name, source: name != "answers.json", files, options)


def naive_run(files: Files, options: Options) -> str:
    """A stopped run writes its model anew, because a later epoch is better."""
    return naive(runs(), lambda name, source: source == "ended" or "checkpoint" in name, files, options)


# -------------------------------------------------------------------------------------------- real reading


def state_of(model: mach_ext.MACH) -> str:
    """A digest of all that a model is."""
    digest = hashlib.sha256(f"{model.configuration()} {sorted(model.attachments.items())}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(
            f"{name} {tensor.dtype}".encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    X = scipy.sparse.identity(model.num_features, np.float32, "csr")
    for answer in model.predict(X, model.num_labels):
        digest.update(answer.tobytes())
    return digest.hexdigest()


def load(folder: Path) -> str:
    return state_of(mach_ext.load(folder))


def resume(folder: Path) -> str:
    model = make_checkpoint.build()
    X, Y = make_checkpoint.X, make_checkpoint.Y
    mach_ext.fit(model, X, Y, X, Y, output=folder, resume=True, **make_checkpoint.OPTIONS)
    return state_of(model)


@functools.cache
def answers(read: Any) -> dict[str, str]:
    """What is read of each undamaged folder: the state, and the folder's name by it."""
    folders = models() if read is load else {name: runs()[name] for name in ("stopped", "ended")}
    found = {}
    for name, files in folders.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in files.items():
                (Path(folder) / file).write_bytes(content)
            found[name] = read(Path(folder))
    return found


def readers(read: Any, paths: dict[str, Path], options: Options) -> dict[str, Any]:
    folder = next(iter(paths.values())).parent
    right = answers(read)

    def answer() -> str:
        try:
            state = read(folder)
        except TypeError as error:  # Damage must never look like a wrong argument.
            raise AssertionError(repr(error)) from error
        finally:
            for left in folder.iterdir():  # for the next case
                if left.is_dir():
                    shutil.rmtree(left)
        return options["source"] if state == right[options["source"]] else f"another model: {state}"

    return {read.__name__: answer}
