"""Every operator once, and its gradients, on a GPU and on the CPU: `python -m gpu.smoke`, a line an operator.

The operators are those of csrc/ops.cpp. One that has a CUDA kernel and no case here is a failure, and so is
one without a kernel that is not in CPU_ONLY. Thus a new operator cannot be forgotten.

`--shim LIBRARY` runs the CUDA kernels on the CPU (tests/cuda_shim), for the tests of this file.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mach_ext
from mach_ext import _ops
from mach_ext import functional as F

ROOT = Path(__file__).parents[2]
CPU_ONLY = {
    "bucket_backward", "bucket_forward_int8", "bucket_svm", "check_csr", "cpu_isa", "svm_factor",
    "transform_logits",
}  # fmt: skip
N, D, M, L, R, B = 9, 70, 40, 20_000, 8, 64  # L R above what a scan is worth from
# Relative and absolute difference that is allowed. A sum in another order may round a bfloat16 otherwise.
TOLERANCE = {torch.bfloat16: (1.6e-2, 1e-4)}
OTHERS = (2e-4, 2e-5)

Case = Callable[[Callable[..., Tensor]], Iterable[Tensor]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """The case of the operator of this name: `function(put)` returns what is to be compared."""
    CASES[function.__name__] = function
    return function


class Data:
    """Inputs that follow from a seed, put on a device."""

    def __init__(self, put: Callable[[Tensor], Tensor]) -> None:
        self.put, self.generator = put, torch.Generator().manual_seed(7)

    def normal(self, *shape: int) -> Tensor:
        return self.put(torch.randn(shape, generator=self.generator))

    def below(self, bound: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return self.put(torch.randint(bound, shape, generator=self.generator).to(dtype))

    def documents(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of 5, 0, 11, 1, ... non-zeros, whose features are distinct and in no order."""
        counts = [(5, 0, 11, 1)[n % 4] for n in range(N)]
        features = [torch.randperm(D, generator=self.generator)[:count] for count in counts]
        indptr = torch.tensor([0, *counts]).cumsum(0)
        return self.normal(sum(counts)), self.put(torch.cat(features)), self.put(indptr)

    def buckets(self) -> Tensor:
        return self.below(B, R, L, dtype=torch.int32)

    def labels(self) -> tuple[Tensor, Tensor]:
        """Three labels for each document, as indices and offsets."""
        return self.below(L, 3 * N), self.put(torch.arange(0, 3 * N + 1, 3))


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """What a function returns, and the gradients of a weighted sum of it to its inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


@case
def feature_order(put: Any) -> Iterable[Tensor]:
    _, indices, indptr = Data(put).documents()
    return _ops.feature_order(indices, indptr, D)


@case
def sparse_linear(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    values, indices, indptr = data.documents()
    plain = lambda v, w, b: F.sparse_linear(v, indices, indptr, w, b, "relu")  # noqa: E731
    weight = data.normal(D, M)
    results = with_gradients(plain, values, weight, data.normal(M))
    for narrow in (torch.float64, torch.bfloat16):
        wide = values.double() if narrow == torch.float64 else values
        results.append(F.sparse_linear(wide, indices, indptr, weight.to(narrow)))
    return results


def grad_of_sparse_linear(put: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Data]:
    data = Data(put)
    return data.normal(N, 2, M), *data.documents(), data


@case
def sparse_linear_grad_values(put: Any) -> Iterable[Tensor]:
    grad, _, indices, indptr, data = grad_of_sparse_linear(put)
    return [_ops.sparse_linear_grad_values(grad, indices, indptr, data.normal(2, D, M))]


@case
def sparse_linear_grad_weight(put: Any) -> Iterable[Tensor]:
    grad, values, indices, indptr, _ = grad_of_sparse_linear(put)
    return [_ops.sparse_linear_grad_weight(grad, values, indices, indptr, D)]


@case
def sparse_linear_grad_rows(put: Any) -> Iterable[Tensor]:
    grad, values, indices, indptr, _ = grad_of_sparse_linear(put)
    return _ops.sparse_linear_grad_rows(grad, values, indices, indptr, D)


@case
def sparse_linear_adam(put: Any) -> Iterable[Tensor]:
    grad, values, indices, indptr, data = grad_of_sparse_linear(put)
    weight, first, second = data.normal(2, D, M), data.normal(2, D, M), data.normal(2, D, M).abs()
    order = _ops.feature_order(indices, indptr, D)
    _ops.sparse_linear_adam(weight, first, second, grad, values, order, 1e-2, 0.9, 0.999, 1e-8)
    return [weight, first, second]


@case
def sparse_linear_adagrad(put: Any) -> Iterable[Tensor]:
    grad, values, indices, indptr, data = grad_of_sparse_linear(put)
    weight, total = data.normal(2, D, M), data.normal(2, D, M).abs()
    order = _ops.feature_order(indices, indptr, D)
    _ops.sparse_linear_adagrad(weight, total, grad, values, order, 1e-2, 1e-8)
    return [weight, total]


@case
def sparse_adam(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    parameter, first, second = data.normal(D, M), data.normal(D, M), data.normal(D, M).abs()
    rows = put(torch.tensor([2, 60, 5]))
    _ops.sparse_adam(parameter, rows, data.normal(3, M), first, second, 1e-2, 0.9, 0.999, 1e-8)
    return [parameter, first, second]


@case
def sparse_adagrad(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    parameter, total = data.normal(D, M), data.normal(D, M).abs()
    _ops.sparse_adagrad(parameter, None, data.normal(D, M), total, 1e-2, 1e-8)
    return [parameter, total]


@case
def label_logits(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    hash, labels = hash_of(data), data.below(L, N, 5)
    inputs = data.normal(N, M), data.normal(R, M, B), data.normal(R, B)
    return with_gradients(lambda h, w, b: F.label_logits(h, w, b, hash, labels), *inputs)


@case
def label_logits_grad_hidden(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    inputs = data.normal(N, 5, R), data.normal(N, R, M), data.normal(R, M, B)
    return [_ops.label_logits_grad_hidden(*inputs, data.buckets(), data.below(L, N, 5))]


@case
def label_logits_grad_weight(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    inputs = data.normal(N, 5, R), data.normal(N, M), data.normal(R, M, B)
    return _ops.label_logits_grad_weight(*inputs, data.buckets(), data.below(L, N, 5))


@case
def bucket_bce(put: Any) -> Iterable[Tensor]:
    """The operator through the loss of hidden layers, forward and backward, and with a loss alone."""
    data = Data(put)
    hash, labels = hash_of(data), data.labels()
    loss = lambda h, w, b: F.bucket_bce(h, w, b, *labels, hash)  # noqa: E731
    inputs = data.normal(N, M), data.normal(R, M, B), data.normal(R, B)
    with torch.no_grad():
        alone = loss(*inputs)
    return [alone, *with_gradients(loss, *inputs)]


def forward_inputs(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden units, the weight of all repetitions, each bucket's numbers adjacent, and the bias."""
    hidden, weight = data.normal(N, 64).to(torch.bfloat16), data.normal(R, B, 64).to(torch.bfloat16)
    return hidden, weight.mT, data.normal(R, B)


