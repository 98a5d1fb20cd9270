"""What a training step costs on this machine: its operators, whole steps, and the traffic of two processes.

Run it by `OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python -m studies.step_costs [PART ...]`.

Rows go into results/scale_measured.csv. Those with the use "calibrated" give scale.py its rates of this
machine. The others are held out: the table in docs/explanation/scale.md sets them beside what scale.py
predicts. Everything has one thread a process. The two processes talk by torch's gloo, through the loopback.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import socket
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import RESULTS, circumstances, interleave, num_threads, others_seconds, write_rows
from harness.record import cell, read_rows
from scipy import sparse
from studies.rehearsal import REHEARSED
from torch import distributed, multiprocessing

import mach_ext
from mach_ext import _ops
from mach_ext._hash_functions import hash_labels
from mach_ext.data import iter_batches
from mach_ext.functional._products import Group
from mach_ext.training import Hyperparameters
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

FILE, KEY = RESULTS / "scale_measured.csv", ["part", "shape"]
LABELS, EACH = 20_000, 5  # labels, and those of a document
BATCHES = 8  # documents are of so many different batches

Shape = dict[str, Any]
# The shape of all calibrated operators. No step or exchange that is checked has it.
OPERATORS = {"N": 256, "D": 20_000, "nnz": 50, "R": 16, "B": 1024, "H": 256}
STEPS: list[Shape] = [
    {"encoder": encoder, "N": 256, "D": 20_000, "nnz": nnz, "R": R, "B": B, "H": H}
    for encoder, nnz, R, B, H in (
        ("shared", 20, 4, 2048, 256),
        ("shared", 20, 8, 2048, 256),
        ("shared", 20, 16, 2048, 256),
        ("shared", 20, 16, 512, 256),
        ("shared", 200, 8, 512, 256),
        ("shared", 200, 16, 2048, 256),
        ("independent", 20, 8, 512, 128),
    )
]
EXCHANGES: dict[str, list[tuple[str, int, int]]] = {  # operation -> use, rows, columns
    "all_gather": [
        ("calibrated", 16, 256),
        ("calibrated", 512, 256),
        ("calibrated", 8192, 256),
        ("checked", 256, 256),
        ("checked", 1500, 256),
    ],
    "all_reduce": [
        ("calibrated", 16, 256),
        ("calibrated", 16 * 512, 256),
        ("calibrated", 16 * 1024, 256),
        ("checked", 16 * 2048, 256),
    ],
    "all_to_all": [("calibrated", 16, 256), ("calibrated", 2048, 256), ("checked", 256, 256)],
}


def documents(shape: Shape) -> tuple[Any, Any]:
    """Rows whose features are drawn uniformly, and their labels."""
    generator = np.random.default_rng(0)
    N, D, nnz = BATCHES * shape["N"], shape["D"], shape["nnz"]

    def rows(columns: int, each: int) -> Any:
        indices = np.concatenate([generator.choice(columns, each, replace=False) for _ in range(N)])
        values = np.full(N * each, each**-0.5, np.float32)
        return sparse.csr_matrix((values, indices, np.arange(N + 1) * each), (N, columns))

    X, Y = rows(D, nnz), rows(LABELS, EACH)
    return mach_ext.data.check_csr(X), mach_ext.data.check_csr(Y)


def training(shape: Shape) -> tuple[TrainingRun, itertools.cycle[Any]]:
    """A run, and batches that come again and again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        sizes = (shape["D"], LABELS, shape["R"], shape["B"], shape["H"])
        model = mach_ext.MACH(*sizes, encoder=shape.get("encoder", "shared"))
    X, Y = documents(shape)
    settings = Hyperparameters.of(model, schedule="constant", batch_size=shape["N"])
    batches = list(iter_batches(X, Y, shape["N"], seed=0))
    return TrainingRun(model.train(), settings, TrainingData(X, Y)), itertools.cycle(batches)


def operators(shape: Shape) -> dict[str, Callable[[], Any]]:
    """The parts of a step with a shared encoder, each on all repetitions."""
    run, batches = training(shape)
    model, optimizer = run.model, run.optimizer
    N, R, B, H = (shape[name] for name in "NRBH")
    weight, hidden, grad_hidden = model.bucket_weight.detach(), torch.rand(N, H), torch.zeros(N, H)
    logits, grad_weight, grad_bias = torch.randn(N, 1, B), torch.zeros(1, H, B), torch.zeros(1, B)
    first = itertools.islice(batches, BATCHES)
    endless = itertools.cycle([(b, _ops.feature_order(b.indices, b.indptr, shape["D"])) for b in first])
    encoder = model.encoder_weight
    optimizer.begin_step()

    def products() -> None:
        for r in range(R):
            group = Group(hidden, weight[r : r + 1])
            group.logits(logits)
            group.add_grad_hidden(logits, grad_hidden)
            group.write_grad_weight(logits, grad_weight)

    def loss() -> None:
        batch, _ = next(endless)
        labels = batch.label_indices.long(), batch.label_indptr
        for r in range(R):
            _ops.bucket_bce(logits, None, model.hash.buckets[r : r + 1], *labels, 1e-3, None, grad_bias)

    def classifiers() -> None:
        for r in range(R):
            optimizer.step_rows(model.bucket_weight, slice(r, r + 1), grad_weight)

    def order() -> None:
        batch, _ = next(endless)
        _ops.feature_order(batch.indices, batch.indptr, shape["D"])

    def forward() -> None:
        batch, order = next(endless)
        X = batch.values, batch.indices, batch.indptr
        _ops.sparse_linear(*X, encoder.detach(), model.encoder_bias, True, order)

    def encoder_step() -> None:
        batch, order = next(endless)
        optimizer.step_sparse_linear(encoder, None, hidden.unsqueeze(1), batch.values, order)

    return {
        "products": products, "loss": loss, "classifiers": classifiers,
        "order": order, "forward": forward, "encoder": encoder_step,
    }  # fmt: skip


