"""Reading the execution store, on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from tests.deployments.store.records import (
    NOW,
    WORKFLOW,
    new,
    on_both_databases,
    submit,
)
from workflows.errors import (
    ExecutionNotFound,
)
from workflows.execution import Progress, Status
from workflows.manifest import Manifest, OutputFile

pytestmark = on_both_databases


def test_submitted_execution_is_read_back(store: ConductorStore) -> None:
    execution = new(
        parameters={"text": "Zürich ☔ 東京", "big": 2**32 - 1, "nested": [None, {"a": 1.5}]},
        plan={"seeds": [1, 2]},
        progress=Progress(message="waits", current_step=0, total_steps=6, members=(0, 0)),
    )
    submit(store, execution)
    assert store.get(WORKFLOW, execution.execution_id) == execution
    assert store.read(execution.execution_id) == execution


def test_execution_belongs_to_its_workflow(store: ConductorStore) -> None:
    execution = new()
    submit(store, execution)
    with pytest.raises(ExecutionNotFound):
        store.get("another_workflow", execution.execution_id)
    with pytest.raises(ExecutionNotFound):
        store.get(WORKFLOW, "exec_0_00000000")
    with pytest.raises(ExecutionNotFound):
        store.read("exec_0_00000000")


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


def test_rows_are_read_without_their_manifests(store: ConductorStore) -> None:
    """A manifest has a line per file: a page of large results would take a gigabyte."""
    files = tuple(OutputFile(path=f"x/t2m/c.{n}", size=1, sha256="0" * 64) for n in range(9_900))
    fence = store.issue_fence()
    (execution,) = submit(store, new())
    store.claim_next(fence)
    manifest = Manifest(output_files=files)
    store.update(fence, execution.execution_id, status=Status.COMPLETED, results=manifest)
    store.request_purge(WORKFLOW, execution.execution_id)
    reads_manifests: list[bool] = []

    @sa.event.listens_for(store.engine, "after_cursor_execute")
    def _note(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        reads_manifests.append("manifest" in statement.lower())

    (listed,) = store.list_executions(WORKFLOW)
    (to_purge,) = store.purge_requests()
    store.get(WORKFLOW, execution.execution_id)
    assert reads_manifests and not any(reads_manifests)
    for read in (listed, to_purge):
        assert len(read.model_dump_json()) < 1000
        assert read.results is not None
        assert (read.results.output_files, read.results.total_bytes) == (9_900, 9_900)
    assert store.manifest(execution.execution_id) == manifest


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
