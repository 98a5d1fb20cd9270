"""Two processes save into one folder and a third loads from it: python -m stress.writers, in tests/."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mach_ext

SAVE = """
import sys, time
import mach_ext.data.locks
mach_ext.data.locks._QUIET_SECONDS = 60  # no run is here, however long a process waits for its turn
seed, folder, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
model = mach_ext.MACH(50, 40, num_repetitions=4, num_buckets=16, hidden_size=8, seed=seed)
model.attachments["seed.json"] = b"%d" % seed
model.save(folder)
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + seconds
saves = 0
while time.monotonic() < until:
    model.save(folder, 0.01 if saves % 5 == 4 else None)
    saves += 1
print(saves)
"""
LOAD = """
import sys, time
import mach_ext
folder, seconds = sys.argv[1], float(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + seconds
seeds = []
while time.monotonic() < until:
    model = mach_ext.load(folder)
    assert model.attachments["seed.json"] == b"%d" % model.seed
    seeds.append(model.seed)
print(len(seeds))
"""


def two_writers(folder: Path, seconds: float) -> tuple[int, int, int]:
    """How often each of two processes saved and the third loaded; none of them may fail."""
    commands = [[SAVE, "1", folder, seconds], [SAVE, "2", folder, seconds], [LOAD, folder, seconds]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", *map(str, c)], **pipes) for c in commands]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    counts = []
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0
        counts.append(int(output))
    model = mach_ext.load(folder)
    files = {file.name.partition("-")[0] for file in folder.iterdir()}
    assert len(list(folder.iterdir())) == 3, "something is left of a save"
    assert files == {"model.json", "weights", "seed"}
    assert model.attachments["seed.json"] == b"%d" % model.seed
    return counts[0], counts[1], counts[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        first, second, loads = two_writers(Path(folder), parser.parse_args().seconds)
    seconds = time.monotonic() - started
    print(f"writers: {first} and {second} saves, {loads} loads, 0 failed, {seconds:.0f} s")


if __name__ == "__main__":
    main()
