"""What the CUDA kernels run on without a GPU (cuda_shim/) catches, shown on kernels with planted mistakes."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import NO_SHIM, ROOT, SHIM, TESTS

CUDA = ROOT / "csrc" / "cuda"
SEEDS = 16
NO_ASAN = "the compiler has no ASan, or MACH_SHIM=1 was not built"
NO_RACES = "the compiler does not show loads and stores (-fsanitize=thread), or MACH_SHIM=1 was not built"
MISSING = {"planted_asan": NO_ASAN, "planted_races": NO_RACES}
PROGRAMS = ["planted", "planted_asan", "planted_races", "planted_ucontext"]
ASAN = {
    **os.environ,
    "ASAN_OPTIONS": "detect_leaks=0",  # a launch that fails leaves its fibers as they are
    "MACH_SHIM_SHARED_KB": "227",
}


def run(program, case, seeds=SEEDS):
    path = SHIM.with_name(program)
    if not path.exists():
        pytest.skip(MISSING.get(program, NO_SHIM))
    return subprocess.run([path, case, str(seeds)], capture_output=True, text=True, env=ASAN, timeout=300)


def outcomes(program, case):
    done = run(program, case)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == SEEDS
    return lines


RIGHT = [
    *("block_sum", "turn", "collectives", "collect", "ring", "wait", "limits", "shapes", "again"),
    *("matrices", "last_block", "last_block_by_one", "add_bins", "count_blocks", "halves"),
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("case", RIGHT)
def test_right_kernels_pass_on_every_seed(program, case):
    assert outcomes(program, case) == ["right"] * SEEDS


@pytest.mark.parametrize("program", ["planted", "planted_ucontext"])
@pytest.mark.parametrize(
    ("case", "at_least"),
    [
        ("missing_barrier", 16),
        ("missing_syncwarp", 16),
        ("collect_in_two_steps", 12),
        ("count_blocks_in_two_steps", 15),  # seed 0: one block after the other
        ("unwritten", 16),
    ],
)
def test_races_and_unwritten_memory_show(program, case, at_least):
    assert outcomes(program, case).count("wrong") >= at_least


@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("missing_fence", "reads 4 bytes of memory at 0x"),
        ("missing_fence_by_one", "reads 4 bytes of memory at 0x"),
        ("missing_fence_reader", "reads 4 bytes of memory at 0x"),
        ("missing_fence_reader_by_one", "reads 4 bytes of memory at 0x"),
        ("late_fence", "reads 4 bytes of memory at 0x"),
        ("same_word", "writes 4 bytes of memory at 0x"),
        ("add_bins_without_fence", "changes atomically 4 bytes of memory at 0x"),
        ("add_bins_without_reader_fence", "changes atomically 4 bytes of memory at 0x"),
        ("add_bins_without_barrier", "changes atomically 4 bytes of memory at 0x"),
    ],
)
def test_races_between_blocks_are_reported(case, report):
    """On every seed, also where one block runs after the other and the result is right."""
    assert set(outcomes("planted", case)) <= {"right", "wrong"}
    for line in outcomes("planted_races", case):
        assert report in line
        assert ", planted.cpp:" in line
        assert re.search(r" wrote( atomically)?, and nothing orders the two: a race between blocks$", line)


def test_ldg_of_what_a_launch_writes_is_reported():
    """On a GPU a thread may read by __ldg what a word held before; the emulation reads what it holds now."""
    assert outcomes("planted", "own_word") == ["right"] * SEEDS
    for line in outcomes("planted_races", "own_word"):
        assert "reads by __ldg what the launch has written, planted.cpp:" in line


@pytest.mark.parametrize(
    ("case", "kernel"), [("missing_barrier", "block_sum_kernel"), ("missing_syncwarp", "turn_kernel")]
)
def test_races_between_threads_are_reported(case, kernel):
    """The words that the threads touch in the wrong order show as wrong results, on few seeds."""
    lines = outcomes("planted_races", case)
    reports = [line for line in lines if line != "wrong"]
    assert len(reports) >= 12
    for line in reports:
        assert line.startswith(f"cuda shim: kernel {kernel}, ")
        assert line.endswith(", and nothing orders the two: a race between threads")


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
        ("matrices_misaligned", "calls ldmatrix with a row that is not aligned to 16 bytes, mma.cuh:"),
        ("matrices_elsewhere", "calls ldmatrix with a row that is not in its shared memory, mma.cuh:"),
        ("old_stream", "cuda shim: work goes to a stream that is not the current one"),
    ],
)
def test_what_only_a_gpu_would_refuse_is_reported(program, case, report):
    """The emulation of ldmatrix could read any memory, and streams are all the same here."""
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


def run_operator_tests(library, *arguments, **environment):
    """The operator tests of the shim in a process of their own: one seed, with another library."""
    return subprocess.run(
        [*(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "shim"), *arguments],
        capture_output=True, text=True, cwd=ROOT,
        env={**ASAN, "MACH_SHIM_LIBRARY": str(library), "MACH_SHIM_SEEDS": "5", **environment},
    )  # fmt: skip


def kernel_lines(done):
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if " launches " in line]
    assert lines
    return lines


IN_THAT_RUN = pytest.mark.skipif("MACH_SHIM_LIBRARY" in os.environ, reason="this is that run")


@IN_THAT_RUN
def test_every_operator_under_asan_and_ubsan(shim_ops, pytestconfig):
    """On a device with sm_75's 64 KB."""
    library = SHIM.with_name("_cuda_shim_asan.so")
    if not library.exists():
        pytest.skip(NO_ASAN)
    linked = subprocess.run(["ldd", library], check=True, capture_output=True, text=True).stdout
    # libstdc++ too, for libasan looks up what throws before any module of Python's brings it.
    preload = " ".join(re.findall(r"(?:libasan|libstdc\+\+)\S* => (\S+)", linked))
    done = run_operator_tests(library, TESTS, LD_PRELOAD=preload, MACH_SHIM_SHARED_KB="64")
    pytestconfig.shim_report.sanitized = kernel_lines(done)


