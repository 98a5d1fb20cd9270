"""Lines of text, and names that are placed by numbers, written and read as they are."""

import itertools
import json

import pytest
import scipy.sparse
from data_cases import ODD
from scipy import sparse

import mach_ext
from mach_ext import data, runs
from mach_ext.data.formats import label_matrix, read_lines, read_names
from mach_ext.data.parsing import check_names


def test_names_and_lines(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeff7\tcat\r\nx:1\tbig dog\r\nplain \u0085 name\r\n".encode())
    assert read_names(path, 3) == ["cat", "big dog", "plain \u0085 name"]
    with pytest.raises(ValueError, match=r"labels.txt: must have 4 lines, one a column, got 3"):
        read_names(path, 4)
    path.write_bytes(b"good\nbad \xff\n")
    with pytest.raises(ValueError, match=r"labels.txt, line 2: text must be UTF-8, got byte 0xff"):
        read_lines(path)


def test_label_matrix():
    Y = label_matrix([["b", "a", "b"], [], ["c"]], ["a", "b", "c"])
    assert Y.toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"test.jsonl: every label must be in labels.txt, got 'd'"):
        label_matrix([["d"]], ["a", "b", "c"], "test.jsonl")
    with pytest.raises(ValueError, match="label names must differ, got 2 names, 1 different"):
        label_matrix([["a"]], ["a", "a"])


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_place_names_whatever_the_order(tmp_path, first):
    names = ["zero", "one", "two", "three", "four"]
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        (tmp_path / "labels.txt").write_text("".join(f"{i + first}\t{names[i]}\n" for i in order))
        assert read_names(tmp_path / "labels.txt", 5) == names


@pytest.mark.parametrize(
    ("lines", "line", "got"),
    [
        ("5\ta\n6\tb\n7\tc\n", 1, "5"),
        ("0\ta\n1\tb\n3\tc\n", 3, "3"),
        ("1\ta\n2\tb\n2\tc\n", 3, "2"),
        ("31\ta\n30\tb\n", 1, "31"),
        ("0\ta\nb\n1\tc\n", 2, "b"),  # two of three lines say that numbers are columns
        ("1\ta\n3\tb\n99999999999999999999\tc\n", 3, "99999999999999999999"),
    ],
)
@pytest.mark.parametrize("file", ["labels.txt", "features.txt"])
def test_other_numbers_are_refused_with_the_line(tmp_path, lines, line, got, file):
    (tmp_path / file).write_text(lines)
    with pytest.raises(ValueError, match=rf"{file}, line {line}: the numbers .* each once, got '{got}'"):
        read_names(tmp_path / file)


@pytest.mark.parametrize("number", ["3.0", "-1", "+2", "\u0662", "1" * 19, "1e0", "0,5"])
def test_numbers_of_other_kinds_are_refused(tmp_path, number):
    (tmp_path / "labels.txt").write_text(f"{number}\ta\n0\tb\n1\tc\n")
    with pytest.raises(ValueError, match=r"labels.txt, line 1: the numbers .* each once, got"):
        read_names(tmp_path / "labels.txt")


def test_names_before_numbers_are_refused(tmp_path):
    (tmp_path / "labels.txt").write_text("two\t2\none\t1\nzero\t0\n")
    with pytest.raises(ValueError, match=r"labels.txt, line 1: must be a number, a tab and a name"):
        read_names(tmp_path / "labels.txt")


def test_blank_lines_at_the_end_are_no_names(tmp_path):
    (tmp_path / "train.svm").write_text("1 1:1\n2,3 2:1 3:1\n")
    for end in ("", "\n", "\n  \n\n"):
        for file in ("labels.txt", "features.txt"):
            (tmp_path / file).write_text("one\ntwo\nthree\n" + end)
        read = data.read_folder(tmp_path)
        assert read.train.Y.toarray().tolist() == [[1, 0, 0], [0, 1, 1]]
        assert read.train.X.toarray().tolist() == [[1, 0, 0], [0, 1, 1]]
    assert read_names(tmp_path / "labels.txt", 5) == ["one", "two", "three", "", ""]  # where they have to be


def test_names_are_written_as_they_are(tmp_path):
    names = ["a  b", "a b", "c\td", " f", "5"]
    dataset = data.Dataset(
        "x", tmp_path, data.Split(scipy.sparse.eye(2), scipy.sparse.csr_matrix((2, 5))), label_names=names
    )
    data.write_folder(tmp_path / "out", dataset)
    assert data.read_folder(tmp_path / "out").label_names == names


