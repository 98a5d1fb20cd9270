"""What the CUDA kernels run on without a GPU (cuda_shim/) catches, shown on kernels with planted mistakes."""

import os
import re
import subprocess
import sys

import pytest
from helpers import NO_SHIM, ROOT, SHIM, TESTS

SEEDS = 16
NO_ASAN = "the compiler has no ASan, or MACH_SHIM=1 was not built"
ASAN = {
    **os.environ,
    "ASAN_OPTIONS": "detect_leaks=0",  # a launch that fails leaves its fibers as they are
    "MACH_SHIM_SHARED_KB": "227",
}


def run(program, case, seeds=SEEDS):
    path = SHIM.with_name(program)
    if not path.exists():
        pytest.skip(NO_SHIM if program != "planted_asan" else NO_ASAN)
    return subprocess.run([path, case, str(seeds)], capture_output=True, text=True, env=ASAN, timeout=300)


def outcomes(program, case):
    done = run(program, case)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == SEEDS
    return lines


@pytest.mark.parametrize("program", ["planted", "planted_asan", "planted_ucontext"])
@pytest.mark.parametrize(
    "case", ["block_sum", "turn", "collectives", "collect", "ring", "wait", "limits", "shapes", "again"]
)
def test_right_kernels_pass_on_every_seed(program, case):
    assert outcomes(program, case) == ["right"] * SEEDS


@pytest.mark.parametrize("program", ["planted", "planted_ucontext"])
@pytest.mark.parametrize(
    ("case", "at_least"),
    [("missing_barrier", 16), ("missing_syncwarp", 16), ("collect_in_two_steps", 12), ("unwritten", 16)],
)
def test_races_and_unwritten_memory_show(program, case, at_least):
    assert outcomes(program, case).count("wrong") >= at_least


@pytest.mark.parametrize("program", ["planted", "planted_asan", "planted_ucontext"])
@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("copy_no_wait", "another copy or a store wrote there meanwhile"),
        ("copy_late_wait", "another copy or a store wrote there meanwhile"),
        ("copy_never_waited", "thread (7, 0, 0) ends and has not waited for a copy of 16 bytes to byte 112"),
        ("copy_misaligned", "the destination is not aligned to its size"),
        ("copy_misaligned_source", "the source is not aligned to its size"),
        ("copy_wrong_size", "starts a copy of 12 bytes"),
        ("copy_outside", "of its 2048 bytes of shared memory, planted.cpp:"),
        ("copy_overwritten", "thread (5, 0, 0) waits, planted.cpp:"),
        ("copy_reused", "wrong"),
    ],
)
def test_copies_that_are_not_waited_for_or_not_possible_show(program, case, report):
    """A ring of stages in shared memory, whose wait is deleted, too late, or whose copies are wrong."""
    assert all(report in line for line in outcomes(program, case))


@pytest.mark.parametrize("program", ["planted", "planted_asan", "planted_ucontext"])
@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("divergent_half", ["threads 0-31: in __syncthreads, planted.cpp:", "threads 32-127: ended"]),
        ("divergent_other", ["threads 0-2: in __syncthreads", "thread 3: in __syncthreads"]),
        ("divergent_ended", ["threads 0-95: in __syncthreads", "threads 96-127: ended"]),
        ("mask_without_self", ["calls __syncwarp with mask 0x0000ffff, in which it is not, planted.cpp:"]),
        ("mask_of_others", ["threads 0-15: in __syncwarp, mask 0xffffffff", "threads 16-31: ended"]),
        ("mask_of_none", ["threads 32-47: in __syncwarp, mask 0xffffffff, planted.cpp:"]),
        ("too_many_threads", ["more than 1024 threads a block"]),
        ("too_much_shared", ["more shared memory than a block can have"]),
    ],
)
def test_threads_that_can_not_go_on_and_limits_are_reported(program, case, report):
    for line in outcomes(program, case):
        assert line.startswith("cuda shim: kernel ")
        assert all(part in line for part in report), line


@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("before", "wrote in front of its shared memory"),
        ("behind", "thread (5, 0, 0) touches byte 512 of its 512 bytes of shared memory"),
        ("behind_in_padding", "wrote behind its shared memory"),
        ("far_behind", "thread (5, 0, 0) touches byte 4512 of its 512 bytes of shared memory"),
        ("loaded_behind", "touches byte 4512 of its 512 bytes of shared memory"),
        ("nowhere", "touches memory that is not there, at 0x"),
        ("deep", "needs a stack of more than 65536 bytes"),
    ],
)
def test_memory_out_of_bounds_is_reported(case, report):
    for program in ("planted", "planted_ucontext"):
        assert all(report in line for line in outcomes(program, case))
    done = run("planted_asan", case, 1)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer: " in done.stderr
    assert "cuda shim: kernel " in done.stderr  # which thread of which block


def test_waiting_for_what_never_comes_is_reported():
    assert "thread (3, 0, 0) waits by atomic operations for what" in run("planted", "wait_in_vain", 1).stdout


@pytest.mark.skipif("MACH_SHIM_LIBRARY" in os.environ, reason="this is that run")
def test_every_operator_under_asan_and_ubsan(shim_ops, pytestconfig):
    """The operator tests of the shim in a process of their own: one seed, a device with sm_75's 64 KB."""
    library = SHIM.with_name("_cuda_shim_asan.so")
    if not library.exists():
        pytest.skip(NO_ASAN)
    linked = subprocess.run(["ldd", library], check=True, capture_output=True, text=True).stdout
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", TESTS),
            *("-m", "shim"),
        ],
        capture_output=True, text=True, cwd=ROOT,
        env={
            **ASAN,
            # libstdc++ too, for libasan looks up what throws before any module of Python's brings it.
            "LD_PRELOAD": " ".join(re.findall(r"(?:libasan|libstdc\+\+)\S* => (\S+)", linked)),
            "MACH_SHIM_LIBRARY": library.name,
            "MACH_SHIM_SEEDS": "5",
            "MACH_SHIM_SHARED_KB": "64",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pytestconfig.shim_report.sanitized = [line for line in done.stdout.splitlines() if " launches " in line]
    assert pytestconfig.shim_report.sanitized
