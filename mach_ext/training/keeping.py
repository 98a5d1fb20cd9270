"""Where a run keeps its best epoch: in memory, or in a folder with its checkpoints."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mach_ext._model_folder import read_model_record, save_tensors, tensors_digest
from mach_ext._model_folder.extents import Shard, entry_of, joint_digest
from mach_ext._model_folder.saving import failing_together
from mach_ext.data import write_json
from mach_ext.data.files import delete_file
from mach_ext.data.records import ANY, parse_record, seal
from mach_ext.distributed.agreement import check_shared
from mach_ext.distributed.part import ModelPart
from mach_ext.hashing import collisions_known
from mach_ext.nn import MACH, load
from mach_ext.training.checkpoint import (
    CHECKPOINT,
    CHECKPOINT_FORMAT,
    SVM_RECORD,
    differences,
    file_names,
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
        part: The part of a model that this process trains. All ranks write their parts.
        model: The model of the part.
        optimizer: Its optimiser.
        identity: What identifies this run. A checkpoint of another run is refused.
        file: The record of the checkpoint.
        saved: Digest of the weights in the folder, or None if this run has not saved any.
        companion: What is trained together with the model, or None.
    """

    def __init__(
        self,
        folder: Path,
        part: ModelPart,
        optimizer: RowOptimizer,
        identity: dict[str, Any],
        companion: Companion | None = None,
    ) -> None:
        self.folder, self.part, self.optimizer, self.identity = folder, part, optimizer, identity
        self.model = part.model
        self.companion = companion
        self.file = folder / f"{CHECKPOINT}.json"
        self.saved: str | None = None

    def write_checkpoint(self, state: Progress) -> None:
        """Write weights, optimiser state and progress, and then remove the former checkpoint."""
        part, ranks = self.part, self.part.ranks
        tensors, scalars = run_tensors(part, self.optimizer, self.companion)
        digest = tensors_digest(tensors)
        # Each tensor file gets a new name. A checkpoint becomes current when the JSON file names it.
        name = f"{CHECKPOINT}-{state.epoch}-{state.batch}-{digest[:12]}.safetensors"
        written: str | list[dict[str, Any]] = name
        with failing_together(ranks.collect):
            save_tensors(self.folder / name, tensors)
        if not part.is_alone:
            written = [entry_of(shard) for shard in ranks.collect(Shard(name, digest, part.extent))]
            state = replace(state, loss_sum=part.whole_loss(state.loss_sum))
            digest = joint_digest(entry["sha256"] for entry in written)
        self._make_current(state, written, scalars, digest)

    def write_end(self, state: Progress) -> None:
        """Shrink the checkpoint to the record of a run that has ended."""
        self._make_current(state, None, {}, None)

    def _make_current(
        self,
        state: Progress,
        tensors: str | list[dict[str, Any]] | None,
        scalars: dict[str, Any],
        digest: str | None,
    ) -> None:
        """Write the record of a checkpoint, which the first rank does for all."""
        with failing_together(self.part.ranks.collect):
            if not self.part.is_alone:
                check_shared(self.folder, file_names(tensors))
            if self.part.ranks.is_first:
                self._write_record(state, tensors, scalars, digest)

    def _write_record(
        self, state: Progress, tensors: Any, scalars: dict[str, Any], digest: str | None
    ) -> None:
        record = {
            "format": CHECKPOINT_FORMAT, **self.identity, "progress": asdict(state), "scalars": scalars,
            "tensors": tensors, "tensors_sha256": digest, "weights_sha256": self.saved,
        }  # fmt: skip
        # The model in the folder has this attachment only after the first epoch, so the checkpoint holds it.
        if "run.json" in self.model.attachments:
            run = self.model.attachments["run.json"]
            record["run"] = parse_record(run, "fit: the attachment run.json", {"*": ANY})
        former = tensor_files(self.folder)
        write_json(self.file, seal(record))
        (self.folder / SVM_RECORD).unlink(missing_ok=True)
        for old in former - file_names(tensors):
            delete_file(self.folder / old)

    def read_record(self) -> dict[str, Any] | None:
        """Return the record of the checkpoint in the folder, which must belong to this run.

        Returns:
            The record, or None if there is no checkpoint.

        Raises:
            ValueError: The checkpoint is damaged or belongs to another run.
        """
        if (svms := self.folder / SVM_RECORD).exists():
            raise ValueError(
                f"{svms}: resume needs the same settings and data; different: it is of `fit_svm`"
            )
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
                stacklevel=7,  # above `TrainingRun.resume`, `fit_part`, `fit` and its two decorators
            )
        return record

    def load_tensors(self, record: dict[str, Any]) -> None:
        """Load the weights and the optimiser state of the checkpoint with this record."""
        load_run_tensors(self.folder, record, self.part, self.optimizer, self.companion)

    def keep_model(self) -> None:
        """Save the model as that of the best epoch."""
        if self.companion is not None:
            self.companion.save(self.folder, self.model.attachments)
        self.part.save(self.folder)
        self.saved = read_model_record(self.folder)["weights"]["sha256"]
        if self.companion is not None:
            self.companion.delete_others(self.folder, self.model.attachments)

    def accept_any_model(self) -> None:
        """Let a resumed run take the model in the folder as it is, because it is about to be replaced."""
        self.saved = None
        with failing_together(self.part.ranks.collect):
            if self.part.ranks.is_first:
                record = read_checkpoint(self.folder)
                write_json(self.file, seal({**record, "weights_sha256": None}))

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
        if not self.part.is_alone:
            self.part.load_weights(self.folder)
            return
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
