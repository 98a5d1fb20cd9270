"""npz files: pairs of them, damaged ones, and those that lie about their sizes."""

import io
import lzma
import zipfile

import numpy as np
import pytest
import scipy.sparse
from data_cases import header, random_split, same, save, write_npz_pair
from scipy import sparse

from mach_ext import data
from mach_ext.data import check_labels, read_matrix, read_npz, write_npz


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


def test_relevance_weights_are_refused_or_said(tmp_path):
    write_npz_pair(tmp_path, np.eye(3), np.diag([1, 0.3, 1]))
    with pytest.raises(ValueError, match=r"Y.trn.npz: labels must be 1 where they hold, .*, got 0.3"):
        data.read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"Y.trn.npz: labels must be 1 where they hold, .*, got 0.3"):
        data.read_npz(tmp_path / "X.trn.npz", tmp_path / "Y.trn.npz")
    write_npz_pair(tmp_path, np.eye(3), np.diag([1, 4, 1]))
    read = data.read_folder(tmp_path)
    assert read.train.Y.toarray().tolist() == np.eye(3).tolist()
    assert any("Y.trn.npz: has numbers above 1" in remark for remark in read.remarks)
    half = scipy.sparse.coo_matrix(([0.5, 0.5], ([0, 0], [1, 1])), shape=(1, 2))  # whose sum is 1
    with pytest.raises(ValueError, match="Y: labels must be 1 where they hold"):
        check_labels(half, allow_weights=False)
    assert check_labels(half).toarray().tolist() == [[0, 1]]


def test_npz_with_fractions_for_indices(tmp_path):
    arrays = {"indices": np.array([0.5]), "indptr": [0, 1], "data": [1.0], "shape": [1, 2], "format": b"csr"}
    np.savez(tmp_path / "X.npz", **arrays)
    with pytest.raises(ValueError, match=r"X.npz: must be a whole .* got: indices must be integers"):
        data.read_matrix(tmp_path / "X.npz")


def test_duplicates_of_small_numbers_in_a_file(tmp_path):
    X = scipy.sparse.coo_matrix((np.array([200, 100], np.uint8), ([0, 0], [1, 1])), shape=(1, 3))
    scipy.sparse.save_npz(tmp_path / "X.npz", X)
    assert data.read_matrix(tmp_path / "X.npz").toarray().tolist() == [[0, 300, 0]]


def npz(path, *, method=zipfile.ZIP_DEFLATED, twice=None, raw=None, **arrays):
    """Like save_npz, with other arrays, raw members, one twice, or another method."""
    right = {"format": b"csr", "shape": [1, 5], "indices": [0], "indptr": [0, 1], "data": [1.0]}
    members = {}
    for name, array in (right | arrays).items():
        if array is not None:
            buffer = io.BytesIO()
            np.save(buffer, array)
            members[name] = buffer.getvalue()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in (members | (raw or {})).items():
            archive.writestr(f"{name}.npy", content)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr(f"{twice}.npy", members[twice])
    return path


MANY = 2**31 - 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": zipfile.ZIP_BZIP2}, "arrays must be stored or deflated, got compression 12"),
        ({"method": zipfile.ZIP_LZMA}, "arrays must be stored or deflated, got compression 14"),
        ({"twice": "indices"}, "each array must occur only once, got an array twice"),
        (
            {"raw": {"data": header((10**12,)) + bytes(8)}},
            r"an array of shape \(10{12},\), float64 must have 80",
        ),
        ({"raw": {"data": header((2**17,)) + bytes(2**20)}}, "arrays must not unpack to more than 200 times"),
        ({"format": b"lil"}, "format must be csr, csc, bsr, coo or dia, got 'lil'"),
        ({"format": "dok" * 1000}, r"format must be csr, .*, got 'dok.{0,70}\.\.\.$"),
        ({"format": b"coo", "shape": [MANY, 5], "row": [0], "col": [0]}, "must have fewer rows"),
        (
            {"format": b"csc", "shape": [MANY, 5], "indptr": [0, 1, 1, 1, 1, 1]},
            "must have fewer rows",
        ),
        (
            {"format": b"dia", "shape": [MANY, 5], "data": np.ones((1, 5)), "offsets": [0]},
            "must have fewer rows",
        ),
        ({"format": b"bsr", "shape": [MANY, 5], "data": np.ones((0, MANY, 1))}, "must have fewer rows"),
        ({"data": None}, r"There is no item named 'data.npy'"),
    ],
    ids=range(12),
)
def test_npz_files_that_lie(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"a.npz: must be a whole .* file, got: .*{message}"):
        data.read_matrix(npz(tmp_path / "a.npz", **changes))


def test_a_large_column_takes_no_memory_by_its_number(tmp_path):
    path = npz(tmp_path / "a.npz", format=b"coo", shape=[1, MANY], row=[0], col=[MANY - 1])
    assert data.read_matrix(path).indices.tolist() == [MANY - 1]
    (tmp_path / "train.svm").write_text("0 0:1 2000000000:1\n1 1:1\n" * 10)
    read = data.load(tmp_path, svmlight_base=0)
    assert (read.num_features, read.info()["splits"]["dev"]["documents"]) == (2_000_000_001, 2)
    for form in ("npz", "xmc"):
        data.write_folder(tmp_path / form, read, format=form)
        assert data.read_folder(tmp_path / form).train.X.indices.max() == 2_000_000_000


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


def test_labels_are_checked_as_stored(tmp_path):
    diagonal = sparse.dia_matrix((np.array([[1, 1 + 1e-12]]), [0]), shape=(2, 2))
    with pytest.raises(ValueError, match="labels must be 1 where they hold"):
        check_labels(diagonal, allow_weights=False)
    X = save(tmp_path / "X.npz")
    coo = {"row": [0, 0], "col": [1, 1], "format": b"coo", "indices": None, "indptr": None}
    Y = save(tmp_path / "Y.npz", data=[-1, 1], **coo)
    with pytest.raises(ValueError, match=r"Y.npz: labels must not be negative"):
        read_npz(X, Y)
