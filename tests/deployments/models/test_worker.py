"""One model, one thread, one job at a time, whatever callers do."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from deployments.models.busy_clock import Doing
from deployments.models.messages import MemberProgress
from deployments.models.worker import Job, ModelWorker
from workflows.errors import ExecutionCancelled, ModelUnavailable, StaleConductor

MODEL = object()
STEP_S = 0.02


class Work:
    """Steps until it may end, and notes when it held the model.

    Parameters
    ----------
    deaf_s : float
        How long a step takes: it is not interrupted, like a kernel on a GPU.
    """

    def __init__(self, job: Job, n_steps: int = 10**6, deaf_s: float = STEP_S) -> None:
        self._job = job
        self._n_steps = n_steps
        self._deaf_s = deaf_s
        self.entered = threading.Event()
        self.spans: list[tuple[float, float]] = []
        self.written = 0
        job.progress = lambda: MemberProgress(written=self.written)

    def __call__(self, model: Any) -> None:
        assert model is MODEL
        began = time.monotonic()
        self.entered.set()
        try:
            for _ in range(self._n_steps):
                self._job.check()
                time.sleep(self._deaf_s)
                self.written += 1
        finally:
            self.spans.append((began, time.monotonic()))


async def nothing() -> None:
    """What there is to finish when nothing is written."""


@pytest.fixture
async def replica() -> ModelWorker:
    replica = ModelWorker("fcn3", lambda: MODEL)
    await replica.start()
    return replica


async def outcome(told: AsyncGenerator[MemberProgress]) -> list[int]:
    return [progress.written async for progress in told]


def started(replica: ModelWorker, work: Work, job: Job) -> asyncio.Task[list[int]]:
    return asyncio.create_task(outcome(replica.run(job, work, nothing)))


async def entered(work: Work) -> None:
    assert await asyncio.to_thread(work.entered.wait, 5), "the job did not start"


async def test_tells_how_far_it_is_and_ends_with_all_steps(replica: ModelWorker) -> None:
    job = Job(1)
    told = await started(replica, Work(job, n_steps=30), job)

    assert told == sorted(told)
    assert 0 < told[1] < 30
    assert told[-1] == 30


@pytest.mark.parametrize("deaf_s", [STEP_S, 0.3])
async def test_a_cancelled_job_holds_the_model_until_its_thread_has_stopped(
    replica: ModelWorker, deaf_s: float
) -> None:
    first_job, second_job = Job(1), Job(1)
    first, second = Work(first_job, deaf_s=deaf_s), Work(second_job, n_steps=2)
    first_task = started(replica, first, first_job)
    await entered(first)
    second_task = started(replica, second, second_job)
    await asyncio.sleep(0.01)

    first_task.cancel()
    # Callers that lose patience cancel again.
    await asyncio.sleep(0.01)
    first_task.cancel()
    await second_task

    (_, first_end), (second_begin, _) = *first.spans, *second.spans
    assert second_begin >= first_end
    with pytest.raises(asyncio.CancelledError):
        await first_task
    assert first.written < 100


async def test_a_stream_that_is_closed_has_stopped_its_thread(replica: ModelWorker) -> None:
    job = Job(1)
    work = Work(job, deaf_s=0.3)
    told = replica.run(job, work, nothing)
    await anext(told)
    await told.aclose()

    assert len(work.spans) == 1


async def test_a_stream_that_is_forgotten_gives_the_model_back(replica: ModelWorker) -> None:
    job, next_job = Job(1), Job(1)
    work = Work(job)
    told = replica.run(job, work, nothing)
    await anext(told)
    del told
    gc.collect()

    assert (await started(replica, Work(next_job, n_steps=1), next_job))[-1] == 1
    assert len(work.spans) == 1


async def test_a_job_that_is_cancelled_while_it_waits_never_starts(replica: ModelWorker) -> None:
    first_job, second_job = Job(1), Job(1)
    first, second = Work(first_job, n_steps=10), Work(second_job)
    first_task = started(replica, first, first_job)
    await entered(first)
    second_task = started(replica, second, second_job)
    await asyncio.sleep(0.01)
    second_task.cancel()

    assert (await first_task)[-1] == 10
    with pytest.raises(asyncio.CancelledError):
        await second_task
    assert not second.spans


async def test_a_newer_conductor_stops_the_work_of_an_older_one(replica: ModelWorker) -> None:
    old_job, waiting_job, new_job = Job(1), Job(1), Job(2)
    old, waiting, new = Work(old_job), Work(waiting_job), Work(new_job, n_steps=1)
    old_task = started(replica, old, old_job)
    await entered(old)
    waiting_task = started(replica, waiting, waiting_job)
    await asyncio.sleep(0.01)

    assert (await started(replica, new, new_job))[-1] == 1
    with pytest.raises(ExecutionCancelled):
        await old_task
    # It had been admitted, but was superseded before its turn came.
    with pytest.raises(StaleConductor):
        await waiting_task
    assert not waiting.spans
    assert new.spans[0][0] >= old.spans[0][1]


async def test_an_older_conductor_is_refused_and_disturbs_nobody(replica: ModelWorker) -> None:
    new_job, old_job = Job(2), Job(1)
    new, old = Work(new_job, n_steps=10), Work(old_job)
    new_task = started(replica, new, new_job)
    await entered(new)

    with pytest.raises(StaleConductor, match="1 was superseded by 2"):
        await started(replica, old, old_job)
    assert (await new_task)[-1] == 10
    assert not old.spans


async def test_a_job_that_fails_gives_the_model_back(replica: ModelWorker) -> None:
    def fail(model: Any) -> None:
        raise ValueError("the state exploded")

    with pytest.raises(ValueError, match="the state exploded"):
        await outcome(replica.run(Job(1), fail, nothing))
    job = Job(1)
    assert (await started(replica, Work(job, n_steps=1), job))[-1] == 1


async def test_a_job_ends_when_what_it_handed_over_is_written(replica: ModelWorker) -> None:
    written = 0

    async def write_on() -> None:
        nonlocal written
        for _ in range(4):
            await asyncio.sleep(0.2)
            written += 1

    job = Job(1)
    job.progress = lambda: MemberProgress(written=written)
    told = await outcome(replica.run(job, lambda model: None, write_on))

    assert told[-1] == 4
    assert any(0 < count < 4 for count in told)


async def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again() -> None:
    attempts = 0

    def load() -> Any:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise FileNotFoundError(f"no weights, attempt {attempts}")
        return MODEL

    replica = ModelWorker("fcn3", load)
    await replica.start()
    with pytest.raises(ModelUnavailable, match="model fcn3.*FileNotFoundError: .*attempt 2"):
        await replica.model()
    job = Job(1)
    assert (await started(replica, Work(job, n_steps=1), job))[-1] == 1
    assert attempts == 3


async def test_calls_at_once_load_a_model_once() -> None:
    attempts: list[Callable[[], None]] = []

    def load() -> Any:
        attempts.append(load)
        time.sleep(0.05)
        if len(attempts) == 1:
            raise OSError("not yet")
        return MODEL

    replica = ModelWorker("fcn3", load)
    await replica.start()
    assert await asyncio.gather(replica.model(), replica.model()) == [MODEL, MODEL]
    assert len(attempts) == 2


async def test_waiting_in_the_thread_ends_when_the_job_is_stopped() -> None:
    loop = asyncio.get_running_loop()
    job = Job(1)
    future = asyncio.run_coroutine_threadsafe(asyncio.Event().wait(), loop)
    waiting = asyncio.create_task(asyncio.to_thread(job.wait_for, future, Doing.WRITING))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    job.stop()

    with pytest.raises(ExecutionCancelled):
        await waiting
    assert future.cancelled()


async def test_waiting_in_the_thread_gives_what_the_loop_gave() -> None:
    loop = asyncio.get_running_loop()
    job = Job(1)

    async def give(value: int | Exception) -> int:
        if isinstance(value, Exception):
            raise value
        return value

    def wait(value: int | Exception) -> int:
        return job.wait_for(asyncio.run_coroutine_threadsafe(give(value), loop), Doing.WRITING)

    assert await asyncio.to_thread(wait, 3) == 3
    with pytest.raises(OSError, match="disk"):
        await asyncio.to_thread(wait, OSError("disk"))
