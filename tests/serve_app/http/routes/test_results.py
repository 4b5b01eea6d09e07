"""Routes of results: the manifest and the files."""

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from starlette.requests import Request

from deployments.results.disk import DiskStorage
from deployments.runtime.metrics import DOWNLOADED_BYTES
from deployments.store.retention_view import RetentionView
from serve_app.files.disk import DiskResults
from serve_app.files.serving import CHUNK_SIZE, ResultFile
from tests.measured import Measured
from tests.serve_app.conftest import MANIFEST, URL, WORKFLOW
from workflows.errors import ResultsNotFound
from workflows.execution import Stage, Status
from workflows.manifest import CHECKSUMS

FILES = {"results.zarr/zarr.json": b'{"a": 1}\n', "results.nc": bytes(range(256))}
CHUNK = "results.zarr/t2m/c/0/1/0/0"
STORE = {CHUNK: b"chunk", CHECKSUMS: f"{'f' * 64}  {CHUNK}\n".encode()}


async def test_there_are_no_results_before_the_end(service):
    execution_id = await service.submit()
    for prepare, status in [
        (lambda: None, "queued"),
        (service.conductor.start, "running"),
        (lambda: service.conductor.package(execution_id), "pending_results"),
    ]:
        prepare()
        response = await service.client.get(f"{URL}/{execution_id}/results")
        assert response.status_code == 202
        assert set(response.json()["detail"]) == {"message", "status", "timestamp"}
        assert response.json()["detail"]["status"] == status
        if status != "pending_results":
            for name in ("results.nc", "results.zarr/zarr.json", CHUNK):
                response = await service.client.get(f"{URL}/{execution_id}/results/{name}")
                assert response.status_code == 409
                assert response.headers["retry-after"] == "5"
                assert response.json()["detail"] == f"no results yet, the execution is {status}"


async def test_the_results_show_how_the_execution_ended(service):
    execution_id = await service.completed()
    response = await service.client.get(f"{URL}/{execution_id}/results")
    assert response.status_code == 200
    body = response.json()
    assert MANIFEST.items() <= body.items()
    assert body["request_id"] == execution_id
    assert body["status"] == "completed"
    status = (await service.client.get(f"{URL}/{execution_id}/status")).json()
    assert body["completion_time"] == status["end_time"]
    assert body["execution_time_seconds"] == status["execution_time_seconds"]
    head = await service.client.head(f"{URL}/{execution_id}/results")
    assert head.headers["content-length"] == str(len(response.content))


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
async def test_failed_and_cancelled_executions_have_no_results(service, status):
    execution_id = await service.submit()
    service.conductor.start()
    service.conductor.end(execution_id, status, "the reason")
    for url in (f"{URL}/{execution_id}/results", f"{URL}/{execution_id}/results/results.nc"):
        response = await service.client.get(url)
        assert response.status_code == 404
        assert response.json()["detail"] == f"no results, the execution is {status}: the reason"


async def test_results_expire(service):
    execution_id = await service.completed(FILES)
    service.conductor.end(execution_id, Status.EXPIRED)
    for url in (f"{URL}/{execution_id}/results", f"{URL}/{execution_id}/results/results.nc"):
        response = await service.client.get(url)
        assert response.status_code == 410
        assert response.json()["detail"] == (
            "the results have expired: this server removes them some time after an execution's end"
        )
    # The cached status must not survive the expiry.
    status = (await service.client.get(f"{URL}/{execution_id}/status")).json()
    assert status["status"] == "expired"
    assert (await service.client.post(f"{URL}/{execution_id}/retry")).status_code == 409


async def test_a_running_download_survives_a_purge(service, tmp_path):
    content = os.urandom(3 * CHUNK_SIZE + 5)
    execution_id = await service.completed({"results.nc": content, "another.nc": content})
    storage = DiskStorage(service.options.storage.results_dir, tmp_path / "work")
    folder = DiskResults(service.options.storage.results_dir)(WORKFLOW, execution_id)
    request = Request({"type": "http", "method": "GET", "headers": []})
    response = await ResultFile.open(folder, "results.nc", request)
    received = []

    async def send(message):
        if message["type"] == "http.response.body":
            if not received:
                # What the Packager does when results expire or are purged.
                storage.purge(WORKFLOW, execution_id)
                assert not (service.options.storage.results_dir / WORKFLOW / execution_id).exists()
            received.append(message["body"])

    await response({"type": "http"}, asyncio.Event().wait, send)
    assert len(received) > 3
    assert b"".join(received) == content
    with pytest.raises(ResultsNotFound):
        await ResultFile.open(folder, "another.nc", request)


