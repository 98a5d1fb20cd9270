"""JSON that harms, and what messages quote of a file."""

import json

import pytest
from data_cases import DEEP, ESCAPES, nested

from mach_ext import data
from mach_ext.data import attachments
from mach_ext.data.json_text import MAX_DEPTH, decode_json
from mach_ext.data.parsing import quote


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
    text = quote(value)
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
