"""What the steps of an execution's life use: calls to deployments, records, progress."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

import sqlalchemy as sa
from dbos._error import DBOSMaxStepRetriesExceeded, DBOSWorkflowCancelledError
from ray.serve.handle import DeploymentHandle

from deployments.conductor.cleanup import Withdrawals, best_effort_cleanup
from deployments.conductor.dbos_log import log_cancelled, log_completed, log_failure
from deployments.conductor.member_scheduler import MemberScheduler
from deployments.conductor.metrics import ExecutionMetrics
from deployments.conductor.progress import Life, ProgressTracker, written_before
from deployments.models.messages import MemberJob, MemberProgress
from deployments.runtime.failures import as_stage_failure
from deployments.runtime.log_context import bind_execution, execution_bound, set_stage
from deployments.runtime.retries import retry_on_db_outage
from deployments.runtime.tasks import shield
from deployments.runtime.versions import software
from deployments.store.conductor_view import ConductorStore
from workflows.base import Plan
from workflows.custom import CustomPlan, is_custom
from workflows.dataset import Origin
from workflows.errors import DiskFull, StageFailed, StaleConductor
from workflows.execution import FINISHED, Execution, Progress, Stage, Status
from workflows.manifest import Manifest

logger = logging.getLogger("ray.serve")

R = TypeVar("R")


class Lives:
    """The executions that this process carries, and all that their steps need.

    Parameters
    ----------
    store : ConductedStore
    deployments : dict of str to DeploymentHandle
        ``packager``, ``initial_conditions`` and every model, by name.
    ended : callable
        Told the id of every life that ends here.
    freed : callable
        Told the id of an execution that needs its replica no more, before it ends.
    metrics : LifeMetrics
        Told every change of a record.
    turns : FairTurns, optional
        At the models; by default each has one replica.
    in_turn : bool
        Whether models take turns on one GPU.
    """

    def __init__(
        self,
        store: ConductorStore,
        deployments: dict[str, DeploymentHandle[Any]],
        ended: Callable[[str], None],
        freed: Callable[[str], None] = lambda _: None,
        *,
        metrics: ExecutionMetrics | None = None,
        turns: MemberScheduler | None = None,
        in_turn: bool = False,
    ) -> None:
        self.fence = 0
        """Our token; goes along with every call that changes something."""
        self.origins: dict[str, Origin] = {}
        """Origins of the models and data sources that are ready, by name."""
        self.running: dict[str, Life] = {}
        self.removing: dict[str, asyncio.Event] = {}
        """What an earlier attempt has left and is just being removed; set when that is done."""
        self.withdrawals = Withdrawals(deployments.get("blob_uploader"))
        self.closed = False
        """True when no life may begin here any more."""
        self._store = store
        self._deployments = deployments
        self._ended = ended
        self.freed = freed
        self.metrics = metrics or ExecutionMetrics()
        self._turns = MemberScheduler({}) if turns is None else turns
        self.progress = ProgressTracker(self.running, self._read, self.record, in_turn=in_turn)

    @asynccontextmanager
    async def life_of(self, execution_id: str, attempt: int) -> AsyncIterator[Plan | CustomPlan]:
        """Give an execution's plan, and record how its life ends if it does not end well.

        Raises
        ------
        StageFailed
            If a later attempt has taken over. That of a Conductor which died after it had recorded
            a failure is taken up again by its successor, and must not touch the execution any more.
        """
        if execution_id in self.removing:
            await self.removing[execution_id].wait()
        # Or it would remove what this attempt has brought there.
        await self.withdrawals.over(execution_id)
        execution = await self._read(execution_id)
        bind_execution(execution_id, execution.workflow, execution.stage)
        if self.closed:
            raise asyncio.CancelledError
        if execution.retries != attempt:
            raise StageFailed(Stage.FINISH, f"attempt {attempt} is over, see {execution.retries}")
        life = Life(cast(asyncio.Task[Any], asyncio.current_task()))
        self.running[execution_id] = life
        self._turns.arrive(execution_id)
        try:
            if execution.cancel_requested:
                raise asyncio.CancelledError
            if execution.status == Status.FAILED:
                # Taken up again by a successor after the outcome was recorded.
                raise StageFailed(execution.stage or Stage.FINISH, execution.error_message or "")
            plan = _plan_of(execution)
            if isinstance(plan, Plan):
                life.written = written_before(execution, plan)
                life.conditioned = [0] * len(plan.conditioning.seeds if plan.conditioning else ())
            yield plan
        except (asyncio.CancelledError, DBOSWorkflowCancelledError):
            # A cancel comes twice, from us and from DBOS: the second must not stop this.
            try:
                await shield(self.end_cancelled(execution_id))
            except sa.exc.SQLAlchemyError as error:
                # As an error it would be recorded, and the successor would not go on.
                logger.warning("%s is left to a successor: %s", execution_id, error)
            raise
        except sa.exc.OperationalError as error:
            # Not the execution's failure. Recorded as one it would not go on.
            end_this_process(f"the execution store is away: {error.orig}")
        except Exception as error:
            log_failure(execution_id, _reason(error), error)
            await shield(self.end_failed(execution_id, _reason(error), error))
            raise
        finally:
            del self.running[execution_id]
            self.metrics.left(execution_id)
            self._turns.leave(execution_id)
            self._ended(execution_id)

    async def end_cancelled(self, execution_id: str) -> None:
        """Remove what an execution has made and record that it was cancelled.

        Nothing happens if it has finished by itself. Without a request it is this process that
        ends, and the successor goes on.
        """
        execution = await asyncio.to_thread(self._store.read, execution_id)
        if not execution.cancel_requested or execution.status in FINISHED:
            return
        with execution_bound(execution_id, execution.workflow, execution.stage):
            await best_effort_cleanup(
                self._deployments["packager"], "purge", execution.workflow, execution_id
            )
            # Before the record: behind it no successor would take it up again.
            await self.withdrawals.soon(execution)
            ended = await self.write(self._store.update, execution_id, status=Status.CANCELLED)
            self.metrics.changed(ended)
            log_cancelled(execution_id)

    async def end_failed(
        self, execution_id: str, reason: str, error: Exception | None = None
    ) -> None:
        """Record why an execution failed.

        What it made stays if it can be had, or if a retry need not compute it again.
        """
        execution = await self._read(execution_id)
        if execution.status in FINISHED - {Status.FAILED}:
            return
        # What is recorded as failed may wait for its next attempt a moment later.
        if execution.status not in (Status.FAILED, Status.QUEUED):
            await self.record(execution_id, status=Status.FAILED, error_message=reason)
            self.metrics.failed(execution, error)
        with execution_bound(execution_id, execution.workflow, execution.stage):
            if execution.results is not None:
                await best_effort_cleanup(self._deployments["packager"], "clean", execution_id)
            elif isinstance(error, DiskFull) or not execution.has_whole_members:
                # It helps nobody, or is what has filled the disk.
                if await best_effort_cleanup(
                    self._deployments["packager"], "purge", execution.workflow, execution_id
                ):
                    self.withdrawals.begin(execution)
                    await retry_on_db_outage(
                        partial(self.write, self._store.mark_left_nothing, execution_id)
                    )

    async def enter(
        self,
        execution_id: str,
        stage: Stage,
        status: Status | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Record that an execution has come to a stage; a resumed one does not step back."""
        execution = await self._read(execution_id)
        if execution.stage is None or execution.stage.is_before(stage):
            await self.record(execution_id, stage=stage, status=status, progress=progress)

    async def enter_delivery(
        self,
        execution_id: str,
        stage: Stage,
        results: Manifest,
        progress: Progress | None,
    ) -> None:
        """Record that results are whole, and that their delivery has come to a stage."""
        execution = await self._read(execution_id)
        if execution.status not in FINISHED:
            ahead = execution.stage is not None and stage.is_before(execution.stage)
            await self.record(
                execution_id,
                stage=execution.stage if ahead else stage,
                status=Status.PENDING_RESULTS,
                progress=progress,
                results=execution.manifest(results),
            )

    async def keep(self, execution_id: str, results: Manifest, progress: Progress) -> None:
        """Record results of an execution that is about to fail: they can be had all the same."""
        execution = await self._read(execution_id)
        if execution.status not in FINISHED:
            await self.record(
                execution_id,
                stage=Stage.PACKAGE,
                progress=progress,
                results=execution.manifest(results, Status.FAILED),
            )

    async def complete(
        self, execution_id: str, results: Manifest, progress: Progress | None = None
    ) -> None:
        """Record the results and that all is done; twice is harmless."""
        execution = await self._read(execution_id)
        if execution.status not in FINISHED:
            manifest = execution.manifest(results)
            await self.record(
                execution_id,
                status=Status.COMPLETED,
                stage=Stage.FINISH,
                progress=progress,
                results=manifest,
            )
            log_completed(execution_id, cast(float, manifest.execution_time_seconds))
        await best_effort_cleanup(self._deployments["packager"], "clean", execution_id)

    async def record(self, execution_id: str, **values: Any) -> None:
        """Bring the record up to date, see `ConductorStore.update`."""
        update = partial(self.write, self._store.update, execution_id, **values)
        changed = await retry_on_db_outage(update)
        set_stage(changed.stage)
        self.metrics.changed(changed)

    async def _read(self, execution_id: str) -> Execution:
        return await retry_on_db_outage(partial(asyncio.to_thread, self._store.read, execution_id))

    async def write(self, method: Callable[..., R], *args: Any, **values: Any) -> R:
        """Call the store with our token, in a thread."""
        try:
            return await asyncio.to_thread(method, self.fence, *args, **values)
        except StaleConductor as error:
            superseded(str(error))

    def provenance(self, plan: Plan) -> dict[str, Any]:
        """Say what computes a plan: model, data source and software."""
        return {
            "model": self._origin(plan.model),
            "data_source": self._origin(plan.data_source),
            "conditioned_on": [self._origin(name) for name in _conditioned_on(plan)],
            "software": software(),
        }

    def _origin(self, name: str) -> Origin:
        return self.origins.get(name) or Origin(name=name)

    def serves(self, deployment: str) -> bool:
        """Say whether this server has a deployment; a plan may be older than its settings."""
        return deployment in self._deployments

    async def call(
        self, stage: Stage, deployment: str, method: str, *args: Any, fenced: bool = True
    ) -> Any:
        """Call a deployment, with the fencing token as last argument.

        Raises
        ------
        StageFailed
            With the reason; `TransientFailure` if another try is worth it.
        """
        self.metrics.attempted(stage)
        if fenced:
            args = (*args, self.fence)
        response = getattr(self._deployments[deployment], method).remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            raise _failure(stage, error) from None

    async def stream(
        self, stage: Stage, deployment: str, method: str, *args: Any
    ) -> AsyncIterator[Any]:
        """Call a generator of a deployment; it is cancelled when the caller goes away.

        Raises
        ------
        StageFailed
            With the reason; `TransientFailure` if another try is worth it.
        """
        if not self.serves(deployment):
            raise StageFailed(stage, f"this server does not serve {deployment} any more")
        self.metrics.attempted(stage)
        handle = self._deployments[deployment].options(stream=True)
        response = getattr(handle, method).remote(*args)
        try:
            async for item in response:
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise
        except Exception as error:
            raise _failure(stage, error) from None

    async def member(
        self, model: str, method: str, job: MemberJob, steps: int
    ) -> AsyncIterator[MemberProgress]:
        """Have a member computed when it is its turn; tells how many steps are written.

        Raises
        ------
        StageFailed
            As `stream`.
        """
        async with self._turns.turn(model, job.execution_id, steps) as turn:
            told = job.model_copy(update={"replica": turn.replica})
            async for progress in self.stream(Stage.INFERENCE, model, method, told):
                turn.told(steps - progress.written, progress.replica)
                yield progress


