"""In which order the command says what it does: remarks never in the midst of a progress bar."""

import json

import pytest

import mach_ext
from mach_ext import cli


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of texts without dev and test splits."""
    folder = tmp_path_factory.mktemp("order")
    lines = [json.dumps({"text": f"word{i % 6}", "labels": [f"topic {i % 6}"]}) for i in range(60)]
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("\n".join(lines) + "\n")
    flags = ("--epochs", "2", "--hidden-size", "8", "--hash-functions", "8", "--buckets", "8", "--no-holdout")
    data, run = str(folder / "data"), folder / "run"
    assert cli.main(["train", "--dataset", data, "--output", str(run), "--quiet", *flags]) == 0
    return run


def test_remarks_of_predict_come_after_its_bar(trained, tmp_path, capsys):
    (tmp_path / "docs.txt").write_text("word1\nunknown\n")
    command = ["predict", "--model-path", str(trained), "--input", str(tmp_path / "docs.txt")]
    assert cli.main([*command, "--input-format", "text", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    bars = [number for number, line in enumerate(lines) if "2doc [" in line]
    (remark,) = [number for number, line in enumerate(lines) if "1 of 2 documents" in line]
    assert bars
    assert max(bars) < remark
    assert lines[remark].startswith("mach-ext: 1 of 2 documents (50.0%) have no features")


def test_explain_writes_its_record_before_its_pages(trained, tmp_path, capsys):
    page, folder = tmp_path / "page.html", tmp_path / "folder"
    command = ["explain", "--model-path", str(trained), "--text", "word1", "--output", str(folder)]
    assert cli.main([*command, "--html", str(page)]) == 0
    written = [line.rpartition("/")[2] for line in capsys.readouterr().err.splitlines() if "written" in line]
    assert written == ["explanation.json", "explanation.png", "page.html", "explanation.html"]


def test_seconds_of_a_training_name_every_stage(trained):
    assert list(mach_ext.Run.open(trained).metrics["seconds"]) == ["load", "race", "train", "evaluate", "fit"]
