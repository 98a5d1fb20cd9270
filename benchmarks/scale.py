"""The time of MACH on many processes, and a plan for a billion labels and documents. Arithmetic alone.

    python benchmarks/scale.py           prints the tables of docs/explanation/scale.md
    python benchmarks/scale.py --write   writes the plan to benchmarks/results/scale.csv

scale_model.py counts what a rank holds, does and receives. Here are the rates. Those of GPUs are of
cuda_model.py, and the links are assumed. The rates of a CPU core come from the rows of scale_measured.csv
that are marked as calibrated. Its other rows are runs, which `against_runs` sets beside the prediction.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cuda_model
from frames import RESULTS
from harness.record import read_rows, write_rows
from scale_model import FLOAT, NARROW, Exchange, Part, Shape, memory, occurring, plan

SECTOR = 32  # bytes: a GPU reads and writes no less of a row


# ----------------------------------------------------------------------------------------------- machines


@dataclass(frozen=True)
class Core:
    """Rates of a CPU core, in seconds, and of the links between processes.

    Attributes:
        flop: Of the products of the classifiers.
        logit: Of the loss.
        weight: Of Adam's step of a classifier's weight.
        nonzero: To put a non-zero into the order of features.
        gathered: A byte of an encoder's row, read for a non-zero.
        stepped: A byte of rows and moments, read and written, and of gradients.
        overhead: A step's.
        exchanges: By operation, bytes received and seconds, the fewer bytes first.
    """

    flop: float
    logit: float
    weight: float
    nonzero: float
    gathered: float
    stepped: float
    overhead: float
    exchanges: Mapping[str, list[tuple[float, float]]]

    def step(self, part: Part) -> float:
        """Seconds of a rank's own work in a step."""
        nonzeros = part.documents * part.shape.nonzeros
        seconds = self.overhead + self.nonzero * nonzeros
        seconds += self.gathered * FLOAT * nonzeros * part.columns
        seconds += self.stepped * FLOAT * part.columns * (nonzeros + 6 * part.rows + 3 * part.merged)
        seconds += self.logit * part.documents * part.outputs
        return seconds + part.classifiers * (6 * part.documents * self.flop + self.weight)

    def exchange(self, exchange: Exchange) -> float:
        """Seconds, by a line through the two nearest calibrated sizes."""
        known = self.exchanges.get(exchange.operation, self.exchanges["all_gather"])
        place = next((i for i, (size, _) in enumerate(known[1:-1], 1) if size >= exchange.received), -1)
        (less, quicker), (more, slower) = known[place - 1], known[place]
        return quicker + (exchange.received - less) * (slower - quicker) / (more - less)


def measured_shape(text: str) -> tuple[Shape, int]:
    """The shape of a row of scale_measured.csv, and its number of processes."""
    items = dict(item.split("=") for item in text.split())
    sizes = [int(items[name]) for name in ("R", "B", "H", "N")]
    encoder = items.get("encoder", "shared")
    of_data = int(items["D"]), int(items["nnz"]), 20_000
    return Shape(sizes[-1], *of_data, *sizes, encoder), int(items.get("G", 1))


def measured_exchange(row: Mapping[str, Any]) -> Exchange:
    """What a process receives in an exchange of scale_measured.csv, between two."""
    items = dict(item.split("=") for item in row["shape"].split())
    G, mine = int(items["G"]), FLOAT * int(items["rows"]) * int(items["columns"])
    received = {"all_gather": G - 1, "all_reduce": 2 * (G - 1) / G, "all_to_all": (G - 1) / G}
    return Exchange(row["part"], received[row["part"]] * mine, G)


