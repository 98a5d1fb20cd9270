"""Folders of files as datasets."""

import gzip
import json

import numpy as np
import pytest
import scipy.sparse
from data_cases import FAST, XMC, answers, random_split, run, same, write_npz_pair

from mach_ext import data
from mach_ext.data import Dataset, Split, Vectorizer, load, read_folder, write_folder, write_npz


@pytest.mark.parametrize("format", ["npz", "xmc"])
def test_folder_round_trip(tmp_path, format):
    vectorizer = Vectorizer([f"word{i}" for i in range(12)], np.arange(1, 13) / 7)
    written = Dataset(
        "name",
        tmp_path,
        train=Split(*vars(random_split(20)).values()),
        dev=random_split(8, seed=1),
        test=random_split(9, seed=2),
        label_names=[f"label {i}" for i in range(7)],
        feature_names=vectorizer.vocabulary,
        vectorizer=vectorizer,
    )
    write_folder(tmp_path / "out", written, format=format)
    read = read_folder(tmp_path / "out")
    assert read.name == "out"
    assert list(read.splits) == ["train", "dev", "test"]
    for split in written.splits:
        assert same(read.splits[split].X, written.splits[split].X)
        assert same(read.splits[split].Y, written.splits[split].Y)
    assert read.label_names == written.label_names
    assert read.feature_names == written.feature_names
    assert read.vectorizer.to_json() == vectorizer.to_json()
    assert read.info()["splits"]["dev"]["documents"] == 8
    json.dumps(read.info())
    with pytest.raises(FileExistsError, match="must not exist yet"):
        write_folder(tmp_path / "out", written)


def test_write_folder_refuses(tmp_path):
    dataset = Dataset("d", tmp_path, random_split())
    with pytest.raises(ValueError, match="format must be npz or xmc, got 'csv'"):
        write_folder(tmp_path / "out", dataset, format="csv")
    with pytest.raises(ValueError, match=r"compression must be one of .*, got '.zip'"):
        write_folder(tmp_path / "out", dataset, format="xmc", compression=".zip")
    assert not (tmp_path / "out").exists()


