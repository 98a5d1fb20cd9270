"""The command line, run as a user runs it: in a folder of its own, small data, real files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

import mach_ext
from mach_ext import cli, data, svm

L, D = 40, 80
WORDS = [f"w{i}" for i in range(D)]


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    """200/40/40 documents with label names, as XMC text."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, n in (("train", 200), ("dev", 40), ("test", 40)):
        rows, labels = np.repeat(np.arange(n), 2), rng.integers(0, L, 2 * n)
        Y = scipy.sparse.csr_matrix((np.ones(2 * n), (rows, labels)), (n, L))
        X = scipy.sparse.csr_matrix((np.ones(2 * n), (rows, labels * 2)), (n, D))
        data.write_xmc(folder / f"{name}.txt", X, Y)
    (folder / "labels.txt").write_text("".join(f"{i}\tlabel {i}\n" for i in range(L)))
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """The same kind of thing as JSON lines of raw text."""
    folder = tmp_path_factory.mktemp("data") / "texts"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name, n in (("train", 300), ("dev", 30), ("test", 30)):
        lines = []
        for _ in range(n):
            labels = rng.choice(10, 2, replace=False)
            lines.append(
                json.dumps(
                    {"text": " ".join(f"word{i}" for i in labels), "labels": [f"topic {i}" for i in labels]}
                )
            )
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


FAST = ["--epochs", "20", "--hidden-size", "64", "--learning_rate", "0.02", "--batch-size", "20", "--quiet",
        "--hash_functions", "8", "--buckets", "16", "--dropout", "0"]  # fmt: skip


def run(*argv):
    return cli.main([str(a) for a in argv])