async def test_results_are_available_after_a_failed_registration(service):
    execution_id = await service.submit()
    conductor = service.conductor
    conductor.start()
    conductor.package(execution_id)
    conductor.store.update(
        conductor.fence, execution_id, status=Status.FAILED, stage=Stage.REGISTER
    )
    folder = service.options.storage.results_dir / WORKFLOW / execution_id
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("kept")
    response = await service.client.get(f"{URL}/{execution_id}/results")
    assert (response.status_code, response.json()["status"]) == (200, "failed")
    response = await service.client.get(f"{URL}/{execution_id}/results/a.txt")
    assert (response.status_code, response.text) == (200, "kept")


async def test_paths_of_files_may_start_with_the_execution_id(service):
    execution_id = await service.completed(FILES)
    for prefix in ("", f"{execution_id}/"):
        for name, content in FILES.items():
            url = f"{URL}/{execution_id}/results/{prefix}{name}"
            response = await service.client.get(url)
            assert (response.status_code, response.content) == (200, content)
            head = await service.client.head(url)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(content))
            assert head.headers["etag"] == response.headers["etag"]


async def test_downloaded_bytes_are_counted(serve):
    measured = Measured()
    service = serve(metrics=measured)
    large = bytes(range(256)) * (9 << 12)  # more than two chunks
    execution_id = await service.completed({**FILES, "large.nc": large})
    results = f"{URL}/{execution_id}/results"

    async def counted(name, status, **headers):
        before = measured.total(DOWNLOADED_BYTES, workflow=WORKFLOW)
        response = await service.client.get(f"{results}/{name}", headers=headers)
        assert response.status_code == status
        return measured.total(DOWNLOADED_BYTES, workflow=WORKFLOW) - before

    assert await counted("results.nc", 200) == 256
    assert await counted("results.nc", 206, Range="bytes=250-999") == 6
    assert await counted("large.nc", 200) == len(large)
    assert await counted("missing.nc", 404) == 0
    await service.client.head(f"{results}/large.nc")
    assert measured.total(DOWNLOADED_BYTES) == 256 + 6 + len(large)


async def test_ranges_and_validators(service):
    url = f"{URL}/{await service.completed(FILES)}/results/results.nc"
    response = await service.client.get(url, headers={"Range": "bytes=250-999"})
    assert (response.status_code, response.content) == (206, bytes(range(250, 256)))
    assert response.headers["content-range"] == "bytes 250-255/256"
    response = await service.client.get(url, headers={"Range": "bytes=256-"})
    assert response.status_code == 416
    assert response.headers["content-range"] == "bytes */256"
    response = await service.client.get(url, headers={"If-None-Match": response.headers["etag"]})
    assert (response.status_code, response.content) == (304, b"")


async def test_a_path_never_leaves_the_results(service):
    execution_id = await service.completed(FILES)
    results = service.options.storage.results_dir
    (results / "secret").write_text("secret")
    (results / WORKFLOW / execution_id / "link").symlink_to(results / "secret")
    for path in (
        "../../secret",
        "..%2f..%2fsecret",
        "%2e%2e/%2e%2e/secret",
        f"{execution_id}/../../../secret",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "link",
        "a%00b",
        "x" * 5000,
        "x/" * 3000,
        "results.zarr",
        "results.zarr/",
        "",
        "%ff",
    ):
        response = await service.client.get(f"{URL}/{execution_id}/results/{path}")
        assert 400 <= response.status_code < 500, path
        assert "secret\n" not in response.text and str(results) not in response.text
        assert "detail" in response.json()


def expire(service, execution_id):
    service.conductor.end(execution_id, Status.EXPIRED)


def request_purge(service, execution_id):
    service.store.request_purge(WORKFLOW, execution_id)


def delete(service, execution_id):
    service.conductor.store.delete(service.conductor.fence, execution_id)


