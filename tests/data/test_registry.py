"""Datasets by name: found, fetched, checked and kept."""

import hashlib
import json

import pytest
from data_cases import XMC, npz, pecos_archive, random_split, same, tarball

from mach_ext import data
from mach_ext.data import load, registry


def test_holdout_is_a_tenth_and_fixed(tmp_path):
    (tmp_path / "train.txt").write_text("57 60 60\n" + "".join(f"{i} {i}:1\n" for i in range(57)))
    read = load(tmp_path)
    assert read.dev.X.indices.tolist() == [2, 32, 33, 42, 53]
    assert sorted([*read.train.X.indices, *read.dev.X.indices]) == list(range(57))
    assert "splitmix64" in read.dev_rule
    assert load(tmp_path, holdout=False).dev is None
    assert len(load(tmp_path, holdout=False).train) == 57
    (tmp_path / "dev.txt").write_text("1 60 60\n59 59:1\n")
    assert len(load(tmp_path).train) == 57
    assert load(tmp_path).dev_rule == "the file dev.txt"


def test_unknown_dataset_lists_known_ones_and_the_folder(home):
    for name in ("wiki11", "./nowhere", "", "../home"):
        with pytest.raises(
            ValueError, match=r"load: .*data folder .*home, or one of wordnet, eurlex-4k.*got"
        ):
            load(name)
    with pytest.raises(ValueError, match=r"fetch: the name must be one of wordnet, .*, got 'wiki10'"):
        data.fetch("wiki10")
    assert not home.exists()


def test_folder_in_the_data_folder(home):
    (home / "mine").mkdir(parents=True)
    (home / "mine" / "train.txt").write_text(XMC)
    assert load("mine").name == "mine"


def test_download_by_alias_and_again_from_the_folder(server, home, capsys):
    archive = pecos_archive()
    server.files["/wiki10-31k.tar.gz"] = archive
    read = load("wiki10")
    assert read.name == "wiki10-31k"
    assert (len(read.train), len(read.dev), len(read.test)) == (27, 3, 8)
    assert "wiki10-31k.tar.gz" in capsys.readouterr().err  # the progress bar
    source = json.loads((home / "wiki10-31k" / "source.json").read_text())
    assert source["sha256"] == hashlib.sha256(archive).hexdigest()
    assert sorted(entry.name for entry in home.iterdir()) == [".wiki10-31k.lock", "wiki10-31k"]
    server.files.clear()
    assert same(load("Wiki10_31K").train.X, read.train.X)


def test_no_network_says_what_to_put_where(monkeypatch, home):
    monkeypatch.setattr(registry, "BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(
        ConnectionError,
        match=r"eurlex-4k: http://127.0.0.1:9/eurlex-4k.tar.gz: could not be downloaded \(.*refused.*\)\. "
        r"Without network, put its archive at .*home/eurlex-4k.tar.gz, or the files X.trn.npz, .* into "
        r".*home/eurlex-4k",
    ):
        load("eurlex-4k")
    assert not (home / "eurlex-4k").exists()


def test_leftovers_of_a_killed_process_go(server, home):
    server.files["/wiki10-31k.tar.gz"] = pecos_archive()
    (home / ".wiki10-31k.abc").mkdir(parents=True)
    (home / ".wiki10-31k.abc" / "X.trn.npz").write_text("half")
    data.fetch("wiki10-31k")
    assert sorted(entry.name for entry in home.iterdir()) == [".wiki10-31k.lock", "wiki10-31k"]


def test_server_without_the_file(server):
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*404"):
        load("amazon-3m")


@pytest.mark.parametrize("damage", ["truncated", "no labels", "rows"])
def test_downloaded_archive_is_checked(server, home, damage):
    whole = pecos_archive()
    server.files["/wiki10-31k.tar.gz"] = {
        "truncated": whole[: len(whole) // 2],
        "no labels": tarball({"a/tfidf-attnxml/X.trn.npz": npz(random_split().X)}),
        "rows": pecos_archive(**{"xmc-base/wiki10-31k/Y.trn.npz": npz(random_split(29).Y)}),
    }[damage]
    with pytest.raises(
        ValueError, match=r"wiki10-31k: the archive must hold whole, matching files, .*it was deleted"
    ):
        load("wiki10")
    assert [entry.name for entry in home.iterdir()] == [".wiki10-31k.lock"]
    server.files["/wiki10-31k.tar.gz"] = whole
    assert len(load("wiki10").test) == 8


def test_archive_of_the_user_is_used_and_kept(home):
    home.mkdir()
    (home / "wiki10-31k.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"matching files, .*\(it is .*wiki10-31k.tar.gz\)"):
        load("wiki10")
    (home / "wiki10-31k.tar.gz").write_bytes(pecos_archive())
    assert len(load("wiki10").test) == 8
    assert (home / "wiki10-31k.tar.gz").exists()


def test_hostile_archive_writes_nothing_outside(server, home, tmp_path):
    hostile = {
        "../../evil/Y.trn.npz": b"x",
        f"{tmp_path}/evil.txt": b"x",
        "output-items.txt": None,  # a link to a system file
        "../evil.txt": b"x",
    }
    server.files["/wiki10-31k.tar.gz"] = pecos_archive(**hostile)
    load("wiki10")
    assert sorted(p.name for p in (home / "wiki10-31k").iterdir()) == [
        *("X.trn.npz", "X.tst.npz", "Y.trn.npz", "Y.tst.npz", "source.json")
    ]
    assert not list(tmp_path.rglob("evil*"))


def test_the_users_folder_goes_before_the_registry(here, monkeypatch, capsys):
    monkeypatch.setenv("MACH_DATA", str(here / "cache"))
    monkeypatch.setattr(data.registry, "download", lambda *a, **k: pytest.fail("a download starts"))
    for name in ("Eurlex", "wiki10", "wordnet"):
        (here / name).mkdir()
        (here / name / "train.txt").write_text("1 2 3\n1 1:1\n")
        for given in (name, f"./{name}", here / name):
            assert data.load(given).name == name
            assert data.load(given).train.X.shape == (1, 2)
    (here / "amazoncat").mkdir()
    with pytest.raises(FileNotFoundError, match=r"goes before the known dataset amazoncat"):
        data.load("amazoncat")
    (here / "cache" / "eurlex").mkdir(parents=True)
    (here / "cache" / "eurlex" / "train.txt").write_text("1 2 4\n1 1:1\n")
    assert data.load("eurlex").num_labels == 4


def test_a_misspelt_dataset_gets_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "recipes").mkdir(parents=True)
    (tmp_path / "mine" / "recipes" / "train.jsonl").touch()
    for given, hint in (
        ("wordnt", "did you mean 'wordnet'"),
        ("mine/recipies", "did you mean 'mine/recipes'"),
        ("mine/recipes/train.jsonl", "which is a file: give its folder"),
    ):
        with pytest.raises(ValueError, match=hint):
            data.locate(given)
