"""Files made to do harm: bombs, pipes, lies about sizes, names of all kinds, records with wrong entries."""

import bz2
import functools
import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import mach_ext
from mach_ext import cli, data, explain, runs
from mach_ext.data import archives, attachments, documents, downloads, sources
from mach_ext.data.parsing import MAX_DEPTH, check_names, decode_json, read_json, shown

DEEP = "[" * 100_000
ESCAPES = "\x1b]0;owned\x07\x1b[31m"

# ------------------------------------------------------------------------------------ what is read at all


@pytest.fixture
def special(tmp_path):
    """Paths of what is no regular file, by what messages call it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    return {"a named pipe": tmp_path / "pipe", "a folder": tmp_path / "folder", "a device": Path("/dev/zero")}


READERS = {
    "a.txt": [data.read_xmc, lambda path: list(data.iter_xmc(path)), data.read_names],
    "a.svm": [lambda path: data.read_svmlight([path])],
    "a.jsonl": [data.read_jsonl, lambda path: list(data.iter_jsonl(path))],
    "a.npz": [data.read_matrix],
    "a.npz.gz": [data.read_matrix],
    "a.json": [data.read_names, read_json],
}


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


# ------------------------------------------------------------------------------------ what has no end


@pytest.fixture
def small(monkeypatch):
    """Bounds of a size for tests."""
    monkeypatch.setattr(sources, "FREE_BYTES", 1 << 16)
    monkeypatch.setattr(data.formats.npz, "FREE_BYTES", 1 << 16)


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


# ------------------------------------------------------------------------------------ npz


def npz(path, *, method=zipfile.ZIP_DEFLATED, twice=None, raw=None, **arrays):
    """Like save_npz, with other arrays, raw members, one twice, or another method."""
    right = {"format": b"csr", "shape": [1, 5], "indices": [0], "indptr": [0, 1], "data": [1.0]}
    members = {}
    for name, array in (right | arrays).items():
        if array is not None:
            buffer = io.BytesIO()
            np.save(buffer, array)
            members[name] = buffer.getvalue()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in (members | (raw or {})).items():
            archive.writestr(f"{name}.npy", content)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr(f"{twice}.npy", members[twice])
    return path


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


MANY = 2**31 - 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": zipfile.ZIP_BZIP2}, "arrays must be stored or deflated, got compression 12"),
        ({"method": zipfile.ZIP_LZMA}, "arrays must be stored or deflated, got compression 14"),
        ({"twice": "indices"}, "each array must be there once, got one twice"),
        (
            {"raw": {"data": header((10**12,)) + bytes(8)}},
            r"an array of shape \(10{12},\), float64 must have 80",
        ),
        ({"raw": {"data": header((2**17,)) + bytes(2**20)}}, "arrays must not unpack to more than 200 times"),
        ({"format": b"lil"}, "format must be csr, csc, bsr, coo or dia, got 'lil'"),
        ({"format": "dok" * 1000}, r"format must be csr, .*, got 'dok.{0,70}\.\.\.$"),
        ({"format": b"coo", "shape": [MANY, 5], "row": [0], "col": [0]}, "must have fewer rows"),
        (
            {"format": b"csc", "shape": [MANY, 5], "indptr": [0, 1, 1, 1, 1, 1]},
            "must have fewer rows",
        ),
        (
            {"format": b"dia", "shape": [MANY, 5], "data": np.ones((1, 5)), "offsets": [0]},
            "must have fewer rows",
        ),
        ({"format": b"bsr", "shape": [MANY, 5], "data": np.ones((0, MANY, 1))}, "must have fewer rows"),
        ({"data": None}, r"There is no item named 'data.npy'"),
    ],
    ids=range(12),
)
def test_npz_files_that_lie(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"a.npz: must be a whole .* file, got: .*{message}"):
        data.read_matrix(npz(tmp_path / "a.npz", **changes))


def test_a_large_column_takes_no_memory_by_its_number(tmp_path):
    path = npz(tmp_path / "a.npz", format=b"coo", shape=[1, MANY], row=[0], col=[MANY - 1])
    assert data.read_matrix(path).indices.tolist() == [MANY - 1]
    (tmp_path / "train.svm").write_text("0 0:1 2000000000:1\n1 1:1\n" * 10)
    read = data.load(tmp_path, svmlight_base=0)
    assert (read.num_features, read.info()["splits"]["dev"]["documents"]) == (2_000_000_001, 2)
    for form in ("npz", "xmc"):
        data.write_folder(tmp_path / form, read, format=form)
        assert data.read_folder(tmp_path / form).train.X.indices.max() == 2_000_000_000


# ------------------------------------------------------------------------------------ JSON


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text", [DEEP, nested(MAX_DEPTH + 2), "1" * 5000, b"\xff", "{", "", '{"a":}', "\x00"]
)
def test_json_that_python_fails_on_in_ways_of_its_own(tmp_path, text):
    (tmp_path / "labels.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"labels.json: must be a JSON list of names, got: \w+: .{10,200}$"):
        data.read_names(tmp_path / "labels.json")
    with pytest.raises(ValueError, match=r"^labels.json of the model: .*must "):
        attachments.label_names({"labels.json": (tmp_path / "labels.json").read_bytes()}, 3)
    with pytest.raises(ValueError, match=r"^v.json: must be a vectorizer's JSON, got: \w+: "):
        data.Vectorizer.from_json((tmp_path / "labels.json").read_bytes(), source="v.json")
    with pytest.raises(ValueError, match=r"^run.json of the model: .*must "):
        attachments.run_record({"run.json": (tmp_path / "labels.json").read_bytes()})


def test_json_that_is_allowed():
    assert decode_json(b"\xef\xbb\xbf[1]") == [1]
    decode_json(nested(MAX_DEPTH + 1))
    decode_json('{"a": [' + ",".join([nested(100)] * 1000) + "]}")


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("a" * 10**7, "'" + "a" * 59 + "..."),
        (b"\xff" * 10**7, None),
        ([["a" * 10**6] * 10**5] * 3, None),
        ({f"k{i}": i for i in range(10**5)}, None),
        (10**4000, None),
        (f"{ESCAPES}red\n\u202e\u2028\x00\ud800", r"'\x1b]0;owned\x07\x1b[31mred\n\u202e\u2028\x00\ud800'"),
    ],
    ids=lambda value: str(type(value)),
)
def test_what_messages_quote_is_short_and_printable(value, quoted):
    text = shown(value)
    assert len(text) <= 70
    assert text.isprintable()
    assert quoted in (None, text)


@pytest.mark.parametrize("name", ["a.txt", "a.svm", "a.jsonl", "labels.txt", "labels.json", "trn_X_Xf.txt"])
def test_messages_are_short_whatever_a_file_says(tmp_path, name):
    for token in ("7" * 10**6, ESCAPES + "x" * 10**6, "\t".join(map(str, range(10**5)))):
        (tmp_path / name).write_text(
            json.dumps({"text": [token]}) if "json" in name else f"{token}\t1\n0\t2\n"
        )
        readers = {
            "a.txt": data.read_xmc,
            "a.svm": lambda path: data.read_svmlight([path]),
            "a.jsonl": data.read_jsonl,
            "trn_X_Xf.txt": data.formats.read_sparse_text,
        }
        with pytest.raises(ValueError, match=name) as caught:
            readers.get(name, lambda path: data.read_names(path, 7))(tmp_path / name)
        said = str(caught.value).replace(str(tmp_path), "")
        assert len(said) < 300
        assert said.isprintable()


# ------------------------------------------------------------------------------------ what a model keeps


def model_with(**kept):
    model = mach_ext.MACH(3, 4, num_repetitions=2, num_buckets=4, hidden_size=2)
    for name, content in kept.items():
        stem, _, suffix = name.rpartition("_")
        model.attachments[f"{stem}.{suffix}"] = content if isinstance(content, bytes) else content.encode()
    return model


def counts(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def vectorizer(idf="[1, 1, 1]", words='["a", "b", "c"]'):
    return f'{{"type": "tfidf", "tokens": "words-2", "vocabulary": {words}, "idf": {idf}}}'


NAMES = {
    '["a", "b", "c"]': "must have 4 names, got 3",
    '["a", "b", "c", "d", "e"]': "must have 4 names, got 5",
    '["a", "b", 5, "d"]': "[2] must be a string, got 5",
    '["a", "b", null, "d"]': "[2] must be a string, got None",
    '{"0": "a", "1": "b", "2": "c", "3": "d"}': "it must be a list, got {'0': 'a', '1': 'b'",
    '"abcd"': "it must be a list, got 'abcd'",
    "4": "it must be a list, got 4",
    DEEP: "must have few levels, got deeply nested JSON",
}


@pytest.mark.parametrize("content", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_names_of_labels_are_checked_for_every_command(tmp_path, capsys, content, command):
    model = model_with(labels_json=content, vectorizer_json=vectorizer())
    model.save(tmp_path / "run")
    assert cli.main([command, "--model-path", str(tmp_path / "run"), "--text", "a b"]) == 1
    said = capsys.readouterr().err
    assert f"labels.json of the model: {NAMES[content]}" in said
    with pytest.raises(ValueError, match=r"labels.json of the model"):
        runs.columns_of(model)
    with pytest.raises(ValueError, match=r"labels.json of the model"):
        explain.integrated_gradients(model, sparse.eye(1, 3), [0])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            {"features_json": '["a", "b"]'},
            "must have 3 names, got 2",
        ),
        ({"features_json": "[1, 2, 3]"}, "must be a string, got 1"),
        (
            {"vectorizer_json": vectorizer("[1, 2]", '["a", "b"]')},
            "must have 3 names, got 2",
        ),
        ({"vectorizer_json": vectorizer("[1, 2]")}, "must be of one length, not 0, got 3 and 2"),
        ({"vectorizer_json": vectorizer(words='["a", "b", "a"]')}, "there once, got one twice"),
        ({"vectorizer_json": vectorizer(words='["a", "b", 7]')}, r"\[2\] must be a string, got 7"),
        ({"vectorizer_json": vectorizer(words='{"a": 0}')}, "vocabulary must be a list, got"),
        *(
            ({"vectorizer_json": vectorizer(f"[1, 1, {idf}]")}, f"every idf must be {rule}.*got .*for 'c'")
            for idf, rule in {
                "1" + "0" * 400: "finite",
                "NaN": "finite",
                "Infinity": "finite",
                "1e39": "finite",
                "-0.5": "finite, from 0 up",
                "null": "a number",
                "true": "a number",
                '"1.5"': "a number",
                "[1]": "a number",
            }.items()
        ),
    ],
)
def test_vectorizers_and_features_are_checked(kept, message):
    model = model_with(**kept)
    name = next(iter(model.attachments))
    for read in (
        lambda: runs.columns_of(model),
        lambda: explain.integrated_gradients(model, sparse.eye(1, 3), [0]),
    ):
        with pytest.raises(ValueError, match=rf"^{name} of the model.*{message}"):
            read()


RUN = {
    "dataset": "/a", "name": "a", "holdout": True, "train": [1, 2], "train_documents": 9,
    "propensity": [0, 1.5], "reader": {"svmlight_base": 0}, "settings": {}, "threads": 1, "versions": {},
}  # fmt: skip
OTHER = [None, True, -1, 2**63, 1.5, "a", [], [1], ["a", "b"], [1, 2, 3], {}, {"svmlight_base": 2}]
OTHER += [{"svmlight_base": True}, {"svmlight_label_base": "0"}]
ALLOWED = {
    "dataset": ["a"], "name": ["a"], "holdout": [True], "propensity": [None], "reader": [{}],
    "settings": [value for value in OTHER if isinstance(value, dict)],
    "versions": [value for value in OTHER if isinstance(value, dict)],
}  # fmt: skip


@pytest.mark.parametrize("field", RUN)
def test_every_entry_of_a_run_record_is_checked(field):
    for value in OTHER:
        model = model_with(run_json=json.dumps(RUN | {field: value}))
        if any(value == other and type(value) is type(other) for other in ALLOWED.get(field, [])):
            assert runs.record_of(model)[field] == value
            continue
        with pytest.raises(ValueError, match=rf"run.json of the model: {field}\S* must "):
            runs.record_of(model)


@pytest.mark.parametrize(
    "content", ["[]", "null", "5", '"a"', DEEP, '{"name": NaN}', '{"name": "a", "name": "b"}']
)
def test_run_records_that_are_none(content):
    model = model_with(run_json=content)
    with pytest.raises(ValueError, match=r"^run.json of the model: (it )?must .*got.*$"):
        runs.columns_of(model)


def test_a_run_record_that_says_nothing(tmp_path):
    model = model_with(run_json="{}", label_counts_npy=counts(np.zeros(4, np.int32)))
    dataset = data.Dataset(
        "a", Path("a"), data.Split(sparse.eye(4, 3, format="csr"), sparse.eye(4, format="csr"))
    )
    assert runs.TrainingLabels.of(model, dataset).documents == 4
    with pytest.raises(ValueError, match="the model does not say which dataset it is of; give --dataset"):
        runs.load_dataset(model, tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, np.int32), r"must be L=4 whole numbers, got int32 \(3,\)"),
        (np.zeros(5, np.int32), r"must be L=4 whole numbers, got int32 \(5,\)"),
        (np.zeros((1, 4), np.int32), r"must be L=4 whole numbers, got int32 \(1, 4\)"),
        (np.zeros(4), r"must be L=4 whole numbers, got float64"),
        (np.zeros(4, bool), r"must be L=4 whole numbers, got bool"),
        (np.array([0, 1, -1, 2]), "counts must not be negative, got -1"),
        (np.array([None] * 4), "must be an array of counts, got: .*allow_pickle=False"),
    ],
)
def test_label_counts_are_checked(array, message):
    model = model_with(run_json=json.dumps(RUN), label_counts_npy=counts(array))
    dataset = data.Dataset("a", Path("a"), data.Split(sparse.eye(4, 3), sparse.eye(4)))
    with pytest.raises(ValueError, match=rf"label_counts.npy of the model: {message}"):
        runs.TrainingLabels.of(model, dataset)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", counts(np.zeros(4, "i4"))[:-1], header((10**12,)), b"x" * 99]
)
def test_label_counts_that_are_damaged(content):
    with pytest.raises(ValueError, match=r"label_counts.npy of the model: must be an array of counts, got: "):
        attachments.label_counts({"label_counts.npy": content}, 4)


def test_a_folder_whose_records_can_not_be_read_holds_some_model(tmp_path):
    for content in (DEEP, "[]", '{"model": 5, "attachments": {"run.json": "r"}, "weights": []}'):
        (tmp_path / "model.json").write_text(content)
        (tmp_path / "r").write_text(DEEP)
        assert runs.weights_digest(tmp_path) is None
        with pytest.raises(ValueError, match="holds a model; --overwrite replaces it"):
            runs.refuse_to_replace(tmp_path)


# ------------------------------------------------------------------------------------ names

ODD = [
    "tab\there", "line\nend", "carriage\rreturn", "end\r", "line\u2028end", "next\x85line", "\ufeffmark",
    "nul\0", "zero\u200bwidth", "half \ud83d", "\udc00", f"{ESCAPES}red", "0", "7\t8", "", " ", "  two  ",
    "\u202eback",
]  # fmt: skip
LISTS = [*([name] for name in ODD), ODD, ["a", ""], ["", "a\tb"], ["1\ta", "0\tb"], ["a", " "]]


@pytest.mark.parametrize("form", ["npz", "xmc"])
@pytest.mark.parametrize("names", LISTS, ids=range(len(LISTS)))
def test_names_are_read_as_they_were_written(tmp_path, form, names):
    matrix = sparse.csr_matrix((1, len(names)))
    dataset = data.Dataset("a", tmp_path, data.Split(matrix, matrix), label_names=names, feature_names=names)
    data.write_folder(tmp_path / "one", dataset, format=form)
    once = data.read_folder(tmp_path / "one")
    other = {"npz": "xmc", "xmc": "npz"}[form]
    data.write_folder(tmp_path / "two", once, format=other)
    for read in (once, data.read_folder(tmp_path / "two", columns=once.columns)):
        assert read.label_names == read.feature_names == names
    model = mach_ext.MACH(len(names), len(names), num_repetitions=8, num_buckets=64, hidden_size=2)
    model.attachments = runs.attachments(dataset)
    assert runs.columns_of(model).label_names == runs.columns_of(model).feature_names == names


def test_names_of_json_lines_are_kept(tmp_path):
    lines = [json.dumps({"text": "a cat", "labels": [name]}) + "\n" for name in ODD]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    read = data.read_folder(tmp_path)
    assert sorted(read.label_names) == sorted(ODD)
    data.write_folder(tmp_path / "copy", read)
    again = data.read_folder(tmp_path / "copy", columns=read.columns)
    assert again.label_names == read.label_names
    assert (again.train.Y != read.train.Y).nnz == 0


def test_words_of_a_vectorizer_are_kept():
    words = [name for name in ODD if name]
    vectorizer = data.Vectorizer(words, [1.0] * len(words))
    content = vectorizer.to_json().encode()  # which UTF-8 can carry
    assert data.Vectorizer.from_json(content).vocabulary == words


@pytest.mark.parametrize("names", [["a", 5], ["a", None], "ab", {"a": 0, "b": 1}, 7, ["a", b"b"]])
def test_names_by_hand_are_checked(tmp_path, names):
    split = data.Split(sparse.eye(2), sparse.eye(2))
    for what in ("label_names", "feature_names"):
        with pytest.raises(ValueError, match=rf"Dataset: {what}"):
            data.Dataset("a", tmp_path, split, **{what: names})
    with pytest.raises(ValueError, match="here"):
        check_names(names, "here")


@pytest.mark.parametrize("what", ["label_names", "feature_names"])
def test_too_few_names_are_neither_written_nor_kept(tmp_path, what):
    eye = sparse.eye(2, format="csr")
    dataset = data.Dataset("a", tmp_path, data.Split(eye, eye), **{what: ["a"]})
    with pytest.raises(ValueError, match=rf"write_folder: {what}: must have 2 names, got 1"):
        data.write_folder(tmp_path / "out", dataset)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=rf"{what}: must have 2 names, got 1"):
        runs.attachments(dataset)


# ------------------------------------------------------------------------------------ pairs of readers

HEADERS = [
    "1 2 3", "01 002 0003", "+1 2 3", "-1 2 3", "1 0 3", "1 2 0", "0 2 3", "1 2147483647 2147483647",
    "1 2147483648 3", "1 2 2147483648", "2147483647 2 3", "9223372036854775807 2 3",
    "18446744073709551616 2 3",
    "1e0 2 3", "1 2 3 4", "\u0661 2 3", "1\u00a02 3", "", " ", "1 2 3\r", "\ufeff1 2 3", "\ufeff", "1\v2\f3",
    "1.0 2 3", "0x1 2 3", "1,2,3",
]  # fmt: skip
BODIES = ["0 1:1\n", "0 1:1", "0 1:1\r\n", "\n", "", "\n\n\n", "0 1:1\n\n \n\t\n", "0 1:1\n\n0 1:1\n"]
BODIES += ["\n\n0 1:1\n\n", "0 2147483646:1\n", "0 2147483647:1\n", "2147483647 0:1\n", "0 1:1\n0 5:1\n"]


def verdict(read):
    try:
        blocks = read()
    except ValueError as error:
        return str(error)
    X, Y = (sparse.vstack([getattr(block, part) for block in blocks]) for part in "XY")
    return [X.toarray().tolist() if X.shape[1] < 99 else X.indices.tolist(), X.shape, Y.shape, Y.nnz]


def by_blocks(path, size):
    return list(data.iter_xmc(path, block_bytes=size)) or [
        data.read_xmc(path)
    ]  # without a document, no block


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("head", HEADERS, ids=range(len(HEADERS)))
def test_both_readers_of_xmc_text_say_the_same(tmp_path, head, suffix):
    path = tmp_path / f"a.txt{suffix}"
    for body in BODIES:
        content = f"{head}\n{body}".encode()
        path.write_bytes(gzip.compress(content, 0) if suffix else content)
        whole = verdict(lambda: [data.read_xmc(path)])
        assert whole == verdict(lambda: [data.read_xmc(path, num_threads=3)])
        for size in (1, 5, 1 << 20):
            assert whole == verdict(functools.partial(by_blocks, path, size)), (head, body, size)


@pytest.mark.parametrize("zeros", [1, 17, 18, 40])
def test_leading_zeros_are_the_same_number_in_every_header(tmp_path, zeros):
    (tmp_path / "a.txt").write_text(f"{'0' * zeros}1 2 {'0' * zeros}3\n0 1:1\n")
    (tmp_path / "trn_X_Xf.txt").write_text(f"{'0' * zeros}1 {'0' * zeros}2\n1:1\n")
    assert data.read_xmc(tmp_path / "a.txt").Y.shape == (1, 3)
    assert data.formats.read_sparse_text(tmp_path / "trn_X_Xf.txt").shape == (1, 2)


# ------------------------------------------------------------------------------------ archives, downloads


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name, size=0, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, "/etc/passwd"
    return info


def test_archives_that_unpack_without_limit(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    bomb = archive(tmp_path / "a.tar.gz", (member("a/Y.npz", 1 << 22), bytes(1 << 22)))
    with pytest.raises(ValueError, match=r"a.tar.gz: the archive .* it unpacks to more than 1048576 bytes"):
        archives.extract(bomb, {"Y.npz": "Y.npz"}, out, max_bytes=1 << 20)
    other = archive(
        tmp_path / "a.tar.gz", (member("b", 1 << 22), bytes(1 << 22)), (member("a/Y.npz", 1), b"1")
    )
    with pytest.raises(ValueError, match=r"it unpacks to more than 1048576 bytes"):
        archives.extract(other, {"Y.npz": "Y.npz"}, out, max_bytes=1 << 20)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_archives_whose_headers_are_huge(tmp_path, kind):
    (tmp_path / "a.tar").write_bytes(member("a", 1 << 33, kind).tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match=r"a.tar: the archive must .*, got: a header of \d+ bytes"):
        archives.extract(tmp_path / "a.tar", {"Y.npz": "Y.npz"}, tmp_path)


def test_archives_of_too_many_or_other_things(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
    archives.extract(
        archive(tmp_path / "a.tar.gz", *((member("a/Y.npz", kind=kind), b"") for kind in kinds)),
        {"Y.npz": "Y.npz"},
        out,
    )
    assert not list(out.iterdir())
    chain = member("p", 0, tarfile.XHDTYPE).tobuf() * 5000
    (tmp_path / "a.tar").write_bytes(chain)
    with pytest.raises(ValueError, match=r"a.tar: the archive must be whole and undamaged"):
        archives.extract(tmp_path / "a.tar", {"Y.npz": "Y.npz"}, out)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(ValueError, match=r"a.tar.gz: .* more than 3 files in it"):
        archives.extract(tmp_path / "a.tar.gz", {"Y.npz": "Y.npz"}, out)


class Response(io.BytesIO):
    def __init__(self, body, status, headers):
        super().__init__(body)
        self.status, self.headers = status, headers


@pytest.mark.parametrize(
    ("status", "headers", "limit", "error", "message"),
    [
        (200, {"Content-Length": "x"}, None, ConnectionError, "Content-Length must be a number, got 'x'"),
        (200, {"Content-Length": "-5"}, None, ConnectionError, "Content-Length must be a number, got '-5'"),
        (200, {"Content-Length": "\u0665"}, None, ConnectionError, "Content-Length must be a number"),
        (200, {"Content-Length": "99"}, 9, ValueError, "must have at most 9 bytes, got 99"),
        (200, {}, 9, ValueError, "must have at most 9 bytes, got more; it was dropped"),
        (
            206,
            {"Content-Range": "bytes 0-9/10"},
            None,
            ConnectionError,
            "asked for bytes from 3 on, got 'bytes 0-9/10'",
        ),
    ],
)
def test_servers_that_lie(tmp_path, monkeypatch, status, headers, limit, error, message):
    monkeypatch.setattr(
        downloads.urllib.request, "urlopen", lambda *args, **kwargs: Response(b"0123456789", status, headers)
    )
    if status == 206:
        (tmp_path / "a.part").write_bytes(b"012")
    with pytest.raises(error, match=message):
        data.download("http://a/a", tmp_path / "a", progress=False, max_bytes=limit)
    assert not (tmp_path / "a").exists()
