import json

import pytest

from serve_app.http.status_cache import StatusCache
from tests.serve_app.conftest import WORKFLOW
from workflows.errors import ExecutionNotFound
from workflows.execution import Status


async def test_what_has_not_changed_is_not_read_again(service):
    observer = StatusCache(service.store)
    execution_id = await service.submit()
    service.conductor.start()
    seen = observer.look(WORKFLOW, execution_id)
    assert observer.look(WORKFLOW, execution_id) is seen
    service.conductor.advance(execution_id, 1)
    changed = observer.look(WORKFLOW, execution_id)
    assert json.loads(changed.body)["progress"]["current_step"] == 1


async def test_a_position_changes_without_a_revision(service):
    observer = StatusCache(service.store)
    await service.submit()
    second = await service.submit()
    assert observer.look(WORKFLOW, second).position == 1
    service.conductor.start()
    seen = observer.look(WORKFLOW, second)
    assert (seen.position, json.loads(seen.body)["position"]) == (0, 0)


async def test_manifests_are_not_kept(service):
    seen = StatusCache(service.store).look(WORKFLOW, await service.completed())
    assert seen.execution.status == Status.COMPLETED
    assert seen.execution.results is None
    assert json.loads(seen.body)["metadata"]["results_summary"]["output_files"] == 1


async def test_what_is_gone_is_not_remembered(service):
    observer = StatusCache(service.store)
    execution_id = await service.completed()
    observer.look(WORKFLOW, execution_id)
    with pytest.raises(ExecutionNotFound):
        observer.look("other_workflow", execution_id)
    service.store.remove(service.conductor.fence, execution_id)
    with pytest.raises(ExecutionNotFound):
        observer.look(WORKFLOW, execution_id)


async def test_only_so_many_are_remembered(service):
    observer = StatusCache(service.store, size=2)
    ids = [await service.submit() for _ in range(3)]
    first = observer.look(WORKFLOW, ids[0])
    for execution_id in ids[1:]:
        seen = observer.look(WORKFLOW, execution_id)
        assert observer.look(WORKFLOW, execution_id) is seen
    assert observer.look(WORKFLOW, ids[0]) is not first
