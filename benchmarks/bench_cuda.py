"""The CUDA operators on one GPU, beside PyTorch, against the ceilings that ceilings.cu measured on it.

gpu.sh runs this file, as `pytest benchmarks/bench_cuda.py -q -s` does on a machine with a GPU. Results go
into cuda.csv, those of an H100 and of an H200 apart. Without a GPU every test skips.

    python benchmarks/bench_cuda.py

This command writes cuda_predicted.csv. For each work and card it has the figure of cuda_model.py. It also has
what PyTorch's forms can't go below, by the bytes that they move. A measured row stands beside its prediction.
The table of the documents has the measured figures where there are any, else the predicted ones, marked.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cuda_model
import numpy as np
import pytest
import scipy.sparse
import torch
from cuda_model import CARDS, Decode
from gpu.machine import card as card_of
from harness import RESULTS, circumstances, line, write_rows
from inputs import bucket_scores, documents, label_hash

import mach_ext
from mach_ext import _ops, training
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun
from mach_ext.training.steps import HiddenStep

F = mach_ext.functional
GPU = torch.cuda.is_available() and not _ops.CUDA_FAULT
DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.skipif(not GPU, reason="no CUDA GPU, or a build without CUDA operators"),
    pytest.mark.filterwarnings("default"),  # PyTorch's own, in importing and running its compiler
]

Providers = dict[str, Callable[[], Any]]
Rates = dict[str, float]  # what a card does in a second, by resource
Predictions = dict[str, tuple[float, float | None]]  # by provider: seconds, and peak bytes or None

# ------------------------------------------------------------------------------------------- the works


@dataclass(frozen=True)
class Work:
    """One line of the table.

    Attributes:
        floor: Amount of each resource (a key of CARDS) that the work cannot do without.
        predicted: For a card, by provider. Of PyTorch's forms the least that they can take.
        targets: What is promised. "share" is a share of the floor's speed, and "ms" is milliseconds. "ratio"
            is the least ratio over each other provider, and "memory" is the largest share of its memory.
        prepare: Providers by name, "mach_ext" among them, made when the work is run.
        compiled: Whether torch.compile is among the providers.
    """

    name: str
    shape: dict[str, Any]
    floor: dict[str, float] | Callable[[], dict[str, float]]
    predicted: Callable[[Rates], Predictions] = field(compare=False)
    targets: dict[str, float]
    prepare: Callable[..., Providers] = field(compare=False)
    compiled: bool = False

    def floor_seconds(self, ceilings: Rates) -> tuple[float, str]:
        amounts = self.floor() if callable(self.floor) else self.floor
        times = {resource: amount / ceilings[resource] for resource, amount in amounts.items()}
        bound = max(times, key=lambda resource: times[resource])
        return times[bound], bound

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}{v}" for k, v in self.shape.items())]).replace(" ", "_")


def sparse_linear_work(N: int, nnz: int, D: int, M: int, dtype: torch.dtype) -> Work:
    def prepare() -> Providers:
        values, indices, indptr = (t.to(DEVICE) for t in documents(N, nnz, D))
        weight = torch.empty(D, M, dtype=dtype, device=DEVICE).normal_()
        bag = torch.nn.functional.embedding_bag
        offsets, long, scale = indptr[:-1].long(), indices.long(), values.to(dtype)
        return {
            "mach_ext": lambda: F.sparse_linear(values, indices, indptr, weight, validate=False),
            "embedding_bag": lambda: bag(long, weight, offsets, mode="sum", per_sample_weights=scale),
        }

    size = torch.empty(0, dtype=dtype).element_size()

    def predicted(card: Rates) -> Predictions:
        first = occurring(N, nnz, D) * M * size
        rest = N * nnz * M * size - first + N * M * 4
        return {"mach_ext": (cuda_model.sparse_linear(N * nnz * M, first, rest, card), None)}

    moved = N * nnz * M * size + N * M * 4
    shape = {"N": N, "nnz": nnz, "D": D, "M": M, "dtype": str(dtype).removeprefix("torch.")}
    return Work("sparse_linear", shape, {"hbm_copy": moved}, predicted, {"share": 0.8}, prepare)


@functools.cache
def occurring(N: int, nnz: int, D: int) -> int:
    """Features that occur in the documents."""
    return int(documents(N, nnz, D)[1].unique().numel())


def step_work(N: int, nnz: int, D: int, M: int) -> Work:
    """The gradient of a weight [D, M] and Adam's step of the rows that occur, fused."""

    def prepare() -> Providers:
        values, indices, indptr = (t.to(DEVICE) for t in documents(N, nnz, D))
        weight = torch.zeros(1, D, M, device=DEVICE)
        moments = torch.zeros_like(weight), torch.zeros_like(weight)
        grad = torch.randn(N, 1, M, device=DEVICE)
        order = _ops.feature_order(indices, indptr, D)
        table = torch.nn.Parameter(torch.zeros(D, M, device=DEVICE))
        adam = torch.optim.SparseAdam([table])
        bag = torch.nn.functional.embedding_bag
        offsets, long = indptr[:-1].long(), indices.long()

        def step() -> None:
            _ops.sparse_linear_adam(weight, *moments, grad, values, order, 1e-3, 0.9, 0.999, 1e-8)

        def step_with_order() -> None:
            mine = _ops.feature_order(indices, indptr, D)
            _ops.sparse_linear_adam(weight, *moments, grad, values, mine, 1e-3, 0.9, 0.999, 1e-8)

        def plain() -> None:
            out = bag(long, table, offsets, mode="sum", per_sample_weights=values, sparse=True)
            adam.zero_grad()
            out.backward(grad[:, 0])
            adam.step()

        return {"mach_ext": step, "mach_ext with its order": step_with_order, "torch": plain}

    def floor() -> dict[str, float]:
        return {"hbm_copy": occurring(N, nnz, D) * M * 4 * 6 + N * M * 4}  # three arrays read and written

    def predicted(card: Rates) -> Predictions:
        return {"mach_ext": (cuda_model.adam_step(floor()["hbm_copy"], N * nnz * M, card), None)}

    shape = {"N": N, "nnz": nnz, "D": D, "M": M}
    return Work("backward + Adam", shape, floor, predicted, {"share": 0.7}, prepare)


