"""A run of `fit_svm` that was killed or interrupted goes on with the same bits. Others are refused."""

import os
import random
import signal
import time
import traceback

import numpy as np
import pytest
import scipy.sparse
import torch

import mach_ext
from mach_ext import _ops, training
from mach_ext.distributed import part as parts
from mach_ext.distributed.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")
N, D, L, B, R = 150, 60, 40, 70, 4
rng = np.random.default_rng(0)
X = scipy.sparse.random(N, D, 0.2, "csr", np.float32, random_state=0)
Y = scipy.sparse.csr_matrix(rng.random((N, L)) < 0.1, dtype=np.float32)


def build(**changes):
    given = {"num_repetitions": R, "num_buckets": B, "hidden_size": 0, "seed": 3} | changes
    return mach_ext.MACH(D, L, merge="mean_logprob", **given)


def fit(folder=None, X=X, Y=Y, model=None, **options):
    model = model or build()
    mach_ext.fit_svm(model, X, Y, output=folder, progress=False, **options)
    return model


def same(a, b):
    return a.bucket_weight.equal(b.bucket_weight) and a.bucket_bias.equal(b.bucket_bias)


def stop_after(monkeypatch, calls):
    """Each call solves up to 64 buckets of 70, on one thread: two calls a repetition."""
    original, left = _ops.bucket_svm, iter(range(calls))

    def solve(*args, **kwargs):
        if next(left, None) is None:
            raise RuntimeError("killed")
        return original(*args, **kwargs)

    monkeypatch.setattr(_ops, "bucket_svm", solve)


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("minutes", [0.0, 10.0])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, monkeypatch, calls, minutes):
    with monkeypatch.context() as patch:
        stop_after(patch, calls)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path, checkpoint_minutes=minutes)
    kept = sum(64 if "-64-" in file.name else B for file in tmp_path.glob("checkpoint-*.safetensors"))
    assert kept == calls // 2 * B + (64 if calls % 2 and minutes == 0 else 0)
    solved, original = [], _ops.bucket_svm

    def solve(*args, **kwargs):
        solved.append(kwargs["bias"].numel())
        return original(*args, **kwargs)

    monkeypatch.setattr(_ops, "bucket_svm", solve)
    resumed = fit(tmp_path, resume=True)
    assert sum(solved) == R * B - kept  # what was kept is not solved again
    assert same(resumed, fit())
    assert same(mach_ext.load(tmp_path), resumed)
    assert not list(tmp_path.glob("checkpoint*"))


def in_a_child(folder, pauses=0.0):
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            original = _ops.bucket_svm

            def slowly(*args, **kwargs):
                time.sleep(pauses)
                return original(*args, **kwargs)

            _ops.bucket_svm = slowly
            fit(folder, resume=True, checkpoint_minutes=0.0)
            code = 0
        except BaseException:
            (folder / "errors").write_text(traceback.format_exc())
        os._exit(code)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kills_at_random_moments(tmp_path):
    generator, kills = random.Random(0), 0
    while True:
        pid = in_a_child(tmp_path, pauses=0.02)
        if kills < 6:
            time.sleep(generator.uniform(0.05, 0.12))
            os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:
            break
        kills += 1
        assert kills <= 6, (tmp_path / "errors").read_text()
    assert kills >= 1
    assert same(mach_ext.load(tmp_path), fit())
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_ctrl_c_keeps_the_solved_buckets(tmp_path):
    pid = in_a_child(tmp_path, pauses=0.2)
    while not list(tmp_path.glob("checkpoint-*.safetensors")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGINT)
    assert ended(pid) == 1
    error = (tmp_path / "errors").read_text()
    assert "TrainingInterrupted: training stopped" in error
    assert f"of {R * B} buckets: continue with resume=True (--resume)" in error
    assert training.has_checkpoint(tmp_path)
    assert same(fit(tmp_path, resume=True), fit())


def other_data():
    changed = X.copy()
    changed.data[0] += 1
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"C": 2.0}, r"solver\.C was 1\.0, now 2\.0"),
        ({"tolerance": 0.1}, r"solver\.tolerance was 0\.3, now 0\.1"),
        ({"X": other_data()}, r"data\.X was"),
        ({"model": build(seed=4)}, r"hash was .*seed=3, now .*seed=4"),
        ({"model": build().double()}, "dtype was float32, now float64"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch, changes, message):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path)
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"resume needs the same settings and data; different: .*{message}"):
        fit(tmp_path, resume=True, **changes)
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    fit(tmp_path, **changes)  # without resume it is replaced
    assert not list(tmp_path.glob("checkpoint*"))


