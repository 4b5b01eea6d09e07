"""Routes of workflows: lists, schemas and submits."""

import asyncio
import gzip
import sqlite3
import threading

import pytest

from deployments.runtime.metrics import REFUSALS
from serve_app.http.schemas import SubmitBody, WorkflowsBody
from tests.measured import Measured
from tests.serve_app.conftest import URL, WORKFLOW
from workflows import FCN3Workflow
from workflows.execution import Status


class OtherWorkflow(FCN3Workflow):
    name = "other_workflow"
    description = "another"


CATALOGUE = {WORKFLOW: FCN3Workflow, "other_workflow": OtherWorkflow}


def locations(response):
    assert response.status_code == 422, response.text
    return [finding["loc"] for finding in response.json()["detail"]]


async def test_exposed_workflows_are_listed_and_warmup_workflows_only_callable(serve):
    service = serve(catalogue=CATALOGUE, warmup=("other_workflow",))
    response = await service.client.get("/v1/infer/workflows")
    assert set(WorkflowsBody.model_validate(response.json()).workflows) == {WORKFLOW}
    assert (await service.client.post("/v1/infer/other_workflow", json={})).status_code == 200
    response = await service.client.get("/v1/infer/workflows/other_workflow/schema")
    assert response.status_code == 200


async def test_a_workflow_that_is_not_exposed_is_not_found(serve):
    service = serve(catalogue=CATALOGUE)
    for name in ("other_workflow", "no_workflow", "x" * 5000, "%00", "..%2f"):
        for method, url in [
            ("POST", f"/v1/infer/{name}"),
            ("GET", f"/v1/infer/{name}"),
            ("GET", f"/v1/infer/workflows/{name}/schema"),
            ("GET", f"/v1/infer/{name}/exec_1_00000000/status"),
            ("GET", f"/v1/infer/{name}/exec_1_00000000/results"),
            ("GET", f"/v1/infer/{name}/exec_1_00000000/results/a"),
            ("DELETE", f"/v1/infer/{name}/exec_1_00000000"),
        ]:
            response = await service.client.request(method, url)
            assert response.status_code in (404, 405), (method, url)
    response = await service.client.post("/v1/infer/other_workflow", content=b"{broken")
    assert response.status_code == 404


async def test_the_schema_forbids_unknown_parameters(service):
    schema = (await service.client.get(f"/v1/infer/workflows/{WORKFLOW}/schema")).json()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["n_steps"]["maximum"] == 400


async def test_submit(service):
    response = await service.client.post(URL, json={"parameters": {"n_steps": "3"}})
    body = SubmitBody.model_validate(response.json())
    assert (body.status, body.position, body.workflow_name) == (Status.QUEUED, 0, WORKFLOW)
    second = await service.client.post(URL, json={})
    assert second.json()["position"] == 1
    stored = service.store.get(WORKFLOW, body.execution_id)
    assert stored.parameters["n_steps"] == 3
    assert len(stored.parameters["seeds"]) == stored.parameters["n_samples"] == 4
    assert stored.plan["seeds"] == stored.parameters["seeds"]


async def test_resolved_parameters_can_be_submitted_again(service):
    execution_id = await service.submit(seeds=[5, 6])
    parameters = service.store.get(WORKFLOW, execution_id).parameters
    again = await service.submit(**parameters)
    assert service.store.get(WORKFLOW, again).plan["seeds"] == [5, 6]


async def test_submit_without_a_name(serve):
    both = {"catalogue": CATALOGUE}
    response = await serve().client.post("/v1/infer", json={})
    assert response.json()["workflow_name"] == WORKFLOW
    response = await serve(**both, exposed=tuple(CATALOGUE)).client.post("/v1/infer", json={})
    assert response.status_code == 409
    assert "other_workflow" in response.json()["detail"]
    response = await serve(exposed=(), warmup=(WORKFLOW,)).client.post("/v1/infer", json={})
    assert response.status_code == 503


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"n_steps": 10**9}, ["n_steps"]),
        ({"n_steps": 0}, ["n_steps"]),
        ({"n_steps": 1.5}, ["n_steps"]),
        ({"n_steps": True}, ["n_steps"]),
        ({"n_steps": None}, ["n_steps"]),
        ({"n_samples": 33}, ["n_samples"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [0, -1]}, ["seeds", 1]),
        ({"seeds": [1], "n_samples": 2}, []),
        ({"variables": []}, ["variables"]),
        ({"variables": ["t2m", "t2m"]}, ["variables"]),
        ({"variables": ["no"]}, ["variables"]),
        ({"variables": "t2m"}, ["variables"]),
        ({"start_time": "2025-01-01"}, ["start_time"]),
        ({"start_time": "2025-01-01T01:00:00"}, ["start_time"]),
        ({"output_format": "grib"}, ["output_format"]),
        ({"container_url": "https://a.example/c"}, ["container_url"]),
        ({"unknown": 1}, ["unknown"]),
        ({"start_time": "x" * 500_000}, ["start_time"]),
    ],
)
async def test_invalid_parameters_are_reported_and_nothing_is_queued(service, parameters, field):
    response = await service.client.post(URL, json={"parameters": parameters})
    assert locations(response) == [["body", "parameters", *field]]
    assert len(response.content) < 5000
    assert service.store.list_executions(WORKFLOW) == []


