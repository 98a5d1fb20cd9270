"""Where ids of svmlight files start: kept with the model, and used for every file that is read for it."""

import json

import pytest
from data_cases import FAST, answers, run, svmlight

import mach_ext
from mach_ext import data

# Label j <=> features j, j + 1. Feature ids 1 ... 20: no file of training has a feature 0.
ROWS = [(j, (j, j + 1)) for j in range(19)] * 8


@pytest.fixture(scope="module")
def svm_run(tmp_path_factory):
    """A model of files whose features count from 1, or from 0 without a 0: nobody can tell."""
    folder = tmp_path_factory.mktemp("svm")
    (folder / "data").mkdir()
    (folder / "data" / "train.svm").write_text(svmlight(ROWS, 1))
    (folder / "data" / "test.svm").write_text(svmlight(ROWS[:19], 1))
    arguments = ["train", "--dataset", folder / "data", *FAST]
    assert run(*arguments, "--output", folder / "auto") == 0
    assert run(*arguments, "--output", folder / "zero", "--svmlight-base", "0") == 0
    return folder


@pytest.mark.parametrize("base", ["auto", "zero"])
def test_svmlight_files_are_read_as_in_training(svm_run, here, capsys, base):
    expected = [str(j) for j in range(19)]
    model = ["--model-path", svm_run / base]
    (here / "part.svm").write_text(svmlight(ROWS[3:19], 1))  # without features 1, 2, 3: base 1 or 0 or 4?
    assert answers(capsys, *model, "--input", here / "part.svm") == expected[3:]
    assert answers(capsys, *model, "--split", "test") == expected
    (here / "slice").mkdir()
    (here / "slice" / "test.svm").write_text(svmlight(ROWS[3:19], 1))
    for dataset in ("slice", "part.svm", svm_run / "data"):
        assert run("evaluate", *model, "--dataset", dataset, "--output", "out") == 0
    record = json.loads((here / "out" / "metrics-slice.json").read_text())
    assert record["test"]["P@1"] == 1
    assert json.loads((here / "out" / "metrics-part.svm.json").read_text())["test"] == record["test"]


def test_a_feature_before_the_first_is_refused_or_read(svm_run, here, capsys):
    (here / "zero.svm").write_text("0 0:0.1 1:1\n" + svmlight(ROWS[:19], 1))
    auto, zero = (["--model-path", svm_run / name] for name in ("auto", "zero"))
    assert run("predict", *auto, "--input", "zero.svm") == 1
    assert (
        "zero.svm: ids count from 1, so every feature must be at least 1, got '0' in line 1"
        in capsys.readouterr().err
    )
    assert run("predict", *auto, "--input", "zero.svm", "--svmlight-base", "0") == 1
    told = "got 1 (the model's svmlight files), 0 (--svmlight-base)"
    assert f"zero.svm: all must agree on where features count from, {told}" in capsys.readouterr().err
    assert answers(capsys, *zero, "--input", "zero.svm")[1:] == [str(j) for j in range(19)]
    assert answers(capsys, *zero, "--input", "zero.svm", "--svmlight-base", "0")[1:] == [
        str(j) for j in range(19)
    ]
    for command in ("evaluate", "attack"):
        assert run(command, *zero, "--dataset", svm_run / "data", "--svmlight-base", "1") == 1
        assert "features count from, got 0 (the model's svmlight files), 1" in capsys.readouterr().err
    assert run("predict", *auto, "--input", "wide.svm") == 1
    (here / "wide.svm").write_text("0 1:1\n# a remark\n0 21:1\n")
    assert run("predict", *auto, "--input", "wide.svm") == 1
    assert "wide.svm, line 3: a feature must be below D = 21, got '21:1'" in capsys.readouterr().err