def core(rows: Iterable[Mapping[str, Any]]) -> Core:
    """The rates that the calibrated rows of scale_measured.csv give."""
    seconds: dict[str, float] = {}
    exchanges: dict[str, list[tuple[float, float]]] = {}
    for row in (row for row in rows if row["use"] == "calibrated"):
        if row["part"].startswith("all_"):
            of = exchanges.setdefault(row["part"], [])
            of.append((measured_exchange(row).received, float(row["seconds"])))
        else:
            seconds[row["part"]] = float(row["seconds"])
            if row["part"] == "products":
                shape, _ = measured_shape(row["shape"])
    N, H, outputs = shape.batch, shape.hidden, shape.outputs
    nonzeros, used = N * shape.nonzeros, occurring(N, shape)
    return Core(
        flop=seconds["products"] / (6 * N * outputs * H),
        logit=seconds["loss"] / (N * outputs),
        weight=seconds["classifiers"] / (outputs * H),
        nonzero=seconds["order"] / nonzeros,
        gathered=seconds["forward"] / (FLOAT * nonzeros * H),
        stepped=seconds["encoder"] / (FLOAT * H * (nonzeros + 6 * used)),
        overhead=seconds["tiny step"],
        exchanges={name: sorted(points) for name, points in exchanges.items()},
    )


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes. All numbers but the card's are assumptions.

    Attributes:
        card: A name in cuda_model.CARDS.
        near: Bytes/s that a GPU receives within its node, 0.8 of NVLink's 450 GB/s.
        far: Bytes/s of a GPU's link to other nodes, 0.8 of 400 Gb/s.
        latency: Seconds of an exchange for each doubling of the ranks.
    """

    card: str
    near: float = 0.8 * 450e9
    far: float = 0.8 * 400e9 / 8
    node: int = 8
    latency: float = 10e-6

    @property
    def capacity(self) -> float:
        """Bytes of a card's memory."""
        return {"H100": 80e9, "H200": 141e9}[self.card]

    def step(self, part: Part) -> float:
        nonzeros = part.documents * part.shape.nonzeros
        row = max(SECTOR, FLOAT * part.columns)
        # A row is stepped with 8 of its size. To add one of a copy is to read two and to write one.
        rows = part.rows + 3 / 8 * part.merged
        step = cuda_model.Step(
            part.shape.half, part.documents, part.shape.hidden, part.documents * part.outputs,
            part.classifiers, nonzeros * row, rows * row,
        )  # fmt: skip
        return cuda_model.training_step(step, cuda_model.CARDS[self.card])["mach_ext"]

    def exchange(self, exchange: Exchange) -> float:
        """A gathering or a sum crosses the border of a node once, so its ranks in a node share their links.

        In an all-to-all each rank receives other bytes, so each has its own link alone.
        """
        inside = min(exchange.ranks, max(1, self.node // exchange.stride))
        latency = self.latency * math.ceil(math.log2(exchange.ranks))
        if inside == exchange.ranks:
            return latency + exchange.received / self.near
        if exchange.operation == "all_to_all":
            near = (inside - 1) / (exchange.ranks - 1)
            return latency + exchange.received * (near / self.near + (1 - near) / self.far)
        return latency + exchange.received / min(self.near, inside * self.far)


def step_seconds(part: Part, machine: Core | Cluster) -> tuple[float, float]:
    """Seconds of a step's own work and of its exchanges, which do not overlap."""
    return machine.step(part), sum(machine.exchange(exchange) for exchange in part.exchanges)


def document_bytes(shape: Shape) -> float:
    """Of a document as it is read: values and columns, labels, and two starts."""
    return 8 * shape.nonzeros + 4 * shape.labels_each + 16


def epoch(part: Part, machine: Core | Cluster) -> dict[str, float]:
    """An epoch: seconds of its steps, and bytes that a rank reads and receives."""
    shape = part.shape
    steps = math.ceil(shape.documents / shape.batch)
    seconds = steps * sum(step_seconds(part, machine))
    read = shape.documents / part.copies * document_bytes(shape)
    return {"seconds": seconds, "read": read, "received": steps * part.received}


def dev_received(shape: Shape, ranks: int, documents: int) -> float:
    """Bytes that a rank receives for dev metrics: the bucket scores of the repetitions of others."""
    return FLOAT * documents * shape.outputs * (ranks - 1) / ranks


# ---------------------------------------------------------------------------------------------- prediction

# Lists that a document's decode reads, all repetitions together, where a few buckets stand out. On the
# synthetic scores of bench_cuda.py they are 240 to 510.
LISTS = 500


@dataclass(frozen=True)
class Asked:
    """What predicting takes of a rank, for each document that all ranks are asked together.

    Attributes:
        memory: Bytes of the rank, whatever the number of documents.
        received: Bytes.
        flops: Of bucket scores.
        seconds: By the part of the work, for scores in which few buckets stand out ("lists") and for flat
            ones ("scan").
    """

    memory: float
    received: float
    flops: float
    seconds: dict[str, float]


def predict(layout: str, shape: Shape, ranks: int, cluster: Cluster, together: int = 256) -> Asked:
    """Predicting by layout.

    * "by document": a rank has the whole model and hash, and takes N/G documents.
    * "by label, scores": a rank has R/G classifiers and decodes L/G labels. All gather bucket scores.
    * "by label, hidden": a rank has all classifiers and H/G columns of the encoder, and decodes L/G labels.
      All gather hidden units, and each computes every bucket score.
    """
    R, B, L = shape.repetitions, shape.buckets, shape.labels
    divided = layout != "by document"
    labels = math.ceil(L / ranks) if divided else L
    outputs = math.ceil(shape.outputs / ranks) if layout == "by label, scores" else shape.outputs
    columns = math.ceil(shape.columns / ranks) if divided else shape.columns
    each = NARROW if shape.half else FLOAT
    weights = each * (shape.features * columns + outputs * shape.hidden)
    table = R * labels * (FLOAT + (6 if B <= 65_536 else 0))
    scores = FLOAT * min(together, max(1, (256 << 20) // (FLOAT * shape.outputs))) * shape.outputs
    gathered = {"by document": 0, "by label, scores": shape.outputs, "by label, hidden": shape.hidden}[layout]
    received = FLOAT * gathered * (ranks - 1) / ranks
    flops = 2 * shape.hidden * outputs
    share = 1 if divided else 1 / ranks  # of the documents
    exchange = Exchange("all_gather", together * received, ranks)
    seconds = {
        "scores": share * forward_seconds(shape, together, outputs, columns, cluster) / together,
        "exchange": cluster.exchange(exchange) / together if received else 0.0,
        "lists": share * decode_seconds(shape, together, labels, cuda_model.Decode(
            postings=LISTS * labels / B), cluster) / together,
        "scan": share * decode_seconds(shape, together, labels, cuda_model.Decode(scanned=1), cluster)
        / together,
    }  # fmt: skip
    return Asked(weights + table + scores, received, flops * share, seconds)


def forward_seconds(shape: Shape, documents: int, outputs: int, columns: int, cluster: Cluster) -> float:
    """Bucket scores in bfloat16, from the documents on."""
    card = cuda_model.CARDS[cluster.card]
    row = max(SECTOR, NARROW * columns)
    encode = cuda_model.sparse_linear(
        documents * shape.nonzeros * columns, occurring(documents, shape) * row,
        documents * shape.nonzeros * row, card,
    )  # fmt: skip
    fused = cuda_model.bucket_forward(documents, shape.hidden, outputs, "forward scores", FLOAT, card)
    return encode + fused


def decode_seconds(
    shape: Shape, documents: int, labels: int, counted: cuda_model.Decode, cluster: Cluster
) -> float:
    sizes = documents, labels, shape.repetitions, shape.buckets
    return cuda_model.decode(*sizes, counted, cuda_model.CARDS[cluster.card])


# ------------------------------------------------------------------------------------------ against runs

REHEARSED = {
    "by unit, gathered": "by unit",
    "by unit, columns": "by unit, columns",
    "data parallel": "data parallel",
}


def against_runs(folder: Path) -> list[tuple[dict[str, str], float]]:
    """The rows of scale_measured.csv that are held out, each with its predicted seconds."""
    rows = read_rows(folder / "scale_measured.csv")
    machine = core(rows)
    pairs = []
    for row in (row for row in rows if row["use"] == "checked"):
        if row["part"].startswith("all_"):
            predicted = machine.exchange(measured_exchange(row))
        else:
            shape, ranks = measured_shape(row["shape"])
            layout = REHEARSED.get(row["part"], "data parallel")
            predicted = sum(step_seconds(plan(layout, shape, ranks), machine))
        pairs.append((row, predicted))
    return pairs


def rehearsed(folder: Path) -> list[dict[str, str]]:
    """The rows of steps of two processes."""
    return [row for row in read_rows(folder / "scale_measured.csv") if row["part"] in REHEARSED]


# ---------------------------------------------------------------------------------------------- a billion

BILLION = 10**9
SHARED = Shape(BILLION, 1 << 20, 100, BILLION, 32, 65_536, 1024, 8192, "shared", half=True)
INDEPENDENT = replace(SHARED, hidden=256, encoder="independent")
LINEAR = replace(SHARED, encoder="none", hidden=0)
MODELS = {"shared": SHARED, "independent": INDEPENDENT}
GPUS = (8, 64, 512)
PLAN = [  # model, GPUs, layout, copies of the model
    ("independent", 8, "by repetition", 1),
    ("independent", 64, "by repetition", 2),
    ("independent", 512, "by repetition", 16),
    ("shared", 8, "by unit", 1),
    ("shared", 8, "by unit, columns", 1),
    ("shared", 8, "data parallel", 8),
    ("shared", 64, "by unit, columns", 8),
    ("shared", 64, "by bucket", 1),
    ("shared", 64, "data parallel", 64),
    ("shared", 512, "by unit, columns", 64),
    ("shared", 512, "by bucket", 8),
    ("shared", 512, "by bucket", 1),
    ("shared", 512, "data parallel", 512),
]
PREDICTION = ("by document", "by label, scores", "by label, hidden")


def planned() -> list[dict[str, Any]]:
    """The rows of scale.csv: training first, then predicting."""
    rows: list[dict[str, Any]] = []
    for card in cuda_model.CARDS:
        cluster = Cluster(card)
        for model, ranks, layout, copies in PLAN:
            part = plan(layout, MODELS[model], ranks, copies)
            work, exchange = step_seconds(part, cluster)
            of_epoch = epoch(part, cluster)
            rows.append({
                "work": "train", "card": card, "model": model, "gpus": ranks, "layout": layout,
                "copies": copies, "memory": sum(memory(part).values()), "flops": part.flops,
                "received": part.received, "work_seconds": work, "exchange_seconds": exchange,
                "epoch_seconds": of_epoch["seconds"], "epoch_read": of_epoch["read"],
            })  # fmt: skip
        for ranks in GPUS:
            for layout in PREDICTION:
                asked = predict(layout, SHARED, ranks, cluster)
                rows.append({
                    "work": "predict", "card": card, "model": "shared", "gpus": ranks, "layout": layout,
                    "memory": asked.memory, "flops": asked.flops, "received": asked.received,
                    "work_seconds": asked.seconds["scores"], "exchange_seconds": asked.seconds["exchange"],
                    "lists_seconds": asked.seconds["lists"], "scan_seconds": asked.seconds["scan"],
                })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write:
        write_rows(RESULTS / "scale.csv", planned(), ["work", "card"])
        return
    from tables import scale as tables  # It imports this module.

    for table in (tables.plan, tables.prediction, tables.measured, tables.exchanged):
        print(table(RESULTS))


if __name__ == "__main__":
    main()
