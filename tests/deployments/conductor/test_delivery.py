"""The delivery at the end of an execution's life, with stand-in deployments."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from deployments.conductor.options import RetentionOptions
from deployments.runtime.failures import TransientFailure
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.conducting import (
    LIMIT_S,
    comes_true,
    conducts,
    finished,
    is_there,
    on_both_databases,
    until,
)
from tests.deployments.conductor.conducting_process import Journal, StandIns
from workflows import Execution, FCN3Workflow, Status
from workflows.delivery import Delivery, parse_container
from workflows.errors import DiskFull, IngestionFailed, StageFailed, UploadFailed
from workflows.execution import Stage, new_execution_id
from workflows.manifest import Manifest

WORKFLOW = FCN3Workflow()
CONTAINER = parse_container("https://weather.blob.core.windows.net/data/forecasts")
CATALOG = "https://earth.geocatalog.example"
BOTH = Delivery(container=CONTAINER, geo_catalog_url=CATALOG)
COMPUTED = ["begin 0", "member 0", "describe_result"]
"""And before, in any order, `create` and `fetch`."""


def submit(store: ConductorStore, delivery: Delivery) -> str:
    validated = WORKFLOW.validate({"n_steps": 2, "n_samples": 1, "output_format": "zarr"})
    plan = WORKFLOW.plan(validated).model_copy(update={"delivery": delivery})
    execution = Execution(
        execution_id=new_execution_id(),
        workflow=WORKFLOW.name,
        status=Status.QUEUED,
        parameters=validated.model_dump(mode="json"),
        plan=plan.model_dump(mode="json"),
        created_at=datetime.now(UTC),
    )
    store.submit(execution, max_queued=100)
    return execution.execution_id


def refuse(times: int, error: Exception) -> Any:
    """Make what raises a few times, then lets pass."""
    left = [times]

    async def call(*_: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return call


@on_both_databases
async def test_results_are_uploaded_then_registered(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = submit(store, BOTH)
    asked: list[Any] = []

    async def look(job: Any) -> None:
        asked.append(job)
        asked.append(store.read(execution_id))

    stand_ins = StandIns(journal, before={"upload": look, "register": look})
    async with conducts(store_url, stand_ins):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    assert journal.lines()[2:] == [*COMPUTED, "upload", "register", "clean"]

    job, uploading, registration, registering = asked
    assert (job.workflow, job.execution_id, job.container) == (
        WORKFLOW.name,
        execution_id,
        CONTAINER,
    )
    assert (uploading.status, uploading.stage) == (Status.PENDING_RESULTS, Stage.UPLOAD)
    assert (registering.status, registering.stage) == (Status.PENDING_RESULTS, Stage.REGISTER)
    # What is whole can be had while it is delivered.
    assert uploading.is_packaged and uploading.results is not None
    folder = f"{CONTAINER.url}/{WORKFLOW.name}/{execution_id}"
    assert registration.base_href == folder
    assert registration.files == {"results.zarr": (1, None)}
    assert registration.collection_id is None

    assert done.results is not None
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
    assert expected.items() <= done.results.model_dump(mode="json").items()


@pytest.mark.parametrize(
    ("delivery", "lines"),
    [
        (Delivery(container=CONTAINER), ["upload"]),
        (Delivery(geo_catalog_url=CATALOG), ["register"]),
    ],
)
async def test_only_what_is_asked_for_is_done(
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

    execution_id = submit(store, delivery)
    async with conducts(store_url, InBlob(journal)):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    assert journal.lines()[2:] == [*COMPUTED, *lines, "clean"]


async def test_a_transient_fault_is_tried_again(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = submit(store, BOTH)
    before = {
        "upload": refuse(1, TransientFailure(Stage.UPLOAD, "503 ServerBusy")),
        "register": refuse(1, TransientFailure(Stage.REGISTER, "429 TooManyRequests")),
    }
    async with conducts(store_url, StandIns(journal, before=before)):
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
async def test_a_delivery_that_failed_is_told_and_goes_on_where_it_failed(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    stage: str,
    error: Exception,
    again: list[str],
) -> None:
    execution_id = submit(store, BOTH)
    stand_ins = StandIns(journal, before={stage: refuse(2, error)})
    async with conducts(store_url, stand_ins) as conducting:
        for retries in (0, 1):
            failed = await until(store, execution_id, finished)
            assert (failed.status, failed.stage) == (Status.FAILED, stage)
            assert failed.error_message == str(error)
            assert failed.results is not None and failed.retries == retries
            assert "purge" not in journal.lines()
            store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
            conducting.nudge()
            await until(store, execution_id, lambda e: e.status != Status.QUEUED)
        done = await until(store, execution_id, finished)
        assert (done.status, done.retries) == (Status.COMPLETED, 2)
        assert done.error_message is None
        lines = journal.lines()
        before = COMPUTED if stage == "upload" else [*COMPUTED, "upload"]
        assert [line for line in lines[2:] if line != "clean"] == [*before, *again]

        # Every attempt's own record goes with the execution.
        store.request_purge(WORKFLOW.name, execution_id)
        conducting.nudge()
        await comes_true(lambda: not store.list_executions(WORKFLOW.name))


async def test_what_failed_before_its_delivery_begins_anew(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = submit(store, BOTH)
    stand_ins = StandIns(
        journal, before={"describe_result": refuse(1, UploadFailed("package", "no disk"))}
    )
    async with conducts(store_url, stand_ins) as conducting:
        failed = await until(store, execution_id, finished)
        assert (failed.stage, failed.results) == ("package", None)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
        conducting.nudge()
        await until(store, execution_id, lambda e: e.status != Status.QUEUED)
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED
    assert journal.lines().count("member 0") == 2
    assert done.progress is not None and done.progress.members == (3,)


async def test_a_retry_begins_when_the_attempt_before_has_let_go(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    """What a failed attempt made is still being removed when it is tried again."""
    removed = asyncio.Event()

    async def purge(*_: Any) -> None:
        await removed.wait()

    execution_id = submit(store, Delivery())
    before = {"describe_result": refuse(1, DiskFull("package", "no disk")), "purge": purge}
    async with conducts(store_url, StandIns(journal, before=before)) as conducting:
        await until(store, execution_id, finished)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
        other = submit(store, Delivery())
        conducting.nudge()
        # Others do not wait for it.
        await until(store, other, finished)
        assert store.read(execution_id).status == Status.QUEUED
        removed.set()
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED
    lines = journal.lines()
    assert lines.count("purge") == 1
    assert lines.index("purge") < len(lines) - lines[::-1].index("create") - 1


async def test_an_upload_can_be_cancelled(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    execution_id = submit(store, BOTH)
    started = asyncio.Event()

    async def hang(_: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    async with conducts(store_url, StandIns(journal, before={"upload": hang})) as conducting:
        await asyncio.wait_for(started.wait(), LIMIT_S)
        store.request_cancel(WORKFLOW.name, execution_id)
        conducting.nudge()
        ended = await until(store, execution_id, finished)
        assert ended.status == Status.CANCELLED
        await comes_true(lambda: "withdraw" in journal.lines())
    assert "purge" in journal.lines()


async def test_chunks_are_uploaded_while_others_are_computed(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """It is stopped with the last member, and nothing depends on how it ends."""
    jobs, stopped = [], asyncio.Event()

    async def follow(job: Any) -> None:
        jobs.append(job)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def behind_it(_: Any) -> None:
        await asyncio.wait_for(started(), LIMIT_S)

    async def started() -> None:
        while not jobs:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def upload(_: Any) -> None:
        assert stopped.is_set()

    execution_id = submit(store, BOTH)
    before = {"ahead": follow, "member": behind_it, "upload": upload}
    async with conducts(store_url, StandIns(journal, before=before)):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    [job] = jobs
    assert (job.execution_id, job.container) == (execution_id, CONTAINER)
    assert not [line for line in journal.lines() if line.startswith("withdraw")]


async def test_without_uploads_ahead_all_is_uploaded_in_the_end(
    store: ConductorStore, store_url: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    refused = refuse(1, UploadFailed("upload", "make the container first"))
    execution_id = submit(store, BOTH)
    async with conducts(store_url, StandIns(journal, before={"ahead": refused})):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert "no more is uploaded ahead: make the container first" in caplog.text
    assert "upload" in journal.lines()


async def test_what_was_uploaded_ahead_goes_with_an_execution_that_fails(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    refused = refuse(1, StageFailed("inference", "the core returned NaN"))
    execution_id = submit(store, BOTH)
    async with conducts(store_url, StandIns(journal, before={"step": refused})):
        assert (await until(store, execution_id, finished)).status == Status.FAILED
        await comes_true(lambda: "withdraw" in journal.lines())
    assert journal.lines()[-2:] == ["purge", "withdraw"]


async def test_what_was_uploaded_ahead_is_removed_before_a_cancel_is_recorded(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """Or nobody would remove it if the Conductor died between the two."""
    execution_id, asked, found = submit(store, BOTH), asyncio.Event(), list[Status]()

    async def hang(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def look(_: Any) -> None:
        found.append(store.read(execution_id).status)

    before = {"ahead": hang, "step": hang, "withdraw": look}
    async with conducts(store_url, StandIns(journal, before=before)) as conducting:
        await asyncio.wait_for(asked.wait(), LIMIT_S)
        store.request_cancel(WORKFLOW.name, execution_id)
        conducting.nudge()
        await until(store, execution_id, finished)
    assert found == [Status.RUNNING]


async def test_no_execution_waits_for_what_is_withdrawn(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """Azure may be away, or the uploader's node; only the next attempt at the same one waits."""
    away, back = asyncio.Event(), asyncio.Event()

    async def hang(_: Any) -> None:
        away.set()
        await back.wait()

    refused = refuse(1, StageFailed("inference", "the core returned NaN"))
    stand_ins = StandIns(journal, before={"step": refused, "withdraw": hang})
    failed = submit(store, BOTH)
    async with conducts(store_url, stand_ins, max_running={WORKFLOW.name: 1}):
        assert (await until(store, failed, finished)).status == Status.FAILED
        await asyncio.wait_for(away.wait(), LIMIT_S)
        store.request_retry(WORKFLOW.name, failed, max_queued=100)
        another = submit(store, BOTH)
        assert (await until(store, another, finished)).status == Status.COMPLETED
        assert store.read(failed).status == Status.QUEUED
        back.set()
        assert (await until(store, failed, finished)).status == Status.COMPLETED


