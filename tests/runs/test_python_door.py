"""Python's door by itself: what is given in other ways than the command line could, and what it refuses."""

import io
import json
import logging

import numpy as np
import pytest
import scipy.sparse
import torch

import mach_ext
from mach_ext import cli, data, runs, svm
from mach_ext.runs.recipe import Recipe

L, D = 6, 20
SMALL = {"epochs": 2, "hidden_size": 8, "num_repetitions": 8, "num_buckets": 8, "batch_size": 20}
QUIET = {**SMALL, "progress": False}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "texts"
    folder.mkdir()
    for name, n in (("train", 60), ("test", 12)):
        lines = [json.dumps({"text": f"word{i % L} filler", "labels": [f"topic {i % L}"]}) for i in range(n)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    mach_ext.train(texts, output=folder, **QUIET)
    return folder


@pytest.fixture
def run(trained):
    return mach_ext.Run.open(trained)


def matrices(n=60, columns=D):
    X = scipy.sparse.random(n, columns, 0.3, format="csr", dtype=np.float32, random_state=0)
    return X, scipy.sparse.csr_matrix(np.eye(L, dtype=np.float32)[np.arange(n) % L])


def by_hand(**other):
    return data.Dataset(**{"name": "mine", "path": "memory", "train": data.Split(*matrices()), **other})


def test_numbers_of_numpy_and_ints_are_the_same_training(here, texts):
    plain = mach_ext.train(texts, output="a", seed=3, propensity=(1.0, 2.0), learning_rate=1.0, **QUIET)
    given = {name: np.int64(value) for name, value in SMALL.items()}
    other = mach_ext.train(
        texts, output="b", seed=np.int64(3), propensity=np.array([1, 2]), learning_rate=1, progress=False,
        **given,
    )  # fmt: skip
    assert plain.model.attachments == other.model.attachments
    assert plain.metrics["weights"] == other.metrics["weights"]
    first = mach_ext.train(texts, output="c", svm=True, C=2.0, progress=False)
    second = mach_ext.train(texts, output="d", svm=True, C=np.int32(2), progress=False)
    assert first.model.attachments == second.model.attachments
    assert first.history == second.history
    assert Recipe(hidden_size=np.array([8, 4])).hidden_size == [8, 4]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_repetitions": 0}, ValueError, "num_repetitions must be at least 1, got 0"),
        ({"num_buckets": 0}, ValueError, "num_buckets must be from 2 to"),
        ({"encoder": ""}, ValueError, "encoder must be one of shared, independent, got ''"),
        ({"merge": ""}, ValueError, "merge must be one of"),
        ({"hidden_size": 16.0}, TypeError, "hidden_size must be an int, got float"),
        ({"device": None}, ValueError, "device must be cpu, cuda or cuda:N, got None"),
        ({"output": ""}, ValueError, "train: output must not be empty"),
        ({"output": 5}, TypeError, "train: output must be a string or a path, got int"),
        ({"dataset": 5}, TypeError, "train: dataset must be a string or a path, got int"),
        ({"dataset": ""}, ValueError, "train: dataset must not be empty"),
        ({"propensity": 0.5}, ValueError, "propensity must be two numbers A, B, got 0.5"),
        ({"propensity": (0.5,)}, ValueError, r"propensity must be two numbers A, B, got \(0.5,\)"),
        ({"C": "x"}, ValueError, "train: C must be None or a finite number above 0, got 'x'"),
    ],
)  # fmt: skip
def test_train_refuses(here, texts, arguments, error, message):
    with pytest.raises(error, match=message):
        mach_ext.train(**{"dataset": texts, **QUIET, **arguments})
    assert not list(here.iterdir())


def test_a_device_of_torch_gets_the_solver_of_its_name(texts, monkeypatch):
    monkeypatch.setattr(svm, "prefer_svm", lambda Y, D: True)
    for device in ("cpu", torch.device("cpu")):
        assert Recipe().with_solver(data.load(texts), device).svm


def test_a_dataset_made_by_hand(here):
    run = mach_ext.train(by_hand(), output="r", **QUIET)
    assert run.evaluate("train", save=False)["P@1"] > 0
    X, Y = matrices()
    for other, error, message in (
        (
            {"train": data.Split(X.toarray(), Y)},
            TypeError,
            r"dataset\.train\.X must be SciPy CSR, got ndarray",
        ),
        (
            {"train": data.Split(X, Y, dense=[[1.0]] * 60)},
            TypeError,
            r"dataset\.train\.dense must be a NumPy array \[N, E\], got list",
        ),
        ({"train": data.Split(X, Y[:50])}, ValueError, r"dataset\.train\.Y must have shape \(60, 6\), got"),
        ({"test": data.Split(*matrices(9, 5))}, ValueError, r"dataset\.test\.X must have shape \(9, 20\)"),
        ({"name": "../mine"}, ValueError, r"named .* '\.\./mine'; give output"),
        ({"name": ""}, ValueError, "named .* ''; give output"),
    ):
        with pytest.raises(error, match=message):
            mach_ext.train(by_hand(**other), **QUIET)
    with pytest.raises(ValueError, match=r"texts: the model was .* not on text; predict\(X=\.\.\.\)"):
        run.predict("a text")
    with pytest.raises(TypeError, match=r"got a Dataset; .* mach_ext\.runs\.evaluate"):
        run.evaluate(dataset=by_hand())
    assert [file.name for file in here.iterdir()] == ["r"]


