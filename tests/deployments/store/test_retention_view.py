"""Expiring and deleting executions in the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.executions import IDEMPOTENCY_WINDOW, Idempotency
from deployments.store.retention_view import RetentionView
from deployments.store.schema import executions
from tests.deployments.store.records import (
    WORKFLOW,
    new,
    on_both_databases,
    submit,
)
from workflows.errors import (
    ExecutionNotFound,
    IdempotencyConflict,
)
from workflows.execution import Status

pytestmark = on_both_databases


def test_execution_that_was_retried_meanwhile_does_not_expire(store: ConductorStore) -> None:
    fence = store.issue_fence()
    execution_id = submit(store, new())[0].execution_id
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
    invalid = datetime.now(UTC) - IDEMPOTENCY_WINDOW
    assert RetentionView(store).delete_expired(fence, limit, invalid, 9) == 0
    with pytest.raises(IdempotencyConflict):
        store.submit(new(), max_queued=9, idempotency=Idempotency("key", "another"))
    with store.engine.begin() as connection:
        earlier = datetime.now(UTC) - timedelta(hours=25)
        connection.execute(sa.update(executions).values(created_at=earlier))
    assert RetentionView(store).delete_expired(fence, limit, invalid, 9) == 1
    with pytest.raises(ExecutionNotFound):
        store.read(old.execution_id)
    assert RetentionView(store).known([old.execution_id, "exec_1_00000000"]) == {old.execution_id}
    assert RetentionView(store).ended_before([old.execution_id], limit) == {old.execution_id: None}
