"""Writing that is whole or not at all."""

import errno
import os

import pytest
from data_cases import COMPRESS, random_split

from mach_ext.data import Dataset, write_folder, write_xmc
from mach_ext.data.atomic import atomic_path, atomic_write, new_folder
from mach_ext.data.sources import read_input


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_atomic_write(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail():
        with atomic_write(path) as file:
            file.write(b"new, but never finished")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert read_input(path) == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_disk_full_while_writing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    split = random_split()
    path = tmp_path / "a.txt"
    path.write_text("kept")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_xmc(path, split.X, split.Y)
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "folder", Dataset("d", tmp_path, split))
    assert path.read_text() == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_new_folder_keeps_the_faster_one(tmp_path):
    with new_folder(tmp_path / "a") as mine:
        (mine / "file").write_text("mine")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "file").write_text("theirs")
    assert (tmp_path / "a" / "file").read_text() == "theirs"
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "b"):
        raise RuntimeError("stop")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_an_interrupt_right_after_the_making_leaves_nothing(tmp_path, monkeypatch):
    """Ctrl-C can come when the file is there and nothing is written yet."""
    opened = os.open

    def interrupted(path, *args):
        opened(path, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "file"):
        pass
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
