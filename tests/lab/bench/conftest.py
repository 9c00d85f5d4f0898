"""All tests here measure, so what other tests have left is no garbage to look through."""

import pytest


@pytest.fixture(autouse=True)
def _measured(what_is_there_stays: None) -> None:
    pass
