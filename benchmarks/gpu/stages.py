"""The stages of gpu.sh: what each runs, for how long, and what of it goes into summary.json."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import reports
from gpu.machine import PYTHON, ROOT, is_there

SECONDS = 525  # for all stages together; nine minutes with the start, the tables and what a cut takes
METRICS = (
    "gpu__time_duration.sum",
    "smsp__inst_executed.sum",
    "dram__bytes.sum",
    "lts__t_bytes.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
PROFILED = ".*(bucket_bce|bucket_forward|sparse_linear|scan|extremes).*_kernel.*"
NOT_ON_GPU = ("tests/ops/test_cuda_shim.py", "tests/test_build.py", "tests/test_benchmarks.py")
# They need the memory of the GPU for themselves.
ALONE = "memory or large"
COMPILE = "test_compile or compiles"


@dataclass(frozen=True)
class Command:
    """A program and its environment. `title` stands above its output, and `counts` is for its exit code."""

    arguments: Sequence[str | os.PathLike[str]]
    environment: dict[str, str] = field(default_factory=dict)
    title: str = ""
    counts: bool = True


Steps = list[list[Command]]  # The commands of a step run side by side.


@dataclass(frozen=True)
class Run:
    """What the stages have to know of this call."""

    out: Path
    work: Path  # where programs write what goes into summary.json; it does not outlast the run
    nvcc: str
    capability: str
    tools: dict[str, str | None]  # ncu, compute-sanitizer
    cores: int


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        limit: Seconds. None is for all that the other stages leave.
        log: Name of the log in OUT, which stages may share.
        steps: The commands, in steps.
        read: What the run left, as entries of the stage in summary.json.
        tool: A program without which the stage is left out.
    """

    limit: int | None
    log: str
    steps: Callable[[Run], Steps]
    read: Callable[[Run, str], dict[str, Any]]
    tool: str | None = None


def build(run: Run) -> Steps:
    command = [PYTHON, "setup.py", "--quiet", "egg_info", "build_ext", "--inplace"]
    variables = {"MACH_CUDA": "1", "MACH_LINEINFO": "1", "TORCH_CUDA_ARCH_LIST": run.capability}
    return [[Command(command, variables | {"CUDACXX": run.nvcc})]]


def smoke(run: Run) -> Steps:
    return [[Command([PYTHON, "-m", "gpu.smoke"])]]


def pytest(*arguments: str) -> list[str]:
    # Warnings of other versions are no failures here.
    options = ["-W", "default", "-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"]
    return [PYTHON, "-m", "pytest", *arguments, *options]


