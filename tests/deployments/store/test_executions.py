"""Submitting executions and requesting changes, on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context

import pytest

from deployments.store.conductor_view import ConductorStore
from deployments.store.executions import Idempotency
from tests.deployments.store.records import (
    MANIFEST,
    WORKFLOW,
    fail,
    finish,
    new,
    on_both_databases,
    submit,
)
from workflows.errors import (
    ExecutionNotFound,
    IdempotencyConflict,
    IllegalTransition,
    QueueFull,
)
from workflows.execution import Stage, Status

pytestmark = on_both_databases


def submit_until_full(store_url: str, bound: int, attempts: int) -> list[int]:
    """Submit from one process, and return the positions in the queue."""
    store = ConductorStore(store_url)

    def attempt(_: int) -> int | None:
        try:
            return store.submit(new(), max_queued=bound).position
        except QueueFull:
            return None

    with ThreadPoolExecutor(2) as threads:
        positions = list(threads.map(attempt, range(attempts)))
    store.close()
    return [position for position in positions if position is not None]


def test_execution_is_visible_to_another_process_and_after_a_restart(store_url: str) -> None:
    first = ConductorStore(store_url)
    execution = new()
    submit(first, execution)
    second = ConductorStore(store_url)
    assert second.get(WORKFLOW, execution.execution_id) == execution
    first.close()
    second.close()
    third = ConductorStore(store_url)
    assert third.get(WORKFLOW, execution.execution_id) == execution
    third.close()


def test_queue_bound_holds_for_concurrent_processes(store_url: str) -> None:
    # The processes also create the tables concurrently.
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as processes:
        tasks = [processes.submit(submit_until_full, store_url, 20, 12) for _ in range(4)]
        positions = [position for task in tasks for position in task.result(timeout=120)]
    assert sorted(positions) == list(range(20))
    store = ConductorStore(store_url)
    assert store.count_by_status() == {(WORKFLOW, "queued"): 20}
    store.close()


def test_full_queue_accepts_again_after_a_claim(store: ConductorStore) -> None:
    fence = store.issue_fence()
    for _ in range(3):
        store.submit(new(), max_queued=3)
    with pytest.raises(QueueFull) as full:
        store.submit(new(), max_queued=3)
    assert (full.value.queued, full.value.max_size) == (3, 3)
    store.claim_next(fence)
    assert store.submit(new(), max_queued=3).position == 2


def test_same_key_and_body_return_the_same_execution(store: ConductorStore) -> None:
    key = Idempotency("key-1", "digest")
    first = store.submit(new(), max_queued=1, idempotency=key)
    # Even if the queue is full, since nothing new is queued.
    again = store.submit(new(), max_queued=1, idempotency=key)
    assert again.replayed and not first.replayed
    assert again.execution == first.execution
    assert again.position == 0
    store.claim_next(store.issue_fence())
    later = store.submit(new(), max_queued=1, idempotency=key)
    assert later.replayed and later.execution.status == Status.RUNNING and later.position is None


def test_same_key_with_another_body_is_a_conflict(store: ConductorStore) -> None:
    store.submit(new(), max_queued=9, idempotency=Idempotency("key-1", "digest"))
    with pytest.raises(IdempotencyConflict):
        store.submit(new(), max_queued=9, idempotency=Idempotency("key-1", "other"))
    assert store.count_by_status() == {(WORKFLOW, "queued"): 1}


def test_keys_of_workflows_are_separate(store: ConductorStore) -> None:
    key = Idempotency("key-1", "digest")
    store.submit(new(), max_queued=9, idempotency=key)
    assert not store.submit(new("another_workflow"), max_queued=9, idempotency=key).replayed


@pytest.mark.parametrize(("age_h", "replayed"), [(23.9, True), (24.1, False)])
def test_key_is_valid_for_a_day(store: ConductorStore, age_h: float, replayed: bool) -> None:
    key = Idempotency("key-1", "digest")
    # From now, not from the import of this file: a whole suite may run in between.
    old = new(created_at=datetime.now(UTC) - timedelta(hours=age_h))
    store.submit(old, max_queued=9, idempotency=key)
    assert store.submit(new(), max_queued=9, idempotency=key).replayed is replayed
    if not replayed:
        with pytest.raises(IdempotencyConflict):  # the newer one counts now
            store.submit(new(), max_queued=9, idempotency=Idempotency("key-1", "other"))


def test_concurrent_submits_with_one_key_are_one_execution(store: ConductorStore) -> None:
    key = Idempotency("key-1", "digest")
    with ThreadPoolExecutor(8) as threads:
        tasks = [
            threads.submit(store.submit, new(), max_queued=99, idempotency=key) for _ in range(16)
        ]
        answers = [task.result() for task in tasks]
    assert len({answer.execution.execution_id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1


def test_key_can_be_looked_up_before_a_submit(store: ConductorStore) -> None:
    key = Idempotency("key-1", "digest")
    assert store.replay(WORKFLOW, key) is None
    first = store.submit(new(), max_queued=9, idempotency=key)
    known = store.replay(WORKFLOW, key)
    assert known is not None and known.replayed
    assert (known.execution, known.position) == (first.execution, 0)
    assert store.replay("another_workflow", key) is None
    with pytest.raises(IdempotencyConflict):
        store.replay(WORKFLOW, Idempotency("key-1", "other"))


def test_queued_execution_is_cancelled_at_once(store: ConductorStore) -> None:
    (execution,) = submit(store, new())
    cancelled = store.request_cancel(WORKFLOW, execution.execution_id)
    assert cancelled.status == Status.CANCELLED
    assert cancelled.ended_at is not None
    assert store.cancel_requests() == []
    assert store.claim_next(store.issue_fence()) is None


def test_running_execution_is_cancelled_by_the_conductor(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    store.claim_next(fence)
    asked = store.request_cancel(WORKFLOW, execution.execution_id)
    assert (asked.status, asked.cancel_requested) == (Status.RUNNING, True)
    assert [e.execution_id for e in store.cancel_requests()] == [execution.execution_id]
    ended = store.update(fence, execution.execution_id, status=Status.CANCELLED)
    assert ended.ended_at is not None
    assert store.cancel_requests() == []


def test_clock_that_is_behind_makes_no_execution_older_than_it_is(store: ConductorStore) -> None:
    fence = store.issue_fence()
    ahead = datetime.now(UTC) + timedelta(days=31)
    queued, running = submit(store, new(created_at=ahead), new(created_at=ahead))
    store.request_cancel(WORKFLOW, queued.execution_id)
    store.claim_next(fence)
    store.update(fence, running.execution_id, status=Status.COMPLETED)
    ends = [store.read(each.execution_id).ended_at for each in (queued, running)]
    assert ends == [store.read(queued.execution_id).created_at] * 2


def test_concurrent_cancels_and_claims_have_one_outcome(store: ConductorStore) -> None:
    fence = store.issue_fence()
    submitted = submit(store, *(new() for _ in range(10)))
    with ThreadPoolExecutor(4) as threads:
        claims = [threads.submit(store.claim_next, fence) for _ in submitted]
        cancels = [
            threads.submit(store.request_cancel, WORKFLOW, e.execution_id) for e in submitted
        ]
        claimed = {e.execution_id for e in (task.result() for task in claims) if e is not None}
        cancelled = {
            e.execution_id
            for e in (task.result() for task in cancels)
            if e.status == Status.CANCELLED
        }
    assert not claimed & cancelled
    assert {e.execution_id for e in store.cancel_requests()} == {
        e.execution_id for e in submitted
    } - cancelled


def test_finished_execution_cannot_be_cancelled(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    store.claim_next(fence)
    finish(store, fence, execution)
    with pytest.raises(IllegalTransition):
        store.request_cancel(WORKFLOW, execution.execution_id)
    with pytest.raises(ExecutionNotFound):
        store.request_cancel("another_workflow", execution.execution_id)


def test_cancel_of_a_retry_that_waits_is_left_to_the_conductor(store: ConductorStore) -> None:
    """It has files, which the Conductor removes before it records the end."""
    [execution] = submit(store, new())
    fence = store.issue_fence()
    store.claim_next(fence)
    store.update(
        fence,
        execution.execution_id,
        status=Status.PENDING_RESULTS,
        stage=Stage.UPLOAD,
        results=MANIFEST,
    )
    store.update(fence, execution.execution_id, status=Status.FAILED, error_message="no route")
    assert store.request_retry(WORKFLOW, execution.execution_id, max_queued=9).results is not None
    requested = store.request_cancel(WORKFLOW, execution.execution_id)
    assert (requested.status, requested.cancel_requested) == (Status.QUEUED, True)
    assert [each.execution_id for each in store.cancel_requests()] == [execution.execution_id]
    assert store.claim_next(fence) is None
    store.update(fence, execution.execution_id, status=Status.CANCELLED)
    assert store.read(execution.execution_id).results is None
    assert store.cancel_requests() == []


def test_only_finished_executions_can_be_purged(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    with pytest.raises(IllegalTransition):
        store.request_purge(WORKFLOW, execution.execution_id)
    store.claim_next(fence)
    with pytest.raises(IllegalTransition):
        store.request_purge(WORKFLOW, execution.execution_id)
    finish(store, fence, execution)
    with pytest.raises(ExecutionNotFound):
        store.request_purge("another_workflow", execution.execution_id)
    assert store.purge_requests() == []
    store.request_purge(WORKFLOW, execution.execution_id)
    assert [e.execution_id for e in store.purge_requests()] == [execution.execution_id]
    store.delete(fence, execution.execution_id)
    assert store.purge_requests() == []
    with pytest.raises(ExecutionNotFound):
        store.get(WORKFLOW, execution.execution_id)


def test_retry_of_a_failed_delivery_keeps_the_results(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    fail(store, fence, execution.execution_id, stage=Stage.REGISTER, results=MANIFEST)
    queued = store.request_retry(WORKFLOW, execution.execution_id, max_queued=1)
    assert (queued.status, queued.stage, queued.retries) == (Status.QUEUED, Stage.REGISTER, 1)
    assert (queued.error_message, queued.ended_at, queued.results) == (
        None,
        None,
        MANIFEST.summary(),
    )
    assert store.manifest(execution.execution_id) == MANIFEST
    claimed = store.claim_next(fence)
    assert claimed is not None and claimed.is_packaged
    assert (claimed.status, claimed.stage) == (Status.RUNNING, Stage.REGISTER)


def test_retry_of_an_earlier_failure_begins_anew(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    # A user's class with a shortcoming leaves results, but they are not complete.
    fail(store, fence, execution.execution_id, stage=Stage.PACKAGE, results=MANIFEST)
    queued = store.request_retry(WORKFLOW, execution.execution_id, max_queued=1)
    assert (queued.stage, queued.results, queued.progress) == (None, None, None)
    assert store.manifest(execution.execution_id) is None
    claimed = store.claim_next(fence)
    assert claimed is not None and not claimed.is_packaged


def test_only_failed_executions_are_retried_and_only_once(
    store: ConductorStore,
) -> None:
    fence = store.issue_fence()
    first, second = submit(store, new(), new())
    for execution_id in (first.execution_id, second.execution_id):
        with pytest.raises(IllegalTransition, match="the execution is queued"):
            store.request_retry(WORKFLOW, execution_id, max_queued=9)
    with pytest.raises(ExecutionNotFound):
        store.request_retry("another", first.execution_id, max_queued=9)
    fail(store, fence, first.execution_id)
    with pytest.raises(QueueFull):
        store.request_retry(WORKFLOW, first.execution_id, max_queued=1)
    with ThreadPoolExecutor(4) as threads:
        tries = [
            threads.submit(store.request_retry, WORKFLOW, first.execution_id, max_queued=9)
            for _ in range(8)
        ]
    assert sum(task.exception() is None for task in tries) == 1
    assert store.read(first.execution_id).retries == 1
    store.claim_next(fence)
    store.claim_next(fence)
    fail(store, fence, second.execution_id)
    store.request_purge(WORKFLOW, second.execution_id)
    with pytest.raises(IllegalTransition, match="about to be removed"):
        store.request_retry(WORKFLOW, second.execution_id, max_queued=9)
