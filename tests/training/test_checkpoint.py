"""Checkpoints: damage is refused, former formats are resumed, and only their own files are touched."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import FIXTURES, killed_at
from safetensors.torch import load_file, save_file

import mach_ext
from mach_ext import training
from mach_ext.data.records import seal

sys.path.insert(0, str(FIXTURES))
from make_checkpoint import OPTIONS, X, Y, build, train


def resume(folder, hidden_size=4, **options):
    model = build(hidden_size)
    record = mach_ext.fit(model, X, Y, X, Y, output=folder, resume=True, **{**OPTIONS, **options})
    return model, record


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole():
    """The weights and the record of a run that was not stopped."""
    model = build()
    record = mach_ext.fit(model, X, Y, X, Y, **OPTIONS)
    return weights(model), record


@pytest.fixture(scope="module")
def once_stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    train(folder)
    return folder


@pytest.fixture
def stopped(once_stopped, tmp_path):
    """The folder of a run that was stopped in its third epoch of four."""
    return shutil.copytree(once_stopped, tmp_path / "run")


def edit(folder, change, with_digest=True):
    file = folder / "checkpoint.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(seal(record) if with_digest else record))


# ----------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_v0",
        "checkpoint_v1",
        "checkpoint_v2",
        "checkpoint_v3",
        "checkpoint_v3_shards",
        "checkpoint_v4",
    ],
)
def test_checkpoints_of_former_formats_are_resumed(name, tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(FIXTURES / name, folder)
    remarks = pytest.warns(UserWarning, match=r"checkpoint.json: an older checkpoint without digests")
    with remarks if name == "checkpoint_v0" else pytest.MonkeyPatch.context():
        model, record = resume(folder)
    assert record.epoch == 4
    for key, tensor in whole[0].items():
        torch.testing.assert_close(weights(model)[key], tensor, rtol=1e-4, atol=1e-4)


def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(stopped, whole):
    model, record = resume(stopped)
    assert same(weights(model), whole[0])
    assert record.history == whole[1].history
    assert sorted(file.name.partition("-")[0] for file in stopped.iterdir()) == [
        "checkpoint.json", "model.json", "run", "weights",
    ]  # fmt: skip
    again, _ = resume(stopped)
    assert same(weights(again), whole[0])


def test_a_later_format_is_refused(stopped):
    edit(stopped, lambda record: record.update(format=5))
    with pytest.raises(ValueError, match=r"not a checkpoint: format must be one of 1, 2, 3, 4, got 5$"):
        resume(stopped)


# ------------------------------------------------------------------------------------------------ damage


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_flipped_bit_is_refused_or_changes_nothing(stopped, tmp_path, whole):
    rng = random.Random(0)
    messages = []
    for _ in range(40):
        folder = shutil.copytree(stopped, tmp_path / "flipped")
        file = rng.choice(sorted(folder.iterdir()))
        flip(file, rng.randrange(8 * file.stat().st_size))
        try:
            assert same(weights(resume(folder)[0]), whole[0]), file
        except ValueError as error:
            messages.append(str(error))
        shutil.rmtree(folder)
    assert all(str(tmp_path / "flipped") in message for message in messages)
    assert len(messages) > 10


SUBSTITUTES = {
    "nothing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "a dangling link": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("put", SUBSTITUTES)
def test_something_else_in_place_of_the_tensors(stopped, put):
    (file,) = stopped.glob("checkpoint-*")
    SUBSTITUTES[put](file)
    with pytest.raises(ValueError, match=r"checkpoint-2-3-[0-9a-f]{12}.safetensors: "):
        resume(stopped)


@pytest.mark.parametrize("put", [put for put in SUBSTITUTES if put not in ("nothing", "a dangling link")])
def test_something_else_in_place_of_the_record(stopped, put):
    SUBSTITUTES[put](stopped / "checkpoint.json")
    with pytest.raises(ValueError, match=r"checkpoint.json: "):
        resume(stopped)


def test_tensors_of_another_run_are_refused(stopped, tmp_path):
    train(tmp_path / "other", learning_rate=0.01)
    (ours,), (theirs,) = stopped.glob("checkpoint-*"), (tmp_path / "other").glob("checkpoint-*")
    shutil.copyfile(theirs, ours)
    with pytest.raises(ValueError, match="not the contents that the record names"):
        resume(stopped)


def test_a_model_of_another_run_is_not_taken_for_the_best_epoch(stopped, tmp_path):
    resume(stopped)
    for file in ("model.json", "weights"):
        for old in stopped.glob(f"{file}*"):
            old.unlink()
    train(tmp_path / "other", learning_rate=0.01)
    for file in (tmp_path / "other").glob("[mw]*"):
        shutil.copy(file, stopped)
    with pytest.raises(ValueError, match=r"model.json: must be the model of this run's best epoch"):
        resume(stopped)


RECORDS = {
    b"": "must be JSON in UTF-8",
    b"{}": "hyperparameters is missing",
    b"[]": "it must be an object, got []",
    b"\xef\xbb\xbf{}": "must be JSON in UTF-8",
    '{"a": 1}'.encode("utf-16"): "must be JSON in UTF-8",
    b'{"a": "\0"}': "must be JSON in UTF-8",
    b"[" * 100_000: "must have few levels, got deeply nested JSON",
    b'{"a": 1, "a": 1}': "the key 'a' twice in one object",
    b'{"a": NaN}': "NaN, which is no number of JSON",
    b'{"a": 1e999}': "the number 1e999, which is beyond every float",
    b'{"a": ' + b"9" * 5000 + b".5}": "which is beyond every float",
    b'{"a": ' + b"1" * 5000 + b"}": "must be JSON in UTF-8",
}


@pytest.mark.parametrize("content", RECORDS, ids=lambda content: str(content[:20]))
def test_records_that_are_no_checkpoint(stopped, content):
    (stopped / "checkpoint.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.json: not a checkpoint: ") as caught:
        resume(stopped)
    assert RECORDS[content] in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("levels", [100, 900, 980, 995])
def test_a_record_of_many_levels(stopped, levels):
    text = (stopped / "checkpoint.json").read_text()
    nested = '{"a": ' * levels + "1" + "}" * levels
    (stopped / "checkpoint.json").write_text(text.replace('"run": {', f'"run": {{"a": {nested}, ', 1))
    with pytest.raises(ValueError, match=r"checkpoint.json: not a checkpoint: (edited|must have few levels)"):
        resume(stopped)


def forget_digests(record):
    for key in ("format", "sha256", "tensors_sha256", "weights_sha256"):
        del record[key]


CHANGES = {
    "progress.epoch must be an integer": lambda r: r["progress"].update(epoch={}),
    "progress.best_epoch must be": lambda r: r["progress"].update(best_epoch="2"),
    "must be an integer from 0": lambda r: r["progress"].update(batch=-1),
    "progress.documents must be": lambda r: r["progress"].update(documents=True),
    "progress.history must be a list": lambda r: r["progress"].update(history=None),
    "progress.history.0..epoch is missing": lambda r: r["progress"]["history"][0].pop("epoch"),
    "progress contradicts itself": lambda r: r["progress"]["history"].pop(),
    "its progress contradicts": lambda r: r["progress"]["history"][1].pop("loss"),
    "itself": lambda r: r["progress"].update(best_epoch=7),
    "contradicts": lambda r: r["progress"].update(epoch=10**9),
    "progress.loss_sum must be a finite number": lambda r: r["progress"].update(loss_sum=10**400),
    "progress must have no key 'more'": lambda r: r["progress"].update(more=1),
    "progress must be an object": lambda r: r.update(progress=[]),
    "scalars must be an object": lambda r: r.update(scalars=None),
    "scalars.optimizer.0.step must be": lambda r: r["scalars"].update({"optimizer.0.step": [3]}),
    "wrong scalars": lambda r: r.update(scalars={}),
    "tensors must be text like": lambda r: r.update(tensors="../x.safetensors"),
    "different: hash was 5, now|hash must be a string": lambda r: r.update(hash=5),
    "different: model.num_buckets was": lambda r: r["model"].update(num_buckets={}),
    "hyperparameters.epochs must be": lambda r: r["hyperparameters"].update(epochs="4"),
}


@pytest.mark.parametrize("message", CHANGES)
@pytest.mark.filterwarnings("ignore:.*digests")
def test_types_and_values_that_no_run_writes(stopped, message):
    """Without digests, as of former versions, so that nothing but the rule itself refuses them."""
    edit(stopped, lambda record: (forget_digests(record), CHANGES[message](record)), with_digest=False)
    with pytest.raises(ValueError, match=rf"checkpoint.*{message}"):
        resume(stopped)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("model.bucket_bias"),
        lambda tensors: tensors.pop("optimizer.0.exp_avg"),
        lambda tensors: tensors.update({"optimizer.9.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimizer.x": torch.zeros(1)}),
        lambda tensors: tensors.update({"model.bucket_bias": torch.zeros(6, 9)}),
        lambda tensors: tensors.update({"model.bucket_bias": torch.zeros(6, 8, dtype=torch.complex64)}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*digests")
def test_tensors_that_no_run_writes(stopped, change):
    (file,) = stopped.glob("checkpoint-*")
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    edit(stopped, forget_digests, with_digest=False)
    with pytest.raises(ValueError, match=r"checkpoint-2-3.*: not the tensors of a checkpoint: wrong names"):
        resume(stopped)


# ------------------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize("hidden_size", [4, 0])
def test_a_run_killed_at_any_step_goes_on_and_leaves_nothing(tmp_path, hidden_size):
    """At each of the first changes to its folder, later at some."""
    options = {"repetitions_at_a_time": 4, "epochs": 1} if hidden_size == 0 else {"epochs": 2}
    whole, _ = resume(tmp_path / "whole", hidden_size, **options)
    folder, kills = tmp_path / "run", 0
    while killed_at(kills, lambda: train(folder, 100, hidden_size, resume=True, **options)):
        kills += 1 if kills < 12 else 4
    assert kills > 5
    assert same(weights(mach_ext.load(folder)), weights(whole))
    assert names(folder) == names(tmp_path / "whole")


def names(folder):
    return sorted(file.name for file in folder.iterdir())


# ---------------------------------------------------------------------------------------- repetitions in turn


def test_repetitions_in_turn_are_checked_too(tmp_path):
    folder = tmp_path / "run"
    options = {"repetitions_at_a_time": 2}
    train(folder, 30, hidden_size=0, **options)
    (tensors,) = folder.glob("repetitions-2/checkpoint-*")
    kept = tensors.read_bytes()
    for file in (tensors, folder / "repetitions-0" / "model.json", *folder.glob("repetitions-0/weights-*")):
        content = file.read_bytes()
        flip(file, 8 * file.stat().st_size - 40)
        with pytest.raises(ValueError, match=file.name):
            resume(folder, hidden_size=0, **options)
        file.write_bytes(content)
    assert tensors.read_bytes() == kept
    resume(folder, hidden_size=0, **options)
    assert not list(folder.glob("repetitions-*"))


def test_only_what_a_run_wrote_is_deleted(stopped):
    theirs = ["checkpoint-old-notes.safetensors", "checkpoint-1-2.safetensors", "repetitions-3/notes.txt"]
    (stopped / "repetitions-3").mkdir()
    for name in theirs:
        (stopped / name).write_text("mine")
    (stopped / "checkpoint-1-1-0123456789ab.safetensors").mkdir()
    resume(stopped)
    train(stopped, 3)
    training.delete_checkpoint(stopped)
    assert all((stopped / name).read_text() == "mine" for name in theirs)
    assert not (stopped / "checkpoint.json").exists()
    assert len(list(stopped.glob("checkpoint-*"))) == 3
