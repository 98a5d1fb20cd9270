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
from pathlib import Path
import torch
import bench_cuda as b

b.DEVICE = torch.device("cpu")
torch.compile = lambda function, **_: function
rates = b.CARDS["H200"]
works = [
    b.sparse_linear_work(4, 3, 50, 16, torch.bfloat16),
    b.step_work(4, 3, 50, 16),
    b.decode_work("peaky", 20, 2000, 8, 100, 5, b.Decode(scanned=1), 0.5),
    *(b.training_work(precision, 100, 200, 2, 20, 16) for precision in ("float32", "bfloat16")),
    b.bucket_bce_work(8, 2, 20, 100),
    b.bucket_logits_work(4, 16, 2, 20, torch.bfloat16),
    *(b.forward_work(4, 16, 2, 20, training) for training in (True, False)),
]
for work in works:
    providers = {name: call for name, call in work.prepare().items() if "graph" not in name}
    for call in providers.values():
        call()
    assert "mach_ext" in providers, work.id
    floor, _ = work.floor_seconds(rates)
    predicted = work.predicted(rates)
    for name in predicted:
        assert any(provider.startswith(name.partition(",")[0]) for provider in providers), (work.id, name)
    rows = {
        name: {"seconds": (i + 1) * floor, "peak_bytes": 10 * (i + 1)} for i, name in enumerate(providers)
    }
    rows["compiled"] = {"failed": "RuntimeError: no compiler"}
    for device in ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA L4"):
        b.keep_rows(Path(sys.argv[1]) / "cuda.csv", b.record(work, rows, rates, device))
"""


@pytest.fixture(scope="module")
def small_results(tmp_path_factory):
    """Every provider once. The folder then has the rows of three cards."""
    folder = tmp_path_factory.mktemp("works")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SMALL_WORKS, folder],
        cwd=folder, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder


def table_lines(file):
    command = [sys.executable, str(ROOT / "benchmarks" / "table.py"), "--cuda", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_works_of_the_gpu_run_and_their_table_is_written(small_results):
    lines = table_lines(small_results / "cuda.csv")
    cards = [line for line in lines if line.startswith("**")]
    assert cards == ["**CUDA, H100**.", "**CUDA, H200**.", "**CUDA, L4**."]
    of_h200 = lines[lines.index("**CUDA, H200**.") : lines.index("**CUDA, L4**.")]
    rows = {line.split(":")[0].strip("| "): line.strip("| ").split(" | ") for line in of_h200[4:] if line}
    assert rows["sparse_linear"][-3:-1] == ["≥ 80% of the floor's speed", "yes"]
    assert rows["merge_topk"][-3:-1] == ["≤ 0.5 ms; ≥ 50 x", "yes; **no**"]
    step = rows["training step"]
    # Rows of the bfloat16 step: 10 bytes fused, 20 unfused, 30 and 40 of PyTorch's forms.
    assert step[-3:-1] == ["≥ 4 x; ≤ 0.25 of the memory", "**no**; **no**, 0.33 / 0.25"]


def test_measured_rows_stand_beside_the_prediction_of_their_card(small_results):
    rows = record.read_rows(small_results / "cuda.csv")
    ours = [row for row in rows if row["work"] == "sparse_linear" and row["provider"] == "mach_ext"]
    predicted = {row["card"]: row["predicted_seconds"] for row in ours}
    assert float(predicted["H100"]) > float(predicted["H200"]) > 0
    assert predicted["L4"] == ""
    lines = table_lines(small_results / "cuda.csv")
    last = [line.strip("| ").split(" | ")[-1] for line in lines if "sparse_linear" in line]
    ratios = [float(row["seconds"]) / float(row["predicted_seconds"]) for row in ours if row["card"] != "L4"]
    assert last[:2] == [f"{ratio:.2f}" for ratio in ratios[::-1]]


def test_predictions_are_what_the_model_gives_now():
    """For both cards, line by line: cuda_predicted.csv is written by `python benchmarks/bench_cuda.py`."""
    code = """
import bench_cuda as b
from harness.record import cell
for card, rates in b.CARDS.items():
    for work in b.WORKS:
        for name, (seconds, _) in work.predicted(rates).items():
            print(card, work.id, name, cell(seconds), sep="\\t")
"""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    rows = record.read_rows(ROOT / "benchmarks" / "results" / "cuda_predicted.csv")
    kept = ["\t".join(row[name] for name in ("card", "test", "provider", "seconds")) for row in rows]
    assert sorted(kept) == sorted(run.stdout.splitlines())


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
