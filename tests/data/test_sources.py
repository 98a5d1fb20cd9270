"""What is read at all, and what has no end: pipes, bombs, endless lines."""

import bz2
import gzip
import io
import json
import os
from pathlib import Path

import pytest
from data_cases import READERS

from mach_ext import data, runs
from mach_ext.data import documents, sources


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, special, name):
    for kind, path in special.items():
        (tmp_path / name).symlink_to(path)
        for read in READERS[name]:
            with pytest.raises(ValueError, match=rf"{name}: must be a regular file, got {kind}"):
                read(tmp_path / name)
        (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / name)
    for read in READERS[name]:
        with pytest.raises(OSError, match=name):
            read(tmp_path / name)


def test_standard_input_is_no_regular_file_but_is_read(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("/dev/fd/0")
    read_end, write_end = os.pipe()
    os.write(write_end, b'{"text": "a cat"}\n')
    os.close(write_end)
    before = os.dup(0)
    os.dup2(read_end, 0)
    try:
        assert list(data.iter_jsonl(tmp_path / "a.jsonl")) == [("a cat", None)]
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(read_end)


@pytest.mark.parametrize("file", ["train.txt", "labels.txt", "filter_labels_train.txt", "test.txt"])
def test_a_folder_with_something_else_among_its_files(tmp_path, special, file):
    (tmp_path / "train.txt").write_text("1 2 3\n0 1:1\n")
    for kind, path in {**special, "a link to nothing": tmp_path / "nowhere"}.items():
        (tmp_path / file).unlink(missing_ok=True)
        (tmp_path / file).symlink_to(path)
        with pytest.raises(ValueError, match=rf"{file}: must be a regular file, got {kind}"):
            data.read_folder(tmp_path)


def test_names_of_files_that_are_no_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9\n")
    folder.mkdir()
    (folder / "train.txt").write_text("2 3 2\n0 1:1\n1 2:1\n")
    read = data.read_folder(folder)
    assert read.train.X.toarray().tolist() == [[0, 1, 0], [0, 0, 1]]
    run = json.loads(runs.attachments(read)["run.json"])
    assert Path(run["dataset"]) == folder
    for name in ("train.txt", "a.svm", "trn_X_Xf.txt"):
        (folder / name).write_text("1 1\n0 1:x\n")
    for reader in (data.read_xmc, lambda path: list(data.iter_xmc(path))):
        with pytest.raises(ValueError, match=r"caf\\udce9\n/train.txt, line 1: the header"):
            reader(folder / "train.txt")
    with pytest.raises(ValueError, match=r"caf\\udce9\n/a.svm, line 1: a feature must be"):
        data.read_svmlight([folder / "a.svm"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
@pytest.mark.parametrize("unit", [b"\0", b"\n", b" \n", b"1"])
def test_what_expands_without_limit(tmp_path, suffix, pack, unit):
    for name, readers in READERS.items():
        path = tmp_path / f"{name.removesuffix('.gz')}{suffix}"
        path.write_bytes(pack(unit * (1 << 19)))
        for read in readers:
            with pytest.raises(
                ValueError, match=rf"{path.name}(: must not unpack to more than 200|, line 1:)"
            ):
                read(path)


@pytest.mark.usefixtures("small")
def test_what_expands_a_lot_but_is_text(tmp_path):
    text = b"".join(b"%d %d:1\n" % (i % 7, i % 1000) for i in range(50_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"50000 1000 7\n" + text))
    assert data.read_xmc(tmp_path / "a.txt.gz").X.nnz == 50_000
    assert sum(block.X.nnz for block in data.iter_xmc(tmp_path / "a.txt.gz")) == 50_000


def test_a_line_without_end(tmp_path, monkeypatch):
    """Of 2^28 bytes and more; here shorter, but for the parser, which has the number compiled in."""
    from mach_ext import _C

    monkeypatch.setattr(sources, "MAX_LINE", 100)
    for name in ("a.jsonl", "labels.txt", "filter.txt"):
        (tmp_path / name).write_text("a" * 101)
    for read in (
        lambda: list(data.iter_jsonl(tmp_path / "a.jsonl")),
        lambda: data.read_names(tmp_path / "labels.txt"),
        lambda: data.formats.read_pairs(tmp_path / "filter.txt", (1, 1)),
    ):
        with pytest.raises(ValueError, match=r"\.\w+, line 1: a line must have at most 100 bytes"):
            read()
    (tmp_path / "labels.txt").write_text("a" * 100 + "\n" + "b" * 100)
    assert data.read_names(tmp_path / "labels.txt") == ["a" * 100, "b" * 100]
    assert _C.MAX_LINE == 2**28


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_without_end_in_a_stream(tmp_path, monkeypatch, end):
    """What stands before it is answered; no more of it is kept than a line may have."""
    for module in (sources, documents):
        monkeypatch.setattr(module, "MAX_LINE", 100)
    columns = data.Columns(2, 1, vectorizer=data.Vectorizer.fit(["cat dog", "cat dog"]))
    text = b"cat\n" + b"a" * 100 + b"\n" + b"b" * 101 + end
    (tmp_path / "a.txt").write_bytes(text)
    streams = {
        "standard input": data.stream_documents(io.BytesIO(text), columns, format="text"),
        "a.txt": data.iter_documents(tmp_path / "a.txt", columns, format="text"),
    }
    for name, blocks in streams.items():
        assert next(blocks).shape == (2, 2)
        with pytest.raises(ValueError, match=rf"{name}, line 3: a line must have at most 100 bytes"):
            next(blocks)
    with pytest.raises(ValueError, match=r"line 1: a line must have at most 100 bytes"):
        list(data.stream_documents(_Endless(), columns))


class _Endless:
    """A stream of one line, as /dev/zero is."""

    def read1(self, size):
        return b"\0" * size


@pytest.mark.usefixtures("small")
def test_texts_of_a_file_of_any_name_are_read_as_other_files(special, tmp_path):
    columns = data.Columns(2, 1, vectorizer=data.Vectorizer.fit(["cat dog", "cat dog"]))

    def read(path):
        return list(data.iter_documents(path, columns, format="text"))

    for kind, path in special.items():
        with pytest.raises(ValueError, match=rf"{path.name}: must be a regular file, got {kind}"):
            read(path)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"a\n" * (1 << 22)))
    with pytest.raises(ValueError, match=r"bomb.gz: must not unpack to more than 200"):
        read(bomb)
    bomb.write_bytes(b"no gzip file")
    with pytest.raises(ValueError, match=r"bomb.gz: the .gz file must be whole.*Not a gzipped file"):
        read(bomb)


def test_a_file_that_memory_does_not_hold(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("1 2 3\n0 1:1\n")

    def parse(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(data.formats.xmc._C, "parse_lines", parse)
    for read in (data.read_xmc, lambda path: list(data.iter_xmc(path))):
        with pytest.raises(MemoryError, match=r"/a.txt: not enough memory: .* split the data"):
            read(tmp_path / "a.txt")
