"""`mach-ext bench`: the speed of each kernel and path on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mach_ext._terminal import show
from mach_ext.cli import values
from mach_ext.cli.options import Device, ModelPath, Output, Quiet, Seed, option
from mach_ext.cli.tables import show_table
from mach_ext.cli.values import derived

if TYPE_CHECKING:
    from mach_ext import nn, runs

EXAMPLE = "mach-ext bench --num-labels 670000 --threads 1"


def _size(name: str, metavar: str, help: str) -> Any:
    return option(name, parse=values.positive, metavar=metavar, panel="Model", help=help)


NumFeatures = Annotated[int, _size("--num-features", "D", "The number of features of the new model.")]
NumLabels = Annotated[int, _size("--num-labels", "L", "The number of labels of the new model.")]
HashFunctions = Annotated[
    int, _size("--hash-functions", "R", "The number of hash functions of the new model.")
]
Buckets = Annotated[int, _size("--buckets", "B", "The number of buckets of each hash function.")]
HiddenSize = Annotated[
    Any,
    option(
        "--hidden-size", parse=values.hidden_sizes, metavar="H[,H2]", panel="Model",
        help="The number of hidden units of the new model. 0 gives a linear model.",
    ),
]  # fmt: skip
BatchSize = Annotated[int, _size("--batch-size", "N", "The number of documents in a call.")]
TopK = Annotated[Any, _size("--k", "K", "The number of labels that are asked for.")]
Seconds = Annotated[
    float,
    option(
        "--seconds", parse=values.above_0, metavar="S", panel="Model",
        help="How long each kernel is timed, in seconds.",
    ),
]  # fmt: skip


def run(
    ctx: typer.Context,
    model_path: ModelPath = derived("a new model of the sizes below"),
    num_features: NumFeatures = 50_000,
    num_labels: NumLabels = 100_000,
    num_repetitions: HashFunctions = 8,
    num_buckets: Buckets = 1024,
    hidden_size: HiddenSize = derived("256"),
    batch_size: BatchSize = 256,
    k: TopK = derived("5, or all labels if there are fewer"),
    seconds: Seconds = 0.3,
    output: Output = None,
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Measure this machine: documents, labels and gigabytes a second of each kernel and path.

    The documents are random. Bytes are the least that a kernel must move. With --output the numbers also go
    into bench.csv.
    """
    from mach_ext import nn, runs
    from mach_ext.cli.results import all_done
    from mach_ext.runs.arguments import spell
    from mach_ext.runs.files import check_folder
    from mach_ext.runs.throughput import write_throughput

    if model_path is not None:
        _refuse_sizes(ctx)
    if output is not None:
        check_folder(spell("output"), output)
    if model_path is None:
        sizes = (num_features, num_labels, num_repetitions, num_buckets)
        model = nn.MACH(*sizes, 256 if hidden_size is None else hidden_size, seed=seed)
    else:
        opened = runs.Run.open(model_path)
        if opened.is_quantized:
            raise ValueError("bench: the model has 8 bits; give the run in float32 that it was made from")
        model = opened.float_model
    model.to(device)
    results = runs.measure_throughput(
        model, batch_size=batch_size, k=k, seconds=seconds, seed=seed, progress=not quiet
    )
    with all_done() as then:
        then(_show, model, batch_size, results)
        if output is not None:
            then(write_throughput, results, output / "bench.csv")


def _refuse_sizes(ctx: typer.Context) -> None:
    """Refuses sizes of a new model, where the model of a run is measured."""
    from mach_ext.runs.arguments import spell

    for name in ("num_features", "num_labels", "num_repetitions", "num_buckets", "hidden_size"):
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"{spell(name)} is for a new model, and --model-path names a run")


def _show(model: nn.MACH, batch_size: int, results: Sequence[runs.Throughput]) -> None:
    import torch

    from mach_ext import _ops

    device = model.bucket_bias.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU with {_ops.cpu_isa()}"
    show(f"{model}\n{name}, threads: {torch.get_num_threads()}, documents in a call: {batch_size}\n")
    rows = [["kernel or path", "ms", "documents/s", "labels/s", "GB/s"]]
    for result in results:
        rates = [f"{result.documents_per_second:,.0f}", f"{result.labels_per_second:,.0f}"]
        milliseconds = f"{result.seconds * 1e3:,.3f}"
        rows.append([result.work, milliseconds, *rates, f"{result.gigabytes_per_second:.2f}"])
    show_table(rows, 27, 17)
