"""Operations that are short of memory: python -m stress.memory [operation ...] [--limits N], in tests/.

Each operation runs in processes of its own that may have more and more memory (RLIMIT_AS), from nothing
beyond what the import took to what the operation needs. It must succeed, or say in one line how much memory
was short and what to lower: as a `MemoryError` in Python, as one line and exit code 1 on the command line.
Nothing half-written may stay.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

import mach_ext
from mach_ext import cli, data, runs

SECONDS = 60  # for one run
MIB = 1 << 20
SHORTAGE = re.compile(r"not enough memory: .*(\d bytes|\d [KMGTP]iB).*; \w+")
N, D, L = 3000, 8000, 3000
SIZES = ["--hash-functions", "4", "--buckets", "256", "--quiet", "--overwrite"]
FIT = ["--epochs", "1", "--batch-size", "256", *SIZES]


# ---------------------------------------------------------------------------------------- the operations


def prepare(folder: Path) -> None:
    """The dataset and the models that operations start from, in a folder."""
    rng = np.random.default_rng(0)
    for split, documents in (("train", N), ("dev", 200), ("test", 500)):
        rows = np.repeat(np.arange(documents), 20)
        X = scipy.sparse.csr_matrix(
            (rng.random(len(rows), np.float32), (rows, rng.integers(0, D, len(rows)))), (documents, D)
        )
        labels = (np.ones(2 * documents), (rows[::10], rng.integers(0, L, 2 * documents)))
        Y = scipy.sparse.csr_matrix(labels, (documents, L))
        Y.data[:] = 1
        data.write_xmc(folder / "words" / f"{split}.txt", X, Y)
    names = [f"{i}\tlabel {i}\n" for i in range(L)], [f"{i}\tword{i}\n" for i in range(D)]
    for file, lines in zip(("labels.txt", "features.txt"), names, strict=True):
        (folder / "words" / file).write_text("".join(lines))
    texts = [
        json.dumps({"text": " ".join(map("word{}".format, words)), "labels": [f"topic {n % 50}"]})
        for n, words in enumerate(rng.integers(0, 5000, (2000, 30)).tolist())
    ]
    (folder / "texts").mkdir()
    (folder / "texts" / "train.jsonl").write_text("\n".join(texts) + "\n")
    (folder / "texts" / "test.jsonl").write_text("\n".join(texts[:200]) + "\n")
    models = (("hidden", "words", 128), ("linear", "words", 0), ("texts", "texts", 64))
    for run, dataset, hidden_size in models:
        loaded = data.load(folder / dataset)
        model = mach_ext.MACH(loaded.num_features, loaded.num_labels, 4, 256, hidden_size)
        with torch.no_grad():
            model.bucket_weight.normal_()
        model.attachments = runs.attachments(loaded)
        model.save(folder / "runs" / run)
        if run == "hidden":
            model.save(folder / "runs" / "small", quantization_step=0.1)


def matrices() -> tuple[Any, Any]:
    split = data.load("words").test
    return split.X, split.Y


def fit_in_python() -> None:
    X, Y = matrices()
    mach_ext.fit(mach_ext.MACH(D, L, 4, 256, 64), X, Y, epochs=1, progress=False, output="new")


def certify_in_python() -> None:
    X, Y = matrices()
    mach_ext.certify.certify(mach_ext.load("runs/linear"), X[:8], Y[:8], [0.01], zero=False)


COMMANDS = {
    "train cold": ["train", "--dataset", "words", "--output", "new", "--hidden-size", "128", *FIT],
    "train hidden": ["train", "--dataset", "words", "--output", "new", "--hidden-size", "128", *FIT],
    "train two layers": ["train", "--dataset", "words", "--output", "new", "--hidden-size", "64,64", *FIT],
    "train linear": ["train", "--dataset", "words", "--output", "new", "--hidden-size", "0", *FIT],
    "train svm": ["train", "--dataset", "words", "--output", "new", "--svm", *SIZES],
    "train in turn": ["train", "--dataset", "words", "--output", "new", "--hidden-size", "0",
                      "--repetitions-at-a-time", "1", *FIT],
    "train bfloat16": ["train", "--dataset", "words", "--output", "new", "--hidden-size", "128",
                       "--precision", "bfloat16", *FIT],
    "train texts": ["train", "--dataset", "texts", "--output", "new", "--hidden-size", "64", *FIT],
    "predict words": ["predict", "--model-path", "runs/texts", "--text", "word1 word2"],
    "predict split": ["predict", "--model-path", "runs/hidden", "--split", "test", "--output", "new"],
    "predict file": ["predict", "--model-path", "runs/linear", "--input", "words/test.txt", "--output",
                     "new"],
    "evaluate": ["evaluate", "--model-path", "runs/hidden", "--output", "new"],
    "evaluate neighbors": ["evaluate", "--model-path", "runs/hidden", "--neighbors", "--output", "new"],
    "explain": ["explain", "--model-path", "runs/hidden", "--sample-id", "0", "--html", "new/page.html"],
    "attack fgsm": ["attack", "--model-path", "runs/hidden", "--sample", "100", "--output", "new", "--quiet"],
    "attack pgd": ["attack", "--model-path", "runs/linear", "--sample", "50", "--attack", "pgd", "--steps",
                   "2", "--threat", "dense", "--output", "new", "--quiet"],
    "attack delete": ["attack", "--model-path", "runs/hidden", "--sample", "8", "--attack", "delete", "--eps",
                      "1", "--certify", "--targeted", "--output", "new", "--quiet"],
    "compress": ["compress", "--model-path", "runs/hidden", "--split", "none", "--output", "new"],
    "info": ["info", "--model-path", "runs/small"],
    "data convert": ["data", "convert", "--dataset", "words", "--output", "new"],
    "data info": ["data", "info", "--dataset", "words"],
}  # fmt: skip
CALLS: dict[str, Callable[[], Any]] = {
    "MACH.save": lambda: mach_ext.MACH(D, L, 4, 256, 128).save("new"),
    "MACH.save small": lambda: mach_ext.MACH(D, L, 4, 256, 128).save("new", quantization_step=0.01),
    "load": lambda: mach_ext.load("runs/hidden"),
    "load small": lambda: mach_ext.load("runs/small"),
    "LabelHash": lambda: mach_ext.LabelHash(500_000, 100, 2).diagnostics(),
    "fit": fit_in_python,
    "certify": certify_in_python,
}
OPERATIONS = [*COMMANDS, *CALLS]


# ------------------------------------------------------------------------------------------ one run of one


def perform(name: str) -> int:
    """Runs an operation; 0: done, 1: short of memory, as the last line of standard error says."""
    if name in COMMANDS:
        return cli.main(COMMANDS[name])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mach_ext.CollisionWarning)
            CALLS[name]()
        return 0
    except MemoryError as error:
        print(error, file=sys.stderr)
        return 1


def run_with(name: str, extra: int | None, folder: Path) -> str:
    """What comes of an operation that may have so many bytes more than now; None: any number."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for number, file in ((1, "out"), (2, "err")):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            faulthandler.enable()
            faulthandler.register(signal.SIGUSR1)
            if extra is not None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra,) * 2)
            status = perform(name)
            sys.stdout.flush()
        except BaseException:
            with contextlib.suppress(BaseException):
                traceback.print_exc()
        os._exit(status)
    return outcome(wait(pid), (folder / "err").read_text(errors="replace"), folder)


