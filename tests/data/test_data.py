"""The examples in the docstrings of mach_ext.data."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "atomic",
        "batching",
        "documents",
        "folders.write",
        "formats.jsonl",
        "formats.sparse_text",
        "formats.xmc",
        "matrices",
        "parsing",
        "records",
        "registry",
        "text",
    ],
)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"mach_ext.data.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
