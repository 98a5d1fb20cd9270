"""`Run.attack` and the command with method "words", and threat models of runs with a text encoder."""

import json

import pytest
import tiny_bert

import mach_ext

pytestmark = pytest.mark.usefixtures("one_thread")


def write_dataset(folder):
    folder.mkdir()
    lines = [
        {"text": "a big cat and a bird", "labels": ["cat", "bird"]},
        {"text": "the old dog barks", "labels": ["dog"]},
        {"text": "fish swim", "labels": ["fish"]},
    ]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in 10 * lines))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    data = write_dataset(folder / "pets")
    sizes = {"num_repetitions": 8, "num_buckets": 4}
    return mach_ext.train(str(data), svm=True, output=folder / "run", progress=False, **sizes)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    tiny_bert.need_transformers()
    folder = tmp_path_factory.mktemp("hybrid")
    data = write_dataset(folder / "pets")
    encoder = tiny_bert.write(folder / "tiny")
    sizes = {"num_repetitions": 8, "num_buckets": 4, "hidden_size": 8, "epochs": 5, "batch_size": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACH_DATA", str(folder / "data"))
        return mach_ext.train(str(data), text_encoder=encoder, output=folder / "run", progress=False, **sizes)


def test_words_of_a_run_of_tfidf(plain, tmp_path):
    found = plain.attack("words", epsilons=[1, 2], k=1, progress=False, output=tmp_path / "out")
    assert found.settings.grid == [0, 1, 2]
    record = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert record["attack"] == record["threat_model"] == "words"
    none, one, two = record["adversarial"]
    assert none["metrics"]["P@1"] == record["clean"]["P@1"] == 1
    assert one["loss"] > none["loss"]
    assert two["loss"] >= one["loss"]
    assert one["size"]["removed"] == 1
    assert record["documents_per_second"] > 0
    assert found.entry(True)[0] == "words untargeted test"
    page = found.page()
    assert "Words of the texts were deleted" in page
    assert "<del>" in page
    assert (tmp_path / "out" / "attack.png").stat().st_size > 1000


def test_words_and_embeddings_of_a_run_with_a_text_encoder(hybrid):
    found = hybrid.attack("words", epsilons=1, k=1, progress=False, save=False)
    none, one = found.adversarial
    assert one["loss"] > none["loss"]
    text = found.dataset.splits["test"].texts[0]
    assert len(found.page()) > 1000
    for threat, unchanged in (("embedding(l2)", "sparse features"), ("support", "dense features")):
        of_threat = hybrid.attack(threat_model=threat, epsilons=[0.2], certify=True, k=1, progress=False)
        assert of_threat.result["unchanged"] == unchanged
        entry = of_threat.adversarial[1]
        assert entry["certified"]["P@1"] <= entry["metrics"]["P@1"]
        assert f"The {unchanged} stay as they are." in of_threat.page()
    of_dense = hybrid.attack(threat_model="embedding", epsilons=[0.2], progress=False, save=False)
    assert "dense feature" in of_dense.page()
    assert text == "a big cat and a bird"


def test_refusals(plain):
    for arguments, message in (
        ({"threat_model": "support"}, "method words changes texts, so threat_model must not be given"),
        ({"certify": True}, "method words changes texts, so certify must not be given"),
        ({"epsilons": 0.5}, "sizes of words must be whole numbers, got .0.5"),
        ({"transfer": plain}, "method words must be without transfer"),
    ):
        with pytest.raises(ValueError, match=message):
            plain.attack("words", progress=False, save=False, **arguments)
    with pytest.raises(ValueError, match="changes dense features, but the model takes none"):
        plain.attack("fgsm", threat_model="embedding", progress=False, save=False)
