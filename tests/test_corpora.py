"""The datasets of benchmarks/corpora, from small files: parsers, the split, and how files are fetched."""

import gzip
import hashlib
import importlib
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from corpora import NAMES, __main__, debian, german, icd10, lemmas, moby, phonemes, sources
from corpora.documents import Document, Rule, assemble, digest, in_test

from mach_ext.data import load

SMALL = Rule(min_df=1)
SHA256 = "0" * 64

PACKAGES = """\
Package: vim
Source: vim-source (2:9.0)
Pre-Depends: init (>= 1.15)
Depends: libc6 (>= 2.34), python3:any, editor | nano
Recommends: dpkg
Suggests: ctags
Tag: role::program, use::{editing,
 viewing}, special::not-yet-tagged

Package: bare
Description: only a short text
"""
TRANSLATION = """\
Package: vim
Description-md5: 00
Description-en: Vi IMproved
 An editor.
 .
 It edits: text.

Package: gone
Description-en: In no list
"""

ICD10 = """<ICD10CM.tabular><introduction/>
<chapter><name>1</name><desc>Infections (A00-B99)</desc>
<section id="A00-A09"><desc>Intestinal (A00-A09)</desc>
<diag><name>A01</name><desc>Typhoid</desc><includes><note>no term</note></includes>
<diag><name>A01.0</name><desc>Typhoid fever</desc>
<inclusionTerm><note>Typhus</note><note>Fever</note></inclusionTerm>
<diag><name>A01.00</name><desc>Typhoid fever, unspecified</desc></diag></diag></diag></section></chapter>
</ICD10CM.tabular>"""

GERMAN = """\
freedict-deu-eng
Adoptivmutter /sound/ <fem, n, sg>
 [soc.] adoptive mother <n>, the mother (dear) {x}
      "eine Adoptivmutter haben"  - to possess one
 see: {Mütter}

etw. aufschieben /sound/
defer for sth. of many words
Straße /sound/ <fem>
 Street <n>
breite Straße /sound/
wide
Straße /sound/ <fem>
 road
   Synonym: {Weg}
path

Abc /sound/
short
"""


def write_debian(folder):
    (folder / "Packages").write_text(PACKAGES)
    (folder / "Translation-en").write_text(TRANSLATION)
    return folder


# --------------------------------------------------------------------------------------------- the parsers


def test_packages_have_their_descriptions_tags_and_needs(tmp_path):
    vim, bare = debian.read_packages(write_debian(tmp_path))
    assert vim == debian.Package(
        "vim",
        "vim-source",
        "Vi IMproved An editor. It edits: text.",
        ["role::program", "special::not-yet-tagged", "use::editing", "use::viewing"],
        ["dpkg", "editor", "init", "libc6", "python3"],
    )
    assert bare == debian.Package("bare", "bare", "only a short text", [], [])


@pytest.mark.parametrize("text", ["Package: a\nno field\n", " more\n", "Version: 1\nPackage: a\n"])
def test_bad_lists_of_packages_are_refused(tmp_path, text):
    (write_debian(tmp_path) / "Packages").write_text(text)
    with pytest.raises(ValueError, match=r"Packages, line [12]: must be `Field: value`"):
        debian.read_packages(tmp_path)


def test_words_have_pairs_of_sounds_without_stress(tmp_path):
    lines = ["abba AE1 B AH0 B AH0", "taken T EY1 K AH0 N # place, danish", "taken(2) T EY1 K IH0 N"]
    (tmp_path / "dict").write_text("\n".join([*lines, "a's EY1 Z EH1 S IH1 Z", "tea T IY1"]))
    abba, taken = phonemes.read_words(tmp_path / "dict")
    assert abba == Document("abba", "a b b a ab bb ba", ["AE AH", "AE B", "AH AH", "AH B", "B AH", "B B"])
    assert (taken.key, len(taken.labels)) == ("taken", 10)


