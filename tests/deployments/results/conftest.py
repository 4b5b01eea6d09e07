"""Fixtures of the conformance suite: every test with `backend` runs on disk and on Blob Storage."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.results.store import ResultsStore
from tests.deployments.results.backends import Backend, BlobBackend, DiskBackend


@pytest.fixture(params=["disk", "blob"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "disk":
        yield DiskBackend(tmp_path)
        return
    blob = BlobBackend(request.getfixturevalue("azurite"), tmp_path)
    yield blob
    blob.assert_no_scratch()


@pytest.fixture
def store(backend: Backend) -> ResultsStore:
    return backend.store()
