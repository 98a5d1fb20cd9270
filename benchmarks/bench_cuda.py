"""The CUDA operators on one GPU, beside PyTorch, against the ceilings that ceilings.cu measured on it.

gpu.sh runs this file, as `pytest benchmarks/bench_cuda.py -q -s` does on a machine with a GPU. Results go
into cuda.csv. Without a GPU every test skips.

    python benchmarks/bench_cuda.py

This command writes cuda_predicted.csv. For each work it has the figure that the kernel's arithmetic gives for
an H200. It also has what PyTorch's forms can't go below, by the bytes that they move. The table of the
documents has the measured figures where there are any, else the predicted ones, marked as such.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from harness import CACHE, RESULTS, circumstances, keep, line, write_rows
from inputs import bucket_scores, documents, label_hash

import mach_ext
from mach_ext import _ops, training
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

F = mach_ext.functional
GPU = torch.cuda.is_available() and not _ops.CUDA_FAULT
DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.skipif(not GPU, reason="no CUDA GPU, or a build without CUDA operators"),
    pytest.mark.filterwarnings("default"),  # PyTorch's own, in importing and running its compiler
]

# Bytes/s and flop/s of an H200: copy and product measured elsewhere; L2, shared memory assumed.
H200 = {
    "hbm_copy": 4.3e12,
    "row_gather": 4.0e12,
    "l2_gather": 5.5e12,
    "shared_gather": 11.4e12,
    "bf16_gemm": 7.8e14,
    "fp32_gemm": 5.0e13,
}
GATHER_SHARE = 0.85  # of "row_gather": what a kernel is expected to reach that keeps enough loads under way
LAUNCH, QUEUE = 2e-6, 5e-6  # seconds between two kernels of one operator; to queue an operator from Python

# ------------------------------------------------------------------------------------------- the works


@dataclass(frozen=True)
class Work:
    """One line of the table.

    Attributes:
        floor: Amount of each resource (a key of H200) that the work cannot do without.
        predicted: By provider: seconds and, where memory is promised, peak bytes. The least of PyTorch's.
        targets: What is promised. "share" is a share of the floor's speed, and "ms" is milliseconds. "ratio"
            is the least ratio over each other provider, and "memory" is the largest share of its memory.
        prepare: Providers by name, "mach_ext" among them, made when the work is run.
    """

    name: str
    shape: dict[str, Any]
    floor: dict[str, float] | Callable[[], dict[str, float]]
    predicted: Callable[[], dict[str, tuple[float, float | None]]] = field(compare=False)
    targets: dict[str, float]
    prepare: Callable[..., dict[str, Callable[[], Any]]] = field(compare=False)

    def floor_seconds(self, ceilings: dict[str, float]) -> tuple[float, str]:
        amounts = self.floor() if callable(self.floor) else self.floor
        times = {resource: amount / ceilings[resource] for resource, amount in amounts.items()}
        bound = max(times, key=lambda resource: times[resource])
        return times[bound], bound

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}{v}" for k, v in self.shape.items())]).replace(" ", "_")


def sparse_linear_work(N: int, nnz: int, D: int, M: int, dtype: torch.dtype) -> Work:
    def prepare() -> dict[str, Callable[[], Any]]:
        values, indices, indptr = (t.to(DEVICE) for t in documents(N, nnz, D))
        weight = torch.empty(D, M, dtype=dtype, device=DEVICE).normal_()
        bag = torch.nn.functional.embedding_bag
        offsets, long, scale = indptr[:-1].long(), indices.long(), values.to(dtype)
        return {
            "mach_ext": lambda: F.sparse_linear(values, indices, indptr, weight, validate=False),
            "embedding_bag": lambda: bag(long, weight, offsets, mode="sum", per_sample_weights=scale),
        }

    size = torch.empty(0, dtype=dtype).element_size()

    def predicted() -> dict[str, tuple[float, float | None]]:
        """A row's first reading comes from memory, the others, and what is written, go through L2."""
        first = occurring(N, nnz, D) * M * size
        rest = N * nnz * M * size - first + N * M * 4
        seconds = first / (GATHER_SHARE * H200["row_gather"]) + rest / H200["l2_gather"] + LAUNCH
        return {"mach_ext": (seconds, None)}

    moved = N * nnz * M * size + N * M * 4
    shape = {"N": N, "nnz": nnz, "D": D, "M": M, "dtype": str(dtype).removeprefix("torch.")}
    return Work("sparse_linear", shape, {"hbm_copy": moved}, predicted, {"share": 0.8}, prepare)


def occurring(N: int, nnz: int, D: int) -> int:
    """Features that occur in the documents."""
    return int(documents(N, nnz, D)[1].unique().numel())


