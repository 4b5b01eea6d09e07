"""One server for the session: the whole application on a tiny grid, for tests that look at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serving import Server, served

GRID = {"n_lat": 8, "n_lon": 16}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what `server` keeps."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def server(http_port: int, data_dir: Path) -> Iterator[Server]:
    """The synthetic model on a tiny grid; leave it as it is for the tests that follow."""
    args = {"data_dir": str(data_dir), "models": {"fcn3": {"grid": GRID}}}
    with served(args, "earth2serve", http_port) as server:
        yield server
