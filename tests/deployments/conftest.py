"""Fixtures of several folders: a store, a journal of calls, the log and a Blob container."""

import logging
import logging.handlers
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._common.formatters import JSONFormatter

from deployments.runtime.log_context import SERVE_LOGGER, LogContextFilter
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.stand_ins import Journal
from tests.emulators.azurite import Azurite
from tests.emulators.flaky_proxy import FlakyProxy
from workflows.delivery import Container

serve_logger = logging.getLogger(SERVE_LOGGER)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "postgresql":
        url: str = request.getfixturevalue("postgres_database")
        return url
    return f"sqlite:///{tmp_path}/executions.sqlite"


@pytest.fixture
def store(store_url: str) -> Iterator[ConductorStore]:
    store = ConductorStore(store_url)
    yield store
    store.close()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The records of Serve's logger, with their context as in a replica."""
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    handler, context, level = Keep(), LogContextFilter(), serve_logger.level
    serve_logger.addHandler(handler)
    serve_logger.addFilter(context)
    serve_logger.setLevel(logging.INFO)
    yield kept
    serve_logger.setLevel(level)
    serve_logger.removeFilter(context)
    serve_logger.removeHandler(handler)


@pytest.fixture
def as_json(tmp_path: Path) -> Iterator[None]:
    """Write the log to a file of JSON lines, as in a replica."""
    file = logging.FileHandler(tmp_path / "replica.log")
    file.setFormatter(JSONFormatter())
    memory = logging.handlers.MemoryHandler(1, target=file)
    serve_logger.addHandler(memory)
    yield
    serve_logger.removeHandler(memory)
    memory.close()
    file.close()


@pytest.fixture
def container(azurite: Azurite) -> Container:
    return azurite.new_container("nightly/gfs")


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FlakyProxy]:
    with FlakyProxy(azurite.endpoint, azurite.certificate) as proxy:
        yield proxy


@pytest.fixture
def proxied_container(container: Container, proxy: FlakyProxy) -> Container:
    """The container, reached through the proxy."""
    return container.model_copy(update={"account_url": proxy.endpoint})
