"""Opening files: compressed ones, damaged ones, missing ones."""

import bz2
import lzma

import numpy as np
import pytest
from data_cases import COMPRESS, XMC

from mach_ext import data
from mach_ext.data import read_xmc
from mach_ext.data.formats import read_lines
from mach_ext.data.sources import read_input


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(tmp_path, suffix):
    path = tmp_path / f"train.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](XMC.encode()))
    assert read_xmc(path).X.toarray().tolist() == [[1, 0, 0.5], [0, 2, 0]]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["truncated", "garbled", "not compressed"])
@pytest.mark.parametrize("read", [read_xmc, lambda path: list(data.iter_xmc(path))])
def test_damaged_compressed_files(tmp_path, suffix, damage, read):
    rng = np.random.default_rng(0)
    lines = [f"0 0:{value:.6f}\n" for value in rng.random(5000)]
    whole = COMPRESS[suffix](("5000 3 4\n" + "".join(lines)).encode())
    half = len(whole) // 2
    path = tmp_path / f"train.txt{suffix}"
    path.write_bytes(
        {
            "truncated": whole[:half],
            "garbled": whole[:half] + bytes(b ^ 0xFF for b in whole[half : half + 50]) + whole[half + 50 :],
            "not compressed": XMC.encode(),
        }[damage]
    )
    with pytest.raises(
        ValueError, match=rf"train.txt{suffix}: the {suffix} file must be whole and undamaged, got"
    ):
        read(path)


@pytest.mark.parametrize("suffix", [".xz", ".bz2", ".gz"])
def test_what_follows_a_compressed_stream_is_not_lost(tmp_path, suffix):
    path, first, second = tmp_path / f"a{suffix}", COMPRESS[suffix](b"one\n"), COMPRESS[suffix](b"two\n")
    for content in (first + second, first + second + bytes(8)):
        path.write_bytes(content)
        assert read_input(path) == b"one\ntwo\n"
    for content in (first + b"x" + second, first + second[1:], first + second[:-1], b"", first + b"garbage"):
        path.write_bytes(content)
        if not content and suffix == ".gz":
            continue  # which Python takes for no stream at all
        with pytest.raises(ValueError, match="must be whole and undamaged"):
            read_input(path)


def test_missing_file_stays_a_missing_file(tmp_path):
    for name in ("a.txt", "a.txt.xz"):
        with pytest.raises(FileNotFoundError, match=name):
            read_xmc(tmp_path / name)


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".bz2", bz2.compress)])
def test_compressed_streams(tmp_path, suffix, pack):
    path = tmp_path / f"X.trn.txt{suffix}"
    first, second = pack(b"one\n"), pack(b"two\n")
    for whole in (first + second, first + bytes(4) + second, first + second + bytes(7)):
        path.write_bytes(whole)
        assert read_lines(path) == ["one", "two"]
    for bad in (first + b"x" + second, first + second[:9], first[:-1], first + second + b"garbage", b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"X.trn.txt\.\w+: the \.\w+ file must be whole and undamaged"):
            read_lines(path)
