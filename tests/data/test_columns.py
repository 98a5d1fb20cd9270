"""What columns mean: kept with the model, and used for every file that is read for it."""

import json

import numpy as np
import pytest
import scipy.sparse
from data_cases import FAST, answers, run

from mach_ext import data


def test_one_rule_of_widths(here, capsys):
    rng = np.random.default_rng(0)
    folder = here / "full"
    folder.mkdir()
    X = scipy.sparse.random(60, 12, density=0.4, format="csr", rng=rng)
    Y = scipy.sparse.csr_matrix(np.eye(6)[np.arange(60) % 6])
    data.write_xmc(folder / "train.txt", X, Y)
    assert run("train", "--dataset", folder, *FAST, "--epochs", "1", "--output", "r") == 0

    def files(name, X):
        """One slice of documents in each format, as a folder for evaluate and a file for predict."""
        (here / name).mkdir()
        data.write_xmc(here / name / "test.txt", X, Y[: X.shape[0]])
        scipy.sparse.save_npz(here / name / "x.npz", X)
        rows = ((n % 6, zip(row.indices, row.data, strict=True)) for n, row in enumerate(X))
        lines = [f"{label} " + " ".join(f"{j}:{v}" for j, v in row) for label, row in rows]
        (here / name / "x.svm").write_text("\n".join(lines) + "\n")
        return [["--input", here / name / file] for file in ("test.txt", "x.npz", "x.svm")]

    model = ["--model-path", "r", "--svmlight-base", "0"]
    wide = scipy.sparse.csr_matrix(X[:20, :9].toarray())
    given = [answers(capsys, *model, *file) for file in files("narrow", wide)]
    padded = scipy.sparse.hstack([wide, scipy.sparse.csr_matrix((20, 3))], format="csr")
    given += [answers(capsys, *model, *file) for file in files("padded", padded)]
    assert all(one == given[0] for one in given)
    assert run("predict", *model, "--input", "narrow/test.txt") == 0
    assert "narrow/test.txt: has 9 of 12 features; the others count as 0" in capsys.readouterr().err
    assert run("evaluate", *model, "--dataset", "narrow") == 0
    assert "narrow/test.txt: has 9 of 12 features" in capsys.readouterr().err

    beyond = scipy.sparse.hstack([X[:20], np.ones((20, 1))], format="csr")
    for file in files("wide", beyond):
        assert run("predict", *model, *file) == 1
        shown = capsys.readouterr().err
        assert file[1].name in shown
        assert "D" in shown
    assert run("evaluate", *model, "--dataset", "wide") == 1
    assert "wide/test.txt: must have at most the model's D=12 columns" in capsys.readouterr().err


def test_names_of_another_dataset_are_refused(here, capsys):
    for name, label in (("mine", "b"), ("other", "x")):
        (here / name).mkdir()
        (here / name / "train.txt").write_text("4 2 3\n0 0:1\n1 1:1\n2 0:1 1:1\n0 0:1\n")
        (here / name / "labels.txt").write_text(f"a\n{label}\nc\n")
        (here / name / "features.txt").write_text("u\nv\n" if name == "mine" else "u\nw\n")
    assert run("train", "--dataset", "mine", *FAST, "--output", "r") == 0
    capsys.readouterr()
    assert run("evaluate", "--model-path", "r", "--dataset", "other", "--split", "train") == 1
    assert "other/labels.txt: label 1 must be the model's 'b', got 'x'" in capsys.readouterr().err
    (here / "other" / "labels.txt").unlink()
    assert run("evaluate", "--model-path", "r", "--dataset", "other", "--split", "train") == 1
    assert "other/features.txt: feature 1 must be the model's 'v', got 'w'" in capsys.readouterr().err


def test_texts_alone_are_read_by_the_models_own_words(here, capsys):
    def write(folder, split, labels):
        (here / folder).mkdir(exist_ok=True)
        lines = [json.dumps({"text": f"word{i} and word{i}", "labels": [f"topic {i}"]}) for i in labels]
        (here / folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    write("texts", "train", [*range(8)] * 10)
    write("texts", "test", range(8))
    assert run("train", "--dataset", "texts", *FAST, "--output", "r") == 0
    write("later", "test", [3, 5, 90])  # another vocabulary, other labels, no train
    capsys.readouterr()
    assert run("evaluate", "--model-path", "r", "--dataset", "later", "--output", "out") == 0
    shown = capsys.readouterr()
    assert "later/test.jsonl: 1 labels, of 1 documents, are unknown to the model" in shown.err
    test = json.loads((here / "out" / "metrics-later.json").read_text())["test"]
    assert test["P@1"] == pytest.approx(2 / 3)
    assert test["R@10"] == pytest.approx(2 / 3)
    assert test["propensity"] == {"A": 0.55, "B": 1.5, "documents": 80}
    assert answers(capsys, "--model-path", "r", "--input", "later/test.jsonl")[:2] == ["topic 3", "topic 5"]
    assert run("explain", "--sample-id", "1", "--model-path", "r", "--dataset", "later") == 0
    assert run("attack", "--eps", "0.1", "--model-path", "r", "--dataset", "later", "--output", "out") == 0
    clean = json.loads((here / "out" / "attack.json").read_text())["clean"]
    for name in ("P@1", "nDCG@3", "PSP@5"):
        assert clean[name] == pytest.approx(test[name])
    assert run("evaluate", "--model-path", "r", "--dataset", "later", "--split", "train") == 1
    assert "no train split; there are: test" in capsys.readouterr().err
    assert run("train", "--dataset", "later", *FAST) == 1
    assert "must have train.txt" in capsys.readouterr().err
