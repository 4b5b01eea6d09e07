"""Removing what was uploaded of results that were never completed."""

from __future__ import annotations

import asyncio
from typing import Any

from deployments.conductor.options import RetentionOptions
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
from tests.deployments.conductor.stand_ins import Journal, StandIns, failing
from workflows import Status
from workflows.delivery import Delivery, parse_container
from workflows.errors import StageFailed

DELIVERY = Delivery(
    container=parse_container("https://weather.blob.core.windows.net/data/forecasts")
)


def deliver(store: ConductorStore) -> str:
    return submit(store, DELIVERY, n_samples=1, output_format="zarr")


async def test_failed_execution_withdraws_its_chunks(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    hook = failing(1, StageFailed("inference", "the core returned NaN"))
    execution_id = deliver(store)
    async with conductor_loop(store_url, StandIns(journal, before={"step": hook})):
        assert (await until(store, execution_id, finished)).status == Status.FAILED
        await eventually(lambda: "withdraw" in journal.lines())
    assert journal.lines()[-2:] == ["purge", "withdraw"]


async def test_chunks_are_withdrawn_before_a_cancel_is_recorded(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """A successor of a Conductor that died between the two would not withdraw them."""
    execution_id, asked, found = deliver(store), asyncio.Event(), list[Status]()

    async def hang(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def look(_: Any) -> None:
        found.append(store.read(execution_id).status)

    before = {"ahead": hang, "step": hang, "withdraw": look}
    async with conductor_loop(store_url, StandIns(journal, before=before)) as loop:
        await asyncio.wait_for(asked.wait(), TIMEOUT_S)
        store.request_cancel(WORKFLOW.name, execution_id)
        loop.nudge()
        await until(store, execution_id, finished)
    assert found == [Status.RUNNING]


async def test_only_a_retry_of_the_same_execution_waits_for_a_withdrawal(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    away, back = asyncio.Event(), asyncio.Event()

    async def hang(_: Any) -> None:
        away.set()
        await back.wait()

    hook = failing(1, StageFailed("inference", "the core returned NaN"))
    stand_ins = StandIns(journal, before={"step": hook, "withdraw": hang})
    failed = deliver(store)
    async with conductor_loop(store_url, stand_ins, max_running={WORKFLOW.name: 1}):
        assert (await until(store, failed, finished)).status == Status.FAILED
        await asyncio.wait_for(away.wait(), TIMEOUT_S)
        store.request_retry(WORKFLOW.name, failed, max_queued=100)
        another = deliver(store)
        assert (await until(store, another, finished)).status == Status.COMPLETED
        assert store.read(failed).status == Status.QUEUED
        back.set()
        assert (await until(store, failed, finished)).status == Status.COMPLETED


async def test_purge_and_stop_do_not_wait_for_a_withdrawal(
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
    execution_id = deliver(store)
    async with conductor_loop(store_url, stand_ins) as loop:
        await eventually(lambda: "begin 0" in journal.lines())
        store.request_cancel(WORKFLOW.name, execution_id)
        loop.nudge()
        assert (await until(store, execution_id, finished)).status == Status.CANCELLED
        store.request_purge(WORKFLOW.name, execution_id)
        await eventually(lambda: not exists(store, execution_id))
    await asyncio.wait_for(stopped.wait(), TIMEOUT_S)


async def test_complete_upload_is_kept_when_the_execution_expires(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """By then its record has no results that would say so, and the checksums may be elsewhere."""
    execution_id = deliver(store)
    expiring = RetentionOptions(keep_s=0.3, look_s=0.05, sweep_s=3600)
    async with conductor_loop(store_url, StandIns(journal), retention=expiring):
        await eventually(lambda: store.read(execution_id).status == Status.EXPIRED)
        await eventually(lambda: "purge" in journal.lines())
        store.request_purge(WORKFLOW.name, execution_id)
        await eventually(lambda: not exists(store, execution_id))
    assert "withdraw" not in journal.lines()
