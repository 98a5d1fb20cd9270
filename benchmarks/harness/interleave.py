"""Providers timed in turn within one run, so that all meet the same machine.

`torch.utils.benchmark.Timer` times one provider after the other. It also makes two calls before each
measurement. Those would take most of the time where a call takes seconds, and they would use up what a `Part`
prepared.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Part:
    """A provider that does part of the work, so that its time counts `scale` times, or needs preparing."""

    call: Callable[..., Any]
    scale: float = 1.0
    what: str = ""  # such as "32 of 256 documents", nothing for all
    before: Callable[[], Any] | None = None  # not timed; `call` gets what it returns

    @staticmethod
    def of(provider: Callable[[], Any] | Part) -> Part:
        return provider if isinstance(provider, Part) else Part(provider)

    def seconds(self, repeats: int = 1) -> float:
        if self.before is not None:
            return seconds(functools.partial(self.call, self.before()))
        return seconds(self.call, repeats) / repeats


@dataclass(frozen=True)
class Floor:
    """What no program for this work can go below on this machine: the longest of the parts that are given."""

    how: str  # the count, in words that hold for every shape of this work
    bytes: float = 0  # each needed byte moved once, at the STREAM bandwidth of the run
    cycles: float = 0  # of one core; all threads share them
    flops: float = 0  # at the speed of a large matrix product in the run


@dataclass(frozen=True)
class Target:
    """median of `over` / median of `ours` must reach `ratio`."""

    ours: str
    over: str  # a provider, or the first word of several: then the fastest of them
    ratio: float | None  # None: shown, nothing promised


def interleave(
    providers: dict[str, Callable[[], Any] | Part], budget: float, min_rounds: int, max_rounds: int
) -> dict[str, list[float]]:
    """Seconds a call in each round. Every round runs each provider in turn, so all meet the same machine.

    Each is called once before, to warm up. What takes under a millisecond is repeated within a round.
    """
    parts = {name: Part.of(provider) for name, provider in providers.items()}
    repeats = {}
    for name, part in parts.items():
        warm_up = part.seconds()
        repeats[name] = 1 if warm_up > 0.01 else max(1, math.ceil(1e-3 / part.seconds()))
    samples: dict[str, list[float]] = {name: [] for name in parts}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + budget
        for done in range(max_rounds):
            if done >= min_rounds and time.perf_counter() > end:
                break
            for name, part in parts.items():
                samples[name].append(part.scale * part.seconds(repeats[name]))
    finally:
        gc.enable()
    return samples


def seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
