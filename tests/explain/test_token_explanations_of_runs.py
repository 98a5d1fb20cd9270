"""Runs that were trained with a text encoder, explained by their words and tokens."""

import json

import numpy as np
import pytest
import tiny_bert

import mach_ext
from mach_ext import cli, explain

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "the unpurring cats in a house"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of texts about pets in `run`, with a tiny encoder."""
    tiny_bert.need_transformers()
    folder = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MACH_DATA", str(folder / "home"))
        tiny_bert.write(folder / "encoder")
        lines = [
            json.dumps({"text": f"the {size} {pet} in a house", "labels": [pet]})
            for size in ("big", "small", "red", "old") for pet in ("cat", "dog", "bird", "fish")
        ]  # fmt: skip
        (folder / "pets").mkdir()
        for split in ("train", "dev", "test"):
            (folder / "pets" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        mach_ext.train(
            "pets", output="run", text_encoder="encoder", epochs=3, hidden_size=8, num_repetitions=8,
            num_buckets=8, progress=False,
        )  # fmt: skip
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MACH_DATA", str(folder / "home"))
    return mach_ext.Run.open("run")


def test_a_text_is_explained_by_its_words_and_tokens(run, tmp_path):
    why = run.explain(TEXT, k=2)
    found = why.explanation
    assert isinstance(found, explain.TokenExplanation)
    assert found.words.names == ["the", "unpurring", "cats", "in", "a", "house"]
    (answer,) = run.predict([TEXT], k=2)
    assert found.labels.tolist() == [best.id for best in answer]
    np.testing.assert_allclose(found.model_scores, [best.score for best in answer], rtol=1e-4, atol=1e-5)
    bound = 1e-2 * (np.abs(found.scores) + np.abs(found.baseline_scores))  # at 64 steps
    assert (np.abs(found.delta) <= bound).all()
    why.save(tmp_path / "why")
    kept = json.loads((tmp_path / "why" / "explanation.json").read_text())
    assert kept["words"]["names"] == found.words.names
    assert "All words in the order of the text" in (tmp_path / "why" / "explanation.html").read_text()


def test_a_document_of_the_dataset_has_the_same_explanation_as_its_text(run):
    text = "the small dog in a house"
    by_number = run.explain(sample_id=5, k=1, n_steps=16)
    assert by_number.explanation.text == text
    by_text = run.explain(text, k=1, n_steps=16)
    np.testing.assert_allclose(
        by_number.explanation.attributions, by_text.explanation.attributions, rtol=1e-3, atol=1e-5
    )


def test_the_embedding_as_one_feature_or_its_dimensions(run):
    whole = run.explain(TEXT, k=1, method="exact")
    assert "embedding (32 dimensions)" in dict(whole.top(20))
    each = run.explain(TEXT, k=1, tokens=False).by_dimension()
    assert "dense 31" in dict(each.top(50))


def test_command(run, capsys):
    assert cli.main(["explain", "--model-path", "run", "--text", TEXT, "--k", "1", "--html", "why.html"]) == 0
    shown = capsys.readouterr().out
    assert "unpurring" in shown
    assert "embedding" not in shown
    assert cli.main(["explain", "--model-path", "run", "--text", TEXT, "--k", "1", "--method", "exact"]) == 0
    assert "embedding (32 dimensions)" in capsys.readouterr().out
    command = ["explain", "--model-path", "run", "--text", TEXT, "--k", "1", "--show", "50", "--dimensions"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "dense 31" in shown
    assert "embedding" not in shown
