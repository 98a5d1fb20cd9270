"""The result of an explanation: its rows, its JSON, the scales that it names."""

import json

import numpy as np
import pytest
from explain_cases import Page
from test_nn import MERGES, D, draw, model_of

import mach_ext
from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")


def test_result(tmp_path):
    model, X = model_of(), draw(n=1)
    names = [f"word {d}" for d in range(D)]
    result = explain.integrated_gradients(model, X, [7, 3], feature_names=names)
    best = int(np.abs(result.attributions[1]).argmax())
    assert result.top(1, label=3) == [
        (names[result.features[best]], pytest.approx(result.attributions[1, best]))
    ]
    assert [abs(a) for _, a in result.top(5)] == sorted((abs(a) for _, a in result.top(5)), reverse=True)
    content = json.loads(result.to_json(tmp_path / "e.json"))
    assert content == json.loads((tmp_path / "e.json").read_text())
    np.testing.assert_array_equal(content["attributions"], result.attributions)
    assert content["label_names"] == ["7", "3"]
    with pytest.raises(ValueError, match=r"label 4 must be one of \[7, 3\]"):
        result.top(1, label=4)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("score", explain.SCORES)
def test_an_explanation_names_the_scales_of_its_scores(merge, score):
    model, X = model_of(merge=merge), draw(n=1)
    scores, labels = model.predict(X, 3)
    found = explain.integrated_gradients(model, X, labels[0], score=score)
    assert found.scale == (merge if score == "model" else "mean_logit")
    assert found.model_scale == merge
    np.testing.assert_allclose(found.model_scores, scores[0], rtol=1e-5, atol=1e-6)
    content = json.loads(found.to_json())
    assert (content["scale"], content["model_scale"]) == (found.scale, merge)
    assert content["model_scores"] == found.model_scores.tolist()
    words = mach_ext.nn.SCALES
    page = Page(found.to_html(leave_one_out=explain.leave_one_out(model, X, 2)))
    assert page.texts.count(f"score ({words[found.scale]})") == 3
    ranks = [text for text in page.texts if "by which the model ranks" in text]
    expected = [] if found.scale == merge else 3 * [f"{words[merge]}, by which the model ranks"]
    assert ranks == expected
    assert any(f"change of the top labels' scores ({words[merge]})" in text for text in page.texts)
    apart = explain.contrast(model, X, int(labels[0, 0]), int(labels[0, 1]), score=score)
    np.testing.assert_allclose(apart.model_scores, scores[0, :1] - scores[0, 1:2], rtol=1e-4, atol=1e-5)