def test_train_evaluate_predict_info(here, dataset_folder, capsys):
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    folder = here / "runs" / "tiny"
    record = json.loads((folder / "metrics.json").read_text())
    assert record["test"]["P@1"] > 0.8
    assert record["dataset"] == "tiny"
    assert record["model"]["num_buckets"] == 16
    assert {"load", "train", "evaluate"} <= set(record["seconds"])
    assert {"P@1", "P@3", "P@5", "nDCG@1", "PSP@5", "PSnDCG@5", "R@10", "R@50", "bands"} <= set(
        record["test"]
    )
    assert set(record["test"]["bands"]) == {"head", "torso", "tail"}
    assert [entry["epoch"] for entry in record["history"]] == list(range(1, 21))
    table = capsys.readouterr().out
    assert "P@1" in table
    assert "torso" in table

    assert run("evaluate", "--split", "dev") == 0
    shown = capsys.readouterr()
    assert "using the newest run, runs/tiny" in shown.err
    again = json.loads((folder / "metrics.json").read_text())
    assert again["dev"] == record["dev"]  # the model on disk is the one that was evaluated after training
    assert again["test"] == record["test"]  # and the other split's results stay

    assert run("predict", "--split", "test", "--k", "3", "--format", "jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scores, labels = mach_ext.load(folder).predict(data.load(dataset_folder).test.X, 3)
    assert [[p["label"] for p in line["labels"]] for line in lines] == [
        [f"label {i}" for i in row] for row in labels
    ]
    np.testing.assert_allclose([[p["score"] for p in line["labels"]] for line in lines], scores, rtol=1e-6)

    assert run("info") == 0
    shown = capsys.readouterr().out
    for part in ("encoder_weight", "training, peak", "label pairs that share all their buckets", "epoch 20:"):
        assert part in shown
    assert run("info", "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory"]["cuda"]["weights"] > 0


def test_train_with_svms(here, dataset_folder, capsys):
    few = ["--hash-functions", "4", "--buckets", "16", "--quiet"]
    assert run("train", "--dataset", dataset_folder, "--svm", *few) == 0
    model = mach_ext.load(here / "runs" / "tiny")
    assert model.is_linear
    assert model.merge == "mean_logprob"
    assert json.loads((here / "runs" / "tiny" / "metrics.json").read_text())["test"]["P@1"] > 0.8
    assert run("evaluate") == 0
    assert run("evaluate", "--neighbors") == 0
    assert run("explain", "--sample-id", "0", "--k", "1") == 0
    assert run("info") == 0
    capsys.readouterr()
    for given, message in (
        (["--epochs", "3"], "--svm takes no --epochs"),
        (["--resume", "--tau", "0.3", "--dropout", "0.1"], "--svm takes no --tau, --dropout"),
        (["--hidden-size", "8"], "is for linear MACH"),
        (["--encoder", "shared", "--epochs", "0"], "--svm takes no --epochs, --encoder"),
        (["--no-svm", "--C", "2"], "--C is an option of support vector machines"),
    ):
        assert run("train", "--dataset", dataset_folder, "--svm", "--overwrite", *few, *given) == 1
        assert message in capsys.readouterr().err


def test_svms_are_resumed(here, dataset_folder, capsys, monkeypatch):
    given = ["train", "--dataset", dataset_folder, "--hash-functions", "4", "--buckets", "16", "--quiet"]
    assert run(*given, "--svm", "--output", "whole") == 0
    original, left = mach_ext._ops.bucket_svm, iter(range(2))

    def solve(*args, **kwargs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(mach_ext._ops, "bucket_svm", solve)
        assert run(*given, "--svm", "--resume", "--output", "run") != 0
    assert len([*(here / "run").glob("checkpoint-*.safetensors")]) == 2
    assert run(*given, "--svm", "--output", "run") == 1
    assert "--resume continues the training" in capsys.readouterr().err
    assert run(*given, "--svm", "--resume", "--C", "2", "--output", "run") == 1
    assert "solver.C was 1.0, now 2.0" in capsys.readouterr().err
    monkeypatch.setattr(svm, "prefer_svm", lambda Y, D: True)
    assert run(*given, "--resume", "--output", "run") == 0  # the default solver stays
    assert not [*(here / "run").glob("checkpoint*")]
    resumed, whole = (mach_ext.load(here / name) for name in ("run", "whole"))
    assert resumed.bucket_weight.equal(whole.bucket_weight)
    assert run(*given, "--resume", "--output", "run") == 0  # once more
    assert run(*given, "--resume", "--C", "2", "--output", "run") == 1
    assert "holds a run on" in capsys.readouterr().err


def test_svms_where_they_are_worth_it(here, dataset_folder, capsys, monkeypatch):
    monkeypatch.setattr(svm, "prefer_svm", lambda Y, D: True)
    few = ["train", "--dataset", dataset_folder, "--hash-functions", "8", "--buckets", "16"]
    folder = here / "runs" / "tiny"
    assert run(*few) == 0
    assert "support vector machines are trained (--no-svm" in capsys.readouterr().err
    assert mach_ext.load(folder).is_linear
    for flags in (["--epochs", "1"], ["--no-svm"], ["--hidden-size", "8"]):
        assert run(*few, "--overwrite", *flags) == 0
        assert not mach_ext.load(folder).is_linear


def test_predict_from_files_is_one_answer_whatever_the_format(here, dataset_folder, capsys):
    run("train", "--dataset", dataset_folder, *FAST[:-2], "--epochs", "1", "--hash-functions", "8")
    test = data.load(dataset_folder).test
    data.write_npz(here / "x.npz", test.X)
    data.write_xmc(here / "x.txt.xz", test.X, test.Y)
    rows = test.X
    (here / "x.svm").write_text(
        "".join(
            "0 " + " ".join(f"{j}:{v}" for j, v in zip(rows[i].indices, rows[i].data, strict=True)) + "\n"
            for i in range(rows.shape[0])
        )
    )
    capsys.readouterr()
    answers = []
    for file in ("x.npz", "x.txt.xz", "x.svm"):
        assert run("predict", "--input", file) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0].splitlines()) == 40
    assert run("predict", "--input", "x.npz", "--output", "out") == 0
    assert (here / "out" / "predictions.tsv").read_text() == answers[0]


