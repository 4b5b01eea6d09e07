"""What tests of the Conductor share: a store, a journal of what was called, and the log."""

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

ours = logging.getLogger(SERVE_LOGGER)


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
    """What Serve's logger hands to its handlers, named as in a replica."""
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    handler, naming, level = Keep(), LogContextFilter(), ours.level
    ours.addHandler(handler)
    ours.addFilter(naming)
    ours.setLevel(logging.INFO)
    yield kept
    ours.setLevel(level)
    ours.removeFilter(naming)
    ours.removeHandler(handler)


@pytest.fixture
def as_json(tmp_path: Path) -> Iterator[None]:
    """A replica's file with JSON."""
    file = logging.FileHandler(tmp_path / "replica.log")
    file.setFormatter(JSONFormatter())
    memory = logging.handlers.MemoryHandler(1, target=file)
    ours.addHandler(memory)
    yield
    ours.removeHandler(memory)
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
def behind(container: Container, proxy: FlakyProxy) -> Container:
    """The container, through the proxy."""
    return container.model_copy(update={"account_url": proxy.endpoint})
