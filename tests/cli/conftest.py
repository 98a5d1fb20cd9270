"""A trained model that tests of the command share."""

import shutil
import tempfile
from pathlib import Path

import pytest
from command_cases import Commands, write_texts


@pytest.fixture(scope="module")
def trained():
    """A server, and a folder of texts and their run, which any user may read."""
    with tempfile.TemporaryDirectory() as name:
        folder, commands = Path(name), Commands()
        folder.chmod(0o755)
        write_texts(folder / "texts")
        commands.here(
            folder, "train", "--dataset", "texts", "--epochs", "30", "--hidden-size", "16", "--batch-size",
            "10", "--hash-functions", "8", "--buckets", "8", "--learning-rate", "0.02", "--quiet",
        )  # fmt: skip
        commands.here(folder, "explain", "--text", "word0", "--output", "o")
        shutil.rmtree(folder / "o")
        yield folder, commands
        commands.close()
