"""A few damaged files of every format through the readers and naive ones; `make stress` takes thousands."""

import random
from collections import Counter

import numpy as np
import pytest
from stress import corpus, mutate_npz, run
from stress.formats import FORMATS

from mach_ext.data import read_xmc

FILES = {"npz": 150, "model": 120, "checkpoint": 30, "written-names": 20}
FOLDERS = ("model", "checkpoint")


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "KEPT", tmp_path / "kept")


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused_as_by_a_naive_reader(name):
    counts = [0] * 4
    files = FILES.get(name, 200)
    assert run.work(name, range(files), counts) == {}
    _, accepted, refused, differences = counts
    assert differences == 0
    assert accepted + refused == files
    if FORMATS[name].is_damaged:
        assert min(accepted, refused) > files // 10  # the damage is of a size that tells
    else:
        assert refused == 0


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in FOLDERS])
def test_naive_readers_take_what_is_undamaged(name):
    for seed in range(30):
        rng = random.Random(seed)
        if name == "npz":
            arrays = {"X.npz": mutate_npz.valid(rng, 4, 9, False), "Y.npz": mutate_npz.valid(rng, 4, 5, True)}
            files = {file: mutate_npz.npz(rng, matrix, "none") for file, matrix in arrays.items()}
        elif name == "label-counts":
            files = {"label_counts.npy": mutate_npz.pack({"a": np.zeros(corpus.LABELS, "i4")})["a.npy"]}
        else:
            files = getattr(corpus, name.replace("-", "_"))(rng)
        options = {"base": None, "count": None, "all labelled": False}
        FORMATS[name].naive(files, options)


def test_faults_are_found_and_kept(monkeypatch, tmp_path):
    """A reader that is wrong in three ways: it takes what it must refuse, reads other values, breaks down."""

    def read(path, num_threads=0):
        if path.read_bytes().count(b"\n") == 4:
            raise KeyError("broken")
        split = read_xmc(path)
        split.X.data[:1] = 7
        return split

    monkeypatch.setattr("mach_ext.data.read_xmc", read)
    kinds = run.work("xmc", range(60), [0] * 4)
    assert {kind.partition(" from ")[0] for kind in kinds} == {
        "read_xmc: another answer",
        "read_xmc: KeyError",
    }
    assert Counter({kind: min(count, 3) for kind, count in kinds.items()}) == {
        kind: len(folders) for kind, folders in run.kept("xmc").items()
    }
