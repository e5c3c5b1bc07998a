"""One checkpoint of every family, with the layers that tests need, written once a session."""

from pathlib import Path

import pytest

from tests.published.checkpoints import FAMILIES, write_checkpoint

_NUM_LAYERS = 4


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    for name in FAMILIES:
        write_checkpoint(name, root / name, _NUM_LAYERS)
    return {name: root / name for name in FAMILIES}
