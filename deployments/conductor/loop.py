"""Who conducts: the lease, the queue, and the watch over models and data sources."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, SetWorkflowID
from ray.serve.handle import DeploymentHandle

from deployments.conductor.attempts import attempt_id, remove_attempts
from deployments.conductor.context import Lives, superseded
from deployments.conductor.dbos_log import capture_dbos_log
from deployments.conductor.dbos_setup import postgres_engine, sqlite_url
from deployments.conductor.lease import lease_for
from deployments.conductor.member_scheduler import MemberScheduler
from deployments.conductor.metrics import ExecutionMetrics
from deployments.conductor.options import RetentionOptions
from deployments.conductor.readiness import ReadinessWatch
from deployments.conductor.retention import Retention
from deployments.runtime.log_context import bind_execution
from deployments.store.conductor_view import ConductorStore
from workflows.execution import FINISHED, Execution
from workflows.manifest import Manifest

logger = logging.getLogger("ray.serve")

EXECUTOR_ID = "conductor"
APPLICATION_VERSION = "1"
"""Pinned: by default it is a hash of the code, and an edit would orphan what runs."""

TICK_S = 1.0
"""How long a request can wait when its nudge was lost."""
LEASE_POLL_S = 0.25
PURGE_AGAIN_S = 10.0


class ConductorLoop:
    """Runs executions while it holds the lease, see `deployments.conductor.deployment`.

    Parameters
    ----------
    execute : callable
        The life of an execution, a DBOS workflow; gets its id, the number of earlier attempts
        and, if all that is left to do is their delivery, its results.
    deployments : dict of str to DeploymentHandle
        ``packager``, ``initial_conditions`` and every model, by name.
    components : dict of str to str
        Models and data sources to watch, and the deployment that serves each.
    max_running : mapping of str to int
        Executions that run at once, by workflow; of others one, so that it can fail: this
        server does not know them.
    replicas : mapping of str to int
        Replicas that each model has, or may get by autoscaling.
    drain_s : float
        What running steps get to end in when this process stops.
    in_turn : bool
        Whether models take turns on one GPU.
    metrics : LifeMetrics, optional
        Told of the queue and of every change of a record.
    housekeeping : HousekeepingOptions, optional
        When what has ended is removed.
    asleep : callable, optional
        See `ReadinessWatch`.
    """

    def __init__(
        self,
        execute: Callable[[str, int, Manifest | None], Coroutine[Any, Any, None]],
        deployments: dict[str, DeploymentHandle[Any]],
        components: dict[str, str],
        *,
        store_url: str,
        max_running: Mapping[str, int],
        drain_s: float,
        replicas: Mapping[str, int] | None = None,
        in_turn: bool = False,
        metrics: ExecutionMetrics | None = None,
        housekeeping: RetentionOptions | None = None,
        asleep: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self._execute = execute
        self._deployments = deployments
        self._max_running = max_running
        self._drain_s = drain_s
        self._store_url = store_url
        self._store = ConductorStore(store_url)
        self._lease = lease_for(self._store.engine)
        self._records: sa.Engine | None = None
        """DBOS's database, where DBOS does not open it by itself."""
        self._nudged = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._started: dict[str, str] = {}
        """What runs or is about to, with its workflow: a life begins a little after its start."""
        self._cancelling: set[str] = set()
        self._purging: dict[str, asyncio.Task[None]] = {}
        self._beside: list[asyncio.Task[None]] = []
        """What goes on beside the queue, and never ends by itself."""
        self._metrics = metrics or ExecutionMetrics()
        self.lives = Lives(
            self._store,
            deployments,
            self._ended,
            self._freed,
            metrics=self._metrics,
            turns=MemberScheduler(replicas or {}),
            in_turn=in_turn,
        )
        self._watch = ReadinessWatch(
            components, deployments, self._store, self.lives.write, self.lives.origins, asleep
        )
        self._housekeeping = Retention(
            self._store, deployments["packager"], self.lives, housekeeping or RetentionOptions()
        )

    async def run(self) -> None:
        """Wait for the lease, then conduct until `stop` is called."""
        try:
            # In threads: a database may be slow to answer, and Serve wants to hear that we live.
            while not await asyncio.to_thread(self._lease.try_acquire):
                if await self._stopped_within(LEASE_POLL_S):
                    return
            self.lives.fence = await asyncio.to_thread(self._store.issue_fence)
            logger.info("conducting with fencing token %s", self.lives.fence)
            await self._run_as_leader()
        finally:
            self._lease.release()
            self._stopped.set()

    async def _run_as_leader(self) -> None:
        """Conduct until `stop` is called; however it ends, no step runs any more."""
        claimed = await asyncio.to_thread(self._store.unfinished)
        # Before DBOS takes them up: one that ends at once must be among those that can end.
        self._started.update((e.execution_id, e.workflow) for e in claimed)
        try:
            self._launch()
            await self._reconcile(claimed)
            self._beside += map(asyncio.create_task, (self._watch.run(), self._housekeeping.run()))
            await self._conduct()
        finally:
            for task in (*self._beside, *self._purging.values()):
                task.cancel()
            await self._end_lives()
            self.lives.withdrawals.stop()
            await asyncio.to_thread(DBOS.destroy)
            if self._records is not None:
                self._records.dispose()

    def nudge(self) -> None:
        """Look at the store at once."""
        self._nudged.set()

    async def stop(self) -> None:
        """End: running steps get a moment, then what is unfinished is left to the successor."""
        self._stopping.set()
        self._nudged.set()
        await self._stopped.wait()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _launch(self) -> None:
        """Launch DBOS on this loop; what was pending is taken up again."""
        config: dict[str, Any] = {
            "name": "earth2serve",
            "application_version": APPLICATION_VERSION,
            "executor_id": EXECUTOR_ID,
            "log_level": "WARNING",
            "use_listen_notify": False,
        }
        if self._store.is_sqlite:
            config["system_database_url"] = sqlite_url(self._store_url)
        else:
            config["system_database_engine"] = self._records = postgres_engine(self._store_url)
        capture_dbos_log()
        DBOS(config=config)  # type: ignore[arg-type]
        DBOS.launch()

    async def _reconcile(self, claimed: Sequence[Execution]) -> None:
        """Take up executions whose workflow never began, and record what ended unsaid."""
        for execution in claimed:
            execution_id = execution.execution_id
            status = await DBOS.get_workflow_status_async(attempt_id(execution))
            if status is None:
                await self._start(execution)
            elif status.status in {"SUCCESS", "ERROR", "CANCELLED"}:
                self._started.pop(execution_id, None)
                # Taken up a moment ago, it may have ended by itself meanwhile.
                if (await asyncio.to_thread(self._store.read, execution_id)).status in FINISHED:
                    continue
                if execution.cancel_requested:
                    await self.lives.end_cancelled(execution_id)
                else:
                    await self.lives.end_failed(
                        execution_id, "the server was stopped before the outcome was recorded"
                    )

    async def _conduct(self) -> None:
        beat_at = -TICK_S
        while not self._stopping.is_set():
            self._nudged.clear()
            for task in self._beside:
                if task.done():
                    # With its error: whoever replaces this process watches again.
                    task.result()
            await self._cancel_requested()
            await self._claim()
            await self._purge_requested()
            if not await asyncio.to_thread(self._lease.held):
                superseded("the lease was lost")
            # Not at every nudge: a beat takes the write lock, for which submits wait.
            if time.monotonic() - beat_at >= TICK_S:
                await self.lives.write(self._store.beat)
                beat_at = time.monotonic()
                waiting = await asyncio.to_thread(self._store.waiting)
                self._metrics.show(waiting, self._max_running)
            try:
                await asyncio.wait_for(self._nudged.wait(), TICK_S)
            except TimeoutError:
                continue

    async def _claim(self) -> None:
        while not self._stopping.is_set():
            running = Counter(self._started.values())
            full = [name for name, n in running.items() if n >= self._max_running.get(name, 1)]
            if set(full) >= self._max_running.keys():
                # No write lock for nothing; who waits of other workflows fails a little later.
                return
            # What has failed may be tried again before all is removed that it made, here and in
            # its container: a life begins when that has ended, or it would remove what this one
            # writes.
            ending = [*self._started, *self.lives.running, *self.lives.withdrawals.running]
            execution = await self.lives.write(self._store.claim_next, full, ending)
            if execution is None:
                return
            self._metrics.begun(execution)
            await self._start(execution)

    async def _start(self, execution: Execution) -> None:
        self._started[execution.execution_id] = execution.workflow
        packaged = execution.results if execution.is_packaged else None
        with SetWorkflowID(attempt_id(execution)):
            await DBOS.start_workflow_async(
                self._execute, execution.execution_id, execution.retries, packaged
            )

    def _ended(self, execution_id: str) -> None:
        self._started.pop(execution_id, None)
        self._cancelling.discard(execution_id)
        self._nudged.set()

    def _freed(self, execution_id: str) -> None:
        """Let the next of its workflow begin: what is left of this one needs no replica."""
        self._started[execution_id] = ""
        self._nudged.set()

    async def _cancel_requested(self) -> None:
        for execution in await asyncio.to_thread(self._store.cancel_requests):
            execution_id = execution.execution_id
            if execution_id in self._cancelling:
                continue
            life = self.lives.running.get(execution_id)
            if life is not None:
                self._cancelling.add(execution_id)
                # Recorded first, so that no successor takes it up again; then at once here.
                await DBOS.cancel_workflow_async(attempt_id(execution))
                life.task.cancel()
            elif execution_id not in self._started:
                # It may have finished since the request was read.
                await self.lives.end_cancelled(execution_id)
            # Else it is about to begin, and looks for a request first.

    async def _purge_requested(self) -> None:
        for execution in await asyncio.to_thread(self._store.purge_requests):
            execution_id = execution.execution_id
            if execution_id in self.lives.running or execution_id in self._purging:
                continue
            # Not awaited: a million files take long to remove, and the queue goes on meanwhile.
            self._purging[execution_id] = asyncio.create_task(self._purge(execution))

    async def _purge(self, execution: Execution) -> None:
        execution_id = execution.execution_id
        bind_execution(execution_id, execution.workflow)
        try:
            await self._deployments["packager"].purge.remote(execution.workflow, execution_id)
            await self.lives.withdrawals.soon(execution)
            await remove_attempts(execution)
            await self.lives.write(self._store.remove, execution_id)
        except Exception:
            logger.exception("%s not purged, tried again later", execution_id)
            await asyncio.sleep(PURGE_AGAIN_S)
        finally:
            del self._purging[execution_id]

    async def _end_lives(self) -> None:
        """Give running lives a moment, then stop them where they are; they stay pending."""
        self.lives.closed = True
        tasks = {life.task for life in self.lives.running.values()}
        if not tasks:
            return
        _, unfinished = await asyncio.wait(tasks, timeout=self._drain_s)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)


_here: ConductorLoop | None = None
"""What this process conducts with; DBOS, too, is one per process."""


def conduct_here(conducting: ConductorLoop) -> None:
    """Make its lives what `here` gives in this process."""
    global _here
    _here = conducting


def here() -> Lives:
    """Give the lives that this process carries."""
    if _here is None:
        raise RuntimeError("this process does not conduct")
    return _here.lives
