"""What every replica with a model does: load it once, and run one job at a time in one thread.

Serve frees the slot of a cancelled call while its thread still runs, so the lock is ours: it is
given back only when the thread has really stopped. Replicas accept two calls, so that the next
job is at hand when one ends, and begins while the last steps of the one before are written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, aclosing, closing, nullcontext
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.models.busy_clock import BusyClock, Doing
from deployments.models.messages import MemberProgress
from deployments.models.write_window import WriteWindow
from deployments.runtime.failures import in_words
from deployments.runtime.log_context import Threads, bridge_loguru
from workflows.errors import ExecutionCancelled, ModelUnavailable, StaleConductor
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")

R = TypeVar("R")

PROGRESS_INTERVAL_S = 0.25
STOP_INTERVAL_S = 0.1
TICK_S = 1.0
"""How often what a model does is counted while it goes on."""


class Job:
    """One job in the model's thread: how to stop it, and how far it is.

    Parameters
    ----------
    fence : int
        Token of the Conductor that asked for it.
    """

    def __init__(self, fence: int) -> None:
        self.fence = fence
        self.during: Callable[[Doing], AbstractContextManager[None]] = lambda _: nullcontext()
        """Counts what a block takes as something else than what is around it."""
        self.progress: Callable[[], Any] = lambda: None
        """Says how far it is; told when it changes."""
        self.done = False
        """True when the thread has ended and all is written."""
        self._stop = threading.Event()
        self._stopped_at: float | None = None

    def stop(self) -> None:
        """Ask the thread to stop before its next step."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
        self._stop.set()

    @property
    def overdue_s(self) -> float:
        """Seconds since it was asked to stop; 0 if it was not."""
        return 0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at

    def check(self) -> None:
        """Raise between two steps if the job shall stop.

        Raises
        ------
        ExecutionCancelled
            If `stop` was called.
        """
        if self._stop.is_set():
            raise ExecutionCancelled("stopped between two steps")

    def wait_for(self, future: Future[R], doing: Doing) -> R:
        """Wait in the thread for what the event loop does, unless the job shall stop.

        Parameters
        ----------
        doing : Doing
            What the time is counted as.

        Raises
        ------
        ExecutionCancelled
            If `stop` was called; the future is cancelled then.
        """
        with self.during(doing):
            while not wait({future}, timeout=STOP_INTERVAL_S).done:
                if self._stop.is_set():
                    future.cancel()
        self.check()
        return future.result()


