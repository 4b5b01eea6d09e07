"""What metrics tell of executions' lives, taken from the changes of their records.

The Conductor writes every change of an execution that runs, so it sees all of them here; nothing
is measured where the work is done. A stage that a predecessor began is not timed.
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
from deployments.store.conductor_view import Waiting
from workflows.errors import Earth2ServeError
from workflows.execution import FINISHED, Execution, Stage, Status

UNEXPECTED = "Unexpected"
"""Reason of failures that are no error of ours."""
RECORD_LOST = "ServerStopped"
"""Reason of failures that nobody was there to record."""


@dataclass
class _Place:
    """Where an execution is in its life."""

    workflow: str
    stage: Stage | None
    since: float | None
    """None if the stage was begun by a predecessor."""


class ExecutionMetrics:
    """Follows the records of the executions that this process carries.

    Parameters
    ----------
    recorder : Recorder
    now : callable
        Gives seconds that are never set back.
    """

    def __init__(self, recorder: Recorder = RAY, now: Callable[[], float] = time.monotonic) -> None:
        self._recorder = recorder
        self._now = now
        self._places: dict[str, _Place] = {}
        self._queued_since: dict[str, float] = {}
        self._shown: set[tuple[str, str]] = set()
        self._queues: set[str] = set()

    def begun(self, execution: Execution) -> None:
        """Note that an execution was taken from the queue."""
        now = self._now()
        self._places[execution.execution_id] = _Place(execution.workflow, execution.stage, now)
        waited = now - self._queued_since.pop(execution.execution_id, now)
        if execution.retries == 0 and execution.started_at is not None:
            waited = (execution.started_at - execution.created_at).total_seconds()
        self._recorder.observe(QUEUE_WAIT, max(waited, 0.0), workflow=execution.workflow)

    def changed(self, execution: Execution) -> None:
        """Note what the record has become."""
        now = self._now()
        place = self._places.setdefault(
            execution.execution_id, _Place(execution.workflow, execution.stage, None)
        )
        passed = execution.stage is not place.stage or execution.status == Status.COMPLETED
        if passed and place.stage is not None and place.since is not None:
            self._recorder.observe(
                STAGE_SECONDS, now - place.since, workflow=place.workflow, stage=place.stage
            )
        if passed:
            place.stage, place.since = execution.stage, now
        if execution.status in FINISHED:
            self._ended(execution)

    def _ended(self, execution: Execution) -> None:
        self._places.pop(execution.execution_id, None)
        self._recorder.add(ENDED, workflow=execution.workflow, status=execution.status)
        if execution.status == Status.COMPLETED and execution.started_at and execution.ended_at:
            seconds = (execution.ended_at - execution.started_at).total_seconds()
            self._recorder.observe(EXECUTION_SECONDS, seconds, workflow=execution.workflow)

    def failed(self, execution: Execution, error: BaseException | None) -> None:
        """Note what an execution failed of; None if nobody was there to see it."""
        self._recorder.add(
            FAILURES,
            workflow=execution.workflow,
            stage=execution.stage or "none",
            reason=_kind(error),
        )

    def left(self, execution_id: str) -> None:
        """Note that this process carries an execution no more."""
        self._places.pop(execution_id, None)

    def attempted(self, stage: Stage) -> None:
        """Note that a step calls a deployment; it is a retry if it has called before."""
        step = DBOS.step_status
        if step is not None and step.current_attempt:
            self._recorder.add(RETRIES, stage=stage)

    def show(self, waiting: Sequence[Waiting], workflows: Collection[str]) -> None:
        """Count a heartbeat and set the gauges.

        Parameters
        ----------
        waiting : sequence of Waiting
            What is queued.
        workflows : collection of str
            Workflows to show also if nothing of them waits.
        """
        now = self._now()
        self._recorder.add(BEATS)
        self._queued_since = {
            each.execution_id: self._queued_since.get(each.execution_id, now - _age(each))
            for each in waiting
        }
        self._queues.update(workflows, (each.workflow for each in waiting))
        for workflow in self._queues:
            waits = [
                now - self._queued_since[each.execution_id]
                for each in waiting
                if each.workflow == workflow
            ]
            self._recorder.set(QUEUE_DEPTH, len(waits), workflow=workflow)
            self._recorder.set(QUEUE_OLDEST, max(waits, default=0.0), workflow=workflow)
        running = Counter((each.workflow, each.stage or "none") for each in self._places.values())
        self._shown |= running.keys()
        for workflow, stage in self._shown:
            self._recorder.set(RUNNING, running[workflow, stage], workflow=workflow, stage=stage)


def _age(waiting: Waiting) -> float:
    """Seconds since it was accepted; one that is tried again waits since we see it."""
    if waiting.retries:
        return 0.0
    return max((datetime.now(UTC) - waiting.created_at).total_seconds(), 0.0)


def _kind(error: BaseException | None) -> str:
    if error is None:
        return RECORD_LOST
    if isinstance(error, DBOSMaxStepRetriesExceeded):
        error = error.errors[-1]
    return type(error).__name__ if isinstance(error, Earth2ServeError) else UNEXPECTED