def test_terms_of_the_thesaurus_are_text_or_label_everywhere(tmp_path):
    terms = [f"term {i}" for i in range(400)]
    (tmp_path / "words").write_text("\n".join([",".join(terms), ",".join(terms[::-1]), "alone"]))
    first, second = moby.read_entries(tmp_path / "words")
    words = first.text.split(", ")
    assert (first.key, second.key) == ("term 0", "term 399")
    assert sorted(words) == sorted(second.text.split(", "))
    assert first.labels == second.labels
    assert not {*words} & {*first.labels}
    assert {*words, *first.labels} < {*terms}
    assert 5 < len(words) < 40 < 150 < len(first.labels) < 250


def test_codes_have_all_above_them(tmp_path):
    (tmp_path / "xml").write_text(ICD10)
    above = ["chapter 1: Infections (A00-B99)", "Intestinal (A00-A09)"]
    assert [*icd10.read_codes(tmp_path / "xml")] == [
        Document("A01", "Typhoid", above),
        Document("A01.0", "Typhoid fever; Typhus; Fever", [*above, "A01 Typhoid"]),
        Document("A01.00", "Typhoid fever, unspecified", [*above, "A01 Typhoid", "A01.0 Typhoid fever"]),
    ]


def test_bad_xml_is_refused(tmp_path):
    (tmp_path / "xml").write_text("<a>")
    with pytest.raises(ValueError, match="xml: must be XML, got: "):
        [*icd10.read_codes(tmp_path / "xml")]


def write_glosses(folder):
    nouns = [
        "  1 This software",
        "00000001 03 n 02 animal 0 living_beast 0 001 ~ 00000002 n 0000 | it lives  ",
        "00000002 03 n 01 cat 0 002 @ 00000001 n 0000 + 00000001 a 0000 | a small animal | of ours  ",
    ]
    adjectives = [
        "00000001 00 s 01 feline(p) 0 001 & 00000002 a 0000 | of cats  ",
        "00000002 00 a 01 catty 0 000 | mean  ",
    ]
    lines = {"data.noun": nouns, "data.adj": adjectives}
    for name in lemmas.FILES:
        (folder / name).write_text("".join(f"{line}\n" for line in lines.get(name, [])))


def test_glosses_have_words_of_their_neighbours(tmp_path):
    write_glosses(tmp_path)
    assert [*lemmas.read_glosses(tmp_path)] == [
        Document("n00000001", "it lives", ["animal", "cat"]),
        Document("n00000002", "a small animal | of ours", ["animal", "cat"]),
        Document("a00000001", "of cats", ["catty", "feline"]),
        Document("a00000002", "mean", ["catty"]),
    ]


def test_bad_synsets_are_refused(tmp_path):
    write_glosses(tmp_path)
    (tmp_path / "data.verb").write_text("00000001 03 v zz\n")
    with pytest.raises(ValueError, match=r"data\.verb, line 1: must be a line of a WordNet 3\.0 data file"):
        [*lemmas.read_glosses(tmp_path)]


def test_entries_have_words_of_their_translations(tmp_path):
    with gzip.open(tmp_path / "dict", "wt", encoding="utf-8") as file:
        file.write(GERMAN)
    assert [*german.read_entries(tmp_path / "dict")] == [
        ("Adoptivmutter", {"adoptive", "mother"}),
        ("Straße", {"street"}),
        ("Straße", {"road"}),
    ]


def test_runs_of_letters_have_the_ends_of_the_word():
    assert german.letter_runs("Öl") == "0öl öl0 0öl0"


# ------------------------------------------------------------------------------- documents of any dataset


def make_documents(count=300, **fields):
    return [
        Document(f"key {i}", f"word{i % 7} all", [f"label {i % 5}", "all"], **fields) for i in range(count)
    ]


def test_a_fifth_of_the_groups_is_test():
    documents = [Document(str(i), "", [], f"group {i // 2}") for i in range(4000)]
    assert 0.17 < sum(map(in_test, documents)) / 4000 < 0.23
    assert all(in_test(a) == in_test(b) for a, b in zip(documents[::2], documents[1::2], strict=True))


