"""What tests of the Conductor share: a store and a journal of what was called."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.conducted_store import ConductedStore
from tests.deployments.conducting_process import Journal


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "postgresql":
        url: str = request.getfixturevalue("postgres_database")
        return url
    return f"sqlite:///{tmp_path}/executions.sqlite"


@pytest.fixture
def store(store_url: str) -> Iterator[ConductedStore]:
    store = ConductedStore(store_url)
    yield store
    store.close()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")
