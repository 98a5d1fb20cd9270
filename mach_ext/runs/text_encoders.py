"""The text encoder of a run: kept by name and digest, found again, and loaded when it is first used."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext import data
from mach_ext.data import attachments as kept
from mach_ext.data.folders.files import PARTS
from mach_ext.runs.arguments import spell
from mach_ext.text_encoder import TextEncoder

log = logging.getLogger("mach_ext")

PathLike = str | os.PathLike[str]


class RunEncoder:
    """The text encoder of a run. It is loaded at its first use, and must then have the digest of the record.

    It has what `mach_ext.data.TextEmbeddings` and `Columns.text_encoder` ask of an encoder.

    Args:
        record: What `TextEncoder.record` returned at the training.
        path: Where the encoder is now: a folder or a name. None: where the record says.
        device: The device of the encoder.
        progress: Show a progress bar while a split is embedded. None: on a terminal.
        owner: How messages call the run.
    """

    def __init__(
        self,
        record: dict[str, Any],
        path: PathLike | None = None,
        device: str | torch.device = "cpu",
        progress: bool | None = None,
        owner: str = "the run",
    ) -> None:
        if path is not None and Path(path).is_dir():  # the program may change its folder before the first use
            path = Path(path).absolute()
        self._record, self._path, self._device, self._owner = record, path, device, owner
        self.progress = sys.stderr.isatty() if progress is None else progress
        self._has_remarked = False

    @classmethod
    def of(cls, encoder: TextEncoder, progress: bool | None = None) -> RunEncoder:
        """Returns the encoder of a run that is trained just now."""
        made = cls(encoder.record(), progress=progress)
        made.__dict__["encoder"] = encoder  # where the property below keeps it
        return made

    @property
    def num_dense(self) -> int:
        """E, the size of an embedding."""
        return int(self._record["num_dense"])

    @property
    def place(self) -> PathLike:
        """The folder or the name that the encoder is loaded from."""
        place: PathLike = self._record["name"] if self._path is None else self._path
        return place

    def record(self) -> dict[str, Any]:
        """Returns what identifies the encoder."""
        return self._record

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """The encoder.

        Raises:
            ImportError: The package transformers is missing.
            ValueError: The encoder is not there, or it is another one.
        """
        try:
            return TextEncoder.from_record(self._record, self._path, device=self._device)
        except ValueError as error:
            name, digest = self._record["name"], self._record["digest"]
            raise ValueError(
                f"{self._owner} needs its text encoder {name}, digest {digest}: {error} "
                f"({spell('text_encoder')} says where it is now)"
            ) from None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the embeddings of a few texts [n, E]."""
        remarks: list[str] = []
        vectors = self.encoder.encode(texts, progress=False, remarks=remarks)
        if remarks and not self._has_remarked:  # a stream has many blocks
            self._has_remarked = True
            log.warning("%s", remarks[0])
        return vectors

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the embeddings of a split [N, E] from the cache, which is filled first if need be."""
        encoder, remarks, started = self.encoder, list[str](), time.monotonic()
        cache = data.data_home() / "embeddings"
        vectors = encoder.embed(texts, cache, self.progress, remarks=remarks)
        for remark in remarks:
            log.warning("%s", remark)
        seconds = time.monotonic() - started
        log.info("embeddings of %s documents: %.1f s, kept in %s", f"{len(texts):,}", seconds, cache)
        return vectors


def encoder_of(
    attachments: kept.Attachments,
    num_dense: int,
    path: PathLike | None = None,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    folder: Path | None = None,
) -> RunEncoder | None:
    """Returns the text encoder that a model keeps the record of. None: it keeps none.

    An encoder that was trained with the model is in the run's folder.

    Raises:
        ValueError: The record is damaged, or `path` is given for a model without a text encoder.
    """
    record = kept.text_encoder(attachments, num_dense)
    owner = "the run" if folder is None else str(folder)
    if record is not None:
        if path is None and folder is not None and (own := kept.run_encoder(attachments)) is not None:
            path = folder / own
        return RunEncoder(record, path, device, progress, owner)
    if path is not None:
        raise ValueError(f"{owner} has no text encoder, so {spell('text_encoder')} must not be given")
    return None


def text_encoder_of(columns: data.Columns) -> TextEncoder | None:
    """Returns the text encoder of a model, loaded. None: it has none, or an object that only embeds texts.

    Raises:
        ImportError: The package transformers is missing.
        ValueError: The encoder is not there, or it is another one.
    """
    encoder = columns.text_encoder
    encoder = encoder.encoder if isinstance(encoder, RunEncoder) else encoder
    return encoder if isinstance(encoder, TextEncoder) else None


def load_encoder(given: TextEncoder | PathLike, device: str | torch.device, progress: bool) -> RunEncoder:
    """Loads the encoder for a training, or takes one that is loaded.

    Raises:
        ImportError: The package transformers is missing.
        ValueError: There is no such encoder, or it has changed since it was loaded.
    """
    if not isinstance(given, TextEncoder):
        return RunEncoder.of(TextEncoder.load(given, device=device), progress)
    made = RunEncoder.of(given, progress)
    try:
        TextEncoder.from_record(made.record())
    except ValueError as error:
        raise ValueError(
            f"train: {spell('text_encoder')} must be found again by its name later, got: {error}; save it "
            "into a folder, and give that"
        ) from None
    return made


def with_embeddings(dataset: data.Dataset, encoder: RunEncoder) -> data.Dataset:
    """Returns the dataset with the embeddings of its texts as dense features, which are not computed yet.

    Raises:
        ValueError: A split has no texts, or there are dense features already.
    """
    argument = spell("text_encoder")
    if dataset.train.dense is not None:
        raise ValueError(f"{dataset.path}: has dense features already, so {argument} must not be given")
    made: dict[str, Any] = {}
    for name, split in dataset.splits.items():
        if split.texts is None:
            raise ValueError(
                f"{dataset.path}: {argument} needs the texts of all splits, and {name} has none; they are "
                f"lines of JSON, or X.{PARTS[name][0]}.txt beside the matrices, with a text on each line"
            )
        made[name] = replace(split, dense=data.TextEmbeddings(encoder, split.texts))
    return replace(dataset, **made)


def check_resumed(started: dict[str, Any], encoder: RunEncoder | None) -> None:
    """Refuses to go on with another text encoder than the training was started with.

    Args:
        started: The record of the run.
        encoder: The encoder that is given now.

    Raises:
        ValueError: The encoder is another one, or one of both is missing.
    """
    then = started.get("text_encoder")
    now = None if encoder is None else encoder.record()
    if (then and then.get("digest")) != (now and now["digest"]):
        words = [f"{each['name']}, digest {each['digest']}" if each else "none" for each in (then, now)]
        raise ValueError(
            f"train: a training goes on with its own text encoder, {words[0]}; {spell('text_encoder')} "
            f"gives {words[1]}"
        )


def check_apart(dataset: data.Dataset, folder: Path) -> None:
    """Refuses an encoder that belongs to the run in a folder, because a new run there would delete it.

    Raises:
        ValueError: The encoder is in the folder.
    """
    encoder = getattr(dataset.train.dense, "encoder", None)
    if not isinstance(encoder, (RunEncoder, TextEncoder)):
        return
    place = Path(encoder.place if isinstance(encoder, RunEncoder) else encoder.name).resolve()
    if place.parent == folder.resolve() and kept.RUN_ENCODER.fullmatch(place.name):
        raise ValueError(
            f"train: {place}: belongs to the run in {folder}, which is replaced with its encoder; copy the "
            f"encoder to another folder first, or give another {spell('output')}"
        )


def attachment(dataset: data.Dataset) -> dict[str, bytes]:
    """Returns the file that keeps the text encoder of a dataset, if its dense features are embeddings."""
    if not isinstance(dataset.train.dense, data.TextEmbeddings):
        return {}
    encoder = dataset.train.dense.encoder
    if not isinstance(encoder, (RunEncoder, TextEncoder)):  # any object that embeds texts
        return {}
    record = encoder.record()
    if isinstance(encoder, RunEncoder) and "base" in record:  # its name is a folder in another run
        record = encoder.encoder.record()
    return {"text_encoder.json": json.dumps(record, indent=2).encode()}
