"""`mach-ext bench`: a table on the screen, a CSV file, and the sizes of a new model or of a run."""

import csv

import pytest

import mach_ext
from mach_ext import cli

SIZES = ("--num-features", 60, "--num-labels", 200, "--hash-functions", 3, "--buckets", 128)
SIZES += ("--hidden-size", 8, "--batch-size", 4, "--k", 3, "--seconds", 0.002)


def run(*argv):
    return cli.main([str(a) for a in argv])


def works(text):
    """The first column of the table."""
    return [line[:27].strip() for line in text.splitlines() if line[-5:].replace(".", "").strip().isdigit()]


def test_bench_of_sizes(tmp_path, capsys):
    assert run("bench", *SIZES, "--output", tmp_path / "bench") == 0
    shown = capsys.readouterr()
    assert "num_features=60, num_labels=200, num_repetitions=3" in shown.out
    assert "documents in a call: 4" in shown.out
    assert works(shown.out)[:2] == ["sparse_linear", "sparse_linear, backward"]
    with open(tmp_path / "bench" / "bench.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["work"] for row in rows] == list(mach_ext.runs.workload.WORKS)
    assert all(float(row["documents_per_second"]) > 0 for row in rows)


def test_bench_of_a_linear_model_has_no_hidden_units(capsys):
    assert run("bench", *SIZES, "--hidden-size", 0, "--quiet") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "label_logits" not in works(shown.out)


def test_bench_of_a_run(tmp_path, capsys):
    mach_ext.MACH(70, 300, 2, 256, 4).save(tmp_path / "model")
    few = ("--batch-size", 2, "--seconds", 0.002)
    assert run("bench", "--model-path", tmp_path / "model", *few) == 0
    assert "num_features=70, num_labels=300" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (("--k", 201), "--k must be in 1 ... L=200, got 201"),
        (("--model-path", "runs/x"), "--num-features is for a new model, and --model-path names a run"),
        (("--device", "tpu"), "--device must be cpu, cuda or cuda:N"),
    ],
)
def test_bench_refuses(given, rule, capsys):
    assert run("bench", *SIZES, *given) == 1
    assert rule in capsys.readouterr().err


def test_bench_of_a_run_that_is_not_there(capsys):
    assert run("bench", "--model-path", "nowhere") == 1
    assert "nowhere: not a mach_ext model" in capsys.readouterr().err


def test_bench_of_fewer_labels_than_the_usual_k(capsys):
    assert run("bench", *SIZES[:-4], "--num-labels", 3, "--seconds", 0.002, "--quiet") == 0
    assert "num_labels=3" in capsys.readouterr().out