def step_work(N: int, nnz: int, D: int, M: int) -> Work:
    """The gradient of a weight [D, M] and Adam's step of the rows that occur, fused."""

    def prepare() -> dict[str, Callable[[], Any]]:
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

    def predicted() -> dict[str, tuple[float, float | None]]:
        return {"mach_ext": (floor()["hbm_copy"] / (GATHER_SHARE * H200["row_gather"]) + LAUNCH, None)}

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
    kind: str, N: int, L: int, R: int, B: int, k: int, predicted_ms: float, ms: float | None = None
) -> Work:
    def prepare() -> dict[str, Callable[[], Any]]:
        hash = label_hash(L, R, B).to(DEVICE)
        scores = bucket_scores(kind, N, L, R, B).to(DEVICE)
        run = lambda: F.merge_topk(scores, hash, k)  # noqa: E731
        providers: dict[str, Callable[[], Any]] = {"mach_ext": run}
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

    def predicted() -> dict[str, tuple[float, float | None]]:
        """PyTorch's eager form reads an index of 8 bytes for each part of a sum, out of L2 where it fits.
        It writes the part and reads it again, 4 bytes each. Then topk reads the means four times. The
        compiler leaves out what is written in between."""
        where = "l2_gather" if 8 * R * L < 40e6 else "hbm_copy"
        index, parts = 8 * N * R * L / H200[where], 8 * N * R * L / H200["hbm_copy"]
        means = 5 * 4 * N * L / H200["hbm_copy"]
        seconds = {"mach_ext": predicted_ms / 1e3, "torch": index + parts + means}
        if L <= 1_000_000:
            seconds["torch.compile"] = index + means
        return {name: (time, None) for name, time in seconds.items()}

    lookups = N * L * R  # bytes: one u8 a document, label and repetition
    shared = 16 * B <= 200 * 1024
    codes = 2 * L * R
    floor = {"shared_gather" if shared else "l2_gather": lookups, "hbm_copy": codes}
    shape = {"kind": kind, "N": N, "L": L, "R": R, "B": B, "k": k}
    targets = {} if ms is None else {"ms": ms, "ratio": 50.0}
    return Work("merge_topk", shape, floor, predicted, targets, prepare)


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

    def prepare() -> dict[str, Callable[[], Any]]:
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
        ours = lambda: run.do_step(on_device, True)  # noqa: E731
        plain = PlainMach(model, precision)
        targets = plain.positions(tensors[3], tensors[4])
        X_torch = (tensors[1].long(), tensors[2][:-1].long(), tensors[0])
        compiled = torch.compile(plain.loss)
        return {
            "mach_ext": ours,
            "torch": lambda: plain.step(plain.loss, X_torch, targets),
            "torch.compile": lambda: plain.step(compiled, X_torch, targets),
        }

    floor = {"bf16_gemm" if half else "fp32_gemm": 3 * 2 * N * R * H * B, "hbm_copy": R * H * B * 4 * 6}

    def predicted() -> dict[str, tuple[float, float | None]]:
        """The three products at their ceiling, and the bytes that are moved.

        Operators go over the logits [N, R, B], ours in chunks that stay in L2. Each weight has its step and
        its cast. The encoder has a row for each non-zero, forward and backward, and the step of its rows.
        Ours can't be faster than Python queues some 13 operators a repetition.
        """
        products = max(amount / H200[resource] for resource, amount in floor.items())
        logits, weights = N * R * B, R * H * B
        gathered, stepped = N * nnz * H * 4, occurring(N, nnz, D) * H * 4
        move = lambda amount: amount / H200["hbm_copy"]  # noqa: E731
        dense = weights * (40 if half else 32)
        # Eager sparse gradients: written, put in order, added up; a dozen passes of SparseAdam.
        sparse = 4 * gathered + 12 * stepped
        each = (34, 100, 26) if half else (24, 96, 40)  # bytes a logit: ours, eager, compiled
        ours = products + each[0] * logits / H200["l2_gather"] + move(dense + gathered + 8 * stepped)
        seconds = {"mach_ext": max(ours, R * 13 * QUEUE)}
        # At the peak: logits, targets, the loss's parts or the gradient; ours as `mach-ext info` states it.
        held = {"torch": 4 * 4 * logits, "torch.compile": (8 if half else 12) * logits}
        for name, bytes_each in zip(held, each[1:], strict=True):
            seconds[name] = products + move(bytes_each * logits + dense + sparse)
        with torch.device("meta"):
            model = mach_ext.MACH(D, 1, R, B, H)
        stated = training.expected_memory(model, N, nnz, "cuda", precision)
        moments = 2 * stated["weights"]
        held["mach_ext"] = stated["training, peak"] - stated["weights"] - moments - stated["label hash"]
        return {name: (seconds[name], held[name]) for name in seconds}

    shape = {"D": D, "L": L, "R": R, "B": B, "H": H, "N": N, "precision": precision}
    return Work("training step", shape, floor, predicted, {"ratio": 4.0, "memory": 0.25}, prepare)


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


