"""benchmarks/gpu.sh without a GPU: its limits, what it keeps and says, with stand-ins for programs."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from gpu import __main__ as driver
from gpu import machine, reports, running, smoke, stages
from helpers import NO_SHIM, ROOT, SHIM, TESTS

# ------------------------------------------------------------------------------------------------- the limits

ALL = list(stages.STAGES)


def allotted(chosen, took=1.0, total=stages.SECONDS):
    """The limits of the stages, if each takes this share of its own."""
    left, limits = total, {}
    for name in chosen:
        limits[name] = stages.limit(name, chosen, left, total)
        left -= took * limits[name]
    return limits


def test_all_limits_together_are_under_nine_minutes():
    limits = allotted(ALL)
    assert sum(limits.values()) <= stages.SECONDS
    assert stages.SECONDS + running.GRACE < 9 * 60
    assert limits["build"] <= 140
    assert limits["ncu"] <= 25
    assert limits["bench"] >= 120


def test_benchmarks_get_what_the_others_leave():
    full, quick = allotted(ALL), allotted(ALL, took=0.5)
    assert quick["bench"] > full["bench"] + 100
    assert [quick[name] for name in ALL if name != "bench"] == [full[name] for name in ALL if name != "bench"]
    few = allotted(["bench", "memcheck"])
    assert few["bench"] + few["memcheck"] == stages.SECONDS


def test_limits_shrink_with_the_time_for_all():
    short = allotted(ALL, total=stages.SECONDS / 5)
    assert short == pytest.approx({name: limit / 5 for name, limit in allotted(ALL).items()})


# ---------------------------------------------------------------------------------------- with stand-ins

PYTHON = """#!/bin/bash
# In place of Python, where gpu.sh asks for it. $SLOW names a command that hangs, $FAILING one that fails.
case "$*" in
  "-m gpu "*) exec "$REAL_PYTHON" "$@" ;;
  *get_device_properties*)
    echo "{\\"torch\\": \\"2.11.0\\", \\"device\\": \\"$DEVICE\\", \\"capability\\": \\"9.0\\"}"; exit ;;
  *table.py*) exec "$REAL_PYTHON" "$@" ;;
esac
echo "caching=$PYTORCH_NO_CUDA_MEMORY_CACHING lineinfo=$MACH_LINEINFO arch=$TORCH_CUDA_ARCH_LIST: $*"
if [ -n "$SLOW" ] && [[ "$*" == *"$SLOW"* ]]; then sleep 300 & echo "child $!"; wait; fi
if [ -n "$FAILING" ] && [[ "$*" == *"$FAILING"* ]]; then exit 1; fi
case "$*" in
  *gpu.smoke*) echo "ok signs: same bits"; echo "FAILED merge_topk: AssertionError: not equal"; exit 1 ;;
  *bench_cuda.py*)
    results=$(sed 's/.*--results=\\([^ ]*\\).*/\\1/' <<<"$*")
    sed "s/H200/${DEVICE#NVIDIA }/" "$ROWS" >"$results/cuda.csv"
    printf 'resource,per_second\\nhbm_copy,4.3e12\\n' >"$results/cuda_ceilings.csv" ;;
esac
if [ -n "$MACH_GPU_RESULTS" ]; then
  printf '{"collected": 2}\\n' >>"$MACH_GPU_RESULTS"
  printf '{"test": "a%s", "outcome": "passed", "line": ""}\\n' "$RANDOM$RANDOM" >>"$MACH_GPU_RESULTS"
  printf '{"test": "b", "outc\\n' >>"$MACH_GPU_RESULTS"
fi
"""
SANITIZER = """#!/bin/bash
echo "========= COMPUTE-SANITIZER"
case "$*" in
  *planted*) echo "========= ERROR SUMMARY: ${PLANTED:-1} error"; exit 9 ;;
  *) while [ "$1" != -m ]; do shift; done; "$PYTHON" "$@"; echo "========= ERROR SUMMARY: 0 errors" ;;
esac
"""
NCU = """#!/bin/sh
echo "==PROF== Connected to process 1"
printf '"ID","Process Name","Kernel Name","Metric Name","Metric Unit","Metric Value"\\n'
printf '"0","python","void mach::scan_kernel<1>(Scan)","smsp__inst_executed.sum","inst","1,234"\\n'
"""
NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  *planted.cu*) for last; do :; done; printf '#!/bin/sh\\n' >"$last"; chmod +x "$last" ;;
esac
"""
ROWS = """test,card,work,shape,provider,seconds,floor_seconds,bound,peak_bytes,predicted,predicted_seconds
scan,H200,scan,N=2,mach_ext,0.002,0.001,hbm_copy,,False,0.0015
scan,H200,scan,N=2,torch,0.02,0.001,hbm_copy,,False,
"""


