"""Which data a run is of: folders of one name, the split of training, resumed runs."""

import json
import shutil

import numpy as np
import pytest
import scipy.sparse
from data_cases import FAST, run

import mach_ext
from mach_ext import data, metrics, runs


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
        assert run("evaluate", "--propensity", wrong) == 2


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
