"""Claiming executions and cancelling them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOS

from deployments.conductor.dbos_setup import sqlite_url
from deployments.results.messages import CompletedMembers
from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import executions
from tests.deployments.conductor.harness import (
    WORKFLOW,
    conductor_loop,
    eventually,
    finished,
    has_progress,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns, failing
from tests.deployments.store.records import on_both_databases_slowly
from workflows import Status
from workflows.dataset import Provenance
from workflows.delivery import Delivery, parse_container
from workflows.errors import DiskFull
from workflows.readiness import Ready

DELIVERY = Delivery(
    container=parse_container("https://weather.blob.core.windows.net/data/forecasts")
)


@on_both_databases_slowly
async def test_cancel_stops_running_members_and_lets_the_next_execution_run(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    execution_id = submit(store, n_steps=400)
    async with conductor_loop(
        store_url, StandIns(journal, step_s=0.05), max_running={WORKFLOW.name: 1}
    ) as loop:
        await until(store, execution_id, has_progress)
        waiting = submit(store, n_steps=1, n_samples=1)
        store.request_cancel(WORKFLOW.name, execution_id)
        loop.nudge()
        cancelled = await until(store, execution_id, finished)
        assert cancelled.status == Status.CANCELLED
        assert (await until(store, waiting, finished)).status == Status.COMPLETED
    assert {f"stopped {m}" for m in range(3)} <= set(journal.lines())
    assert not any(line.startswith("member 1") for line in journal.lines())


async def test_cancel_of_a_completed_execution_removes_nothing(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    async def cancel(execution_id: str) -> None:
        # As by a DELETE that was read as a request just before the results were recorded.
        with store.engine.begin() as connection:
            connection.execute(sa.update(executions).values(cancel_requested=True))
        loop.context.active[execution_id].task.cancel()
        await asyncio.sleep(0.1)

    execution_id = submit(store)
    async with conductor_loop(store_url, StandIns(journal, before={"clean": cancel})) as loop:
        await until(store, execution_id, finished)
        await eventually(lambda: execution_id not in loop.context.active)
        await loop.context.end_cancelled(execution_id)
    assert store.read(execution_id).status == Status.COMPLETED
    assert "clean" in journal.lines()
    assert "purge" not in journal.lines()


async def test_second_cancel_does_not_interrupt_the_cleanup(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    async def cancel_again(execution_id: str) -> None:
        loop.context.active[execution_id].task.cancel()
        await asyncio.sleep(0.1)

    execution_id = submit(store, n_steps=400)
    stand_ins = StandIns(journal, step_s=0.05, before={"purge": cancel_again})
    async with conductor_loop(store_url, stand_ins) as loop:
        await until(store, execution_id, has_progress)
        store.request_cancel(WORKFLOW.name, execution_id)
        loop.nudge()
        assert (await until(store, execution_id, finished)).status == Status.CANCELLED
    assert journal.lines()[-1] == "purge"


async def test_cancel_waits_for_files_that_are_being_created_and_removes_them(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    creating, go_on = asyncio.Event(), asyncio.Event()

    async def create_slowly(_: str) -> None:
        creating.set()
        await go_on.wait()

    execution_id = submit(store)
    stand_ins = StandIns(journal, before={"create": create_slowly})
    async with conductor_loop(store_url, stand_ins) as loop:
        await creating.wait()
        store.request_cancel(WORKFLOW.name, execution_id)
        loop.nudge()
        task = loop.context.active[execution_id].task
        await eventually(lambda: task.cancelling() > 0)
        assert "purge" not in journal.lines()
        go_on.set()
        assert (await until(store, execution_id, finished)).status == Status.CANCELLED
    assert [line for line in journal.lines() if line != "fetch"] == ["create", "purge"]


async def test_retry_is_claimed_after_the_cleanup_of_the_failed_attempt(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    cleaned_up = asyncio.Event()

    async def purge(*_: str) -> None:
        await cleaned_up.wait()

    execution_id = submit(store)
    hooks = {"describe_result": failing(1, DiskFull("package", "no disk")), "purge": purge}
    async with conductor_loop(store_url, StandIns(journal, before=hooks)) as loop:
        await until(store, execution_id, finished)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
        other = submit(store)
        loop.nudge()
        # Other executions do not wait for it.
        await until(store, other, finished)
        assert store.read(execution_id).status == Status.QUEUED
        cleaned_up.set()
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED
    lines = journal.lines()
    assert lines.count("purge") == 1
    assert lines.index("purge") < len(lines) - lines[::-1].index("create") - 1


async def test_execution_that_is_being_delivered_does_not_count_as_running(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
) -> None:
    first, second = submit(store, DELIVERY), submit(store, DELIVERY)
    go_on = asyncio.Event()

    async def wait(job: Any) -> None:
        if job.execution_id == first:
            await go_on.wait()

    stand_ins = StandIns(journal, before={"upload": wait})
    async with conductor_loop(store_url, stand_ins, max_running={WORKFLOW.name: 1}):
        await until(store, second, finished)
        assert store.read(first).status == Status.PENDING_RESULTS
        go_on.set()
        done = await until(store, first, finished)
    assert done.status == Status.COMPLETED


@on_both_databases_slowly
@pytest.mark.parametrize("cancel", [False, True])
async def test_execution_of_another_version_is_restarted_and_can_be_cancelled(
    store: ConductorStore, store_url: str, journal: Journal, cancel: bool
) -> None:
    running, delivering = submit(store), submit(store, DELIVERY)
    async with conductor_loop(store_url, StandIns(journal, before={"upload": forever}, step_s=0.3)):
        await until(store, delivering, lambda execution: execution.is_packaged)
        late = submit(store, n_steps=400)
        await until(store, late, has_progress)
        # The loop stops without waiting for them.
    # DBOS has replaced the event loop's executor by its own, and shut that down.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    begun_by_version(store_url, "2")
    if cancel:
        store.request_cancel(WORKFLOW.name, late)
    before = len(journal.lines())
    async with conductor_loop(store_url, StandIns(journal)):
        ended = {i: await until(store, i, finished) for i in (running, delivering, late)}
        await eventually(no_attempt_is_pending)
    assert ended[running].status == ended[delivering].status == Status.COMPLETED
    assert ended[late].status == (Status.CANCELLED if cancel else Status.COMPLETED)
    retries = [ended[i].retries for i in (running, delivering, late)]
    assert retries == [0, 1, 0 if cancel else 1]
    since = journal.lines()[before:]
    # What was described is only delivered; the other one is computed again, unless cancelled.
    assert since.count("upload") == 1
    assert since.count("create") == (0 if cancel else 1)


async def no_attempt_is_pending() -> bool:
    return await DBOS.list_workflows_async(status="PENDING") == []


async def forever(*_: Any) -> None:
    await asyncio.Event().wait()


def begun_by_version(store_url: str, version: str) -> None:
    """Record of all pending attempts that this version of the server began them."""
    is_sqlite = store_url.startswith("sqlite")
    engine = sa.create_engine(sqlite_url(store_url) if is_sqlite else store_url)
    table = "workflow_status" if is_sqlite else "dbos.workflow_status"
    with engine.begin() as connection:
        done = connection.execute(
            sa.text(f"UPDATE {table} SET application_version = :v WHERE status = 'PENDING'"),
            {"v": version},
        )
    assert done.rowcount == 2
    engine.dispose()


async def test_result_is_created_when_the_origins_of_its_values_are_known(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    answers = asyncio.Event()

    class Loading(StandIns):
        async def check_readiness(self, *_: Any) -> Ready:
            await answers.wait()
            return await super().check_readiness()

        async def create(self, plan: Any, execution_id: str, *rest: Any) -> CompletedMembers:
            provenance = Provenance.model_validate(rest[0])
            journal.note(f"origins {[origin.name for origin in provenance.origins]}")
            return await super().create(plan, execution_id)

    execution_id = submit(store)
    async with conductor_loop(store_url, Loading(journal)):
        await eventually(lambda: "fetch" in journal.lines())
        assert "create" not in journal.lines()
        answers.set()
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert "origins ['stand-in', 'stand-in']" in journal.lines()


async def test_retry_fetches_initial_conditions_after_the_result_is_created(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    async def create_slowly(_execution_id: str) -> None:
        await asyncio.sleep(0.2)

    execution_id = submit(store)
    hooks = {
        "describe_result": failing(1, DiskFull("package", "no disk")),
        "create": create_slowly,
    }
    async with conductor_loop(store_url, StandIns(journal, before=hooks)) as loop:
        await until(store, execution_id, finished)
        begun = len(journal.lines())
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
        loop.nudge()
        done = await until(store, execution_id, lambda e: finished(e) and e.retries == 1)
    assert done.status == Status.COMPLETED
    lines = journal.lines()[begun:]
    assert lines.index("create") < lines.index("fetch")