@pytest.fixture
def script(tmp_path):
    """Runs gpu.sh with stand-ins; how it ended, what OUT has, and summary.json."""
    programs, out = tmp_path / "bin", tmp_path / "out"
    programs.mkdir()
    (tmp_path / "rows.csv").write_text(ROWS)
    for name, text in {"python": PYTHON, "compute-sanitizer": SANITIZER, "ncu": NCU, "nvcc": NVCC}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(*arguments, without=(), **variables):
        for name in without:
            (programs / name).unlink()
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CUDACXX": str(programs / "nvcc"),
            "PYTHON": str(programs / "python"),
            "REAL_PYTHON": sys.executable,
            "ROWS": str(tmp_path / "rows.csv"),
            "DEVICE": "NVIDIA H200",
            **variables,
        }
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "out", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        file = out / "summary.json"
        return done, out, json.loads(file.read_text()) if file.exists() else None

    return run


def exit_lines(done):
    return dict(re.findall(r"^=== (\w+): (.*)$", done.stdout, re.MULTILINE))


def test_every_stage_runs_and_leaves_at_most_eight_files(script):
    done, out, summary = script()
    assert list(exit_lines(done)) == ALL, done.stderr
    assert done.returncode == 1  # an operator failed
    files = {path.name for path in out.iterdir()}
    logs = {stage.log for stage in stages.STAGES.values()}
    assert files == {"summary.json", "cuda.md", *logs}
    assert len(files) <= 8
    ended = {name: stage["exit"] for name, stage in summary["stages"].items()}
    assert ended == dict.fromkeys(ALL, 0) | {"smoke": 1}
    assert "arch=9.0: setup.py" in (out / "build.log").read_text()
    assert "lineinfo=1" in (out / "build.log").read_text()
    assert exit_lines(done)["build"] == f"exit 0, {summary['stages']['build']['seconds']} s of 140"


def test_summary_has_what_each_stage_found(script):
    done, out, summary = script()
    found, about = summary["stages"], summary["runs"][0]
    assert (about["card"], about["nvcc"], about["torch"]) == ("H200", "13.0", "2.11.0")
    assert {"cpu", "cores", "python", "driver", "date", "missing", "commit"} <= about.keys()
    failure = {"test": "merge_topk", "line": "AssertionError: not equal"}
    assert found["smoke"]["failures"] == [failure]
    assert "    merge_topk: AssertionError: not equal" in done.stdout
    # A line that was cut does not count.
    assert found["tests"]["passed"] == found["tests"]["collected"] / 2 >= 3
    assert summary["ceilings"] == {"H200": {"hbm_copy": 4.3e12}}
    assert [row["provider"] for row in summary["rows"]] == ["mach_ext", "torch"]
    assert found["ncu"]["kernels"] == [{"kernel": "scan_kernel<1>", "smsp__inst_executed.sum": "1,234 inst"}]
    for tool in ("memcheck", "racecheck"):
        assert (found[tool]["errors"], found[tool]["planted errors found"]) == (0, 1)
    assert "caching=1" in (out / "sanitizer.log").read_text()
    assert "| scan: N 2 | 1 (hbm copy) | 2 | 50% | torch | 10 |  |  | 1.33 |" in (out / "cuda.md").read_text()


def test_stages_are_chosen_and_later_calls_add_to_the_summary(script):
    """Also on another card, whose timings stay apart."""
    done, out, first = script("smoke", "build")
    assert list(exit_lines(done)) == ["build", "smoke"]  # in the order of the work
    script("bench", "memcheck")
    done, _, summary = script("bench", DEVICE="NVIDIA H100")
    assert list(summary["stages"]) == ["build", "smoke", "bench", "memcheck"]
    assert summary["stages"]["smoke"] == first["stages"]["smoke"]
    assert [run["card"] for run in summary["runs"]] == ["H200", "H200", "H100"]
    assert summary["stages"]["bench"]["card"] == "H100"
    assert sorted({row["card"] for row in summary["rows"]}) == ["H100", "H200"]
    assert summary["ceilings"].keys() == {"H100", "H200"}
    assert len(list(out.iterdir())) <= 8


