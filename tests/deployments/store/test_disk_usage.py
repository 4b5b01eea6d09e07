"""The execution store's account of disk usage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deployments.store.conductor_view import ConductorStore
from deployments.store.disk_usage import Demand
from deployments.store.retention_view import RetentionView
from tests.deployments.store.records import (
    WORKFLOW,
    new,
    on_both_databases,
    results,
    usage,
)
from workflows.errors import (
    StorageFull,
)
from workflows.execution import Execution, Progress, Stage, Status

pytestmark = on_both_databases


def submit(store: ConductorStore, demand: Demand, **values: Any) -> Execution:
    return store.submit(new(**values), max_queued=1000, demand=demand).execution


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
