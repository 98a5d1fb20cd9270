"""What the operator tests share: devices, tolerances, random sparse batches, comparison to the bit."""

import collections
import contextlib
import ctypes
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from mach_ext import CollisionWarning, LabelHash, _ops

# CI draws the same examples in every run; at a desk every run draws new ones.
settings.register_profile("mach_ext", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("mach_ext")

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
SHIM = SHIM.with_name(os.environ.get("MACH_SHIM_LIBRARY", "_cuda_shim.so"))
NO_SHIM = (
    "the CUDA kernels did not run on the CPU: _cuda_shim.so is not built, `make test` or MACH_SHIM=1 does"
)
SHIM_SEEDS = [int(seed) for seed in os.environ.get("MACH_SHIM_SEEDS", "0 1 2 3").split()]


@pytest.fixture(params=["cpu", "shim", "cuda"], scope="session")
def device(request):
    """Every test that takes it runs with the CPU operators, with the CUDA operators on the CPU (shim), and
    with them on a GPU where there is one."""
    if request.param == "cuda" and not (CUDA_KERNELS and torch.cuda.is_available()):
        pytest.skip(NO_GPU)
    if request.param == "shim" and not SHIM.exists():
        pytest.skip(NO_SHIM)
    return torch.device("cpu" if request.param == "shim" else request.param)


class ShimOp:
    """An operator of the shim, run once for each seed: the same bits whatever the schedule of the threads."""

    def __init__(self, library, op):
        self.library, self.op = library, op
        self.written = [a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments]

    @property
    def default(self):
        return self

    def __call__(self, *args):
        copies = [
            [a.clone() if w and a is not None else a for a, w in zip(args, self.written, strict=False)]
            for _ in SHIM_SEEDS[1:]
        ]
        result = self.run(SHIM_SEEDS[0], args)
        for seed, copy in zip(SHIM_SEEDS[1:], copies, strict=True):
            again = self.run(seed, copy)
            for a, b in zip(self.tensors(result, args), self.tensors(again, copy), strict=True):
                assert bitwise_equal(a, b), f"{self.op} depends on the schedule: seed {seed}"
        return result

    def run(self, seed, args):
        self.library.mach_shim_set_seed(seed)
        return self.op(*args)

    def tensors(self, result, args):
        """All that a call returned or wrote."""
        returned = result if isinstance(result, (tuple, list)) else [result]
        written = [a for a, w in zip(args, self.written, strict=False) if w]
        return [t for t in (*returned, *written) if isinstance(t, torch.Tensor)]


class ShimOps:
    """Stands in for torch.ops.mach_ext; operators without a CUDA kernel are the CPU's."""

    def __init__(self):
        torch.ops.load_library(str(SHIM))
        self.library = ctypes.CDLL(str(SHIM))
        self.library.mach_shim_set_seed.argtypes = [ctypes.c_uint64]
        self.library.mach_shim_totals.restype = ctypes.c_char_p

    def __getattr__(self, name):
        there = torch._C._dispatch_has_kernel_for_dispatch_key(f"mach_ext_shim::{name}", "CPU")
        op = ShimOp(self.library, getattr(torch.ops.mach_ext_shim, name).default) if there else None
        setattr(self, name, op or getattr(torch.ops.mach_ext, name))
        return getattr(self, name)


class ShimReport:
    """How often each kernel ran, and in how many tests: the launches before and after each."""

    def __init__(self, library):
        self.library, self.tests = library, collections.Counter()
        self.sanitized = []  # lines of the report of the run under ASan and UBSan

    def launches(self):
        lines = self.library.mach_shim_totals().decode().splitlines()
        return {name: [int(n) for n in numbers] for name, *numbers in map(str.split, lines)}

    def __enter__(self):
        self.before = self.launches()

    def __exit__(self, *_):
        self.tests.update(
            name for name, numbers in self.launches().items() if numbers != self.before.get(name)
        )


@pytest.fixture(scope="session")
def shim_ops(pytestconfig):
    ops = ShimOps()
    pytestconfig.shim_report = ShimReport(ops.library)
    return ops


@pytest.fixture(autouse=True)
def operators(request, monkeypatch):
    """Which operators the test runs: "cpu" or "cuda", those of mach_ext, or "shim", in their place."""
    which = device_of(request.node) or "cpu"
    if which == "shim":
        monkeypatch.setattr(_ops, "_raw", request.getfixturevalue("shim_ops"))
        with request.config.shim_report:
            yield which
    else:
        yield which


def device_of(item):
    return item.callspec.params.get("device") if hasattr(item, "callspec") else None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items):
    """opcheck and torch.compile go to torch.ops.mach_ext itself: not with the shim."""
    for item in [item for item in items if device_of(item) == "shim"]:
        item.add_marker("shim")
        if "opcheck" in item.name or item.path.name == "test_compile.py":
            items.remove(item)


def pytest_terminal_summary(terminalreporter, config):
    report = getattr(config, "shim_report", None)
    if report is None:
        return
    terminalreporter.section("CUDA kernels run without a GPU")
    for name, (launches, blocks, threads, _) in sorted(report.launches().items()):
        counts = f"{launches:9} launches {blocks:10} blocks {threads:12} threads"
        terminalreporter.line(f"{name:40} {report.tests[name]:5} tests {counts}")
    if report.sanitized:
        terminalreporter.section("and under ASan and UBSan")
    for line in report.sanitized:
        terminalreporter.line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """One line in the summary, with the number of tests, for those skipped for want of a device."""
    report = yield
    for why in (NO_GPU, NO_SHIM):
        if report.skipped and report.longrepr[2] == f"Skipped: {why}":
            report.longrepr = (__file__, None, report.longrepr[2])
    return report


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


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


@pytest.fixture
def one_thread():
    """For modules of many small operations: a second thread that waits for a busy core makes them crawl.

    What threads change, nothing, is tested by `assert_deterministic` and wherever `num_threads` is used.
    """
    with num_threads(1):
        yield


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
