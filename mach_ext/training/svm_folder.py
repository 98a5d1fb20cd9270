"""The checkpoints of `fit_svm`: a record of the run, and a file of the solved buckets of each repetition."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mach_ext._model_folder import Header, safetensors_dtype, save_tensors, tensors_digest
from mach_ext._model_folder.saving import failing_together
from mach_ext._model_folder.tensors import read_tensors
from mach_ext.compression import round_to
from mach_ext.data import write_json
from mach_ext.data.files import delete_file
from mach_ext.data.records import ANY, parse_record, seal
from mach_ext.distributed.agreement import check_agreement, check_shared
from mach_ext.distributed.part import ModelPart
from mach_ext.training.checkpoint import CHECKPOINT, SVM_RECORD, differences, read_svm_record
from mach_ext.training.folder import delete_checkpoint

_WHAT = "not the buckets of a checkpoint"


class SvmFolder:
    """The solved buckets of a run of `fit_svm`, in a folder.

    Each process keeps a file for each of its repetitions. A resumed run may have another number of processes.

    Attributes:
        folder: The folder.
        part: The part of the model that this process solves.
        identity: What identifies the run. A checkpoint of another run is refused.
    """

    def __init__(self, folder: Path, part: ModelPart, identity: dict[str, Any]) -> None:
        self.folder, self.part, self.identity = folder, part, identity

    def begin(self, resume: bool) -> None:
        """Take up the checkpoint in the folder, or write the record of a new run in place of it.

        Raises:
            ValueError: The checkpoint is damaged or belongs to another run.
        """
        ranks, is_new = self.part.ranks, True
        with failing_together(ranks.collect):
            if resume:
                is_new = not self._belongs_here()
        check_agreement("fit_svm", ranks, {f"no checkpoint in {self.folder}": is_new})
        with failing_together(ranks.collect):
            if is_new and ranks.is_first:
                delete_checkpoint(self.folder)
                self._write_record()
        with failing_together(ranks.collect):
            check_shared(self.folder, [SVM_RECORD])

    def _belongs_here(self) -> bool:
        """Return whether there is a checkpoint, which must be of this run."""
        file = self.folder / SVM_RECORD
        gradients = self.folder / f"{CHECKPOINT}.json"
        if gradients.exists():
            raise ValueError(
                f"{gradients}: resume needs the same settings and data; different: it is of `fit`"
            )
        if not file.exists():
            return False
        record = read_svm_record(self.folder)
        then = {name: record[name] for name in self.identity}
        if changes := differences(then, self.identity):
            raise ValueError(
                f"{file}: resume needs the same settings and data; different: {'; '.join(changes)}"
            )
        return True

    def _write_record(self) -> None:
        record = dict(self.identity)
        if "run.json" in self.part.attachments:
            run = self.part.attachments["run.json"]
            record["run"] = parse_record(run, "fit_svm: the attachment run.json", {"*": ANY})
        write_json(self.folder / SVM_RECORD, seal(record))

    def load(self, r: int) -> tuple[int, int]:
        """Take the solved buckets of the part's repetition r into the model.

        Returns:
            The number of solved buckets, and how many of them are not near the optimum.

        Raises:
            ValueError: The file of the repetition is damaged.
        """
        files = self._files(r)
        if not files:
            return 0, 0
        solved, file = max(files)
        weight, bias = self.part.model.bucket_weight.detach()[r], self.part.model.bucket_bias.detach()[r]
        expected = self._tensors(weight[:, :solved], bias[:solved], 0)

        def check(header: Header) -> None:
            if header != {name: (safetensors_dtype(t), tuple(t.shape)) for name, t in expected.items()}:
                raise ValueError(f"{file}: {_WHAT}: wrong names, dtypes or shapes")

        tensors = read_tensors(file, _WHAT, check, None)
        if not file.stem.endswith(tensors_digest(tensors)[:12]):
            raise ValueError(f"{file}: {_WHAT}: edited: its contents do not match its name")
        weight[:, :solved] = tensors["bucket_weight"]
        bias[:solved] = tensors["bucket_bias"]
        return solved, int(tensors["unfinished"])

    def keep(self, r: int, solved: int, unfinished: int) -> None:
        """Write the first buckets of the part's repetition r, and then remove the former file."""
        former, model = self._files(r), self.part.model
        weight, bias = model.bucket_weight.detach()[r], model.bucket_bias.detach()[r]
        tensors = self._tensors(weight[:, :solved], bias[:solved], unfinished)
        name = f"{CHECKPOINT}-{self._number(r)}-{solved}-{tensors_digest(tensors)[:12]}.safetensors"
        save_tensors(self.folder / name, tensors)
        for _, file in former:
            if file.name != name:
                delete_file(file)

    @staticmethod
    def _tensors(weight: Tensor, bias: Tensor, unfinished: int) -> dict[str, Tensor]:
        return {"bucket_weight": weight, "bucket_bias": bias, "unfinished": torch.tensor(unfinished)}

    def _number(self, r: int) -> int:
        """Return the number of the part's repetition r in the whole model."""
        return self.part.extent.repetitions[r]

    def _files(self, r: int) -> list[tuple[int, Path]]:
        """Return the files of a repetition with the number of buckets in each. A kill may leave two."""
        name = re.compile(rf"{CHECKPOINT}-{self._number(r)}-(\d+)-[0-9a-f]{{12}}\.safetensors")
        files = ((name.fullmatch(file.name), file) for file in self.folder.iterdir())
        return [(int(match[1]), file) for match, file in files if match]

    def end(self, quantization_step: float | None) -> None:
        """Save the model, and remove the checkpoint. With a step, weights are rounded, in memory as well.

        Raises:
            ValueError: The step does not suit the weights. The checkpoint stays.
        """
        try:
            self.part.save(self.folder, quantization_step)
        except ValueError as error:
            if quantization_step is None:
                raise
            raise ValueError(
                f"{error}; {self.folder} keeps the solved buckets: continue with another quantization_step "
                "(--step) and resume=True (--resume)"
            ) from None
        if quantization_step is not None:
            weight, bias = self.part.model.bucket_weight.detach(), self.part.model.bucket_bias.detach()
            round_to(weight, quantization_step)
            bias.copy_(bias.float())  # as it is in the file
        with failing_together(self.part.ranks.collect):
            if self.part.ranks.is_first:
                delete_checkpoint(self.folder)
