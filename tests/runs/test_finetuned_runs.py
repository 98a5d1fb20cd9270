"""`train --text-encoder --finetune`: the encoder is kept in the run folder and found again."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_bert

import mach_ext
from mach_ext.text_encoder import TextEncoder

ANIMALS = ("cat", "dog", "bird", "fish")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with an encoder, a dataset and a fine-tuned run."""
    tiny_bert.need_transformers()
    home = tmp_path_factory.mktemp("home")
    tiny_bert.write(home / "bert")
    write_pets(home / "pets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACH_DATA", str(home / "data"))
        train(home, "run")
    return home


@pytest.fixture(autouse=True)
def data_folder(home, monkeypatch):
    monkeypatch.setenv("MACH_DATA", str(home / "data"))


def write_pets(folder):
    folder.mkdir()
    for split, count in (("train", 40), ("test", 12)):
        lines = [
            json.dumps(
                {"text": f"a {ANIMALS[i % 4]} in the {'old ' * (i % 3)}house", "labels": [ANIMALS[i % 4]]}
            )
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


def train(home, name, **options):
    given = {"epochs": 4, "batch_size": 8, "hidden_size": 8, "num_buckets": 8, "num_repetitions": 8}
    given |= {"text_learning_rate": 1e-3, "finetune": True, "text_encoder": home / "bert"}
    return mach_ext.train(home / "pets", output=home / name, progress=False, **given | options)


def test_the_run_has_an_encoder_of_its_own(home):
    """The reopened run finds the encoder in its folder, also after the folder has moved."""
    (own,) = [folder for folder in (home / "run").glob("text_encoder-*") if folder.is_dir()]
    run = mach_ext.Run.open(home / "run")
    assert run.text_encoder.digest == TextEncoder.load(own).digest
    assert run.text_encoder.digest != TextEncoder.load(home / "bert").digest
    record = json.loads(run.model.attachments["text_encoder.json"])
    assert record["base"]["digest"] == TextEncoder.load(home / "bert").digest
    texts = ["a cat in the house", "an unknown zzz"]
    scores = [[best.score for best in row] for row in run.predict(texts)]
    shutil.copytree(home / "run", home / "moved")
    moved = mach_ext.Run.open(home / "moved")
    assert [[best.score for best in row] for row in moved.predict(texts)] == scores
    X = mach_ext.data.HybridMatrix(
        run.columns.vectorizer.transform(texts), run.text_encoder.encode(texts, progress=False)
    )
    assert np.allclose(run.model.predict(X)[0], scores, atol=1e-5)


def test_the_encoder_before_training_is_refused(home):
    """Its embeddings have the same size, so that wrong attributions would go unnoticed."""
    run, former = mach_ext.Run.open(home / "run"), TextEncoder.load(home / "bert")
    vectorizer = run.columns.vectorizer
    with pytest.raises(ValueError, match="token_attributions: encoder must be the one of the model"):
        mach_ext.explain.token_attributions(run.model, former, "a cat", [0], vectorizer=vectorizer)
    with pytest.raises(ValueError, match="WordDeletion: encoder must be the one of the model"):
        mach_ext.attack.WordDeletion(run.model, former, vectorizer)


def test_metrics_are_those_of_the_trained_encoder(home):
    run = mach_ext.Run.open(home / "run")
    kept = json.loads((home / "run" / "metrics.json").read_text())
    assert run.evaluate("test", save=False)["nDCG@3"] == pytest.approx(kept["test"]["nDCG@3"])
    assert kept["history"][-1]["dev"]["P@1"] == pytest.approx(kept["dev"]["P@1"])


def test_a_small_copy_has_the_encoder_too(home):
    run = mach_ext.Run.open(home / "run")
    copy = run.compress(home / "small", quantization_step=0.01)
    assert mach_ext.Run.open(home / "small").text_encoder.digest == run.text_encoder.digest
    assert copy.predict(["a dog"])[0][0].label == run.predict(["a dog"])[0][0].label


def test_a_run_in_its_place_removes_the_encoder(home):
    shutil.copytree(home / "run", home / "replaced")
    mach_ext.train(home / "pets", output=home / "replaced", epochs=1, overwrite=True, progress=False)
    assert not list((home / "replaced").glob("text_encoder*"))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
import test_finetuned_runs as t
from mach_ext.training import trained_encoder
step, count, kill = trained_encoder.TrainedEncoder.step, [0], int(sys.argv[2])
def stepped(self, *args):
    step(self, *args)
    count[0] += 1
    if count[0] == kill:
        os.kill(os.getpid(), signal.SIGKILL)
trained_encoder.TrainedEncoder.step = stepped
t.train(Path(sys.argv[1]), sys.argv[3], resume=bool(int(sys.argv[4])))
"""


def test_a_killed_run_goes_on(home):
    """A kill while the encoder is trained: the run goes on from its checkpoint, with the same bits."""
    from helpers import ROOT

    path = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "runs")]

    def start(kill, name, resume):
        arguments = [str(home), str(kill), name, str(int(resume))]
        script = KILLED.format(path=path)
        return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)

    assert start(7, "killed", resume=False).returncode == -9
    ended = start(0, "killed", resume=True)
    assert ended.returncode == 0, ended.stderr
    whole = start(0, "whole", resume=False)
    assert whole.returncode == 0, whole.stderr
    weights = [sorted(file.name for file in (home / run).rglob("weights-*")) for run in ("killed", "whole")]
    assert weights[0] == weights[1]  # the name has the digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_encoder": None}, "finetune=True needs text_encoder"),
        (
            {"svm": True, "epochs": None, "batch_size": None, "hidden_size": None},
            "svm=True takes no finetune",
        ),
        ({"finetune": False}, "text_learning_rate needs finetune=True"),
        ({"finetune_epochs": 0}, "finetune_epochs must be an int of at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit(home, options, message):
    with pytest.raises(ValueError, match=message):
        train(home, "none", **options)
    assert not (home / "none").exists()


def test_another_run_on_the_dataset_finds_the_encoder(home):
    """The dataset of a fine-tuned run has embeddings of an encoder in that run's folder."""
    first = mach_ext.Run.open(home / "run")
    options = {"epochs": 1, "batch_size": 8, "hidden_size": 8, "num_buckets": 8, "num_repetitions": 8}
    mach_ext.train(first.dataset(), output=home / "second", progress=False, evaluate=False, **options)
    second = mach_ext.Run.open(home / "second")
    assert second.text_encoder.digest == first.text_encoder.digest
    assert len(second.predict(["a cat"], k=1)[0]) == 1


def test_the_encoder_is_found_from_another_working_folder(home, monkeypatch, tmp_path):
    """It is loaded at its first use, when the program may have gone elsewhere."""
    monkeypatch.chdir(home)
    own, given = mach_ext.Run.open("run"), home.glob("run/text_encoder-*/config.json")
    shutil.copytree(next(given).parent, home / "elsewhere")
    moved = mach_ext.Run.open("run", text_encoder="elsewhere")
    monkeypatch.chdir(tmp_path)
    assert own.predict("a cat", k=1) == moved.predict("a cat", k=1)


def test_a_record_does_not_lead_out_of_the_folder(home, tmp_path):
    """A damaged record would make `compress` copy any folder."""
    run = mach_ext.Run.open(home / "run")
    record = json.loads(run.model.attachments["text_encoder.json"])
    run.model.attachments["text_encoder.json"] = json.dumps({**record, "name": "../bert"}).encode()
    run.model.save(tmp_path / "damaged")
    with pytest.raises(ValueError, match=r"text_encoder\.json of the model: name must be that of a trained"):
        mach_ext.Run.open(tmp_path / "damaged")


def test_a_copy_of_a_run_whose_encoder_is_elsewhere(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    (own,) = [folder for folder in (tmp_path / "run").glob("text_encoder-*") if folder.is_dir()]
    shutil.move(own, tmp_path / "moved")
    run = mach_ext.Run.open(tmp_path / "run", text_encoder=tmp_path / "moved")
    copy = run.compress(tmp_path / "small", split=None)
    assert copy.predict("a cat", k=1)[0][0].label
    assert [each for each in (tmp_path / "small").iterdir() if each.is_dir()] == []


def test_both_trainings_have_the_same_optimiser(home):
    """A learning rate for one optimiser is a wrong one for the other."""
    options = {"optimizer": "adagrad", "schedule": "constant", "learning_rate": 0.2, "epochs": 1}
    train(home, "adagrad", finetune_epochs=1, evaluate=False, **options)
    given = mach_ext.training.read_checkpoint(home / "adagrad")["hyperparameters"]
    assert (given["optimizer"], given["schedule"], given["learning_rate"]) == ("adagrad", "constant", 0.05)


def test_a_new_run_does_not_delete_the_encoder_that_it_is_trained_on(home):
    """The encoder of the run in the folder would be removed with that run."""
    (own,) = [folder for folder in (home / "run").glob("text_encoder-*") if folder.is_dir()]
    message = r"belongs to the run in .*run, which is replaced with its encoder; copy the encoder to another"
    for finetune in (False, True):
        with pytest.raises(ValueError, match=message):
            train(home, "run", text_encoder=own, finetune=finetune, text_learning_rate=None, overwrite=True)
    dataset = mach_ext.Run.open(home / "run").dataset()
    with pytest.raises(ValueError, match=message):
        mach_ext.train(dataset, output=home / "run", overwrite=True, progress=False)
    assert mach_ext.Run.open(home / "run").text_encoder.digest == TextEncoder.load(own).digest


def test_one_document_is_explained_without_the_embeddings_of_its_split(home, monkeypatch):
    """A split can be large, and the data folder of a server read-only."""
    monkeypatch.setenv("MACH_DATA", str(home / "empty"))
    run = mach_ext.Run.open(home / "run")
    alone = run.explain(sample_id=3, k=1, n_steps=8)
    assert not (home / "empty").exists()
    monkeypatch.setenv("MACH_DATA", str(home / "data"))
    run.predict(split="test", k=1)  # embeds the split
    beside = run.explain(sample_id=3, k=1, n_steps=8)
    np.testing.assert_allclose(alone.explanation.scores, beside.explanation.scores, atol=1e-5)