def torch_decode(scores: torch.Tensor, buckets: torch.Tensor, k: int) -> Any:
    """gather + mean + topk, as many documents at a time as keep [n, R, L] within 2 GB."""
    N, (R, L) = len(scores), buckets.shape
    chunk = max(1, min(N, int(2e9 / (4 * R * L))))
    parts = []
    for start in range(0, N, chunk):
        block = scores[start : start + chunk]
        parts.append(_gather_mean_topk(block, buckets, k))
    return parts


def _gather_mean_topk(scores: torch.Tensor, buckets: torch.Tensor, k: int) -> Any:
    return scores.gather(2, buckets.expand(len(scores), -1, -1)).mean(1).topk(k)


def decode_work(
    kind: str, N: int, L: int, R: int, B: int, k: int, counted: Decode, ms: float | None = None
) -> Work:
    def prepare() -> Providers:
        hash = label_hash(L, R, B).to(DEVICE)
        scores = bucket_scores(kind, N, L, R, B).to(DEVICE)
        run = lambda: F.merge_topk(scores, hash, k)  # noqa: E731
        providers: Providers = {"mach_ext": run}
        captured: list[torch.cuda.CUDAGraph] = []

        def replay() -> None:
            if not captured:  # by the first call, after `run` has built the index of the hash
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    run()
                captured.append(graph)
            captured[0].replay()

        providers["mach_ext, CUDA graph"] = replay
        buckets = hash.buckets.long()
        few = scores[:16]
        compiled = torch.compile(_gather_mean_topk, dynamic=False)
        providers[f"torch x{N / len(few):g}"] = lambda: torch_decode(few, buckets, k)
        if L <= 1_000_000:
            fewer = few[:4]
            providers[f"torch.compile x{N / len(fewer):g}"] = lambda: compiled(fewer, buckets, k)
        return providers

    def predicted(card: Rates) -> Predictions:
        seconds = {"mach_ext": cuda_model.decode(N, L, R, B, counted, card)}
        seconds |= cuda_model.torch_decode(N, L, R, card)
        return {name: (time, None) for name, time in seconds.items()}

    lookups = N * L * R  # bytes: one u8 a document, label and repetition
    shared = 16 * B <= 200 * 1024
    codes = 2 * L * R
    floor = {"shared_gather" if shared else "l2_gather": lookups, "hbm_copy": codes}
    shape = {"kind": kind, "N": N, "L": L, "R": R, "B": B, "k": k}
    targets = {} if ms is None else {"ms": ms, "ratio": 50.0}
    return Work("merge_topk", shape, floor, predicted, targets, prepare, compiled=L <= 1_000_000)


