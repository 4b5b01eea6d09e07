"""The Conductor's writes to the execution store, on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from deployments.store.conductor_view import ConductorStore
from tests.deployments.store.records import (
    MANIFEST,
    NOW,
    WORKFLOW,
    new,
    on_both_databases,
    submit,
)
from workflows.dataset import Origin
from workflows.errors import (
    IllegalTransition,
    StaleConductor,
)
from workflows.execution import Progress, Stage, Status
from workflows.readiness import NotReady, Ready

pytestmark = on_both_databases


READY = Ready(origin=Origin(name="fcn3"))


def test_longest_queued_execution_is_claimed_first(store: ConductorStore) -> None:
    fence = store.issue_fence()
    # The order of acceptance counts, not the clock.
    first = new(created_at=NOW + timedelta(hours=1))
    second, third = new("another_workflow"), new(created_at=NOW - timedelta(hours=1))
    submit(store, first, second, third)
    store.request_cancel("another_workflow", second.execution_id)
    claimed = [store.claim_next(fence) for _ in range(3)]
    assert [e and e.execution_id for e in claimed] == [first.execution_id, third.execution_id, None]
    assert claimed[0] is not None
    assert claimed[0].status == Status.RUNNING
    assert claimed[0].started_at is not None
    assert {e.execution_id for e in store.running()} == {first.execution_id, third.execution_id}


def test_no_execution_is_claimed_twice(store: ConductorStore) -> None:
    fence = store.issue_fence()
    submitted = submit(store, *(new() for _ in range(12)))
    with ThreadPoolExecutor(4) as threads:
        claimed = list(threads.map(lambda _: store.claim_next(fence), range(14)))
    ids = [execution.execution_id for execution in claimed if execution is not None]
    assert sorted(ids) == sorted(execution.execution_id for execution in submitted)


def test_execution_whose_earlier_attempt_is_ending_is_not_claimed(store: ConductorStore) -> None:
    first, second = submit(store, new(), new())
    fence = store.issue_fence()
    claimed = store.claim_next(fence, ending=[first.execution_id])
    assert claimed is not None and claimed.execution_id == second.execution_id
    assert store.claim_next(fence, ending=[first.execution_id]) is None
    claimed = store.claim_next(fence)
    assert claimed is not None and claimed.execution_id == first.execution_id


def test_completed_execution_has_its_results(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    store.claim_next(fence)
    progress = Progress(message="step 1", current_step=1, total_steps=3, members=(1,))
    running = store.update(fence, execution.execution_id, stage=Stage.INFERENCE, progress=progress)
    assert (running.stage, running.progress, running.ended_at) == (Stage.INFERENCE, progress, None)
    store.update(fence, execution.execution_id, status=Status.PENDING_RESULTS)
    done = store.update(fence, execution.execution_id, status=Status.COMPLETED, results=MANIFEST)
    assert done.ended_at is not None and done.started_at is not None
    assert done.started_at <= done.ended_at
    assert store.get(WORKFLOW, execution.execution_id) == done
    assert done.results == MANIFEST.summary()
    assert store.manifest(execution.execution_id) == MANIFEST
    assert store.running() == []


def test_failure_keeps_its_message_and_stage(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    store.claim_next(fence)
    message = "disk full: /données\n\t'quoted' \"twice\" %s"
    store.update(
        fence,
        execution.execution_id,
        status=Status.FAILED,
        stage=Stage.PACKAGE,
        error_message=message,
    )
    failed = store.get(WORKFLOW, execution.execution_id)
    assert (failed.status, failed.stage, failed.error_message) == (
        Status.FAILED,
        Stage.PACKAGE,
        message,
    )


def test_cancel_during_a_delivery_drops_the_results(store: ConductorStore) -> None:
    [execution] = submit(store, new())
    fence = store.issue_fence()
    store.claim_next(fence)
    store.update(fence, execution.execution_id, status=Status.PENDING_RESULTS, results=MANIFEST)
    cancelled = store.update(fence, execution.execution_id, status=Status.CANCELLED)
    assert cancelled.results is None
    assert store.read(execution.execution_id).results is None
    assert store.manifest(execution.execution_id) is None


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.EXPIRED, Status.PENDING_RESULTS])
def test_illegal_transition_is_refused(store: ConductorStore, status: Status) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    with pytest.raises(IllegalTransition):
        store.update(fence, execution.execution_id, status=status, stage=Stage.FINISH)
    assert store.get(WORKFLOW, execution.execution_id) == execution


def test_every_update_raises_the_revision(store: ConductorStore) -> None:
    fence = store.issue_fence()
    first, second = submit(store, new(), new())
    seen = [store.read(first.execution_id).revision]
    store.claim_next(fence)
    seen.append(store.read(first.execution_id).revision)
    store.update(fence, first.execution_id, stage=Stage.INFERENCE)
    seen.append(store.read(first.execution_id).revision)
    store.request_cancel(WORKFLOW, first.execution_id)
    seen.append(store.read(first.execution_id).revision)
    assert seen == sorted(set(seen))
    ids = [first.execution_id, second.execution_id, "exec_0_00000000"]
    assert store.revisions(ids) == {
        first.execution_id: seen[-1],
        second.execution_id: second.revision,
    }
    assert store.revisions([]) == {}


def test_superseded_conductor_can_write_nothing(store: ConductorStore) -> None:
    old = store.issue_fence()
    (execution,) = submit(store, new())
    fence = store.issue_fence()
    assert fence > old
    for call in (
        lambda: store.record_heartbeat(old),
        lambda: store.claim_next(old),
        lambda: store.update(old, execution.execution_id, status=Status.CANCELLED),
        lambda: store.set_readiness(old, "fcn3", READY),
        lambda: store.delete(old, execution.execution_id),
    ):
        with pytest.raises(StaleConductor):
            call()
    assert store.read(execution.execution_id) == execution
    assert store.readiness() == {}
    store.record_heartbeat(fence)


def test_heartbeat_is_read_back(store: ConductorStore) -> None:
    assert store.conductor_heartbeat() is None
    fence = store.issue_fence()
    first = store.conductor_heartbeat()
    assert first is not None
    store.record_heartbeat(fence)
    second = store.conductor_heartbeat()
    assert second is not None and first <= second <= datetime.now(UTC)


def test_latest_readiness_is_read_back(store: ConductorStore) -> None:
    fence = store.issue_fence()
    store.set_readiness(fence, "fcn3", NotReady(reason="loading"))
    store.set_readiness(fence, "ifs", READY)
    store.set_readiness(fence, "fcn3", READY)
    found = store.readiness()
    assert {name: (r.ready, r.reason) for name, r in found.items()} == {
        "fcn3": (True, None),
        "ifs": (True, None),
    }
