"""A run that was killed or interrupted goes on with the same bits; one of other settings is refused."""

import json
import os
import random
import signal
import subprocess
import time
import traceback

import pytest
from training_cases import COUNTS, X, Y, build, options, same_bits, weights

import mach_ext
from mach_ext import training
from mach_ext.training import keeping
from mach_ext.training.run import TrainingRun


def test_bfloat16_resumes_with_the_same_bits(tmp_path, monkeypatch):
    whole = build()
    mach_ext.fit(whole, X, Y, precision="bfloat16", **options)
    step, left = TrainingRun.step, iter(range(70))

    def stops(run, batch):
        if next(left, None) is None:
            raise RuntimeError("killed")
        step(run, batch)

    monkeypatch.setattr(TrainingRun, "step", stops)
    with pytest.raises(RuntimeError, match="killed"):
        mach_ext.fit(build(), X, Y, precision="bfloat16", output=tmp_path, **options)
    monkeypatch.setattr(TrainingRun, "step", step)
    model = build()
    mach_ext.fit(model, X, Y, precision="bfloat16", output=tmp_path, resume=True, **options)
    assert same_bits(weights(model), weights(whole))


def test_resume_after_a_kill_of_a_run_that_began_with_an_adjusted_model(tmp_path, monkeypatch):
    def adjusted():
        model = build()
        model.adjust_logits(COUNTS, 0.5)
        return model

    whole = adjusted()
    mach_ext.fit(whole, X, Y, **options)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", lambda run, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mach_ext.fit(adjusted(), X, Y, output=tmp_path, **options)
    resumed = adjusted()
    mach_ext.fit(resumed, X, Y, output=tmp_path, resume=True, **options)
    assert same_bits(weights(whole), weights(resumed))


