"""Former names of explanations: they work, with a warning where the user calls them."""

import pytest
from test_nn import draw, model_of

from mach_ext import explain, report


def test_former_names_of_leave_one_out():
    with pytest.warns(DeprecationWarning, match=r"explain\.removals is now called .*explain\.leave_one_out"):
        assert explain.removals is explain.leave_one_out
    with pytest.warns(DeprecationWarning, match=r"explain\.Removals is now called .*explain\.LeaveOneOut"):
        assert explain.Removals is explain.LeaveOneOut
    with pytest.raises(AttributeError, match=r"module 'mach_ext.explain' has no attribute 'removal'"):
        _ = explain.removal


def test_former_argument_of_pages():
    model, X = model_of(), draw(n=1)
    explanation, changes = explain.integrated_gradients(model, X, [3]), explain.leave_one_out(model, X, 2)
    page = explanation.to_html(leave_one_out=changes)
    calls = {
        "explanation_page": lambda **options: report.explanation_page(explanation, **options),
        "to_html": explanation.to_html,
    }
    for name, call in calls.items():
        with pytest.warns(DeprecationWarning, match=rf"{name}: argument removals is now") as warned:
            assert call(removals=changes) == page
        assert len(warned) == 1
        assert warned[0].filename == __file__
        with pytest.raises(TypeError, match="removals is now leave_one_out; pass only leave_one_out"):
            call(removals=changes, leave_one_out=changes)
