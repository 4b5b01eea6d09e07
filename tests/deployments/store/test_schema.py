"""The tables, and upgrades from earlier releases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import executions
from tests.deployments.store.records import (
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


def test_upgrade_reads_sizes_from_manifests(
    store: ConductorStore,
) -> None:
    fence = store.issue_fence()
    execution_id = submit(store, new())[0].execution_id
    store.claim_next(fence)
    store.update(fence, execution_id, status=Status.COMPLETED, results=results(3 * 10**9))
    waiting = submit(store, new())[0].execution_id
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
