"""Dropout of a run. The masks of a step depend on the seed and the step alone."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch

from mach_ext.nn import Dropout


def step_dropout(device: torch.device, seed: int, step: int) -> Dropout:
    """Return the dropout of a step, as the methods of `MACH` take it.

    On the CPU dropout has a generator of its own. Threads that draw numbers meanwhile therefore change
    nothing. On a GPU PyTorch's own dropout is faster and needs less memory, but it only draws from the global
    generators.
    """
    drawn = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1
    if device.type == "cuda":
        torch.manual_seed(drawn)
        return True
    return torch.Generator(device).manual_seed(drawn)


def keep_generators(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Restore the state of the global generators afterwards, if the run draws from them."""
    if device.type == "cuda":
        return torch.random.fork_rng(devices=[device])
    return contextlib.nullcontext()
