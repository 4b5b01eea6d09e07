import sqlite3

import pytest

from serve_app.schemas import SubmitBody, WorkflowsBody
from tests.serve_app.conftest import URL, WORKFLOW
from workflows import FCN3Workflow
from workflows.execution import Status


class OtherWorkflow(FCN3Workflow):
    name = "other_workflow"
    description = "another"


CATALOGUE = {WORKFLOW: FCN3Workflow, "other_workflow": OtherWorkflow}


def locations(answer):
    assert answer.status_code == 422, answer.text
    return [finding["loc"] for finding in answer.json()["detail"]]


async def test_exposed_workflows_are_listed_warm_up_ones_only_callable(serve):
    service = serve(catalogue=CATALOGUE, warmup=("other_workflow",))
    answer = await service.client.get("/v1/infer/workflows")
    assert set(WorkflowsBody.model_validate(answer.json()).workflows) == {WORKFLOW}
    assert (await service.client.post("/v1/infer/other_workflow", json={})).status_code == 200
    answer = await service.client.get("/v1/infer/workflows/other_workflow/schema")
    assert answer.status_code == 200


async def test_a_hidden_workflow_does_not_exist(serve):
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
            answer = await service.client.request(method, url)
            assert answer.status_code in (404, 405), (method, url)
    answer = await service.client.post("/v1/infer/other_workflow", content=b"{broken")
    assert answer.status_code == 404


async def test_the_schema_forbids_what_is_unknown(service):
    schema = (await service.client.get(f"/v1/infer/workflows/{WORKFLOW}/schema")).json()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["n_steps"]["maximum"] == 400


async def test_submit(service):
    answer = await service.client.post(URL, json={"parameters": {"n_steps": "3"}})
    body = SubmitBody.model_validate(answer.json())
    assert (body.status, body.position, body.workflow_name) == (Status.QUEUED, 0, WORKFLOW)
    second = await service.client.post(URL, json={})
    assert second.json()["position"] == 1
    stored = service.store.get(WORKFLOW, body.execution_id)
    assert stored.parameters["n_steps"] == 3
    assert len(stored.parameters["seeds"]) == stored.parameters["n_samples"] == 4
    assert stored.plan["seeds"] == stored.parameters["seeds"]


async def test_what_was_resolved_can_be_asked_for_again(service):
    execution_id = await service.submit(seeds=[5, 6])
    parameters = service.store.get(WORKFLOW, execution_id).parameters
    again = await service.submit(**parameters)
    assert service.store.get(WORKFLOW, again).plan["seeds"] == [5, 6]


async def test_submit_without_a_name(serve):
    both = {"catalogue": CATALOGUE}
    answer = await serve().client.post("/v1/infer", json={})
    assert answer.json()["workflow_name"] == WORKFLOW
    answer = await serve(**both, exposed=tuple(CATALOGUE)).client.post("/v1/infer", json={})
    assert answer.status_code == 409
    assert "other_workflow" in answer.json()["detail"]
    answer = await serve(exposed=(), warmup=(WORKFLOW,)).client.post("/v1/infer", json={})
    assert answer.status_code == 503


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
async def test_wrong_parameters_are_named_and_nothing_is_queued(service, parameters, field):
    answer = await service.client.post(URL, json={"parameters": parameters})
    assert locations(answer) == [["body", "parameters", *field]]
    assert len(answer.content) < 5000
    assert service.store.list_executions(WORKFLOW) == []


async def test_an_unknown_parameter_is_answered_with_those_there_are(service):
    answer = await service.client.post(URL, json={"parameters": {"start_tiem": "2025-01-01"}})
    assert "unknown; there are start_time, n_steps, " in answer.json()["detail"][0]["msg"]


async def test_thousands_of_wrong_parameters_are_not_all_sent_back(service):
    many = {f"x{i}" * 20: i for i in range(5000)}
    answer = await service.client.post(URL, json={"parameters": many})
    assert len(locations(answer)) == 50
    assert len(answer.content) < 20_000


async def test_wrong_bodies(service):
    assert locations(await service.client.post(URL, content=b"{broken")) == [["body"]]
    answer = await service.client.post(URL, content=b'{"parameters": {"n_steps": NaN}}')
    assert locations(answer) == [["body", "parameters", "n_steps"]]
    answer = await service.client.post(URL, data={"parameters": "{}"})
    assert answer.status_code == 415


async def test_a_result_above_the_limit_is_refused_with_its_size(serve):
    service = serve(max_output_bytes=19 * 36 * 4 * 10, grid={"n_lat": 19, "n_lon": 36})
    fits = {"n_samples": 1, "n_steps": 9, "variables": ["t2m"]}
    assert await service.submit(**fits)
    answer = await service.client.post(URL, json={"parameters": {**fits, "n_steps": 10}})
    assert locations(answer) == [["body", "parameters"]]
    finding = answer.json()["detail"][0]
    assert finding["type"] == "output_too_large"
    assert "1 members x 11 times x 1 variables x 2.74 kB = 30.1 kB" in finding["msg"]
    assert "27.4 kB" in finding["msg"]
    assert "n_steps" in finding["msg"]


async def test_a_result_that_does_not_fit_the_disk_is_refused(serve):
    service = serve(max_output_bytes=10**18, grid={"n_lat": 2 * 10**5, "n_lon": 4 * 10**5})
    answer = await service.client.post(
        URL, json={"parameters": {"n_samples": 32, "n_steps": 400, "variables": None}}
    )
    assert locations(answer) == [["body", "parameters"]]
    assert answer.json()["detail"][0]["type"] == "insufficient_storage"


async def test_a_full_queue(serve):
    service = serve(max_queued=2)
    await service.submit()
    await service.submit()
    answer = await service.client.post(URL, json={})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "30"
    assert "2 executions wait, 2 are allowed" in answer.json()["detail"]

    # Once one has ended, its length is the guess.
    started = service.conductor.start()
    await service.submit()
    service.conductor.complete(started.execution_id)
    answer = await service.client.post(URL, json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


async def test_the_same_key_gives_the_same_execution(serve):
    service = serve(max_queued=1)
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


async def test_the_same_key_with_another_body(service):
    headers = {"Idempotency-Key": "k"}
    await service.client.post(URL, json={}, headers=headers)
    answer = await service.client.post(URL, json={"parameters": {"n_steps": 1}}, headers=headers)
    assert locations(answer) == [["header", "Idempotency-Key"]]
    for key in (b"", b"k" * 256, b"\xe4"):
        answer = await service.client.post(URL, json={}, headers={b"Idempotency-Key": key})
        assert locations(answer) == [["header", "Idempotency-Key"]]


async def test_a_locked_store_is_no_server_error(service, store, caplog):
    # Of two that want the write lock one waits; after this long it gives up.
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=10")
    other = sqlite3.connect(store.engine.url.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = await service.client.post(URL, json={})
    other.close()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "sql" not in answer.text.lower() and "INSERT" not in answer.text
    assert "locked" in caplog.text
