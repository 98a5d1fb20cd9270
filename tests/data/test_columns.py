"""What columns mean: kept with the model, and used for every file that is read for it."""

import itertools
import json
import shutil

import numpy as np
import pytest
import scipy.sparse
import torch

import mach_ext
from mach_ext import cli, data, metrics, runs
from mach_ext.data import check_csr, check_labels, read_names
from mach_ext.data.formats import read_pairs, read_sparse_text

FAST = ["--epochs", "12", "--hidden-size", "32", "--learning_rate", "0.05", "--batch-size", "20", "--quiet",
        "--hash_functions", "8", "--buckets", "16", "--no-holdout"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv):
    return cli.main([str(a) for a in argv])


def svmlight(rows, first=0):
    """Lines `label feature:1 ...`: document i has label i and the features of row i, counted from `first`."""
    lines = (f"{label} {' '.join(f'{j + first}:1' for j in features)}\n" for label, features in rows)
    return "".join(lines)


def answers(capsys, *argv):
    """The first label of each document that predict names."""
    capsys.readouterr()
    assert run("predict", "--k", "1", *argv) == 0, capsys.readouterr().err
    return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]


# --------------------------------------------------------------------------------- the base of svmlight ids

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


# ------------------------------------------------------------------------------------------- numbered names


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


def test_an_unseen_label_takes_no_memory_by_its_number(tmp_path):
    (tmp_path / "test.svm").write_text("0,2000000000 0:1\n1,1999999999,2000000000 1:1\n")
    columns = data.Columns(num_features=2, num_labels=2, svmlight_base=0, svmlight_label_base=0)
    test = data.read_folder(tmp_path, columns=columns).test
    assert test.truth.toarray().tolist() == [[1, 0, 0, 1], [0, 1, 1, 1]]


def test_two_sources_of_one_split_are_refused_or_said(tmp_path):
    eye = scipy.sparse.eye(2, format="csr")
    write_npz_pair(tmp_path, eye, eye)
    (tmp_path / "trn_X_Y.txt").write_text("2 2\n1:1\n0:1\n")
    with pytest.raises(ValueError, match=r"must have one of these, got Y.trn.npz, trn_X_Y.txt"):
        data.read_folder(tmp_path)
    (tmp_path / "trn_X_Y.txt").unlink()
    (tmp_path / "test.svm").write_text("0 0:1\n")
    read = data.read_folder(tmp_path)
    assert read.test is None
    assert any("test.svm: is left out, because train is in another format" in r for r in read.remarks)


def test_names_are_written_as_they_are(tmp_path):
    names = ["a  b", "a b", "c\td", " f", "5"]
    dataset = data.Dataset(
        "x", tmp_path, data.Split(scipy.sparse.eye(2), scipy.sparse.csr_matrix((2, 5))), label_names=names
    )
    data.write_folder(tmp_path / "out", dataset)
    assert data.read_folder(tmp_path / "out").label_names == names


def test_deeply_nested_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "other": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: a line must be a JSON object"):
        list(data.iter_jsonl(tmp_path / "a.jsonl"))


def test_keys_that_are_not_all_numbers_are_somebody_elses(tmp_path):
    (tmp_path / "labels.txt").write_text("10\tten\nc_871b\tword\n1002\tmore\n")
    assert read_names(tmp_path / "labels.txt") == ["ten", "word", "more"]


# ------------------------------------------------------------------------------------------- labels, weights


def write_npz_pair(folder, X, Y):
    scipy.sparse.save_npz(folder / "X.trn.npz", scipy.sparse.csr_matrix(X))
    scipy.sparse.save_npz(folder / "Y.trn.npz", scipy.sparse.csr_matrix(Y))


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


def test_learning_refuses_weights():
    X, Y = scipy.sparse.eye(4, format="csr"), scipy.sparse.eye(4, format="csr") * 0.5
    linear = {"num_repetitions": 8, "num_buckets": 4, "hidden_size": 0}
    model = mach_ext.MACH(4, 4, **linear, merge="mean_logprob")
    for learn in (mach_ext.fit, mach_ext.fit_svm):
        with pytest.raises(ValueError, match="Y: labels must be 1 where they hold"):
            learn(model, X, Y, progress=False)


