"""The tables, and upgrades from earlier releases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.retention_view import RetentionView
from deployments.store.schema import executions, manifests
from tests.deployments.store.records import (
    MANIFEST,
    WORKFLOW,
    new,
    on_both_databases,
    results,
    submit,
    usage,
)
from workflows.errors import StaleConductor
from workflows.execution import Status
from workflows.manifest import Manifest

pytestmark = on_both_databases


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


def downgrade_manifests(connection: sa.Connection) -> None:
    """Move all manifests into the rows of executions, where earlier releases had them."""
    connection.exec_driver_sql("ALTER TABLE executions DROP COLUMN results")
    connection.exec_driver_sql("ALTER TABLE executions ADD COLUMN results JSON")
    connection.exec_driver_sql("UPDATE executions SET results = 'null'")
    connection.exec_driver_sql(
        "UPDATE executions SET results = m.manifest FROM manifests m "
        "WHERE m.execution_id = executions.execution_id"
    )
    connection.exec_driver_sql("ALTER TABLE executions DROP COLUMN results_summary")
    connection.exec_driver_sql("DROP TABLE manifests")


def write_as_earlier_release(
    store: ConductorStore, execution_id: str, status: Status, manifest: Manifest | None
) -> None:
    """Update a row as a Conductor of the earlier release does."""
    with store.writing() as connection:
        connection.execute(
            sa.text(
                "UPDATE executions SET status = :status, results = :results, "
                "revision = revision + 1 WHERE execution_id = :id"
            ),
            {
                "status": status,
                "results": "null" if manifest is None else manifest.model_dump_json(),
                "id": execution_id,
            },
        )


def former_manifests(store: ConductorStore) -> dict[str, str]:
    """Return what a Conductor of the earlier release finds, by execution."""
    query = "SELECT execution_id, CAST(results AS VARCHAR) FROM executions"
    with store.engine.connect() as connection:
        return {row[0]: row[1] for row in connection.exec_driver_sql(query)}


@pytest.fixture
def upgraded(store: ConductorStore) -> Iterator[tuple[ConductorStore, list[str]]]:
    """Return a database whose Conductor is still of the earlier release, opened by this one.

    Its executions are two that are completed, a failed and a running one.
    """
    fence = store.issue_fence()
    ids = [execution.execution_id for execution in submit(store, *(new() for _ in range(4)))]
    for _ in ids:
        store.claim_next(fence)
    for execution_id in ids[:2]:
        store.update(fence, execution_id, status=Status.COMPLETED, results=MANIFEST)
    store.update(fence, ids[2], status=Status.FAILED)
    with store.engine.begin() as connection:
        downgrade_manifests(connection)
    url = store.engine.url.render_as_string(hide_password=False)
    with ThreadPoolExecutor(4) as threads:
        opened = [task.result() for task in [threads.submit(ConductorStore, url) for _ in range(4)]]
    yield opened[0], ids
    for each in opened:
        each.close()


def test_conductor_of_an_earlier_release_leads_beside_this_one(
    upgraded: tuple[ConductorStore, list[str]],
) -> None:
    store, (done, expiring, failed, running) = upgraded
    former = former_manifests(store)
    assert Manifest.model_validate_json(former[done]) == MANIFEST
    assert former[failed] == former[running] == "null"
    summaries = {each.execution_id: each.results for each in store.list_executions(WORKFLOW)}
    summary = MANIFEST.summary()
    assert summaries == {done: summary, expiring: summary, failed: None, running: None}
    assert store.manifest(done) == MANIFEST
    assert store.manifest(failed) is None
    later = results(70)
    accepted = submit(store, new())[0].execution_id
    for execution_id in (running, accepted):
        write_as_earlier_release(store, execution_id, Status.PENDING_RESULTS, MANIFEST)
        assert store.manifest(execution_id) == MANIFEST
        write_as_earlier_release(store, execution_id, Status.COMPLETED, later)
        assert store.manifest(execution_id) == later
        assert store.read(execution_id).results == later.summary()
    write_as_earlier_release(store, expiring, Status.EXPIRED, None)
    assert store.manifest(expiring) is None
    assert store.read(expiring).results is None


def test_manifests_of_an_earlier_release_are_copied(
    upgraded: tuple[ConductorStore, list[str]],
) -> None:
    store, (done, expiring, failed, running) = upgraded
    fence = store.issue_fence()
    former = former_manifests(store)
    ids = store.with_former_manifests()
    assert sorted(ids) == sorted([done, expiring])
    # Before it is copied.
    limit = datetime.now(UTC) + timedelta(days=1)
    RetentionView(store).expire(fence, expiring, limit)
    store.copy_former_manifests(fence, ids)
    with store.engine.connect() as connection:
        assert connection.scalars(sa.select(manifests.c.execution_id)).all() == [done]
    assert store.manifest(done) == MANIFEST
    assert store.read(done).results == MANIFEST.summary()
    for execution_id in (expiring, failed, running):
        assert store.manifest(execution_id) is None
        assert store.read(execution_id).results is None
    # For a rollback.
    assert former_manifests(store)[done] == former[done]
    assert store.with_former_manifests() == []
    RetentionView(store).expire(fence, done, limit)
    assert store.read(done).results is None
    assert store.with_former_manifests() == []
    with pytest.raises(StaleConductor):
        store.copy_former_manifests(fence - 1, [])


def test_manifest_written_after_a_rollback_counts(store: ConductorStore) -> None:
    fence = store.issue_fence()
    execution_id = submit(store, new())[0].execution_id
    store.claim_next(fence)
    write_as_earlier_release(store, execution_id, Status.COMPLETED, MANIFEST)
    fence = store.issue_fence()
    assert store.read(execution_id).results == MANIFEST.summary()
    store.copy_former_manifests(fence, store.with_former_manifests())
    assert store.manifest(execution_id) == MANIFEST


def test_expired_executions_get_no_manifest_back(store: ConductorStore) -> None:
    execution_id = submit(store, new())[0].execution_id
    for status in (Status.EXPIRED, Status.CANCELLED):
        write_as_earlier_release(store, execution_id, status, MANIFEST)
        assert store.with_former_manifests() == []


def test_upgrade_reads_sizes_from_manifests(
    store: ConductorStore,
) -> None:
    fence = store.issue_fence()
    execution_id = submit(store, new())[0].execution_id
    store.claim_next(fence)
    store.update(fence, execution_id, status=Status.COMPLETED, results=results(3 * 10**9))
    waiting = submit(store, new())[0].execution_id
    with store.engine.begin() as connection:
        downgrade_manifests(connection)
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
