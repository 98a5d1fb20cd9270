"""Several processes beside one: the time of training, the bits of the weights, and the metrics.

Run it by `PYTHONPATH=benchmarks python -m studies.processes`. It trains each kind of model on wordnet,
for one epoch, with one process and with several, on all cores of the machine. The runs of a round follow each
other, so that all meet the same machine. Medians over the rounds go into results/processes.csv.

`--bits` compares 1, 2, 3 and 4 processes of one thread each. It prints how far the weights are from those of
one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, circumstances, write_rows

import mach_ext

KINDS = {
    "linear": ["--hidden-size", "0", "--hash-functions", "8", "--buckets", "256", "--epochs", "1"],
    "svm": ["--svm", "--hash-functions", "4", "--buckets", "256"],
    "independent": [
        "--encoder", "independent", "--hidden-size", "64", "--hash-functions", "8", "--buckets", "1024",
        "--epochs", "1",
    ],
    "shared": ["--hidden-size", "256", "--hash-functions", "16", "--buckets", "2048", "--epochs", "1"],
}  # fmt: skip


def train(kind: str, dataset: str, processes: int, threads: int, folder: Path) -> dict[str, Any]:
    """Trains a model of a kind, and returns the metrics of its run."""
    options = [
        "--dataset",
        dataset,
        "--output",
        str(folder),
        "--threads",
        str(threads),
        "--quiet",
        "--overwrite",
    ]
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    command = [*start, "mach_ext", "train", *options, *KINDS[kind]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def seconds_of(metrics: dict[str, Any]) -> float:
    """Returns the time of training itself."""
    return float(metrics["seconds"]["fit"])


def distance(folder: Path, other: Path) -> float:
    """Returns the largest difference between the weights of two runs. 0: they have the same bits."""
    states = [mach_ext.load(each).state_dict() for each in (folder, other)]
    same = all(states[0][name].equal(states[1][name]) for name in states[0])
    if same:
        return 0.0
    return max(float((states[0][name] - value).abs().max()) for name, value in states[1].items()
               if torch.is_tensor(value) and value.is_floating_point())  # fmt: skip


def speed(kind: str, dataset: str, rounds: int, home: Path) -> dict[str, Any]:
    """Times one process with all cores and as many processes of one thread, in turn."""
    cores = os.cpu_count() or 1
    times: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(rounds):
        for processes in times:
            metrics = train(kind, dataset, processes, cores // processes, home / str(processes))
            times[processes].append(seconds_of(metrics))
    one, several = (statistics.median(each) for each in times.values())
    ratios = [a / b for a, b in zip(times[1], times[cores], strict=True)]
    return {
        "processes": cores, "seconds_one": one, "seconds_several": several,
        "speed": statistics.median(ratios), "rounds": rounds,
    }  # fmt: skip


def bits(kind: str, dataset: str, home: Path) -> list[dict[str, Any]]:
    """Compares the weights and P@1 of 1 to 4 processes of one thread each."""
    rows = []
    for processes in (1, 2, 3, 4):
        metrics = train(kind, dataset, processes, 1, home / f"bits-{processes}")
        far = distance(home / "bits-1", home / f"bits-{processes}")
        rows.append({"processes": processes, "difference": far, "P@1": metrics["test"]["P@1"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)} (all)")
    parser.add_argument("--dataset", default="wordnet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bits", action="store_true", help="see above")
    args = parser.parse_intermixed_args()
    name = Path(args.dataset).name
    with tempfile.TemporaryDirectory() as home:
        for kind in args.kinds or KINDS:
            key = {"dataset": name, "kind": kind, "study": "bits" if args.bits else "speed"}
            if args.bits:
                rows = bits(kind, args.dataset, Path(home))
            else:
                rows = [speed(kind, args.dataset, args.rounds, Path(home))]
            about = circumstances(RESULTS)
            write_rows(RESULTS / "processes.csv", [key | row | about for row in rows], list(key))
            for row in rows:
                print(kind, *(f"{what}={value:.6g}" for what, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