def test_raw_text_in_label_names_out(here, text_folder, capsys, monkeypatch):
    assert run("train", "--dataset", text_folder, *FAST) == 0
    capsys.readouterr()
    assert run("predict", "--text", "word3 word7", "--text", "word0", "--k", "2") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert set(first.split("\t")[::2]) == {"topic 3", "topic 7"}
    assert second.split("\t")[0] == "topic 0"
    assert run("predict", "--input", text_folder / "test.jsonl", "--k", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 30


def test_linear_and_resume(here, dataset_folder, capsys):
    arguments = ["train", "--dataset", dataset_folder, *FAST, "--hidden-size", "0", "--learning-rate", "0.5"]
    assert run(*arguments) == 0
    before = json.loads((here / "runs/tiny/metrics.json").read_text())
    assert before["test"]["P@1"] > 0.8
    assert run(*arguments, "--resume") == 0
    assert json.loads((here / "runs/tiny/metrics.json").read_text())["test"] == before["test"]
    assert run(*arguments, "--resume", "--batch-size", "21") == 1
    assert "hyperparameters.batch_size was 20, now 21" in capsys.readouterr().err


def test_warns_about_colliding_labels(here, dataset_folder):
    arguments = ["train", "--dataset", dataset_folder, *FAST, "--epochs", "1", "--hash_functions", "1"]
    run = subprocess.run([sys.executable, "-m", "mach_ext", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("mach-ext: warning: ") == 1
    assert "label pairs share their bucket in the only repetition" in run.stderr


def test_compress(here, dataset_folder, capsys):
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    capsys.readouterr()
    assert run("compress", "--step", "0.05") == 0
    out = capsys.readouterr()
    assert "using the newest run, runs/tiny" in out.err
    small = here / "runs" / "tiny-small"
    shown = dict(line.split(maxsplit=1) for line in out.out.splitlines())
    sizes = [
        sum(
            file.stat().st_size
            for file in folder.iterdir()
            if file.name not in ("metrics.json", "checkpoint.json")
        )
        for folder in (here / "runs" / "tiny", small)
    ]
    assert shown["bytes"].split() == [f"{size:,}" for size in sizes]
    assert sizes[1] < sizes[0] / 2
    kept = json.loads((small / "metrics.json").read_text())["test"]
    before = json.loads((here / "runs" / "tiny" / "metrics.json").read_text())["test"]
    assert shown["P@1"].split() == [f"{before['P@1']:.4f}", f"{kept['P@1']:.4f}"]
    assert kept["P@1"] > before["P@1"] - 0.05

    assert run("evaluate", "--model-path", small) == 0  # the copy knows its dataset
    assert json.loads((small / "metrics.json").read_text())["test"] == kept
    capsys.readouterr()
    assert (
        run("compress", "--model-path", small, "--split", "none", "--step", "0.05", "--output", "again") == 0
    )
    assert capsys.readouterr().out.splitlines()[-1].split() == ["bytes", f"{sizes[1]:,}", f"{sizes[1]:,}"]
    assert not (here / "again" / "metrics.json").exists()

    assert run("compress", "--model-path", small, "--output", "runs/../runs/tiny-small") == 1
    assert "--output must be another folder than the model's" in capsys.readouterr().err
    assert run("compress", "--output", "runs/tiny") == 1  # the newest run is not the copy
    shown = capsys.readouterr().err
    assert "using the newest run, runs/tiny\n" in shown
    assert "--output must be another folder than the model's" in shown
    assert run("compress", "--model-path", small, "--output", "runs/tiny") == 1
    assert "--output must not be the folder of a training run, got runs/tiny" in capsys.readouterr().err


def test_compress_to_8_bits(here, dataset_folder, capsys):
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    capsys.readouterr()
    assert run("compress", "--precision", "int8") == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    small = here / "runs" / "tiny-int8"
    before, after = (int(size.replace(",", "")) for size in shown["bytes"].split())
    assert after < before
    kept = json.loads((small / "metrics.json").read_text())["test"]
    assert shown["P@1"].split()[1] == f"{kept['P@1']:.4f}"
    assert kept["P@1"] > json.loads((here / "runs/tiny/metrics.json").read_text())["test"]["P@1"] - 0.05

    assert run("evaluate", "--model-path", small) == 0  # in its own precision
    capsys.readouterr()
    assert json.loads((small / "metrics.json").read_text())["test"] == kept
    assert run("evaluate", "--precision", "int8") == 0  # the run itself, rounded for this call
    capsys.readouterr()
    metrics = json.loads((here / "runs/tiny/metrics.json").read_text())
    assert metrics["test+int8"] == {**kept, "precision": "int8"}
    answers = []
    for arguments in (("--model-path", small), ("--precision", "int8")):
        assert run("predict", "--split", "test", "--format", "jsonl", *arguments) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert run("info", "--model-path", small) == 0
    out = capsys.readouterr().out
    assert "torch.int8" in out
    assert "training, peak" not in out
    assert run("info", "--model-path", small, "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["memory"]) == ["cpu"]


def test_commands_on_a_run_of_8_bits(here, dataset_folder, capsys):
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    assert run("compress", "--precision", "int8", "--split", "none") == 0
    small, widened = here / "runs" / "tiny-int8", "explanations and attacks take these weights in float32"
    capsys.readouterr()
    assert run("explain", "--model-path", small, "--sample-id", "0", "--output", "page") == 0
    assert capsys.readouterr().err.count(widened) == 1
    attack = ("attack", "--model-path", small, "--eps", "0.1", "--sample", "10")
    assert run(*attack) == 0
    assert capsys.readouterr().err.count(widened) == 1
    assert run(*attack, "--certify") == 1
    assert "attack: --certify is for float32, and the model in" in capsys.readouterr().err
    assert run("bench", "--model-path", small, "--seconds", "0.01") == 1
    assert "bench: the model has 8 bits; give the run in float32" in capsys.readouterr().err
    assert run("predict", "--model-path", small, "--split", "test", "--precision", "float32") == 1
    assert "precision must be int8, because the model is quantized, got 'float32'" in capsys.readouterr().err
    assert run("compress", "--model-path", small) == 1
    assert "the model has 8 bits already; compress the run" in capsys.readouterr().err
    assert run("compress", "--precision", "int8", "--step", "0.5") == 1
    assert "compress: int8 has no step, got --step 0.5" in capsys.readouterr().err


def test_data_commands(here, dataset_folder, capsys):
    assert run("data", "info") == 0
    assert "wordnet" in capsys.readouterr().out
    assert run("data", "info", "--dataset", dataset_folder) == 0
    assert json.loads(capsys.readouterr().out)["num_labels"] == L
    for name, arguments in (("npz", []), ("xmc", ["--format", "xmc", "--compression", "xz"])):
        assert run("data", "convert", "--dataset", dataset_folder, "--output", name, *arguments) == 0
        first, second = data.load(dataset_folder), data.load(here / name)
        assert (first.train.X != second.train.X).nnz == 0
        assert (first.test.Y != second.test.Y).nnz == 0
        assert list(second.label_names) == list(first.label_names)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate"], "no model in .*runs: give --model-path, or train one"),
        (["info", "--model-path", "nowhere"], "nowhere: not a mach_ext model: no such folder"),
        (["train", "--dataset", "no-such-set"], "a dataset must be a folder, .* got 'no-such-set'"),
        (["data", "convert", "--dataset", "."], "needs --output DIR"),
    ],
)
def test_failures_exit_1_with_one_clear_line(here, capsys, argv, message):
    assert run(*argv) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("mach-ext: ")
    assert len(errors.strip().splitlines()) == 1
    assert __import__("re").search(message, errors)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "a command is required: train, "),
        (["train"], "--dataset is required"),
        (["train", "--dataset", "x", "--buckets", "0"], "must be a whole number of at least 1, got '0'"),
        (["train", "--dataset", "x", "--hidden-size", "a"], "hidden-size"),
        (["predict", "--text", "a", "--input", "b"], "--input is not allowed with --text"),
        (["fly"], "unknown command 'fly'"),
    ],
)
def test_wrong_usage_exits_2(here, capsys, argv, message):
    assert run(*argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--k", "41"], "--k must be in 0 ... L=40, got 41"),
        (["--text", "a"], "trained on vectors, not on text"),
        (["--input", "x.csv"], "must end in .jsonl"),
        (["--input", "wide.npz"], "wide.npz: must have at most the model's D=80 columns, got shape (1, 81)"),
        (["--split", "train", "--model-path", "bare"], "does not say which dataset it was trained on"),
        (["--input", "x.svm"], "say whether features count from 0 or 1: --svmlight-base"),
    ],
)
def test_predict_refuses(here, dataset_folder, capsys, argv, message):
    folder = here / "runs" / "tiny"
    mach_ext.MACH(D, L, num_repetitions=8, num_buckets=16, hidden_size=4).save(folder)
    mach_ext.MACH(D, L, num_repetitions=8, num_buckets=16, hidden_size=4).save(here / "bare")
    (here / "x.svm").write_text("0 1:1\n")
    data.write_npz(here / "wide.npz", scipy.sparse.csr_matrix((1, 81)))
    assert run("predict", *argv) == 1
    assert message in capsys.readouterr().err