def test_datasets_keep_labels_by_their_training_documents(tmp_path):
    documents = [*make_documents(), Document("single", "word1", ["once"]), Document("bare", "word1", [])]
    test = next(f"key {i}" for i in range(1000, 2000) if in_test(Document(f"key {i}", "", [])))
    documents.append(Document(test, "new word2", ["label 1", "only in test"]))
    data = assemble("small", tmp_path, documents, Rule(min_count=2, max_share=0.9, min_df=1))
    assert data.label_names == [f"label {i}" for i in range(5)]  # not "once", "all" and "only in test"
    assert data.feature_names == ["all", *(f"word{i}" for i in range(7))]
    assert len(data.train) + len(data.test) == 301
    assert data.test.texts[-1] == "new word2"
    assert data.test.Y[-1].indices.tolist() == [1]
    assert data.test.X[-1].indices.tolist() == [3]
    assert data.dev is None


def test_samples_are_of_the_smallest_digests(tmp_path):
    documents = [Document(f"key {i}", f"word{i}", ["all"]) for i in range(300)]
    data = assemble("small", tmp_path, documents, Rule(train=20, test=10, min_df=1))
    for split, expected in ((data.train, 20), (data.test, 10)):
        keys = [text.replace("word", "key ") for text in split.texts]
        others = [d.key for d in documents if in_test(d) == in_test(Document(keys[0], "", []))]
        assert keys == [key for key in others if key in {*sorted(others, key=digest)[:expected]}]


def test_datasets_keep_the_most_frequent_features(tmp_path):
    data = assemble("small", tmp_path, make_documents(), Rule(features=3))
    counts = Counter(word for text in data.train.texts for word in text.split())
    assert min(counts[name] for name in data.feature_names) >= sorted(counts.values())[-3]
    assert data.num_features == 3


def test_documents_that_make_no_dataset_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the keys of the documents must differ, got a key twice"):
        assemble("small", tmp_path, make_documents() * 2, SMALL)
    with pytest.raises(ValueError, match="small must have documents in both splits, got 0, 0"):
        assemble("small", tmp_path, [], SMALL)


# ------------------------------------------------------------------------------------- building by command


def write_sources(folder):
    """Files of which each dataset has documents in both splits, with labels that recur."""
    codes = "".join(f"<diag><name>A{i}</name><desc>fever {i % 3}</desc></diag>" for i in range(60))
    section = f'<section id="A"><desc>block</desc>{codes}</section>'
    chapter = f"<chapter><name>1</name><desc>first</desc>{section}</chapter>"
    (folder / icd10.FILE).write_text(f"<tabular>{chapter}</tabular>")
    packages = (f"Package: p{i}\nDescription: some text\nDepends: n{i}\nTag: role::x\n" for i in range(200))
    needs = "".join(f"Package: q{i}\nDescription: some text\nDepends: need{i % 60}\n\n" for i in range(200))
    (folder / "Packages").write_text("\n".join(packages) + "\n" + needs)
    (folder / "Translation-en").write_text("")
    letters = [a + b for a in "abcdefgh" for b in "abcdefgh"]
    (folder / phonemes.FILE).write_text("".join(f"{word}a AH0 B K S T\n" for word in letters))
    entries = (",".join([f"term {i}", *(f"term {j}" for j in range(100, 200))]) for i in range(60))
    (folder / moby.FILE).write_text("\n".join(entries))
    with gzip.open(folder / german.FILE, "wt", encoding="utf-8") as file:
        file.write("".join(f"Haus{word} /x/\nhouse\n\n" for word in letters))
    synsets = (f"{i:08} 03 n 01 word{i % 9} 0 000 | some gloss\n" for i in range(60))
    for name in lemmas.FILES:
        (folder / name).write_text("".join(synsets))  # all in the first file


@pytest.mark.parametrize("name", NAMES)
def test_command_builds_a_dataset_once(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "home"))
    write_sources(tmp_path)
    module = importlib.import_module(f"corpora.{name}")
    fetched = []
    monkeypatch.setattr(module, "fetch", lambda: fetched.append(name) or tmp_path)
    for _ in range(2):
        __main__.main([name])
    out, err = capsys.readouterr()
    assert fetched == [name]
    assert [line.split("\t")[:2] for line in out.splitlines()] == [[name, str(tmp_path / "home" / name)]] * 2
    assert f"{name}: the sizes should be {module.SIZES}, got (" in err
    data = load(name)
    assert min(len(data.train), len(data.dev), len(data.test), data.num_labels) > 0
    assert data.vectorizer.vocabulary == data.feature_names
    assert f"L {data.num_labels}, " in out


