"""How executions begin and end in a process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import executions
from tests.deployments.conductor.harness import WORKFLOW, make_context
from tests.deployments.conductor.stand_ins import Handle, Journal, StandIns
from tests.deployments.store.records import usage
from workflows import Execution
from workflows.execution import Status


class FlakyStore(ConductorStore):
    """A store that fails a number of calls, as while its database restarts."""

    def __init__(self, url: str, failures: int) -> None:
        super().__init__(url)
        self.failures = failures

    def _maybe_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise sa.exc.OperationalError("…", {}, Exception("the database is starting up"))

    def read(self, execution_id: str) -> Execution:
        self._maybe_fail()
        return super().read(execution_id)

    def update(self, *args: Any, **values: Any) -> Execution:
        self._maybe_fail()
        return super().update(*args, **values)


async def test_short_outage_of_the_database_fails_nothing(
    store: ConductorStore, store_url: str, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    flaky = FlakyStore(store_url, 1)
    context, progress = make_context(flaky, fence)
    async with context.running(execution_id, 0) as plan:
        flaky.failures = 2
        await progress.note_written(execution_id, plan, 0, 1)
    recorded = store.read(execution_id)
    assert recorded.status == Status.RUNNING
    assert recorded.progress is not None
    assert recorded.progress.members == (1, 0, 0)


async def test_execution_that_is_stopped_during_an_outage_stays_pending(
    store: ConductorStore, store_url: str, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    flaky = FlakyStore(store_url, 0)
    context, _ = make_context(flaky, fence)
    # DBOS would record any other error as the outcome, and no successor would resume.
    with pytest.raises(asyncio.CancelledError):
        async with context.running(execution_id, 0):
            flaky.failures = 1
            raise asyncio.CancelledError
    assert store.read(execution_id).status == Status.RUNNING


async def test_no_execution_begins_once_the_context_is_closed(
    store: ConductorStore, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    context, _ = make_context(store, fence)
    await context.close(drain_s=0)
    with pytest.raises(asyncio.CancelledError):
        async with context.running(execution_id, 0):
            pytest.fail("it began")
    assert store.read(execution_id).stage is None


@pytest.mark.parametrize("is_removed", [True, False])
async def test_files_of_a_cancelled_execution_count_until_they_are_removed(
    store: ConductorStore, journal: Journal, claimed: tuple[str, int], is_removed: bool
) -> None:
    async def refuse(_: str) -> None:
        raise OSError("Read-only file system")

    execution_id, fence = claimed
    stand_ins = StandIns(journal, before={} if is_removed else {"purge": refuse})
    context, _ = make_context(store, fence, Handle(stand_ins))
    with store.engine.begin() as connection:
        connection.execute(sa.update(executions).values(disk_bytes=80, unwritten_bytes=30))
    store.request_cancel(WORKFLOW.name, execution_id)
    await context.end_cancelled(execution_id)
    assert store.read(execution_id).status == Status.CANCELLED
    assert usage(store) == ((0, 0) if is_removed else (50, 0))
    store.mark_files_removed(fence, execution_id)
    assert usage(store) == (0, 0)


async def test_failure_that_is_recorded_already_does_not_fail_the_next_attempt(
    store: ConductorStore, journal: Journal, claimed: tuple[str, int]
) -> None:
    """A successor recovers a failed attempt while its client has requested a retry."""
    execution_id, fence = claimed
    context, _ = make_context(store, fence, Handle(StandIns(journal)))
    store.update(fence, execution_id, status=Status.FAILED, error_message="first")
    store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
    await context.end_failed(execution_id, "first")
    assert store.read(execution_id).status == Status.QUEUED
    # The files of the attempt are removed all the same.
    assert journal.lines() == ["purge"]