def test_module_and_script_are_the_same_command(here):
    module = subprocess.run([sys.executable, "-m", "mach_ext", "--version"], capture_output=True, text=True)
    assert module.stdout.strip() == f"mach-ext {mach_ext.__version__}"
    script = subprocess.run(
        [sys.executable.rpartition("/")[0] + "/mach-ext", "--version"], capture_output=True, text=True
    )
    assert script.stdout == module.stdout


def test_a_refused_or_other_run_does_not_touch_the_former_one(here, dataset_folder, text_folder, capsys):
    assert run("train", "--dataset", text_folder, *FAST, "--output", "r") == 0
    before = sorted((p.name, p.read_bytes()) for p in (here / "r").iterdir())
    arguments = ["train", "--dataset", dataset_folder, *FAST, "--output", "r"]
    assert run(*arguments, "--overwrite", "--C", "1") == 1
    capsys.readouterr()
    assert run(*arguments) == 1
    assert f"r: holds a run on {text_folder}, seed 0; --overwrite replaces it" in capsys.readouterr().err
    assert sorted((p.name, p.read_bytes()) for p in (here / "r").iterdir()) == before
    assert run(*arguments, "--overwrite") == 0
    attachments = {"run.json", "labels.json", "label_counts.npy"}  # no vectoriser of the other run
    assert set(mach_ext.load("r").attachments) == attachments