def superseded(reason: str) -> NoReturn:
    """End this process: somebody conducts with a newer token.

    Not an exception: a step that failed would be recorded, in the name of the successor.
    """
    end_this_process(f"superseded by another Conductor: {reason}")


def end_this_process(reason: str) -> NoReturn:
    """Leave all that runs here to a successor, which Serve starts."""
    logger.critical("this process ends: %s", reason)
    os._exit(1)


def _failure(stage: str, error: Exception) -> Exception:
    failure = as_stage_failure(stage, error)
    if isinstance(failure, StaleConductor):
        superseded(str(failure))
    return failure


def _plan_of(execution: Execution) -> Plan | CustomPlan:
    if is_custom(execution.plan):
        return CustomPlan.model_validate(execution.plan)
    return Plan.model_validate(execution.plan)


def _conditioned_on(plan: Plan) -> tuple[str, ...]:
    if plan.conditioning is None:
        return ()
    return plan.conditioning.model, plan.conditioning.interpolation, plan.conditioning.data_source


def _reason(error: Exception) -> str:
    """Say why an execution failed, in words for the person who asked for it."""
    if isinstance(error, DBOSMaxStepRetriesExceeded):
        return f"{error.errors[-1]} (given up after {len(error.errors)} attempts)"
    return str(error) or type(error).__name__
