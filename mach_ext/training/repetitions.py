"""Linear MACH trained a few repetitions at a time, as separate runs that need less optimiser state."""

from __future__ import annotations

from dataclasses import replace

import torch

from mach_ext._dense_features import SCALING
from mach_ext._progress import tqdm
from mach_ext.distributed.part import ModelPart
from mach_ext.hashing import LabelHash, collisions_known
from mach_ext.nn import MACH
from mach_ext.training.folder import delete_checkpoint
from mach_ext.training.progress import TrainingInterrupted
from mach_ext.training.run import TrainingRun


def train_in_turn(run: TrainingRun, together: int, checkpoint_seconds: float) -> None:
    """Train linear MACH, `together` repetitions at a time, as separate runs in separate folders."""
    R, state = run.model.num_repetitions, run.state
    run.model.set_logit_adjustment(0)
    if run.folder is not None and not run.resuming:
        delete_checkpoint(run.folder.folder)
    for first in range(0, R, together):
        last = min(first + together, R)
        if run.show_progress:
            tqdm.write(f"repetitions {first + 1} to {last} of {R}")
        with collisions_known():  # A few repetitions alone always have collisions.
            part = _part_of(run, first, last)
            if run.resuming:
                part.resume()
            part.train(checkpoint_seconds)
        if part.interrupted and last < R:
            raise TrainingInterrupted(
                f"training stopped after {last} of {R} repetitions: continue with resume=True (--resume)"
            )
        state.seconds += part.state.seconds
        state.history += [{"repetitions": [first, last], **entry} for entry in part.state.history]
    run.adjust(run.usual_tau)
    state.epoch = state.best_epoch = run.settings.epochs
    if run.data.dev is not None:
        state.history.append({"epoch": state.epoch, "dev": run.validation.metrics(run.model)})
        run.choose_tau()
    if run.folder is not None:
        run.folder.keep_model()
        run.folder.write_end(state)
        run.folder.delete_parts()
    run.model.eval()


def _part_of(run: TrainingRun, first: int, last: int) -> TrainingRun:
    """Return the run of repetitions [first, last)."""
    model = select_repetitions(run.model, first, last)
    return TrainingRun(
        ModelPart.alone(model, run.model.num_repetitions),
        replace(run.settings, tau=0.0),  # The whole model is adjusted at the end.
        replace(run.data, dev=None, filtered_dev=None),
        None if run.folder is None else run.folder.folder / f"repetitions-{first}",
        resuming=run.resuming,
        show_progress=run.show_progress,
    )


def select_repetitions(model: MACH, first: int, last: int) -> MACH:
    """Return repetitions [first, last) of a linear model as a separate model on the same memory."""
    hash = LabelHash.from_buckets(model.hash.buckets[first:last], model.num_buckets)
    hash = hash.to(model.hash.buckets.device)
    configuration = {**model.configuration(), "num_repetitions": last - first}
    with torch.device("meta"):
        part = MACH(**configuration, hash=hash)
    part.bucket_weight = torch.nn.Parameter(model.bucket_weight.data[first:last])
    part.bucket_bias = torch.nn.Parameter(model.bucket_bias.data[first:last])
    part.logit_adjustment = model.logit_adjustment[first:last]
    for name in SCALING if model.num_dense else ():
        setattr(part, name, getattr(model, name))
    return part
