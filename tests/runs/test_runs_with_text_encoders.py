"""Runs that are trained with a text encoder, through all commands, from files that are there or are not."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_bert
from command_cases import Commands

import mach_ext
from mach_ext import data
from mach_ext.data import TextEmbeddings, attachments
from mach_ext.runs.record import checksums
from mach_ext.text_encoder import TextEncoder

TOPICS = ["cat", "dog", "bird", "fish", "house", "old"]
SIZES = ("--hidden-size", 16, "--hash-functions", 8, "--buckets", 8, "--batch-size", 20, "--quiet")
SMALL = {"epochs": 3, "hidden_size": 16, "num_repetitions": 8, "num_buckets": 8, "batch_size": 20}


def write_texts(folder, train=60, words=4, seed=0):
    """Texts with the word of their topic among others, with train, dev and test."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name, count in (("train", train), ("dev", 12), ("test", 12)):
        lines = []
        for i in range(count):
            topic = TOPICS[i % len(TOPICS)]
            others = " ".join(rng.choice(["a", "the", "big", "small", "red", "in", "on"], words))
            lines.append(json.dumps({"text": f"{others} {topic}", "labels": [f"topic {topic}"]}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Commands in processes of their own, and the folder of a dataset, an encoder, and a run of both."""
    tiny_bert.need_transformers()
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACH_DATA", str(folder / "home"))
        commands = Commands()
    tiny_bert.write(folder / "encoder")
    write_texts(folder / "texts")
    commands.here(
        folder, "train", "--dataset", "texts", "--text-encoder", "encoder", "--output", "run", "--epochs", 30,
        "--encoder", "shared", *SIZES,
    )  # fmt: skip
    yield commands, folder
    commands.close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder of the test's own."""
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "own"))


@pytest.fixture
def encoder(trained):
    return TextEncoder.load(trained[1] / "encoder")


def documents_of(folder, name):
    return [
        json.loads(line)["text"] for line in (folder / "texts" / f"{name}.jsonl").read_text().splitlines()
    ]


def test_scores_are_those_of_the_embeddings_by_hand(trained, encoder):
    """Against the weights in float64: words by TF-IDF, the embedding minus its mean over train, scaled."""
    _, folder = trained
    run = mach_ext.Run.open(folder / "run")
    model, texts = run.model, documents_of(folder, "test")
    train = encoder.encode(documents_of(folder, "train"), progress=False).astype(np.float64)
    center = train.mean(0)
    scale = 1 / np.sqrt(((train - center) ** 2).sum(1).mean())
    words = run.columns.vectorizer.transform(texts).toarray().astype(np.float64)
    dense = (encoder.encode(texts, progress=False) - center) * scale
    names = ("encoder_weight", "encoder_bias", "bucket_weight", "bucket_bias")
    weights = {name: getattr(model, name).detach().double().numpy() for name in names}
    joined = np.hstack([words, dense])
    hidden = np.maximum(joined @ weights["encoder_weight"] + weights["encoder_bias"], 0)
    logits = np.einsum("nh,rhb->nrb", hidden, weights["bucket_weight"]) + weights["bucket_bias"]
    buckets = model.hash.buckets.numpy().astype(int)
    expected = np.stack([logits[:, r, buckets[r]] for r in range(8)]).mean(0)
    for n, block in enumerate(run.predict(texts, k=6)):
        assert [best.score for best in block] == pytest.approx(
            [expected[n, best.id] for best in block], abs=1e-5
        )
        assert sorted(expected[n], reverse=True)[0] == pytest.approx(block[0].score, abs=1e-5)