def test_names_tell_where_svmlight_ids_start(here):
    (here / "train.svm").write_text("1 1:1\n2,3 2:1 3:1\n")
    read = data.read_folder(here)
    assert (read.svmlight_base, read.svmlight_label_base) == (1, 0)
    assert read.train.Y.shape == (2, 4)
    (here / "labels.txt").write_text("one\ntwo\nthree\n")  # as many as the largest label: they count from 1
    assert data.read_folder(here).train.Y.toarray().tolist() == [[1, 0, 0], [0, 1, 1]]
    (here / "labels.txt").write_text("3\tthree\n1\tone\n2\ttwo\n")
    read = data.read_folder(here)
    assert read.label_names == ["one", "two", "three"]
    assert read.train.Y.toarray().tolist() == [[1, 0, 0], [0, 1, 1]]
    assert any("labels.txt: labels are numbered from 1" in remark for remark in read.remarks)
    (here / "labels.txt").write_text("0\tzero\n1\tone\n2\ttwo\n3\tthree\n4\tnever\n")
    assert data.read_folder(here).train.Y.toarray().tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
    (here / "features.txt").write_text("a\nb\nc\nd\n")  # one more than the largest: they count from 0
    assert data.read_folder(here).train.X.toarray().tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]
    assert data.load(here, svmlight_base=1).train.X.toarray().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0]]
    (here / "features.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"features.txt: must have 3 lines, one a column, got 2"):
        data.load(here)


def test_contradictions_about_where_ids_start(here, capsys):
    (here / "train.svm").write_text("1 1:1\n2,3 2:1 3:1\n")
    (here / "features.txt").write_text("1\tone\n2\ttwo\n3\tthree\n")
    told = r"must agree on where features count from, got 0 \(--svmlight-base\), 1 \(features.txt\)"
    with pytest.raises(ValueError, match=told):
        data.read_folder(here, svmlight_base=0)
    (here / "labels.txt").write_text("1\ta\n2\tb\n3\tc\n")
    columns = data.read_folder(here).columns
    (here / "labels.txt").write_text("0\ta\n1\tb\n2\tc\n")
    with pytest.raises(
        ValueError, match=r"where labels count from, got 1 \(the model's .*, 0 \(labels.txt\)"
    ):
        data.read_folder(here, columns=columns)
    (here / "labels.txt").write_text("1\ta\n2\tb\n3\tc\n")
    (here / "train.svm").write_text("0 1:1\n2,3 2:1 3:1\n")
    with pytest.raises(ValueError, match=r"train.svm: ids count from 1, so every label must be at least 1"):
        data.read_folder(here)
    (here / "labels.txt").write_text("a\nb\nc\nd\ne\n")  # more than there are, without numbers
    (here / "train.svm").write_text("1 1:1\n2,3 2:1 3:1\n")
    assert any("labels are taken to count from 0" in remark for remark in data.read_folder(here).remarks)


def test_runs_of_before_the_base_was_kept(svm_run, here, capsys):
    model = mach_ext.load(svm_run / "auto")
    record = json.loads(model.attachments["run.json"])
    for key in ("reader", "train", "propensity", "train_documents", "settings"):
        del record[key]
    model.attachments = {"run.json": json.dumps(record).encode()}
    model.save(here / "old")
    old = ["--model-path", "old"]
    assert run("evaluate", *old) == 0  # its own folder shows the base as it did in training
    assert json.loads((here / "old" / "metrics.json").read_text())["test"]["P@1"] == 1
    assert run("evaluate", *old, "--dataset", svm_run / "data", "--split", "dev") == 1
    assert "no dev split" in capsys.readouterr().err
    (here / "part.svm").write_text(svmlight(ROWS[3:19], 1))
    assert run("predict", *old, "--input", "part.svm") == 1
    assert "say whether features count from 0 or 1" in capsys.readouterr().err
    assert answers(capsys, *old, "--input", "part.svm", "--svmlight-base", "1") == [
        str(j) for j in range(3, 19)
    ]


def test_predict_passes_over_labels_and_names_beside_a_file(svm_run, here, capsys):
    (here / "labels.txt").write_text("1\tcat\n2\tdog\n")
    (here / "features.txt").write_text("0\tx\n1\ty\n")  # which would have ids count from 0
    (here / "part.svm").write_text("".join(f"9 {j + 1}:1 {j + 2}:1\n" for j in range(19)))
    assert answers(capsys, "--model-path", svm_run / "auto", "--input", "part.svm") == [
        str(j) for j in range(19)
    ]