async def test_a_purge_and_a_stop_wait_for_no_withdrawal(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    stopped = asyncio.Event()

    async def hang(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    stand_ins = StandIns(journal, before={"member": never, "withdraw": hang})
    execution_id = submit(store, BOTH)
    async with conducts(store_url, stand_ins) as conducting:
        await comes_true(lambda: "begin 0" in journal.lines())
        store.request_cancel(WORKFLOW.name, execution_id)
        conducting.nudge()
        assert (await until(store, execution_id, finished)).status == Status.CANCELLED
        store.request_purge(WORKFLOW.name, execution_id)
        await comes_true(lambda: not is_there(store, execution_id))
    await asyncio.wait_for(stopped.wait(), LIMIT_S)


async def test_what_was_uploaded_whole_stays_when_the_execution_expires(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """Its record has no results any more by then, and the checksums may have been moved."""
    execution_id = submit(store, BOTH)
    expiring = RetentionOptions(keep_s=0.3, look_s=0.05, sweep_s=3600)
    async with conducts(store_url, StandIns(journal), housekeeping=expiring):
        await comes_true(lambda: store.read(execution_id).status == Status.EXPIRED)
        await comes_true(lambda: "purge" in journal.lines())
        store.request_purge(WORKFLOW.name, execution_id)
        await comes_true(lambda: not is_there(store, execution_id))
    assert "withdraw" not in journal.lines()


async def test_an_execution_that_is_delivered_holds_up_no_other(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    first, second = submit(store, BOTH), submit(store, BOTH)
    let_go = asyncio.Event()

    async def wait(job: Any) -> None:
        if job.execution_id == first:
            await let_go.wait()

    stand_ins = StandIns(journal, before={"upload": wait})
    async with conducts(store_url, stand_ins, max_running={WORKFLOW.name: 1}):
        await until(store, second, finished)
        assert store.read(first).status == Status.PENDING_RESULTS
        let_go.set()
        done = await until(store, first, finished)
    assert done.status == Status.COMPLETED


@contextmanager
def conducting_elsewhere(store_url: str, journal: Journal, **before: str) -> Iterator[None]:
    """Conduct in a process that does something before some calls, and is killed at the end."""
    functions = "".join(f"async def {call}(*_): {what}\n" for call, what in before.items())
    hooks = ", ".join(f"{call}={call}" for call in before)
    program = (
        "import asyncio, sys, tests.deployments.conductor.conducting_process as p\n"
        "from pathlib import Path\n"
        "from workflows.errors import IngestionFailed\n"
        "journal = p.Journal(Path(sys.argv[2]))\n"
        f"{functions}"
        f"stand_ins = p.StandIns(journal, before=dict({hooks}))\n"
        "asyncio.run(p.conducting(sys.argv[1], stand_ins).run())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, store_url, str(journal.path)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


HANG = "await asyncio.Event().wait()"


@pytest.mark.parametrize("call", ["upload", "register"])
@pytest.mark.parametrize("retried", [False, True])
async def test_a_conductor_that_dies_while_it_delivers_is_succeeded(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    call: str,
    retried: bool,
) -> None:
    execution_id = submit(store, BOTH)
    if retried:
        # Killed when it has told of the failure, but not DBOS: its successor takes it up again.
        refusal = f"raise IngestionFailed('{call}', 'no')"
        with conducting_elsewhere(store_url, journal, **{call: refusal, "clean": HANG}):
            await until(store, execution_id, finished)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
    hang = f"journal.note('hangs in {call}'); {HANG}"
    with conducting_elsewhere(store_url, journal, **{call: hang}):
        await until(store, execution_id, lambda _: f"hangs in {call}" in journal.lines())
    async with conducts(store_url, StandIns(journal)):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    lines = journal.lines()
    assert [
        lines.count(line) for line in ("member 0", "describe_result", "upload", "register")
    ] == [1] * 4
