"""A tiny encoder for the tests of sentence encoders, and no network."""

import pytest
import tiny_bert

from mach_ext.text_encoder import TextEncoder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny encoder. Tests leave it as it is."""
    return tiny_bert.write(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """A tiny encoder. Tests leave it as it is."""
    return TextEncoder.load(tiny_folder)


@pytest.fixture(autouse=True)
def data_home(tmp_path, monkeypatch):
    """A data folder of the test's own."""
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"
