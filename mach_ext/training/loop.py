"""`fit` checks its arguments, then trains all repetitions together or a few at a time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mach_ext._deprecation import renamed_argument
from mach_ext._memory import memory_errors
from mach_ext._model_folder.saving import failing_together
from mach_ext.distributed.part import ModelPart
from mach_ext.nn import MACH, check_finite, check_trainable
from mach_ext.training.documents import check_training_data
from mach_ext.training.folder import lock_run
from mach_ext.training.hyperparameters import METRICS, Hyperparameters
from mach_ext.training.memory import repetitions_together
from mach_ext.training.progress import Progress
from mach_ext.training.repetitions import train_in_turn
from mach_ext.training.run import TrainingRun


@renamed_argument("negligible_gradient", "gradient_threshold")
@memory_errors("lower batch_size, num_buckets or hidden_size")
def fit(
    model: MACH,
    X: Any,
    Y: Any,
    X_dev: Any = None,
    Y_dev: Any = None,
    *,
    filtered_dev: Any = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
    repetitions_at_a_time: int | None = None,
    progress: bool = True,
    **hyperparameters: Any,
) -> Progress:
    """Train a model in place.

    The model ends in eval mode. With validation data it has the weights of its best epoch.

    Args:
        model: MACH, linear or with hidden layers, float32 or float64. A `MACHHead` can be trained on hidden
            units as `mach_ext.nn.linear_model(head)`.
        X: Documents [N, D], a SciPy, NumPy or torch matrix. It is checked once.
        Y: Labels [N, L], a SciPy, NumPy or torch matrix. The whole matrix is checked once.
        X_dev: Documents for validation. Give both `X_dev` and `Y_dev` or neither.
        Y_dev: Labels for validation.
        filtered_dev: [N_dev, L], SciPy sparse, non-zero where a label must not be answered for a validation
            document.
        output: Folder for checkpoints and the best model. What a former run left there is replaced. None
            keeps everything in memory.
        resume: Continue from the checkpoint in `output`, or start if there is none. The hyper-parameters, the
            model's shape and the data must be those of the checkpoint.
        checkpoint_minutes: Maximum minutes between checkpoints. A checkpoint is also written after every
            epoch.
        repetitions_at_a_time: For linear MACH, whose repetitions are independent. So many repetitions are
            trained through all epochs, then the next ones. Optimiser state is kept for that many only.
            Validation data is then used once, at the end. None trains all together, and warns if memory looks
            too short. The weights have the same bits.
        progress: Whether to show progress bars on standard error.
        **hyperparameters: Fields of `Hyperparameters`. None means the default for this kind of model.

    Returns:
        The progress of the run. `history` has an entry for each epoch: its number, mean loss over documents
        and dev metrics.

    Raises:
        TypeError: The model is no MACH, or the data or a hyper-parameter has a wrong type.
        ValueError: The data or a hyper-parameter is not valid, or the checkpoint belongs to another run.
        FloatingPointError: The loss became NaN or infinite.
        MemoryError: Memory does not suffice. On a GPU the error is `torch.OutOfMemoryError`.
        TrainingInterrupted: Ctrl-C was pressed. The state is saved in `output`.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> Y = scipy.sparse.csr_matrix(np.eye(20)[np.arange(200) % 20])
        >>> X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
        >>> model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=10, hidden_size=32)
        >>> record = mach_ext.fit(model, X, Y, epochs=30, learning_rate=0.02, batch_size=20, progress=False)
        >>> record.history[-1]["loss"] < record.history[0]["loss"] / 10
        True
    """
    check_trainable("fit", model)
    return fit_part(
        ModelPart.alone(model),
        (X, Y, X_dev, Y_dev, filtered_dev),
        Hyperparameters.of(model, **hyperparameters),
        output,
        resume=resume,
        checkpoint_minutes=checkpoint_minutes,
        repetitions_at_a_time=repetitions_at_a_time,
        progress=progress,
    )


def fit_part(
    part: ModelPart,
    documents: tuple[Any, Any, Any, Any, Any],
    settings: Hyperparameters,
    output: str | Path | None,
    *,
    resume: bool,
    checkpoint_minutes: float = 10.0,
    repetitions_at_a_time: int | None = None,
    progress: bool = True,
) -> Progress:
    """Train the part of a model that this process holds, as `fit` trains a model.

    All ranks do so at the same time, with the same documents and settings.

    Args:
        part: The part.
        documents: X, Y, X_dev, Y_dev and filtered_dev, as in `fit`.
        settings: The hyper-parameters.
        output: As in `fit`.
        resume: As in `fit`.
        checkpoint_minutes: As in `fit`.
        repetitions_at_a_time: As in `fit`. Only for a process alone.
        progress: As in `fit`.
    """
    model, ranks = part.model, part.ranks
    model.hash.check_contents()
    data = check_training_data(model, *documents)
    if data.dev is not None and settings.metric not in METRICS:
        raise ValueError(f"fit: metric must be one of {', '.join(METRICS)}, got {settings.metric!r}")
    if resume and output is None:
        raise ValueError("fit: resume needs the output folder of the run to continue")
    if repetitions_at_a_time is not None and not part.is_alone:
        raise ValueError(
            f"fit: repetitions_at_a_time is for one process, got {ranks.size} processes, which share "
            f"{part.num_repetitions} repetitions"
        )
    together = repetitions_together(model, data.X, settings, repetitions_at_a_time)
    folder = None if output is None else Path(output)
    with contextlib.ExitStack() as stack:
        with failing_together(ranks.collect):
            if ranks.is_first:
                stack.enter_context(lock_run(folder))
        shown = progress and ranks.is_first
        run = TrainingRun(part, settings, data, folder, resuming=resume, show_progress=shown)
        if resume:
            run.resume()
        check_finite("fit", model)
        state = run.state
        if together == model.num_repetitions or state.epoch >= settings.epochs:
            run.train(checkpoint_minutes * 60)
        elif state.epoch or state.batch:
            raise ValueError(
                f"fit: the checkpoint in {folder} is of all repetitions together; resume it without "
                "repetitions_at_a_time"
            )
        else:
            train_in_turn(run, together, checkpoint_minutes * 60)
    return run.state