def tests(run: Run) -> Steps:
    """Most run side by side. Those that need the GPU's memory come next, and the slow compiler last."""
    variables = {"MACH_GPU_RESULTS": str(run.work / "tests.jsonl"), "CI": "1", "OMP_NUM_THREADS": "1"}
    common = ["-v", "-p", "gpu.recorder", *(f"--ignore={file}" for file in NOT_ON_GPU)]
    mine = f"cuda and not ({ALONE}) and not ({COMPILE})"
    workers = min(8, max(2, run.cores // 2))

    def step(*parts: Sequence[str], title: str) -> list[Command]:
        return [Command(pytest(*part, *common), variables, title) for part in parts]

    if is_there("xdist"):
        first = [["tests", "-k", mine, f"--numprocesses={workers}", "--dist=worksteal"]]
    else:
        first = [[*files, "-k", mine] for files in split(test_files(), min(4, workers))]
    return [
        step(*first, title="side by side"),
        step(["tests/ops/test_cuda.py", "-k", ALONE], title="alone"),
        step(["tests/ops", "-k", f"cuda and ({COMPILE})"], title="torch.compile"),
    ]


def test_files() -> list[Path]:
    """Files that take a device, relative to the checkout."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    named = [file for file in files if "device" in file.read_text(encoding="utf-8") or "cuda" in file.name]
    relative = [file.relative_to(ROOT) for file in named]
    return [file for file in relative if str(file) not in NOT_ON_GPU]


def split(files: list[Path], parts: int) -> list[list[str]]:
    """Files into parts of about the same size, the largest first."""
    groups: list[tuple[int, list[str]]] = [(0, []) for _ in range(parts)]
    for file in sorted(files, key=lambda file: (ROOT / file).stat().st_size, reverse=True):
        size, names = min(groups, key=lambda group: group[0])
        groups.remove((size, names))
        groups.append((size + (ROOT / file).stat().st_size, [*names, str(file)]))
    return [names for _, names in groups if names]


def bench(run: Run) -> Steps:
    command = pytest("-v", "-s", "-p", "gpu.recorder", "benchmarks/bench_cuda.py", f"--results={run.work}")
    return [[Command(command, {"CUDACXX": run.nvcc, "MACH_GPU_RESULTS": str(run.work / "bench.jsonl")})]]


def ncu(run: Run) -> Steps:
    profile = [PYTHON, "-m", "gpu.profiled"]
    options = ["--clock-control", "none", "--csv", "--kernel-name", f"regex:{PROFILED}"]
    return [[Command([str(run.tools["ncu"]), *options, "--metrics", ",".join(METRICS), *profile])]]


def sanitize(run: Run, tool: str) -> Steps:
    """A planted mistake, then every operator. memcheck has indices outside of their arrays as well."""
    planted = run.work / "planted"
    compiler = [run.nvcc, "-lineinfo", f"-arch=sm_{run.capability.replace('.', '')}"]
    source = ROOT / "benchmarks" / "gpu" / "planted.cu"
    check = [str(run.tools["compute-sanitizer"]), "--tool", tool, "--error-exitcode", "9"]
    check += ["--kernel-name", "kns=mach", "--print-limit", "20", "--report-api-errors", "no"]
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    wrong = pytest("-v", "tests/ops/test_cuda.py", "-k", "wrong_indices")
    steps = [
        [Command([*compiler, source, "-o", planted], title="planted", counts=False)],
        [Command([*check, planted, tool], counts=False)],
        [Command([*check, PYTHON, "-m", "gpu.smoke"], variables, title="operators")],
    ]
    return [*steps, [Command([*check, *wrong], variables)]] if tool == "memcheck" else steps


def read_sanitizer(run: Run, log: str) -> dict[str, Any]:
    return reports.sanitizer(log) | {"operators": reports.smoke(log)}


def read_bench(run: Run, log: str) -> dict[str, Any]:
    return {"rows": len(reports.rows(run.work / "cuda.csv")), **reports.tests(run.work / "bench.jsonl")}


def read_counters(run: Run, log: str) -> dict[str, Any]:
    return reports.refusal(log) | {"kernels": reports.counters(log)}


STAGES = {
    "build": Stage(140, "build.log", build, lambda run, log: {}),
    "smoke": Stage(30, "smoke.log", smoke, lambda run, log: reports.smoke(log)),
    "tests": Stage(110, "tests.log", tests, lambda run, log: reports.tests(run.work / "tests.jsonl")),
    "bench": Stage(None, "bench.log", bench, read_bench),
    "ncu": Stage(25, "ncu.log", ncu, read_counters, "ncu"),
    "memcheck": Stage(
        45, "sanitizer.log", lambda run: sanitize(run, "memcheck"), read_sanitizer, "compute-sanitizer"
    ),
    "racecheck": Stage(
        40, "sanitizer.log", lambda run: sanitize(run, "racecheck"), read_sanitizer, "compute-sanitizer"
    ),
}


def limit(name: str, chosen: Sequence[str], left: float, total: float = SECONDS) -> float:
    """Seconds that a stage may take, where so many are left for it and for those after it.

    All limits shrink with the total, so a shorter run keeps its proportions.
    """
    scale = total / SECONDS
    own = STAGES[name].limit
    if own is not None:
        return max(0.0, min(own * scale, left))
    after = chosen[list(chosen).index(name) + 1 :]
    return max(0.0, left - sum((STAGES[other].limit or 0) * scale for other in after))
