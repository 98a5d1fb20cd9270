"""Where a run stands, its progress bar, and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mach_ext._progress import tqdm


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in `fit`. The step in progress was finished; the message says what was saved."""


@dataclass
class Progress:
    """Where a run stands; the part of a checkpoint that is not tensors."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch finished
    loss_sum: float = 0.0  # over the documents of the current epoch so far
    documents: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch

    def add_step(self, loss: float, documents: int) -> None:
        """Counts a step with the mean loss of its documents."""
        self.batch += 1
        self.loss_sum += loss * documents
        self.documents += documents

    def end_epoch(self, entry: dict[str, Any]) -> None:
        """Counts an epoch, and keeps its entry of the history."""
        self.epoch, self.batch, self.loss_sum, self.documents = self.epoch + 1, 0, 0.0, 0
        self.history.append(entry)


def epoch_bar(state: Progress, epochs: int, num_documents: int, shown: bool) -> Any:
    """The progress bar of the current epoch, from where the run stands in it."""
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
    """Loss and dev metrics of the last epoch, in a line above the bar."""
    entry = state.history[-1]
    scores = "  ".join(f"{k} {v:.4f}" for k, v in entry.get("dev", {}).items() if k[0] == "P")
    tqdm.write(f"epoch {state.epoch}: loss {entry['loss']:.4f}  {scores}".rstrip())


@contextlib.contextmanager
def finish_step_on_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of tearing a step apart; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    former = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)