@IN_THAT_RUN
def test_no_operator_has_a_race(shim_ops):
    """Fences, barriers or atomic operations order what blocks and threads share, in every kernel there is."""
    library = SHIM.with_name("_cuda_shim_races.so")
    if not library.exists():
        pytest.skip(NO_RACES)
    slow = "garbage_makes_no_step or lists_are_chosen or R60"  # more work for the same kernels
    done = run_operator_tests(library, TESTS / "ops", TESTS / "test_optim.py", "-k", f"not ({slow})")
    seen = {line.split()[0] for line in kernel_lines(done)}
    sources = "".join(path.read_text() for path in CUDA.glob("*.cu"))
    assert set(re.findall(r"__global__[^;{]*?(\w+_kernel)\(", sources)) == seen


# Statements without which a kernel is wrong only on a GPU, and who has to see when one is deleted: a library,
# the tests, and what the report says.
STATEMENTS = re.compile(r"__threadfence\(\);|__pipeline_wait_prior\([^;]*\);")
SEEN_BY = {
    "bucket_forward.cu": ("_cuda_shim", "test_bucket_forward.py", "FAILED tests/ops/test_bucket_forward.py"),
    "merge_scan.cu": ("_cuda_shim", "test_merge_topk.py", "cuda shim: kernel scan_kernel"),
    "merge_topk.cu": ("_cuda_shim_races", "test_merge_topk.py", "a race between blocks"),
}


def build_without(source, target, folder):
    """The target with each of the statements deleted where MACH_PLANTED says its number; and how many."""
    numbers = itertools.count(1)
    text = STATEMENTS.sub(
        lambda match: f"mach_planted == {next(numbers)} ? void() : {match[0]}", source.read_text()
    )
    planted = 'namespace { const int mach_planted = std::atoi(std::getenv("MACH_PLANTED")); }'
    (folder / source.name).write_text(f'#include <cstdlib>\n{planted}\n#line 1 "{source.name}"\n{text}')
    commands = json.loads(SHIM.with_name("compile_commands.json").read_text())
    of_target = re.compile(rf"CMakeFiles/({target}(_kernels)?\.dir)/")
    objects = {}  # source -> its object and the command that made it
    for entry in commands:
        command = shlex.split(entry["command"])
        output = command[command.index("-o") + 1]
        if of_target.search(output):
            objects[entry["file"]] = Path(entry["directory"], output), command
    _, command = objects.pop(str(source))
    replaced = folder / "replaced.o"
    command[command.index("-o") + 1] = replaced
    command[command.index("-c") + 1] = folder / source.name
    subprocess.run([*command, f"-I{source.parent}"], check=True, cwd=folder)
    library = folder / "planted.so"
    others = [path for path, _ in objects.values()]
    torch_lib = Path(torch.__file__).parent / "lib"
    subprocess.run(
        [command[0], "-shared", "-o", library, replaced, *others, f"-L{torch_lib}", "-ltorch_cpu", "-ldl"],
        check=True,
    )
    return library, next(numbers) - 1


@IN_THAT_RUN
@pytest.mark.parametrize("name", SEEN_BY)
def test_statements_deleted_from_operators_show(name, tmp_path):
    """A kernel without one of its fences, or without its wait for copies, fails the tests of its operator."""
    target, tests, report = SEEN_BY[name]
    if not SHIM.with_name(f"{target}.so").exists():
        pytest.skip(NO_RACES if target.endswith("races") else NO_SHIM)
    library, number = build_without(CUDA / name, target, tmp_path)
    assert number > 0
    for planted in range(1, number + 1):
        for kilobytes in ("227", "64"):  # some are for devices with less shared memory
            done = run_operator_tests(
                library, TESTS / "ops" / tests, MACH_PLANTED=str(planted), MACH_SHIM_SHARED_KB=kilobytes
            )
            if done.returncode != 0:
                break
        assert done.returncode == 1, f"{name} without statement {planted} passes"
        assert report in done.stdout, done.stdout


def test_no_such_statement_is_left_out():
    assert {path.name for path in CUDA.glob("*.cu*") if STATEMENTS.search(path.read_text())} == set(SEEN_BY)