def forget(service, execution_id):
    delete(service, execution_id)
    later = datetime.now(UTC) + timedelta(days=1)
    RetentionView(service.conductor.store).delete_ids(service.conductor.fence, later)


def lose_chunk(service, execution_id):
    (service.options.storage.results_dir / WORKFLOW / execution_id / CHUNK).unlink()


def lose_folder(service, execution_id):
    folder = service.options.storage.results_dir
    folder.rename(folder.with_name("unmounted"))


@pytest.mark.parametrize(
    ("happens", "chunk", "other", "reason"),
    [
        (expire, 410, 410, "have expired"),
        (request_purge, 410, 410, "is being removed"),
        (delete, 410, 410, "was removed"),
        (forget, 410, 404, "execution not found"),
        (lose_chunk, 410, 404, "was lost"),
        (lose_folder, 503, 404, "cannot be read now"),
    ],
)
async def test_a_chunk_that_was_there_is_never_answered_with_404(
    service, happens, chunk, other, reason
):
    execution_id = await service.completed(STORE)
    url = f"{URL}/{execution_id}/results/{CHUNK}"
    assert (await service.client.get(url)).status_code == 200
    happens(service, execution_id)
    for method in ("GET", "HEAD"):
        response = await service.client.request(method, url, headers={"Range": "bytes=0-1"})
        assert response.status_code == chunk
    response = await service.client.get(url)
    assert response.status_code == chunk
    assert reason in response.json()["detail"]
    response = await service.client.get(f"{URL}/{execution_id}/results/a.txt")
    assert response.status_code == other


async def test_a_chunk_of_a_cancelled_delivery_is_gone(service):
    execution_id = await service.submit()
    service.conductor.start()
    service.conductor.package(execution_id)
    service.conductor.end(execution_id, Status.CANCELLED)
    response = await service.client.get(f"{URL}/{execution_id}/results/{CHUNK}")
    assert response.status_code == 410


async def test_a_chunk_of_a_hidden_workflow_is_gone(service):
    execution_id = await service.completed(STORE)
    response = await service.client.get(f"/v1/infer/hidden/{execution_id}/results/{CHUNK}")
    assert response.status_code == 410


async def test_files_removed_while_a_request_is_on_its_way_are_gone(serve):
    """The status is read before the removal, the file after it."""
    service = serve()
    execution_id = await service.completed(STORE)
    context = service.app.state.context

    class Removing:
        def open(self, relative, *, whole):
            if relative == CHUNK:
                expire(service, execution_id)
            raise ResultsNotFound("removed")

    service.app.state.context = replace(context, results=lambda *_: Removing())
    response = await service.client.get(f"{URL}/{execution_id}/results/{CHUNK}")
    assert (response.status_code, "have expired" in response.text) == (410, True)
    service.app.state.context = context


@pytest.mark.parametrize(
    "key", ["c/0/1/0/1", "c/0/10/0/0", "c/0/1/0", "c.0.1.0.0", "0.1.0.0", "0/1/0/0", "c"]
)
async def test_a_chunk_that_was_never_written_is_missing(service, key):
    execution_id = await service.completed(STORE)
    response = await service.client.get(f"{URL}/{execution_id}/results/results.zarr/t2m/{key}")
    assert response.status_code == 404


def expire_with_manifest(service, execution_id):
    later = datetime.now(UTC) + timedelta(days=1)
    view = RetentionView(service.conductor.store)
    view.expire(service.conductor.fence, execution_id, later)


@pytest.mark.parametrize(
    ("happens", "reason"), [(expire_with_manifest, "have expired"), (delete, "was removed")]
)
async def test_results_removed_between_record_and_manifest_are_gone(service, happens, reason):
    execution_id = await service.completed(FILES)
    context = service.app.state.context

    class Removing:
        def __getattr__(self, name):
            return getattr(service.store, name)

        def manifest(self, execution_id):
            happens(service, execution_id)
            return service.store.manifest(execution_id)

    service.app.state.context = replace(context, store=Removing())
    response = await service.client.get(f"{URL}/{execution_id}/results")
    service.app.state.context = context
    assert (response.status_code, reason in response.text) == (410, True)
