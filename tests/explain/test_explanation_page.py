"""Pages and charts of explanations."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from explain_cases import Page
from test_nn import B, D, L, R, draw, model_of, randomise

import mach_ext
from mach_ext import explain, report

pytestmark = pytest.mark.usefixtures("one_thread")


def test_page():
    model, X = model_of(), draw(n=1)
    names = [f"<b>{d}" for d in range(D)]
    result = explain.integrated_gradients(model, X, [7, 3], feature_names=names)
    page = Page(result.to_html())
    assert sum(tag == "section" for tag, _ in page.elements) == 2
    assert names[result.features[0]] in page.texts  # as text, not as an element
    voted = explain.votes(model, X, [3, 7])
    checks = [explain.collisions(model, X, label) for label in (3, 7)]
    removed = explain.leave_one_out(model, X, 2, feature_names=names)
    page = Page(result.to_html(votes=voted, collisions=checks, leave_one_out=removed, true_labels=[7]))
    assert sum(attrs.get("class") == "true" for _, attrs in page.elements) == 1
    assert page.texts.count("Votes of the repetitions") == page.texts.count("Collision check") == 2
    bars = [attrs for tag, attrs in page.elements if tag == "rect" and attrs.get("rx") == "1.5"]
    assert len(bars) == 2 * R
    for tag, attrs in page.elements:
        assert "nan" not in str(attrs.values()), tag
    assert any("leave the top 2" in text for text in page.texts)
    (agreed, *_) = (text for text in page.texts if "Agreement of the hash functions" in text)
    assert "is in the top 5: " in agreed
    assert "It is not the chance that the label is right." in agreed
    alone = Page(result.to_html(leave_one_out=explain.leave_one_out(model, X, 4)))
    assert any("leave the top 4" in text for text in alone.texts)
    Page(explain.contrast(model, X, 3, 7).to_html())
    Page(explain.integrated_gradients(model, X, 3, baseline=X).to_html())  # no effect at all


def test_shares_and_chances_are_not_rounded_to_all_or_nothing():
    shares = {
        1.0: "100.0 %",
        0.99951: "> 99.9 %",
        0.9994: "99.9 %",
        0.5: "50.0 %",
        0.0004: "< 0.1 %",
        0.0: "0.0 %",
    }
    assert {share: report.percent(share) for share in shares} == shares
    assert report.chance(1.0) == report.chance(0.99999) == "> 99.9 %"
    assert report.chance(0.0) == report.chance(1e-20) == "< 0.1 %"
    assert report.chance(0.25) == "25.0 %"


def test_the_page_shows_nothing_that_was_not_measured():
    """One repetition has no spread; a probability that rounds to 1 is not certain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        model = mach_ext.MACH(1, 3, 1, 4, hidden_size=0)
    with torch.no_grad():
        model.bucket_weight.fill_(50.0)
    x = scipy.sparse.csr_matrix(np.ones((1, 1), np.float32))
    found, voted = explain.integrated_gradients(model, x), explain.votes(model, x)
    checks = [explain.collisions(model, x, label) for label in range(3)]
    page = " ".join(Page(found.to_html(votes=voted, collisions=checks)).texts)
    for word in ("nan", "inf", "100.0 %", "Spread"):
        assert word not in page
    assert "> 99.9 %" in page


def test_words_of_the_text_are_shaded_by_their_own_feature():
    vectorizer = mach_ext.data.Vectorizer(["cat", "dog", "the"], [1.0, 1.0, 0.1])
    text = "The dog, the DOG & a bird"
    model = randomise(mach_ext.MACH(3, L, R, B, hidden_size=4))
    result = explain.integrated_gradients(model, vectorizer.transform([text]), 3, text=text)
    effects = dict(zip(result.features.tolist(), result.attributions[0], strict=True))
    page = Page(result.to_html(vectorizer=vectorizer))
    at = page.elements.index(next(e for e in page.elements if e[1].get("class", "") == "document"))
    shaded = [attrs["title"] for tag, attrs in page.elements[at + 1 : at + 5] if tag == "span"]
    assert shaded == [f"{effects[feature]:+.4f}" for feature in (2, 1, 2, 1)]
    assert text in "".join(page.texts)


def test_terminal_bars_and_plot(tmp_path):
    model, X = model_of(), draw(n=1)
    result = explain.integrated_gradients(model, X, [7, 3])
    lines = report.attribution_lines(result, 3, n=4, width=10)
    assert len(lines) == 5
    for line, (name, effect) in zip(lines, result.top(4, 3), strict=False):
        assert line.split()[0] == name
        left, _, right = line.partition("|")
        assert ("█" in left) == (effect < 0) or abs(effect) < 0.1 * abs(result.top(1, 3)[0][1])
        assert not ("█" in left and "█" in right)
    assert f"{len(result.features) - 4} others" in lines[-1]
    figure = result.plot(5, label=3)
    figure.savefig(tmp_path / "plot.png")
    assert len(figure.axes[0].patches) == 5
    assert report.sparkline([0, 1, 2], 0, 2) == "▁▅█"


def test_names_are_not_mathematics(tmp_path):
    found = explain.integrated_gradients(
        model_of(), draw()[0], [1], feature_names=[r"$\frac{$"] * D, label_names=[r"$\frac{$"] * L
    )
    found.plot().savefig(tmp_path / "plot.png")
