"""Downloads from Blob Storage; behaviour shared with the disk is tested in test_serving."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from deployments.azure.blobs import Blob, Blobs
from deployments.results.options import BlobResultsOptions
from serve_app.files.blob import BlobFolder, BlobResults
from serve_app.files.paths import ResultsUnavailable
from serve_app.files.serving import CHUNK_SIZE, ResultFile
from tests.deployments.results.backends import options_for
from tests.emulators.azurite import Azurite
from workflows.errors import ResultsNotFound

LARGE = random.Random(1).randbytes(5 * CHUNK_SIZE + 12345)
KEY = "workflow/exec_1/results.nc"


@pytest.fixture
def options(azurite: Azurite, tmp_path: Path) -> BlobResultsOptions:
    return options_for(azurite, azurite.new_container(), tmp_path)


class Counting(Blobs):
    """Records its calls."""

    def __init__(self, options: BlobResultsOptions) -> None:
        super().__init__(options)
        self.calls: list[str] = []
        self.lock = threading.Lock()

    def open(self, key: str, at_most: int) -> Any:
        self.calls.append("open")
        return super().open(key, at_most)

    def head(self, key: str) -> Any:
        self.calls.append("head")
        return super().head(key)

    def read(self, blob: Blob, part: range) -> bytes:
        with self.lock:
            self.calls.append("read")
        return super().read(blob, part)


def request(method: str = "GET", **headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": method, "path": "/", "headers": pairs})


async def connected() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def body_of(response: ResultFile, receive: Any = connected) -> bytes:
    sent = bytearray()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    await response(request().scope, receive, send)
    return bytes(sent)


@pytest.mark.parametrize(
    ("content", "http_request", "calls"),
    [
        # Most files are small chunks, for which one call must do.
        (b"small", request(), ["open"]),
        (b"small", request("HEAD"), ["head"]),
        (b"small", request(range="bytes=1-2"), ["head", "read"]),
        (b"small", request(if_none_match="*"), ["head"]),
        (LARGE, request(), ["open"] + ["read"] * 6),
        (LARGE, request(range="bytes=-5"), ["head", "read"]),
    ],
)
async def test_calls_per_request(
    options: BlobResultsOptions, content: bytes, http_request: Request, calls: list[str]
) -> None:
    blobs = Counting(options)
    blobs.put(KEY, content, "application/netcdf")
    folder = BlobFolder(blobs, "workflow/exec_1")
    await body_of(await ResultFile.open(folder, "results.nc", http_request))
    assert blobs.calls == calls


async def test_a_large_body_is_sent_in_chunks_with_bounded_read_ahead(
    options: BlobResultsOptions,
) -> None:
    blobs = Counting(options)
    blobs.put(KEY, LARGE, "application/netcdf")
    response = await ResultFile.open(BlobFolder(blobs, "workflow/exec_1"), "results.nc", request())
    sizes, ahead, body = [], [], bytearray()

    async def send(message: Any) -> None:
        body.extend(message.get("body", b""))
        # An empty message ends each chunk.
        if message["type"] == "http.response.body" and message["more_body"] and not message["body"]:
            sizes.append(len(body) - sum(sizes))
            await asyncio.sleep(0.05)
            ahead.append(blobs.calls.count("read") - len(sizes))

    await response(request().scope, connected, send)
    assert body == LARGE
    assert sizes == [CHUNK_SIZE] * 5 + [12345]
    assert max(ahead) <= 2


async def test_a_disconnect_stops_reading(options: BlobResultsOptions) -> None:
    blobs = Counting(options)
    blobs.put(KEY, LARGE, "application/netcdf")
    response = await ResultFile.open(BlobFolder(blobs, "workflow/exec_1"), "results.nc", request())
    disconnected = asyncio.Event()

    async def receive() -> Any:
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            disconnected.set()
            await asyncio.sleep(0)

    await response(request().scope, receive, send)
    await asyncio.sleep(0.1)
    assert blobs.calls.count("read") <= 4


@pytest.mark.parametrize("change", ["overwritten", "purged"])
async def test_a_blob_that_changes_aborts_the_response(
    options: BlobResultsOptions, change: str
) -> None:
    blobs = Blobs(options)
    blobs.put(KEY, LARGE, "application/netcdf")
    folder = BlobResults(options)("workflow", "exec_1")
    response = await ResultFile.open(folder, "results.nc", request())
    if change == "purged":
        blobs.delete(KEY)
    else:
        blobs.put(KEY, LARGE[::-1], "application/netcdf")
    with pytest.raises(ResultsUnavailable, match="changed while it was read"):
        await body_of(response)


@pytest.mark.parametrize(
    "http_request", [request(), request("HEAD"), request(range="bytes=0-1"), request(if_match="*")]
)
@pytest.mark.parametrize("cause", ["no container", "refused", "unreachable"])
async def test_an_unreadable_blob_is_not_reported_as_missing(
    azurite: Azurite,
    options: BlobResultsOptions,
    tmp_path: Path,
    cause: str,
    http_request: Request,
) -> None:
    container = options.container
    credential: dict[str, object] = {"secret": "s3cret"}
    if cause == "no container":
        container = container.model_copy(update={"name": "no-such-container"})
    elif cause == "refused":
        credential["lifetime_s"] = -60
    else:
        container = container.model_copy(update={"account_url": "https://127.0.0.1:1/account"})
    changed = options_for(azurite, container, tmp_path, **credential)
    blobs = Blobs(changed.model_copy(update={"retry_limit_s": 0.1}))
    with pytest.raises(ResultsUnavailable) as refused:
        await ResultFile.open(BlobFolder(blobs, "workflow/exec_1"), "results.nc", http_request)
    assert str(refused.value) == "'results.nc' cannot be read now"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_folder_is_not_a_file(options: BlobResultsOptions, method: str) -> None:
    blobs = Blobs(options)
    blobs.put("workflow/exec_1/results.zarr/zarr.json", b"{}", "application/json")
    # Accounts with a hierarchical namespace have a blob for each folder.
    blobs._obstore.put(
        blobs._store, "workflow/exec_1/folder", b"", attributes={"hdi_isfolder": "true"}
    )
    folder = BlobResults(options)("workflow", "exec_1")
    for name in ("results.zarr", "results.zarr/", "results.zarr/zarr.json/", "folder", "", "."):
        with pytest.raises(ResultsNotFound):
            await ResultFile.open(folder, name, request(method))
    for name in ("results.zarr/zarr.json", "./results.zarr//zarr.json"):
        assert (await ResultFile.open(folder, name, request(method))).status_code == 200


async def test_files_of_other_executions_are_not_found(options: BlobResultsOptions) -> None:
    blobs = Blobs(options)
    blobs.put(".work/exec_1/admission/plan.json", b"{}", "application/json")
    blobs.put("workflow/exec_10/a", b"1", "text/plain")
    folder = BlobResults(options)("workflow", "exec_1")
    for name in ("a", "0/a", ".work/exec_1/admission/plan.json"):
        with pytest.raises(ResultsNotFound):
            await ResultFile.open(folder, name, request())
