"""One job at a time in the thread of a model, even when callers cancel or go away."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from deployments.models.messages import MemberProgress
from deployments.runtime.busy_clock import Activity
from deployments.runtime.metrics import MODEL_SECONDS
from deployments.runtime.worker import ModelWorker
from deployments.runtime.worker_job import WorkerJob
from tests.measured import Measured
from workflows.errors import ExecutionCancelled, ModelUnavailable, StaleConductor

MODEL = object()
STEP_S = 0.02


class Work:
    """Takes steps until it is stopped, and records when it held the model.

    Parameters
    ----------
    step_s : float
        Duration of a step, which cannot be interrupted, like a kernel on a GPU.
    """

    def __init__(self, job: WorkerJob, n_steps: int = 10**6, step_s: float = STEP_S) -> None:
        self._job = job
        self._n_steps = n_steps
        self._step_s = step_s
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
                time.sleep(self._step_s)
                self.written += 1
        finally:
            self.spans.append((began, time.monotonic()))


async def nothing() -> None:
    """Finish a job that writes nothing."""


@pytest.fixture
async def worker() -> ModelWorker:
    worker = ModelWorker("fcn3", lambda: MODEL)
    await worker.start()
    return worker


async def outcome(updates: AsyncGenerator[MemberProgress]) -> list[int]:
    return [progress.written async for progress in updates]


def started(worker: ModelWorker, work: Work, job: WorkerJob) -> asyncio.Task[list[int]]:
    return asyncio.create_task(outcome(worker.run(job, work, nothing)))


async def entered(work: Work) -> None:
    assert await asyncio.to_thread(work.entered.wait, 5), "the job did not start"


async def test_progress_grows_and_ends_with_all_steps(worker: ModelWorker) -> None:
    job = WorkerJob(1)
    written = await started(worker, Work(job, n_steps=30), job)

    assert written == sorted(written)
    assert 0 < written[1] < 30
    assert written[-1] == 30


@pytest.mark.parametrize("step_s", [STEP_S, 0.3])
async def test_a_cancelled_job_holds_the_model_until_its_thread_has_stopped(
    worker: ModelWorker, step_s: float
) -> None:
    first_job, second_job = WorkerJob(1), WorkerJob(1)
    first, second = Work(first_job, step_s=step_s), Work(second_job, n_steps=2)
    first_task = started(worker, first, first_job)
    await entered(first)
    second_task = started(worker, second, second_job)
    await asyncio.sleep(0.01)

    first_task.cancel()
    # Impatient callers cancel again.
    await asyncio.sleep(0.01)
    first_task.cancel()
    await second_task

    (_, first_end), (second_begin, _) = *first.spans, *second.spans
    assert second_begin >= first_end
    with pytest.raises(asyncio.CancelledError):
        await first_task
    assert first.written < 100


async def test_closing_a_stream_waits_for_its_thread(worker: ModelWorker) -> None:
    job = WorkerJob(1)
    work = Work(job, step_s=0.3)
    updates = worker.run(job, work, nothing)
    await anext(updates)
    await updates.aclose()

    assert len(work.spans) == 1


async def test_garbage_collection_of_a_stream_releases_the_model(worker: ModelWorker) -> None:
    job, next_job = WorkerJob(1), WorkerJob(1)
    work = Work(job)
    updates = worker.run(job, work, nothing)
    await anext(updates)
    del updates
    gc.collect()

    assert (await started(worker, Work(next_job, n_steps=1), next_job))[-1] == 1
    assert len(work.spans) == 1


async def test_a_job_that_is_cancelled_while_it_waits_never_starts(worker: ModelWorker) -> None:
    first_job, second_job = WorkerJob(1), WorkerJob(1)
    first, second = Work(first_job, n_steps=10), Work(second_job)
    first_task = started(worker, first, first_job)
    await entered(first)
    second_task = started(worker, second, second_job)
    await asyncio.sleep(0.01)
    second_task.cancel()

    assert (await first_task)[-1] == 10
    with pytest.raises(asyncio.CancelledError):
        await second_task
    assert not second.spans


async def test_a_newer_conductor_stops_the_work_of_an_older_one(worker: ModelWorker) -> None:
    old_job, waiting_job, new_job = WorkerJob(1), WorkerJob(1), WorkerJob(2)
    old, waiting, new = Work(old_job), Work(waiting_job), Work(new_job, n_steps=1)
    old_task = started(worker, old, old_job)
    await entered(old)
    waiting_task = started(worker, waiting, waiting_job)
    await asyncio.sleep(0.01)

    assert (await started(worker, new, new_job))[-1] == 1
    with pytest.raises(ExecutionCancelled):
        await old_task
    # It was admitted, but superseded while it waited for the model.
    with pytest.raises(StaleConductor):
        await waiting_task
    assert not waiting.spans
    assert new.spans[0][0] >= old.spans[0][1]


async def test_an_older_conductor_is_refused_and_stops_nothing(worker: ModelWorker) -> None:
    new_job, old_job = WorkerJob(2), WorkerJob(1)
    new, old = Work(new_job, n_steps=10), Work(old_job)
    new_task = started(worker, new, new_job)
    await entered(new)

    with pytest.raises(StaleConductor, match="1 was superseded by 2"):
        await started(worker, old, old_job)
    assert (await new_task)[-1] == 10
    assert not old.spans


async def test_a_failed_job_releases_the_model(worker: ModelWorker) -> None:
    def fail(model: Any) -> None:
        raise ValueError("the state exploded")

    with pytest.raises(ValueError, match="the state exploded"):
        await outcome(worker.run(WorkerJob(1), fail, nothing))
    job = WorkerJob(1)
    assert (await started(worker, Work(job, n_steps=1), job))[-1] == 1


async def test_a_job_ends_after_its_steps_are_written(worker: ModelWorker) -> None:
    written = 0

    async def write_remaining() -> None:
        nonlocal written
        for _ in range(4):
            await asyncio.sleep(0.2)
            written += 1

    job = WorkerJob(1)
    job.progress = lambda: MemberProgress(written=written)
    updates = await outcome(worker.run(job, lambda model: None, write_remaining))

    assert updates[-1] == 4
    assert any(0 < count < 4 for count in updates)


async def test_a_failed_load_is_reported_and_retried() -> None:
    attempts = 0

    def load() -> Any:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise FileNotFoundError(f"no weights, attempt {attempts}")
        return MODEL

    worker = ModelWorker("fcn3", load)
    await worker.start()
    with pytest.raises(ModelUnavailable, match="model fcn3.*FileNotFoundError: .*attempt 2"):
        await worker.model()
    job = WorkerJob(1)
    assert (await started(worker, Work(job, n_steps=1), job))[-1] == 1
    assert attempts == 3


async def test_concurrent_calls_load_a_model_once() -> None:
    attempts: list[Callable[[], None]] = []

    def load() -> Any:
        attempts.append(load)
        time.sleep(0.05)
        if len(attempts) == 1:
            raise OSError("not yet")
        return MODEL

    worker = ModelWorker("fcn3", load)
    await worker.start()
    assert await asyncio.gather(worker.model(), worker.model()) == [MODEL, MODEL]
    assert len(attempts) == 2


async def test_loading_is_counted_while_it_lasts() -> None:
    measured = Measured()

    def load() -> object:
        time.sleep(1.5)
        # Counted by the worker's own tick.
        assert measured.total(MODEL_SECONDS, state=Activity.LOADING) > 0.9
        return object()

    worker = ModelWorker("fcn3", load, recorder=measured)
    await worker.start()
    assert worker.failure is None
    assert 1.5 <= measured.total(MODEL_SECONDS, state=Activity.LOADING)


async def test_the_process_ends_if_its_gpu_is_lost() -> None:
    ended: list[int] = []
    lost: list[str] = []
    worker = ModelWorker(
        "fcn3",
        lambda: MODEL,
        gpu_failure=lambda: lost[-1] if lost else None,
        end_process=ended.append,
    )
    await worker.start()

    def diverge(model: Any) -> None:
        raise RuntimeError("the model has diverged")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="diverged"):
            await outcome(worker.run(WorkerJob(1), diverge, nothing))
    assert ended == []

    lost.append("AcceleratorError: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="diverged"):
        await outcome(worker.run(WorkerJob(1), diverge, nothing))
    assert ended == [1]


async def test_the_process_ends_if_a_stopped_job_hangs() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(status: int) -> None:
        loop.call_soon_threadsafe(ended.set)

    worker = ModelWorker("fcn3", lambda: MODEL, grace_s=0.1, end_process=end)
    await worker.start()
    job, released = WorkerJob(1), threading.Event()
    entered = threading.Event()

    def hang(model: Any) -> None:
        entered.set()
        released.wait()

    task = asyncio.create_task(outcome(worker.run(job, hang, nothing)))
    assert await asyncio.to_thread(entered.wait, 5)
    assert not ended.is_set()
    task.cancel()
    await asyncio.wait_for(ended.wait(), 10)
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
