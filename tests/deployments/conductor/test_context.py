"""Ends of lives that others have gone past."""

from __future__ import annotations

from pathlib import Path

from deployments.conductor.context import Lives
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.conducting_process import Handle, Journal, StandIns
from tests.deployments.store.test_executions import WORKFLOW, new, submit
from workflows.execution import Status


async def test_an_end_that_is_recorded_already_does_not_fail_the_next_attempt(
    tmp_path: Path,
) -> None:
    """A successor takes up what had failed, and its client has it tried again meanwhile."""
    store = ConductorStore(f"sqlite:///{tmp_path}/executions.sqlite")
    journal = Journal(tmp_path / "journal")
    [execution] = submit(store, new())
    execution_id = execution.execution_id
    lives = Lives(store, {"packager": Handle(StandIns(journal))}, lambda _: None)
    lives.fence = store.issue_fence()
    store.claim_next(lives.fence)
    store.update(lives.fence, execution_id, status=Status.FAILED, error_message="first")
    store.request_retry(WORKFLOW, execution_id, max_queued=9)
    await lives.end_failed(execution_id, "first")
    assert store.read(execution_id).status == Status.QUEUED
    # What the attempt made is removed all the same.
    assert journal.lines() == ["purge"]
    store.close()
