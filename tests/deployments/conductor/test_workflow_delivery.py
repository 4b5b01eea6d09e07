"""The delivery of results, with stand-in deployments."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deployments.runtime.failures import TransientFailure
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import (
    TIMEOUT_S,
    WORKFLOW,
    conductor_loop,
    eventually,
    finished,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns, failing
from tests.deployments.store.records import on_both_databases
from workflows import Status
from workflows.delivery import Delivery, parse_container
from workflows.errors import IngestionFailed, UploadFailed
from workflows.execution import Stage
from workflows.manifest import Manifest

CONTAINER = parse_container("https://weather.blob.core.windows.net/data/forecasts")
CATALOG = "https://earth.geocatalog.example"
BOTH = Delivery(container=CONTAINER, geo_catalog_url=CATALOG)
COMPUTED = ["begin 0", "member 0", "describe_result"]
"""The calls before a delivery, after `create` and `fetch` in any order."""


def deliver(store: ConductorStore, delivery: Delivery) -> str:
    return submit(store, delivery, n_samples=1, output_format="zarr")


@on_both_databases
async def test_results_are_uploaded_then_registered(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = deliver(store, BOTH)
    seen: list[Any] = []

    async def look(job: Any) -> None:
        seen.append(job)
        seen.append(store.read(execution_id))

    stand_ins = StandIns(journal, before={"upload": look, "register": look})
    async with conductor_loop(store_url, stand_ins):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    assert journal.lines()[2:] == [*COMPUTED, "upload", "register", "clean"]

    job, uploading, registration, registering = seen
    assert (job.workflow, job.execution_id, job.container) == (
        WORKFLOW.name,
        execution_id,
        CONTAINER,
    )
    assert (uploading.status, uploading.stage) == (Status.PENDING_RESULTS, Stage.UPLOAD)
    assert (registering.status, registering.stage) == (Status.PENDING_RESULTS, Stage.REGISTER)
    # Complete results can be read during their delivery.
    assert uploading.is_packaged and uploading.results is not None
    folder = f"{CONTAINER.url}/{WORKFLOW.name}/{execution_id}"
    assert registration.base_href == folder
    assert registration.files == {"results.zarr": (1, None)}
    assert registration.collection_id is None

    assert done.results is not None and done.results.is_uploaded
    expected = {
        "storage_type": "server",
        "remote_path": f"azure://data/forecasts/{WORKFLOW.name}/{execution_id}",
        "azure_account_name": "weather",
        "blob_folder_url": folder,
        "blob_url": f"{folder}/results.zarr",
        "uploaded": {"files": 2, "bytes": 20},
        "geo_catalog_url": CATALOG,
        "geocatalog_collection_id": "collection",
        "geocatalog_stac_feature_id": f"item-{execution_id}",
    }
    manifest = store.manifest(execution_id)
    assert manifest is not None
    assert expected.items() <= manifest.model_dump(mode="json").items()


@pytest.mark.parametrize(
    ("delivery", "lines"),
    [
        (Delivery(container=CONTAINER), ["upload"]),
        (Delivery(geo_catalog_url=CATALOG), ["register"]),
    ],
)
async def test_only_requested_deliveries_are_made(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    delivery: Delivery,
    lines: list[str],
) -> None:
    class InBlob(StandIns):
        async def describe_result(self, execution_id: str, fence: int) -> Manifest:
            manifest = await super().describe_result(execution_id, fence)
            return manifest.in_container(CONTAINER, "x")

    execution_id = deliver(store, delivery)
    async with conductor_loop(store_url, InBlob(journal)):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    assert journal.lines()[2:] == [*COMPUTED, *lines, "clean"]


async def test_transient_failure_is_retried(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = deliver(store, BOTH)
    before = {
        "upload": failing(1, TransientFailure(Stage.UPLOAD, "503 ServerBusy")),
        "register": failing(1, TransientFailure(Stage.REGISTER, "429 TooManyRequests")),
    }
    async with conductor_loop(store_url, StandIns(journal, before=before)):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    assert journal.lines()[2:] == [*COMPUTED, "upload", "register", "clean"]


@on_both_databases
@pytest.mark.parametrize(
    ("stage", "error", "again"),
    [
        (
            "upload",
            UploadFailed(Stage.UPLOAD, "403 AuthorizationPermissionMismatch: no role"),
            ["upload", "register"],
        ),
        (
            "register",
            IngestionFailed(Stage.REGISTER, "the operation Failed: InvalidItem: no bbox"),
            ["register"],
        ),
    ],
)
async def test_retry_of_a_failed_delivery_resumes_where_it_failed(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    stage: str,
    error: Exception,
    again: list[str],
) -> None:
    execution_id = deliver(store, BOTH)
    stand_ins = StandIns(journal, before={stage: failing(2, error)})
    async with conductor_loop(store_url, stand_ins) as loop:
        for retries in (0, 1):
            failed = await until(store, execution_id, finished)
            assert (failed.status, failed.stage) == (Status.FAILED, stage)
            assert failed.error_message == str(error)
            assert failed.results is not None and failed.retries == retries
            assert "purge" not in journal.lines()
            store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
            loop.nudge()
            await until(store, execution_id, lambda e: e.status != Status.QUEUED)
        done = await until(store, execution_id, finished)
        assert (done.status, done.retries) == (Status.COMPLETED, 2)
        assert done.error_message is None
        lines = journal.lines()
        before = COMPUTED if stage == "upload" else [*COMPUTED, "upload"]
        assert [line for line in lines[2:] if line != "clean"] == [*before, *again]

        # DBOS's records of every attempt are removed with the execution.
        store.request_purge(WORKFLOW.name, execution_id)
        loop.nudge()
        await eventually(lambda: not store.list_executions(WORKFLOW.name))


async def test_retry_of_a_failure_before_the_delivery_computes_again(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = deliver(store, BOTH)
    stand_ins = StandIns(
        journal, before={"describe_result": failing(1, UploadFailed("package", "no disk"))}
    )
    async with conductor_loop(store_url, stand_ins) as loop:
        failed = await until(store, execution_id, finished)
        assert (failed.stage, failed.results) == ("package", None)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
        loop.nudge()
        await until(store, execution_id, lambda e: e.status != Status.QUEUED)
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED
    assert journal.lines().count("member 0") == 2
    assert done.progress is not None and done.progress.members == (3,)


async def test_upload_can_be_cancelled(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = deliver(store, BOTH)
    started = asyncio.Event()

    async def hang(_: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    async with conductor_loop(store_url, StandIns(journal, before={"upload": hang})) as loop:
        await asyncio.wait_for(started.wait(), TIMEOUT_S)
        store.request_cancel(WORKFLOW.name, execution_id)
        loop.nudge()
        ended = await until(store, execution_id, finished)
        assert ended.status == Status.CANCELLED
        await eventually(lambda: "withdraw" in journal.lines())
    assert "purge" in journal.lines()


async def test_chunks_are_uploaded_while_others_are_computed(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """The upload ahead is stopped with the last member; nothing depends on how it ends."""
    jobs, stopped = [], asyncio.Event()

    async def follow(job: Any) -> None:
        jobs.append(job)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def wait_for_upload(_: Any) -> None:
        await eventually(lambda: bool(jobs))

    async def upload(_: Any) -> None:
        assert stopped.is_set()

    execution_id = deliver(store, BOTH)
    before = {"ahead": follow, "member": wait_for_upload, "upload": upload}
    async with conductor_loop(store_url, StandIns(journal, before=before)):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    [job] = jobs
    assert (job.execution_id, job.container) == (execution_id, CONTAINER)
    assert not [line for line in journal.lines() if line.startswith("withdraw")]


async def test_execution_completes_when_the_upload_ahead_fails(
    store: ConductorStore, store_url: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    hook = failing(1, UploadFailed("upload", "make the container first"))
    execution_id = deliver(store, BOTH)
    async with conductor_loop(store_url, StandIns(journal, before={"ahead": hook})):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert "no more chunks are uploaded ahead: make the container first" in caplog.text
    assert "upload" in journal.lines()


@contextmanager
def spawned_loop(store_url: str, journal: Journal, **before: str) -> Iterator[None]:
    """Run a loop in a process with hooks, given as code by method, and kill it at the end."""
    functions = "".join(f"async def {call}(*_): {what}\n" for call, what in before.items())
    hooks = ", ".join(f"{call}={call}" for call in before)
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.deployments.conductor.conductor_process import make_loop\n"
        "from tests.deployments.conductor.stand_ins import Journal, StandIns\n"
        "from workflows.errors import IngestionFailed\n"
        "journal = Journal(Path(sys.argv[2]))\n"
        f"{functions}"
        f"stand_ins = StandIns(journal, before=dict({hooks}))\n"
        "asyncio.run(make_loop(sys.argv[1], stand_ins).run())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, store_url, str(journal.path)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


HANG = "await asyncio.Event().wait()"


@pytest.mark.parametrize("call", ["upload", "register"])
@pytest.mark.parametrize("retried", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_successor_of_a_conductor_killed_during_a_delivery_finishes_it(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    call: str,
    retried: bool,
) -> None:
    execution_id = deliver(store, BOTH)
    if retried:
        # Killed after its record of the failure and before DBOS's: the successor recovers it.
        refusal = f"raise IngestionFailed('{call}', 'no')"
        with spawned_loop(store_url, journal, **{call: refusal, "clean": HANG}):
            await until(store, execution_id, finished)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
    hang = f"journal.note('hangs in {call}'); {HANG}"
    with spawned_loop(store_url, journal, **{call: hang}):
        await until(store, execution_id, lambda _: f"hangs in {call}" in journal.lines())
    async with conductor_loop(store_url, StandIns(journal)):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    lines = journal.lines()
    assert [
        lines.count(line) for line in ("member 0", "describe_result", "upload", "register")
    ] == [1] * 4
