"""Files that the readers of Python and SciPy take wrongly, or fail on in ways of their own."""

import bz2
import io
import lzma
import zipfile

import numpy as np
import pytest
from scipy import sparse

from mach_ext.data import (
    check_csr,
    check_labels,
    iter_jsonl,
    read_jsonl,
    read_matrix,
    read_npz,
    read_svmlight,
)
from mach_ext.data.formats import read_lines


def save(path, **arrays):
    """An npz file of a 2 x 3 matrix with two entries, some of its arrays in place of the right ones."""
    right = {"indices": [2, 0], "indptr": [0, 1, 2], "data": [1.0, 2.0], "shape": [2, 3], "format": b"csr"}
    chosen = {name: array for name, array in (right | arrays).items() if array is not None}
    np.savez(path, **chosen)
    return path


@pytest.mark.parametrize(
    "arrays",
    [
        {"format": b"lil"},
        {"format": 5},
        {"format": np.array([b"csr", b"csr"])},
        {"indices": [2.5, 0.0]},  # SciPy cuts the fraction off
        {"indices": np.array([2**32, 0])},
        {"indices": np.array([[2], [0]])},
        {"indptr": [0.0, 1.0, 2.0]},
        {"indptr": [0, 5, 0]},  # SciPy checks the order only where the last is not 0: heap corruption
        {"indptr": [0, 5, -1]},
        {"indptr": [0, 0, 5, 0], "format": b"csc"},
        {"data": np.array([1j, 2])},
        {"data": np.array(["a", "b"])},
        {"data": np.array([None, None], object)},
        {"shape": [2**31, 3]},
        {"shape": [2, 3, 1]},
        {"shape": [2.0, 3.0]},
        {"format": b"bsr", "data": np.ones((2, 1, 2))},  # three columns in blocks of two
        {"format": b"bsr", "data": np.ones((2, 0, 1))},
        {"format": b"dia", "data": np.ones((1, 3)), "offsets": np.array([2**32])},  # SciPy: the main diagonal
        {"format": b"dia", "data": np.ones((1, 3)), "offsets": np.array([2**32 - 1], np.uint32)},
    ],
    ids=str,
)
def test_npz_files_that_are_no_matrix(tmp_path, arrays):
    with pytest.raises(ValueError, match=r"bad.npz"):
        read_matrix(save(tmp_path / "bad.npz", **arrays))


def test_npz_with_a_wrong_checksum(tmp_path):
    """As many numbers of half the size end before the checksum is looked at."""
    n = 5000
    path = save(
        tmp_path / "bad.npz", data=np.arange(1.0, n + 1), indices=np.arange(n), indptr=[0, n], shape=[1, n]
    )
    content = path.read_bytes()
    at = content.index(b"data.npy")
    path.write_bytes(content[:at] + content[at:].replace(b"<f8", b"<f4", 1))
    with pytest.raises(ValueError, match=r"bad.npz: must be a whole .*Bad CRC-32"):
        read_matrix(path)


@pytest.mark.parametrize("change", ["count", "encrypted", "method", "header"])
def test_npz_damaged_so_that_other_exceptions_come(tmp_path, change):
    path = save(tmp_path / "bad.npz")
    content = path.read_bytes()
    if change in ("count", "header"):  # in a whole zip file
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        old, new = {"count": (b"(2,)", b"(999999999999999,)"), "header": (b"False", b"\0\"'[(")}[change]
        members["data.npy"] = members["data.npy"].replace(old, new)
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, member)
    else:
        offset, value = {"encrypted": (8, 1), "method": (10, 99)}[change]
        central = content.index(b"PK\1\2")
        path.write_bytes(content[: central + offset] + bytes([value]) + content[central + offset + 1 :])
    with pytest.raises(ValueError, match=r"bad.npz: must be a whole scipy.sparse.save_npz file, got: "):
        read_matrix(path)


@pytest.mark.parametrize("dtype", ["f2", "g", ">f4", ">f8", ">i2", "?", "u1", "i8", "u8"])
def test_npz_of_every_type(tmp_path, dtype):
    path = save(tmp_path / "good.npz", data=np.array([1, 1], dtype), indices=np.array([2, 0], ">i4"))
    assert read_matrix(path).toarray().tolist() == [[0, 0, 1], [1, 0, 0]]


def test_value_does_not_depend_on_duplicates_elsewhere():
    value = np.uint64(2**60 + 2**36 + 1)  # rounds to another float32 by way of a double
    alone = sparse.csr_matrix((np.array([value, 1]), [0, 1], [0, 1, 2]), shape=(2, 2))
    beside = sparse.csr_matrix((np.array([value, 1, 1]), [0, 1, 1], [0, 1, 3]), shape=(2, 2))
    assert check_csr(alone)[0, 0] == check_csr(beside)[0, 0]


def test_matrix_in_memory_with_falling_indptr():
    matrix = sparse.csr_matrix((3, 4))
    matrix.indptr = np.array([0, 10**6, 0, 0], np.int32)
    with pytest.raises(ValueError, match=r"X: index pointer values must form a non-decreasing sequence"):
        check_csr(matrix)


def test_labels_are_checked_as_stored(tmp_path):
    diagonal = sparse.dia_matrix((np.array([[1, 1 + 1e-12]]), [0]), shape=(2, 2))
    with pytest.raises(ValueError, match="labels must be 1 where they hold"):
        check_labels(diagonal, allow_weights=False)
    X = save(tmp_path / "X.npz")
    coo = {"row": [0, 0], "col": [1, 1], "format": b"coo", "indices": None, "indptr": None}
    Y = save(tmp_path / "Y.npz", data=[-1, 1], **coo)
    with pytest.raises(ValueError, match=r"Y.npz: labels must not be negative"):
        read_npz(X, Y)


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".bz2", bz2.compress)])
def test_compressed_streams(tmp_path, suffix, pack):
    path = tmp_path / f"X.trn.txt{suffix}"
    first, second = pack(b"one\n"), pack(b"two\n")
    for whole in (first + second, first + bytes(4) + second, first + second + bytes(7)):
        path.write_bytes(whole)
        assert read_lines(path) == ["one", "two"]
    for bad in (first + b"x" + second, first + second[:9], first[:-1], first + second + b"garbage", b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"X.trn.txt\.\w+: the \.\w+ file must be whole and undamaged"):
            read_lines(path)


def test_blank_first_line_with_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"text": "a", "labels": []}\n')
    assert read_jsonl(path) == (["a"], [[]])


def test_deeply_nested_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: a line must be a JSON object"):
        list(iter_jsonl(path))


@pytest.mark.parametrize("text", ["a\r\nb\r\n\r", "a\nb\n\r\n"])
def test_last_line_of_a_carriage_return(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_lines(tmp_path / "a.txt") == ["a", "b", ""]


def test_svmlight_line_after_a_marked_comment(tmp_path):
    path = tmp_path / "a.svm"
    path.write_bytes(b"\xef\xbb\xbf# made by hand\n1 0:4\n")
    with pytest.raises(ValueError, match=r"got '0' in line 2"):
        read_svmlight([path], zero_based=False)