async def test_the_error_of_an_unknown_parameter_lists_the_known_ones(service):
    response = await service.client.post(URL, json={"parameters": {"start_tiem": "2025-01-01"}})
    message = response.json()["detail"][0]["msg"]
    assert message.startswith("unknown; there are ")
    assert set(message.removeprefix("unknown; there are ").split(", ")) == set(
        FCN3Workflow.parameters.model_fields
    )


async def test_the_number_of_reported_problems_is_limited(service):
    many = {f"x{i}" * 20: i for i in range(5000)}
    response = await service.client.post(URL, json={"parameters": many})
    assert len(locations(response)) == 50
    assert len(response.content) < 20_000


async def test_invalid_bodies(service):
    assert locations(await service.client.post(URL, content=b"{broken")) == [["body"]]
    response = await service.client.post(URL, content=b'{"parameters": {"n_steps": NaN}}')
    assert locations(response) == [["body", "parameters", "n_steps"]]
    response = await service.client.post(URL, data={"parameters": "{}"})
    assert response.status_code == 415


async def test_a_compressed_body_is_refused_with_what_is_accepted(service):
    headers = {"Content-Encoding": "gzip"}
    response = await service.client.post(URL, content=gzip.compress(b"{}"), headers=headers)
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "identity"
    assert "gzip" in response.json()["detail"]


async def test_a_slow_validation_delays_no_other_request(serve):
    validating, go_on = threading.Event(), threading.Event()

    class SlowWorkflow(FCN3Workflow):
        name = "slow"

        def validate(self, values):
            validating.set()
            assert go_on.wait(10)
            return super().validate(values)

    service = serve(
        catalogue={WORKFLOW: FCN3Workflow, "slow": SlowWorkflow}, exposed=(WORKFLOW, "slow")
    )
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(service.client.post("/v1/infer/slow", json={}))
        assert await asyncio.to_thread(validating.wait, 5)
        cancelled = await service.client.delete(f"{URL}/{await service.submit()}")
        assert cancelled.status_code == 200
        assert not slow.done()
        go_on.set()
    assert slow.result().status_code == 200


async def test_a_result_above_the_limit_is_refused(serve):
    service = serve(limits={"max_output_gb": 27361e-9}, grid={"n_lat": 19, "n_lon": 36})
    fits = {"n_samples": 1, "n_steps": 9, "variables": ["t2m"]}
    assert await service.submit(**fits)
    response = await service.client.post(URL, json={"parameters": {**fits, "n_steps": 10}})
    assert locations(response) == [["body", "parameters"]]
    finding = response.json()["detail"][0]
    assert finding["type"] == "output_too_large"
    assert "1 members x 11 times x 1 variables x 2.74 kB = 30.1 kB" in finding["msg"]
    assert "27.4 kB" in finding["msg"]
    assert "n_steps" in finding["msg"]


async def test_a_result_larger_than_the_disk_is_refused(serve):
    service = serve(limits={"max_output_gb": 1e9}, grid={"n_lat": 2 * 10**5, "n_lon": 4 * 10**5})
    response = await service.client.post(
        URL, json={"parameters": {"n_samples": 32, "n_steps": 400, "variables": None}}
    )
    assert locations(response) == [["body", "parameters"]]
    assert response.json()["detail"][0]["type"] == "insufficient_storage"


