"""The tables, and upgrades from earlier releases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import executions
from tests.deployments.store.records import (
    MANIFEST,
    WORKFLOW,
    new,
    on_both_databases,
    results,
    submit,
    usage,
)
from workflows.execution import Status

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
    connection.exec_driver_sql("ALTER TABLE executions ADD COLUMN results JSON")
    connection.exec_driver_sql("UPDATE executions SET results = 'null'")
    connection.exec_driver_sql(
        "UPDATE executions SET results = m.manifest FROM manifests m "
        "WHERE m.execution_id = executions.execution_id"
    )
    connection.exec_driver_sql("ALTER TABLE executions DROP COLUMN results_summary")
    connection.exec_driver_sql("DROP TABLE manifests")


def test_upgrade_moves_manifests_out_of_the_rows(store: ConductorStore) -> None:
    fence = store.issue_fence()
    submit(store, new(), new(), new())
    done, failed, *_ = [store.claim_next(fence) for _ in range(3)]
    assert done is not None and failed is not None
    store.update(fence, done.execution_id, status=Status.COMPLETED, results=MANIFEST)
    store.update(fence, failed.execution_id, status=Status.FAILED)
    before = {each.execution_id: each for each in store.list_executions(WORKFLOW)}
    with store.engine.begin() as connection:
        downgrade_manifests(connection)
    url = store.engine.url.render_as_string(hide_password=False)
    with ThreadPoolExecutor(4) as threads:
        opened = [task.result() for task in [threads.submit(ConductorStore, url) for _ in range(4)]]
    for each in opened:
        assert {e.execution_id: e for e in each.list_executions(WORKFLOW)} == before
        assert each.manifest(done.execution_id) == MANIFEST
        assert each.manifest(failed.execution_id) is None
        each.close()
    # A replica of the earlier release may still write while others are updated.
    later = results(70)
    with store.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE executions SET results = :m WHERE execution_id IN (:done, :failed)"),
            {
                "m": later.model_dump_json(),
                "done": done.execution_id,
                "failed": failed.execution_id,
            },
        )
    last = ConductorStore(url)
    for each in (done, failed):
        assert last.manifest(each.execution_id) == later
        assert last.read(each.execution_id).results == later.summary()
    with last.engine.connect() as connection:
        left = "SELECT count(*) FROM executions WHERE CAST(results AS VARCHAR) <> 'null'"
        assert connection.exec_driver_sql(left).scalar() == 0
    last.close()


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