def test_damage_is_noticed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path)
    (file,) = tmp_path.glob("checkpoint-0-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not the buckets of a checkpoint: edited"):
        fit(tmp_path, resume=True)
    record = tmp_path / "checkpoint-svm.json"
    record.write_text(record.read_text().replace('"C": 1.0', '"C": 2.0'))
    with pytest.raises(ValueError, match="edited: its contents do not match their SHA-256"):
        fit(tmp_path, resume=True, C=2.0)


def test_checkpoints_of_gradients_and_of_svms_are_not_mixed(tmp_path, monkeypatch):
    mach_ext.fit(build(), X, Y, epochs=1, output=tmp_path, progress=False)
    with pytest.raises(ValueError, match="the same settings and data; different: it is of `fit`"):
        fit(tmp_path, resume=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path)
    with pytest.raises(ValueError, match="different: it is of `fit_svm`"):
        mach_ext.fit(build(), X, Y, epochs=1, output=tmp_path, resume=True, progress=False)
    mach_ext.fit(build(), X, Y, epochs=1, output=tmp_path, progress=False)
    assert not (tmp_path / "checkpoint-svm.json").exists()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_without_a_checkpoint_resume_starts(tmp_path):
    assert same(fit(tmp_path / "new", resume=True), fit())
    with pytest.raises(ValueError, match="resume needs the output folder"):
        fit(resume=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_file_at_once(tmp_path, dtype):
    """The file is that of a rounded copy, and the model in memory is the one in the file."""
    plain = fit(tmp_path / "plain", model=build().to(dtype))
    plain.save(tmp_path / "copy", quantization_step=0.1)
    small = fit(tmp_path / "small", model=build().to(dtype), quantization_step=0.1)
    names = [{file.name for file in (tmp_path / name).iterdir()} for name in ("copy", "small")]
    assert names[0] <= names[1]  # named by the digest of their contents
    assert same(mach_ext.load(tmp_path / "small").to(dtype), small)
    assert not training.has_checkpoint(tmp_path / "small")
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("plain", "small")]
    assert 2 * sizes[1] < sizes[0]


def test_a_step_that_is_too_coarse_loses_no_work(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"all be rounded to 0, .* keeps the solved buckets: continue with an"
    ):
        fit(tmp_path, quantization_step=1e6)
    stop_after(monkeypatch, 0)  # all buckets are in the checkpoint
    again = fit(tmp_path, quantization_step=0.1, resume=True)
    assert same(mach_ext.load(tmp_path), again)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (0.0, ValueError, "fit_svm: quantization_step must be None or a finite number above 0, got 0.0"),
        (float("nan"), ValueError, "fit_svm: quantization_step must be .* got nan"),
        ("0.5", TypeError, "fit_svm: quantization_step must be None or a number, got str"),
    ],
)
def test_a_bad_step_is_refused_before_the_work(tmp_path, monkeypatch, step, error, message):
    stop_after(monkeypatch, 0)
    with pytest.raises(error, match=message):
        fit(tmp_path, quantization_step=step)
    with pytest.raises(ValueError, match="quantization_step needs the output folder"):
        fit(quantization_step=0.5)


def test_a_run_goes_on_in_another_number_of_parts(tmp_path, monkeypatch):
    """The repetitions of a file count in the whole model."""

    class Two(Ranks):
        def collect(self, value):
            return [value, value]

    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path)
    second = parts.ModelPart.new(build().configuration(), Two(1, 2))
    assert second.extent.repetitions == range(2, 4)
    with monkeypatch.context() as patch:
        patch.setattr(parts.ModelPart, "save", lambda part, folder, step: None)
        mach_ext.fit_svm(second, X, Y, output=tmp_path, resume=True, progress=False)
    whole = fit()
    assert second.model.bucket_weight.equal(whole.bucket_weight[2:])
    assert second.model.bucket_bias.equal(whole.bucket_bias[2:])
