"""deepxml's text formats, and labels that no metric counts."""

import json

import numpy as np
import pytest
import scipy.sparse
from data_cases import FAST, run

import mach_ext
from mach_ext import data, metrics
from mach_ext.data.formats import read_pairs, read_sparse_text


def test_deepxml_folder(tmp_path):
    (tmp_path / "trn_X_Xf.txt").write_text("3 4\n0:0.5 3:1\n\n2:2 1:1\n")
    (tmp_path / "trn_X_Y.txt").write_text("3 2\n1:1\n0:1 1:1\n\n\n")
    (tmp_path / "tst_X_Xf.txt").write_text("1 4\n1:1\n")
    (tmp_path / "tst_X_Y.txt").write_text("1 2\n0:1\n")
    (tmp_path / "Yf.txt").write_text("cat\ndog\n")
    (tmp_path / "filter_labels_test.txt").write_text("0 1\n\n")
    read = data.read_folder(tmp_path)
    assert read.train.X.toarray().tolist() == [[0.5, 0, 0, 1], [0, 0, 0, 0], [0, 1, 2, 0]]
    assert read.train.Y.toarray().tolist() == [[0, 1], [1, 1], [0, 0]]
    assert read.label_names == ["cat", "dog"]
    assert read.test.filtered.toarray().tolist() == [[0, 1]]
    data.write_folder(tmp_path / "copy", read)
    assert data.read_folder(tmp_path / "copy").test.filtered.toarray().tolist() == [[0, 1]]
    (tmp_path / "trn_X_Y.txt").write_text("3 2\n1:0.3\n\n\n")
    with pytest.raises(ValueError, match=r"trn_X_Y.txt: labels must be 1 where they hold"):
        data.read_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: the header must be two counts 'N C' \(rows, columns\), got ''"),
        ("1 2 3\n", r"line 1: the header must be two counts"),
        ("1 2147483648\n", r"line 1: the header's C must be below 2\^31"),
        ("1 2\n2:1\n", r"line 2: a feature must be below D = 2, got '2:1'"),
        ("2 2\n\n1:x\n", r"line 3: a value must be a decimal number, got '1:x'"),
        ("2 2\n1:1\n", r"line 1: the header's N = 2 must be the number of rows, got '1 rows'"),
        ("1 2\n1:1\n0:1\n", r"line 1: the header's N = 1 must be the number of rows, got '2 rows'"),
        ("1 2\n1 0:1\n", r"line 2: a feature must be idx:value, the colon is missing, got '1'"),
    ],
)
def test_sparse_text_errors(tmp_path, text, message):
    path = tmp_path / "trn_X_Xf.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"trn_X_Xf.txt, {message}"):
        read_sparse_text(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0\n2 0\n", "line 2: the document must be below 2, got 2"),
        ("0 3\n", "line 1: the label must be below 3, got 3"),
        ("0\n", "line 1: must be a document and a label number, got '0'"),
        ("0 1 1\n", "line 1: must be a document and a label number"),
        ("0 -1\n", "line 1: must be a document and a label number"),
    ],
)
def test_filter_file_errors(tmp_path, text, message):
    (tmp_path / "filter.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"filter.txt, {message}"):
        read_pairs(tmp_path / "filter.txt", (2, 3))


def test_filtered_labels_are_no_answers(here, capsys):
    """Each document is found by its own label, which the filter excludes: P@1 is that of the second label."""
    rng = np.random.default_rng(0)
    (here / "data").mkdir()
    Y = np.eye(20)[np.arange(200) % 20]
    X = Y.copy()
    Y[np.arange(200), (np.arange(200) + 1) % 20] = rng.random(200) < 0.7
    for split, rows in (("train", slice(0, 160)), ("test", slice(160, 200))):
        data.write_xmc(here / f"data/{split}.txt", scipy.sparse.csr_matrix(X[rows]), Y[rows])
    pairs = "".join(f"{n} {(160 + n) % 20}\n" for n in range(40))
    arguments = ["train", "--dataset", "data", *FAST, "--output", "r"]
    assert run(*arguments) == 0
    plain = json.loads((here / "r/metrics.json").read_text())["test"]
    (here / "data/filter_labels_test.txt").write_text(pairs)
    assert run("evaluate", "--model-path", "r") == 0
    filtered = json.loads((here / "r/metrics.json").read_text())["test"]
    model, dataset = mach_ext.load("r"), data.load("data", holdout=False)
    labels = model.predict(dataset.test.X, 20)[1]
    expected = [[label for label in row if label != (160 + n) % 20][:5] for n, row in enumerate(labels)]
    assert plain["P@1"] > 0.9
    for k in (1, 3, 5):
        assert filtered[f"P@{k}"] == metrics.precision_at_k(dataset.test.Y, np.array(expected), k)
    assert filtered["P@1"] < 0.9
    assert run("attack", "--model-path", "r", "--eps", "0.1") == 0
    attacked = json.loads((here / "r/attack.json").read_text())
    for name in ("P@1", "P@5", "nDCG@3", "PSP@3"):
        assert attacked["clean"][name] == pytest.approx(filtered[name])
    assert attacked["adversarial"][1]["metrics"]["P@1"] <= attacked["clean"]["P@1"]


def test_without_filtered():
    filtered = scipy.sparse.csr_array([[0, 1, 0, 1], [0, 0, 0, 0]])
    kept = metrics.without_filtered([[3, 2, 1, 0], [1, 0, -1, -1]], filtered)
    assert kept.tolist() == [[2, 0, -1, -1], [1, 0, -1, -1]]


def test_filters_pick_the_epoch_too(here):
    (here / "data").mkdir()
    rows = [f"{i % 10},{(i + 1) % 10} {i % 10}:1" for i in range(60)]
    (here / "data" / "train.txt").write_text("\n".join(["60 10 10", *rows]))
    (here / "data" / "filter_labels_train.txt").write_text(
        "".join(f"{i} {label}\n" for i in range(60) for label in (i % 10, (i + 1) % 10))
    )
    assert run("train", "--dataset", "data", *FAST[:-1], "--output", "r") == 0  # dev: a tenth of train
    record = json.loads((here / "r" / "metrics.json").read_text())
    assert record["dev"]["P@1"] == 0  # every right answer is excluded
    assert all(entry["dev"]["P@1"] == 0 for entry in record["history"])