def in_a_child(folder, step=TrainingRun.step):
    """Starts or resumes the run in a process of its own, with the given step; returns its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in the background
        try:
            TrainingRun.step = step
            mach_ext.fit(build(), X, Y, X, Y, output=folder, resume=True, **options)
            code = 0
        except BaseException:
            (folder / "errors").write_text(traceback.format_exc())
        os._exit(code)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_kill_at_random_moments_then_resume_gives_the_same_bits(tmp_path, say):
    """kill -9 again and again until the run gets through; checkpoints after every step."""
    model = build()
    whole = mach_ext.fit(model, X, Y, X, Y, **options)
    start = time.perf_counter()
    assert ended(in_a_child(tmp_path / "undisturbed")) == 0
    seconds = time.perf_counter() - start  # of a run that nobody kills; each attempt gets a quarter at most
    generator, kills = random.Random(0), 0
    while True:
        pid = in_a_child(tmp_path)
        if kills < 10:
            time.sleep(generator.uniform(0, seconds / 4))
            os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:
            break
        kills += 1
        assert kills <= 10, (tmp_path / "errors").read_text()
    say(f"a run was killed {kills} times")
    assert kills >= 3  # fewer: the run was over before the kills came; then this shows little
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(model))
    resumed = json.loads((tmp_path / "checkpoint.json").read_text())["progress"]
    assert resumed["history"] == whole.history
    assert resumed["best_epoch"] == whole.best_epoch
    assert not list(tmp_path.glob("checkpoint-*"))  # nothing that is no longer needed


def test_ctrl_c_leaves_a_checkpoint_and_says_so(tmp_path):
    left, usual = iter(range(30)), TrainingRun.step

    def interrupted(run, batch):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGINT)
        usual(run, batch)

    assert ended(in_a_child(tmp_path, interrupted)) != 0
    errors = (tmp_path / "errors").read_text()
    assert "training stopped" in errors
    assert "continue with resume=True (--resume)" in errors
    assert ended(in_a_child(tmp_path)) == 0
    model = build()
    mach_ext.fit(model, X, Y, X, Y, **options)
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(model))


def test_resume_of_a_finished_run_loads_it(tmp_path):
    model, again = build(), build()
    record = mach_ext.fit(model, X, Y, output=tmp_path, **options)
    resumed = mach_ext.fit(again, X, Y, output=tmp_path, resume=True, **options)
    assert resumed.history == record.history
    assert same_bits(weights(model), weights(again))


def test_no_epoch_saves_the_model_as_it_came(tmp_path):
    model = build()
    mach_ext.fit(model, X, Y, output=tmp_path, **{**options, "epochs": 0})
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(build()))


def test_one_run_a_folder_and_what_a_kill_left_is_cleared(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".weights-0.safetensors.{dead.pid}.tmp").write_text("half")
    (tmp_path / ".notes.tmp").write_text("the user's")
    (tmp_path / "repetitions-notes.txt").write_text("the user's")
    with training.lock_run(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".notes.tmp", "repetitions-notes.txt"]
        with pytest.raises(ValueError, match="another run is training in"):
            mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)


def test_resume_insists_on_the_same_data_and_hash(tmp_path):
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    with pytest.raises(ValueError, match=r"data.Y was"):
        mach_ext.fit(build(), X, Y[::-1], output=tmp_path, resume=True, **options)
    table = mach_ext.LabelHash(60, 16, 8, seed=1).buckets
    other = mach_ext.MACH(
        60, 60, 8, 16, hidden_size=32, hidden_dropout=0.3, hash=mach_ext.LabelHash.from_buckets(table, 16)
    )
    with pytest.raises(ValueError, match=r"hash was L=60 B=16 R=8 seed=0, now .* table="):
        mach_ext.fit(other, X, Y, output=tmp_path, resume=True, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 7}, "hyperparameters.epochs was 6, now 7"),
        ({"learning_rate": 0.02}, "hyperparameters.learning_rate was 0.01, now 0.02"),
    ],
)
def test_resume_with_other_settings_is_refused(tmp_path, change, message):
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **{**options, **change})
    other = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=17, hidden_size=32, hidden_dropout=0.3)
    with pytest.raises(ValueError, match=r"model\.num_buckets was 16, now 17"):
        mach_ext.fit(other, X, Y, output=tmp_path, resume=True, **options)
    with pytest.raises(ValueError, match=r"data.X was \[300, 60, .*\], now \[299"):
        mach_ext.fit(build(), X[:299], Y[:299], output=tmp_path, resume=True, **options)


@pytest.mark.parametrize("broken", ["save_tensors", "write_json"])
def test_disk_full_while_checkpointing_keeps_the_former_checkpoint(tmp_path, monkeypatch, broken):
    calls, original = [], getattr(keeping, broken)

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(keeping, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*"))
    resumed, model = build(), build()
    record = mach_ext.fit(resumed, X, Y, output=tmp_path, resume=True, **options)
    assert record.epoch == 6
    mach_ext.fit(model, X, Y, **options)
    assert same_bits(weights(resumed), weights(model))


def damaged_json(folder):
    (folder / "checkpoint.json").write_text("{")


def damaged_tensors(folder):
    (tensors,) = folder.glob("checkpoint-*")
    tensors.write_bytes(tensors.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_json, "checkpoint.json: not a checkpoint"),
        (damaged_tensors, "not the tensors of a checkpoint"),
    ],
)
def test_damaged_checkpoint_is_named(tmp_path, monkeypatch, damage, message):
    monkeypatch.setattr(TrainingRun, "finish", lambda run: None)  # as if killed at the very end
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **options)


def test_a_new_run_makes_the_former_checkpoint_void(tmp_path, monkeypatch):
    """Run A ended, run B was killed at its first step: resuming A must not return B's weights."""
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)

    def killed(run, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mach_ext.fit(build(), X, Y, output=tmp_path, **{**options, "learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"hyperparameters.learning_rate was 0.5, now 0.01"):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **options)