async def test_a_result_that_does_not_fit_now_can_be_submitted_later(serve):
    service = serve(results={"quota_gb": 3e-4})
    request = {"parameters": {"n_samples": 1, "n_steps": 3, "output_format": "zarr"}}
    # 4 times, 3 variables and 72 of the initial conditions, of 2,736 bytes each.
    first = await service.client.post(URL, json=request)
    assert first.status_code == 200
    response = await service.client.post(URL, json=request)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "30"
    assert response.json()["detail"].startswith(
        "no space for the result at the moment: it needs 230 kB of disk; 70.2 kB are left"
    )
    # A result that can never fit is an invalid request.
    larger = {"parameters": {**request["parameters"], "n_samples": 8}}
    response = await service.client.post(URL, json=larger)
    assert locations(response) == [["body", "parameters"]]
    assert response.json()["detail"][0]["type"] == "insufficient_storage"
    # Cancelling one makes room for another.
    cancelled = await service.client.delete(f"{URL}/{first.json()['execution_id']}")
    assert cancelled.status_code == 200
    assert (await service.client.post(URL, json=request)).status_code == 200


async def test_refusals_for_lack_of_capacity_are_counted_by_reason(serve):
    measured = Measured()
    service = serve(results={"quota_gb": 3e-4}, queue={"max_size": 2}, metrics=measured)
    small = {"n_samples": 1, "n_steps": 3, "output_format": "zarr"}
    await service.submit(**small)
    await service.client.post(URL, json={"parameters": small})
    await service.client.post(URL, json={"parameters": {**small, "n_samples": 8}})
    await service.client.post(URL, json={"parameters": {**small, "n_steps": 0}})
    assert measured.values(REFUSALS, reason="disk_full") == [1]
    assert measured.values(REFUSALS, reason="disk_too_small") == [1]
    assert measured.total(REFUSALS) == 2
    full = serve(queue={"max_size": 1}, metrics=measured)
    await full.client.post(URL, json={"parameters": small})
    assert measured.values(REFUSALS, reason="queue_full") == [1]


async def test_a_retry_needs_disk_space(serve):
    service = serve(results={"quota_gb": 3e-4})
    small = {"n_samples": 1, "n_steps": 3, "output_format": "zarr"}
    failed = await service.submit(**small)
    service.conductor.start()
    service.conductor.end(failed, Status.FAILED, "the model died")
    await service.submit(**small)
    response = await service.client.post(f"{URL}/{failed}/retry")
    assert response.status_code == 503
    assert "retry-after" in response.headers


async def test_a_full_queue(serve):
    service = serve(queue={"max_size": 2})
    await service.submit()
    await service.submit()
    response = await service.client.post(URL, json={})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "30"
    assert "2 executions wait, 2 are allowed" in response.json()["detail"]

    # Once an execution has completed, its duration is the estimate.
    started = service.conductor.start()
    await service.submit()
    service.conductor.complete(started.execution_id)
    response = await service.client.post(URL, json={})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


async def test_the_same_idempotency_key_returns_the_same_execution(serve):
    service = serve(queue={"max_size": 1})
    headers = {"Idempotency-Key": "run 1"}
    first = await service.client.post(URL, json={"parameters": {}}, headers=headers)
    assert "idempotency-replayed" not in first.headers
    again = await service.client.post(URL, content=b'{ "parameters":{}}', headers=headers)
    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["execution_id"] == first.json()["execution_id"]
    assert again.json()["position"] == 0
    assert len(service.store.list_executions(WORKFLOW)) == 1

    service.conductor.start()
    later = await service.client.post(URL, json={"parameters": {}}, headers=headers)
    assert (later.json()["status"], later.json()["position"]) == ("running", None)


async def test_the_same_idempotency_key_with_another_body_is_refused(service):
    headers = {"Idempotency-Key": "k"}
    await service.client.post(URL, json={}, headers=headers)
    response = await service.client.post(URL, json={"parameters": {"n_steps": 1}}, headers=headers)
    assert locations(response) == [["header", "Idempotency-Key"]]
    for key in (b"", b"k" * 256, b"\xe4"):
        response = await service.client.post(URL, json={}, headers={b"Idempotency-Key": key})
        assert locations(response) == [["header", "Idempotency-Key"]]


async def test_a_locked_store_is_reported_as_unavailable(service, store, caplog):
    # The time that a writer waits for the lock before it fails.
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=10")
    other = sqlite3.connect(store.engine.url.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    response = await service.client.post(URL, json={})
    other.close()
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "sql" not in response.text.lower() and "INSERT" not in response.text
    assert "locked" in caplog.text
