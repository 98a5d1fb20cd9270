"""What a run keeps: its folder, model, columns, text encoder, dataset and metrics."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mach_ext import data, nn
from mach_ext.runs import record
from mach_ext.runs.arguments import as_path, check_device, spell
from mach_ext.runs.dataset import load_dataset, log_remarks
from mach_ext.runs.files import check_folder, timer
from mach_ext.runs.folders import load_model, newest_run, working_folder
from mach_ext.runs.metrics_file import output_folder, read_metrics
from mach_ext.runs.summary import summary
from mach_ext.runs.text_encoders import RunEncoder, encoder_of, text_encoder_of
from mach_ext.text_encoder import TextEncoder

log = logging.getLogger("mach_ext")

PathLike = str | os.PathLike[str]

Opened = TypeVar("Opened", bound="OpenedRun")


class OpenedRun:
    r"""A run folder that is open: all that is read from it. `mach_ext.Run` is one, and works with it.

    Attributes:
        model: The model, in eval mode.
        history: An entry for each epoch, if the run was trained just now.
        seconds: Time of loading, training and evaluation so far, by stage in seconds.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        Run('runs/pets')
    """

    def __init__(
        self,
        folder: PathLike,
        model: nn.AnyMACH,
        *,
        history: list[dict[str, Any]] | None = None,
        seconds: dict[str, float] | None = None,
        dataset: data.Dataset | None = None,
        text_encoder: RunEncoder | None = None,
    ) -> None:
        """Makes a run of a model that is in memory already.

        Args:
            folder: The run's folder.
            model: The model.
            history: An entry for each epoch.
            seconds: Time of each stage in seconds.
            dataset: The dataset that the model was trained on.
            text_encoder: The text encoder that made the dense features. None: what the model keeps.
        """
        self._folder, self._home = Path(folder), working_folder()
        self.model = model
        self.history = history
        self.seconds = {} if seconds is None else seconds
        self._encoder = text_encoder
        self._widened: tuple[nn.QuantizedMACH, nn.MACH] | None = None  # a model of 8 bits, and it in float32
        self._datasets: dict[tuple[str | None, int | None, Path | None], data.Dataset] = {}
        if dataset is not None:
            self._datasets[None, None, None] = dataset

    def __repr__(self) -> str:
        """Returns the folder."""
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """The run's folder. It is absolute if the program has changed to another folder.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.folder
            PosixPath('runs/pets')
        """
        return self._placed(self._folder)

    def _placed(self, path: Path) -> Path:
        """Returns a path that was relative when the run was opened or trained."""
        if self._home is None or self._home == working_folder():
            return path
        return self._home / path

    @classmethod
    def open(
        cls: type[Opened],
        folder: PathLike | None = None,
        device: str = "cpu",
        *,
        text_encoder: PathLike | None = None,
        progress: bool | None = None,
    ) -> Opened:
        """Opens the run in a folder.

        Args:
            folder: The run's folder. None: the newest run in runs/.
            device: "cpu", "cuda" or "cuda:N".
            text_encoder: Where the run's text encoder is now, a folder or a name. None: where it was at the
                training.
            progress: Show a bar while the texts of a split are embedded. None: on a terminal.

        Raises:
            ValueError: There is no model, it is damaged, or it has no text encoder.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> mach_ext.Run.open("runs/pets")
            Run('runs/pets')
        """
        check_device(device)
        path = newest_run() if folder is None else as_path("folder", folder, "Run.open")
        seconds: dict[str, float] = {}
        with timer(seconds, "load"):
            model = load_model(path, device)
        encoder = encoder_of(model.attachments, model.num_dense, text_encoder, device, progress, path)
        return cls(path, model, seconds=seconds, text_encoder=encoder)

    @functools.cached_property
    def columns(self) -> data.Columns:
        """The meaning of the model's features and labels: names, and how files are read.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.columns.label_names, run.columns.feature_names
            (['cat', 'dog'], ['a', 'cat', 'dog'])
        """
        return record.columns_of(self.model, self._encoder)

    @property
    def is_quantized(self) -> bool:
        """Whether the model has weights of 8 bits.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.is_quantized
            False
        """
        return isinstance(self.model, nn.QuantizedMACH)

    @property
    def float_model(self) -> nn.MACH:
        """The model in float32, which is explained and attacked. Weights of 8 bits are widened.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.float_model is run.model
            True
        """
        if isinstance(self.model, nn.MACH):
            return self.model
        if self._widened is None or self._widened[0] is not self.model:
            log.info(
                "the model has weights of 8 bits; explanations and attacks take these weights in float32, "
                "without rounding the hidden units"
            )
            self._widened = self.model, nn.in_float32(self.model)
        return self._widened[1]

    @property
    def measured(self) -> Any:
        """What predicts the labels that are measured: the model, or its parts on several processes.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.measured is run.model
            True
        """
        return self.model

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The text encoder that made the dense features of the texts. It is loaded at the first access.

        Raises:
            ImportError: The package transformers is missing.
            ValueError: The encoder is not where it was, or it is another one.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.text_encoder is None  # the run was trained without one
            True
        """
        return text_encoder_of(self.columns)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`. It is empty if nothing was measured.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.metrics["test"]["P@1"]
            1.0
        """
        return read_metrics(self.folder / "metrics.json")

    def info(self) -> dict[str, Any]:
        """Returns shape, parameters, memory, collisions and the training record, ready for JSON.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> run.info()["model"]["num_labels"]
            2
        """
        return summary(self.folder, self.model)

    def dataset(self, dataset: PathLike | None = None, svmlight_base: int | None = None) -> data.Dataset:
        """Returns the dataset that the run was trained on, or another one, read with the model's columns.

        It stays in memory, so that it is read only once.

        Args:
            dataset: Other data: a name, a folder, or a file of documents with labels.
            svmlight_base: Number of the first feature in svmlight files, if the model does not keep it.

        Raises:
            TypeError: `dataset` is not a name or a path.
            ValueError: The dataset is not there, has other columns than the model, or a file is bad.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `OpenedRun`
            >>> {name: len(split) for name, split in run.dataset().splits.items()}
            {'train': 36, 'dev': 4, 'test': 40}
        """
        if isinstance(dataset, data.Dataset):
            raise TypeError(
                f"{spell('dataset')} must be a name or a path, got a Dataset; for its metrics there is "
                "mach_ext.runs.evaluate(run.model, dataset, split)"
            )
        place = None if dataset is None else str(as_path("dataset", dataset))
        key = (place, svmlight_base, None if place is None else working_folder())
        if key not in self._datasets:
            with timer(self.seconds, "load"):
                loaded = load_dataset(
                    self.model, self.folder, dataset, svmlight_base=svmlight_base, columns=self.columns
                )
            log_remarks(loaded, svmlight_base)
            self._datasets[key] = loaded
        loaded, path = self._datasets[key], self._placed(self._datasets[key].path)
        return loaded if dataset is not None or path == loaded.path else replace(loaded, path=path)

    def _check_output(self, op: str, output: PathLike | None) -> Path:
        """Returns the folder of results, after a check that it can be written to."""
        path = None if output is None else as_path("output", output, op)
        if path is not None:
            check_folder(spell("output", op), path)
        return output_folder(path, self.folder)
