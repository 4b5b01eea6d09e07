"""Result files on disk and in Blob Storage, which must be served alike."""

import os
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from deployments.azure.blobs import Blobs
from serve_app.files.blob import BlobResults
from serve_app.files.disk import DiskFolder
from serve_app.files.paths import ForbiddenPath, InvalidPath, ResultsUnavailable
from serve_app.files.protocols import Folder
from serve_app.files.serving import CHUNK_SIZE, ResultFile
from tests.deployments.results.backends import options_for
from workflows.errors import ResultsNotFound

CONTENT = random.Random(0).randbytes(1000)
LARGE = random.Random(1).randbytes(2 * CHUNK_SIZE + 12345)
FILES = {"chunk": CONTENT, "large.nc": LARGE, "empty": b""}
MODIFIED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATUS: dict[type[Exception], int] = {
    ForbiddenPath: 403,
    InvalidPath: 400,
    ResultsNotFound: 404,
    ResultsUnavailable: 503,
}

Write = Callable[[str, bytes], None]
"""Writes one more file beside `FILES`."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    os.utime(root / "chunk", (MODIFIED.timestamp() + 0.5,) * 2)
    return root


@pytest.fixture(scope="module", params=["disk", "blob"])
def place(request: pytest.FixtureRequest, root: Path) -> tuple[Folder, Write]:
    if request.param == "disk":

        def write_file(name: str, content: bytes) -> None:
            (root / name).write_bytes(content)

        return DiskFolder(root), write_file
    azurite = request.getfixturevalue("azurite")
    options = options_for(azurite, azurite.new_container("a/folder"), root)
    blobs = Blobs(options)

    def write_blob(name: str, content: bytes) -> None:
        blobs.put(f"workflow/exec_1/{name}", content, "application/octet-stream")

    for name, content in FILES.items():
        write_blob(name, content)
    return BlobResults(options)("workflow", "exec_1"), write_blob


@pytest.fixture(scope="module")
def write(place: tuple[Folder, Write]) -> Write:
    return place[1]


@pytest.fixture(scope="module")
def client(place: tuple[Folder, Write]) -> Iterator[TestClient]:
    with TestClient(application(place[0])) as client:
        yield client


@pytest.fixture(scope="module")
def disk_client(root: Path) -> Iterator[TestClient]:
    with TestClient(application(DiskFolder(root))) as client:
        yield client


def application(folder: Folder) -> Starlette:
    async def result_file(request: Request) -> Response:
        return await ResultFile.open(folder, request.path_params["path"], request)

    async def answer_error(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), STATUS[type(error)])

    return Starlette(
        routes=[Route("/{path:path}", result_file, methods=["GET", "HEAD", "POST"])],
        exception_handlers=dict.fromkeys(STATUS, answer_error),
    )
