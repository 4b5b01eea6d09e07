import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from serve_app.http.long_poll import ChangeWatcher, Seen
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


class Record:
    """What the store would say, and how often it was asked."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.looks: list[list[str]] = []
        self.failure: Exception | None = None

    async def look(self, executions: Sequence[Execution]) -> dict[str, Seen]:
        self.looks.append([e.execution_id for e in executions])
        if self.failure:
            raise self.failure
        return {e.execution_id: self.seen[e.execution_id] for e in executions}


@pytest.fixture
def record():
    return Record()


@pytest.fixture
async def watcher(record):
    watcher = ChangeWatcher(record.look, interval_s=0.01)
    yield watcher
    await watcher.close()


async def waiting(watcher, awaited, position=None, timeout_s=5.0):
    start = time.monotonic()
    await watcher.wait(awaited, position, timeout_s)
    return time.monotonic() - start


async def test_wakes_at_a_new_revision(record, watcher):
    awaited = execution()
    record.seen[awaited.execution_id] = Seen(0, None)
    task = asyncio.create_task(waiting(watcher, awaited))
    await asyncio.sleep(0.05)
    assert not task.done()
    record.seen[awaited.execution_id] = Seen(1, None)
    assert await task < 1


async def test_wakes_at_a_new_position_and_at_the_end_of_existence(record, watcher):
    awaited = execution(status=Status.QUEUED)
    record.seen[awaited.execution_id] = Seen(0, 2)
    assert await waiting(watcher, awaited, position=3) < 1
    record.seen[awaited.execution_id] = Seen(None, None)
    assert await waiting(watcher, awaited) < 1


async def test_gives_up_in_time(record, watcher):
    awaited = execution()
    record.seen[awaited.execution_id] = Seen(0, None)
    assert 0.1 <= await waiting(watcher, awaited, timeout_s=0.1) < 1
    assert watcher.waiting == 0


async def test_one_look_serves_all_and_none_is_made_for_nobody(record, watcher):
    awaited = execution()
    record.seen[awaited.execution_id] = Seen(0, None)
    await asyncio.gather(*(waiting(watcher, awaited, timeout_s=0.1) for _ in range(50)))
    assert len(record.looks) <= 12
    assert set(map(tuple, record.looks)) == {(awaited.execution_id,)}
    looks = len(record.looks)
    await asyncio.sleep(0.1)
    assert len(record.looks) == looks


async def test_a_failure_reaches_all_who_wait_and_the_next_is_served(record, watcher):
    awaited = execution()
    record.failure = OSError("no store")
    outcomes = await asyncio.gather(
        *(waiting(watcher, awaited) for _ in range(3)), return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["no store"] * 3
    record.failure = None
    record.seen[awaited.execution_id] = Seen(1, None)
    assert await waiting(watcher, awaited) < 1


async def test_who_goes_leaves_nothing_behind(record, watcher):
    awaited = execution()
    record.seen[awaited.execution_id] = Seen(0, None)
    task = asyncio.create_task(waiting(watcher, awaited))
    await asyncio.sleep(0.03)
    assert watcher.waiting == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert watcher.waiting == 0