def test_every_command_takes_the_run(trained, tmp_path):
    commands, folder = trained
    home = {"MACH_DATA": str(tmp_path / "home")}
    code, out, err = commands(folder, "evaluate", "--model-path", "run", env=home)
    assert code == 0, err
    assert [line for line in err if "embeddings of 12 documents" in line]
    # On another machine only the split that is used is embedded, although a dev split could be held out.
    assert len([*(tmp_path / "home" / "embeddings").glob("*/embeddings.npy")]) == 1
    measured = json.loads((folder / "run" / "metrics.json").read_text())
    assert measured["test"]["P@1"] >= 0.9
    assert measured["seconds"]["embed"] >= 0
    code, table, err = commands(
        folder, "predict", "--model-path", "run", "--split", "test", "--k", 1, env=home
    )
    assert code == 0, err
    texts = "\n".join(documents_of(folder, "test"))
    code, streamed, err = commands(folder, "predict", "--model-path", "run", "--k", 1, text=texts)
    assert (code, err) == (0, [])
    shutil.copy(folder / "texts" / "test.jsonl", folder / "later.jsonl")
    code, read, err = commands(folder, "predict", "--model-path", "run", "--k", 1, "--input", "later.jsonl")
    assert (code, err) == (0, [])
    for other in (streamed, read):
        for one, two in zip(table.splitlines(), other.splitlines(), strict=True):
            assert one.split("\t")[0] == two.split("\t")[0]
            assert float(one.split("\t")[1]) == pytest.approx(float(two.split("\t")[1]), abs=1e-4)
    code, out, err = commands(
        folder, "explain", "--model-path", "run", "--text", "a big cat", "--html", "page.html"
    )
    assert code == 0, err
    assert "topic cat" in out
    assert "cat" in (folder / "page.html").read_text()
    code, out, err = commands(folder, "explain", "--model-path", "run", "--sample-id", 2, env=home)
    assert code == 0, err
    code, out, err = commands(
        folder, "attack", "--model-path", "run", "--sample", 4, "--attack", "fgsm", "--quiet", env=home
    )
    assert code == 0, err
    code, out, err = commands(folder, "compress", "--model-path", "run", "--output", "small", env=home)
    assert code == 0, err
    code, out, err = commands(folder, "predict", "--model-path", "small", "--text", "a fish", "--k", 1)
    assert (code, out.split("\t")[0], err) == (0, "topic fish", [])
    for name in ("run", "small"):
        code, out, err = commands(folder, "info", "--model-path", name)
        assert code == 0, err
        assert f"text encoder  {folder / 'encoder'}: 32 dense features of at most 32 tokens" in out


def test_a_text_of_unknown_words_has_an_answer(trained):
    run = mach_ext.Run.open(trained[1] / "run")
    ((first, second),) = run.iter_predict(texts=["qqq zzz", "zzz qqq zzz qqq"], k=6)
    assert first.features == second.features == 32  # the embedding alone
    assert not np.isnan([best.score for best in first.labels]).any()
    assert [best.score for best in first.labels] != [best.score for best in second.labels]
    ((known,),) = run.iter_predict(texts=["a cat"], k=1)
    assert known.features == 34


def test_the_record_of_the_encoder(trained, encoder):
    run = mach_ext.Run.open(trained[1] / "run")
    assert attachments.text_encoder(run.model.attachments, 32) == encoder.record()
    assert run.info()["text_encoder"] == encoder.record()
    assert run.text_encoder.digest == encoder.digest
    assert run.columns.text_encoder.num_dense == run.model.num_dense == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "abc"}, "text_encoder.json of the model: digest must be"),
        ({"name": None}, "text_encoder.json of the model: name must be a string, got None"),
        ({"num_dense": 31}, "text_encoder.json of the model: num_dense must be E=32, got 31"),
        ({"max_length": 0}, "text_encoder.json of the model: max_length must be"),
    ],
)
def test_a_damaged_record_is_refused(trained, encoder, change, message):
    content = json.dumps({**encoder.record(), **change}).encode()
    with pytest.raises(ValueError, match=message):
        attachments.text_encoder({"text_encoder.json": content}, 32)


