"""Removing executions on request."""

from __future__ import annotations

import asyncio

from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import (
    TIMEOUT_S,
    WORKFLOW,
    conductor_loop,
    eventually,
    exists,
    finished,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns
from workflows import Status


async def test_purge_that_hangs_or_fails_delays_no_other_execution(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    purging, go_on = asyncio.Event(), asyncio.Event()

    async def hang_then_fail(_: str) -> None:
        purging.set()
        await asyncio.wait_for(go_on.wait(), TIMEOUT_S)
        raise OSError("Read-only file system")

    execution_id = submit(store)
    stand_ins = StandIns(journal, before={"purge": hang_then_fail})
    async with conductor_loop(store_url, stand_ins) as loop:
        await until(store, execution_id, finished)
        store.request_purge(WORKFLOW.name, execution_id)
        loop.nudge()
        await purging.wait()
        during = submit(store)
        assert (await until(store, during, finished)).status == Status.COMPLETED
        go_on.set()
        await asyncio.sleep(0.1)
        after = submit(store)
        assert (await until(store, after, finished)).status == Status.COMPLETED
    assert store.read(execution_id).purge_requested


async def test_purge_deletes_the_record(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    execution_id = submit(store)
    async with conductor_loop(store_url, StandIns(journal)) as loop:
        await until(store, execution_id, finished)
        store.request_purge(WORKFLOW.name, execution_id)
        loop.nudge()
        await eventually(lambda: not exists(store, execution_id))
    assert "purge" in journal.lines()
