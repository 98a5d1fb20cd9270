"""A run that several processes have trained together, and of whose model each holds a part."""

from __future__ import annotations

import os
from typing import Any

from mach_ext.distributed import current_ranks
from mach_ext.distributed.part import ModelPart
from mach_ext.nn import AnyMACH
from mach_ext.runs.folders import load_model
from mach_ext.runs.run import Run


class RunInParts(Run):
    """A run that is in parts. The processes measure it together.

    Other methods need the whole model. The first of them loads it, on each process that calls it.
    """

    def __init__(self, folder: str | os.PathLike[str], part: ModelPart, **options: Any) -> None:
        """Makes a run of the part of this process. The options are those of `Run`."""
        self._whole: AnyMACH | None = None
        super().__init__(folder, None, **options)  # type: ignore[arg-type]
        self._part = part

    @property
    def model(self) -> AnyMACH:
        """The whole model, from the run's folder."""
        if self._whole is None:
            self._whole = load_model(self.folder, str(self._part.model.bucket_bias.device))
        return self._whole

    @model.setter
    def model(self, model: AnyMACH | None) -> None:
        self._whole = model

    @property
    def measured(self) -> Any:
        """The parts of all processes within `together`. Elsewhere this process measures the whole model."""
        return self._part if current_ranks().size == self._part.ranks.size else self.model
