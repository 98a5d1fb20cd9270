"""What users read runs: docstring examples, the README's Python, the scripts in examples/."""

import doctest
import functools
import importlib
import pkgutil
import re
import runpy
import sys
import types

import numpy as np
import pytest
import scipy.sparse
import tiny_bert
from helpers import ROOT

import mach_ext

MODULES = ["mach_ext"] + [
    info.name
    for info in pkgutil.walk_packages(mach_ext.__path__, "mach_ext.")
    if not info.name.rpartition(".")[2].startswith(("_C", "_cpu", "_cuda"))
]


def public_modules():
    """Modules without an underscore in their names that list in `__all__` what they offer."""
    modules = [name for name in MODULES if not re.search(r"\._", name)]
    return [name for name in modules if hasattr(importlib.import_module(name), "__all__")]


def members(cls):
    """Public methods and properties of a class that mach_ext's classes define."""
    for base in cls.__mro__:
        if base.__module__.startswith("mach_ext"):
            for name, value in vars(base).items():
                value = getattr(value, "__func__", value)  # of class and static methods
                value = getattr(value, "fget", None) or getattr(value, "func", value)  # of properties
                if not name.startswith("_") and isinstance(value, types.FunctionType):
                    yield f"{base.__module__}.{base.__qualname__}.{name}"


def public_names():
    """Each public name with the place in `examples()` where its example must be.

    Functions, classes, methods and properties have examples of their own. Plain values have no docstring, so
    the examples of their module must mention them.
    """
    names = {}
    for module in map(importlib.import_module, public_modules()):
        names[module.__name__] = module.__name__
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, (type, types.FunctionType)):
                place = f"{value.__module__}.{value.__qualname__}"
                names[place] = place
                if isinstance(value, type):
                    names |= {member: member for member in members(value)}
            elif not isinstance(value, types.ModuleType):
                names[f"{module.__name__}.{name}"] = f"{module.__name__}#{name}"
    return names


def doctests(module):
    """The docstrings of a module with examples. doctest itself passes over cached properties."""
    finder = doctest.DocTestFinder()
    tests = finder.find(module)
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            for name, value in vars(cls).items():
                if isinstance(value, functools.cached_property):
                    tests += finder.find(value.func, f"{module.__name__}.{cls.__qualname__}.{name}", module)
    return [test for test in tests if test.examples]


@functools.cache
def examples():
    """Names of the docstrings with examples, and the words of each example as `name#word`."""
    places = set()
    for name in MODULES:
        for test in doctests(importlib.import_module(name)):
            places.add(test.name)
            words = re.findall(r"\w+", " ".join(example.source for example in test.examples))
            places |= {f"{test.name}#{word}" for word in words}
    return places


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith(("mach_ext.text_encoder", "mach_ext.attack.")):  # their examples load this folder
        tiny_bert.write("encoder")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctests(importlib.import_module(name)):
        runner.run(test)
    assert runner.failures == 0
    assert runner.tries > 0 or name not in public_modules()


def test_modules_of_the_top_level_list_their_names():
    top = [name for name in MODULES if re.fullmatch(r"mach_ext\.[a-z]\w*", name)]
    assert [name for name in top if name not in public_modules()] == []


def test_public_names_have_examples(say):
    names = public_names()
    missing = sorted(name for name, place in names.items() if place not in examples())
    say(f"{len(names)} public names, {len(names) - len(missing)} with an example that runs")
    assert missing == []


def test_public_names_are_seen():
    names = public_names()
    for name in ("nn.load", "nn.MACH", "nn.MACH.predict", "_hash_buckets.BucketTable.to"):
        assert f"mach_ext.{name}" in names
    assert names["mach_ext.training.METRICS"] == "mach_ext.training#METRICS"
    assert "mach_ext.nn.MACH.train" not in names  # it is torch's


def test_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_train_loop_reaches_near_zero_loss():
    main = runpy.run_path(str(ROOT / "examples" / "train_loop.py"))["main"]
    losses = main()
    assert losses[0] > 5
    assert losses[-1] < 0.05


def test_transformer_head_learns_the_planted_task():
    main = runpy.run_path(str(ROOT / "examples" / "transformer_head.py"))["main"]
    assert main() >= 0.99


def test_train_script(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name, n in (("train", 300), ("dev", 30), ("test", 30)):
        rows, labels = np.repeat(np.arange(n), 2), rng.integers(0, 40, 2 * n)
        Y = scipy.sparse.csr_matrix((np.ones(2 * n), (rows, labels)), (n, 40))
        X = scipy.sparse.csr_matrix((np.ones(2 * n), (rows, labels)), (n, 40))
        mach_ext.data.write_xmc(tmp_path / f"{name}.txt", X, Y)
    output = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path), "--epochs", "40", "--output", output])
    result = runpy.run_path(str(ROOT / "examples" / "train.py"))["main"]()
    assert result["P@1"] > 0.8
    assert mach_ext.load(output).num_labels == 40


def test_sklearn_pipeline_finds_the_labels():
    main = runpy.run_path(str(ROOT / "examples" / "sklearn_pipeline.py"))["main"]
    assert main() > 0.95
