"""The execution store's account of disk usage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.disk_usage import Demand
from deployments.store.executions import Idempotency
from deployments.store.retention_view import RetentionView
from deployments.store.schema import executions
from tests.deployments.conductor.harness import on_both_databases
from tests.deployments.store.test_executions import WORKFLOW, new
from workflows.errors import ExecutionNotFound, IdempotencyConflict, StorageFull
from workflows.execution import Execution, Progress, Stage, Status
from workflows.manifest import Manifest, Totals

pytestmark = on_both_databases


def results(size: int) -> Manifest:
    totals = Totals(files=0, bytes=size, listed=0, truncated=False)
    return Manifest(output_files=(), totals=totals)


def submit(store: ConductorStore, demand: Demand, **values: Any) -> Execution:
    return store.submit(new(**values), max_queued=1000, demand=demand).execution


def usage(store: ConductorStore) -> tuple[int, int]:
    """Return the bytes that all executions take, and those still to be written."""
    query = sa.select(
        sa.func.sum(executions.c.disk_bytes), sa.func.sum(executions.c.unwritten_bytes)
    )
    with store.engine.connect() as connection:
        row = connection.execute(query).one()
        return int(row[0] or 0), int(row[1] or 0)


def test_concurrent_submits_cannot_overfill_the_disk(store: ConductorStore) -> None:
    def attempt(_: int) -> bool:
        try:
            submit(store, Demand(needed=10, free=95))
        except StorageFull:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(attempt, range(20))) == 9
    with pytest.raises(StorageFull) as refused:
        submit(store, Demand(needed=10, free=95))
    # Nothing of them is written yet, so without them the whole disk would be free.
    assert (refused.value.available, refused.value.capacity) == (5, 95)
    assert not refused.value.is_permanent


def test_written_bytes_count_once(store: ConductorStore) -> None:
    fence = store.issue_fence()
    execution = submit(store, Demand(needed=80, free=100))
    store.claim_next(fence)
    half = Progress(message="", current_step=2, total_steps=4)
    store.update(fence, execution.execution_id, progress=half)
    assert usage(store) == (80, 40)
    # 40 are on the disk, which has 60 left; 40 more will be written.
    submit(store, Demand(needed=20, free=60))
    with pytest.raises(StorageFull) as refused:
        submit(store, Demand(needed=1, free=60))
    assert (refused.value.available, refused.value.capacity) == (0, 100)


def test_result_that_can_never_fit_is_distinguished(store: ConductorStore) -> None:
    fence = store.issue_fence()
    execution = submit(store, Demand(needed=80, free=100))
    store.claim_next(fence)
    store.update(fence, execution.execution_id, status=Status.COMPLETED, results=results(70))
    for demand, is_permanent in (
        (Demand(needed=90, free=30), False),
        (Demand(needed=101, free=30), True),
        (Demand(needed=90, free=10**6, quota=100), False),
        (Demand(needed=101, free=10**6, quota=100), True),
        (Demand(needed=31, free=None, quota=100), False),
        (Demand(needed=0, free=0), False),
        (Demand(needed=0, free=10**6, quota=70), False),
    ):
        with pytest.raises(StorageFull) as refused:
            submit(store, demand)
        assert refused.value.is_permanent == is_permanent, demand
    submit(store, Demand(needed=30, free=10**6, quota=100))
    submit(store, Demand(needed=10**9, free=None))


@pytest.mark.parametrize(
    "ending",
    ["completed", "delivering", "failed", "failed and removed", "failed with", "cancelled"],
)
def test_usage_follows_the_execution(store: ConductorStore, ending: str) -> None:
    fence = store.issue_fence()
    execution = submit(store, Demand(needed=80, free=100))
    execution_id = execution.execution_id
    assert usage(store) == (80, 80)
    if ending == "cancelled":
        store.request_cancel(WORKFLOW, execution_id)
        assert usage(store) == (0, 0)
        return
    store.claim_next(fence)
    done = Progress(message="", current_step=1, total_steps=4)
    store.update(fence, execution_id, progress=done)
    assert usage(store) == (80, 60)
    if ending == "completed":
        store.update(fence, execution_id, status=Status.COMPLETED, results=results(30))
    elif ending in ("delivering", "failed with"):
        store.update(
            fence,
            execution_id,
            status=Status.PENDING_RESULTS,
            stage=Stage.UPLOAD,
            results=results(30),
        )
        store.update(fence, execution_id, progress=done)
        assert usage(store) == (30, 0)
    if ending.startswith("failed"):
        store.update(fence, execution_id, status=Status.FAILED)
        # What it has written is kept for a retry, until it is removed.
        assert usage(store) == ((30, 0) if ending == "failed with" else (20, 0))
        if ending == "failed and removed":
            store.mark_files_removed(fence, execution_id)
            assert usage(store) == (0, 0)
        # A retry of a delivery writes nothing.
        needed, after = {"failed with": (0, (30, 0)), "failed": (60, (80, 60))}.get(
            ending, (80, (80, 80))
        )

        def retry(**left: int | None) -> None:
            demand = Demand(needed=80, **{"free": None, **left})
            store.request_retry(WORKFLOW, execution_id, max_queued=9, demand=demand)

        if ending != "failed with":
            for left in ({"free": needed - 1}, {"quota": 79}):
                with pytest.raises(StorageFull):
                    retry(**left)
        retry(free=needed, quota=80)
        assert usage(store) == after
        store.mark_files_removed(fence, execution_id)
        assert usage(store) == after, "it is being retried"
        return
    assert usage(store) == (30, 0)


def test_expired_execution_counts_until_its_files_are_removed(store: ConductorStore) -> None:
    fence = store.issue_fence()
    execution = submit(store, Demand(needed=80, free=100))
    execution_id = execution.execution_id
    store.claim_next(fence)
    store.update(fence, execution_id, status=Status.COMPLETED, results=results(30))
    now = datetime.now(UTC) + timedelta(seconds=1)
    assert RetentionView(store).expirable(now - timedelta(days=1), 9) == []
    assert RetentionView(store).expirable(now, 9) == [execution_id]
    RetentionView(store).expire(fence, execution_id, now)
    assert RetentionView(store).expirable(now, 9) == []
    assert RetentionView(store).expired(9, [execution_id]) == []
    assert [each.execution_id for each in RetentionView(store).expired(9)] == [execution_id]
    assert usage(store) == (30, 0)
    RetentionView(store).mark_only_row_left(fence, execution_id)
    assert usage(store) == (0, 0)
    assert RetentionView(store).expired(9) == []


def test_execution_that_was_retried_meanwhile_does_not_expire(store: ConductorStore) -> None:
    fence = store.issue_fence()
    execution_id = submit(store, Demand(needed=8, free=100)).execution_id
    store.claim_next(fence)
    store.update(fence, execution_id, status=Status.FAILED)
    limit = datetime.now(UTC) + timedelta(seconds=1)
    assert RetentionView(store).expirable(limit, 9) == [execution_id]
    store.request_retry(WORKFLOW, execution_id, max_queued=9)
    RetentionView(store).expire(fence, execution_id, limit)
    assert store.read(execution_id).status == Status.QUEUED


def test_deleted_execution_frees_its_key_and_stays_known(store: ConductorStore) -> None:
    fence = store.issue_fence()
    key = Idempotency("key", "digest")
    old = new(created_at=datetime.now(UTC) - timedelta(hours=23))
    store.submit(old, max_queued=9, idempotency=key)
    store.request_cancel(WORKFLOW, old.execution_id)
    limit = datetime.now(UTC) + timedelta(seconds=1)
    RetentionView(store).expire(fence, old.execution_id, limit)
    RetentionView(store).mark_only_row_left(fence, old.execution_id)
    # Its key is still valid.
    assert RetentionView(store).delete_expired(fence, limit, 9) == 0
    with pytest.raises(IdempotencyConflict):
        store.submit(new(), max_queued=9, idempotency=Idempotency("key", "another"))
    with store.engine.begin() as connection:
        earlier = datetime.now(UTC) - timedelta(hours=25)
        connection.execute(sa.update(executions).values(created_at=earlier))
    assert RetentionView(store).delete_expired(fence, limit, 9) == 1
    with pytest.raises(ExecutionNotFound):
        store.read(old.execution_id)
    assert RetentionView(store).known([old.execution_id, "exec_1_00000000"]) == {old.execution_id}
    assert RetentionView(store).ended_before([old.execution_id], limit) == {old.execution_id: None}


def test_upgrade_reads_sizes_from_manifests(
    store: ConductorStore,
) -> None:
    fence = store.issue_fence()
    execution_id = submit(store, Demand(needed=80, free=100)).execution_id
    store.claim_next(fence)
    store.update(fence, execution_id, status=Status.COMPLETED, results=results(3 * 10**9))
    waiting = submit(store, Demand(needed=1, free=100)).execution_id
    with store.engine.begin() as connection:
        for index in executions.indexes:
            if {"disk_bytes", "unwritten_bytes", "removed_at"} & {c.name for c in index.columns}:
                index.drop(connection)
        for column in ("disk_bytes", "unwritten_bytes", "removed_at"):
            connection.exec_driver_sql(f"ALTER TABLE executions DROP COLUMN {column}")
    opened = ConductorStore(store.engine.url.render_as_string(hide_password=False))
    assert usage(opened) == (3 * 10**9, 0)
    assert opened.read(waiting).status == Status.QUEUED
    names = {index["name"] for index in sa.inspect(opened.engine).get_indexes("executions")}
    assert {str(index.name) for index in executions.indexes} <= names
    opened.close()
