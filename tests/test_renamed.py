"""Every name that changed works for one release under its former name, with a DeprecationWarning."""

import importlib
import pickle
import subprocess
import sys

import pytest
import scipy.sparse

import mach_ext
from mach_ext import report, training

FORMER = {
    "training.suggested": "training.default_sizes",
    "training.exclusive": "training.lock_run",
    "training.forget": "training.delete_checkpoint",
    "svm.worthwhile": "svm.prefer_svm",
    "svm.suggested": "svm.default_svm_sizes",
    "explain.removals": "explain.leave_one_out",
    "explain.Removals": "explain.LeaveOneOut",
    "attack.attack": "attack.create",
    "attack.sign_pass": "attack._dense.sign_pass",
    "attack._Batch": "attack._batch.Batch",
    "attack._Direction": "attack._dense.Direction",
    "attack._Layer": "attack._layer.Layer",
    "data.vectorised": "data.iter_vectors",
    "data.documents.vectorised": "data.documents.iter_vectors",
    "data.files.atomic_path": "data.atomic.atomic_path",
    "data.files.atomic_write": "data.atomic.atomic_write",
    "data.files.clear_temporaries": "data.temporaries.clear_temporaries",
    "data.files.lock_folder": "data.locks.lock_folder",
    "data.files.naming": "data.files.damage_errors",
    "data.files.new_folder": "data.atomic.new_folder",
    "data.files.without_nan": "data.json_text.without_nan",
    "data.files.write_json": "data.json_text.write_json",
    "data.parsing.decode_json": "data.json_text.decode_json",
    "data.parsing.parse_json": "data.json_text.parse_json",
    "data.parsing.read_json": "data.json_text.read_json",
    "data.parsing.shown": "data.parsing.quote",
    "data.records.sealed": "data.records.seal",
    "data.sources.memory_named": "data.sources.shortage_advice",
}


def named(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"mach_ext.{module}"), name)


@pytest.mark.parametrize("former", FORMER)
def test_former_names(former):
    with pytest.warns(DeprecationWarning, match=rf"mach_ext\.{former} is now called mach_ext\.") as caught:
        value = named(former)
    assert value is named(FORMER[former])
    assert len(caught) == 1
    module = importlib.import_module(f"mach_ext.{former.rpartition('.')[0]}")
    assert former.rpartition(".")[2] not in getattr(module, "__all__", ())
    with pytest.raises(AttributeError, match="has no attribute 'never_was'"):
        module.never_was  # noqa: B018


def test_a_former_name_can_be_imported():
    """The warning points at the line that imports."""
    code = "from mach_ext.training import suggested\nprint(suggested(100, 10, 5)['epochs'])"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert done.stdout == "10\n"
    assert "<string>:1: DeprecationWarning" in done.stderr
    assert "is now called mach_ext.training.default_sizes" in done.stderr


def test_the_step_of_a_small_file(tmp_path):
    model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
    with pytest.warns(DeprecationWarning, match="MACH.save: argument step is now called quantization_step"):
        model.save(tmp_path / "former", step=0.01)
    model.save(tmp_path / "now", quantization_step=0.01)
    model.save(tmp_path / "by position", 0.01)
    first = (tmp_path / "now" / "model.json").read_bytes()
    assert (tmp_path / "former" / "model.json").read_bytes() == first
    assert (tmp_path / "by position" / "model.json").read_bytes() == first
    with pytest.raises(TypeError, match="pass only quantization_step"):
        model.save(tmp_path / "both", step=0.01, quantization_step=0.01)


def test_the_gradient_threshold_and_the_method():
    Y = scipy.sparse.identity(20, format="csr")
    X = Y.astype("float32")
    model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
    with pytest.warns(DeprecationWarning, match="negligible_gradient is now called gradient_threshold"):
        mach_ext.fit(model, X, Y, epochs=1, negligible_gradient=0.1, progress=False)
    with pytest.warns(DeprecationWarning, match="argument attack is now called method"):
        result = mach_ext.attack.evaluate(model, X, Y, attack="fgsm", epsilons=[0.1], resamples=0)
    assert result["attack"] == "fgsm"


@pytest.mark.parametrize("function", ["plot_attack", "attack_page"])
def test_the_sizes_of_a_report(function):
    Y = scipy.sparse.identity(20, format="csr")
    X = Y.astype("float32")
    model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
    result = mach_ext.attack.evaluate(model, X, Y, epsilons=[0.0, 0.1], resamples=0)
    rest = {"samples": [], "title": "A run"} if function == "attack_page" else {}
    with pytest.warns(DeprecationWarning, match=f"{function}: argument wanted is now called sizes") as caught:
        former = getattr(report, function)(result, wanted=[0.1], **rest)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    if function == "attack_page":
        assert former == report.attack_page(result, sizes=[0.1], **rest)
        assert '<tr class="requested"><td>0.1</td>' in former
        assert '<tr class="requested"><td>0</td>' not in former


def test_the_former_field_of_hyperparameters_can_be_read():
    settings = training.Hyperparameters(gradient_threshold=0.1)
    with pytest.warns(DeprecationWarning, match="negligible_gradient is now called") as caught:
        assert settings.negligible_gradient == 0.1
    assert caught[0].filename == __file__


def test_a_pickle_with_the_former_field_keeps_its_value():
    settings = training.Hyperparameters(gradient_threshold=0.1)
    former = pickle.dumps(settings).replace(b"\x12gradient_threshold", b"\x13negligible_gradient")
    assert former != pickle.dumps(settings)
    former = pickle.loads(former[:2] + former[11:])  # without the frame, whose length has changed
    assert former == settings


def test_former_pickles_of_attacks():
    """They name the classes as they were called when `mach_ext.attack` was one file."""
    Y = scipy.sparse.identity(20, format="csr")
    X = Y.astype("float32")
    model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
    perturbation = mach_ext.attack.FGSM(model, threat_model="dense").perturb(X, Y, 0.1)
    former = pickle.dumps(perturbation, protocol=0)
    for new, old in {"_batch\nBatch": "\n_Batch", "_dense\nDirection": "\n_Direction"}.items():
        assert f"mach_ext.attack.{new}".encode() in former
        former = former.replace(f"mach_ext.attack.{new}".encode(), f"mach_ext.attack{old}".encode())
    with pytest.warns(DeprecationWarning, match="is now called"):
        loaded = pickle.loads(former)
    assert (loaded.to_csr() != perturbation.to_csr()).nnz == 0
