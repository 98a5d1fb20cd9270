"""The progress of a run, its progress bar, and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mach_ext._progress import tqdm
from mach_ext.distributed import is_launched


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C was pressed in `fit`. The current step was finished, and the message says what was saved.

    Example:
        >>> from mach_ext.training import TrainingInterrupted
        >>> issubclass(TrainingInterrupted, KeyboardInterrupt)
        True
    """


@dataclass
class Progress:
    """The progress of a run, which is the part of a checkpoint without tensors.

    Attributes:
        epoch: The number of finished epochs.
        batch: The number of finished batches of the current epoch.
        loss_sum: Sum of the losses of the documents of the current epoch so far.
        documents: The number of documents of the current epoch so far.
        seconds: Time of training so far.
        best_epoch: The best epoch, counted from 1, or None before the first.
        best: The dev metric of the best epoch. Without dev data, the number of the epoch.
        history: An entry for each epoch.

    Example:
        >>> from mach_ext.training import Progress
        >>> state = Progress()
        >>> state.add_step(loss=2.0, documents=256)
        >>> state.loss_sum, state.batch
        (512.0, 1)
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    documents: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def add_step(self, loss: float, documents: int) -> None:
        """Count a step with the mean loss of its documents.

        Args:
            loss: Mean loss of the documents.
            documents: The number of documents.

        Example:
            >>> from mach_ext.training import Progress
            >>> state = Progress()
            >>> state.add_step(loss=2.0, documents=256)
            >>> state.documents
            256
        """
        self.batch += 1
        self.loss_sum += loss * documents
        self.documents += documents

    def end_epoch(self, entry: dict[str, Any]) -> None:
        """Count an epoch, and keep its entry of the history.

        Args:
            entry: The entry.

        Example:
            >>> from mach_ext.training import Progress
            >>> state = Progress(epoch=1, batch=10)
            >>> state.end_epoch({"epoch": 2, "loss": 0.5})
            >>> state.epoch, state.batch
            (2, 0)
        """
        self.epoch, self.batch, self.loss_sum, self.documents = self.epoch + 1, 0, 0.0, 0
        self.history.append(entry)


def epoch_bar(state: Progress, epochs: int, num_documents: int, shown: bool) -> Any:
    """Return the progress bar of the current epoch, from where the run is in it."""
    return tqdm(
        total=num_documents,
        initial=state.documents,
        desc=f"epoch {state.epoch + 1}/{epochs}",
        unit="doc",
        disable=not shown,
        leave=False,
        dynamic_ncols=True,
    )


def write_epoch(state: Progress) -> None:
    """Print loss and dev metrics of the last epoch on a line above the bar."""
    entry = state.history[-1]
    scores = "  ".join(f"{k} {v:.4f}" for k, v in entry.get("dev", {}).items() if k[0] == "P")
    tqdm.write(f"epoch {state.epoch}: loss {entry['loss']:.4f}  {scores}".rstrip())


@contextlib.contextmanager
def finish_step_on_interrupt() -> Iterator[threading.Event]:
    """Make Ctrl-C set the event, so that the step can be finished. A second Ctrl-C interrupts at once.

    Of several processes it does not. A scheduler sends the signal to all of them, and `torchrun` then sends
    it once more.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(number: int, frame: Any) -> None:
        if event.is_set() and not is_launched():
            raise KeyboardInterrupt
        event.set()

    former = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)
