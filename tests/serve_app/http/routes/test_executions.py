"""Routes of executions: status, lists, cancellation and removal."""

import asyncio
import time
from datetime import datetime, timedelta

import pytest

from deployments.runtime.metrics import ENDED
from serve_app.http.schemas import ListBody, StatusBody
from tests.measured import Measured
from tests.serve_app.conftest import URL, WORKFLOW
from workflows.execution import Status


async def status_of(service, execution_id, query=""):
    response = await service.client.get(f"{URL}/{execution_id}/status{query}")
    assert response.status_code == 200, response.text
    StatusBody.model_validate(response.json())
    return response.json()


async def timed(coroutine):
    start = time.monotonic()
    return await coroutine, time.monotonic() - start


async def test_status_during_an_execution(service):
    first, second = await service.submit(n_samples=2), await service.submit()
    queued = await status_of(service, second)
    assert (queued["status"], queued["position"], queued["progress"]) == ("queued", 1, None)
    assert queued["end_time"] is None
    accepted = queued["start_time"]
    assert accepted.endswith("+00:00")
    assert len(queued["metadata"]["parameters"]["seeds"]) == 4

    service.conductor.start()
    service.conductor.advance(first, 3)
    running = await status_of(service, first)
    assert (running["status"], running["stage"]) == ("running", "inference")
    assert running["position"] is None
    assert running["progress"] == {
        "progress": "inference",
        "current_step": 3,
        "total_steps": 8,
        "error_message": None,
        "members": [3, 0],
        "steps_per_member": 4,
    }
    started = service.store.get(WORKFLOW, first).started_at
    assert datetime.fromisoformat(running["start_time"]) == started
    assert (await status_of(service, second))["position"] == 0

    service.conductor.package(first)
    assert (await status_of(service, first))["status"] == "pending_results"
    service.conductor.end(first, Status.COMPLETED)
    done = await status_of(service, first)
    assert done["status"] == "completed"
    assert done["metadata"]["results_summary"] == {
        "output_files": 1,
        "total_bytes": 12,
        "storage_type": "server",
    }
    duration = datetime.fromisoformat(done["end_time"]) - datetime.fromisoformat(done["start_time"])
    assert done["execution_time_seconds"] == duration.total_seconds()


async def test_the_status_of_a_failure_has_the_reason(service):
    execution_id = await service.submit()
    service.conductor.start()
    service.conductor.advance(execution_id, 1)
    service.conductor.end(execution_id, Status.FAILED, "no initial conditions")
    body = await status_of(service, execution_id)
    assert body["status"] == "failed"
    assert body["error_message"] == body["progress"]["error_message"] == "no initial conditions"


@pytest.mark.parametrize(
    "execution_id", ["exec_1_00000000", "x" * 3000, "%00", "a%20b", "exec_1_00000000%0a", "\u00e4"]
)
async def test_unknown_ids_are_not_found(service, execution_id):
    for method, url in [
        ("GET", f"{URL}/{execution_id}/status"),
        ("GET", f"{URL}/{execution_id}/results"),
        ("GET", f"{URL}/{execution_id}/results/a"),
        ("DELETE", f"{URL}/{execution_id}"),
        ("DELETE", f"{URL}/{execution_id}?purge=true"),
    ]:
        response = await service.client.request(method, url)
        assert response.status_code == 404, (method, url)
        assert isinstance(response.json()["detail"], str)
        assert len(response.content) < 200


@pytest.mark.parametrize(
    "query",
    ["wait=nan", "wait=-1", "wait=60.1", "wait=x", "wait=inf", "wait=", "revision=-1",
     "revision=1e3", f"revision={2**63}"],
)  # fmt: skip
async def test_invalid_waits_are_refused(service, query):
    execution_id = await service.submit()
    response = await service.client.get(f"{URL}/{execution_id}/status?{query}")
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", query.split("=")[0]]


async def test_a_long_poll_returns_at_a_change(service):
    execution_id = await service.submit()
    service.conductor.start()
    poll = asyncio.create_task(timed(status_of(service, execution_id, "?wait=20")))
    await asyncio.sleep(0.2)
    assert not poll.done()
    service.conductor.advance(execution_id, 5)
    body, elapsed_s = await poll
    assert body["progress"]["current_step"] == 5
    assert elapsed_s < 2


async def test_a_long_poll_returns_at_a_new_position(service):
    await service.submit()
    second = await service.submit()
    poll = asyncio.create_task(timed(status_of(service, second, "?wait=20")))
    await asyncio.sleep(0.1)
    service.conductor.start()
    body, elapsed_s = await poll
    assert (body["position"], body["revision"]) == (0, 0)
    assert elapsed_s < 2


async def test_a_long_poll_times_out_and_does_not_wait_for_a_finished_execution(service):
    finished = await service.completed()
    execution_id = await service.submit()
    body, elapsed_s = await timed(status_of(service, execution_id, "?wait=0.3"))
    assert body["status"] == "queued"
    assert 0.3 <= elapsed_s < 2
    _, elapsed_s = await timed(status_of(service, finished, "?wait=20"))
    assert elapsed_s < 2