@case
def bucket_forward(put: Any) -> Iterable[Tensor]:
    inputs = forward_inputs(Data(put))
    return [_ops._raw.bucket_forward(*inputs, name) for name in ("none", "sigmoid", "logsigmoid")]


@case
def bucket_forward_extremes(put: Any) -> Iterable[Tensor]:
    inputs = forward_inputs(Data(put))
    return [t for name in ("none", "logsigmoid") for t in _ops._raw.bucket_forward_extremes(*inputs, name)]


@case
def bucket_forward_bce(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    results = _ops._raw.bucket_forward_bce(*forward_inputs(data), data.buckets(), *data.labels(), 0.5)
    return list(results)


def hash_of(data: Data) -> mach_ext.LabelHash:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        hash = mach_ext.LabelHash(L, B, R)
    hash.buckets = data.put(hash.buckets)
    return hash


@case
def merge_scores(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    scores, hash, labels = data.normal(N, R, B), hash_of(data), data.below(L, N, 6)
    results = []
    for merge in F.MERGES:
        results += with_gradients(lambda s, merge=merge: F.merge_scores(s, hash, labels, merge), scores)
    return results


@case
def merge_scores_grad(put: Any) -> Iterable[Tensor]:
    data = Data(put)
    inputs = data.normal(N, 6), data.normal(N, R, B), data.buckets(), data.below(L, N, 6)
    return [_ops.merge_scores_grad(*inputs, merge) for merge in ("mean", "min", "median")]


@case
def label_index(put: Any) -> Iterable[Tensor]:
    codes, starts, labels = _ops.label_index(Data(put).buckets(), B)
    return [codes.to(torch.int32), starts, labels]


@case
def merge_topk(put: Any) -> Iterable[Tensor]:
    """Every merge and path, with and without the index, and scores that tie, with NaN and infinity."""
    data = Data(put)
    scores, buckets = data.normal(N, R, B).sigmoid(), data.buckets()
    scores[1], scores[2, :, 7], scores[3, 3, 5] = 0.5, float("nan"), float("inf")
    index = _ops.label_index(buckets, B)
    results: list[Tensor] = []
    for path in ("auto", "direct", "scan", "lists"):
        results += _ops.merge_topk(scores, buckets, index, 5, "mean", path)
    for merge in ("mean", "min", "median"):
        results += _ops.merge_topk(scores, buckets, None, 300, merge)
    return results


@case
def signs(put: Any) -> Iterable[Tensor]:
    gradient = Data(put).normal(N, 100)
    gradient[0, :3] = put(torch.tensor([0.0, float("nan"), -0.0]))
    return [_ops.signs(gradient, True), gradient]


# ------------------------------------------------------------------------------------------------- running


def registered() -> list[str]:
    """The operators of csrc/ops.cpp."""
    source = (ROOT / "csrc" / "ops.cpp").read_text(encoding="utf-8")
    return re.findall(r'm\.def\(\s*"(\w+)\(', source)


def faults(has_kernel: Callable[[str], bool]) -> Iterable[tuple[str, str]]:
    """Operators that nothing here would run."""
    for name in registered():
        if not has_kernel(name):
            if name not in CPU_ONLY:
                yield name, "it has no CUDA kernel, and CPU_ONLY of smoke.py does not name it"
        elif name not in CASES:
            yield name, "it has a CUDA kernel, and smoke.py has no case for it"


def compare(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> str:
    """How the results compare: "same bits" or the largest difference. Raises AssertionError beyond that."""
    largest = 0.0
    for a, b in zip(actual, expected, strict=True):
        a = a.cpu()
        relative, absolute = TOLERANCE.get(b.dtype, OTHERS)
        torch.testing.assert_close(a, b, rtol=relative, atol=absolute, equal_nan=True)
        finite = a.isfinite() & b.isfinite()
        if finite.any():
            largest = max(largest, float((a[finite].double() - b[finite].double()).abs().max()))
    return f"largest difference {largest:.2g}" if largest else "same bits"


def run(names: Iterable[str], device: Callable[[Case], Iterable[Tensor]]) -> int:
    """Run the cases of these operators, print a line for each, and return the number of failures."""
    failed = 0
    for name in names:
        start = time.perf_counter()
        try:
            expected = [t.clone() for t in CASES[name](lambda t: t.clone())]
            said = compare([t.clone() for t in device(CASES[name])], expected)
            print(f"ok {name}: {said}, {time.perf_counter() - start:.2f} s", flush=True)
        except Exception as error:
            failed += 1
            first = next(iter(str(error).strip().splitlines()), "")
            print(f"FAILED {name}: {type(error).__name__}: {first}", flush=True)
            traceback.print_exc()
    return failed


def on_gpu(case: Case) -> list[Tensor]:
    results = list(case(lambda t: t.cuda()))
    torch.cuda.synchronize()
    return results


class Shim:
    """torch.ops.mach_ext with the operators of the shim where it has them."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))

    def __getattr__(self, name: str) -> Any:
        there = torch._C._dispatch_has_kernel_for_dispatch_key(f"mach_ext_shim::{name}", "CPU")
        return getattr(torch.ops.mach_ext_shim if there else torch.ops.mach_ext, name)

    def run(self, case: Case) -> list[Tensor]:
        cpu = _ops._raw
        setattr(_ops, "_raw", self)  # noqa: B010
        try:
            return list(case(lambda t: t.clone()))
        finally:
            _ops._raw = cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shim", type=Path, metavar="LIBRARY")
    args = parser.parse_args()
    torch.manual_seed(0)
    library, key = ("mach_ext_shim", "CPU") if args.shim else ("mach_ext", "CUDA")
    device = Shim(args.shim.resolve()).run if args.shim else on_gpu
    if not args.shim and _ops.CUDA_FAULT:
        print(f"FAILED import: {_ops.CUDA_FAULT}")
        raise SystemExit(1)
    has_kernel = lambda name: torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{name}", key)  # noqa: E731
    wrong = list(faults(has_kernel))
    for name, why in wrong:
        print(f"FAILED {name}: {why}")
    failed = run([name for name in registered() if name in CASES and has_kernel(name)], device)
    print(f"{failed + len(wrong)} failed")
    sys.exit(failed + len(wrong) > 0)


if __name__ == "__main__":
    main()