def test_evaluate_with_neighbors(here, dataset_folder, capsys):
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    former = json.loads((here / "runs/tiny/metrics.json").read_text())
    assert run("evaluate", "--neighbors") == 0
    record = json.loads((here / "runs/tiny/metrics.json").read_text())
    assert record["test"] == former["test"]  # beside it, not in its place
    model, dataset = mach_ext.load(here / "runs/tiny"), data.load(dataset_folder)
    near = mach_ext.Neighbors(dataset.train.X, dataset.train.Y)
    _, labels = near.rerank(dataset.test.X, *model.predict(dataset.test.X, model.num_labels))
    expected = mach_ext.metrics.precision_at_k(dataset.test.Y, labels[:, :3], 3)
    assert record["test+neighbors"]["P@3"] == pytest.approx(expected)
    assert "test+neighbors" in capsys.readouterr().out
    assert run("evaluate", "--neighbors", "--split", "train") == 1
    assert "which find themselves" in capsys.readouterr().err
    assert run("train", "--dataset", dataset_folder, *FAST, "--merge", "min_prob", "--overwrite") == 0
    assert run("evaluate", "--neighbors") == 1
    assert "models that rank by mean_logit or mean_logprob; this one ranks by" in capsys.readouterr().err


def test_labels_the_model_does_not_know_are_misses(here, text_folder, capsys):
    import shutil

    folder = here / "copy"
    shutil.copytree(text_folder, folder)
    assert run("train", "--dataset", folder, *FAST) == 0
    before = json.loads((here / "runs/copy/metrics.json").read_text())["test"]
    with (folder / "test.jsonl").open("a") as file:
        file.write('{"text": "word1", "labels": ["a first label"]}\n')  # the first of the sorted names
    capsys.readouterr()
    assert run("evaluate") == 0
    assert "1 labels, of 1 documents, are unknown to the model and count as misses" in capsys.readouterr().err
    after = json.loads((here / "runs/copy/metrics.json").read_text())["test"]
    for name in ("P@1", "nDCG@3", "R@10"):  # 30 documents as before, one more with nothing right
        assert after[name] == pytest.approx(before[name] * 30 / 31)
    assert after["PSP@1"] < before["PSP@1"]


