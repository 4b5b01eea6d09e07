"""Counting and recording what is computed."""

from __future__ import annotations

from deployments.conductor.progress import ActiveExecution, ProgressTracker
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import make_context


def test_attempt_progressed_only_if_it_resumes_further_than_all_before() -> None:
    active = ActiveExecution(None)  # type: ignore[arg-type]
    progress = ProgressTracker({"exec_1": active}, None, models_share_gpu=False)  # type: ignore[arg-type]
    resumed = [progress.resumed_further("exec_1", 0, first) for first in (0, 0, 5, 5, 0, 5, 9, 9)]
    assert resumed == [False, False, True, False, False, False, True, False]
    assert progress.resumed_further("exec_1", 1, 5)


async def test_successor_counts_complete_members_only(
    store: ConductorStore, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    context, progress = make_context(store, fence)
    async with context.running(execution_id, 0) as plan:
        await progress.note_written(execution_id, plan, 0, 1)
        await progress.note_written(execution_id, plan, 0, plan.n_times)
        await progress.note_written(execution_id, plan, 1, 1)
    successor, _ = make_context(store, store.issue_fence())
    async with successor.running(execution_id, 0):
        assert successor.active[execution_id].written == [plan.n_times, 0, 0]
