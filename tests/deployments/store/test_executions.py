"""The conformance suite of the execution store: SQLite and PostgreSQL pass the same tests."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from deployments.store.conductor_view import ConductorStore
from deployments.store.executions import Idempotency
from workflows.dataset import Origin
from workflows.errors import (
    ExecutionNotFound,
    IdempotencyConflict,
    IllegalTransition,
    QueueFull,
    StaleConductor,
)
from workflows.execution import Execution, Progress, Stage, Status, new_execution_id
from workflows.manifest import Manifest, OutputFile
from workflows.readiness import NotReady, Ready

WORKFLOW = "foundry_fcn3_workflow"
NOW = datetime.now(UTC)
READY = Ready(origin=Origin(name="fcn3"))
MANIFEST = Manifest(output_files=(OutputFile(path="x/größe.nc", size=30, sha256="0"),))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/executions.sqlite"
    return request.getfixturevalue("postgres_database")


@pytest.fixture
def store(url: str) -> Iterator[ConductorStore]:
    store = ConductorStore(url)
    yield store
    store.close()


def new(workflow: str = WORKFLOW, **values: object) -> Execution:
    standard = {
        "execution_id": new_execution_id(),
        "workflow": workflow,
        "status": Status.QUEUED,
        "parameters": {"n_steps": 2},
        "plan": {},
        "created_at": datetime.now(UTC),
    }
    return Execution.model_validate(standard | values)


def submit(store: ConductorStore, *executions: Execution) -> list[Execution]:
    return [store.submit(execution, max_queued=1000).execution for execution in executions]


def finish(store: ConductorStore, fence: int, execution: Execution) -> None:
    store.update(fence, execution.execution_id, status=Status.PENDING_RESULTS)
    store.update(fence, execution.execution_id, status=Status.COMPLETED)


def submit_until_full(url: str, bound: int, attempts: int) -> list[int]:
    """Submit from one process, and return the positions in the queue."""
    store = ConductorStore(url)

    def attempt(_: int) -> int | None:
        try:
            return store.submit(new(), max_queued=bound).position
        except QueueFull:
            return None

    with ThreadPoolExecutor(2) as threads:
        positions = list(threads.map(attempt, range(attempts)))
    store.close()
    return [position for position in positions if position is not None]


# Submitting


def test_submitted_execution_is_read_back(store: ConductorStore) -> None:
    execution = new(
        parameters={"text": "Zürich ☔ 東京", "big": 2**32 - 1, "nested": [None, {"a": 1.5}]},
        plan={"seeds": [1, 2]},
        progress=Progress(message="waits", current_step=0, total_steps=6, members=(0, 0)),
    )
    submit(store, execution)
    assert store.get(WORKFLOW, execution.execution_id) == execution
    assert store.read(execution.execution_id) == execution


def test_execution_is_visible_to_another_process_and_after_a_restart(url: str) -> None:
    first = ConductorStore(url)
    execution = new()
    submit(first, execution)
    second = ConductorStore(url)
    assert second.get(WORKFLOW, execution.execution_id) == execution
    first.close()
    second.close()
    third = ConductorStore(url)
    assert third.get(WORKFLOW, execution.execution_id) == execution
    third.close()


def test_execution_belongs_to_its_workflow(store: ConductorStore) -> None:
    execution = new()
    submit(store, execution)
    with pytest.raises(ExecutionNotFound):
        store.get("another_workflow", execution.execution_id)
    with pytest.raises(ExecutionNotFound):
        store.get(WORKFLOW, "exec_0_00000000")
    with pytest.raises(ExecutionNotFound):
        store.read("exec_0_00000000")


def test_queue_bound_holds_for_concurrent_processes(url: str) -> None:
    # The processes also create the tables concurrently.
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as processes:
        tasks = [processes.submit(submit_until_full, url, 20, 12) for _ in range(4)]
        positions = [position for task in tasks for position in task.result(timeout=120)]
    assert sorted(positions) == list(range(20))
    store = ConductorStore(url)
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


def test_position_counts_the_queued_executions_ahead(store: ConductorStore) -> None:
    first, second, other, third = submit(store, new(), new(), new("another_workflow"), new())
    # Another workflow has replicas of its own, so nothing is ahead of it.
    assert [store.position(e) for e in (first, second, other, third)] == [0, 1, 0, 2]
    store.request_cancel(second.workflow, second.execution_id)
    assert store.position(third) == 1
    claimed = store.claim_next(store.issue_fence())
    assert claimed is not None
    assert store.position(claimed) is None
    assert store.position(third) == 0


# Idempotency


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


# The Conductor


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
    assert done.results == MANIFEST
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


# Cancelling and purging


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


# Listing


def test_pages_show_every_execution_once_newest_first(store: ConductorStore) -> None:
    submitted = submit(store, *(new() for _ in range(7)))
    submit(store, new("another_workflow"))
    seen: list[str] = []
    while page := store.list_executions(WORKFLOW, limit=3, before=seen[-1] if seen else None):
        seen += [execution.execution_id for execution in page]
        submit(store, new())  # new executions change no page
    assert seen == [execution.execution_id for execution in reversed(submitted)]


def test_page_cannot_continue_from_another_workflow(store: ConductorStore) -> None:
    (other,) = submit(store, new("another_workflow"))
    for before in ("exec_0_00000000", other.execution_id):
        with pytest.raises(ExecutionNotFound):
            store.list_executions(WORKFLOW, before=before)


def test_lists_filter_by_status_and_time(store: ConductorStore) -> None:
    fence = store.issue_fence()
    old, middle, young = (new(created_at=NOW + timedelta(hours=h)) for h in (-2, -1, 0))
    submit(store, old, middle, young)
    store.claim_next(fence)
    store.request_cancel(WORKFLOW, middle.execution_id)

    def listed(**filters: object) -> list[str]:
        return [e.execution_id for e in store.list_executions(WORKFLOW, **filters)]

    assert listed(statuses=[Status.RUNNING]) == [old.execution_id]
    assert listed(statuses=[Status.QUEUED, Status.CANCELLED]) == [
        young.execution_id,
        middle.execution_id,
    ]
    # From the first time, inclusive, to the second, exclusive.
    assert listed(created_after=middle.created_at, created_before=young.created_at) == [
        middle.execution_id
    ]
    assert listed(created_after=NOW + timedelta(seconds=1)) == []
    assert store.list_executions("another_workflow") == []
    assert store.count_by_status() == {
        (WORKFLOW, "running"): 1,
        (WORKFLOW, "cancelled"): 1,
        (WORKFLOW, "queued"): 1,
    }


def test_readers_do_not_wait_for_a_writer(store: ConductorStore) -> None:
    (execution,) = submit(store, new())
    with store.writing():
        assert store.get(WORKFLOW, execution.execution_id) == execution
        assert store.list_executions(WORKFLOW) == [execution]


def test_folder_of_a_sqlite_file_is_created(tmp_path: Path) -> None:
    store = ConductorStore(f"sqlite:///{tmp_path}/not/yet/there/executions.sqlite")
    submit(store, new())
    store.close()


# Retries


def fail(store: ConductorStore, fence: int, execution_id: str, **values: Any) -> None:
    store.claim_next(fence)
    store.update(fence, execution_id, status=Status.FAILED, error_message="no token", **values)


def test_retry_of_a_failed_delivery_keeps_the_results(store: ConductorStore) -> None:
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    fail(store, fence, execution.execution_id, stage=Stage.REGISTER, results=MANIFEST)
    queued = store.request_retry(WORKFLOW, execution.execution_id, max_queued=1)
    assert (queued.status, queued.stage, queued.retries) == (Status.QUEUED, Stage.REGISTER, 1)
    assert (queued.error_message, queued.ended_at, queued.results) == (None, None, MANIFEST)
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


def test_database_of_an_earlier_release_is_upgraded(store: ConductorStore) -> None:
    (execution,) = submit(store, new())
    with store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE executions DROP COLUMN retries")
    url = store.engine.url.render_as_string(hide_password=False)
    with ThreadPoolExecutor(4) as threads:
        opened = [task.result() for task in [threads.submit(ConductorStore, url) for _ in range(4)]]
    assert [each.read(execution.execution_id).retries for each in opened] == [0] * 4
    for each in opened:
        each.close()


def test_cancel_during_a_delivery_drops_the_results(store: ConductorStore) -> None:
    [execution] = submit(store, new())
    fence = store.issue_fence()
    store.claim_next(fence)
    store.update(fence, execution.execution_id, status=Status.PENDING_RESULTS, results=MANIFEST)
    cancelled = store.update(fence, execution.execution_id, status=Status.CANCELLED)
    assert cancelled.results is None
    assert store.read(execution.execution_id).results is None


def test_cancel_of_a_queued_delivery_drops_the_results(
    store: ConductorStore,
) -> None:
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
    assert store.request_cancel(WORKFLOW, execution.execution_id).results is None
    assert store.read(execution.execution_id).results is None


def test_execution_whose_earlier_attempt_is_ending_is_not_claimed(store: ConductorStore) -> None:
    first, second = submit(store, new(), new())
    fence = store.issue_fence()
    claimed = store.claim_next(fence, ending=[first.execution_id])
    assert claimed is not None and claimed.execution_id == second.execution_id
    assert store.claim_next(fence, ending=[first.execution_id]) is None
    claimed = store.claim_next(fence)
    assert claimed is not None and claimed.execution_id == first.execution_id
