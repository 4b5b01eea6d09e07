"""One server for the session: the whole application on a tiny grid, for tests that look at it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serving import Server, served

GRID = {"n_lat": 8, "n_lon": 16}


@pytest.fixture
def free_port() -> int:
    """Port on 127.0.0.1 that nobody listens on."""
    return _free_port()


@pytest.fixture(scope="session")
def http_port(ray_cluster: None) -> int:
    """Port on 127.0.0.1 at which Serve answers; applications lie below it by route."""
    from ray import serve

    port = _free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    return port


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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