def test_a_stage_that_hangs_is_cut_and_the_others_run(script):
    began = time.monotonic()
    done, out, summary = script("--seconds", "21", SLOW="gpu.smoke")
    assert time.monotonic() - began < 60
    assert summary["stages"]["smoke"]["exit"] == 124
    assert re.fullmatch(r"exit 124 \(cut\), \d+ s of 1; .*", exit_lines(done)["smoke"])
    assert summary["stages"]["bench"]["exit"] == 0
    assert summary["rows"]
    child = int(re.search(r"^child (\d+)", (out / "smoke.log").read_text(), re.MULTILINE)[1])
    assert not is_running(child)


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_build_that_fails_stops_what_needs_it(script):
    done, _, summary = script("build", "smoke", "bench", FAILING="setup.py")
    assert done.returncode == 1
    assert summary["stages"]["build"]["exit"] == 1
    assert summary["stages"]["bench"] == {"exit": None, "run": 0, "note": "the build failed"}
    assert exit_lines(done)["smoke"] == "not run, the build failed"
    assert "setup.py" in done.stdout  # the end of its log


def test_tools_that_are_missing_or_refuse_are_named(script):
    done, _, summary = script("bench", "ncu", "memcheck", without=["ncu"], PLANTED="0")
    assert done.returncode == 0
    assert exit_lines(done)["ncu"] in ("not run, ncu is not installed", "exit 0")
    assert "no planted error was found" in summary["stages"]["memcheck"]["note"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(script):
    """This Python: it has all packages, perhaps, and no GPU."""
    done, _, summary = script(PYTHON=sys.executable)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"gpu.sh: {summary['error']}"
    assert summary["error"].startswith(("no CUDA GPU", "missing: "))


def test_an_unknown_stage_is_refused(script):
    done, _, summary = script("bench", "memchek")
    assert done.returncode == 2
    assert "no stage 'memchek'" in done.stderr
    assert summary is None


def test_only_the_folder_is_required():
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("the following arguments are required: OUT\n")


def test_operators_that_were_not_built_are_built_first(monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    assert driver.choose(["bench", "smoke"]) == ["build", "smoke", "bench"]
    (tmp_path / "mach_ext").mkdir()
    (tmp_path / "mach_ext" / "_cuda.so").touch()
    assert driver.choose(["bench", "smoke"]) == ["smoke", "bench"]


def test_end_by_a_signal_keeps_what_was_done(tmp_path):
    """As a time limit from outside does it: the stage ends, its children too, and the summary says so."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"python": PYTHON, "nvcc": NVCC}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {
        **os.environ, "PYTHON": str(programs / "python"), "REAL_PYTHON": sys.executable,
        "CUDACXX": str(programs / "nvcc"), "DEVICE": "NVIDIA H200", "SLOW": "gpu.smoke",
    }  # fmt: skip
    out = tmp_path / "out"
    script = subprocess.Popen(
        ["bash", ROOT / "benchmarks" / "gpu.sh", out, "build", "smoke"], env=environment
    )
    until = time.monotonic() + 60
    while "child" not in reports.read(out / "smoke.log") and time.monotonic() < until:
        time.sleep(0.05)
    script.terminate()
    assert script.wait(timeout=60) == 128 + 15
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stages"]["build"]["exit"] == 0
    assert summary["stages"]["smoke"]["exit"] == 124
    assert not is_running(int(re.search(r"child (\d+)", (out / "smoke.log").read_text())[1]))


# ------------------------------------------------------------------------------------------------- its parts


def test_cards_of_one_chip_and_other_memory_stay_apart():
    names = {
        "NVIDIA H200": "H200",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA H100 NVL": "H100 NVL",
        "NVIDIA GH200 480GB": "GH200 480GB",
        "Tesla V100-SXM2-16GB": "Tesla V100-SXM2-16GB",
    }
    assert {name: machine.card(name) for name in names} == names


def test_a_damaged_summary_is_begun_anew(tmp_path):
    (tmp_path / "summary.json").write_text('{"runs": [')
    assert driver.Summary(tmp_path).data["runs"] == []


@pytest.mark.parametrize(
    ("log", "errors", "note"),
    [
        ("ERROR SUMMARY: 2 errors\n=== operators\nERROR SUMMARY: 0 errors\nERROR SUMMARY: 3 errors", 3, None),
        ("ERROR SUMMARY: 0 errors\n=== operators\nERROR SUMMARY: 0 errors", 0, "no planted error"),
        ("ERROR SUMMARY: 1 error\n=== operators\nok signs", None, "did not come to its end"),
        (
            "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n=== operators\n"
            "RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)",
            2,
            None,
        ),
        ("=== planted\nError: Device not supported\n=== operators\n", None, "refuses the device"),
    ],
)
def test_errors_of_the_checker_are_counted(log, errors, note):
    found = reports.sanitizer(log)
    assert found["errors"] == errors
    assert (note is None and "note" not in found) or note in found["note"]


def test_kernels_have_short_names():
    signature = "void mach::(anonymous namespace)::scan_kernel<(bool)1>(mach::(anonymous namespace)::Scan)"
    assert reports.kernel_name(signature) == "scan_kernel<(bool)1>"
    assert reports.kernel_name("mach::<unnamed>::extremes_kernel(Scan)") == "extremes_kernel"
    assert reports.kernel_name("gemm") == "gemm"


def test_counters_that_are_not_permitted_are_one_line():
    log = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    assert reports.refusal(log)["note"] == "the driver does not permit performance counters to this user"
    assert reports.counters(log) == []


THREE_TESTS = """
import time
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2, "why"
@pytest.mark.skip(reason="no device")
def test_left_out(): pass
def test_slow(): time.sleep({seconds})
"""


@pytest.mark.parametrize("workers", ["-p no:xdist", "-n 2"])
def test_results_of_tests_are_kept_as_they_come(tmp_path, workers):
    """A limit ends pytest in its last test."""
    (tmp_path / "test_three.py").write_text(THREE_TESTS.format(seconds=60))
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "MACH_GPU_RESULTS": str(tmp_path / "results.jsonl")}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "gpu.recorder",
        "-p",
        "no:cacheprovider",
        *workers.split(),
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "."], cwd=tmp_path, env=environment, **quiet)
    until = time.monotonic() + 60
    while (
        sum(found(tmp_path, name) for name in ("passed", "failed", "skipped")) < 3
        and time.monotonic() < until
    ):
        time.sleep(0.05)
    process.terminate()
    process.wait(timeout=60)
    results = reports.tests(tmp_path / "results.jsonl")
    assert results == {
        "collected": 4, "passed": 1, "failed": 1, "skipped": 1,
        "failures": [{"test": "test_three.py::test_bad", "line": "AssertionError: why"}],
    }  # fmt: skip


def found(folder, outcome):
    return reports.tests(folder / "results.jsonl").get(outcome, 0)


def test_every_file_is_in_one_part_where_xdist_is_missing():
    files = stages.test_files()
    parts = stages.split(files, 4)
    assert sorted(name for part in parts for name in part) == sorted(map(str, files))
    assert "tests/ops/test_merge_topk.py" in map(str, files)
    sizes = [sum((ROOT / name).stat().st_size for name in part) for part in parts]
    assert max(sizes) < 1.5 * min(sizes)


def test_what_stages_name_is_there():
    """A test that is renamed must not slip out of its group, nor a file that is left out."""
    text = (TESTS / "ops" / "test_cuda.py").read_text()
    names = re.findall(r"def (test_\w+)", text)
    for word in re.split(" or ", f"{stages.ALONE} or compiles or wrong_indices"):
        assert any(word in name for name in names), word
    for name in (*stages.NOT_ON_GPU, "tests/ops/test_compile.py", "benchmarks/gpu/planted.cu"):
        assert (ROOT / name).exists(), name


def test_a_long_log_loses_its_middle(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"begin" + bytes(running.LARGEST_LOG) + b"end")
    running.shorten(log)
    assert log.stat().st_size < running.LARGEST_LOG + 100
    assert log.read_bytes().startswith(b"begin")
    assert log.read_bytes().endswith(b"end")


# ------------------------------------------------------------------------------------------------- smoke.py


@pytest.fixture
def shim():
    if not SHIM.exists():
        pytest.skip(NO_SHIM)
    return smoke.Shim(SHIM)


def has_shim_kernel(name):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mach_ext_shim::{name}", "CPU")


def test_smoke_runs_every_operator_that_has_a_kernel(shim, capsys):
    names = [name for name in smoke.registered() if has_shim_kernel(name)]
    assert len(names) >= 18
    assert smoke.run(names, shim.run) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("ok ") == len(names)
    assert list(smoke.faults(has_shim_kernel)) == []


def test_smoke_sees_operators_that_nothing_runs(monkeypatch):
    """A kernel without a case, and an operator that has lost its kernel."""
    monkeypatch.delitem(smoke.CASES, "signs")
    wrong = dict(smoke.faults(lambda name: name not in (*smoke.CPU_ONLY, "merge_topk")))
    assert wrong.keys() == {"signs", "merge_topk"}
    assert "no case" in wrong["signs"]
    assert "no CUDA kernel" in wrong["merge_topk"]


def test_smoke_fails_on_a_wrong_result(monkeypatch, capsys):
    monkeypatch.setitem(smoke.CASES, "signs", lambda put: [put(torch.ones(3))])
    assert smoke.run(["signs"], lambda case: [torch.tensor([1.0, 1.0, 1.1])]) == 1
    assert smoke.run(["signs"], lambda case: [torch.ones(3), torch.ones(3)]) == 1  # one result too many
    assert "FAILED signs: AssertionError" in capsys.readouterr().out
