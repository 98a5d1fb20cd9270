"""Runs the commands of a stage side by side, for a limited time, and ends all that they started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from gpu.machine import ROOT
from gpu.stages import Command, Steps

CUT = 124  # as timeout(1): the exit code of what was ended at its limit
GRACE = 5.0  # seconds between the request to end and the end
LARGEST_LOG = 4 << 20


def start(command: Command, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process with a group of its own, so that its children can be ended with it."""
    if command.title:
        output.write(f"=== {command.title}\n".encode())
        output.flush()
    arguments = [os.fspath(argument) for argument in command.arguments]
    if shutil.which(arguments[0]) is None:
        arguments = ["sh", "-c", 'echo "$0 is not found"; exit 127', arguments[0]]
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Asks what still runs to end, and then ends it."""
    running = [process for process in processes if process.poll() is None]
    send(running, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        time.sleep(0.05)
    send(running, signal.SIGKILL)  # also to children that outlive the process
    for process in running:
        process.wait()


def send(processes: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def run_steps(steps: Steps, log: Path, seconds: float, tick: Callable[[], Any]) -> int:
    """Runs the steps in turn, adds their output to `log`, and returns the first exit code that is not 0.

    `tick` is called about once a second, to keep what is there so far.
    """
    until = time.monotonic() + seconds
    code = 0
    for step in steps:
        if time.monotonic() >= until:
            return code or CUT
        codes = run_side_by_side(step, log, until, tick)
        if CUT in codes:
            return CUT
        counted = [c for c, command in zip(codes, step, strict=True) if command.counts]
        code = code or next((c for c in counted if c), 0)
    return code


def run_side_by_side(step: list[Command], log: Path, until: float, tick: Callable[[], Any]) -> list[int]:
    """The exit codes. That of a process which was ended at the limit is CUT."""
    parts = [log] + [log.with_name(f".{log.name}.{number}") for number in range(1, len(step))]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, part in zip(step, parts, strict=True):
            with open(part, "ab") as output:
                processes.append(start(command, output))
        wait(processes, until, tick)
        ended = [process.poll() for process in processes]
    finally:  # also where this program is told to end
        end(processes)
        join(log, parts[1:])
    return [CUT if code is None else code for code in ended]


def wait(processes: list[subprocess.Popen[bytes]], until: float, tick: Callable[[], Any]) -> None:
    """Waits until all have ended, or until then."""
    next_tick = time.monotonic() + 1
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        if time.monotonic() >= next_tick:
            tick()
            next_tick = time.monotonic() + 1
        time.sleep(0.05)


def join(log: Path, parts: list[Path]) -> None:
    """Adds the output of the other commands of a step to its log."""
    with open(log, "ab") as file:
        for part in parts:
            file.write(part.read_bytes())
            part.unlink()


def shorten(log: Path) -> None:
    """Leaves out the middle of a log that is too large to send."""
    text = log.read_bytes()
    if len(text) > LARGEST_LOG:
        half = LARGEST_LOG // 2
        log.write_bytes(text[:half] + b"\n[... left out ...]\n" + text[-half:])
