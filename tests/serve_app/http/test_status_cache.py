"""The status cache: what is cached, and when it is refreshed."""

import json

import pytest

from serve_app.http.status_cache import StatusCache
from tests.serve_app.conftest import WORKFLOW
from workflows.errors import ExecutionNotFound
from workflows.execution import Status


async def test_an_unchanged_execution_comes_from_the_cache(service):
    cache = StatusCache(service.store)
    execution_id = await service.submit()
    service.conductor.start()
    snapshot = cache.get(WORKFLOW, execution_id)
    assert cache.get(WORKFLOW, execution_id) is snapshot
    service.conductor.advance(execution_id, 1)
    changed = cache.get(WORKFLOW, execution_id)
    assert json.loads(changed.body)["progress"]["current_step"] == 1


async def test_a_new_position_refreshes_the_status_at_the_same_revision(service):
    cache = StatusCache(service.store)
    await service.submit()
    second = await service.submit()
    assert cache.get(WORKFLOW, second).position == 1
    service.conductor.start()
    snapshot = cache.get(WORKFLOW, second)
    assert (snapshot.position, json.loads(snapshot.body)["position"]) == (0, 0)


async def test_results_are_summarized(service):
    snapshot = StatusCache(service.store).get(WORKFLOW, await service.completed())
    assert snapshot.execution.status == Status.COMPLETED
    assert json.loads(snapshot.body)["metadata"]["results_summary"]["output_files"] == 1


async def test_a_removed_execution_is_not_served_from_the_cache(service):
    cache = StatusCache(service.store)
    execution_id = await service.completed()
    cache.get(WORKFLOW, execution_id)
    with pytest.raises(ExecutionNotFound):
        cache.get("other_workflow", execution_id)
    service.store.delete(service.conductor.fence, execution_id)
    with pytest.raises(ExecutionNotFound):
        cache.get(WORKFLOW, execution_id)


async def test_the_oldest_entry_is_dropped_when_the_cache_is_full(service):
    cache = StatusCache(service.store, size=2)
    ids = [await service.submit() for _ in range(3)]
    first = cache.get(WORKFLOW, ids[0])
    for execution_id in ids[1:]:
        snapshot = cache.get(WORKFLOW, execution_id)
        assert cache.get(WORKFLOW, execution_id) is snapshot
    assert cache.get(WORKFLOW, ids[0]) is not first