def test_keys_that_are_not_all_numbers_are_somebody_elses(tmp_path):
    (tmp_path / "labels.txt").write_text("10\tten\nc_871b\tword\n1002\tmore\n")
    assert read_names(tmp_path / "labels.txt") == ["ten", "word", "more"]


def test_one_name_in_two_spellings(tmp_path):
    """é as one character, or as e with an accent: one label, in the form that came first."""
    one, two = "caf\u00e9", "cafe\u0301"
    lines = [json.dumps({"text": "a cup", "labels": [name]}) + "\n" for name in (two, one, "tea")]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    read = data.read_folder(tmp_path)
    assert read.label_names == [two, "tea"]
    assert read.train.Y.toarray().tolist() == [[1, 0], [1, 0], [0, 1]]
    (tmp_path / "train.jsonl").write_text(lines[1])
    again = data.read_folder(tmp_path, columns=read.columns)
    assert again.train.unseen is None
    assert again.train.Y.toarray().tolist() == [[1, 0]]
    both = data.label_matrix([[one], [two]], [one, two])  # an older model may have both
    assert both.toarray().tolist() == [[1, 0], [0, 1]]


LISTS = [*([name] for name in ODD), ODD, ["a", ""], ["", "a\tb"], ["1\ta", "0\tb"], ["a", " "]]


@pytest.mark.parametrize("form", ["npz", "xmc"])
@pytest.mark.parametrize("names", LISTS, ids=range(len(LISTS)))
def test_names_are_read_as_they_were_written(tmp_path, form, names):
    matrix = sparse.csr_matrix((1, len(names)))
    dataset = data.Dataset("a", tmp_path, data.Split(matrix, matrix), label_names=names, feature_names=names)
    data.write_folder(tmp_path / "one", dataset, format=form)
    once = data.read_folder(tmp_path / "one")
    other = {"npz": "xmc", "xmc": "npz"}[form]
    data.write_folder(tmp_path / "two", once, format=other)
    for read in (once, data.read_folder(tmp_path / "two", columns=once.columns)):
        assert read.label_names == read.feature_names == names
    model = mach_ext.MACH(len(names), len(names), num_repetitions=8, num_buckets=64, hidden_size=2)
    model.attachments = runs.attachments(dataset)
    assert runs.columns_of(model).label_names == runs.columns_of(model).feature_names == names


def test_names_of_json_lines_are_kept(tmp_path):
    lines = [json.dumps({"text": "a cat", "labels": [name]}) + "\n" for name in ODD]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    read = data.read_folder(tmp_path)
    assert sorted(read.label_names) == sorted(ODD)
    data.write_folder(tmp_path / "copy", read)
    again = data.read_folder(tmp_path / "copy", columns=read.columns)
    assert again.label_names == read.label_names
    assert (again.train.Y != read.train.Y).nnz == 0


@pytest.mark.parametrize("names", [["a", 5], ["a", None], "ab", {"a": 0, "b": 1}, 7, ["a", b"b"]])
def test_names_by_hand_are_checked(tmp_path, names):
    split = data.Split(sparse.eye(2), sparse.eye(2))
    for what in ("label_names", "feature_names"):
        with pytest.raises(ValueError, match=rf"Dataset: {what}"):
            data.Dataset("a", tmp_path, split, **{what: names})
    with pytest.raises(ValueError, match="here"):
        check_names(names, "here")


@pytest.mark.parametrize("what", ["label_names", "feature_names"])
def test_too_few_names_are_neither_written_nor_kept(tmp_path, what):
    eye = sparse.eye(2, format="csr")
    dataset = data.Dataset("a", tmp_path, data.Split(eye, eye), **{what: ["a"]})
    with pytest.raises(ValueError, match=rf"write_folder: {what}: must have 2 names, got 1"):
        data.write_folder(tmp_path / "out", dataset)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=rf"{what}: must have 2 names, got 1"):
        runs.attachments(dataset)


@pytest.mark.parametrize("text", ["a\r\nb\r\n\r", "a\nb\n\r\n"])
def test_last_line_of_a_carriage_return(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_lines(tmp_path / "a.txt") == ["a", "b", ""]
