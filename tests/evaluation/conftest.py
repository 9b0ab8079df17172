"""What the tests of this folder share."""

import pytest

from tests.evaluation.synthetic_lvis import make_lvis


@pytest.fixture(scope="session")
def lvis_case():
    """(dataset, results) of seed 0; do not change them."""
    return make_lvis(0)