def test_an_encoder_that_is_elsewhere_or_another(trained, tmp_path):
    commands, folder = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "moved").mkdir()
    shutil.move(folder / "encoder", tmp_path / "moved" / "encoder")
    predict = ("predict", "--model-path", "run", "--text", "a cat", "--k", 1)
    try:
        code, out, (error,) = commands(tmp_path, *predict)
        assert (code, out) == (1, "")
        digest = mach_ext.Run.open(tmp_path / "run").info()["text_encoder"]["digest"]
        assert error.startswith(
            f"mach-ext: run needs its text encoder {folder / 'encoder'}, digest {digest}: "
        )
        assert error.endswith("there is no such folder (--text-encoder says where it is now)")
        code, out, err = commands(tmp_path, *predict, "--text-encoder", "moved/encoder")
        assert (code, out.split("\t")[0], err) == (0, "topic cat", [])
        for command in ("evaluate", "explain", "attack", "compress"):
            what = ("--sample-id", 0) if command == "explain" else ()
            code, out, (error,) = commands(tmp_path, command, "--model-path", "run", *what)
            assert code == 1
            assert "--text-encoder says where it is now" in error, command
        tiny_bert.write(folder / "encoder", seed=1)
        code, out, (error,) = commands(tmp_path, *predict)
        assert code == 1
        assert f"has digest {TextEncoder.load(folder / 'encoder').digest}" in error
        assert f"digest {digest}" in error
        with pytest.raises(
            ValueError, match=r"run needs its text encoder .* \(text_encoder says where it is now\)"
        ):
            mach_ext.Run.open(tmp_path / "run").predict("a cat")
        moved = mach_ext.Run.open(tmp_path / "run", text_encoder=tmp_path / "moved" / "encoder")
        assert moved.predict("a cat", k=1)[0][0].label == "topic cat"
    finally:
        shutil.rmtree(folder / "encoder", ignore_errors=True)
        shutil.move(tmp_path / "moved" / "encoder", folder / "encoder")


