"""`fit`: checks what it is given, then trains all repetitions together or some at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mach_ext._deprecation import renamed_argument
from mach_ext._memory import memory_errors
from mach_ext.nn import MACH, check_finite
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
    """Trains a model in place; with dev data it ends with the weights of its best epoch, in eval mode.

    Args:
        model: Linear or hidden-layer MACH, float32 or float64.
        X, Y: Documents [N, D] and labels [N, L], SciPy sparse. Checked in full, once.
        X_dev, Y_dev: Validation data; both or neither.
        filtered_dev: [N_dev, L], SciPy sparse, non-zero where a label is no answer of a validation document.
        output: Folder for checkpoints and the best model, in place of what a former run left there. None
            keeps everything in memory.
        resume: Go on from the checkpoint in `output`; without one there, start. The hyper-parameters, the
            model's shape and the sizes of the data must be those of the checkpoint.
        checkpoint_minutes: A checkpoint at least so often, besides the one after each epoch.
        repetitions_at_a_time: Linear MACH only, whose repetitions share nothing: train so many through all
            epochs, then the next ones, which keeps optimiser state for that many; dev data is
            then asked once, at the end. None: all together (with a warning where memory looks too short).
            Up to rounding the same weights as together; the same bits if R / repetitions_at_a_time is a
            power of two.
        progress: Progress bars on standard error.
        **hyperparameters: Fields of `Hyperparameters`; None means its default for this kind of model.

    Returns:
        `Progress`, whose `history` has one entry an epoch: loss (mean over documents), seconds, dev metrics.

    Raises:
        ValueError, TypeError: Bad data or hyper-parameters; a checkpoint of another run.
        FloatingPointError: The loss became NaN or infinite.
        MemoryError: Memory does not suffice; on a GPU torch.OutOfMemoryError.
        TrainingInterrupted: Ctrl-C; the state is saved in `output`.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> Y = scipy.sparse.csr_matrix(np.eye(20)[np.arange(200) % 20])
        >>> X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
        >>> model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=10, hidden_size=32)
        >>> record = mach_ext.fit(model, X, Y, epochs=30, learning_rate=0.02, batch_size=20, progress=False)
        >>> record.history[-1]["loss"] < record.history[0]["loss"] / 10
        True
    """
    settings = Hyperparameters.of(model, **hyperparameters)
    model.hash.check_contents()
    data = check_training_data(model, X, Y, X_dev, Y_dev, filtered_dev)
    if data.dev is not None and settings.metric not in METRICS:
        raise ValueError(f"fit: metric must be one of {', '.join(METRICS)}, got {settings.metric!r}")
    if resume and output is None:
        raise ValueError("fit: resume needs the output folder of the run to go on with")
    together = repetitions_together(model, data.X, settings, repetitions_at_a_time)
    folder = None if output is None else Path(output)
    with lock_run(folder):
        run = TrainingRun(model, settings, data, folder, resuming=resume, show_progress=progress)
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