def test_pecos_layout_with_texts(tmp_path):
    train, test = random_split(6), random_split(4, seed=1)
    (tmp_path / "tfidf-attnxml").mkdir()
    for part, split in (("trn", train), ("tst", test)):
        write_npz(tmp_path / "tfidf-attnxml" / f"X.{part}.npz", split.X)
        write_npz(tmp_path / f"Y.{part}.npz", split.Y)
    (tmp_path / "X.trn.txt").write_text("".join(f"text {i}\n" for i in range(6)))
    (tmp_path / "output-items.txt").write_text("".join(f"label {i}\n" for i in range(7)))
    read = read_folder(tmp_path)
    assert same(read.train.X, train.X)
    assert same(read.test.Y, test.Y)
    assert read.train.texts[5] == "text 5"
    assert read.test.texts is None
    assert read.label_names[6] == "label 6"
    assert read.dev is None
    (tmp_path / "X.trn.txt").write_text("one\n")
    with pytest.raises(ValueError, match=r"X.trn.txt: must have 6 lines, one a document, got 1"):
        read_folder(tmp_path)
    (tmp_path / "Y.tst.npz").unlink()
    (tmp_path / "X.trn.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"X.tst.npz must come with Y.tst.npz"):
        read_folder(tmp_path)


def test_svmlight_folder_shares_base_and_sizes(tmp_path):
    (tmp_path / "train.svm").write_text("0,2 1:0.5 4:2\n1 2:1\n")
    (tmp_path / "test.svm.gz").write_bytes(gzip.compress(b"5 7:1\n"))
    read = read_folder(tmp_path)
    assert read.train.X.shape == (2, 7)
    assert read.train.X.indices.tolist() == [0, 3, 1]
    assert read.train.Y.shape == (2, 6)
    assert read.test.X.indices.tolist() == [6]


def test_json_lines_folder(tmp_path):
    def write(name, *documents):
        lines = [json.dumps({"text": text, "labels": labels}) for text, labels in documents]
        (tmp_path / name).write_text("\n".join(lines) + "\n")

    write("train.jsonl", ("a big cat", ["animal", "cat"]), ("a big dog", ["animal"]), ("big", []))
    write("test.jsonl", ("a dog unheard of", ["dog"]))
    read = read_folder(tmp_path)
    assert read.label_names == ["animal", "cat", "dog"]
    assert read.feature_names == ["a", "big"]
    assert read.train.Y.toarray().tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert read.train.texts[2] == "big"
    assert same(read.test.X, read.vectorizer.transform(["a dog unheard of"]))
    (tmp_path / "labels.txt").write_text("0\tcat\n1\tanimal\n")
    with pytest.raises(ValueError, match=r"test.jsonl: every label must be in labels.txt, got 'dog'"):
        read_folder(tmp_path)
    (tmp_path / "labels.txt").write_text("0\tcat\n1\tanimal\n2\tdog\n")
    assert read_folder(tmp_path).train.Y.toarray().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must have train.txt \(XMC\), .*, got \[\]"):
        read_folder(tmp_path)
    (tmp_path / "train.txt").write_text(XMC)
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(XMC.encode()))
    with pytest.raises(ValueError, match=r"must have only one of these files, got train.txt, train.txt.gz"):
        read_folder(tmp_path)
    (tmp_path / "train.txt.gz").unlink()
    (tmp_path / "train.svm").write_text("1 1:1\n")
    with pytest.raises(ValueError, match="all train files must have the same format, got svmlight, xmc"):
        read_folder(tmp_path)
    (tmp_path / "train.svm").unlink()
    (tmp_path / "test.txt").write_text("1 4 4\n 3:1\n")
    with pytest.raises(ValueError, match=r"test.txt: D and L must be those of train, 3 and 4, got 4 and 4"):
        read_folder(tmp_path)
    (tmp_path / "test.txt").unlink()
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"labels.txt: must have 4 lines, one a column, got 2"):
        read_folder(tmp_path)
    (tmp_path / "labels.txt").unlink()
    (tmp_path / "features.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"features.txt: must have 3 lines, one a column, got 1"):
        read_folder(tmp_path)
    (tmp_path / "features.txt").unlink()
    (tmp_path / "vectorizer.json").write_text(Vectorizer(["a"], [1.0]).to_json())
    with pytest.raises(ValueError, match=r"vectorizer.json: must have D = 3 words, got 1"):
        read_folder(tmp_path)


def test_bibtex_folder(shared_data):
    read = load(shared_data / "bibtex")
    assert (read.num_features, read.num_labels) == (1836, 159)
    assert (len(read.train), len(read.dev), len(read.test)) == (4880 - 488, 488, 2515)
    assert read.info()["splits"]["test"]["nonzeros_per_document"] == pytest.approx(68, abs=1)


def test_an_unseen_label_takes_no_memory_by_its_number(tmp_path):
    (tmp_path / "test.svm").write_text("0,2000000000 0:1\n1,1999999999,2000000000 1:1\n")
    columns = data.Columns(num_features=2, num_labels=2, svmlight_base=0, svmlight_label_base=0)
    test = data.read_folder(tmp_path, columns=columns).test
    assert test.truth.toarray().tolist() == [[1, 0, 0, 1], [0, 1, 1, 1]]


def test_two_sources_of_one_split_are_refused_or_said(tmp_path):
    eye = scipy.sparse.eye(2, format="csr")
    write_npz_pair(tmp_path, eye, eye)
    (tmp_path / "trn_X_Y.txt").write_text("2 2\n1:1\n0:1\n")
    with pytest.raises(ValueError, match=r"must have only one of these files, got Y.trn.npz, trn_X_Y.txt"):
        data.read_folder(tmp_path)
    (tmp_path / "trn_X_Y.txt").unlink()
    (tmp_path / "test.svm").write_text("0 0:1\n")
    read = data.read_folder(tmp_path)
    assert read.test is None
    assert any("test.svm: is left out, because train is in another format" in r for r in read.remarks)


def test_a_narrower_test_file_beside_train(tmp_path):
    (tmp_path / "train.txt").write_text("1 5 4\n0,3 4:1\n")
    (tmp_path / "test.txt").write_text("1 2 3\n2 1:1\n")
    read = data.read_folder(tmp_path)
    assert read.test.X.toarray().tolist() == [[0, 1, 0, 0, 0]]
    assert read.test.Y.toarray().tolist() == [[0, 0, 1, 0]]
    assert any("test.txt: has 2 of 5 features" in remark for remark in read.remarks)


def test_text_lines_with_label_matrices(here, capsys):
    Y = scipy.sparse.csr_matrix(np.eye(5)[np.arange(50) % 5])
    (here / "pecos").mkdir()
    for part, rows in (("trn", 50), ("tst", 10)):
        (here / f"pecos/X.{part}.txt").write_text("".join(f"word{i % 5} text\n" for i in range(rows)))
        scipy.sparse.save_npz(here / f"pecos/Y.{part}.npz", Y[:rows])
    (here / "pecos/output-items.txt").write_text("".join(f"item {i}\n" for i in range(5)))
    read = data.load("pecos", holdout=False)
    assert read.train.texts[7] == "word2 text"
    assert read.label_names[3] == "item 3"
    assert read.num_features == 6
    assert run("train", "--dataset", "pecos", *FAST, "--output", "r") == 0
    assert answers(capsys, "--model-path", "r", "--text", "word3 text") == ["item 3"]
    (here / "deep").mkdir()
    for part, rows in (("trn", 50), ("tst", 10)):
        (here / f"deep/{part}_X.txt").write_text((here / f"pecos/X.{part}.txt").read_text())
        lines = "".join(f"{i % 5}:1\n" for i in range(rows))
        (here / f"deep/{part}_X_Y.txt").write_text(f"{rows} 5\n{lines}")
    again = data.load("deep", holdout=False)
    assert (again.train.X != read.train.X).nnz == (again.test.Y != read.test.Y).nnz == 0
    (here / "deep" / "tst_X.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"tst_X_Y.txt must come with tst_X_Xf.txt, or with texts"):
        data.load("deep")