def test_a_run_without_an_encoder_refuses_one(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = trained[1]
    mach_ext.train(folder / "texts", output="plain", progress=False, **SMALL)
    with pytest.raises(ValueError, match="plain has no text encoder, so text_encoder must not be given"):
        mach_ext.Run.open("plain", text_encoder=folder / "encoder")
    assert mach_ext.Run.open("plain").text_encoder is None


def test_datasets_that_cannot_be_embedded(trained, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.write_xmc(tmp_path / "train.txt", np.eye(12), np.eye(12))
    with pytest.raises(
        ValueError, match="text_encoder needs the texts of all splits, and train has none; they are"
    ):
        mach_ext.train(tmp_path, output="a", text_encoder=encoder, progress=False)
    shutil.copytree(trained[1] / "texts", "texts")
    for name, rows in (("train", 60), ("dev", 12), ("test", 12)):
        np.save(f"texts/{name}.dense.npy", np.ones((rows, 3)))
    with pytest.raises(
        ValueError, match="texts: has dense features already, so text_encoder must not be given"
    ):
        mach_ext.train("texts", output="a", text_encoder=encoder, progress=False)
    with pytest.raises(ValueError, match=r"TextEncoder.load: \./nowhere: there is no such folder"):
        mach_ext.train(trained[1] / "texts", output="a", text_encoder="./nowhere", progress=False)
    assert not Path("a").exists()
    run = mach_ext.Run.open(trained[1] / "run")  # files beside texts do not count for a run with an encoder
    assert run.dataset(tmp_path / "texts").test.dense.shape == (12, 32)
    assert (
        "test.dense.npy: is left out, because the run's text encoder makes"
        in run.dataset("texts").remarks[-1]
    )
    write_vectors(tmp_path / "vectors", run)
    with pytest.raises(FileNotFoundError, match="which have no texts for the run's text encoder"):
        run.dataset(tmp_path / "vectors")


def write_vectors(folder, run):
    """A test split as vectors without texts."""
    folder.mkdir()
    sizes = run.model.num_features, run.model.num_labels
    data.write_xmc(folder / "test.txt", np.eye(3, sizes[0]), np.eye(3, sizes[1]))


def test_both_doors_train_the_same_bits(trained, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands, folder = trained
    code, _, err = commands(
        tmp_path, "train", "--dataset", folder / "texts", "--text-encoder", folder / "encoder", "--output",
        "a", "--epochs", 3, *SIZES,
    )  # fmt: skip
    assert code == 0, err
    run = mach_ext.train(folder / "texts", output="b", text_encoder=encoder, progress=False, **SMALL)
    command = mach_ext.Run.open("a")
    assert run.metrics["weights"] == command.metrics["weights"]
    assert run.model.attachments == command.model.attachments
    assert run.text_encoder is encoder
    changed = TextEncoder.load(folder / "encoder")
    next(changed.parameters()).data[0] += 1
    with pytest.raises(
        ValueError, match=r"must be found again by its name later, got: .* save it into a folder"
    ):
        mach_ext.train(folder / "texts", output="c", text_encoder=changed, progress=False, **SMALL)


class Counting:
    """Embeds a text as its length and 1, and keeps the numbers of texts that it was asked for."""

    num_dense = 2

    def __init__(self):
        self.calls = []

    def embed(self, texts):
        self.calls.append(len(texts))
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_a_split_is_embedded_once_when_it_is_used():
    encoder, texts = Counting(), [f"text {'x' * i}" for i in range(40)]
    eye = data.check_csr(np.eye(40))

    def split(texts):
        return data.Split(eye, eye, texts, dense=TextEmbeddings(encoder, texts))

    held = data.hold_out(data.Dataset("d", "d", split(texts), test=split(texts)))
    assert (held.num_dense, held.columns.num_dense, held.train.dense.shape) == (2, 2, (36, 2))
    first = checksums(held.train)
    assert encoder.calls == []
    for part in (held.dev, held.train):
        assert part.documents.dense.tolist() == [[len(text), 1] for text in part.texts]
        assert part.documents is part.documents
    assert encoder.calls == [40]  # train as a whole, and not test
    again = held.train.take(np.array([5, 3]))
    assert np.array_equal(again.dense, held.train.dense[[5, 3]])
    assert encoder.calls == [40]
    one, other = held.train.texts[0], f"{held.train.texts[0]}."
    changed = data.hold_out(data.Dataset("d", "d", split([other if text == one else text for text in texts])))
    assert checksums(changed.train) != first


# ---------------------------------------------------------------------------------------------------- kills


def test_killed_in_the_embedding_and_in_the_training(trained, tmp_path):
    commands, folder = trained
    write_texts(tmp_path / "texts", train=6000, words=29)
    train = ("train", "--dataset", "texts", "--text-encoder", folder / "encoder", *SIZES[:-3], "--quiet",
             "--batch-size", 500, "--epochs", 60)  # fmt: skip
    code, _, err = commands(tmp_path, *train, "--output", "whole", env={"MACH_DATA": str(tmp_path / "one")})
    assert code == 0, err
    home = {"MACH_DATA": str(tmp_path / "two")}
    blocks = kill_when(
        commands, tmp_path, lambda: find_large(tmp_path / "two" / "embeddings", 2e5), *train, "--output",
        "run", env=home,
    )  # fmt: skip
    assert blocks.exists()
    assert not (tmp_path / "run" / "checkpoint.json").exists()
    kill_when(
        commands, tmp_path, lambda: find_epoch(tmp_path / "run", 2), *train, "--output", "run", env=home
    )
    code, _, err = commands(tmp_path, *train, "--output", "run", env=home)
    assert code == 1
    assert "--resume continues the training" in err[-1]
    other = tiny_bert.write(tmp_path / "other", seed=1)
    for options, given in ((("--text-encoder", other), f"{other}, digest"), ((), "none")):
        again = [*train[:3], *options, *train[5:], "--output", "run", "--resume"]
        code, _, err = commands(tmp_path, *again, env=home)
        assert code == 1
        assert "train: a training goes on with its own text encoder" in err[-1]
        assert f"--text-encoder gives {given}" in err[-1]
    code, _, err = commands(tmp_path, *train, "--output", "run", "--resume", env=home)
    assert code == 0, err
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "run"))
    assert one["weights"] == two["weights"]
    assert one["test"] == two["test"]


def kill_when(commands, folder, happened, *argv, env):
    """Kills a command once something has happened, and returns that."""
    pid = commands.start(folder, *argv, env=env)
    while not (seen := happened()):
        os.kill(pid, 0)  # an error if the command has ended
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    assert commands.wait() == -signal.SIGKILL
    return seen


def find_large(folder, size):
    """The file of blocks, if it has this many bytes."""
    return next((file for file in folder.glob("*/blocks.partial") if file.stat().st_size > size), None)


def find_epoch(folder, epoch):
    """The checkpoint, if it is of this epoch or a later one."""
    names = [file.name.split("-")[1] for file in folder.glob("checkpoint-*.safetensors")]
    return any(int(name) >= epoch for name in names)
