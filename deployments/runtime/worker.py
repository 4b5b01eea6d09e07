"""Load a model once, and run one job at a time in its thread.

Serve frees the slot of a cancelled call while its thread still runs, so a replica has a lock of
its own, which is released only when the thread has stopped. Replicas accept two calls: the next
job starts while the last steps of the previous one are written.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any

from deployments.runtime.busy_clock import Activity, BusyClock
from deployments.runtime.failures import describe_error
from deployments.runtime.gpus import gpu_failure, has_gpu, hide_gpus
from deployments.runtime.log_context import ContextThreadPool, bridge_loguru
from deployments.runtime.metrics import RAY, Recorder
from deployments.runtime.priority import lower_priority
from deployments.runtime.worker_job import WorkerJob
from workflows.errors import ModelUnavailable, StaleConductor
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")

PROGRESS_INTERVAL_S = 0.25
TICK_S = 1.0
"""How often a lasting activity is counted."""
GRACE_S = 600.0
"""Longer than any step of a model: a thread that has not returned by then hangs in it."""


class ModelWorker:
    """Owns a model, the thread that runs it, and the lock on both.

    Without a GPU from Ray it hides all GPUs from this process.

    Parameters
    ----------
    name : str
        Name of the model in the settings.
    load : callable
        Returns the model; runs in the model's thread.
    kind : str
        What is loaded, for messages.
    grace_s : float, optional
        Seconds that a stopped job may take to return. A thread cannot be killed, so after that
        the process exits, and Serve starts another replica.
    gpu_failure : callable, optional
        Returns why the GPU can no longer be used by this process; called when a job has failed.
    end_process : callable, optional
        Ends this process with a status.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Any],
        *,
        kind: str = "model",
        grace_s: float = GRACE_S,
        recorder: Recorder = RAY,
        gpu_failure: Callable[[], str | None] = gpu_failure,
        end_process: Callable[[int], Any] = os._exit,
    ) -> None:
        self._name = name
        self._kind = kind
        self._load = load
        self._grace_s = grace_s
        self._gpu_failure = gpu_failure
        self._end_process = end_process
        self.device = "cuda" if has_gpu() else "cpu"
        if self.device == "cpu":
            hide_gpus()
            lower_priority()
        self.clock = BusyClock(name, self.device, recorder)
        self._ticking: asyncio.Task[None] | None = None
        self._thread = ContextThreadPool(1, name, libraries=True)
        self._lock = asyncio.Lock()
        self._newest_fence = 0
        self._running: WorkerJob | None = None
        self._model: Any = None
        self._failure: str | None = None

    @property
    def failure(self) -> str | None:
        """Why the model could not be loaded; None if it is loaded, or not yet tried."""
        return self._failure and f"{self._kind} {self._name} could not be loaded: {self._failure}"

    @property
    def is_busy(self) -> bool:
        """Whether a job runs, or the model is being loaded."""
        return self._lock.locked()

    async def start(self) -> None:
        """Load the model; an error is kept as `failure`, not raised."""
        loop = asyncio.get_running_loop()
        if self._ticking is None:
            self._ticking = loop.create_task(self._tick(), name="model-clock")
        try:
            with self.clock.during(Activity.LOADING):
                self._model = await loop.run_in_executor(self._thread, self._load)
            self._failure = None
        except Exception as error:
            failure = describe_error(error)
            # Logged once: loading is retried every few seconds.
            if failure != self._failure:
                logger.exception("%s %s could not be loaded", self._kind, self._name)
            self._failure = failure

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.clock.tick()

    async def model(self) -> Any:
        """Return the model; retries a load that failed.

        Raises
        ------
        ModelUnavailable
            If the model cannot be loaded.
        """
        if self._model is None:
            async with self._lock:
                if self._model is None:
                    await self.start()
        if self._model is None:
            raise ModelUnavailable(Stage.INFERENCE, self.failure or "")
        return self._model

    async def load_more(self, load: Callable[[Any], None]) -> None:
        """Call a function with the model in its thread, while no job runs."""
        model = await self.model()
        async with self._lock:
            with self.clock.during(Activity.LOADING):
                await asyncio.get_running_loop().run_in_executor(self._thread, load, model)

    def admit(self, fence: int) -> None:
        """Check the fencing token of a caller; a newer token stops the job of an older one.

        Raises
        ------
        StaleConductor
            If a newer token was seen.
        """
        if fence < self._newest_fence:
            raise StaleConductor(fence, self._newest_fence)
        self._newest_fence = fence
        if self._running is not None and self._running.fence < fence:
            self._running.stop()

    async def run(
        self, job: WorkerJob, work: Callable[[Any], None], finish: Callable[[], Any] | None = None
    ) -> AsyncGenerator[Any]:
        """Run a job in the model's thread, and yield its progress until it ends.

        Parameters
        ----------
        work : callable
            Called with the model, in its thread; calls the job's `check`.
        finish : callable, optional
            Returns a coroutine that waits until everything `work` handed over is written. The
            next job may use the model meanwhile.

        Yields
        ------
        Any
            `job.progress()`, whenever it changed, and at the end.

        Raises
        ------
        ExecutionCancelled
            If the job was stopped.
        """
        self.admit(job.fence)
        model = await self.model()
        async with self._lock:
            # The token may have been superseded during the wait.
            self.admit(job.fence)
            self._running = job
            job.during = self.clock.during
            loop = asyncio.get_running_loop()
            thread = loop.run_in_executor(self._thread, self._run_in_thread, work, model)
            try:
                async for progress in self._progress_until_done(thread, job):
                    yield progress
            finally:
                if not thread.done():
                    job.stop()
                await self._wait_stopped(thread, job)
                self._running = None
        if finish is not None:
            writes = asyncio.ensure_future(finish())
            try:
                async for progress in self._progress_until_done(writes, job):
                    yield progress
            finally:
                writes.cancel()
        job.done = True
        yield job.progress()

    def _run_in_thread(self, work: Callable[[Any], None], model: Any) -> None:
        bridge_loguru()
        with self.clock.during(Activity.BUSY):
            try:
                work(model)
            except Exception:
                if (failure := self._gpu_failure()) is not None:
                    self._exit(f"can no longer use its GPU: {failure}")
                raise

    async def _progress_until_done(
        self, future: asyncio.Future[Any], job: WorkerJob
    ) -> AsyncGenerator[Any]:
        latest = None
        while True:
            await asyncio.wait({future}, timeout=PROGRESS_INTERVAL_S)
            if future.done():
                future.result()
                return
            self._exit_if_overdue(job)
            if (progress := job.progress()) != latest:
                latest = progress
                yield progress

    async def _wait_stopped(self, future: asyncio.Future[Any], job: WorkerJob) -> None:
        """Wait until the thread has returned, even if this call is cancelled."""
        cancelled = False
        while not future.done():
            try:
                await asyncio.wait({future}, timeout=PROGRESS_INTERVAL_S)
                self._exit_if_overdue(job)
            except asyncio.CancelledError:
                cancelled = True
        if not future.cancelled():
            future.exception()
        if cancelled:
            raise asyncio.CancelledError

    def _exit_if_overdue(self, job: WorkerJob) -> None:
        if job.overdue_s > self._grace_s:
            self._exit(f"did not stop within {self._grace_s:g} s")

    def _exit(self, reason: str) -> None:
        """End this process; callers see a dead replica, and Serve starts another one."""
        logger.critical("%s %s %s; this process exits", self._kind, self._name, reason)
        self._end_process(1)