def test_command_lists_datasets_and_refuses_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MACH_DATA", str(tmp_path))
    (tmp_path / "moby").mkdir()
    __main__.main([])
    lines = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert lines == {name: "not built" for name in NAMES} | {"moby": str(tmp_path / "moby")}
    with pytest.raises(SystemExit):
        __main__.main(["moby", "bar"])
    assert "a name must be one of debtags, debdepends," in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- the sources


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "home"))
    return tmp_path / "home" / "sources"


def answer(monkeypatch, respond):
    """Lets `respond` act in place of the programs, and returns the commands that were run."""
    commands = []

    def run(command, folder):
        commands.append(command)
        respond(command, Path(folder))

    monkeypatch.setattr(sources, "_run", run)
    return commands


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheels_are_checked_unpacked_and_kept(tmp_path, home, monkeypatch):
    wheel = tmp_path / "name-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("name/data.txt", "hello")
    copy = lambda command, folder: (folder / wheel.name).write_bytes(wheel.read_bytes())  # noqa: E731
    commands = answer(monkeypatch, copy)
    with pytest.raises(ValueError, match="the SHA-256 must be 0000"):
        sources.python_package("name", "1", SHA256, "name/data.txt")
    assert [file.name for file in home.iterdir() if not file.name.startswith(".")] == []
    for _ in range(2):
        folder = sources.python_package("name", "1", sha256_of(wheel), "name/data.txt")
        assert (folder / "data.txt").read_text() == "hello"
    assert [command[-1] for command in commands] == ["name==1"] * 2
    assert folder == home / "pypi-name-1"


def test_npm_archives_are_unpacked(tmp_path, home, monkeypatch):
    (tmp_path / "words.txt").write_text("hello")
    with tarfile.open(tmp_path / "name-1.tgz", "w:gz") as archive:
        archive.add(tmp_path / "words.txt", "package/words.txt")
    content = (tmp_path / "name-1.tgz").read_bytes()
    answer(monkeypatch, lambda command, folder: (folder / "name-1.tgz").write_bytes(content))
    folder = sources.npm_package("name", "1", hashlib.sha256(content).hexdigest(), "package/words.txt")
    assert (folder / "words.txt").read_text() == "hello"


def test_debian_lists_are_those_of_the_release(home, monkeypatch):
    def respond(command, folder):
        assert "bookworm main" in (folder / "sources.list").read_text()
        for name in ("Packages", "Translation-en"):
            (folder / "lists" / f"deb.debian.org_{name}").write_text(name)

    commands = answer(monkeypatch, respond)
    folder = sources.debian_index()
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "Packages": "Packages",
        "Translation-en": "Translation-en",
    }
    assert [command[-1] for command in commands] == ["update"]


def test_debian_packages_are_unpacked(home, monkeypatch):
    def respond(command, folder):
        if command[-2] == "download":
            (folder / f"{command[-1]}_1_all.deb").touch()
        elif command[0] == "dpkg-deb":
            (Path(command[-1]) / "usr").mkdir(parents=True)
            (Path(command[-1]) / "usr" / "x.dz").write_text("hello")

    answer(monkeypatch, respond)
    folder = sources.debian_package("name", "usr/x.dz")
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("x.dz", "hello")]


def test_a_missing_package_is_refused(home, monkeypatch):
    answer(monkeypatch, lambda command, folder: None)
    with pytest.raises(ValueError, match=r"must have one file name_\*\.deb, got 0"):
        sources.debian_package("name", "usr/x.dz")
    assert not (home / "debian-bookworm-name").exists()


def test_failed_programs_say_why(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('first\\nlast')"]
    with pytest.raises(OSError, match="exit status 1, last"):
        sources._run(command, tmp_path)
