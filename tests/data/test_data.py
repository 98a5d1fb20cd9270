"""Files, folders, datasets by name, raw text and batches. The text format's own tests: test_parser.py."""

import bz2
import doctest
import errno
import gzip
import hashlib
import http.server
import importlib
import io
import json
import lzma
import math
import os
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import ROOT
from scipy import sparse

from mach_ext import data
from mach_ext.data import (
    Dataset,
    Split,
    Vectorizer,
    check_csr,
    check_labels,
    iter_batches,
    iter_jsonl,
    iter_on_device,
    load,
    read_folder,
    read_npz,
    read_xmc,
    registry,
    wordnet,
    write_folder,
    write_npz,
    write_xmc,
)
from mach_ext.data.atomic import atomic_write, new_folder
from mach_ext.data.formats import label_matrix, read_lines, read_names
from mach_ext.data.sources import read_input

XMC = "2 3 4\n1,3 0:1 2:0.5\n 1:2\n"
COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder of the test's own, so that no test sees or changes the user's."""
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def shared_data():
    """Real datasets beside the checkout, where there are any."""
    folder = Path(os.environ.get("MACH_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "eurlex57k").is_dir():
        pytest.skip(f"no real datasets in {folder}; set MACH_SHARED_DATA")
    return folder


def random_split(rows=30, features=12, labels=7, seed=0):
    rng = np.random.default_rng(seed)
    X = sparse.random(rows, features, density=0.3, format="csr", dtype=np.float32, rng=rng)
    Y = sparse.random(rows, labels, density=0.3, format="csr", dtype=np.float32, rng=rng)
    return Split(check_csr(X), check_labels(Y))


def same(one, other):
    return one.shape == other.shape and (sparse.csr_matrix(one) != sparse.csr_matrix(other)).nnz == 0


# ------------------------------------------------------------------------------------------- matrices


def test_check_csr_makes_canonical_without_touching_the_argument():
    X = sparse.csr_matrix((np.array([1.0, 2, 3, 4]), [2, 0, 2, 1], [0, 3, 4]), shape=(2, 3))
    checked = check_csr(X)
    assert checked.dtype == np.float32
    assert checked.has_canonical_format
    assert checked.toarray().tolist() == [[2, 0, 4], [0, 4, 0]]
    assert X.indices.tolist() == [2, 0, 2, 1]
    assert X.data.tolist() == [1, 2, 3, 4]


def test_check_csr_sums_integers_without_overflow():
    X = sparse.csr_matrix((np.array([100, 100], np.int8), [1, 1], [0, 2]), shape=(1, 2))
    assert check_csr(X).toarray().tolist() == [[0, 200]]


@pytest.mark.parametrize(
    "form", ["csr_array", "csc_matrix", "coo_array", "lil_matrix", "dok_matrix", "bsr_matrix"]
)
def test_check_csr_takes_any_sparse_form(form):
    dense = np.array([[0, 1.5, 0], [2, 0, 0]])
    checked = check_csr(getattr(sparse, form)(dense))
    assert isinstance(checked, sparse.csr_matrix)
    assert checked.toarray().tolist() == dense.tolist()


def test_check_csr_shares_memory_where_nothing_changes():
    X = random_split().X
    assert np.shares_memory(check_csr(X).data, X.data)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        ([[1.0]], TypeError, "X: must be a SciPy sparse matrix, a NumPy array or a torch tensor, got list"),
        (np.ma.array(np.eye(2)), TypeError, "X: must be a SciPy sparse matrix, .*, got MaskedArray"),
        (sparse.eye(2) * 1j, TypeError, "X: must hold real numbers, got dtype complex128"),
        (np.ones((1, 2, 3)), ValueError, r"X: must have two dimensions, or one .*, got shape \(1, 2, 3\)"),
        (sparse.csr_matrix((1, 2**31)), ValueError, r"X: rows and columns must be below 2\^31, got shape"),
        (sparse.diags([1.0, np.nan]), ValueError, "X, row 1: values must be finite .*, got nan in column 1"),
        (sparse.diags([np.inf, 1.0]), ValueError, "X, row 0: values must be finite .*, got inf in column 0"),
        (sparse.diags([1.0, 1e39]), ValueError, "X, row 1: values must be finite and fit float32"),
    ],
)
def test_check_csr_refuses(matrix, error, message):
    with pytest.raises(error, match=message):
        check_csr(matrix)


@pytest.mark.parametrize(
    ("indices", "indptr", "message"),
    [
        ([0, 3], [0, 1, 2], r"X: .*indices must be < 3, got shape \(., .\), 2 values"),
        ([0, -1], [0, 1, 2], "X: .*indices must be >= 0"),
        ([0, 1], [0, 2, 1], "X: .*(last value of index pointer|non-decreasing|should be)"),
        ([0, 1], [0, 9, 2], "X: .*(non-decreasing|index pointer)"),
    ],
)
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_check_csr_refuses_broken_structure(form, indices, indptr, message):
    X = sparse.csr_matrix((2, 3)) if form == "csr" else sparse.csc_matrix((3, 2))
    X.data, X.indices, X.indptr = np.ones(2), np.array(indices, np.int32), np.array(indptr, np.int32)
    with pytest.raises(ValueError, match=message):
        check_csr(X)


def test_check_labels():
    Y = sparse.csr_matrix((np.array([2.0, 0.0, 1.0]), [0, 1, 2], [0, 3]), shape=(1, 3))
    assert check_labels(Y).toarray().tolist() == [[1, 0, 1]]
    assert check_labels(Y).nnz == 2
    assert Y.nnz == 3


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(tmp_path, suffix):
    path = tmp_path / f"train.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](XMC.encode()))
    assert read_xmc(path).X.toarray().tolist() == [[1, 0, 0.5], [0, 2, 0]]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["truncated", "garbled", "not compressed"])
@pytest.mark.parametrize("read", [read_xmc, lambda path: list(data.iter_xmc(path))])
def test_damaged_compressed_files(tmp_path, suffix, damage, read):
    rng = np.random.default_rng(0)
    lines = [f"0 0:{value:.6f}\n" for value in rng.random(5000)]
    whole = COMPRESS[suffix](("5000 3 4\n" + "".join(lines)).encode())
    half = len(whole) // 2
    path = tmp_path / f"train.txt{suffix}"
    path.write_bytes(
        {
            "truncated": whole[:half],
            "garbled": whole[:half] + bytes(b ^ 0xFF for b in whole[half : half + 50]) + whole[half + 50 :],
            "not compressed": XMC.encode(),
        }[damage]
    )
    with pytest.raises(
        ValueError, match=rf"train.txt{suffix}: the {suffix} file must be whole and undamaged, got"
    ):
        read(path)


@pytest.mark.parametrize("suffix", [".xz", ".bz2", ".gz"])
def test_what_follows_a_compressed_stream_is_not_lost(tmp_path, suffix):
    path, first, second = tmp_path / f"a{suffix}", COMPRESS[suffix](b"one\n"), COMPRESS[suffix](b"two\n")
    for content in (first + second, first + second + bytes(8)):
        path.write_bytes(content)
        assert read_input(path) == b"one\ntwo\n"
    for content in (first + b"x" + second, first + second[1:], first + second[:-1], b"", first + b"garbage"):
        path.write_bytes(content)
        if not content and suffix == ".gz":
            continue  # which Python takes for no stream at all
        with pytest.raises(ValueError, match="must be whole and undamaged"):
            read_input(path)


def test_missing_file_stays_a_missing_file(tmp_path):
    for name in ("a.txt", "a.txt.xz"):
        with pytest.raises(FileNotFoundError, match=name):
            read_xmc(tmp_path / name)


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_atomic_write(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail():
        with atomic_write(path) as file:
            file.write(b"new, but never finished")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert read_input(path) == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_disk_full_while_writing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    split = random_split()
    path = tmp_path / "a.txt"
    path.write_text("kept")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_xmc(path, split.X, split.Y)
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "folder", Dataset("d", tmp_path, split))
    assert path.read_text() == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_write_xmc_refuses_unequal_rows(tmp_path):
    with pytest.raises(ValueError, match="X and Y: must have as many rows, got 3 and 2 documents"):
        write_xmc(tmp_path / "a.txt", sparse.eye(3), sparse.eye(2))
    assert not list(tmp_path.iterdir())


def test_npz_pair(tmp_path):
    split = random_split()
    write_npz(tmp_path / "X.npz", split.X)
    sparse.save_npz(tmp_path / "Y.npz", split.Y.tocsc() * 5)
    (tmp_path / "X.npz.xz").write_bytes(lzma.compress((tmp_path / "X.npz").read_bytes()))
    for name in ("X.npz", "X.npz.xz"):
        read = read_npz(tmp_path / name, tmp_path / "Y.npz")
        assert same(read.X, split.X)
        assert same(read.Y, split.Y)


def test_damaged_npz(tmp_path):
    split = random_split(rows=400)
    write_npz(tmp_path / "X.npz", split.X)
    write_npz(tmp_path / "Y.npz", split.Y)
    whole = (tmp_path / "X.npz").read_bytes()
    garbled = bytearray(whole)
    garbled[300:340] = bytes(40)
    for bad in (whole[: len(whole) // 2], bytes(garbled), b"", b"PK\x03\x04"):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad.npz: must be a whole scipy.sparse.save_npz file, got"):
            read_npz(tmp_path / "bad.npz", tmp_path / "Y.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match=r"other.npz: must be a whole scipy.sparse.save_npz file"):
        read_npz(tmp_path / "other.npz", tmp_path / "Y.npz")
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickle.npz", format=b"csr", shape=(1, 1), data=pickled, indices=[0], indptr=[0, 1])
    with pytest.raises(ValueError, match=r"pickle.npz: must be a whole .*allow_pickle=False"):
        read_npz(tmp_path / "pickle.npz", tmp_path / "Y.npz")
    write_npz(tmp_path / "short.npz", split.Y[:-1])
    with pytest.raises(ValueError, match=r"X.npz and .*short.npz: must have as many rows, got 400 and 399"):
        read_npz(tmp_path / "X.npz", tmp_path / "short.npz")
    sparse.save_npz(tmp_path / "nan.npz", sparse.csr_matrix([[1, np.nan]]))
    with pytest.raises(ValueError, match=r"nan.npz, row 0: values must be finite"):
        read_npz(tmp_path / "nan.npz", tmp_path / "Y.npz")


def test_names_and_lines(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeff7\tcat\r\nx:1\tbig dog\r\nplain \u0085 name\r\n".encode())
    assert read_names(path, 3) == ["cat", "big dog", "plain \u0085 name"]
    with pytest.raises(ValueError, match=r"labels.txt: must have 4 lines, one a column, got 3"):
        read_names(path, 4)
    path.write_bytes(b"good\nbad \xff\n")
    with pytest.raises(ValueError, match=r"labels.txt, line 2: text must be UTF-8, got byte 0xff"):
        read_lines(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"a.jsonl, line 3: a line must be a JSON object in UTF-8 \("),
        (b'{"text": "\xff"}', r"line 3: a line must be a JSON object in UTF-8 \("),
        (b"[1]", r"line 3: a line must be a JSON object, got \[1\]"),
        (b"{}", r'line 3: "text" must be a string, got None'),
        (b'{"text": 5}', r'line 3: "text" must be a string, got 5'),
        (b'{"text": "", "labels": "a"}', r"""line 3: "labels" must be a list of strings, got 'a'"""),
        (b'{"text": "", "labels": [1]}', r'line 3: "labels" must be a list of strings, got \[1\]'),
    ],
)
def test_json_lines_errors(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine", "labels": []}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        list(iter_jsonl(path))


def test_json_lines_without_labels(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        gzip.compress(b'\xef\xbb\xbf{"text": "a", "labels": ["x"], "id": 3}\r\n\r\n{"text": "b"}')
    )
    assert list(iter_jsonl(path)) == [("a", ["x"]), ("b", None)]
    with pytest.raises(
        ValueError, match=r'a.jsonl.gz: every document must have "labels", got none in document 2'
    ):
        data.read_jsonl(path)
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(ValueError, match=r"a.jsonl.gz: the file must not be empty"):
        data.read_jsonl(path)
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-10])
    with pytest.raises(ValueError, match=r"a.jsonl.gz: the .gz file must be whole"):
        list(iter_jsonl(path))


def test_label_matrix():
    Y = label_matrix([["b", "a", "b"], [], ["c"]], ["a", "b", "c"])
    assert Y.toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"test.jsonl: every label must be in labels.txt, got 'd'"):
        label_matrix([["d"]], ["a", "b", "c"], "test.jsonl")
    with pytest.raises(ValueError, match="label names must differ, got 2 names, 1 different"):
        label_matrix([["a"]], ["a", "a"])


# ------------------------------------------------------------------------------------------- folders


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
    with pytest.raises(ValueError, match=r"must have one of these, got train.txt, train.txt.gz"):
        read_folder(tmp_path)
    (tmp_path / "train.txt.gz").unlink()
    (tmp_path / "train.svm").write_text("1 1:1\n")
    with pytest.raises(ValueError, match="train must be there in one format, got svmlight, xmc"):
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


def test_new_folder_keeps_the_faster_one(tmp_path):
    with new_folder(tmp_path / "a") as mine:
        (mine / "file").write_text("mine")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "file").write_text("theirs")
    assert (tmp_path / "a" / "file").read_text() == "theirs"
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "b"):
        raise RuntimeError("stop")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


# ------------------------------------------------------------------------------------------- by name


def test_holdout_is_a_tenth_and_fixed(tmp_path):
    (tmp_path / "train.txt").write_text("57 60 60\n" + "".join(f"{i} {i}:1\n" for i in range(57)))
    read = load(tmp_path)
    assert read.dev.X.indices.tolist() == [2, 32, 33, 42, 53]
    assert sorted([*read.train.X.indices, *read.dev.X.indices]) == list(range(57))
    assert "splitmix64" in read.dev_rule
    assert load(tmp_path, holdout=False).dev is None
    assert len(load(tmp_path, holdout=False).train) == 57
    (tmp_path / "dev.txt").write_text("1 60 60\n59 59:1\n")
    assert len(load(tmp_path).train) == 57
    assert load(tmp_path).dev_rule == "the file dev.txt"


def test_unknown_dataset_lists_known_ones_and_the_folder(home):
    for name in ("wiki11", "./nowhere", "", "../home"):
        with pytest.raises(
            ValueError, match=r"load: .*data folder .*home, or one of wordnet, eurlex-4k.*got"
        ):
            load(name)
    with pytest.raises(ValueError, match=r"fetch: the name must be one of wordnet, .*, got 'wiki10'"):
        data.fetch("wiki10")
    assert not home.exists()


def test_folder_in_the_data_folder(home):
    (home / "mine").mkdir(parents=True)
    (home / "mine" / "train.txt").write_text(XMC)
    assert load("mine").name == "mine"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files``; understands ranges; closes the connection after ``limit`` bytes."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str | None]]
    limit = 10**9
    ranges = True

    def do_GET(self):
        body = self.files.get(self.path)
        begin = self.headers.get("Range")
        self.asked.append(begin)
        if body is None:
            self.send_error(404)
            return
        start = int(begin.removeprefix("bytes=").removesuffix("-")) if begin and self.ranges else 0
        if start >= len(body) and begin:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if begin and self.ranges else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + self.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server on this machine in place of the archive's; yields its handler class."""
    handler = type("Handler", (Server,), {"files": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(registry, "BASE_URL", f"http://127.0.0.1:{httpd.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield handler
        httpd.shutdown()
        thread.join()


def tarball(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def npz(matrix):
    buffer = io.BytesIO()
    sparse.save_npz(buffer, matrix)
    return buffer.getvalue()


def pecos_archive(**extra):
    train, test = random_split(30), random_split(8, seed=1)
    return tarball(
        {
            "xmc-base/wiki10-31k/tfidf-attnxml/X.trn.npz": npz(train.X),
            "xmc-base/wiki10-31k/tfidf-attnxml/X.tst.npz": npz(test.X),
            "xmc-base/wiki10-31k/Y.trn.npz": npz(train.Y),
            "xmc-base/wiki10-31k/Y.tst.npz": npz(test.Y),
            "xmc-base/wiki10-31k/X.trn.txt": b"large and not wanted\n",
            **extra,
        }
    )


def test_download_by_alias_and_again_from_the_folder(server, home, capsys):
    archive = pecos_archive()
    server.files["/wiki10-31k.tar.gz"] = archive
    read = load("wiki10")
    assert read.name == "wiki10-31k"
    assert (len(read.train), len(read.dev), len(read.test)) == (27, 3, 8)
    assert "wiki10-31k.tar.gz" in capsys.readouterr().err  # the progress bar
    source = json.loads((home / "wiki10-31k" / "source.json").read_text())
    assert source["sha256"] == hashlib.sha256(archive).hexdigest()
    assert sorted(entry.name for entry in home.iterdir()) == [".wiki10-31k.lock", "wiki10-31k"]
    server.files.clear()
    assert same(load("Wiki10_31K").train.X, read.train.X)


def test_download_resumes(server, home):
    archive = pecos_archive()
    server.files["/wiki10-31k.tar.gz"] = archive
    server.limit = len(archive) // 3 + 1
    assert len(load("wiki10").test) == 8
    third = server.limit
    assert server.asked == [None, f"bytes={third}-", f"bytes={2 * third}-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_from_an_earlier_part(server, tmp_path, ranges):
    body = bytes(range(256)) * 50
    server.files["/a"] = body
    server.ranges = ranges
    (tmp_path / "a.part").write_bytes(body[:5000])
    data.download(
        f"{registry.BASE_URL}/a", tmp_path / "a", sha256=hashlib.sha256(body).hexdigest(), progress=False
    )
    assert (tmp_path / "a").read_bytes() == body
    assert server.asked == ["bytes=5000-"]
    assert not (tmp_path / "a.part").exists()


def test_download_part_that_is_complete_or_too_long(server, tmp_path):
    server.files["/a"] = b"12345"
    (tmp_path / "a.part").write_bytes(b"12345")
    data.download(f"{registry.BASE_URL}/a", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == b"12345"
    (tmp_path / "a.part").write_bytes(b"another file, longer")
    with pytest.raises(ConnectionError, match="/a: could not be downloaded"):
        data.download(f"{registry.BASE_URL}/a", tmp_path / "a", progress=False)
    data.download(f"{registry.BASE_URL}/a", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == b"12345"


def test_download_with_another_checksum(server, tmp_path):
    server.files["/a"] = b"12345"
    with pytest.raises(ValueError, match=r"/a: the download must have sha256 00, got 5994471abb.*dropped"):
        data.download(f"{registry.BASE_URL}/a", tmp_path / "a", sha256="00", progress=False)
    assert not list(tmp_path.iterdir())


def test_no_network_says_what_to_put_where(monkeypatch, home):
    monkeypatch.setattr(registry, "BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(
        ConnectionError,
        match=r"eurlex-4k: http://127.0.0.1:9/eurlex-4k.tar.gz: could not be downloaded \(.*refused.*\)\. "
        r"Without network, put its archive at .*home/eurlex-4k.tar.gz, or the files X.trn.npz, .* into "
        r".*home/eurlex-4k",
    ):
        load("eurlex-4k")
    assert not (home / "eurlex-4k").exists()


def test_leftovers_of_a_killed_process_go(server, home):
    server.files["/wiki10-31k.tar.gz"] = pecos_archive()
    (home / ".wiki10-31k.abc").mkdir(parents=True)
    (home / ".wiki10-31k.abc" / "X.trn.npz").write_text("half")
    data.fetch("wiki10-31k")
    assert sorted(entry.name for entry in home.iterdir()) == [".wiki10-31k.lock", "wiki10-31k"]


def test_server_without_the_file(server):
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*404"):
        load("amazon-3m")


@pytest.mark.parametrize("damage", ["truncated", "no labels", "rows"])
def test_downloaded_archive_is_checked(server, home, damage):
    whole = pecos_archive()
    server.files["/wiki10-31k.tar.gz"] = {
        "truncated": whole[: len(whole) // 2],
        "no labels": tarball({"a/tfidf-attnxml/X.trn.npz": npz(random_split().X)}),
        "rows": pecos_archive(**{"xmc-base/wiki10-31k/Y.trn.npz": npz(random_split(29).Y)}),
    }[damage]
    with pytest.raises(
        ValueError, match=r"wiki10-31k: the archive must hold whole, matching files, .*it was deleted"
    ):
        load("wiki10")
    assert [entry.name for entry in home.iterdir()] == [".wiki10-31k.lock"]
    server.files["/wiki10-31k.tar.gz"] = whole
    assert len(load("wiki10").test) == 8


def test_archive_of_the_user_is_used_and_kept(home):
    home.mkdir()
    (home / "wiki10-31k.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"matching files, .*\(it is .*wiki10-31k.tar.gz\)"):
        load("wiki10")
    (home / "wiki10-31k.tar.gz").write_bytes(pecos_archive())
    assert len(load("wiki10").test) == 8
    assert (home / "wiki10-31k.tar.gz").exists()


def test_hostile_archive_writes_nothing_outside(server, home, tmp_path):
    hostile = {
        "../../evil/Y.trn.npz": b"x",
        f"{tmp_path}/evil.txt": b"x",
        "output-items.txt": None,  # a link to a system file
        "../evil.txt": b"x",
    }
    server.files["/wiki10-31k.tar.gz"] = pecos_archive(**hostile)
    load("wiki10")
    assert sorted(p.name for p in (home / "wiki10-31k").iterdir()) == [
        *("X.trn.npz", "X.tst.npz", "Y.trn.npz", "Y.tst.npz", "source.json")
    ]
    assert not list(tmp_path.rglob("evil*"))


# ------------------------------------------------------------------------------------------- text


def test_vectorizer_by_hand():
    texts = ["The cat, CAT sat", "a_cat", "dog " + "x" * 40, "dog the", "x" * 39 + " " + "x" * 40]
    vectorizer = Vectorizer.fit(texts)
    assert vectorizer.vocabulary == ["cat", "dog", "the"]
    idf = math.log(6 / 3) + 1  # each occurs in two of five texts
    np.testing.assert_allclose(vectorizer.idf, idf, rtol=1e-6)
    row = np.array([1 + math.log(2), 0, 1])  # cat twice; one idf for all cancels
    expected = [row / np.linalg.norm(row), [1, 0, 0], [0, 1, 0], [0, 0.5**0.5, 0.5**0.5], [0, 0, 0]]
    X = vectorizer.transform(texts)
    assert X.dtype == np.float32
    np.testing.assert_allclose(X.toarray(), expected, rtol=1e-6)


def test_vectorizer_words_are_the_ones_it_counts():
    vectorizer = Vectorizer(["é1", "big", "cat", "x" * 39], [1.0] * 4)
    text = "Big_CAT, cats É1!  " + "x" * 39 + " " + "x" * 40
    words = [(text[start:end], column) for start, end, column in vectorizer.words(text)]
    assert words == [("Big", 1), ("CAT", 2), ("cats", None), ("É1", 0), ("x" * 39, 3)]
    assert sorted(column for _, column in words if column is not None) == [
        *vectorizer.transform([text]).indices
    ]


def test_vectorizer_json_is_exact():
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}é" for i in range(300)])
    texts = [" ".join(rng.choice(words, 20)) for _ in range(200)]
    vectorizer = Vectorizer.fit(texts, max_features=250)
    again = Vectorizer.from_json(vectorizer.to_json())
    assert len(again.vocabulary) == 250
    assert again.idf.tobytes() == vectorizer.idf.tobytes()
    X, Y = vectorizer.transform(texts), again.transform(texts)
    assert X.data.tobytes() == Y.data.tobytes()
    assert X.indices.tobytes() == Y.indices.tobytes()
    assert np.shares_memory(check_csr(X).data, X.data)  # canonical already
    assert again.to_json() == vectorizer.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "v.json: must be a vectorizer's JSON, got: JSONDecodeError"),
        (b"\xff", "v.json: must be a vectorizer's JSON, got: UnicodeDecodeError"),
        ("[]", "v.json: must be a vectorizer's JSON, got: TypeError"),
        ('{"vocabulary": []}', "v.json: must be a vectorizer's JSON, got: KeyError"),
        ('{"type": "tfidf", "vocabulary": [1], "idf": [1]}', "v.json: .*the vocabulary strings"),
        ('{"type": "tfidf", "vocabulary": [], "idf": []}', "v.json: .*not 0, got 0 and 0"),
        (
            '{"type": "tfidf", "vocabulary": ["a"], "idf": [1, 2]}',
            "v.json: .*of one length, not 0, got 1 and 2",
        ),
        ('{"type": "tfidf", "vocabulary": ["a", "a"], "idf": [1, 2]}', "v.json: .*there once, got one twice"),
        ('{"type": "tfidf", "vocabulary": ["a"], "idf": [NaN]}', "v.json: .*every idf must be finite"),
        ('{"type": "tfidf", "vocabulary": ["a"], "idf": [null]}', "v.json: .*TypeError"),
    ],
)
def test_vectorizer_json_errors(text, message):
    with pytest.raises(ValueError, match=message):
        Vectorizer.from_json(text, source="v.json")


def test_vectorizer_without_words():
    with pytest.raises(ValueError, match=r"Vectorizer.fit: some word must occur in min_df = 2 texts, got"):
        Vectorizer.fit(["a", "b"])
    with pytest.raises(ValueError, match=r"Vectorizer.fit: some word must occur in min_df = 2 texts, got"):
        Vectorizer.fit(["", "!"])


# ------------------------------------------------------------------------------------------- wordnet

# offset, type, words, pointers (symbol, offset, letter), gloss
SYNSETS = {
    "data.noun": [
        ("00000001", "n", ["entity"], [("~", "00000002", "n")], "that which is"),
        (
            "00000002",
            "n",
            ["animal", "living_beast"],
            [("@", "00000001", "n"), ("+", "00000001", "v")],
            "it lives",
        ),
        ("00000003", "n", ["cat"], [("@", "00000002", "n")], 'a small animal; "the cat"'),
        ("00000004", "n", ["Tom"], [("@i", "00000003", "n"), ("@", "00000005", "n")], "a cat"),
        ("00000005", "n", ["loop"], [("@", "00000006", "n")], "goes round"),
        ("00000006", "n", ["pool"], [("@", "00000005", "n")], "round goes"),
    ],
    "data.verb": [("00000001", "v", ["be"], [], "exist | or not")],
    "data.adj": [("00000001", "s", ["feline(p)"], [("&", "00000001", "s")], "of cats")],
    "data.adv": [("00000001", "r", ["away"], [], "not here")],
}


def write_wordnet(folder):
    folder.mkdir()
    for name, synsets in SYNSETS.items():
        lines = ["  1 This software and database is being provided to you  \n"]
        for offset, kind, words, pointers, gloss in synsets:
            listed = " ".join(f"{word} 0" for word in words)
            links = "".join(f" {symbol} {to} {letter} 0000" for symbol, to, letter in pointers)
            frames = " 01 + 08 00" if kind == "v" else ""
            counted = f"{len(words):02x} {listed} {len(pointers):03d}{links}"
            lines.append(f"{offset} 03 {kind} {counted}{frames} | {gloss}  \n")
        (folder / name).write_text("".join(lines))
    return folder


def test_wordnet_synsets(tmp_path):
    synsets = wordnet.read_synsets(write_wordnet(tmp_path / "wn"))
    assert list(synsets)[:2] == ["n00000001", "n00000002"]
    assert synsets["n00000002"].words == ["animal", "living beast"]
    assert synsets["n00000002"].parents == ["n00000001"]
    assert synsets["n00000003"].gloss == 'a small animal; "the cat"'
    assert synsets["v00000001"].gloss == "exist | or not"
    assert "a00000001" in synsets  # a satellite counts as an adjective
    above = wordnet.hypernyms("n00000004", synsets)
    assert above == {"n00000003", "n00000002", "n00000001", "n00000005", "n00000006"}
    assert wordnet.hypernyms("n00000005", synsets) == {"n00000006"}  # a cycle ends, itself excluded


def test_wordnet_build_small(tmp_path, monkeypatch):
    folder = write_wordnet(tmp_path / "wn")
    monkeypatch.setattr(wordnet, "MAX_SHARE", 0.4)  # of five documents: two
    monkeypatch.setattr(wordnet, "_in_test", lambda key: key == "n00000004")
    built = wordnet.build(folder)
    # entity is on three documents and goes, then animal, which had no other label, goes too.
    assert built.label_names == ["animal, living beast", "cat", "loop", "pool"]
    assert built.train.texts == ['a small animal; "the cat"', "goes round", "round goes"]
    assert built.train.Y.toarray().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert built.test.Y.toarray().tolist() == [[1, 1, 1, 1]]
    assert built.feature_names == ["goes", "round"]
    with pytest.raises(
        ValueError, match=r"wordnet must have .*\(84150, 9626, 27997, 20430, 19718\), .*got \(3, 1, 2"
    ):
        wordnet.check(built)


def test_wordnet_errors(tmp_path):
    folder = write_wordnet(tmp_path / "wn")
    with pytest.raises(ValueError, match="wn: some document must have a label, got none in 9 synsets"):
        wordnet.build(folder)  # all labels are on more than 2 % of the documents
    good = (folder / "data.noun").read_text()
    for old, new in [
        ("00000003 03 n", "0000003 03 n"),
        ("00000003 03 n", "00000003 03 q"),
        (" | a cat", ""),
        ("@i 00000003 n 0000", "@i 00000003"),
        ("01 Tom", "zz Tom"),
    ]:
        assert old in good
        (folder / "data.noun").write_text(good.replace(old, new))
        with pytest.raises(
            ValueError, match=r"data.noun, line \d: must be a line of a WordNet 3.0 data file, got"
        ):
            wordnet.build(folder)
    (folder / "data.noun").write_text(good.replace("@ 00000001 n", "@ 00000009 n"))
    with pytest.raises(ValueError, match="wn: every hypernym must be a synset, got n00000009"):
        wordnet.build(folder)


def test_wordnet_is_found_in_wnhome(tmp_path, home, monkeypatch):
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.delenv("WNHOME", raising=False)
    assert wordnet.find() is None
    write_wordnet(tmp_path / "dict")
    for place in (tmp_path / "dict", tmp_path):
        monkeypatch.setenv("WNHOME", str(place))
        assert wordnet.find_or_fetch() == tmp_path / "dict"
    monkeypatch.delenv("WNHOME")
    home.mkdir()
    fetched = write_wordnet(home / "wordnet-3.0")
    assert wordnet.find() == fetched
    write_wordnet(tmp_path / "system")
    assert wordnet.find() == tmp_path / "system"


def test_wordnet_from_tarball_when_apt_fails(tmp_path, home, monkeypatch, server):
    folder = write_wordnet(tmp_path / "wn")
    server.files["/WNdb.tar.gz"] = tarball({f"dict/{p.name}": p.read_bytes() for p in folder.iterdir()})
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.delenv("WNHOME", raising=False)
    monkeypatch.setattr(wordnet, "URL", f"{registry.BASE_URL}/WNdb.tar.gz")
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get there
    found = wordnet.find_or_fetch()
    assert found == home / "wordnet-3.0"
    assert sorted(p.name for p in found.iterdir()) == sorted(wordnet.FILES)
    assert wordnet.read_synsets(found) == wordnet.read_synsets(folder)


def test_wordnet_error_names_all_ways(tmp_path, home, monkeypatch):
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.delenv("WNHOME", raising=False)
    monkeypatch.setattr(wordnet, "URL", "http://127.0.0.1:9/WNdb-3.0.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConnectionError,
        match=r"wordnet: .*data.noun.*\$WNHOME.*apt-get install wordnet-base.*home/wordnet-3.0 \(put them "
        r"there\).*apt-get download wordnet-base, or http://127.*; got: .*apt-get.*; .*could not be "
        r"downloaded \(.*refused",
    ):
        load("wordnet")
    assert [entry.name for entry in home.iterdir()] == [".wordnet.lock"]


def test_wordnet_counts(monkeypatch, tmp_path):
    monkeypatch.delenv("MACH_DATA")  # files that were fetched before are in the user's data folder
    try:
        source = wordnet.find_or_fetch()
    except ConnectionError as error:
        pytest.skip(f"no WordNet 3.0 database: {error}")
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("WNHOME", str(source))
    read = load("wordnet", holdout=False)
    info = read.info()
    assert (info["num_features"], info["num_labels"], info["num_labels_in_train"]) == (27997, 20430, 19718)
    train, test = info["splits"]["train"], info["splits"]["test"]
    assert (train["documents"], test["documents"]) == (84150, 9626)
    assert train["labels_per_document"] == pytest.approx(3.51, abs=0.005)
    assert train["nonzeros_per_document"] == pytest.approx(11.2, abs=0.05)
    feline = read.label_names.index("feline, felid")
    documents = np.flatnonzero(read.train.Y[:, [feline]].toarray())
    assert any("domesticated" in read.train.texts[row] for row in documents)
    assert same(read.vectorizer.transform(read.test.texts), read.test.X)
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == [".wordnet.lock", "wordnet"]
    held = load("wordnet")  # from the cache
    assert (len(held.train), len(held.dev), len(held.test)) == (75735, 8415, 9626)


# ------------------------------------------------------------------------------------------- batches


def test_batches_cover_every_document_once():
    split = random_split(rows=25)
    seen = []
    for batch in iter_batches(split.X, split.Y, 4, seed=7):
        n = len(batch.rows)
        X = sparse.csr_matrix((batch.values, batch.indices, batch.indptr), shape=(n, 12))
        Y = sparse.csr_matrix(
            (np.ones(len(batch.label_indices)), batch.label_indices, batch.label_indptr), (n, 7)
        )
        assert same(X, split.X[batch.rows])
        assert same(Y, split.Y[batch.rows])
        seen.append(batch.rows)
    assert [len(rows) for rows in seen] == [4, 4, 4, 4, 4, 4, 1]
    order = np.concatenate(seen)
    assert sorted(order) == list(range(25))
    assert order.tolist() != list(range(25))


def test_batches_on_a_device_are_the_same_batches(device):
    split = random_split(rows=25)
    batches = list(iter_on_device(iter_batches(split.X, split.Y, 4, seed=7), device))
    assert len(batches) == 7
    for moved, batch in zip(batches, iter_batches(split.X, split.Y, 4, seed=7), strict=True):
        assert type(moved) is type(batch)
        assert (moved.rows == batch.rows).all()
        for a, b in zip(moved[:5], batch[:5], strict=True):
            assert a.device.type == device.type
            assert torch.equal(a.cpu(), b)


def test_batches_are_reproducible_and_can_start_anywhere():
    split = random_split(rows=25)

    def rows(**options):
        return [batch.rows.tolist() for batch in iter_batches(split.X, split.Y, 4, **options)]

    assert rows(seed=7, epoch=2) == rows(seed=7, epoch=2)
    assert rows(seed=7, epoch=2) != rows(seed=7, epoch=3)
    assert rows(seed=7, epoch=2) != rows(seed=8, epoch=2)
    assert rows(seed=7, epoch=2, start=3) == rows(seed=7, epoch=2)[3:]
    assert rows() == [list(range(i, min(i + 4, 25))) for i in range(0, 25, 4)]
    with pytest.raises(ValueError, match="iter_batches: batch_size must be at least 1, got 0"):
        list(iter_batches(split.X, split.Y, 0))


# ------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    "name",
    [
        "atomic",
        "batching",
        "documents",
        "folders.write",
        "formats.jsonl",
        "formats.sparse_text",
        "formats.xmc",
        "matrices",
        "parsing",
        "records",
        "registry",
        "text",
    ],
)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"mach_ext.data.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_bibtex_folder(shared_data):
    read = load(shared_data / "bibtex")
    assert (read.num_features, read.num_labels) == (1836, 159)
    assert (len(read.train), len(read.dev), len(read.test)) == (4880 - 488, 488, 2515)
    assert read.info()["splits"]["test"]["nonzeros_per_document"] == pytest.approx(68, abs=1)


def test_eurlex57k_same_as_scikit_learn(shared_data):
    from sklearn.datasets import load_svmlight_file

    path = shared_data / "eurlex57k" / "dev.txt.xz"
    one, two = read_xmc(path, num_threads=1), read_xmc(path, num_threads=2)
    text = read_input(path)
    body = io.BytesIO(text[text.index(b"\n") + 1 :])
    X, labels = load_svmlight_file(body, n_features=56758, multilabel=True, zero_based=True, dtype=np.float32)
    for split in (one, two):
        np.testing.assert_array_equal(split.X.indptr, X.indptr)
        np.testing.assert_array_equal(split.X.indices, X.indices)
        np.testing.assert_array_equal(split.X.data, X.data)
        assert [tuple(map(float, row.indices)) for row in split.Y] == labels
