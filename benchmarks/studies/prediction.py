"""Milliseconds a document: models in float32 and in 8 bits beside PECOS XR-Linear and napkinXC.

Run it by `PYTHONPATH=benchmarks python -m studies.prediction DATASET [...] [--runs FOLDER] [--keep FOLDER]`.

All learn from all of train, and are asked for the top 50 of test, or of dev where there is no test. The model
of mach_ext is the run FOLDER/DATASET if there is one, else a training by rules. All systems are asked in
turn, for several rounds, so that all meet the same machine. A round asks 200 documents one by one, of which
the median counts, and 2,000 documents at a time. Each takes rows of a CSR matrix and gives what it gives,
without a conversion. Rows for the others have length 1 before the clock starts. Times are CPU seconds on one
thread.

`resident` is the resident memory that a process of its own gains by the load of a mach_ext model and the same
2,000 questions. Results go into results/prediction.csv, and `make bench-table` makes the table of
docs/results/performance.md from it. Needs the extra [peers].
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from harness import RESULTS, circumstances, write_rows
from studies.peers import BATCH, SINGLE, K, best, of_pairs, unit

import mach_ext
from mach_ext import data, metrics

FILE, KEY, ROUNDS = RESULTS / "prediction.csv", ["dataset", "system"], 7


@dataclass(frozen=True)
class Asked:
    """A trained system: how its rows are made, how it is asked, and the labels of an answer."""

    rows: Callable[[sp.csr_matrix], sp.csr_matrix]
    ask: Callable[[sp.csr_matrix], Any]
    labels: Callable[[Any], np.ndarray[Any, Any]]


RESIDENT = """
import sys, mach_ext, scipy.sparse, torch
torch.set_num_threads(1)
def resident():
    return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS"))
X = scipy.sparse.load_npz(sys.argv[2])
before = resident()
model = mach_ext.load(sys.argv[1])
model.predict(X, 50)
print(resident() - before)
"""


def resident(model: Any, X: sp.csr_matrix) -> int:
    """Bytes of resident memory that a process gains by a model from its folder, which answers these rows."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        sp.save_npz(f"{folder}/X.npz", X)
        command = [sys.executable, "-c", RESIDENT, folder, f"{folder}/X.npz"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def mach_models(dataset: data.Dataset, runs: Path | None) -> dict[str, Any]:
    """The model in float32 and in 8 bits."""
    folder = None if runs is None else runs / dataset.name
    if folder is None or not folder.exists():
        folder = Path(tempfile.mkdtemp()) / "run"
        mach_ext.train(dataset, output=folder, choice="rule", svm=False, holdout=False, evaluate=False)
    model = mach_ext.load(folder)
    assert isinstance(model, mach_ext.MACH)
    return {"mach_ext": model, "mach_ext, int8": mach_ext.quantize(model)}


def of_mach(model: Any) -> Asked:
    return Asked(sp.csr_matrix, lambda X: model.predict(X, K), lambda answer: answer[1])


def pecos(X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path) -> Asked:
    """XR-Linear of PECOS with its defaults, loaded for prediction alone."""
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    if not folder.exists():
        X, Y = unit(X), Y.astype(np.float32)
        clusters = Indexer.gen(LabelEmbeddingFactory.create(Y, X, method="pifa"), threads=1)
        XLinearModel.train(X, Y, C=clusters, threads=1).save(str(folder))
    model = XLinearModel.load(str(folder), is_predict_only=True)
    return Asked(
        unit,
        lambda X: model.predict(X, only_topk=K, beam_size=10, threads=1),
        lambda answer: best(answer, K).labels,
    )


def napkinxc(X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path) -> Asked:
    """Probabilistic label trees of napkinXC with its defaults."""
    from napkinxc.models import PLT

    known = folder.exists()
    model = PLT(str(folder), threads=1)
    if known:
        model.load()
    else:
        model.fit(X, Y)
    return Asked(unit, lambda X: model.predict_proba(X, top_k=K), lambda answer: of_pairs(answer, K).labels)


OTHERS = {"PECOS XR-Linear": pecos, "napkinXC PLT": napkinxc}


def milliseconds(systems: dict[str, Asked], X: sp.csr_matrix) -> dict[str, dict[str, float]]:
    """CPU milliseconds a document, alone and in a batch, of each system: medians over the rounds."""
    some, single = (np.linspace(0, X.shape[0] - 1, min(n, X.shape[0])).astype(int) for n in (BATCH, SINGLE))
    batches = {name: system.rows(X[some]) for name, system in systems.items()}
    alone = {name: [system.rows(X[n : n + 1]) for n in single] for name, system in systems.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"ms_single": [], "ms_batch": []} for name in systems}
    for turn in range(ROUNDS + 1):
        for name, system in systems.items():
            each = [_milliseconds(system, x) for x in alone[name]]
            whole = _milliseconds(system, batches[name]) / len(some)
            if turn:  # the first round warms up
                times[name]["ms_single"].append(statistics.median(each))
                times[name]["ms_batch"].append(whole)
    return {
        name: {key: statistics.median(found) for key, found in each.items()} for name, each in times.items()
    }


def _milliseconds(system: Asked, X: sp.csr_matrix) -> float:
    start = time.process_time_ns()
    system.ask(X)
    return (time.process_time_ns() - start) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names or folders")
    parser.add_argument("--runs", type=Path, help="folder with a run for each dataset")
    parser.add_argument("--keep", type=Path, help="folder that keeps the other systems' models (nowhere)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.datasets:
        dataset = data.load(name, holdout=False)
        asked = dataset.dev if dataset.test is None else dataset.test
        assert asked is not None
        models = mach_models(dataset, args.runs)
        systems = {system: of_mach(model) for system, model in models.items()}
        with tempfile.TemporaryDirectory() as temporary:
            home = Path(temporary) if args.keep is None else args.keep / dataset.name
            home.mkdir(parents=True, exist_ok=True)
            for system, train in OTHERS.items():
                systems[system] = train(dataset.train.X, dataset.train.Y, home / system)
            times = milliseconds(systems, asked.X)
        for system, found in times.items():
            labels = systems[system].labels(systems[system].ask(systems[system].rows(asked.X)))
            precisions = {f"P@{k}": metrics.precision_at_k(asked.truth, labels, k) for k in (1, 3, 5)}
            row = {"dataset": name, "system": system, **found, **precisions}
            if system in models:
                row["resident"] = resident(models[system], asked.X[:BATCH])
            row |= circumstances(RESULTS)
            write_rows(FILE, [row], KEY)
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()