async def test_no_change_is_missed_between_two_polls(service):
    execution_id = await service.submit()
    service.conductor.start()
    revision = (await status_of(service, execution_id))["revision"]
    service.conductor.advance(execution_id, 1)  # between the two polls
    body, elapsed_s = await timed(status_of(service, execution_id, f"?wait=20&revision={revision}"))
    assert body["revision"] == revision + 1
    assert elapsed_s < 2
    _, elapsed_s = await timed(
        status_of(service, execution_id, f"?wait=0.3&revision={revision + 1}")
    )
    assert elapsed_s >= 0.3


async def test_a_disconnect_ends_a_long_poll(service):
    execution_id = await service.submit()
    disconnected = asyncio.Event()

    async def receive():
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"{URL}/{execution_id}/status",
        "query_string": b"wait=30",
        "headers": [],
    }
    request = asyncio.create_task(service.app(scope, receive, send))
    changes = service.app.state.context.changes
    await asyncio.sleep(0.2)
    assert changes.pending == 1
    disconnected.set()
    await asyncio.wait_for(request, 2)
    assert changes.pending == 0


async def test_a_long_poll_of_an_execution_that_is_removed(service):
    execution_id = await service.submit()
    service.conductor.start()
    poll = asyncio.create_task(service.client.get(f"{URL}/{execution_id}/status?wait=20"))
    await asyncio.sleep(0.1)
    service.store.delete(service.conductor.fence, execution_id)
    assert (await poll).status_code == 404


async def test_lists_have_pages_and_filters(service):
    ids = [await service.submit(n_steps=1) for _ in range(5)]
    service.conductor.start()
    first = ListBody.model_validate((await service.client.get(f"{URL}?limit=2")).json())
    assert [e.execution_id for e in first.executions] == [ids[4], ids[3]]
    assert [e.position for e in first.executions] == [3, 2]
    assert first.next == ids[3]
    response = await service.client.get(f"{URL}?limit=3&before={first.next}")
    assert [e["execution_id"] for e in response.json()["executions"]] == ids[2::-1]
    assert response.json()["next"] is None
    response = await service.client.get(f"{URL}?status=running&status=completed")
    assert [e["execution_id"] for e in response.json()["executions"]] == [ids[0]]

    middle = service.store.get(WORKFLOW, ids[2]).created_at
    after = await service.client.get(URL, params={"created_after": middle.isoformat()})
    assert [e["execution_id"] for e in after.json()["executions"]] == ids[:1:-1]
    naive = (middle + timedelta(0)).replace(tzinfo=None).isoformat()
    before = await service.client.get(URL, params={"created_before": naive})
    assert [e["execution_id"] for e in before.json()["executions"]] == ids[1::-1]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "status=done", "created_after=yesterday",
     "created_before=10000-01-01T00:00:00", "before=", "before=a%20b", "before=" + "x" * 65],
)  # fmt: skip
async def test_invalid_filters_are_refused(service, query):
    response = await service.client.get(f"{URL}?{query}")
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][:2] == ["query", query.split("=")[0]]


async def test_extreme_times_and_unknown_pages(service):
    for time_text in (
        "0001-01-01T00:00:00",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
    ):
        response = await service.client.get(URL, params={"created_after": time_text})
        assert response.status_code == 200, time_text
    assert (await service.client.get(f"{URL}?before=exec_1_00000000")).status_code == 404


async def test_a_queued_execution_is_cancelled_at_once(serve):
    measured = Measured()
    service = serve(metrics=measured)
    execution_id = await service.submit()
    response = await service.client.delete(f"{URL}/{execution_id}")
    assert response.status_code == 200
    assert StatusBody.model_validate(response.json()).status == Status.CANCELLED
    assert (await service.client.delete(f"{URL}/{execution_id}")).status_code == 409
    assert measured.values(ENDED, workflow=WORKFLOW, status="cancelled") == [1]


async def test_cancelling_waits_briefly_for_the_conductor(service):
    execution_id = await service.submit()
    service.conductor.start()
    response, elapsed_s = await timed(service.client.delete(f"{URL}/{execution_id}"))
    assert (response.status_code, response.json()["status"]) == (202, "running")
    assert 1.9 < elapsed_s < 4
    assert [e.execution_id for e in service.store.cancel_requests()] == [execution_id]

    again = asyncio.create_task(service.client.delete(f"{URL}/{execution_id}"))
    await asyncio.sleep(0.2)
    service.conductor.end(execution_id, Status.CANCELLED)
    response = await again
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")


async def test_a_finished_execution_is_purged(service):
    execution_id = await service.submit()
    response = await service.client.delete(f"{URL}/{execution_id}?purge=true")
    assert response.status_code == 409
    await service.client.delete(f"{URL}/{execution_id}")

    purge = asyncio.create_task(service.client.delete(f"{URL}/{execution_id}?purge=true"))
    await asyncio.sleep(0.2)
    assert [e.execution_id for e in service.store.purge_requests()] == [execution_id]
    service.store.delete(service.conductor.fence, execution_id)
    response = await purge
    assert (response.status_code, response.content) == (204, b"")
    assert (await service.client.get(f"{URL}/{execution_id}/status")).status_code == 404


async def test_a_slow_purge_is_accepted(service):
    execution_id = await service.completed()
    response = await service.client.delete(f"{URL}/{execution_id}?purge=true")
    assert (response.status_code, response.json()["status"]) == (202, "completed")
