"""What the Conductor does around an execution's life: the lease, the queue, calls and records."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar, cast

from dbos import DBOS, SetWorkflowID
from dbos._error import DBOSMaxStepRetriesExceeded, DBOSWorkflowCancelledError
from ray.serve.handle import DeploymentHandle

from deployments._lease import lease_for
from deployments._provenance import software
from deployments._transient import as_stage_failure
from deployments.conducted_store import ConductedStore
from workflows.base import Plan
from workflows.errors import StageFailed, StaleConductor
from workflows.execution import FINISHED, Execution, Progress, Stage, Status

logger = logging.getLogger("ray.serve")

R = TypeVar("R")

EXECUTOR_ID = "conductor"
APPLICATION_VERSION = "1"
"""Pinned: by default it is a hash of the code, and an edit would orphan what runs."""

TICK_S = 1.0
"""How long a request can wait when its nudge was lost."""
LEASE_POLL_S = 0.25
PROGRESS_INTERVAL_S = 0.25
WATCH_INTERVAL_S = 10.0
WATCH_TIMEOUT_S = 30.0


class Conducting:
    """Runs executions while it holds the lease; see `deployments.conductor` for their life."""

    def __init__(
        self,
        execute: Callable[[str], Coroutine[Any, Any, None]],
        deployments: dict[str, DeploymentHandle[Any]],
        components: dict[str, str],
        *,
        store_url: str,
        max_running: int,
        drain_s: float,
    ) -> None:
        self._execute = execute
        self._deployments = deployments
        self._components = components
        self._max_running = max_running
        self._drain_s = drain_s
        self._store_url = store_url
        self._store = ConductedStore(store_url)
        self._lease = lease_for(self._store.engine)
        self._nudged = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._lives: dict[str, asyncio.Task[Any]] = {}
        self._started: set[str] = set()
        self._cancelling: set[str] = set()
        self._written: dict[str, list[int]] = {}
        self._told_at: dict[str, float] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}
        self.fence = 0

    # The process's own life.

    async def run(self) -> None:
        """Wait for the lease, then conduct until `stop` is called."""
        try:
            while not self._lease.try_acquire():
                if await self._stopped_within(LEASE_POLL_S):
                    return
            self.fence = await asyncio.to_thread(self._store.issue_fence)
            logger.info("conducting with fencing token %s", self.fence)
            self._launch()
            await self._reconcile()
            watch = asyncio.create_task(self._watch_components())
            try:
                await self._conduct()
            finally:
                watch.cancel()
                await self._end_lives()
        finally:
            if self.fence:
                await asyncio.to_thread(DBOS.destroy)
            self._lease.release()
            self._stopped.set()

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
            # A file of its own: its commits and ours do not wait for each other. DBOS leaves the
            # journal mode as it finds it, and WAL stays with the file.
            path = f"{self._store.engine.url.database}.dbos"
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            config["system_database_url"] = f"sqlite:///{path}"
        else:
            config["system_database_url"] = self._store_url
        DBOS(config=config)  # type: ignore[arg-type]
        DBOS.launch()

    async def _reconcile(self) -> None:
        """Take up executions that were claimed but whose workflow never began, or ended unsaid."""
        for execution in await asyncio.to_thread(self._store.unfinished):
            status = await DBOS.get_workflow_status_async(execution.execution_id)
            if status is None:
                await self._start(execution.execution_id)
            elif status.status in {"SUCCESS", "ERROR", "CANCELLED"}:
                await self._record(
                    execution.execution_id,
                    status=Status.CANCELLED if execution.cancel_requested else Status.FAILED,
                    error_message=None
                    if execution.cancel_requested
                    else "the server was stopped before the outcome was recorded",
                )
            else:
                self._started.add(execution.execution_id)

    async def _conduct(self) -> None:
        while not self._stopping.is_set():
            self._nudged.clear()
            await self._cancel_requested()
            await self._claim()
            await self._purge_requested()
            if not self._lease.held():
                superseded("the lease was lost")
            await self._fenced(self._store.beat)
            try:
                await asyncio.wait_for(self._nudged.wait(), TICK_S)
            except TimeoutError:
                continue

    async def _claim(self) -> None:
        while len(self._started) < self._max_running and not self._stopping.is_set():
            execution = await self._fenced(self._store.claim_next)
            if execution is None:
                return
            await self._start(execution.execution_id)

    async def _start(self, execution_id: str) -> None:
        self._started.add(execution_id)
        with SetWorkflowID(execution_id):
            await DBOS.start_workflow_async(self._execute, execution_id)

    async def _cancel_requested(self) -> None:
        for execution_id in await asyncio.to_thread(self._store.cancel_requests):
            if execution_id in self._cancelling:
                continue
            self._cancelling.add(execution_id)
            # Recorded first, so that a successor does not take it up again; then at once here.
            await DBOS.cancel_workflow_async(execution_id)
            life = self._lives.get(execution_id)
            if life is not None:
                life.cancel()
            else:
                await self._record(execution_id, status=Status.CANCELLED)

    async def _purge_requested(self) -> None:
        for execution in await asyncio.to_thread(self._store.purge_requests):
            if execution.execution_id in self._lives:
                continue
            await self._deployments["packager"].purge.remote(
                execution.workflow, execution.execution_id
            )
            if await DBOS.get_workflow_status_async(execution.execution_id) is not None:
                await DBOS.delete_workflow_async(execution.execution_id)
            await self._fenced(self._store.remove, execution.execution_id)

    async def _end_lives(self) -> None:
        """Give running lives a moment, then stop them where they are; they stay pending."""
        lives = set(self._lives.values())
        if lives:
            _, unfinished = await asyncio.wait(lives, timeout=self._drain_s)
            for life in unfinished:
                life.cancel()
            if unfinished:
                await asyncio.wait(unfinished)

    async def _watch_components(self) -> None:
        """Ask models and data sources what they are; their answers make up readiness."""
        pause = 0.5
        while True:
            await asyncio.gather(*(self._watch(name) for name in self._components))
            await asyncio.sleep(pause)
            pause = WATCH_INTERVAL_S

    async def _watch(self, component: str) -> None:
        deployment = self._deployments[self._components[component]]
        arguments = (component,) if self._components[component] != component else ()
        try:
            self._descriptions[component] = await asyncio.wait_for(
                _awaited(deployment.describe.remote(*arguments)), WATCH_TIMEOUT_S
            )
            ready, reason = True, None
        except TimeoutError:
            # Busy with work, or still loading: what was known stays.
            if component in self._descriptions:
                return
            ready, reason = False, f"{component} is still being loaded"
        except Exception as error:
            ready, reason = False, str(as_stage_failure("readiness", error))
            self._descriptions.pop(component, None)
        await self._fenced(self._store.set_readiness, component, ready=ready, reason=reason)

    # What an execution's life calls.

    @asynccontextmanager
    async def life_of(self, execution_id: str) -> AsyncIterator[Plan]:
        """Give an execution's plan, and record how its life ends if it does not end well."""
        self._lives[execution_id] = cast(asyncio.Task[Any], asyncio.current_task())
        self._started.add(execution_id)
        try:
            execution = await asyncio.to_thread(self._store.read, execution_id)
            if execution.cancel_requested:
                raise asyncio.CancelledError
            if execution.status == Status.FAILED:
                # Taken up again by a successor after the outcome was recorded.
                raise StageFailed(execution.stage or Stage.FINISH, execution.error_message or "")
            await self.enter(execution_id, Stage.INITIAL_CONDITIONS, execution=execution)
            yield Plan.model_validate(execution.plan)
        except (asyncio.CancelledError, DBOSWorkflowCancelledError):
            # Without a request it is this process that ends, and the successor goes on.
            if execution_id in self._cancelling or await self._is_cancelled(execution_id):
                await self._record(execution_id, status=Status.CANCELLED)
                await self._clean(execution_id)
            raise
        except Exception as error:
            logger.exception("execution failed", extra={"execution_id": execution_id})
            await self._record(execution_id, status=Status.FAILED, error_message=_reason(error))
            await self._clean(execution_id)
            raise
        finally:
            self._lives.pop(execution_id, None)
            self._started.discard(execution_id)
            self._cancelling.discard(execution_id)
            self._written.pop(execution_id, None)
            self._told_at.pop(execution_id, None)
            self._nudged.set()

    async def _is_cancelled(self, execution_id: str) -> bool:
        execution = await asyncio.to_thread(self._store.read, execution_id)
        return execution.cancel_requested

    async def _clean(self, execution_id: str) -> None:
        """Remove working files; that they stay behind must not change how an execution ended."""
        try:
            await self._deployments["packager"].clean.remote(execution_id)
        except Exception:
            logger.exception("working files stay behind", extra={"execution_id": execution_id})

    async def enter(
        self,
        execution_id: str,
        stage: Stage,
        status: Status | None = None,
        execution: Execution | None = None,
    ) -> None:
        """Record that an execution has come to a stage; a resumed one does not step back."""
        if execution is None:
            execution = await asyncio.to_thread(self._store.read, execution_id)
        order = list(Stage)
        if execution.stage is not None and order.index(execution.stage) >= order.index(stage):
            return
        await self._record(execution_id, stage=stage, status=status)

    async def complete(self, execution_id: str, results: dict[str, Any]) -> None:
        """Record the results and that all is done; twice is harmless."""
        execution = await asyncio.to_thread(self._store.read, execution_id)
        if execution.status in FINISHED:
            return
        ended = datetime.now(UTC)
        started = execution.started_at or execution.created_at
        results = {
            **results,
            "request_id": execution_id,
            "workflow_name": execution.workflow,
            "status": str(Status.COMPLETED),
            "created_at": execution.created_at.isoformat(),
            "completion_time": ended.isoformat(),
            "execution_time_seconds": (ended - started).total_seconds(),
            "parameters": execution.parameters,
            "storage_type": "server",
        }
        await self._record(
            execution_id, status=Status.COMPLETED, stage=Stage.FINISH, results=results
        )
        await self._clean(execution_id)

    def provenance(self, plan: Plan) -> dict[str, Any]:
        """Say what computes a plan: model, data source and software."""
        return {
            "model": self._descriptions.get(plan.model, {"name": plan.model}),
            "data_source": self._descriptions.get(plan.data_source, {"name": plan.data_source}),
            "software": software(),
        }

    async def call(
        self, stage: Stage, deployment: str, method: str, *args: Any, fenced: bool = True
    ) -> Any:
        """Call a deployment, with the fencing token as last argument.

        Raises
        ------
        StageFailed
            With the reason; `TransientFailure` if another try is worth it.
        """
        if fenced:
            args = (*args, self.fence)
        response = getattr(self._deployments[deployment], method).remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            raise self._failure(stage, error) from None

    async def stream(
        self, stage: Stage, deployment: str, method: str, *args: Any
    ) -> AsyncIterator[Any]:
        """Call a generator of a deployment; it is cancelled when the caller goes away.

        Raises
        ------
        StageFailed
            With the reason; `TransientFailure` if another try is worth it.
        """
        handle = self._deployments[deployment].options(stream=True)
        response = getattr(handle, method).remote(*args)
        try:
            async for item in response:
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise
        except Exception as error:
            raise self._failure(stage, error) from None

    @staticmethod
    def _failure(stage: str, error: Exception) -> Exception:
        failure = as_stage_failure(stage, error)
        if isinstance(failure, StaleConductor):
            superseded(str(failure))
        return failure

    def note_progress(self, execution_id: str, plan: Plan, member: int, written: int) -> None:
        """Keep how far a member is; the record is brought up to date a few times a second."""
        steps = self._written.setdefault(execution_id, [0] * len(plan.seeds))
        if steps[member] == written:
            return
        steps[member] = written
        now = time.monotonic()
        total = plan.n_times * len(plan.seeds)
        if now - self._told_at.get(execution_id, 0.0) < PROGRESS_INTERVAL_S and sum(steps) < total:
            return
        self._told_at[execution_id] = now
        progress = Progress(
            message=f"{sum(s == plan.n_times for s in steps)} of {len(steps)} members, "
            f"{sum(steps)} of {total} time steps written",
            current_step=sum(steps),
            total_steps=total,
            members=tuple(steps),
            steps_per_member=plan.n_times,
        )
        task = asyncio.create_task(self._record(execution_id, progress=progress))
        task.add_done_callback(_log_failure)

    async def _record(self, execution_id: str, **values: Any) -> None:
        await self._fenced(self._store.update, execution_id, **values)

    async def _fenced(self, method: Callable[..., R], *args: Any, **values: Any) -> R:
        """Call the store with our token, in a thread."""
        try:
            return await asyncio.to_thread(method, self.fence, *args, **values)
        except StaleConductor as error:
            superseded(str(error))


_here: Conducting | None = None
"""What this process conducts with; DBOS, too, is one per process."""


def conduct_here(conducting: Conducting) -> None:
    """Make it what `here` gives in this process."""
    global _here
    _here = conducting


def here() -> Conducting:
    """Give what this process conducts with."""
    if _here is None:
        raise RuntimeError("this process does not conduct")
    return _here


def superseded(reason: str) -> NoReturn:
    """End this process: somebody conducts with a newer token.

    Not an exception: a step that failed would be recorded, in the name of the successor.
    """
    logger.critical("superseded by another Conductor, this process ends: %s", reason)
    os._exit(1)


async def _awaited(response: Any) -> Any:
    return await response


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("progress was not recorded: %s", task.exception())


def _reason(error: Exception) -> str:
    """Say why an execution failed, in words for the person who asked for it."""
    if isinstance(error, DBOSMaxStepRetriesExceeded):
        return f"{error.errors[-1]} (given up after {len(error.errors)} attempts)"
    return str(error) or type(error).__name__
