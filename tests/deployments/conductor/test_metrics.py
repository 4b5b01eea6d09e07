"""Metrics of executions, with stand-in deployments and a real store and DBOS."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from deployments.conductor.metrics import ExecutionMetrics
from deployments.runtime.failures import TransientFailure
from deployments.runtime.metrics import (
    BEATS,
    ENDED,
    EXECUTION_SECONDS,
    FAILURES,
    QUEUE_DEPTH,
    QUEUE_OLDEST,
    QUEUE_WAIT,
    RETRIES,
    RUNNING,
    STAGE_SECONDS,
)
from deployments.store.conductor_view import ConductorStore, QueuedExecution
from tests.deployments.conductor.harness import (
    WORKFLOW,
    conductor_loop,
    eventually,
    finished,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns
from tests.deployments.store.records import on_both_databases_slowly
from tests.measured import Measured
from workflows import Status
from workflows.errors import UploadFailed
from workflows.execution import Stage

NAME = WORKFLOW.name
STEP_S = 0.05


async def test_every_stage_is_timed(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    measured = Measured()
    execution_id = submit(store, n_samples=1)
    metrics = ExecutionMetrics(measured)
    async with conductor_loop(store_url, StandIns(journal, step_s=STEP_S), metrics=metrics):
        done = await until(store, execution_id, finished)
    assert done.started_at and done.ended_at
    assert measured.total(ENDED, workflow=NAME, status="completed") == 1
    assert measured.values(ENDED) == [1]
    stages = {s: measured.values(STAGE_SECONDS, workflow=NAME, stage=s) for s in Stage}
    assert {stage for stage, took in stages.items() if took} == {
        Stage.INITIAL_CONDITIONS,
        Stage.INFERENCE,
        Stage.PACKAGE,
    }
    [inference] = stages[Stage.INFERENCE]
    assert inference >= 3 * STEP_S
    [whole] = measured.values(EXECUTION_SECONDS, workflow=NAME)
    assert whole == (done.ended_at - done.started_at).total_seconds()
    assert sum(measured.values(STAGE_SECONDS)) <= whole + 0.05
    [waited] = measured.values(QUEUE_WAIT, workflow=NAME)
    assert waited == (done.started_at - done.created_at).total_seconds()
    assert measured.values(FAILURES) == measured.values(RETRIES) == []


async def test_failure_counts_by_stage_and_reason(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    async def refuse(job: Any) -> None:
        raise UploadFailed("inference", "no")

    measured = Measured()
    execution_id = submit(store, n_samples=1)
    stand_ins = StandIns(journal, before={"member": refuse})
    async with conductor_loop(store_url, stand_ins, metrics=ExecutionMetrics(measured)):
        await until(store, execution_id, finished)
    reason = {"stage": "inference", "reason": "UploadFailed"}
    assert measured.values(FAILURES, workflow=NAME, **reason) == [1]
    assert measured.values(FAILURES) == [1]
    assert measured.values(ENDED, status="failed") == measured.values(ENDED) == [1]
    assert measured.values(STAGE_SECONDS, stage="inference") == []
    assert measured.values(EXECUTION_SECONDS) == []


async def test_retried_step_counts(store: ConductorStore, store_url: str, journal: Journal) -> None:
    deaths = 0

    async def die_once(job: Any) -> None:
        nonlocal deaths
        deaths += 1
        if deaths == 1:
            raise TransientFailure("inference", "ActorDiedError: the replica died")

    measured = Measured()
    execution_id = submit(store, n_samples=1)
    stand_ins = StandIns(journal, before={"member": die_once})
    async with conductor_loop(store_url, stand_ins, metrics=ExecutionMetrics(measured)):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert measured.values(RETRIES, stage="inference") == measured.values(RETRIES) == [1]


@on_both_databases_slowly
async def test_gauges_show_queued_and_running_executions(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    measured = Measured()
    began = time.monotonic()
    running, waiting = submit(store, n_steps=400, n_samples=1), submit(store)
    async with conductor_loop(
        store_url,
        StandIns(journal, step_s=1.0),
        max_running={NAME: 1},
        metrics=ExecutionMetrics(measured),
    ) as loop:
        await until(store, running, lambda e: e.progress is not None)
        at_inference = {"workflow": NAME, "stage": "inference"}
        await eventually(
            lambda: (
                measured.values(RUNNING, **at_inference)[-1:] == [1]
                and measured.last(QUEUE_OLDEST, workflow=NAME) > 1
            )
        )
        assert measured.last(QUEUE_OLDEST, workflow=NAME) < time.monotonic() - began + 1
        assert measured.last(QUEUE_DEPTH, workflow=NAME) == 1
        for execution_id in (waiting, running):
            store.request_cancel(NAME, execution_id)
        loop.nudge()
        await until(store, running, finished)
        await eventually(lambda: measured.last(RUNNING, **at_inference) == 0)
        assert measured.last(QUEUE_DEPTH, workflow=NAME) == 0
        assert measured.last(QUEUE_OLDEST, workflow=NAME) == 0
        # One per second, however many nudges.
        assert 1 <= measured.total(BEATS) <= time.monotonic() - began + 1
    # The queued one was cancelled by the request itself.
    assert measured.values(ENDED, status="cancelled") == measured.values(ENDED) == [1]


def test_queue_wait_of_a_retry_begins_with_the_retry() -> None:
    measured, now = Measured(), [1000.0]
    metrics = ExecutionMetrics(measured, lambda: now[0])
    old = datetime.now(UTC) - timedelta(hours=5)
    metrics.record_heartbeat([QueuedExecution("a", NAME, old, retries=1)], [])
    now[0] += 7
    metrics.record_heartbeat([QueuedExecution("a", NAME, old, retries=1)], [])
    assert measured.last(QUEUE_OLDEST, workflow=NAME) == 7
    metrics.record_heartbeat([QueuedExecution("b", NAME, old, retries=0)], [])
    assert abs(measured.last(QUEUE_OLDEST, workflow=NAME) - 5 * 3600) < 10
