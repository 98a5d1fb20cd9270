"""Where a run keeps its best epoch: in memory, or in a folder with its checkpoints."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mach_ext._model_folder import read_model_record, save_tensors, tensors_digest
from mach_ext.data import write_json
from mach_ext.data.files import delete_file
from mach_ext.data.records import ANY, parse_record, seal
from mach_ext.hashing import collisions_known
from mach_ext.nn import MACH, load
from mach_ext.training.checkpoint import (
    CHECKPOINT,
    CHECKPOINT_FORMAT,
    differences,
    identity_of,
    read_checkpoint,
)
from mach_ext.training.companion import Companion
from mach_ext.training.folder import delete_part, part_folders, tensor_files
from mach_ext.training.optimizer import RowOptimizer
from mach_ext.training.progress import Progress
from mach_ext.training.tensors import load_run_tensors, run_tensors


class RunFolder:
    """The checkpoints of a run and the model of its best epoch, in a folder.

    Attributes:
        folder: The folder.
        model: The model in training.
        optimizer: Its optimiser.
        identity: What identifies this run. A checkpoint of another run is refused.
        file: The record of the checkpoint.
        saved: Digest of the weights in the folder, or None if this run has not saved any.
        companion: What is trained together with the model, or None.
    """

    def __init__(
        self,
        folder: Path,
        model: MACH,
        optimizer: RowOptimizer,
        identity: dict[str, Any],
        companion: Companion | None = None,
    ) -> None:
        self.folder, self.model, self.optimizer, self.identity = folder, model, optimizer, identity
        self.companion = companion
        self.file = folder / f"{CHECKPOINT}.json"
        self.saved: str | None = None

    def write_checkpoint(self, state: Progress) -> None:
        """Write weights, optimiser state and progress, and then remove the former checkpoint."""
        tensors, scalars = run_tensors(self.model, self.optimizer, self.companion)
        digest = tensors_digest(tensors)
        # Each tensor file gets a new name. A checkpoint becomes current when the JSON file names it.
        name = f"{CHECKPOINT}-{state.epoch}-{state.batch}-{digest[:12]}.safetensors"
        save_tensors(self.folder / name, tensors)
        self._make_current(state, name, scalars, digest)

    def write_end(self, state: Progress) -> None:
        """Shrink the checkpoint to the record of a run that has ended."""
        self._make_current(state, None, {}, None)

    def _make_current(
        self, state: Progress, name: str | None, scalars: dict[str, Any], digest: str | None
    ) -> None:
        record = {
            "format": CHECKPOINT_FORMAT, **self.identity, "progress": asdict(state), "scalars": scalars,
            "tensors": name, "tensors_sha256": digest, "weights_sha256": self.saved,
        }  # fmt: skip
        # The model in the folder has this attachment only after the first epoch, so the checkpoint holds it.
        if "run.json" in self.model.attachments:
            run = self.model.attachments["run.json"]
            record["run"] = parse_record(run, "fit: the attachment run.json", {"*": ANY})
        former = tensor_files(self.folder)
        write_json(self.file, seal(record))
        for old in former - {name}:
            delete_file(self.folder / old)

    def read_record(self) -> dict[str, Any] | None:
        """Return the record of the checkpoint in the folder, which must belong to this run.

        Returns:
            The record, or None if there is no checkpoint.

        Raises:
            ValueError: The checkpoint is damaged or belongs to another run.
        """
        if not os.path.lexists(self.file):
            return None
        record = read_checkpoint(self.folder)
        changes = differences(identity_of(record), self.identity)
        if changes:
            raise ValueError(
                f"{self.file}: resume needs the same settings and data; different: {'; '.join(changes)}"
            )
        self.saved = record.get("weights_sha256")
        if record["tensors"] is not None and "sha256" not in record:
            warnings.warn(
                f"{self.file}: an older checkpoint without digests: damage to it cannot be detected",
                stacklevel=6,  # above `TrainingRun.resume`, `fit` and its two decorators
            )
        return record

    def load_tensors(self, record: dict[str, Any]) -> None:
        """Load the weights and the optimiser state of the checkpoint with this record."""
        load_run_tensors(self.folder / record["tensors"], record, self.model, self.optimizer, self.companion)

    def keep_model(self) -> None:
        """Save the model as that of the best epoch."""
        if self.companion is not None:
            self.companion.save(self.folder, self.model.attachments)
        self.model.save(self.folder)
        self.saved = read_model_record(self.folder)["weights"]["sha256"]
        if self.companion is not None:
            self.companion.delete_others(self.folder, self.model.attachments)

    def load_model(self) -> None:
        """Load the best epoch's weights into the model.

        Raises:
            ValueError: This run did not write the model in the folder.
        """
        digest = read_model_record(self.folder)["weights"]["sha256"]
        if self.saved is not None and self.saved != digest:
            raise ValueError(
                f"{self.folder / 'model.json'}: must be the model of this run's best epoch, "
                f"with weights of SHA-256 {self.saved}, got {digest}"
            )
        with collisions_known():  # The warning was given when the model was made.
            best = load(self.folder)
            self.model.load_state_dict(best.state_dict())
        if self.companion is not None:
            self.companion.load_saved(self.folder, best.attachments)
            self.model.attachments.update(best.attachments)

    def delete_parts(self) -> None:
        """Remove the folders of repetitions trained in turn."""
        for part in part_folders(self.folder):
            delete_part(part)


class BestInMemory:
    """The weights of the best epoch of a run without a folder."""

    def __init__(self, model: MACH, companion: Companion | None = None) -> None:
        self.model, self.companion = model, companion
        self.weights: dict[str, Tensor] | None = None
        self.companion_weights: dict[str, Tensor] = {}

    def keep_model(self) -> None:
        """Copy the weights of the model and its logit adjustment."""
        self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if self.companion is not None:
            self.companion_weights = {name: t.clone() for name, t in self.companion.weights().items()}

    def load_model(self) -> None:
        """Load the best epoch's weights into the model."""
        assert self.weights is not None
        self.model.load_state_dict(self.weights)
        if self.companion is not None:
            self.companion.load_weights(self.companion_weights)
