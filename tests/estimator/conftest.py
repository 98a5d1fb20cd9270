"""A fitted estimator for the tests of `MACHClassifier`."""

import pytest
from estimator_cases import shared_fit


@pytest.fixture(scope="session")
def fitted():
    """Trained on a sparse indicator. Tests do not change it."""
    return shared_fit()