def wait(pid: int) -> int | None:
    """The status with which a process ended; None: it stood still and was ended."""
    for _ in range(SECONDS * 50):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.kill(pid, signal.SIGUSR1)  # where it stands, into its standard error
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def outcome(status: int | None, err: str, folder: Path) -> str:
    if status is None:
        said = " ".join(err.rpartition("most recent call first")[2].split())
        return f"stands still: {said[:900]}"
    if os.WIFSIGNALED(status):
        said = " ".join((err.partition("Fatal Python error")[2] or err[-300:]).split())
        return f"{signal.Signals(os.WTERMSIG(status)).name}: {said[:900]}"
    if left := half_written(folder):
        return f"half-written: {left}"
    code, lines = os.WEXITSTATUS(status), err.strip().splitlines() or [""]
    if code == 0:
        return "done"
    short = [line for line in lines if SHORTAGE.search(line)]
    if code == 1 and "Traceback" not in err and short == lines[-1:]:
        return "short of memory"
    return f"exit {code}: {' '.join(' | '.join(lines).split())[-600:]}"


def half_written(folder: Path) -> list[str]:
    """Files that an operation left and that are not whole."""
    files = [file for file in (folder / "new").rglob("*") if file.is_file()]
    left = [file.name for file in files if file.name.endswith((".tmp", ".part"))]
    for file in files:
        if file.suffix == ".json" and file.stat().st_size:
            json.loads(file.read_text())
    if (folder / "new" / "model.json").exists():
        mach_ext.load(folder / "new")
    return left


def limits(name: str, count: int, folder: Path) -> Iterator[tuple[int, str]]:
    """Bytes and what came of them: those by which the need is bracketed, then evenly spaced ones."""
    low, high, extra = 0, 0, 16 * MIB
    while True:
        came = run_with(name, extra, folder)
        yield extra, came
        if came == "done":
            high = extra
            break
        low, extra = extra, 2 * extra
    for _ in range(min(6, count // 4)):
        middle = (low + high) // 2
        came = run_with(name, middle, folder)
        yield middle, came
        low, high = (low, middle) if came == "done" else (middle, high)
    for i in range(count):
        extra = high * i // count
        yield extra, run_with(name, extra, folder)


def stress(names: list[str], count: int) -> bool:
    """Operations at about so many limits each; prints what came of them. Whether all was as it must be."""
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    good = True
    with tempfile.TemporaryDirectory() as temporary, open(os.devnull, "w") as nowhere:
        folder = Path(temporary)
        (folder / "words").mkdir()
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            prepare(folder)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, "the operations could not be prepared"
        for name in names:
            if name != "train cold":
                importlib.import_module("torch._dynamo")  # which PyTorch's optimisers do: 60 MiB and 3 s
            start = time.monotonic()
            assert run_with(name, None, folder) == "done", (name, (folder / "err").read_text())
            came = list(limits(name, count, folder))
            kinds = Counter(kind for _, kind in came)
            need = min(extra for extra, kind in came if kind == "done")
            rest = {kind: number for kind, number in kinds.items() if kind not in ("done", "short of memory")}
            total.update({"done": kinds["done"], "short of memory": kinds["short of memory"]})
            total["other"] += sum(rest.values())
            good &= not rest
            print(
                f"{name}: {len(came)} limits up to {need / MIB:.0f} MiB, {kinds['done']} done, "
                f"{kinds['short of memory']} short of memory, {sum(rest.values())} other, "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
            for kind, number in rest.items():
                at = ", ".join(f"{extra / MIB:.1f}" for extra, other in came if other == kind)
                print(f"  {number} x {kind}   [at MiB: {at}]", flush=True)
    print(f"memory: {total.total():,} runs, " + ", ".join(f"{n:,} {kind}" for kind, n in total.items()))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("operations", nargs="*", default=OPERATIONS, metavar="operation")
    parser.add_argument("--limits", type=int, default=30, help="how many for each operation")
    args = parser.parse_args()
    return 0 if stress(args.operations, args.limits) else 1


if __name__ == "__main__":
    sys.exit(main())
