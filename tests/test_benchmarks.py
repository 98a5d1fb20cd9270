"""Of the benchmarks, without their figures: the tables of the pages, and what only a GPU runs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from harness import record
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
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
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


def write(file, *rows):
    record.write_rows(
        file, [dict(zip(("test", "threads", "seconds"), row, strict=True)) for row in rows], KEY
    )


KEY = ["test", "threads"]


def test_rows_replace_those_of_the_same_key(tmp_path):
    """Others stay where they are, to the byte, and no other file is left."""
    file = tmp_path / "results.csv"
    write(file, ("a", 1, 0.1 + 0.2), ("a", 1, 5), ("b", 1, None), ("a", 2, 1e-9))
    write(file, ("b", 1, 2 / 3), ("c", 1, float("inf")))
    assert file.read_text() == "test,threads,seconds\na,1,0.3\na,1,5\nb,1,0.666667\na,2,1e-09\nc,1,\n"
    write(file, ("a", 1, 7))
    assert file.read_text() == "test,threads,seconds\na,1,7\nb,1,0.666667\na,2,1e-09\nc,1,\n"
    assert [*tmp_path.iterdir()] == [file]


def test_a_run_cut_short_loses_no_rows(tmp_path, monkeypatch):
    file = tmp_path / "results.csv"
    write(file, ("a", 1, 3))
    before = file.read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(file, ("a", 1, 4))
    assert file.read_text() == before


def test_circumstances_are_kept_once(tmp_path):
    numbers = [record.circumstances(tmp_path)["circumstances"] for _ in range(2)]
    assert [str(number) for number in numbers] == ["1", "1"]
    (row,) = record.read_rows(tmp_path / "circumstances.csv")
    assert row["torch"] == torch.__version__


def test_kept_results_are_small():
    files = [*(ROOT / "benchmarks" / "results").iterdir()]
    assert {file.suffix for file in files} == {".csv"}
    texts = [file.read_text() for file in files]
    assert sum(text.count("\n") for text in texts) <= 3000
    assert sum(map(len, texts)) <= 400_000


def test_throughput_is_measured_kept_and_compared(tmp_path):
    """`--benchmark-only` runs no other benchmark. The second run stands beside the first."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-p", "no:cacheprovider"]
    command += [
        "-k",
        "hidden-label_logits or completeness",
        "--benchmark-max-time=0.01",
        "--benchmark-min-rounds=1",
    ]
    command += ["--benchmark-autosave", f"--benchmark-storage={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # pytest-benchmark measures nothing in a worker
    for options in ([], ["--benchmark-compare"]):
        run = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "1 passed, 2 skipped" in run.stdout
    assert "(0001_" in run.stdout
    assert "labels/s" in run.stdout
    first, _ = sorted(tmp_path.rglob("*.json"))
    (bench,) = json.loads(first.read_text())["benchmarks"]
    assert bench["extra_info"].keys() == {"documents/s", "labels/s", "GB/s"}
    assert bench["extra_info"]["documents/s"] == pytest.approx(128 / bench["stats"]["median"])
