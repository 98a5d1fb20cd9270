"""What a model keeps of its data, and that every entry of it is checked."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from data_cases import DEEP, header
from scipy import sparse

import mach_ext
from mach_ext import cli, data, explain, runs
from mach_ext.data import attachments


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
        ({"vectorizer_json": vectorizer(words='["a", "b", "a"]')}, "only once, got a word twice"),
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
    with pytest.raises(ValueError, match="does not say which dataset it was trained on; give dataset"):
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
        with pytest.raises(ValueError, match="holds a model; overwrite=True replaces it"):
            runs.refuse_to_replace(tmp_path)