def test_dense_features_of_zero_are_no_empty_document(here):
    """The model centres them, so a document of zeros has scores and reasons of its own."""
    X, Y = matrices()
    split = data.Split(X, Y, dense=np.arange(60.0)[:, None] % 7 - 1)
    run = mach_ext.train(by_hand(train=split), output="r", holdout=False, evaluate=False, **QUIET)
    zeros = data.HybridMatrix(scipy.sparse.csr_matrix((1, D)), np.zeros((1, 1)))
    ((answer,),) = run.iter_predict(X=zeros, k=1)
    assert answer.features == 0
    assert answer.labels[0].score == pytest.approx(float(run.model.predict(zeros, 1)[0][0, 0]))
    number = runs.explanation.document_of_split(run.model, by_hand(test=zero_split()), "test", 0)
    assert number.X.shape == (1, D + 1)


def zero_split():
    """A split of one document whose features are all 0."""
    label = scipy.sparse.csr_matrix(np.eye(1, L, dtype=np.float32))
    return data.Split(scipy.sparse.csr_matrix((1, D), dtype=np.float32), label, dense=np.zeros((1, 1)))


def test_a_run_stays_where_it_is(here, texts, monkeypatch):
    (here / "data").symlink_to(texts)
    run = mach_ext.train("data", output="r", evaluate=False, **QUIET)
    assert str(run.folder) == "r"
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert run.folder == here / "r"
    run.evaluate()
    metrics = mach_ext.Run.open(here / "r").metrics
    assert "test" in metrics
    assert metrics["path"] == str(here / "data")
    assert not list((here / "elsewhere").iterdir())


def test_other_data_are_those_of_the_folder_one_is_in(here, run, monkeypatch):
    for place, label in (("a", "topic 1"), ("b", "topic 2")):
        (here / place).mkdir()
        (here / place / "more.jsonl").write_text(json.dumps({"text": "word1", "labels": [label]}) + "\n")
    truths = []
    for place in ("a", "b"):
        monkeypatch.chdir(here / place)
        truths.append(run.dataset("more.jsonl").test.Y.indices.tolist())
    assert truths[0] != truths[1]


def test_texts_in_every_shape(run):
    expected = run.predict(["word1", "word2"])
    for given in (("word1", "word2"), iter(["word1", "word2"]), np.array(["word1", "word2"])):
        assert run.predict(given) == expected
    assert run.predict([]) == []
    (block,) = run.iter_predict(texts="word1")
    assert [answer.labels for answer in block] == expected[:1]
    for wrong, kind in ((["word1", 3], "int"), (5, "int"), (b"word1", "bytes")):
        with pytest.raises(TypeError, match=f"predict: texts must be strings, got {kind}"):
            run.predict(wrong)
    with pytest.raises(ValueError, match="predict: format is for file and stream"):
        run.predict("word1", format="text")
    with pytest.raises(TypeError, match=r"predict: stream must be binary and buffered, .* got StringIO"):
        run.predict(stream=io.StringIO("word1"))


def test_explain_takes_one_label_and_refuses_the_rest(run):
    for label in ("topic 2", 2, np.int64(2)):
        single = run.explain("word1", labels=label)
        assert single.explanation.labels.tolist() == run.explain("word1", labels=[label]).explanation.labels
    for arguments, error, message in (
        ({"text": ["word1"]}, TypeError, "explain: text must be a string, got list"),
        ({"sample_id": 1.5}, TypeError, "explain: sample_id must be an int, got float"),
        ({"text": "word1", "features": 0}, ValueError, "explain: features must be at least 1, got 0"),
        ({"text": "word1", "output": ""}, ValueError, "explain: output must not be empty"),
    ):
        with pytest.raises(error, match=message):
            run.explain(**arguments)


def test_attack_takes_sizes_in_every_shape(run):
    arguments = {"sample": 3, "progress": False, "save": False}
    expected = run.attack(epsilons=[0.1], **arguments).adversarial
    for given in (0.1, (0.1,), np.array([0.1]), np.float64(0.1)):
        assert run.attack(epsilons=given, **arguments).adversarial == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epsilons": []}, ValueError, r"epsilons must be numbers >= 0, at least one, got \[\]"),
        ({"epsilons": [-1]}, ValueError, r"epsilons must be numbers >= 0, .* got \[-1\]"),
        ({"epsilons": "0.1"}, ValueError, "epsilons must be numbers >= 0, .* got '0.1'"),
        ({"sample": 2.5}, TypeError, "attack: sample must be an int, got float"),
        ({"steps": 0}, ValueError, "attack: steps must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "attack: seed must be at least 0, got -1"),
        ({"transfer": 5}, TypeError, "attack: transfer must be a string or a path, got int"),
    ],
)  # fmt: skip
def test_attack_refuses(run, arguments, error, message):
    with pytest.raises(error, match=message):
        run.attack(progress=False, **arguments)


def test_messages_name_what_python_has(here):
    with pytest.raises(ValueError, match=r'give folder, or train one, as: mach_ext\.train\("wordnet"\)'):
        runs.Run.open()
    with pytest.raises(ValueError, match=r"Run\.open: folder must not be empty"):
        runs.Run.open("")


def test_the_command_leaves_the_logger_as_it_was(trained, tmp_path, capsys):
    """With what it has found out to be enabled, too: the remarks of later calls stay as quiet as before."""
    logger = logging.getLogger("mach_ext")
    before = logger.level, logger.propagate, logger.handlers[:], logger.isEnabledFor(logging.INFO)
    assert cli.main(["evaluate", "--model-path", str(trained), "--output", str(tmp_path)]) == 0
    assert "mach-ext: metrics: " in capsys.readouterr().err
    after = logger.level, logger.propagate, logger.handlers[:], logger.isEnabledFor(logging.INFO)
    assert after == before