def training_work(
    precision: str,
    D: int = 135_909,
    L: int = 670_091,
    R: int = 32,
    B: int = 2000,
    H: int = 512,
    N: int = 2048,
) -> Work:
    """A step, at the shape of Amazon-670K, over plain PyTorch, eager and compiled."""
    nnz, labels = 75, 5
    half = precision == "bfloat16"

    def prepare() -> Providers:
        values, indices, indptr = documents(N, nnz, D)
        rng = np.random.default_rng(0)
        X = scipy.sparse.csr_matrix((values.numpy(), indices.numpy(), indptr.numpy()), (N, D))
        ids = np.sort(rng.integers(0, L // labels, (N, labels)) + np.arange(labels) * (L // labels), axis=1)
        label_indptr = np.arange(0, N * labels + 1, labels)
        Y = scipy.sparse.csr_matrix((np.ones(N * labels, np.float32), ids.ravel(), label_indptr), (N, L))
        model = mach_ext.MACH(D, L, R, B, H).to(DEVICE).train()
        settings = training.Hyperparameters.of(model, batch_size=N, precision=precision)
        run = TrainingRun(model, settings, TrainingData(X, Y))
        (batch,) = mach_ext.data.iter_batches(X, Y, N)
        tensors = [t.to(DEVICE) for t in batch[:5]]
        on_device = mach_ext.data.Batch(*tensors, batch.rows)
        providers = {"mach_ext": lambda: run.do_step(on_device, True)}
        if half:
            other = TrainingRun(copy.deepcopy(model), settings, TrainingData(X, Y))
            assert isinstance(other.do_step, HiddenStep)
            other.do_step.is_fused = False
            providers[cuda_model.UNFUSED] = lambda: other.do_step(on_device, True)
        plain = PlainMach(model, precision)
        targets = plain.positions(tensors[3], tensors[4])
        X_torch = (tensors[1].long(), tensors[2][:-1].long(), tensors[0])
        compiled = torch.compile(plain.loss)
        return {
            **providers,
            "torch": lambda: plain.step(plain.loss, X_torch, targets),
            "torch.compile": lambda: plain.step(compiled, X_torch, targets),
        }

    floor = {"bf16_gemm" if half else "fp32_gemm": 3 * 2 * N * R * H * B, "hbm_copy": R * H * B * 4 * 6}

    def predicted(card: Rates) -> Predictions:
        logits, row = N * R * B, H * 4
        of_encoder = N * nnz * row, occurring(N, nnz, D) * row
        step = cuda_model.Step(half, N, H, logits, R * H * B, *of_encoder)
        # At the peak: logits, targets, the loss's parts or the gradient; ours as `mach-ext info` states it.
        held = {"torch": 4 * 4 * logits, "torch.compile": (8 if half else 12) * logits}
        with torch.device("meta"):
            model = mach_ext.MACH(D, 1, R, B, H)
        stated = training.expected_memory(model, N, nnz, "cuda", precision)
        moments = 2 * stated["weights"]
        held["mach_ext"] = stated["training, peak"] - stated["weights"] - moments - stated["label hash"]
        seconds = cuda_model.training_step(step, card)
        return {name: (time, held.get(name)) for name, time in seconds.items()}

    shape = {"D": D, "L": L, "R": R, "B": B, "H": H, "N": N, "precision": precision}
    targets = {"ratio": 4.0, "memory": 0.25}
    return Work("training step", shape, floor, predicted, targets, prepare, compiled=True)


class PlainMach:
    """MACH as one writes it in PyTorch: EmbeddingBag(sparse), one bmm, BCEWithLogits on a dense target."""

    def __init__(self, model: mach_ext.MACH, precision: str) -> None:
        D, H = model.encoder_weight.shape
        self.hash, (self.R, _, self.B) = model.hash, model.bucket_weight.shape
        self.bag = torch.nn.EmbeddingBag(D, H, mode="sum", sparse=True, device=DEVICE)
        self.bias = torch.nn.Parameter(torch.zeros(H, device=DEVICE))
        self.weight = torch.nn.Parameter(model.bucket_weight.detach().clone())
        self.bucket_bias = torch.nn.Parameter(model.bucket_bias.detach().clone())
        self.sparse = torch.optim.SparseAdam(self.bag.parameters())
        self.dense = torch.optim.Adam([self.bias, self.weight, self.bucket_bias], fused=True)
        self.precision = precision

    def positions(self, label_indices: torch.Tensor, label_indptr: torch.Tensor) -> torch.Tensor:
        """Flat places of the positive buckets in [N, R, B]."""
        N = len(label_indptr) - 1
        document = torch.repeat_interleave(torch.arange(N, device=DEVICE), label_indptr.diff().long())
        bucket = self.hash.buckets[:, label_indices.long()].long()  # [R, labels]
        r = torch.arange(self.R, device=DEVICE).unsqueeze(1)
        return ((document * self.R + r) * self.B + bucket).reshape(-1)

    def loss(self, first: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Of the encoder's sums: what can be compiled. A sparse EmbeddingBag can't."""
        hidden = (first + self.bias).relu()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = torch.einsum("nh,rhb->nrb", hidden, self.weight) + self.bucket_bias
        target = torch.zeros(logits.numel(), device=DEVICE)
        target[positive] = 1
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return bce(logits.float(), target.view_as(logits), reduction="sum") / (len(first) * self.R)

    def step(
        self, loss: Callable[..., torch.Tensor], X: tuple[torch.Tensor, ...], positive: torch.Tensor
    ) -> None:
        self.sparse.zero_grad()
        self.dense.zero_grad()
        loss(self.bag(*X), positive).backward()
        self.sparse.step()
        self.dense.step()


def bucket_bce_work(N: int, G: int, B: int, L: int = 670_091) -> Work:
    """The loss and its gradient of a group of repetitions, from logits that are there."""

    def prepare() -> Providers:
        logits = torch.randn(N, G, B, device=DEVICE)
        targets = group_targets(N, G, B, L)
        return {"mach_ext": functools.partial(run_bucket_bce, logits, *targets)}

    def predicted(card: Rates) -> Predictions:
        launches = cuda_model.BCE_LAUNCHES * cuda_model.LAUNCH
        return {"mach_ext": (cuda_model.bucket_bce(N * G * B, False, card) + launches, None)}

    shape = {"N": N, "G": G, "B": B}
    return Work("bucket_bce", shape, {"hbm_copy": 8 * N * G * B}, predicted, {}, prepare)


def group_targets(N: int, G: int, B: int, L: int) -> tuple[torch.Tensor, ...]:
    """Buckets [G, L] and five labels for each document, as indices and offsets."""
    buckets = torch.randint(B, (G, L), dtype=torch.int32, device=DEVICE)
    labels = torch.randint(L, (5 * N,), device=DEVICE)
    return buckets, labels, torch.arange(0, 5 * N + 1, 5, device=DEVICE)


def run_bucket_bce(logits: torch.Tensor, buckets: torch.Tensor, *labels: torch.Tensor) -> None:
    """The loss of a group of repetitions, its gradient in place of the logits, and the gradient's sums."""
    label_indices, label_indptr = labels
    grad_bias = logits.new_empty(logits.shape[1:])
    _ops.bucket_bce(logits, None, buckets, label_indices, label_indptr, 1.0, None, grad_bias)


def forward_work(N: int, H: int, R: int, B: int, training: bool) -> Work:
    """The fused bucket forward in bfloat16: scores for a prediction, or the gradient of the loss."""
    name = "bucket_forward_bce" if training else "bucket_forward"

    def prepare() -> Providers:
        hidden = torch.randn(N, H, device=DEVICE).to(torch.bfloat16)
        weight = torch.randn(R, B, H, device=DEVICE).to(torch.bfloat16).mT
        bias = torch.zeros(R, B, device=DEVICE)
        operator = getattr(torch.ops.mach_ext, name)
        if training:
            targets = group_targets(N, R, B, 670_091)
            return {"mach_ext": lambda: operator(hidden, weight, bias, *targets, 1.0)}
        wide, short = hidden.expand(R, -1, -1), bias.to(torch.bfloat16).unsqueeze(1)
        return {
            "mach_ext": lambda: operator(hidden, weight, bias, "sigmoid"),
            "torch": lambda: torch.baddbmm(short, wide, weight).sigmoid_(),
        }

    epilogue, each = ("forward loss", 2) if training else ("forward scores", 4)
    logits = N * R * B

    def predicted(card: Rates) -> Predictions:
        launches = (cuda_model.FORWARD_BCE_LAUNCHES if training else 1) * cuda_model.LAUNCH
        forward = cuda_model.bucket_forward(N, H, R * B, epilogue, each, card)
        seconds = {"mach_ext": forward + launches}
        if not training:
            product = cuda_model.product(2 * H * logits, 2 * logits, "bf16_gemm", card)
            seconds["torch"] = product + 4 * logits / card["hbm_copy"]
        return {name: (time, None) for name, time in seconds.items()}

    floor = {"bf16_gemm": 2 * H * logits, "hbm_copy": each * logits + 2 * H * (N + R * B)}
    shape = {"N": N, "H": H, "R": R, "B": B}
    return Work(name, shape, floor, predicted, {}, prepare)


def bucket_logits_work(N: int, H: int, R: int, B: int, dtype: torch.dtype) -> Work:
    """The logits of all buckets, as a prediction computes them from a weight of this dtype.

    In bfloat16 this is the fused product. PyTorch's form has neither the bias nor the logits in float32.
    """
    half = dtype == torch.bfloat16

    def prepare() -> Providers:
        hidden, bias = torch.randn(N, H, device=DEVICE), torch.zeros(R, B, device=DEVICE)
        weight = torch.randn(R, B, H, device=DEVICE).to(dtype).mT
        precision = "bfloat16" if half else "float32"
        narrow = hidden.to(dtype).expand(R, -1, -1)
        return {
            "mach_ext": lambda: F.bucket_logits(hidden, weight, bias, precision=precision),
            "torch": lambda: torch.bmm(narrow, weight),
        }

    size = 2 if half else 4
    resource = "bf16_gemm" if half else "fp32_gemm"
    flops, moved = 2 * N * H * R * B, 4 * N * R * B + size * R * H * B

    def predicted(card: Rates) -> Predictions:
        if half:  # the hidden units are rounded first
            forward = cuda_model.bucket_forward(N, H, R * B, "forward logits", 4, card)
            seconds = forward + 2 * cuda_model.LAUNCH
        else:
            seconds = cuda_model.product(flops, moved, resource, card) + cuda_model.LAUNCH
        least = cuda_model.product(flops, size * N * R * B + size * R * H * B, resource, card)
        return {"mach_ext": (seconds, None), "torch": (least, None)}

    shape = {"N": N, "H": H, "R": R, "B": B, "dtype": str(dtype).removeprefix("torch.")}
    floor = {resource: flops, "hbm_copy": moved}
    return Work("bucket_logits", shape, floor, predicted, {}, prepare)


WORKS = [  # the most wanted first: a run may be cut
    sparse_linear_work(256, 75, 136_000, 8192, torch.bfloat16),
    training_work("bfloat16"),
    training_work("float32"),
    step_work(256, 75, 100_000, 512),
    step_work(2048, 75, 135_909, 512),
    # Of flat scores the scan does every lookup. Of peaky ones of 31K labels it does as many as a simulation
    # adds before the scan of a warp's labels stops. The others go through lists. Their postings, and the
    # documents that leave them for the scan, were counted on these very scores.
    decode_work("flat", 256, 31_000, 32, 1000, 5, Decode(scanned=1), 0.04),
    decode_work("peaky", 256, 31_000, 32, 1000, 5, Decode(scanned=0.75), 0.01),
    decode_work("flat", 256, 670_000, 16, 2000, 5, Decode(scanned=1), 0.3),
    decode_work("peaky", 256, 670_000, 16, 2000, 5, Decode(postings=79_000, left=4), 0.075),
    decode_work("flat", 256, 670_000, 32, 20_000, 5, Decode(scanned=1), 1.5),
    decode_work("peaky", 256, 670_000, 32, 20_000, 5, Decode(postings=17_000), 0.375),
    bucket_bce_work(2048, 8, 2000),
    forward_work(2048, 512, 32, 2000, training=True),
    forward_work(256, 512, 32, 2000, training=False),
    bucket_logits_work(256, 512, 32, 2000, torch.bfloat16),
    bucket_logits_work(256, 512, 32, 2000, torch.float32),
    decode_work("flat", 256, 10_000_000, 16, 20_000, 5, Decode(scanned=1), 10.0),
    decode_work("peaky", 256, 10_000_000, 16, 20_000, 5, Decode(postings=243_000, left=8), 2.5),
    decode_work("peaky", 256, 670_000, 16, 2000, 100, Decode(postings=79_000, left=4, other=190e-6)),
    decode_work("peaky", 1, 670_000, 16, 2000, 5, Decode(postings=79_000)),
    sparse_linear_work(256, 75, 1_000_000, 8192, torch.bfloat16),
    sparse_linear_work(256, 75, 1_000_000, 512, torch.float32),
]

# ------------------------------------------------------------------------------------------ measuring


@pytest.fixture(scope="module")
def ceilings(request: Any) -> Rates:
    """Of this GPU, measured first and kept at once: ceilings.cu, and products in three precisions."""
    folder = request.config.getoption("--results")
    rates = measured_ceilings(folder / "ceilings") | products()
    limits = [{"resource": resource, "per_second": rate} for resource, rate in rates.items()]
    write_rows(folder / "cuda_ceilings.csv", limits, ["resource"])
    return CARDS.get(card_of(torch.cuda.get_device_name()), CARDS["H100"]) | rates


def measured_ceilings(program: Path) -> Rates:
    """What ceilings.cu prints. Nothing where it fails, which must not cost the benchmarks."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    arch = "-arch=sm_{}{}".format(*torch.cuda.get_device_capability())
    try:
        program.parent.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).with_name("ceilings.cu")
        subprocess.run([nvcc, "-O3", arch, source, "-o", program], check=True)
        printed = subprocess.run([program], check=True, capture_output=True, text=True)
        rates: Rates = json.loads(printed.stdout)
        return rates
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"ceilings.cu failed, the assumed ones stand in for it: {error}")
        return {}
    finally:
        program.unlink(missing_ok=True)


def products() -> Rates:
    """Flop/s of a large product of random numbers: in bf16, in fp32 by TF32, and in fp32 itself."""
    rates = {}
    before = torch.get_float32_matmul_precision()
    for name, dtype, n in (
        ("bf16_gemm", torch.bfloat16, 8192),
        ("tf32_gemm", torch.float32, 8192),
        ("fp32_gemm", torch.float32, 4096),
    ):
        torch.set_float32_matmul_precision("high" if name == "tf32_gemm" else "highest")
        a = torch.randn(n, n, device="cuda").to(dtype)
        for _ in range(3):
            a @ a
        rates[name] = 2 * n**3 / min(milliseconds(lambda a=a: a @ a, 3) for _ in range(5)) * 1e3
    torch.set_float32_matmul_precision(before)
    return rates


def milliseconds(call: Callable[[], Any], repeats: int = 1) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def peak_bytes(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# The compiler takes the longest. A run that is cut has every work without it before.
CASES = [(work, False) for work in WORKS] + [(work, True) for work in WORKS if work.compiled]


@pytest.mark.parametrize(
    ("work", "compiled"), CASES, ids=[f"{work.id}{'-compiled' * compiled}" for work, compiled in CASES]
)
def test_cuda(request: Any, ceilings: Rates, work: Work, compiled: bool) -> None:
    torch.cuda.empty_cache()
    providers = work.prepare()
    if not compiled:
        providers = {name: call for name, call in providers.items() if not name.startswith("torch.compile")}
    peaks, repeats, samples = {}, {}, {name: [] for name in providers}
    failed = {}
    for name, call in list(providers.items()):
        try:
            call()
            call()
            peaks[name] = peak_bytes(call)
            repeats[name] = max(1, min(50, int(2.0 / max(1e-3, milliseconds(call)))))
        except Exception as error:  # of PyTorch's forms: what is ours must not be lost with it
            if name == "mach_ext":
                raise
            failed[name] = f"{type(error).__name__}: {error}"[:500]
            del providers[name], samples[name]
    for _ in range(15):
        for name, call in providers.items():
            scale = float(name.rpartition(" x")[2]) if " x" in name else 1.0
            samples[name].append(scale * milliseconds(call, repeats[name]) / 1e3)
    rows = {}
    for name, times in samples.items():
        q1, median, q3 = np.percentile(times, (25, 50, 75)).tolist()
        rows[name] = {"seconds": median, "iqr": q3 - q1, "peak_bytes": peaks[name]}
    rows |= {name: {"failed": words} for name, words in failed.items()}
    folder = request.config.getoption("--results")
    keep_rows(folder / "cuda.csv", record(work, rows, ceilings, torch.cuda.get_device_name()))


def record(work: Work, rows: dict[str, dict[str, Any]], ceilings: Rates, device: str) -> list[dict[str, Any]]:
    """The rows of a work, one a provider: what was measured, its prediction, the floor and the targets."""
    floor, bound = work.floor_seconds(ceilings)
    card = card_of(device)
    predicted = work.predicted(CARDS[card]) if card in CARDS else {}
    base = {"test": work.id, "card": card, "work": work.name, "shape": work.shape, "threads": None}
    end = {"floor_seconds": floor, "bound": bound}
    end |= {f"target_{of}": work.targets.get(of) for of in ("share", "ms", "ratio", "memory")}
    end |= {"device": device, "predicted": False}
    columns = dict.fromkeys(("seconds", "iqr", "peak_bytes", "predicted_seconds", "failed"))
    return [
        base
        | {"provider": name}
        | columns
        | row
        | {"predicted_seconds": predicted.get(name, (None, None))[0]}
        | end
        for name, row in rows.items()
    ]


def keep_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of one card, which replace former ones of the same card alone."""
    write_rows(file, [row | circumstances(file.parent) for row in rows], ["card", "test"])
    print(f"\n{rows[0]['card']}, {line(rows)}", flush=True)


NOT_MEASURED = {"device": None, "predicted": True, "predicted_seconds": None}


def main() -> None:
    """Predictions, where there is no GPU."""
    for card, rates in CARDS.items():
        for work in WORKS:
            predicted = work.predicted(rates).items()
            rows = {name: {"seconds": seconds, "peak_bytes": peak} for name, (seconds, peak) in predicted}
            keep_rows(
                RESULTS / "cuda_predicted.csv",
                [row | NOT_MEASURED for row in record(work, rows, rates, card)],
            )


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    main()
