"""The dataset wordnet, from small files of WordNet and from all of it."""

import numpy as np
import pytest
from data_cases import same, tarball

from mach_ext.data import load, registry, wordnet

# offset, type, words, pointers (symbol, offset, letter), gloss
SYNSETS = {
    "data.noun": [
        ("00000001", "n", ["entity"], [("~", "00000002", "n")], "that which is"),
        (
            "00000002",
            "n",
            ["animal", "living_beast"],
            [("@", "00000001", "n"), ("+", "00000001", "v")],
            "it lives",
        ),
        ("00000003", "n", ["cat"], [("@", "00000002", "n")], 'a small animal; "the cat"'),
        ("00000004", "n", ["Tom"], [("@i", "00000003", "n"), ("@", "00000005", "n")], "a cat"),
        ("00000005", "n", ["loop"], [("@", "00000006", "n")], "goes round"),
        ("00000006", "n", ["pool"], [("@", "00000005", "n")], "round goes"),
    ],
    "data.verb": [("00000001", "v", ["be"], [], "exist | or not")],
    "data.adj": [("00000001", "s", ["feline(p)"], [("&", "00000001", "s")], "of cats")],
    "data.adv": [("00000001", "r", ["away"], [], "not here")],
}


def write_wordnet(folder):
    folder.mkdir()
    for name, synsets in SYNSETS.items():
        lines = ["  1 This software and database is being provided to you  \n"]
        for offset, kind, words, pointers, gloss in synsets:
            listed = " ".join(f"{word} 0" for word in words)
            links = "".join(f" {symbol} {to} {letter} 0000" for symbol, to, letter in pointers)
            frames = " 01 + 08 00" if kind == "v" else ""
            counted = f"{len(words):02x} {listed} {len(pointers):03d}{links}"
            lines.append(f"{offset} 03 {kind} {counted}{frames} | {gloss}  \n")
        (folder / name).write_text("".join(lines))
    return folder


def test_wordnet_synsets(tmp_path):
    synsets = wordnet.read_synsets(write_wordnet(tmp_path / "wn"))
    assert list(synsets)[:2] == ["n00000001", "n00000002"]
    assert synsets["n00000002"].words == ["animal", "living beast"]
    assert synsets["n00000002"].parents == ["n00000001"]
    assert synsets["n00000003"].gloss == 'a small animal; "the cat"'
    assert synsets["v00000001"].gloss == "exist | or not"
    assert "a00000001" in synsets  # a satellite counts as an adjective
    above = wordnet.hypernyms("n00000004", synsets)
    assert above == {"n00000003", "n00000002", "n00000001", "n00000005", "n00000006"}
    assert wordnet.hypernyms("n00000005", synsets) == {"n00000006"}  # a cycle ends, itself excluded


def test_wordnet_build_small(tmp_path, monkeypatch):
    folder = write_wordnet(tmp_path / "wn")
    monkeypatch.setattr(wordnet, "MAX_SHARE", 0.4)  # of five documents: two
    monkeypatch.setattr(wordnet, "_in_test", lambda key: key == "n00000004")
    built = wordnet.build(folder)
    # entity is on three documents and goes, then animal, which had no other label, goes too.
    assert built.label_names == ["animal, living beast", "cat", "loop", "pool"]
    assert built.train.texts == ['a small animal; "the cat"', "goes round", "round goes"]
    assert built.train.Y.toarray().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert built.test.Y.toarray().tolist() == [[1, 1, 1, 1]]
    assert built.feature_names == ["goes", "round"]
    with pytest.raises(
        ValueError, match=r"wordnet must have .*\(84150, 9626, 27997, 20430, 19718\), .*got \(3, 1, 2"
    ):
        wordnet.check(built)