# ------------------------------------------------------------------------------------------- matrices

DENSE = np.array([[0, 1.5, 0], [2, 0, 3]])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize(
    "form",
    [np.asarray, np.asmatrix, np.asfortranarray, torch.tensor, lambda x: torch.tensor(x).to_sparse(),
     lambda x: torch.tensor(x).to_sparse_csr(), lambda x: torch.tensor(x).to_sparse_csc(),
     np.float16, lambda x: torch.tensor(x).half(),
     lambda x: torch.tensor(x, dtype=torch.bfloat16), lambda x: torch.tensor(x).requires_grad_(),
     scipy.sparse.csr_array, scipy.sparse.csc_array, scipy.sparse.coo_array, scipy.sparse.dia_array],
)  # fmt: skip
def test_any_matrix_is_taken(form):
    assert check_csr(form(DENSE)).toarray().tolist() == DENSE.tolist()


@pytest.mark.parametrize(
    "row",
    [DENSE[1], torch.tensor(DENSE)[1], torch.tensor(DENSE)[1].to_sparse(), scipy.sparse.csr_array(DENSE)[1],
     scipy.sparse.coo_array(DENSE[1]), scipy.sparse.csr_matrix(DENSE)[1]],
)  # fmt: skip
def test_one_dimension_is_one_document(row):
    assert check_csr(row).toarray().tolist() == [DENSE[1].tolist()]
    model = mach_ext.MACH(3, 5, num_repetitions=8, num_buckets=8, hidden_size=4)
    _, labels = model.predict(row, k=2)
    assert labels.tolist() == model.predict(scipy.sparse.csr_matrix(DENSE[1:]), k=2)[1].tolist()
    why = mach_ext.explain.integrated_gradients(model, row, labels[0])
    assert why.features.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64])
