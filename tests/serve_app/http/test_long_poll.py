"""Long polling: what wakes a request, and how often the store is read."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from serve_app.http.long_poll import ChangeWatcher, ExecutionState
from workflows.execution import Execution, Status


def execution(execution_id="exec_1_00000001", revision=0, status=Status.RUNNING):
    return Execution(
        execution_id=execution_id,
        workflow="w",
        status=status,
        parameters={},
        plan={},
        created_at=datetime.now(UTC),
        revision=revision,
    )


class States:
    """Stands in for the store; records each read."""

    def __init__(self) -> None:
        self.states: dict[str, ExecutionState] = {}
        self.reads: list[list[str]] = []
        self.error: Exception | None = None

    async def read(self, executions: Sequence[Execution]) -> dict[str, ExecutionState]:
        self.reads.append([e.execution_id for e in executions])
        if self.error:
            raise self.error
        return {e.execution_id: self.states[e.execution_id] for e in executions}

    def set(self, execution: Execution, revision: int | None, position: int | None = None) -> None:
        self.states[execution.execution_id] = ExecutionState(revision, position)


@pytest.fixture
def states():
    return States()


@pytest.fixture
async def watcher(states):
    watcher = ChangeWatcher(states.read, interval_s=0.01)
    yield watcher
    await watcher.close()


async def wait(watcher, awaited, position=None, timeout_s=5.0):
    start = time.monotonic()
    await watcher.wait(awaited, position, timeout_s)
    return time.monotonic() - start


async def test_a_new_revision_wakes_a_request(states, watcher):
    awaited = execution()
    states.set(awaited, revision=0)
    task = asyncio.create_task(wait(watcher, awaited))
    await asyncio.sleep(0.05)
    assert not task.done()
    states.set(awaited, revision=1)
    assert await task < 1


async def test_a_new_position_and_a_removal_wake_a_request(states, watcher):
    awaited = execution(status=Status.QUEUED)
    states.set(awaited, revision=0, position=2)
    assert await wait(watcher, awaited, position=3) < 1
    states.set(awaited, revision=None)
    assert await wait(watcher, awaited) < 1


async def test_a_request_times_out(states, watcher):
    awaited = execution()
    states.set(awaited, revision=0)
    assert 0.1 <= await wait(watcher, awaited, timeout_s=0.1) < 1
    assert watcher.pending == 0


async def test_one_read_serves_all_requests_and_none_happens_without_requests(states, watcher):
    awaited = execution()
    states.set(awaited, revision=0)
    await asyncio.gather(*(wait(watcher, awaited, timeout_s=0.1) for _ in range(50)))
    assert len(states.reads) <= 12
    assert set(map(tuple, states.reads)) == {(awaited.execution_id,)}
    reads = len(states.reads)
    await asyncio.sleep(0.1)
    assert len(states.reads) == reads


async def test_a_failed_read_fails_all_requests_but_not_the_next_one(states, watcher):
    awaited = execution()
    states.error = OSError("no store")
    outcomes = await asyncio.gather(
        *(wait(watcher, awaited) for _ in range(3)), return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["no store"] * 3
    states.error = None
    states.set(awaited, revision=1)
    assert await wait(watcher, awaited) < 1


async def test_a_cancelled_request_is_forgotten(states, watcher):
    awaited = execution()
    states.set(awaited, revision=0)
    task = asyncio.create_task(wait(watcher, awaited))
    await asyncio.sleep(0.03)
    assert watcher.pending == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert watcher.pending == 0


async def test_requests_beyond_the_limit_wait_only_briefly(states):
    states.set(execution(), 0)
    watcher = ChangeWatcher(states.read, max_pending=1, crowded_wait_s=0.0)
    async with asyncio.timeout(10):
        first = asyncio.create_task(watcher.wait(execution(), None, 60))
        await asyncio.sleep(0)
        assert watcher.pending == 1
        await watcher.wait(execution(), None, 60)
        assert not first.done()
        states.set(execution(), 1)
        await first
    await watcher.close()


async def test_a_crowd_is_woken_little_by_little(states):
    """Their answers and next requests must not keep the replica from everything else."""
    states.set(execution(), 0)
    ended: list[int] = []
    reads: list[int] = []

    async def read(awaited):
        reads.append(len(ended))
        return await states.read(awaited)

    watcher = ChangeWatcher(read, interval_s=0.0, max_woken=2)

    async def wait_for_change(number: int) -> None:
        await watcher.wait(execution(), None, 60)
        ended.append(number)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(wait_for_change(number))
        await asyncio.sleep(0)
        states.set(execution(), 1)
    assert ended == [0, 1, 2, 3, 4, 5]
    assert all(after - before <= 2 for before, after in zip(reads, reads[1:], strict=False))
    await watcher.close()
