"""What users read runs: docstring examples, the README's Python, the scripts in examples/."""

import doctest
import importlib
import pkgutil
import re
import runpy
import sys

import numpy as np
import pytest
import scipy.sparse
from helpers import ROOT

import mach_ext

MODULES = ["mach_ext"] + [
    info.name
    for info in pkgutil.walk_packages(mach_ext.__path__, "mach_ext.")
    if not info.name.rpartition(".")[2].startswith(("_C", "_cpu", "_cuda"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_public_functions_have_examples():
    for name in ("sparse_linear", "bucket_bce", "merge_topk"):
        assert ">>>" in getattr(mach_ext.functional, name).__doc__


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