@pytest.mark.parametrize("form", ["coo", "csr", "csc", "bsr"])
def test_duplicates_are_widened_before_they_are_summed(dtype, form):
    big = min(np.iinfo(dtype).max, 1 << 20)
    values = np.array([big, big, 1], dtype)
    X = scipy.sparse.coo_array((values, ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    if form != "coo":  # with both entries still there
        indptr = [0, 2, 3] if form != "csc" else [0, 1, 3]
        indices = [1, 1, 0] if form != "csc" else [1, 0, 0]
        values = values if form != "csc" else values[[2, 0, 1]]
        if form == "bsr":
            X = scipy.sparse.bsr_array((values.reshape(3, 1, 1), indices, indptr), shape=(2, 2))
        else:
            X = getattr(scipy.sparse, f"{form}_array")((values, indices, indptr), shape=(2, 2))
    assert check_csr(X).toarray().tolist() == [[0, 2 * big], [1, 0]]
    assert check_labels(X).toarray().tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("indptr", [[0, -(2**63), 0, 0], [0, 1, 2, -2], [1, 1, 1, 1], [0, 5, 0, 0]])
@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_pointers_that_scipy_lets_pass(indptr, form):
    X = form((3, 3))
    X.data, X.indices, X.indptr = np.ones(3), np.zeros(3, np.int64), np.array(indptr)
    with pytest.raises(ValueError, match=r"X: .*, got shape"):
        check_csr(X)
    with pytest.raises(ValueError, match="Y_true is not a valid"):
        metrics.evaluate(X, [[0], [1], [2]], ks=(1,))


def test_coordinates_outside_the_matrix():
    X = scipy.sparse.coo_array(([1.0], ([0], [1])), shape=(1, 2))
    X.coords = (np.array([0]), np.array([7]))
    with pytest.raises(ValueError, match="X: row and column indices must be inside the matrix"):
        check_csr(X)


def test_npz_with_fractions_for_indices(tmp_path):
    arrays = {"indices": np.array([0.5]), "indptr": [0, 1], "data": [1.0], "shape": [1, 2], "format": b"csr"}
    np.savez(tmp_path / "X.npz", **arrays)
    with pytest.raises(ValueError, match=r"X.npz: must be a whole .* got: indices must be integers"):
        data.read_matrix(tmp_path / "X.npz")


def test_duplicates_of_small_numbers_in_a_file(tmp_path):
    X = scipy.sparse.coo_matrix((np.array([200, 100], np.uint8), ([0, 0], [1, 1])), shape=(1, 3))
    scipy.sparse.save_npz(tmp_path / "X.npz", X)
    assert data.read_matrix(tmp_path / "X.npz").toarray().tolist() == [[0, 300, 0]]


# ------------------------------------------------------------------------------------------- widths


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


def test_a_narrower_test_file_beside_train(tmp_path):
    (tmp_path / "train.txt").write_text("1 5 4\n0,3 4:1\n")
    (tmp_path / "test.txt").write_text("1 2 3\n2 1:1\n")
    read = data.read_folder(tmp_path)
    assert read.test.X.toarray().tolist() == [[0, 1, 0, 0, 0]]
    assert read.test.Y.toarray().tolist() == [[0, 0, 1, 0]]
    assert any("test.txt: has 2 of 5 features" in remark for remark in read.remarks)


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


# ------------------------------------------------------------------------------------------- text


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


def test_halves_of_surrogate_pairs(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a cup \\ud83d", "labels": ["x"]}\n' * 2)
    read = data.read_folder(tmp_path)
    data.write_folder(tmp_path / "copy", read)
    assert data.read_folder(tmp_path / "copy").train.texts[0] == "a cup ?"


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


# ------------------------------------------------------------------------------------------- deepxml's layout


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


# ------------------------------------------------------------------------------------------- propensities


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("amazon-670k", (0.6, 2.6)), ("Amazon-3M", (0.6, 2.6)), ("LF-AmazonTitles-131K", (0.6, 2.6)),
        ("AmazonCat-13K", (0.55, 1.5)), ("wiki-500k", (0.5, 0.4)), ("WikiLSHTC-325K", (0.5, 0.4)),
        ("Wikipedia-500K", (0.5, 0.4)), ("LF-WikiTitles-500K", (0.5, 0.4)), ("wiki10-31k", (0.55, 1.5)),
        ("LF-WikiSeeAlso-320K", (0.55, 1.5)), ("wordnet", (0.55, 1.5)), ("", (0.55, 1.5)),
    ],
)  # fmt: skip
def test_propensity_constants(name, constants):
    assert metrics.propensity_constants(name) == constants


def test_propensities_are_of_all_of_train_and_the_datasets_own(here, capsys):
    folder = here / "amazon-670k"
    folder.mkdir()
    rng = np.random.default_rng(0)
    X = scipy.sparse.random(100, 30, density=0.2, format="csr", rng=rng)
    Y = scipy.sparse.csr_matrix(rng.random((100, 12)) < 0.15)
    data.write_xmc(folder / "train.txt", X, Y)
    data.write_xmc(folder / "test.txt", X[:30], Y[:30])
    arguments = ["train", "--dataset", folder, *FAST[:-1], "--output", "r"]  # a tenth of train held out
    assert run(*arguments) == 0
    assert "A=0.6, B=2.6, labels of 100 training documents" in capsys.readouterr().out
    model = mach_ext.load("r")
    labels = model.predict(X[:30], 12)[1]

    def psp(A, B):
        return metrics.psp_at_k(Y[:30], labels, metrics.inverse_propensity(Y, A, B), 1)

    test = json.loads((here / "r/metrics.json").read_text())["test"]
    assert test["PSP@1"] == pytest.approx(psp(0.6, 2.6))
    assert test["propensity"] == {"A": 0.6, "B": 2.6, "documents": 100}
    assert run("evaluate", "--model-path", "r", "--propensity", "0.5,0.4") == 0
    test = json.loads((here / "r/metrics.json").read_text())["test"]
    assert test["PSP@1"] == pytest.approx(psp(0.5, 0.4))
    (here / "part").mkdir()
    data.write_xmc(here / "part/test.txt", X[:30], Y[:30])
    assert run("evaluate", "--model-path", "r", "--dataset", "part") == 0
    test = json.loads((here / "r/metrics-part.json").read_text())["test"]
    assert test["PSP@1"] == pytest.approx(psp(0.6, 2.6))  # of the run's training, whatever is evaluated
    for wrong in ("1", "a,b", "-1,1", "1,0", "nan,1"):
        with pytest.raises(SystemExit):
            run("evaluate", "--propensity", wrong)


# ------------------------------------------------------------------------------------------- which data, runs


def test_the_users_folder_goes_before_the_registry(here, monkeypatch, capsys):
    monkeypatch.setenv("MACH_DATA", str(here / "cache"))
    monkeypatch.setattr(data.registry, "download", lambda *a, **k: pytest.fail("a download starts"))
    for name in ("Eurlex", "wiki10", "wordnet"):
        (here / name).mkdir()
        (here / name / "train.txt").write_text("1 2 3\n1 1:1\n")
        for given in (name, f"./{name}", here / name):
            assert data.load(given).name == name
            assert data.load(given).train.X.shape == (1, 2)
    (here / "amazoncat").mkdir()
    with pytest.raises(FileNotFoundError, match=r"goes before the known dataset amazoncat"):
        data.load("amazoncat")
    (here / "cache" / "eurlex").mkdir(parents=True)
    (here / "cache" / "eurlex" / "train.txt").write_text("1 2 4\n1 1:1\n")
    assert data.load("eurlex").num_labels == 4


def test_two_folders_of_one_name_and_another_seed(here, capsys):
    for where in ("one", "two"):
        (here / where / "data").mkdir(parents=True)
        (here / where / "data" / "train.txt").write_text("4 2 3\n0 0:1\n1 1:1\n2 0:1 1:1\n0 0:1\n")
    assert run("train", "--dataset", "one/data", *FAST) == 0
    before = sorted((p.name, p.read_bytes()) for p in (here / "runs/data").iterdir())
    capsys.readouterr()
    for other in (
        ["--dataset", "two/data"],
        ["--dataset", "one/data", "--seed", "1"],
        ["--dataset", "one/data"],
    ):
        assert run("train", *other, *FAST) == 1
        shown = capsys.readouterr().err
        assert f"holds a run on {here}/one/data, seed 0" in shown
        assert "--overwrite replaces it" in shown
        assert sorted((p.name, p.read_bytes()) for p in (here / "runs/data").iterdir()) == before
    assert run("train", "--dataset", "two/data", *FAST, "--overwrite") == 0
    assert runs.record_of(mach_ext.load("runs/data"))["dataset"] == str(here / "two/data")
    assert run("train", "--dataset", "two/data", *FAST, "--resume") == 0
    assert run("compress", "--split", "none", "--output", "one/small") == 0
    assert run("compress", "--split", "none", "--output", "one/small", "--step", "0.4") == 0  # the same run's
    (here / "runs/data/checkpoint.json").unlink()  # as --svm leaves a run
    assert run("train", "--dataset", "one/data", *FAST, "--resume") == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    arguments = ["compress", "--model-path", "one/small", "--split", "none", "--output", "runs/data"]
    assert run(*arguments) == 1  # no compressed copy
    assert run("train", "--dataset", "one/data", *FAST, "--seed", "2", "--output", "r") == 0
    capsys.readouterr()
    arguments = ["compress", "--model-path", "r", "--split", "none", "--output", "one/small"]
    assert run(*arguments) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0


def test_the_training_folder_by_another_path_is_split_as_in_training(here, capsys):
    (here / "data").mkdir()
    rows = "".join(f"{i % 5} {i % 7}:1\n" for i in range(40))
    (here / "data" / "train.txt").write_text(f"40 7 5\n{rows}")
    (here / "link").symlink_to(here / "data")
    assert run("train", "--dataset", "data", *FAST, "--output", "r") == 0  # --no-holdout
    shutil.copytree(here / "data", here / "copy")
    assert run("data", "convert", "--dataset", "data", "--output", "npz") == 0
    for other in ("data", "./data", here / "data", "link", "link/../data", "copy", "npz"):
        capsys.readouterr()
        assert run("evaluate", "--model-path", "r", "--dataset", other, "--split", "dev") == 1
        assert "no dev split; there are: train" in capsys.readouterr().err
    for name in ("copy", "data"):  # nor is it when the documents are not quite the same any more
        (here / name / "train.txt").write_text(f"41 7 5\n{rows}1 0:1\n")
        assert run("evaluate", "--model-path", "r", "--dataset", name, "--split", "dev") == 1
        assert "no dev split; there are: train" in capsys.readouterr().err


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


def test_constants_survive_a_kill_and_a_resume(here, capsys, monkeypatch):
    (here / "data").mkdir()
    rows = "".join(f"{i % 5} {i % 7}:1\n" for i in range(40))
    (here / "data" / "train.txt").write_text(f"40 7 5\n{rows}")
    arguments = ["train", "--dataset", "data", *FAST, "--output", "r"]
    stopped = mach_ext.training.run.TrainingRun.finish_epoch

    def stop(self):
        self.checkpoint()
        raise KeyboardInterrupt

    monkeypatch.setattr(mach_ext.training.run.TrainingRun, "finish_epoch", stop)
    assert run(*arguments, "--propensity", "0.1,9") == 1
    monkeypatch.setattr(mach_ext.training.run.TrainingRun, "finish_epoch", stopped)
    assert run(*arguments) == 1
    assert "holds a run that was not finished" in capsys.readouterr().err
    assert run(*arguments, "--resume") == 0
    assert runs.record_of(mach_ext.load("r"))["propensity"] == [0.1, 9.0]


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


def test_training_documents_are_never_shown_as_dev(here, capsys):
    rows = [f"{i % 5} {i % 7}:1" for i in range(40)]

    def write(folder, split, rows):
        (here / folder).mkdir(exist_ok=True)
        (here / folder / f"{split}.txt").write_text("\n".join([f"{len(rows)} 7 5", *rows]))

    write("data", "train", rows)
    arguments = [*FAST[:-1], "--epochs", "1"]  # a tenth held out
    assert run("train", "--dataset", "data", *arguments, "--output", "held") == 0
    assert run("evaluate", "--model-path", "held", "--split", "dev") == 0
    write("shuffled", "train", rows[::-1])  # the tenth is others' here
    assert run("evaluate", "--model-path", "held", "--split", "dev", "--dataset", "shuffled") == 1
    assert "train is not as it was in training, so no dev split" in capsys.readouterr().err
    write("data", "dev", rows[:4])
    assert run("train", "--dataset", "data", *arguments, "--output", "file") == 0  # nothing was held out
    (here / "data" / "dev.txt").unlink()
    for dataset in ([], ["--dataset", "data"]):
        assert run("evaluate", "--model-path", "file", "--split", "dev", *dataset) == 1
        assert "no dev split; there are: train" in capsys.readouterr().err


def test_two_evaluated_folders_of_one_name(here, capsys):
    (here / "data").mkdir()
    (here / "data" / "train.txt").write_text("4 2 3\n0 0:1\n1 1:1\n2 0:1 1:1\n0 0:1\n")
    assert run("train", "--dataset", "data", *FAST, "--output", "r") == 0
    for where, label in (("one", 0), ("two", 2)):
        (here / where / "new").mkdir(parents=True)
        (here / where / "new" / "test.txt").write_text(f"1 2 3\n{label} 0:1\n")
    for _ in range(2):
        for where in ("one", "two"):
            arguments = ["evaluate", "--model-path", "r", "--dataset", f"{where}/new"]
            assert run(*arguments) == 0
    records = [json.loads(file.read_text()) for file in (here / "r").glob("metrics-new*.json")]
    assert {record["path"]: record["test"]["P@1"] for record in records} == {
        str(here / "one/new"): 1.0,
        str(here / "two/new"): 0.0,
    }
