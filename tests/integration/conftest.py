"""One server for the session: the default models on a tiny grid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serving import Server, served

GRID = {"n_lat": 8, "n_lon": 16}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data_dir` of the shared server."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def shared_server(http_port: int, data_dir: Path) -> Iterator[Server]:
    """A server that tests leave as they find it, without any delivery to Azure."""
    args = {"data_dir": str(data_dir), "models": {"fcn3": {"grid": GRID}}}
    with served(args, "earth2serve", http_port) as server:
        yield server
