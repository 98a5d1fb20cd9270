"""Dense features in files beside the documents of a folder, in every format."""

import gzip
import io
import json
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from data_cases import random_split, same, svmlight, write_npz_pair

from mach_ext import data
from mach_ext.data import Columns, Dataset, HybridMatrix, Split, dense_file_of, read_dense, read_folder

E = 4


def numbers(rows, seed=0, columns=E):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def zipped(array):
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def xmc(folder, dense=True, **splits):
    """A folder in XMC format with splits of these lengths; returns their dense features."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, (name, rows) in enumerate(splits.items()):
        split = random_split(rows, seed=seed)
        data.write_xmc(folder / f"{name}.txt", split.X, split.Y)
        arrays[name] = numbers(rows, seed)
        if dense:
            np.save(folder / f"{name}.dense.npy", arrays[name])
    return arrays


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("train.txt", "train.dense.npy"),
        ("d/test.svm.xz", "d/test.dense.npy"),
        ("X.trn.npz", "X.trn.dense.npy"),
        ("X.tst.txt", "X.tst.dense.npy"),
        ("trn_X_Xf.txt.gz", "trn_X_Xf.dense.npy"),
        ("a.b.jsonl", "a.b.dense.npy"),
        ("odd.name", "odd.name.dense.npy"),
    ],
)
def test_the_file_stands_beside_the_documents(documents, expected):
    assert str(dense_file_of(documents)) == expected


def folder_of(kind, folder):
    """A folder of six documents in train and three in test, in any format, without dense features."""
    folder.mkdir()
    sizes = {"train": 6, "test": 3}
    for (name, rows), part in zip(sizes.items(), ("trn", "tst"), strict=True):
        split, texts = random_split(rows), [f"word{i % 3} all" for i in range(rows)]
        if kind == "xmc":
            data.write_xmc(folder / f"{name}.txt", split.X, split.Y)
        elif kind == "svmlight":
            (folder / f"{name}.svm").write_text(svmlight([(i, [0, i]) for i in range(rows)]))
        elif kind == "jsonl":
            lines = [json.dumps({"text": text, "labels": [f"l{i % 2}"]}) for i, text in enumerate(texts)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        else:
            data.write_npz(folder / f"Y.{part}.npz", split.Y)
        if kind == "npz":
            data.write_npz(folder / f"X.{part}.npz", split.X)
        if kind == "lines":
            (folder / f"X.{part}.txt").write_text("\n".join(texts) + "\n")
        if kind == "deepxml":
            (folder / f"Y.{part}.npz").unlink()
            for what, matrix in (("X_Xf", split.X), ("X_Y", split.Y)):
                rows_of = (
                    " ".join(f"{j}:{x:g}" for j, x in zip(r.indices, r.data, strict=True)) for r in matrix
                )
                text = "\n".join([f"{matrix.shape[0]} {matrix.shape[1]}", *rows_of])
                (folder / f"{part}_{what}.txt").write_text(text + "\n")
    return sizes


@pytest.mark.parametrize("names", ["X.{part}.dense.npy", "{part}.dense.npy", "{split}.dense.npy"])
@pytest.mark.parametrize("kind", ["xmc", "svmlight", "jsonl", "npz", "lines", "deepxml"])
def test_every_format_has_dense_features(tmp_path, kind, names):
    sizes = folder_of(kind, tmp_path / "d")
    for (split, rows), part in zip(sizes.items(), ("trn", "tst"), strict=True):
        np.save(tmp_path / "d" / names.format(split=split, part=part), numbers(rows, rows))
    read = read_folder(tmp_path / "d")
    assert read.num_dense == E
    assert not read.remarks or kind == "svmlight"
    for split, rows in sizes.items():
        own = read.splits[split]
        assert isinstance(own.dense, np.memmap)
        assert np.array_equal(own.dense, numbers(rows, rows))
        assert own.documents.shape == (rows, read.num_features + E)
    assert read.columns.num_dense == E
    assert read.info()["num_dense"] == E


@pytest.mark.parametrize("format", ["npz", "xmc"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int8])
def test_a_written_folder_has_the_same_numbers(tmp_path, format, dtype):
    parts = {}
    for seed, name in enumerate(("train", "dev", "test")):
        split = random_split(9, seed=seed)
        parts[name] = Split(split.X, split.Y, dense=(10 * numbers(9, seed)).astype(dtype))
    data.write_folder(tmp_path / "out", Dataset("d", tmp_path, **parts), format=format)
    read = read_folder(tmp_path / "out")
    for name, part in parts.items():
        assert read.splits[name].dense.dtype == dtype
        assert np.array_equal(read.splits[name].dense, part.dense)
        assert same(read.splits[name].X, part.X)
    written = {file.name for file in (tmp_path / "out").glob("*.dense.npy")}
    assert written == (
        {"X.trn.dense.npy", "X.dev.dense.npy", "X.tst.dense.npy"}
        if format == "npz"
        else {"train.dense.npy", "dev.dense.npy", "test.dense.npy"}
    )


def test_a_tenth_is_held_out_with_its_dense_rows(tmp_path):
    dense = xmc(tmp_path / "d", train=40)["train"]
    whole, held = data.load(tmp_path / "d", holdout=False), data.load(tmp_path / "d")
    assert len(held.dev) == 4
    joined = scipy.sparse.csr_matrix(whole.train.documents.join())
    for split in (held.train, held.dev):
        for row in split.documents.join():
            (found,) = (n for n in range(40) if same(joined[n], row))
            assert np.array_equal(row[0, -E:].toarray()[0], dense[found])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: np.save(f, numbers(5)),
            r"test.dense.npy: must have 6 rows, one a document, got shape \(5, 4\)",
        ),
        (
            lambda f: np.save(f, numbers(6, columns=3)),
            r"test.dense.npy: must have E=4 columns, got shape \(6, 3\)",
        ),
        (
            lambda f: np.save(f, numbers(6)[0]),
            r"must have shape \[N, E\] with E at least 1, got shape \(4,\)",
        ),
        (
            lambda f: np.save(f, np.ones((6, 0))),
            r"must have shape \[N, E\] with E at least 1, got shape \(6, 0\)",
        ),
        (lambda f: np.save(f, np.ones((6, 4), complex)), r"must hold real numbers, got dtype complex128"),
        (
            lambda f: np.save(f, np.array([[None] * 4] * 6)),
            r"must be a whole npy file of numbers, .* objects",
        ),
        (
            lambda f: f.write_bytes(pickle.dumps(numbers(6))),
            r"test.dense.npy: must be a whole npy file of num",
        ),
        (lambda f: f.write_bytes(b""), r"test.dense.npy: must be a whole npy file of numbers"),
        (
            lambda f: f.write_bytes(f.read_bytes()[:-9]),
            r"test.dense.npy: must be a whole npy file of numbers",
        ),
        (lambda f: f.write_bytes(zipped(numbers(6))), r"test.dense.npy: must be a whole npy file of numbers"),
        (
            lambda f: np.save(f, np.where(np.eye(6, 4), np.nan, 1)),
            r"test.dense.npy, row 0: numbers must be fin",
        ),
        (
            lambda f: np.save(f, np.where(np.eye(6, 4, -2), np.inf, 1)),
            r"test.dense.npy, row 2: numbers must be",
        ),
        (
            lambda f: np.save(f, np.where(np.eye(6, 4, -1), 1e39, 1)),
            r"row 1: numbers must be finite and fit flo",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, spoil, message):
    xmc(tmp_path / "d", train=8, test=6)
    spoil(tmp_path / "d" / "test.dense.npy")
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path / "d")


def test_a_split_without_its_file_is_refused(tmp_path):
    xmc(tmp_path / "d", train=8, test=6)
    (tmp_path / "d" / "test.dense.npy").unlink()
    message = r"test.dense.npy: the file is missing; all splits must have dense features, because there is tr"
    with pytest.raises(FileNotFoundError, match=message):
        read_folder(tmp_path / "d")
    np.save(tmp_path / "d" / "test.dense.npy", numbers(6))
    (tmp_path / "d" / "train.dense.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.dense.npy: the file is missing"):
        read_folder(tmp_path / "d")


def test_two_names_and_compressed_files_are_refused(tmp_path):
    xmc(tmp_path / "d", train=8)
    file = tmp_path / "d" / "train.dense.npy"
    (tmp_path / "d" / "X.trn.dense.npy").write_bytes(file.read_bytes())
    with pytest.raises(
        ValueError, match=r"must have only one of these files, got X.trn.dense.npy, train.dense"
    ):
        read_folder(tmp_path / "d")
    (tmp_path / "d" / "X.trn.dense.npy").unlink()
    (tmp_path / "d" / "train.dense.npy.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    with pytest.raises(
        ValueError, match=r"dense.npy.gz: must not be compressed, because it is read in parts"
    ):
        read_folder(tmp_path / "d")
    file.mkdir()
    (tmp_path / "d" / "train.dense.npy.gz").unlink()
    with pytest.raises(ValueError, match="must be a regular file, got a folder"):
        read_folder(tmp_path / "d")


def test_a_file_of_no_documents_is_named(tmp_path):
    xmc(tmp_path / "d", train=8)
    np.save(tmp_path / "d" / "dev.dense.npy", numbers(6))
    (remark,) = read_folder(tmp_path / "d").remarks
    assert remark.endswith("dev.dense.npy: is left out, because no documents of a split stand beside it")


def test_data_for_a_model_follow_its_dense_features(tmp_path):
    xmc(tmp_path / "plain", dense=False, test=6)
    dense = xmc(tmp_path / "both", test=6)["test"]
    sizes = {"num_features": 12, "num_labels": 7}
    model, without = Columns(**sizes, num_dense=E), Columns(**sizes)
    read = read_folder(tmp_path / "both", columns=model)
    assert np.array_equal(read.test.dense, dense)
    assert read.num_dense == E  # also of a train split that is not there
    message = (
        r"test.dense.npy: the file is missing; the model takes E=4 dense features of each of the documents"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_folder(tmp_path / "plain", columns=model)
    with pytest.raises(ValueError, match=r"test.dense.npy: must have E=5 columns, got shape \(6, 4\)"):
        read_folder(tmp_path / "both", columns=Columns(**sizes, num_dense=5))
    left = read_folder(tmp_path / "both", columns=without)
    assert left.test.dense is None
    assert left.remarks[0].endswith("test.dense.npy: is left out, because the model takes no dense features")
    file = data.read_file(tmp_path / "both" / "test.txt", model)
    assert np.array_equal(file.test.dense, dense)
    with pytest.raises(FileNotFoundError, match=r"plain/test.dense.npy: the file is missing"):
        data.read_file(tmp_path / "plain" / "test.txt", model)


class Lengths:
    """Embeds a text as its length, three times."""

    num_dense = 3

    def encode(self, texts):
        return np.array([[len(text)] * 3 for text in texts], np.float32)

    def embed(self, texts):
        raise AssertionError("no split is used")


def test_an_encoder_stands_before_the_files(tmp_path):
    vectorizer = data.Vectorizer(["word0", "all"], [1.0, 1.0])
    columns = Columns(
        2, 2, label_names=["l0", "l1"], vectorizer=vectorizer, num_dense=3, text_encoder=Lengths()
    )
    folder_of("jsonl", tmp_path / "d")
    np.save(tmp_path / "d" / "test.dense.npy", numbers(3))
    left_out = (
        "test.dense.npy: is left out, because the run's text encoder makes the dense features of the texts"
    )
    read = read_folder(tmp_path / "d", columns=columns)
    assert isinstance(read.test.dense, data.TextEmbeddings)
    assert read.info()["splits"]["test"]["without_features"] == 0
    assert read.remarks[-1].endswith(left_out)
    remarks, expected = [], [[9.0] * 3] * 3
    documents = tmp_path / "d" / "test.jsonl"
    (rows,) = data.iter_documents(documents, columns, remarks=remarks)
    assert rows.dense.tolist() == expected
    assert [remark.endswith(left_out) for remark in remarks] == [True]
    (given,) = data.iter_documents(documents, columns, dense=numbers(3, columns=3))
    assert np.array_equal(given.dense, numbers(3, columns=3))
    (streamed,) = data.stream_documents(io.BytesIO(b"word0 all\nword1 all\nword2 all\n"), columns)
    assert streamed.dense.tolist() == expected
    assert (streamed.sparse != rows.sparse).nnz == 0
    data.write_xmc(tmp_path / "later.txt", np.eye(2), np.eye(2))
    with pytest.raises(
        FileNotFoundError, match=r"later\.dense\.npy: .* which have no texts for the run's text enco"
    ):
        blocks(tmp_path / "later.txt", columns)
    np.save(tmp_path / "later.dense.npy", numbers(2, columns=3))
    assert np.array_equal(blocks(tmp_path / "later.txt", columns)[:, 2:], numbers(2, columns=3))


# ------------------------------------------------------------------------------------------- block by block


def blocks(path, columns, **options):
    """The documents of a file as one dense matrix."""
    parts = list(data.iter_documents(path, columns, **options))
    return np.vstack([(part.join() if isinstance(part, HybridMatrix) else part).toarray() for part in parts])


def test_documents_come_with_the_file_beside_them(tmp_path):
    dense = xmc(tmp_path / "d", test=6)["test"]
    columns, path = Columns(12, 7, num_dense=E), tmp_path / "d" / "test.txt"
    X = data.read_xmc(path).X.toarray()
    assert np.array_equal(blocks(path, columns), np.hstack([X, dense]))
    other = numbers(6, 9)
    np.save(tmp_path / "other.npy", other)
    for given in (other, tmp_path / "other.npy", str(tmp_path / "other.npy")):
        assert np.array_equal(blocks(path, columns, dense=given), np.hstack([X, other]))
    remarks = []
    assert np.array_equal(blocks(path, Columns(12, 7), remarks=remarks), X)
    assert len(remarks) == 1
    assert "is left out, because the model takes no dense features" in remarks[0]


@pytest.mark.parametrize("rows", [0, 5, 7])
def test_rows_of_a_stream_must_be_as_many_as_documents(tmp_path, rows):
    xmc(tmp_path / "d", dense=False, test=6)
    path = tmp_path / "d" / "test.txt"
    np.save(tmp_path / "d" / "test.dense.npy", numbers(rows))
    what = "more documents" if rows < 6 else "6 documents"
    with pytest.raises(ValueError, match=rf"test.dense.npy: has {rows} rows, but .*test.txt has {what}"):
        blocks(path, Columns(12, 7, num_dense=E))


def test_documents_without_dense_features_are_refused(tmp_path):
    xmc(tmp_path / "d", dense=False, test=6)
    path, columns = tmp_path / "d" / "test.txt", Columns(12, 7, num_dense=E)
    with pytest.raises(
        FileNotFoundError, match=r"d/test.dense.npy: the file is missing; the model takes E=4"
    ):
        blocks(path, columns)
    with pytest.raises(ValueError, match="the model takes no dense features, so dense must not be given"):
        blocks(path, Columns(12, 7), dense=numbers(6))
    with pytest.raises(ValueError, match=r"dense: must have E=4 columns, got shape \(6, 3\)"):
        blocks(path, columns, dense=numbers(6, columns=3))
    texts = Columns(2, 1, vectorizer=data.Vectorizer(["cat", "dog"], [1.0, 1.0]), num_dense=E)
    with pytest.raises(
        ValueError, match="takes E=4 dense features, and it has no text encoder that makes them"
    ):
        list(data.iter_vectors(["a cat"], texts))
    (rows,) = data.iter_vectors(["a cat", "a dog"], texts, dense=numbers(2))
    assert np.array_equal(rows.join().toarray(), np.hstack([np.eye(2), numbers(2)]).astype(np.float32))


def test_a_matrix_is_never_read_whole(tmp_path):
    """The file is sparse on the disk and larger than the memory that the process may take for it."""
    rows = 1 << 20
    array = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float16, (rows, 64))
    array[rows - 1] = 1
    del array
    tracemalloc.start()
    read = read_dense(tmp_path / "big.npy", rows, 64)
    assert tracemalloc.get_traced_memory()[1] < 100e6  # of 134 MB
    tracemalloc.stop()
    assert read[rows - 1].all()


def test_npz_pair_with_a_matrix_beside_it(tmp_path):
    X = np.eye(4, 6)
    write_npz_pair(tmp_path, X, np.eye(4))
    np.save(tmp_path / "X.trn.dense.npy", np.asfortranarray(numbers(4)))
    assert np.array_equal(read_folder(tmp_path).train.documents.join().toarray()[:, 6:], numbers(4))