class ModelWorker:
    """Owns a model, the thread that runs it and the lock on both.

    Parameters
    ----------
    name : str
        The model's name in the settings.
    load : callable
        Gives the model; runs in the model's thread.
    what : str
        What is loaded, for messages.
    grace_s : float, optional
        What a job's thread gets to end in when it shall stop. A thread cannot be ended from
        outside, so the process is, and Serve starts another. Without it the thread is waited for.
    clock : ModelClock, optional
        Counts what the thread does.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Any],
        *,
        what: str = "model",
        grace_s: float | None = None,
        clock: BusyClock | None = None,
    ) -> None:
        self._name = name
        self._what = what
        self._load = load
        self._grace_s = grace_s
        self.clock = clock or BusyClock(name, "cpu")
        """Counts what the thread does."""
        self._ticking: asyncio.Task[None] | None = None
        self._thread = Threads(1, name, libraries=True)
        self._lock = asyncio.Lock()
        self._newest_fence = 0
        self._running: Job | None = None
        self._model: Any = None
        self._failure: str | None = None

    @property
    def failure(self) -> str | None:
        """Say why it could not be loaded; None if it is, or was not tried yet."""
        return self._failure and f"{self._what} {self._name} could not be loaded: {self._failure}"

    @property
    def is_busy(self) -> bool:
        """Whether a job runs, or the model is being loaded."""
        return self._lock.locked()

    async def start(self) -> None:
        """Load the model; a failure is kept as the reason why it cannot be used."""
        loop = asyncio.get_running_loop()
        if self._ticking is None:
            self._ticking = loop.create_task(self._tick(), name="model-clock")
        try:
            with self.clock.during(Doing.LOADING):
                self._model = await loop.run_in_executor(self._thread, self._load)
            self._failure = None
        except Exception as error:
            failure = in_words(error)
            # Once: it is tried again every few seconds.
            if failure != self._failure:
                logger.exception("%s %s could not be loaded", self._what, self._name)
            self._failure = failure

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.clock.tick()

    async def model(self) -> Any:
        """Give the model; tries again to load one that failed.

        Raises
        ------
        ModelUnavailable
            If it cannot be loaded.
        """
        if self._model is None:
            async with self._lock:
                if self._model is None:
                    await self.start()
        if self._model is None:
            raise ModelUnavailable(Stage.INFERENCE, self.failure or "")
        return self._model

    async def between_jobs(self, work: Callable[[Any], None]) -> None:
        """Load something for the model in its thread, while no job runs."""
        model = await self.model()
        async with self._lock:
            with self.clock.during(Doing.LOADING):
                await asyncio.get_running_loop().run_in_executor(self._thread, work, model)

    def admit(self, fence: int) -> None:
        """Check a caller's fencing token; a newer one stops the work of its predecessor.

        Raises
        ------
        StaleConductor
            If a newer token was seen.
        """
        if fence < self._newest_fence:
            raise StaleConductor(f"token {fence} was superseded by {self._newest_fence}")
        self._newest_fence = fence
        if self._running is not None and self._running.fence < fence:
            self._running.stop()

    async def run(
        self, job: Job, work: Callable[[Any], None], finish: Callable[[], Any] | None = None
    ) -> AsyncGenerator[Any]:
        """Run a job in the model's thread, and tell how far it is until it ends.

        Parameters
        ----------
        job : Job
            Watched by `work` through `Job.check`.
        work : callable
            Called with the model in its thread.
        finish : callable, optional
            Gives a coroutine that waits until what `work` handed over is written.

        Yields
        ------
        Any
            What `Job.progress` gives, when it has changed and at the end.

        Raises
        ------
        ExecutionCancelled
            If the job was stopped.
        """
        self.admit(job.fence)
        model = await self.model()
        async with self._lock:
            # The token may have been superseded while this call waited.
            self.admit(job.fence)
            self._running = job
            job.during = self.clock.during
            thread = asyncio.get_running_loop().run_in_executor(
                self._thread, self._counted, work, model
            )
            try:
                async for progress in self._until_done(thread, job):
                    yield progress
            finally:
                if not thread.done():
                    job.stop()
                await self._settled(thread, job)
                self._running = None
        if finish is not None:
            # The next job has the model meanwhile.
            writes = asyncio.ensure_future(finish())
            try:
                async for progress in self._until_done(writes, job):
                    yield progress
            finally:
                writes.cancel()
        job.done = True
        yield job.progress()

    def _counted(self, work: Callable[[Any], None], model: Any) -> None:
        bridge_loguru()
        with self.clock.during(Doing.BUSY):
            work(model)

    async def _until_done(self, future: asyncio.Future[Any], job: Job) -> AsyncGenerator[Any]:
        told = None
        while True:
            await asyncio.wait({future}, timeout=PROGRESS_INTERVAL_S)
            if future.done():
                future.result()
                return
            self._check_patience(job)
            if (progress := job.progress()) != told:
                told = progress
                yield progress

    async def _settled(self, future: asyncio.Future[Any], job: Job) -> None:
        """Wait for a thread's end, whatever cancels this call meanwhile."""
        interrupted = False
        while not future.done():
            try:
                await asyncio.wait({future}, timeout=PROGRESS_INTERVAL_S)
                self._check_patience(job)
            except asyncio.CancelledError:
                interrupted = True
        if not future.cancelled():
            future.exception()
        if interrupted:
            raise asyncio.CancelledError

    def _check_patience(self, job: Job) -> None:
        if self._grace_s is not None and job.overdue_s > self._grace_s:
            logger.critical(
                "%s %s has not stopped within %g s, this process ends",
                self._what,
                self._name,
                self._grace_s,
            )
            os._exit(1)


def _replica_name() -> str | None:
    """Give Serve's name of this replica; None outside of Serve."""
    try:
        return serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return None


async def written_steps(
    replica: ModelWorker,
    job: Job,
    steps: Callable[[Any, Job], Generator[NDArray[np.float32]]],
    window: WriteWindow,
    what: str = "forecast",
) -> AsyncGenerator[MemberProgress]:
    """Run steps in the model's thread and have each written; tells how many are.

    Parameters
    ----------
    steps : callable
        Generator of the fields of each step, called with the model and the job.
    window : StepWindow
        Has them written; the first of them follows on what it says is on disk.
    what : str
        What they are made for, as a label of metrics.

    Raises
    ------
    ExecutionCancelled
        If the job was stopped.
    """
    loop = asyncio.get_running_loop()
    name, first = _replica_name(), window.written
    job.progress = lambda: MemberProgress(written=window.written, first=first, replica=name)

    def work(model: Any) -> None:
        with closing(steps(model, job)) as given:
            for index, fields in enumerate(replica.clock.steps(given, what), first):
                job.check()
                put = asyncio.run_coroutine_threadsafe(window.put(index, fields), loop)
                job.wait_for(put, Doing.WRITING)

    try:
        # Closed here, not by the garbage collector: the thread must have stopped by then.
        async with aclosing(replica.run(job, work, window.close)) as told:
            async for progress in told:
                yield progress
    finally:
        await window.abandon()
