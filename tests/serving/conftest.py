from collections.abc import Iterator

import pytest

from tests.serving.served import Live, served


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """One server for all tests that leave it as they find it."""
    with served() as live:
        yield live
