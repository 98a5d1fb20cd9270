"""JSON lines."""

import gzip

import pytest

from mach_ext import data
from mach_ext.data import iter_jsonl, read_jsonl


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"a.jsonl, line 3: a line must be a JSON object in UTF-8 \("),
        (b'{"text": "\xff"}', r"line 3: a line must be a JSON object in UTF-8 \("),
        (b"[1]", r"line 3: a line must be a JSON object, got \[1\]"),
        (b"{}", r'line 3: "text" must be a string, got None'),
        (b'{"text": 5}', r'line 3: "text" must be a string, got 5'),
        (b'{"text": "", "labels": "a"}', r"""line 3: "labels" must be a list of strings, got 'a'"""),
        (b'{"text": "", "labels": [1]}', r'line 3: "labels" must be a list of strings, got \[1\]'),
    ],
)
def test_json_lines_errors(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine", "labels": []}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        list(iter_jsonl(path))


def test_json_lines_without_labels(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        gzip.compress(b'\xef\xbb\xbf{"text": "a", "labels": ["x"], "id": 3}\r\n\r\n{"text": "b"}')
    )
    assert list(iter_jsonl(path)) == [("a", ["x"]), ("b", None)]
    with pytest.raises(
        ValueError, match=r'a.jsonl.gz: every document must have "labels", got none in document 2'
    ):
        data.read_jsonl(path)
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(ValueError, match=r"a.jsonl.gz: the file must not be empty"):
        data.read_jsonl(path)
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-10])
    with pytest.raises(ValueError, match=r"a.jsonl.gz: the .gz file must be whole"):
        list(iter_jsonl(path))


def test_deeply_nested_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "other": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: a line must be a JSON object"):
        list(data.iter_jsonl(tmp_path / "a.jsonl"))


def test_halves_of_surrogate_pairs(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a cup \\ud83d", "labels": ["x"]}\n' * 2)
    read = data.read_folder(tmp_path)
    data.write_folder(tmp_path / "copy", read)
    assert data.read_folder(tmp_path / "copy").train.texts[0] == "a cup ?"


def test_blank_first_line_with_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"text": "a", "labels": []}\n')
    assert read_jsonl(path) == (["a"], [[]])


def test_deeply_nested_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: a line must be a JSON object"):
        list(iter_jsonl(path))
