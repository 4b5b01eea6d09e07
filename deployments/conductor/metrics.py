"""Metrics of executions, taken from the updates of their records.

The Conductor writes every update of a running execution, so all of them pass here and nothing is
measured where the work is done. A stage that a predecessor began is not timed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dbos import DBOS
from dbos._error import DBOSMaxStepRetriesExceeded

from deployments.runtime.metrics import (
    BEATS,
    ENDED,
    EXECUTION_SECONDS,
    FAILURES,
    QUEUE_DEPTH,
    QUEUE_OLDEST,
    QUEUE_WAIT,
    RAY,
    RETRIES,
    RUNNING,
    STAGE_SECONDS,
    Recorder,
)
from deployments.store.conductor_view import QueuedExecution
from workflows.errors import Earth2ServeError
from workflows.execution import FINISHED, Execution, Stage, Status

UNEXPECTED = "Unexpected"
"""Reason for failures with an error that is not ours."""
RECORD_LOST = "ServerStopped"
"""Reason for failures whose error was never recorded."""


@dataclass
class _Position:
    """The stage that an execution has reached."""

    workflow: str
    stage: Stage | None
    since: float | None
    """None if a predecessor began the stage."""


class ExecutionMetrics:
    """Measures the executions that run in this process."""

    def __init__(self, recorder: Recorder = RAY, now: Callable[[], float] = time.monotonic) -> None:
        self._recorder = recorder
        self._now = now
        self._positions: dict[str, _Position] = {}
        self._queued_since: dict[str, float] = {}
        self._running_labels: set[tuple[str, str]] = set()
        """Every workflow and stage reported so far: each needs a 0 when nothing runs there."""
        self._workflows: set[str] = set()

    def record_claim(self, execution: Execution) -> None:
        """Record how long a claimed execution has waited in the queue."""
        now = self._now()
        self._positions[execution.execution_id] = _Position(
            execution.workflow, execution.stage, now
        )
        waited = now - self._queued_since.pop(execution.execution_id, now)
        if execution.retries == 0 and execution.started_at is not None:
            waited = (execution.started_at - execution.created_at).total_seconds()
        self._recorder.observe(QUEUE_WAIT, max(waited, 0.0), workflow=execution.workflow)

    def record_update(self, execution: Execution) -> None:
        """Record the stage that an execution has left, and its end."""
        now = self._now()
        position = self._positions.setdefault(
            execution.execution_id, _Position(execution.workflow, execution.stage, None)
        )
        passed = execution.stage is not position.stage or execution.status == Status.COMPLETED
        if passed and position.stage is not None and position.since is not None:
            labels = {"workflow": position.workflow, "stage": position.stage}
            self._recorder.observe(STAGE_SECONDS, now - position.since, **labels)
        if passed:
            position.stage, position.since = execution.stage, now
        if execution.status in FINISHED:
            self._record_end(execution)

    def _record_end(self, execution: Execution) -> None:
        self._positions.pop(execution.execution_id, None)
        self._recorder.add(ENDED, workflow=execution.workflow, status=execution.status)
        if execution.status == Status.COMPLETED and execution.started_at and execution.ended_at:
            seconds = (execution.ended_at - execution.started_at).total_seconds()
            self._recorder.observe(EXECUTION_SECONDS, seconds, workflow=execution.workflow)

    def record_failure(self, execution: Execution, error: BaseException | None) -> None:
        """Record why an execution failed; None if its error was never recorded."""
        stage, reason = execution.stage or "none", _failure_reason(error)
        self._recorder.add(FAILURES, workflow=execution.workflow, stage=stage, reason=reason)

    def forget(self, execution_id: str) -> None:
        """Forget an execution that no longer runs in this process."""
        self._positions.pop(execution_id, None)

    def record_call(self, stage: Stage) -> None:
        """Record a step's call of a deployment as a retry, if it is one."""
        step = DBOS.step_status
        if step is not None and step.current_attempt:
            self._recorder.add(RETRIES, stage=stage)

    def record_heartbeat(
        self, queued: Sequence[QueuedExecution], workflows: Collection[str]
    ) -> None:
        """Count a heartbeat and set the gauges, including those of idle `workflows`."""
        now = self._now()
        self._recorder.add(BEATS)
        self._queued_since = {
            each.execution_id: self._queued_since.get(each.execution_id, now - _age(each))
            for each in queued
        }
        self._workflows.update(workflows, (each.workflow for each in queued))
        for workflow in self._workflows:
            waits = [
                now - self._queued_since[each.execution_id]
                for each in queued
                if each.workflow == workflow
            ]
            self._recorder.set(QUEUE_DEPTH, len(waits), workflow=workflow)
            self._recorder.set(QUEUE_OLDEST, max(waits, default=0.0), workflow=workflow)
        running = Counter(
            (each.workflow, each.stage or "none") for each in self._positions.values()
        )
        self._running_labels |= running.keys()
        for workflow, stage in self._running_labels:
            self._recorder.set(RUNNING, running[workflow, stage], workflow=workflow, stage=stage)


def _age(queued: QueuedExecution) -> float:
    """Return the seconds since acceptance; 0 for a retry, whose time is not recorded."""
    if queued.retries:
        return 0.0
    return max((datetime.now(UTC) - queued.created_at).total_seconds(), 0.0)


def _failure_reason(error: BaseException | None) -> str:
    if error is None:
        return RECORD_LOST
    if isinstance(error, DBOSMaxStepRetriesExceeded):
        error = error.errors[-1]
    return type(error).__name__ if isinstance(error, Earth2ServeError) else UNEXPECTED
