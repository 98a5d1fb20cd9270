"""The command line and Python are two doors of one product: the same bits, files and refusals."""

import contextlib
import inspect
import json
import runpy
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse
import typer
from helpers import ROOT

import mach_ext
from mach_ext import cli, data, runs, svm

D, L = 30, 12
SMALL = {"epochs": 4, "hidden_size": 16, "num_repetitions": 8, "num_buckets": 8, "batch_size": 20}
FLAGS = ("--epochs", 4, "--hidden-size", 16, "--hash-functions", 8, "--buckets", 8, "--batch-size", 20)


def command(*argv):
    assert cli.main([str(each) for each in argv]) == 0


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Documents as raw text in JSON lines, with train and test."""
    folder, rng = tmp_path_factory.mktemp("data") / "texts", np.random.default_rng(0)
    folder.mkdir()
    for name, n in (("train", 150), ("test", 30)):
        lines = []
        for _ in range(n):
            labels = rng.choice(L, 2, replace=False)
            text = " ".join(f"word{label} word{(label + 1) % L} filler" for label in labels)
            lines.append(json.dumps({"text": text, "labels": [f"topic {label}" for label in labels]}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Documents as vectors in XMC text, with train, dev and test."""
    folder, rng = tmp_path_factory.mktemp("data") / "vectors", np.random.default_rng(1)
    folder.mkdir()
    for name, n in (("train", 120), ("dev", 30), ("test", 30)):
        rows, labels = np.repeat(np.arange(n), 2), rng.integers(0, L, 2 * n)
        Y = scipy.sparse.csr_matrix((np.ones(2 * n), (rows, labels)), (n, L))
        X = scipy.sparse.csr_matrix((rng.random(2 * n), (rows, labels * 2)), (n, D))
        data.write_xmc(folder / f"{name}.txt", X, Y)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    mach_ext.train(texts, output=folder, progress=False, **SMALL)
    return folder


def without_seconds(record):
    """A record without what the clock has put there, and without the seal over it."""
    if isinstance(record, dict):
        passing = {"seconds", "sha256", "folder", "path"}
        return {key: without_seconds(value) for key, value in record.items() if key not in passing}
    return [without_seconds(each) for each in record] if isinstance(record, list) else record


