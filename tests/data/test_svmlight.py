"""svmlight files against scikit-learn's reader."""

import numpy as np
import pytest
from scipy import sparse

from mach_ext.data import read_svmlight


def test_svmlight_line_after_a_marked_comment(tmp_path):
    path = tmp_path / "a.svm"
    path.write_bytes(b"\xef\xbb\xbf# made by hand\n1 0:4\n")
    with pytest.raises(ValueError, match=r"got '0' in line 2"):
        read_svmlight([path], zero_based=False)


@pytest.mark.parametrize("zero_based", [True, False])
@pytest.mark.parametrize("read_as", ["auto", True, False])
def test_svmlight_same_as_scikit_learn(tmp_path, zero_based, read_as):
    from sklearn.datasets import dump_svmlight_file, load_svmlight_files

    rng = np.random.default_rng(3)
    paths = [tmp_path / "train.svm", tmp_path / "test.svm"]
    for path, rows in zip(paths, (40, 17), strict=True):
        X = sparse.random(rows, 30, density=0.2, format="csr", rng=rng)
        Y = (rng.random((rows, 8)) < 0.2).astype(int)
        dump_svmlight_file(X, Y, str(path), multilabel=True, zero_based=zero_based, comment="made up")
    if zero_based and read_as is False:
        with pytest.raises(
            ValueError, match=r"train.svm: zero_based=False, so every feature must be at least 1"
        ):
            read_svmlight(paths, zero_based=read_as)
        return
    expected = load_svmlight_files(
        [str(p) for p in paths], multilabel=True, zero_based=read_as, dtype=np.float32
    )
    for split, X, Y in zip(
        read_svmlight(paths, zero_based=read_as), expected[::2], expected[1::2], strict=True
    ):
        assert split.X.shape == X.shape
        assert (split.X != X).nnz == 0
        split.X.check_format(full_check=True)
        assert [tuple(row.indices) for row in split.Y] == [tuple(map(int, labels)) for labels in Y]


def test_svmlight_comments_and_qid(tmp_path):
    path = tmp_path / "a.svm"
    path.write_text("# made by hand\n\n1,2 qid:7 1:0.5 3:1 # 9:9\n  \nqid:8 2:1\n 0 1:2#x\n 3:1\n")
    (split,) = read_svmlight([path], zero_based=True)
    np.testing.assert_array_equal(
        split.X.toarray(), np.array([[0, 0.5, 0, 1], [0, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 1]], np.float32)
    )
    assert [row.indices.tolist() for row in split.Y] == [[1, 2], [], [0], []]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n\n", r"a.svm: the file must not be empty"),
        ("1 1:1\n-1 1:1\n", r"a.svm, line 2: a label must be a non-negative integer, got '-1'"),
        ("1 qid:1:0.5 2:1\n", r"line 1: a qid must be a non-negative integer, got 'qid:1:0.5'"),
        ("1 qid: 2:1\n", r"line 1: a qid must be a non-negative integer, got 'qid:'"),
        ("0 1:1\n1:0.5 3:1\n", r"line 2: a line must begin with its labels, or with a blank .*, got '1:0.5'"),
        ("1 1:1 qid:3\n", r"line 1: a feature must be idx:value with a non-negative .*, got 'qid:3'"),
        ("# x\n1 2147483647:1\n", r"line 2: a feature must be below 2\^31 - 1, got '2147483647:1'"),
        ("2147483647 1:1\n", r"line 1: a label must be below 2\^31 - 1, got '2147483647'"),
    ],
)
def test_svmlight_errors(tmp_path, text, message):
    path = tmp_path / "a.svm"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_svmlight([path])
