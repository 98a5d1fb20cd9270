"""Former names of training work for one release, with a DeprecationWarning; so do the keys of old records."""

import importlib
import json
import shutil
import sys

import pytest
from helpers import FIXTURES

import mach_ext
from mach_ext import svm, training
from mach_ext.data.records import seal
from mach_ext.training import documents

sys.path.insert(0, str(FIXTURES))
from make_checkpoint import OPTIONS, X, Y, build, train


@pytest.mark.parametrize(
    ("module", "former", "new"),
    [
        ("training", "suggested", training.default_sizes),
        ("training", "exclusive", training.lock_run),
        ("training", "forget", training.delete_checkpoint),
        ("training", "checked_data", documents.check_documents),
        ("svm", "worthwhile", svm.prefer_svm),
        ("svm", "suggested", svm.default_svm_sizes),
    ],
)
def test_former_names_warn(module, former, new):
    with pytest.warns(DeprecationWarning, match=rf"mach_ext\.{module}\.{former} is now called mach_ext\."):
        assert getattr(importlib.import_module(f"mach_ext.{module}"), former) is new


def test_the_former_keyword_of_fit_warns_and_does_the_same():
    with pytest.warns(DeprecationWarning, match="fit: argument negligible_gradient is now") as caught:
        mach_ext.fit(build(), X, Y, negligible_gradient=0.1, **OPTIONS)
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="fit: negligible_gradient is now gradient_threshold"):
        mach_ext.fit(build(), X, Y, negligible_gradient=0.1, gradient_threshold=0.1, **OPTIONS)


@pytest.mark.parametrize("make", [training.Hyperparameters, training.Hyperparameters.of])
def test_the_former_field_of_hyperparameters_warns(make):
    model = (build(),) if make == training.Hyperparameters.of else ()
    with pytest.warns(DeprecationWarning, match="argument negligible_gradient is now called") as caught:
        settings = make(*model, negligible_gradient=0.1)
    assert caught[0].filename == __file__
    assert settings == training.Hyperparameters(gradient_threshold=0.1)


def former_record(folder, **changes):
    """The checkpoint of a folder as format 1 wrote it, with these hyper-parameters."""
    file = folder / "checkpoint.json"
    record = json.loads(file.read_text())
    given = record["hyperparameters"]
    given["negligible_gradient"] = given.pop("gradient_threshold")
    given.update(changes)
    file.write_text(json.dumps(seal({**record, "format": 1})))


def test_a_checkpoint_with_the_former_key_is_resumed(tmp_path):
    options = {**OPTIONS, "gradient_threshold": 0.1}
    whole = mach_ext.fit(build(), X, Y, X, Y, **options)
    train(tmp_path, gradient_threshold=0.1)
    former_record(tmp_path)
    assert training.read_checkpoint(tmp_path)["hyperparameters"]["gradient_threshold"] == 0.1
    record = mach_ext.fit(build(), X, Y, X, Y, output=tmp_path, resume=True, **options)
    assert record.history == whole.history


def test_the_value_under_the_former_key_counts(tmp_path):
    train(tmp_path)
    former_record(tmp_path, negligible_gradient=0.1)
    with pytest.raises(ValueError, match=r"hyperparameters\.gradient_threshold was 0\.1, now 0\.0"):
        mach_ext.fit(build(), X, Y, X, Y, output=tmp_path, resume=True, **OPTIONS)


def test_the_former_key_is_of_former_formats_only(tmp_path):
    shutil.copytree(FIXTURES / "checkpoint_v2", tmp_path / "run")
    former_record(tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.json"
    file.write_text(json.dumps(seal({**json.loads(file.read_text()), "format": 2})))
    with pytest.raises(
        ValueError, match=r"different: hyperparameters\.negligible_gradient was 0\.0, now None"
    ):
        mach_ext.fit(build(), X, Y, X, Y, output=tmp_path / "run", resume=True, **OPTIONS)
