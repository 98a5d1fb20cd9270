"""`Certificate`: what can be asked of it."""

import pytest
from certify_cases import right
from test_nn import draw, model_of

from mach_ext import certify

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ranks_beyond_the_labels_looked_at_are_not_certified():
    """An overtaker count of k means k or more, so nothing is known of a larger k."""
    model, X = model_of(), draw()
    certificate = certify.certify(model, X, right(model, X), [0.1], k=2, zero=False)
    for question in (certificate.certified, certificate.broken, certificate.precision):
        for k in (0, 3):
            with pytest.raises(ValueError, match=rf"Certificate: k must be in 1 \.\.\. 2, .* got {k}"):
                question(k)
    assert set(certificate.as_dict()["sizes"][0]) == {"epsilon", "P@1", "robust P@1"}