def test_wordnet_errors(tmp_path):
    folder = write_wordnet(tmp_path / "wn")
    with pytest.raises(ValueError, match="wn: some document must have a label, got none in 9 synsets"):
        wordnet.build(folder)  # all labels are on more than 2 % of the documents
    good = (folder / "data.noun").read_text()
    for old, new in [
        ("00000003 03 n", "0000003 03 n"),
        ("00000003 03 n", "00000003 03 q"),
        (" | a cat", ""),
        ("@i 00000003 n 0000", "@i 00000003"),
        ("01 Tom", "zz Tom"),
    ]:
        assert old in good
        (folder / "data.noun").write_text(good.replace(old, new))
        with pytest.raises(
            ValueError, match=r"data.noun, line \d: must be a line of a WordNet 3.0 data file, got"
        ):
            wordnet.build(folder)
    (folder / "data.noun").write_text(good.replace("@ 00000001 n", "@ 00000009 n"))
    with pytest.raises(ValueError, match="wn: every hypernym must be a synset, got n00000009"):
        wordnet.build(folder)


def test_wordnet_is_found_in_wnhome(tmp_path, home, monkeypatch):
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.delenv("WNHOME", raising=False)
    assert wordnet.find() is None
    write_wordnet(tmp_path / "dict")
    for place in (tmp_path / "dict", tmp_path):
        monkeypatch.setenv("WNHOME", str(place))
        assert wordnet.find_or_fetch() == tmp_path / "dict"
    monkeypatch.delenv("WNHOME")
    home.mkdir()
    fetched = write_wordnet(home / "wordnet-3.0")
    assert wordnet.find() == fetched
    write_wordnet(tmp_path / "system")
    assert wordnet.find() == tmp_path / "system"


def test_wordnet_from_tarball_when_apt_fails(tmp_path, home, monkeypatch, server):
    folder = write_wordnet(tmp_path / "wn")
    server.files["/WNdb.tar.gz"] = tarball({f"dict/{p.name}": p.read_bytes() for p in folder.iterdir()})
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.delenv("WNHOME", raising=False)
    monkeypatch.setattr(wordnet, "URL", f"{registry.BASE_URL}/WNdb.tar.gz")
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get there
    found = wordnet.find_or_fetch()
    assert found == home / "wordnet-3.0"
    assert sorted(p.name for p in found.iterdir()) == sorted(wordnet.FILES)
    assert wordnet.read_synsets(found) == wordnet.read_synsets(folder)


def test_wordnet_error_names_all_ways(tmp_path, home, monkeypatch):
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.delenv("WNHOME", raising=False)
    monkeypatch.setattr(wordnet, "URL", "http://127.0.0.1:9/WNdb-3.0.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConnectionError,
        match=r"wordnet: .*data.noun.*\$WNHOME.*apt-get install wordnet-base.*home/wordnet-3.0 \(put them "
        r"there\).*apt-get download wordnet-base, or http://127.*; got: .*apt-get.*; .*could not be "
        r"downloaded \(.*refused",
    ):
        load("wordnet")
    assert [entry.name for entry in home.iterdir()] == [".wordnet.lock"]


def test_wordnet_counts(monkeypatch, tmp_path):
    monkeypatch.delenv("MACH_DATA")  # files that were fetched before are in the user's data folder
    try:
        source = wordnet.find_or_fetch()
    except ConnectionError as error:
        pytest.skip(f"no WordNet 3.0 database: {error}")
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("WNHOME", str(source))
    read = load("wordnet", holdout=False)
    info = read.info()
    assert (info["num_features"], info["num_labels"], info["num_labels_in_train"]) == (27997, 20430, 19718)
    train, test = info["splits"]["train"], info["splits"]["test"]
    assert (train["documents"], test["documents"]) == (84150, 9626)
    assert train["labels_per_document"] == pytest.approx(3.51, abs=0.005)
    assert train["nonzeros_per_document"] == pytest.approx(11.2, abs=0.05)
    feline = read.label_names.index("feline, felid")
    documents = np.flatnonzero(read.train.Y[:, [feline]].toarray())
    assert any("domesticated" in read.train.texts[row] for row in documents)
    assert same(read.vectorizer.transform(read.test.texts), read.test.X)
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == [".wordnet.lock", "wordnet"]
    held = load("wordnet")  # from the cache
    assert (len(held.train), len(held.dev), len(held.test)) == (75735, 8415, 9626)
