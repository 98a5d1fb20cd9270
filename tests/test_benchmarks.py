"""Of the benchmarks, without their figures: the tables of the pages, and what only a GPU runs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT


def test_pages_have_the_tables_of_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "table.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# As bench_cuda.py's works, on the CPU and as small as they come; the compiler and CUDA's graphs left out.
SMALL_WORKS = """
import sys
import torch
import bench_cuda as b

b.DEVICE = torch.device("cpu")
torch.compile = lambda function, **_: function
works = [
    b.sparse_linear_work(4, 3, 50, 16, torch.bfloat16),
    b.step_work(4, 3, 50, 16),
    b.decode_work("peaky", 20, 2000, 8, 100, 5, 1.0, 0.5),
    *(b.training_work(precision, 100, 200, 2, 20, 16) for precision in ("float32", "bfloat16")),
]
for work in works:
    providers = {name: call for name, call in work.prepare().items() if "graph" not in name}
    for call in providers.values():
        call()
    assert "mach_ext" in providers, work.id
    floor, _ = work.floor_seconds(b.H200)
    for name in work.predicted():
        assert any(provider.startswith(name) for provider in providers), (work.id, name)
    rows = {
        name: {"seconds": (i + 1) * floor, "peak_bytes": 10 * (i + 1)} for i, name in enumerate(providers)
    }
    rows["compiled"] = {"failed": "RuntimeError: no compiler"}
    rows = [row | {"device": "a GPU", "predicted": False} for row in b.record(work, rows, b.H200)]
    b.keep(Config(), "cuda", rows)
"""


def test_works_of_the_gpu_run_and_their_table_is_written(tmp_path):
    """Every provider once, and what gpu.sh does with the results."""
    config = f"""
from pathlib import Path
from types import SimpleNamespace
import contextlib
capture = SimpleNamespace(global_and_fixture_disabled=contextlib.nullcontext)
class Config:
    getoption = lambda self, name: Path({str(tmp_path)!r})
    pluginmanager = SimpleNamespace(getplugin=lambda name: capture)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", config + SMALL_WORKS],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    table = [sys.executable, str(ROOT / "benchmarks" / "table.py"), "--cuda", str(tmp_path / "cuda.csv")]
    lines = subprocess.run(table, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0] == "**CUDA**, a GPU."
    rows = {line.split(":")[0].strip("| "): line.split(" | ")[-2:] for line in lines[4:] if line}
    assert rows["sparse_linear"] == ["≥ 80% of the floor's speed", "yes |"]
    assert rows["merge_topk"][0] == "≤ 0.5 ms; ≥ 50 x"
    assert rows["merge_topk"][1] == "yes; **no** |"
    assert rows["training step"] == ["≥ 4 x; ≤ 0.25 of the memory", "**no**; **no**, 0.5 / 0.33 |"]


PYTHON_ON_A_GPU = """#!/bin/sh
# In place of Python, where gpu.sh asks for it: says what it was asked to do.
case "$*" in
  -) exit 0 ;;  # nothing is missing
  *get_device_capability*) echo 9.0 ;;
  *"setup.py"*) echo "building for $TORCH_CUDA_ARCH_LIST" ;;
  *"bench_cuda.py"*) cp "$RESULTS" "$OUT_FOLDER/cuda.csv"; exit 1 ;;
  *"table.py"*) exec "$REAL_PYTHON" "$@" ;;
  *) echo "$*"; exit 1 ;;
esac
"""


@pytest.fixture
def gpu_script(tmp_path):
    """Runs gpu.sh with stand-ins for Python, nvcc and compute-sanitizer; its output and its folder."""
    programs, out = tmp_path / "bin", tmp_path / "out"
    programs.mkdir()
    refuses = "#!/bin/sh\necho 'Error: Device not supported'; exit 1\n"
    for name, text in (("python", PYTHON_ON_A_GPU), ("compute-sanitizer", refuses), ("nvcc", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(*stages, python=programs / "python"):
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHON": str(python),
            "REAL_PYTHON": sys.executable,
            "OUT_FOLDER": str(out),
            "RESULTS": str(ROOT / "benchmarks" / "results" / "cuda_predicted.csv"),
        }
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(out), *stages]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        return done, out, json.loads((out / "summary.json").read_text())

    return run


def test_gpu_script_keeps_what_each_stage_left(gpu_script):
    """Tests and benchmarks that fail, a sanitizer that refuses the device: what is there is kept."""
    done, out, summary = gpu_script()
    assert done.returncode == 0, done.stderr
    ended = {name: stage["exit"] for name, stage in summary.items()}
    assert ended == {"build": 0, "cuda": 1, "tests": 1, "memcheck": 1, "racecheck": 1, "bench": 1}
    assert sum(stage["limit"] for stage in summary.values()) < 9 * 60
    assert "does not work on this machine" in summary["memcheck"]["note"]
    assert (out / "build.log").read_text() == "building for 9.0\n"
    assert "tests -k cuda" in (out / "tests.log").read_text()
    assert "merge_topk" in (out / "cuda.md").read_text()


def test_gpu_script_runs_the_stages_it_is_told(gpu_script):
    assert set(gpu_script("build", "bench")[2]) == {"build", "bench"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_script_says_what_is_missing(gpu_script):
    """This Python: it has all packages, perhaps, and no GPU."""
    done, _, summary = gpu_script(python=sys.executable)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"gpu.sh: {summary['error']}"
    assert summary["error"].startswith(("no CUDA GPU", "missing: "))