def content(folder):
    """Every file of a folder by name; JSON without the clock's part."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".json":
            files[file.name] = without_seconds(json.loads(file.read_text()))
        else:
            files[file.name] = file.read_bytes()
    return files


TRAININGS = {
    "default sizes": ((), {}),
    "hidden": (FLAGS, SMALL),
    "linear": (
        ("--hidden-size", 0, "--epochs", 3, "--repetitions-at-a-time", 4),
        {"hidden_size": 0, "epochs": 3, "repetitions_at_a_time": 4},
    ),
    "two layers": (
        ("--hidden-size", "16,8", "--encoder", "independent", "--epochs", 2, "--dropout", 0.2),
        {"hidden_size": (16, 8), "encoder": "independent", "epochs": 2, "hidden_dropout": 0.2},
    ),
    "svm": (("--svm", "--C", 2, "--merge", "mean_prob"), {"svm": True, "C": 2.0, "merge": "mean_prob"}),
    "no holdout": (
        (*FLAGS, "--no-holdout", "--propensity", "0.6,2.6", "--seed", 7),
        {**SMALL, "holdout": False, "propensity": (0.6, 2.6), "seed": 7},
    ),
}


@pytest.mark.parametrize("dataset", ["texts", "vectors"])
@pytest.mark.parametrize("name", TRAININGS)
def test_train(here, request, name, dataset):
    """Weights, names, counts, record, metrics, checkpoint: the same files with the same bytes."""
    folder = request.getfixturevalue(dataset)
    flags, arguments = TRAININGS[name]
    command("train", "--dataset", folder, "--output", "a", "--quiet", *flags)
    run = mach_ext.train(folder, output="b", progress=False, **arguments)
    a, b = content(here / "a"), content(here / "b")
    assert list(a) == list(b)
    for file in a:
        assert a[file] == b[file], file
    assert {"model.json", "metrics.json"} <= set(a)
    assert run.metrics["test"]["P@1"] == a["metrics.json"]["test"]["P@1"]


def test_the_default_solver_and_folder(here, texts, monkeypatch, caplog):
    monkeypatch.setattr(svm, "prefer_svm", lambda Y, D: True)
    command("train", "--dataset", texts, "--quiet")
    first = content(here / "runs" / "texts")
    (here / "runs").rename("former")
    with caplog.at_level("INFO", "mach_ext"):
        run = mach_ext.train(str(texts), progress=False)
    assert run.folder.resolve() == here / "runs" / "texts"
    assert content(run.folder) == first
    assert run.model.is_linear
    assert "support vector machines are trained (svm=False: a hidden layer)" in caplog.text


def test_a_loaded_dataset_and_resume(here, texts):
    dataset = data.load(texts)
    command("train", "--dataset", texts, "--output", "a", "--quiet", *FLAGS)
    mach_ext.train(dataset, output="b", progress=False, **SMALL)
    assert content(here / "a") == content(here / "b")
    for folder in ("a", "b"):
        with pytest.raises(ValueError, match=r"holds a run on .*; overwrite=True replaces it, output names"):
            mach_ext.train(dataset, output=folder, progress=False, **SMALL)
    command("train", "--dataset", texts, "--output", "a", "--quiet", "--resume", *FLAGS)
    mach_ext.train(dataset, output="b", progress=False, resume=True, **SMALL)
    assert content(here / "a") == content(here / "b")


def test_evaluate(here, trained):
    command("evaluate", "--model-path", trained, "--output", "a")
    command("evaluate", "--model-path", trained, "--output", "a", "--neighbors")
    command("evaluate", "--model-path", trained, "--output", "a", "--split", "dev", "--propensity", "0.5,0.4")
    run = mach_ext.Run.open(trained)
    plain = run.evaluate(output="b")
    run.evaluate(output="b", neighbors=True)
    run.evaluate("dev", output="b", propensity=(0.5, 0.4))
    assert content(here / "a") == content(here / "b")
    assert plain["P@1"] == json.loads((here / "a" / "metrics.json").read_text())["test"]["P@1"]
    former = (trained / "metrics.json").read_bytes()
    assert run.evaluate("train", save=False)["P@1"] > 0
    assert (trained / "metrics.json").read_bytes() == former


def test_evaluate_in_bfloat16(here, trained, capsys):
    """Its metrics have a name and an entry of their own, and stand beside those of float32."""
    bfloat16 = ("--precision", "bfloat16")
    command("evaluate", "--model-path", trained, "--output", "a")
    command("evaluate", "--model-path", trained, "--output", "a", *bfloat16)
    assert "test+bfloat16" in capsys.readouterr().out
    command("evaluate", "--model-path", trained, "--output", "a", *bfloat16, "--neighbors")
    run = mach_ext.Run.open(trained)
    run.evaluate(output="b")
    result = run.evaluate(output="b", precision="bfloat16")
    run.evaluate(output="b", precision="bfloat16", neighbors=True)
    assert content(here / "a") == content(here / "b")
    record = json.loads((here / "a" / "metrics.json").read_text())
    assert record["test+bfloat16"]["nDCG@5"] == result["nDCG@5"]
    assert (
        record["test+bfloat16"]["precision"] == record["test+neighbors+bfloat16"]["precision"] == "bfloat16"
    )
    assert "precision" not in record["test"]


def test_predict_in_bfloat16(trained, capsys):
    text = "word1 word2 filler"
    flags = ("--k", 3, "--format", "jsonl", "--text", text)
    command("predict", "--model-path", trained, "--precision", "bfloat16", *flags)
    (line,) = capsys.readouterr().out.splitlines()
    run = mach_ext.Run.open(trained)
    (answer,) = run.predict(text, k=3, precision="bfloat16")
    assert [best["score"] for best in json.loads(line)["labels"]] == [best.score for best in answer]
    assert answer != run.predict(text, k=3)[0]
    assert answer == run.predict([text, "word7"], k=3, precision="bfloat16")[0]
    with pytest.raises(
        ValueError, match="predict: precision must be one of float32, bfloat16, int8, got 'tf32'"
    ):
        run.predict(text, precision="tf32")


def test_predict(here, trained, texts, capsys):
    asked = ["word1 word2 filler", "nothing known", "word7 word8"]
    flags = [flag for text in asked for flag in ("--text", text)]
    command("predict", "--model-path", trained, "--k", 3, "--format", "jsonl", *flags)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    run = mach_ext.Run.open(trained)
    answers = run.predict(asked, k=3)
    for line, answer in zip(lines, answers, strict=True):
        assert [best["label"] for best in line["labels"]] == [best.label for best in answer]
        scores = [np.nan if best["score"] is None else best["score"] for best in line["labels"]]
        np.testing.assert_array_equal(scores, [best.score for best in answer])
    assert run.predict(asked[0], k=3) == answers[:1]
    assert answers[0][0].label == run.columns.label_names[answers[0][0].id]
    command("predict", "--model-path", trained, "--split", "test", "--output", "out")
    table = [line.split("\t") for line in (here / "out" / "predictions.tsv").read_text().splitlines()]
    for answer, row in zip(run.predict(split="test"), table, strict=True):
        assert row == [cell for best in answer for cell in (best.label, f"{best.score:.6g}")]
    by_file = run.predict(file=texts / "test.jsonl")
    assert by_file == run.predict(split="test") == run.predict(X=run.dataset().test.X)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "predict: needs one of texts, X, file, stream, split, got 0"),
        ({"texts": ["a"], "split": "test"}, "got 2"),
        ({"texts": ["a"], "dataset": "x"}, "dataset needs split"),
        ({"texts": ["a"], "k": 13}, r"predict: k must be in 0 \.\.\. L=12, got 13"),
        ({"split": "dev2"}, r"no dev2 split; there are: train, dev, test \(split, dataset\)"),
    ],
)
def test_predict_refuses(trained, source, message):
    with pytest.raises(ValueError, match=message):
        mach_ext.Run.open(trained).predict(**source)


def test_explain(here, trained):
    command("explain", "--model-path", trained, "--text", "word1 word2 filler", "--output", "a", "--k", 3)
    run = mach_ext.Run.open(trained)
    result = run.explain("word1 word2 filler", k=3, output="b")
    assert content(here / "a") == content(here / "b")
    assert set(content(here / "a")) == {"explanation.json", "explanation.png", "explanation.html"}
    assert result.top(1)[0][0] in ("word1", "word2")
    command("explain", "--model-path", trained, "--sample-id", 3, "--label", "topic 2", "--html", "a.html")
    run.explain(sample_id=3, labels=["topic 2"]).to_html("b.html")
    assert (here / "a.html").read_bytes() == (here / "b.html").read_bytes()
    for wrong in ({}, {"text": "word1", "sample_id": 1}):
        with pytest.raises(ValueError, match="explain: needs either text or sample_id"):
            run.explain(**wrong)
    with pytest.raises(ValueError, match=r"sample_id must be in 0 \.\.\. 29, the test split, got -1"):
        run.explain(sample_id=-1)


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ((), {}),
        (
            ("--attack", "delete", "--targeted", "--sample", 10),
            {"method": "delete", "targeted": True, "sample": 10},
        ),
        (
            ("--eps", "0.1,0.2", "--threat", "l2", "--certify", "--goal", "own", "--split", "dev"),
            {"epsilons": [0.1, 0.2], "threat_model": "l2", "certify": True, "goal": "own", "split": "dev"},
        ),
    ],
    ids=["fgsm", "delete", "certified"],
)  # fmt: skip
def test_attack(here, trained, flags, arguments):
    command("attack", "--model-path", trained, "--output", "a", "--report", "a/a.html", "--quiet", *flags)
    result = mach_ext.Run.open(trained).attack(output="b", progress=False, **arguments)
    result.to_html("b/a.html")
    assert content(here / "a") == content(here / "b")
    assert result.clean["P@1"] == result.adversarial[0]["metrics"]["P@1"]


def test_compress(here, trained):
    command("compress", "--model-path", trained, "--output", "a", "--step", 0.3)
    copy = mach_ext.Run.open(trained).compress("b", quantization_step=0.3)
    a, b = content(here / "a"), content(here / "b")
    assert a == b
    assert copy.metrics["test"] == json.loads((here / "a" / "metrics.json").read_text())["test"]
    assert copy.predict("word1")[0][0].label


def test_info(trained, capsys):
    command("info", "--model-path", trained, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(mach_ext.Run.open(trained).info()))


REFUSALS = [
    (("--svm", "--epochs", 2), {"svm": True, "epochs": 2}, "--svm takes no --epochs", "svm takes no epochs"),
    (
        ("--svm", "--dropout", 0.5), {"svm": True, "hidden_dropout": 0.5},
        "--svm takes no --dropout", "svm takes no hidden_dropout",
    ),
    (("--no-svm", "--C", 2), {"svm": False, "C": 2.0}, "--C is an option", "C is an option .*, see svm"),
    (
        ("--no-svm", "--step", 0.5), {"svm": False, "quantization_step": 0.5},
        "--step is an option", "quantization_step is an option .*, see svm",
    ),
    (("--device", "tpu"), {"device": "tpu"}, "--device must be cpu", "device must be cpu, cuda or cuda:N"),
    (("--output", "file"), {"output": "file"}, "--output must be a", "train: output must be a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "arguments", "by_command", "by_python"), REFUSALS)
def test_refusals_name_the_argument_as_it_was_written(
    here, texts, capsys, flags, arguments, by_command, by_python
):
    (here / "file").write_text("")
    assert cli.main(["train", "--dataset", str(texts), "--output", "r", *map(str, flags)]) == 1
    assert by_command in capsys.readouterr().err
    with pytest.raises(ValueError, match=by_python):
        mach_ext.train(texts, **{"output": "r", **arguments})
    assert sorted(file.name for file in here.iterdir()) == ["file"]


def test_unknown_arguments(texts):
    with pytest.raises(TypeError, match="train: unknown argument 'epoch'; hyper-parameters: epochs, batch"):
        mach_ext.train(texts, epoch=3)


def test_every_flag_has_an_argument():
    """Whoever adds a flag to `train` is reminded of the other door."""
    named = {"no_holdout": "holdout", "quiet": "progress", "negligible_gradient": "gradient_threshold",
             "threads": None}  # fmt: skip
    options = typer.main.get_command(cli.app).commands["train"].params
    known = {*inspect.signature(mach_ext.train).parameters} | {
        *mach_ext.training.Hyperparameters.__dataclass_fields__
    }
    flags = {named.get(option.name, option.name) for option in options} - {None}
    assert flags <= known
    assert known - flags == {"evaluate", "hyperparameters"}


def test_remarks_are_logged(here, texts, caplog):
    """Python's door prints nothing of its own; the logger has what the command says."""
    with caplog.at_level("INFO", "mach_ext"), contextlib.redirect_stderr(None):
        mach_ext.train(texts, output="r", progress=False, **SMALL)
    assert "parameters; run folder r" in caplog.text
    assert "metrics: r/metrics.json" in caplog.text


