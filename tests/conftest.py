"""Devices: every operator test runs with the CPU operators, the CUDA operators on the CPU, and on a GPU."""

import collections
import ctypes
import functools
import os
import signal

import pytest
import torch
from helpers import CUDA_KERNELS, NO_GPU, NO_SHIM, SHIM, SHIM_SEEDS, bitwise_equal, num_threads
from hypothesis import HealthCheck, settings

from mach_ext import _ops

# A shell ignores SIGINT for jobs in the background, and nohup ignores SIGHUP. Tests send both to programs.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# CI draws the same examples in every run; at a desk every run draws new ones.
# How long they take to draw is no fault: that depends on what else the machine does.
settings.register_profile(
    "mach_ext",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
settings.load_profile("mach_ext")


@pytest.fixture(params=["cpu", "shim", "cuda"], scope="session")
def device(request):
    """Run a test with the CPU operators, with the CUDA operators on the CPU (shim), and on a GPU."""
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
        self.library.mach_shim_events.restype = ctypes.c_char_p

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

    def summary(self):
        """Of each kernel the tests, launches, blocks and threads; the lines of the run under ASan."""
        kernels = {name: [self.tests[name], *numbers[:3]] for name, numbers in self.launches().items()}
        return {"kernels": kernels, "sanitized": self.sanitized}

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
        monkeypatch.setattr(_ops, "has_bucket_forward", lambda device: True)
        with request.config.shim_report:
            yield which
    else:
        yield which


def device_of(item):
    return item.callspec.params.get("device") if hasattr(item, "callspec") else None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items):
    """opcheck and torch.compile go to torch.ops.mach_ext itself: not with the shim.

    The runs under ASan and for races come first: they take long, and other workers do all else meanwhile.
    """
    items.sort(key=lambda item: "under_asan" not in item.name and "has_a_race" not in item.name)
    for item in [item for item in items if device_of(item) == "shim"]:
        item.add_marker("shim")
        if "opcheck" in item.name or item.path.name == "test_compile.py":
            items.remove(item)


def pytest_sessionfinish(session):
    """A worker of `pytest -n` hands on what its kernels did."""
    report = getattr(session.config, "shim_report", None)
    if report is not None and hasattr(session.config, "workeroutput"):
        session.config.workeroutput["shim"] = report.summary()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node):
    if "shim" in getattr(node, "workeroutput", {}):
        node.config.stash.setdefault(WORKERS, []).append(node.workeroutput["shim"])


WORKERS = pytest.StashKey()


def pytest_terminal_summary(terminalreporter, config):
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    said = [value for report in reports for name, value in report.user_properties if name == "said"]
    if said:
        terminalreporter.section("measured")
    for line in said:
        terminalreporter.line(line)
    here = getattr(config, "shim_report", None)
    parts = config.stash.get(WORKERS, []) + ([here.summary()] if here else [])
    if not parts:
        return
    kernels = {}
    for part in parts:
        for name, numbers in part["kernels"].items():
            kernels[name] = [a + b for a, b in zip(numbers, kernels.get(name, [0] * 4), strict=True)]
    terminalreporter.section("CUDA kernels run without a GPU")
    for name, (tests, launches, blocks, threads) in sorted(kernels.items()):
        counts = f"{launches:9} launches {blocks:10} blocks {threads:12} threads"
        terminalreporter.line(f"{name:40} {tests:5} tests {counts}")
    sanitized = [line for part in parts for line in part["sanitized"]]
    if sanitized:
        terminalreporter.section("and under ASan and UBSan")
    for line in sanitized:
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
def say(record_property):
    """say(text): a line at the end of the run. Workers of `pytest -n` have no terminal to print to."""
    return functools.partial(record_property, "said")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def one_thread():
    """For modules of many small operations: a second thread that waits for a busy core makes them crawl.

    What threads change, nothing, is tested by `assert_deterministic` and wherever `num_threads` is used.
    """
    with num_threads(1):
        yield