def test_label_names_of_any_kind(here, capsys):
    folder = here / "odd"
    folder.mkdir()
    names = ["tab\there", "new\nline", "ünïcode ☃"]
    for split in ("train", "dev", "test"):
        lines = [json.dumps({"text": f"word{i % 3}", "labels": [names[i % 3]]}) for i in range(30)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    assert run("train", "--dataset", folder, *FAST) == 0
    capsys.readouterr()
    assert run("predict", "--text", "word0", "--text", "word1", "--text", "word2", "--k", "1") == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        "tab here", "new line", "ünïcode ☃"
    ]  # fmt: skip
    assert run("predict", "--text", "word0", "--k", "1", "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out)["labels"][0]["label"] == "tab\there"


def test_text_that_looks_like_a_flag_and_unknown_devices(here, text_folder, capsys):
    assert run("train", "--dataset", text_folder, *FAST, "--epochs", "1") == 0
    assert run("predict", "--text=--hash_functions word3", "--k", "1") == 0
    assert run("predict", "--text", "a", "--device", "foo") == 1
    assert "--device must be cpu, cuda or cuda:N, got 'foo'" in capsys.readouterr().err


def test_label_ids_that_are_column_numbers_place_the_names(here):
    (here / "labels.txt").write_text("1\tname one\n0\tname zero\n")
    assert data.read_names(here / "labels.txt") == ["name zero", "name one"]
    (here / "labels.txt").write_text("2\tname one\n1\tname zero\n")
    assert data.read_names(here / "labels.txt") == ["name zero", "name one"]


def test_explain_a_document_of_the_dataset(here, dataset_folder, capsys):
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    capsys.readouterr()
    command = ["explain", "--sample_id", "3", "--top-k", "2", "--show", "1"]
    assert run(*command, "--html", "page.html", "--output", "out") == 0
    shown = capsys.readouterr()
    test, model = data.load(dataset_folder).test, mach_ext.load(here / "runs" / "tiny")
    found = mach_ext.explain.integrated_gradients(model, test.X[3], model.predict(test.X[3], 2)[1][0])
    assert found.label_names[0].startswith("label ")
    assert shown.out.count("(right)") == 2
    assert "(exact)" in shown.out
    for row, label in enumerate(found.labels):
        assert found.label_names[row] in shown.out
        name, effect = found.top(1, int(label))[0]
        assert f"{name} " in shown.out
        assert f"{effect:+.3f} " in shown.out
    kept = json.loads((here / "out" / "explanation.json").read_text())
    np.testing.assert_allclose(kept["attributions"], found.attributions)
    assert (here / "out" / "explanation.png").read_bytes()[:4] == b"\x89PNG"
    page = (here / "page.html").read_text()
    assert page == (here / "out" / "explanation.html").read_text()
    assert "tiny, test, document 3" in page

    assert run(*command, "--label", "label 7", "--label", "12", "--method", "gausslegendre") == 0
    shown = capsys.readouterr().out
    assert "label 7\n" in shown or "label 7  (" in shown
    assert "steps)" in shown
    assert "not predicted" in shown


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_each_command_fits_models_of_few_labels(here, capsys, labels):
    """On its own defaults; what is asked for and can't be is refused by each."""
    folder = here / "few"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        lines = [{"text": f"word{i % labels} and more", "labels": [f"label {i % labels}"]} for i in range(12)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("train", "--dataset", folder, *FAST, "--epochs", "1") == 0
    capsys.readouterr()
    assert run("predict", "--text", "word0", "--quiet") == 0
    assert len(capsys.readouterr().out.split("\t")) == 2 * labels
    assert run("predict", "--split", "test", "--format", "jsonl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [len(json.loads(line)["labels"]) for line in lines] == [labels] * 12
    assert run("explain", "--text", "word0", "--html", "page.html") == 0
    assert capsys.readouterr().out.count("  votes ") == labels
    assert run("evaluate") == 0
    assert run("evaluate", "--neighbors") == 0
    assert run("attack", "--quiet", "--certify", "--report", "attack.html") == 0
    record = json.loads((here / "runs" / "few" / "attack.json").read_text())
    assert record["k"] == labels
    assert f"P@{labels}" in record["clean"]
    capsys.readouterr()
    if labels > 1:
        assert run("attack", "--quiet", "--targeted", "--attack", "delete", "--report", "attack.html") == 0
        assert f"wrong label into the top {labels - 1}: all " in capsys.readouterr().out
    else:
        assert run("attack", "--quiet", "--targeted") == 1
        assert "needs a label outside the top k, got L=1" in capsys.readouterr().err
    for command in (["predict", "--text", "word0"], ["explain", "--text", "word0"], ["attack", "--quiet"]):
        assert run(*command, "--k", labels + 1) == 1
        assert f"... L={labels}, got {labels + 1}" in capsys.readouterr().err


def test_scores_are_named_by_their_scale(here, dataset_folder, capsys):
    """An SVM model ranks by mean log-probability; explain shows mean logits, and both under their names."""
    few = ["--hash-functions", "4", "--buckets", "16", "--quiet"]
    assert run("train", "--dataset", dataset_folder, "--svm", *few) == 0
    capsys.readouterr()
    assert run("predict", "--split", "test", "--k", "2", "--format", "jsonl") == 0
    line = json.loads(capsys.readouterr().out.splitlines()[3])
    assert line["scale"] == "mean_logprob"
    assert run("predict", "--split", "test", "--k", "2") == 0
    assert "scores are on the scale of the model's merge: mean log-probability" in capsys.readouterr().err

    command = ["explain", "--sample-id", "3", "--k", "2", "--output", "out"]
    assert run(*command) == 0
    shown = capsys.readouterr().out
    kept = json.loads((here / "out" / "explanation.json").read_text())
    assert (kept["scale"], kept["model_scale"]) == ("mean_logit", "mean_logprob")
    for i, answer in enumerate(line["labels"]):
        assert kept["label_names"][i] == answer["label"]
        assert kept["model_scores"][i] == pytest.approx(answer["score"], rel=1e-5)
        assert f"the model ranks by {answer['score']:+.3f} (mean log-probability), as predict shows" in shown
        assert f"score {kept['scores'][i]:+.3f} (mean logit)" in shown
    assert "not predicted" not in shown  # both commands speak of one ranking

    assert run(*command, "--score", "model") == 0
    shown = capsys.readouterr().out
    assert "the model ranks by" not in shown
    for answer in line["labels"]:
        assert f"score {answer['score']:+.3f} (mean log-probability)" in shown


def test_explain_says_what_is_sure(here, dataset_folder, capsys):
    """The agreement of the hash functions is no certainty that a label is right, and never all of 100 %."""
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    capsys.readouterr()
    command = ["explain", "--sample-id", "3", "--label", "label 7", "--label", "label 8"]
    assert run(*command, "--html", "page.html") == 0
    shown = capsys.readouterr().out
    assert shown.count("(wrong)") == 2
    assert shown.count("agreement of the hash functions that it is in the top 5: ") == 2
    for text in (shown, (here / "page.html").read_text()):
        assert "certain" not in text
        assert "100.0" not in text
        assert "of the hash functions that" in text


def test_explain_a_text(here, text_folder, capsys):
    assert run("train", "--dataset", text_folder, *FAST) == 0
    capsys.readouterr()
    text = 'Word3, "word5" <script>unknown</script>'
    assert run("explain", "--text", text, "--html", "page.html") == 0
    assert text in capsys.readouterr().out
    page = (here / "page.html").read_text()
    assert "<script" not in page
    assert "https://" not in page.lower()  # self-contained
    for word in ("Word3", "word5"):
        assert f">{word}</span>" in page
    assert "unknown</span>" not in page
    assert run("explain", "--sample_id", "0") == 0  # the text of the dataset's document
    assert data.load(text_folder).test.texts[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sample-id", "40"], "--sample-id must be in 0 ... 39, the test split, got 40"),
        (["--sample-id", "0", "--label", "40"], "labels must be in [0, L=40), got 40"),
        (
            ["--sample-id", "0", "--label", "label 77"],
            "the model has no label 'label 77'; did you mean 'label 7'",
        ),
        (["--sample-id", "0", "--k", "41"], "--k must be in 1 ... L=40, got 41"),
        (["--sample-id", "0", "--model-path", "bare"], "does not say which dataset it was trained on"),
        (["--text", "w1"], "trained on vectors, not on text"),
    ],
)
def test_explain_refuses(here, dataset_folder, capsys, argv, message):
    assert run("train", "--dataset", dataset_folder, *FAST, "--epochs", "1") == 0
    mach_ext.MACH(D, L, num_repetitions=8, num_buckets=16, hidden_size=4).save(here / "bare")
    assert run("explain", *argv) == 1
    assert message in capsys.readouterr().err


def test_explain_refuses_a_text_of_unknown_words(here, text_folder, capsys):
    assert run("train", "--dataset", text_folder, *FAST, "--epochs", "1") == 0
    assert run("explain", "--text", "quite unknown") == 1
    assert "none of its words is in the model's vocabulary" in capsys.readouterr().err


def test_attack(here, dataset_folder, capsys):
    """As the README writes it, on the newest run: table, chart, JSON; a page; every kind of attack."""
    assert run("train", "--dataset", dataset_folder, *FAST) == 0
    folder = here / "runs" / "tiny"
    assert run("attack", "--eps", "0.01", "--attack", "fgsm", "--quiet") == 0
    out = capsys.readouterr()
    assert "using the newest run" in out.err
    assert "P@1" in out.out
    assert "eps 0.01: nDCG@5 " in out.out
    record = json.loads((folder / "attack.json").read_text())
    assert [entry["epsilon"] for entry in record["adversarial"]] == [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    clean, first = record["clean"], record["adversarial"][0]["metrics"]
    assert clean == first
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["P@1"] == pytest.approx(clean["P@1"])
    kept = metrics["attacks"]["fgsm support untargeted test"]
    assert (kept["goal"], kept["nonnegative"], kept["steps"]) == ("untargeted", True, None)
    assert (folder / "attack.png").read_bytes()[:4] == b"\x89PNG"
    for kind, threat, eps in (
        ("pgd", "dense", "0.1,0.2"), ("delete", "delete", "1"), ("insert", "insert(2)", "0.5,1"),
    ):  # fmt: skip
        page = here / f"{kind}.html"
        argv = (
            "--attack",
            kind,
            "--threat",
            threat,
            "--eps",
            eps,
            "--steps",
            2,
            "--targeted",
            "--report",
            page,
        )
        assert run("attack", *argv, "--quiet", "--transfer", folder, "--output", here / "out") == 0
        assert "before" in page.read_text()
        assert "<td>transfer</td>" in page.read_text()
        record = json.loads((here / "out" / "attack.json").read_text())
        last = record["adversarial"][-1]
        assert last["metrics"]["P@1"] <= clean["P@1"]
        assert last["transfer"]["P@5"] == pytest.approx(last["metrics"]["P@5"])
        assert record["transfer_clean"]["P@5"] == pytest.approx(clean["P@5"])
    for options in (
        (),
        ("--signed",),
        ("--goal", "own"),
        ("--attack", "pgd"),
        ("--attack", "pgd", "--steps", 2),
    ):
        assert run("attack", "--sample", 5, "--eps", "0.1,0.2", "--quiet", *options) == 0
    sample = [
        k for k in json.loads((folder / "metrics.json").read_text())["attacks"] if k.endswith(" tiny 5")
    ]
    assert sample == [
        "fgsm support untargeted test tiny 5",
        "fgsm support signed untargeted test tiny 5",
        "fgsm support own test tiny 5",
        "pgd support 10 steps untargeted test tiny 5",
        "pgd support 2 steps untargeted test tiny 5",
    ]
    page = here / "certified.html"
    assert run("attack", "--eps", "0.01", "--certify", "--sample", "20", "--report", page, "--quiet") == 0
    record = json.loads((folder / "attack.json").read_text())
    for entry in record["adversarial"]:
        assert 0 <= entry["certified"]["P@1"] <= entry["metrics"]["P@1"]
        assert 0 <= entry["certified"]["P@5"] <= entry["metrics"]["P@5"]
    assert record["adversarial"][1]["certified"]["P@1"] > 0
    assert record["certified_zero"]["P@1"][1] > 0
    assert "certified" in page.read_text()
    out = capsys.readouterr().out
    assert "\n certified" in out
    assert "certified P@5 reaches 0 at eps " in out
    assert run("attack", "--threat", "dense", "--certify", "--quiet") == 1
    assert "--certify: threat model dense is certified for linear MACH" in capsys.readouterr().err
    assert run("attack", "--k", "50", "--quiet") == 1
    assert "k must be in 1 ... L=40, got 50" in capsys.readouterr().err