def test_the_example_is_one_call_whose_model_answers_texts(here, texts, capsys, monkeypatch):
    source = (ROOT / "examples" / "train.py").read_text()
    assert source.count("mach_ext.train(") == 1
    assert "MACH(" not in source
    monkeypatch.setattr(sys, "argv", ["train.py", str(texts), "--output", "r", "--epochs", "4"])
    runpy.run_path(str(ROOT / "examples" / "train.py"))["main"]()
    command("train", "--dataset", texts, "--output", "c", "--epochs", 4, "--quiet")
    assert content(here / "r") == content(here / "c")
    capsys.readouterr()
    command("predict", "--model-path", "r", "--text", "word1 word2")
    assert capsys.readouterr().out.startswith("topic ")


def test_run_opens_the_newest(here, texts):
    mach_ext.train(texts, output="runs/old", progress=False, **SMALL)
    mach_ext.train(texts, output="runs/new", progress=False, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mach_ext.Run.open().folder.name == "new"
    with pytest.raises(ValueError, match=r"nowhere: not a mach_ext model: .*\(folder names the folder"):
        runs.Run.open("nowhere")


def test_a_copy_is_measured_once(here, trained, monkeypatch):
    """What the run itself reaches is only asked where both are shown."""
    measured, evaluate = [], runs.evaluation.evaluate

    def counted(model, *args, **kwargs):
        measured.append(model)
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(runs.evaluation, "evaluate", counted)
    copy = mach_ext.Run.open(trained).compress("copy")
    assert measured == [copy.model]