def keep(part: str, use: str, shape: Shape, bursts: list[Burst]) -> None:
    """Writes a row of the calmest bursts, and prints it. A former row of a calmer machine stays."""
    calm = sorted(bursts, key=lambda burst: burst.others)[: max(2, len(bursts) // 4)]
    samples = [seconds for burst in calm for seconds in burst.samples[part]]
    others = statistics.mean(burst.others for burst in calm)
    row = {"part": part, "use": use, "shape": shape, "seconds": statistics.median(samples)}
    row |= {"fastest": min(samples), "rounds": len(samples), "others_cores": round(max(others, 0.0), 2)}
    now = {name: cell(value) for name, value in row.items()}
    former = [old for old in read_rows(FILE) if all(old[name] == now[name] for name in KEY)]
    if not former or float(former[0]["others_cores"]) >= row["others_cores"]:
        write_rows(FILE, [row | circumstances(RESULTS)], KEY)
    print(part, use, shape, f"{row['seconds'] * 1e3:.3f} ms, others {others:.2f}", flush=True)


@dataclass(frozen=True)
class Burst:
    """Calls within half a second or so, and the cores that other programs had meanwhile."""

    samples: dict[str, list[float]]
    others: float


def bursts(calls: dict[str, Callable[[], Any]], count: int = 20) -> list[Burst]:
    """Each burst has its own share of the work of others, so the calm ones can be told."""
    made = []
    for _ in range(count):
        start, before = time.perf_counter(), others_seconds()
        samples = interleave(calls, 0.4, 3, 50)
        made.append(Burst(samples, (others_seconds() - before) / (time.perf_counter() - start)))
    return made


def measure_operators() -> None:
    calls = operators(OPERATORS)
    tiny, batches = training({**OPERATORS, "N": 4, "nnz": 4, "R": 1, "B": 16, "H": 16})
    calls["tiny step"] = lambda: tiny.step(next(batches))
    made = bursts(calls, 60)
    for name in calls:
        keep(name, "calibrated", {} if name == "tiny step" else OPERATORS, made)


def measure_steps() -> None:
    for shape in STEPS:
        run, batches = training(shape)
        calls = {"step": lambda run=run, batches=batches: run.step(next(batches))}
        keep("step", "checked", shape, bursts(calls))


def measure_hash() -> None:
    """The table of a label hash, which is made once. scale.py gives no prediction of it."""
    calls = {"label hash": lambda: hash_labels(1_000_000, 65_536, 1, 0)}
    keep("label hash", "noted", {"L": 1_000_000, "R": 1, "B": 65_536}, bursts(calls))


# -------------------------------------------------------------------------------------------- two processes


def exchange(operation: str, rows: int, columns: int) -> Callable[[], Any]:
    G = distributed.get_world_size()
    mine = torch.rand(rows, columns)
    if operation == "all_gather":
        gathered = [torch.empty_like(mine) for _ in range(G)]
        return lambda: distributed.all_gather(gathered, mine)
    if operation == "all_reduce":
        return lambda: distributed.all_reduce(mine)
    parts = torch.empty_like(mine)
    return lambda: distributed.all_to_all_single(parts, mine)


def bursts_of_all(name: str, call: Callable[[], Any], count: int = 12) -> list[Burst]:
    """As `bursts`, of a call that all processes make together. Each call is timed from a barrier on."""
    call()
    once = torch.tensor([time.perf_counter()], dtype=torch.float64)
    call()
    once = time.perf_counter() - once
    distributed.broadcast(once, 0)
    made = []
    for _ in range(count):
        start, before, own = time.perf_counter(), others_seconds(), time.process_time()
        samples = []
        for _ in range(max(3, min(50, int(0.25 / once.item())))):
            distributed.barrier()
            begun = time.perf_counter()
            call()
            samples.append(time.perf_counter() - begun)
        # This process's own time is no part of what others_seconds counts. The other ranks' time is.
        ranks = torch.tensor([time.process_time() - own], dtype=torch.float64)
        mine = ranks.item()
        distributed.all_reduce(ranks)
        busy = others_seconds() - before - (ranks.item() - mine)
        made.append(Burst({name: samples}, busy / (time.perf_counter() - start)))
    return made


def process(rank: int, port: int, part: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    cases: list[tuple[str, str, Shape, Callable[[], Callable[[], Any]]]] = []
    if part == "exchanges":
        for operation, sizes in EXCHANGES.items():
            for use, rows, columns in sizes:
                make = functools.partial(exchange, operation, rows, columns)
                cases.append((operation, use, {"G": 2, "rows": rows, "columns": columns}, make))
    else:
        for name, layout, shape in REHEARSED:
            cases.append((name, "checked", {"G": 2, **shape}, functools.partial(layout, shape, training)))
    for name, use, shape, make in cases:
        made = bursts_of_all(name, make())
        if rank == 0:
            keep(name, use, shape, made)
    distributed.destroy_process_group()


def measure_processes(part: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (port, part), nprocs=2)


PARTS: dict[str, Callable[[], None]] = {
    "operators": measure_operators,
    "steps": measure_steps,
    "hash": measure_hash,
    "exchanges": functools.partial(measure_processes, "exchanges"),
    "rehearsed": functools.partial(measure_processes, "rehearsed"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    with num_threads(1):
        for name in parser.parse_args().parts or PARTS:
            PARTS[name]()


if __name__ == "__main__":
    main()
