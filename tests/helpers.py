"""What tests share: where things are, tolerances, random sparse batches, comparison to the bit."""

import contextlib
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from hypothesis import strategies as st

from mach_ext import CollisionWarning, LabelHash, _ops

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"

# Against a float64 reference on the same inputs; sums of up to a few hundred products of about unit size.
TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
}
FLOATS = (torch.float32, torch.float64)
INTS = (torch.int32, torch.int64)

# Non-zeros of each row, the shapes that break CSR kernels.
ROWS = {
    "empty_first": [0, 3, 2],
    "empty_middle": [5, 0, 0, 4],
    "empty_last": [3, 1, 0],
    "all_empty": [0, 0, 0],
    "one_huge": [1, 0, 2, 300, 1, 0],
    "one_row": [7],
    "no_rows": [],
}


CUDA_KERNELS = not _ops.CUDA_FAULT
NO_GPU = "the GPU half of the operator tests did not run: " + (
    "no CUDA GPU here" if CUDA_KERNELS else "the operators have no CUDA kernels in this build"
)

# The CUDA operators for CPU tensors, kernels on fibers (cuda_shim/), where they were built: make test.
SHIM = (Path(_ops.__file__).parent / "_cpu.so").resolve()
SHIM = SHIM.parent / os.environ.get("MACH_SHIM_LIBRARY", "_cuda_shim.so")
NO_SHIM = (
    "the CUDA kernels did not run on the CPU: _cuda_shim.so is not built, `make test` or MACH_SHIM=1 does"
)
SHIM_SEEDS = [int(seed) for seed in os.environ.get("MACH_SHIM_SEEDS", "0 1 2 3").split()]


class Csr(NamedTuple):
    """A sparse batch [N, D] as the functions take it."""

    values: torch.Tensor  # [nnz]
    indices: torch.Tensor  # [nnz]
    indptr: torch.Tensor  # [N + 1]


def random_csr(generator, rows, num_columns, dtype=torch.float32, index=torch.int64, pointer=torch.int64):
    """Rows with the given numbers of non-zeros (at most `num_columns`), columns unique and in no order."""
    rows = [min(n, num_columns) for n in rows]
    columns = [torch.randperm(num_columns, generator=generator)[:n] for n in rows]
    indices = torch.cat([torch.empty(0, dtype=torch.int64), *columns])
    indptr = torch.tensor([0, *rows]).cumsum(0)
    values = torch.randn(len(indices), generator=generator, dtype=torch.float64)
    return Csr(values.to(dtype), indices.to(index), indptr.to(pointer))


@st.composite
def csr_batches(draw, dtype):
    """(Csr, D, a seeded generator for whatever else the test needs)."""
    rows = draw(st.lists(st.integers(0, 30), max_size=8))
    columns = draw(st.integers(1, 50))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    index, pointer = draw(st.sampled_from(INTS)), draw(st.sampled_from(INTS))
    return random_csr(generator, rows, columns, dtype, index, pointer), columns, generator


def random_hash(generator, num_labels, num_buckets, num_repetitions, device="cpu"):
    """A hash of random buckets; labels that collide in all repetitions are wanted in these tests."""
    table = torch.randint(num_buckets, (num_repetitions, num_labels), generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollisionWarning)
        return LabelHash.from_buckets(table, num_buckets).to(device)


def uniform(generator, *shape, dtype=torch.float64):
    """Values in [-1, 1)."""
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def to(device, tensors):
    """Tensors (and None) on the device."""
    return [None if t is None else t.to(device) for t in tensors]


def double(tensors):
    """Floating tensors in float64 on the CPU, where references run; indices and None as they are."""
    return [t.cpu().double() if t is not None and t.is_floating_point() else t for t in tensors]


def strided(t):
    """The same values, no dimension contiguous: every second element of a larger tensor."""
    if t is None or t.dim() == 0:
        return t
    larger = t.new_zeros([2 * extent for extent in t.shape])
    every_second = larger[(slice(None, None, 2),) * t.dim()]
    return every_second.copy_(t)


def assert_matches(actual, expected, dtype=None):
    """Same shape; values within the tolerance of `dtype` (that of `actual`) of a float64 reference."""
    tolerance = TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(actual.cpu().double(), expected.double(), equal_nan=True, **tolerance)


def bitwise_equal(a, b):
    """Same dtype, shape and bits; any NaN equals any NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    if not a.is_floating_point():
        return torch.equal(a, b)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(((a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())).all())


@contextlib.contextmanager
def num_threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_deterministic(function):
    """The same bits twice, and on one, two and three threads. `function` returns a tuple of tensors."""
    with num_threads(1):
        expected = function()
    for threads in (1, 2, 2, 3):
        with num_threads(threads):
            for a, b in zip(function(), expected, strict=True):
                assert bitwise_equal(a, b), f"{threads} threads"


def killed_at(step, function):
    """Runs a function in a process of its own that dies before its nth change to a folder."""
    pid = os.fork()
    if pid == 0:
        left = [step]

        def dying(change):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return change(*args, **kwargs)

            return call

        os.replace, os.fsync, os.unlink = dying(os.replace), dying(os.fsync), dying(os.unlink)
        Path.unlink = dying(Path.unlink)
        function()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def weights(generator, R, D, M, dtype, with_bias=True):
    """weight [R, D, M], bias [R, M] or None."""
    weight = uniform(generator, R, D, M, dtype=dtype)
    return weight, uniform(generator, R, M, dtype=dtype) if with_bias else None