WORKS = [  # the most wanted first: a run may be cut
    sparse_linear_work(256, 75, 136_000, 8192, torch.bfloat16),
    training_work("bfloat16"),
    training_work("float32"),
    step_work(256, 75, 100_000, 512),
    step_work(2048, 75, 135_909, 512),
    # Predicted: the scan at 10.4 cycles an entry from shared memory or 24 bytes a cycle and multiprocessor
    # from L2, the scores read and the table written once, 2 us a launch. Of peaky scores, 31K labels: as many
    # repetitions as a simulation adds before the scan of a warp's labels stops. The others go through lists;
    # counted on these very scores: 79,000 postings a document at 670K R16, 17,000 at 670K R32, 243,000 at
    # 10M, each gone through twice at some 14 instructions; 40 us for the rest of a document's block; and the
    # scan of those that are left: 1 of 64 at 670K R16, none at R32, 8 of 256 at 10M (0.9 ms: rows of 16
    # documents, 32 bytes of L2 each).
    decode_work("flat", 256, 31_000, 32, 1000, 5, 0.067, 0.04),
    decode_work("peaky", 256, 31_000, 32, 1000, 5, 0.06, 0.01),
    decode_work("flat", 256, 670_000, 16, 2000, 5, 0.34, 0.3),
    decode_work("peaky", 256, 670_000, 16, 2000, 5, 0.11, 0.075),
    decode_work("flat", 256, 670_000, 32, 20_000, 5, 1.62, 1.5),
    decode_work("peaky", 256, 670_000, 32, 20_000, 5, 0.22, 0.375),
    decode_work("flat", 256, 10_000_000, 16, 20_000, 5, 9.0, 10.0),
    decode_work("peaky", 256, 10_000_000, 16, 20_000, 5, 1.3, 2.5),
    decode_work("peaky", 256, 670_000, 16, 2000, 100, 0.3),
    decode_work("peaky", 1, 670_000, 16, 2000, 5, 0.04),
    sparse_linear_work(256, 75, 1_000_000, 8192, torch.bfloat16),
    sparse_linear_work(256, 75, 1_000_000, 512, torch.float32),
]

# ------------------------------------------------------------------------------------------ measuring


@pytest.fixture(scope="module")
def ceilings() -> dict[str, float]:
    """Of this GPU: ceilings.cu, and a product of 8192 squared in bf16 and (TF32 off) fp32."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    program = CACHE / "ceilings"
    CACHE.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("ceilings.cu")
    arch = "-arch=sm_{}{}".format(*torch.cuda.get_device_capability())
    subprocess.run([nvcc, "-O3", arch, source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True)
    rates: dict[str, float] = json.loads(printed.stdout)
    for name, dtype, n in (("bf16_gemm", torch.bfloat16, 8192), ("fp32_gemm", torch.float32, 4096)):
        a = torch.randn(n, n, device="cuda").to(dtype)
        rates[name] = 2 * n**3 / min(milliseconds(lambda a=a: a @ a) for _ in range(5)) * 1e3
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


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.id)
def test_cuda(request: Any, ceilings: dict[str, float], work: Work) -> None:
    torch.cuda.empty_cache()
    providers = work.prepare()
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
    limits = [{"resource": resource, "per_second": rate} for resource, rate in ceilings.items()]
    write_rows(folder / "cuda_ceilings.csv", limits, ["resource"])
    keep(request.config, "cuda", record(work, rows, ceilings))


def record(work: Work, rows: dict[str, dict[str, Any]], ceilings: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of a work, one a provider: what was measured or predicted, the floor and the targets."""
    floor, bound = work.floor_seconds(ceilings)
    measured = ("seconds", "iqr", "peak_bytes")
    base = {"test": work.id, "work": work.name, "shape": work.shape, "threads": None}
    end = {"floor_seconds": floor, "bound": bound}
    end |= {f"target_{of}": work.targets.get(of) for of in ("share", "ms", "ratio", "memory")}
    end |= {"device": torch.cuda.get_device_name() if GPU else "H200 (not measured)", "predicted": not GPU}
    return [
        base | {"provider": name} | dict.fromkeys(measured) | row | end | {"failed": row.get("failed")}
        for name, row in rows.items()
    ]


def main() -> None:
    """Predictions, where there is no GPU."""
    file = RESULTS / "cuda_predicted.csv"
    for work in WORKS:
        predicted = work.predicted().items()
        rows = record(work, {name: {"seconds": s, "peak_bytes": peak} for name, (s, peak) in predicted}, H200)
        write_rows(file, [row | circumstances(file.parent) for row in rows], ["test"])
        print(line(rows))


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    main()
