import asyncio
import sqlite3
from datetime import UTC, datetime
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.metrics import REFUSALS
from serve_app.http.create_app import create_app
from serve_app.http.options import IngressOptions
from serve_app.http.schemas import ListBody, StatusBody, SubmitBody, WorkflowsBody
from tests.measured import Measured
from tests.serve_app.conftest import URL, WORKFLOW, Service
from workflows import FCN3Workflow
from workflows.custom import CustomPlan
from workflows.errors import ModelUnavailable, Problem
from workflows.execution import Execution, Stage, Status


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
    message = answer.json()["detail"][0]["msg"]
    assert message.startswith("unknown; there are ")
    assert set(message.removeprefix("unknown; there are ").split(", ")) == set(
        FCN3Workflow.parameters.model_fields
    )


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


async def test_a_result_for_which_there_is_no_room_now_may_come_again(serve):
    service = serve(quota_bytes=300_000)
    request = {"parameters": {"n_samples": 1, "n_steps": 3, "output_format": "zarr"}}
    # 4 times, 3 variables and 72 of the initial conditions, of 2,736 bytes each.
    first = await service.client.post(URL, json=request)
    assert first.status_code == 200
    answer = await service.client.post(URL, json=request)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "30"
    assert answer.json()["detail"].startswith(
        "no space for the result at the moment: it needs 230 kB of disk; 70.2 kB are left"
    )
    # What can never fit is wrong for good.
    larger = {"parameters": {**request["parameters"], "n_samples": 8}}
    answer = await service.client.post(URL, json=larger)
    assert locations(answer) == [["body", "parameters"]]
    assert answer.json()["detail"][0]["type"] == "insufficient_storage"
    # One that has been cancelled makes room.
    cancelled = await service.client.delete(f"{URL}/{first.json()['execution_id']}")
    assert cancelled.status_code == 200
    assert (await service.client.post(URL, json=request)).status_code == 200


async def test_refusals_for_want_of_room_are_counted_by_reason(serve):
    measured = Measured()
    service = serve(quota_bytes=300_000, max_queued=2, metrics=measured)
    small = {"n_samples": 1, "n_steps": 3, "output_format": "zarr"}
    await service.submit(**small)
    await service.client.post(URL, json={"parameters": small})
    await service.client.post(URL, json={"parameters": {**small, "n_samples": 8}})
    await service.client.post(URL, json={"parameters": {**small, "n_steps": 0}})
    assert measured.values(REFUSALS, reason="disk_full") == [1]
    assert measured.values(REFUSALS, reason="disk_too_small") == [1]
    assert measured.total(REFUSALS) == 2
    crowded = serve(max_queued=1, metrics=measured)
    await crowded.client.post(URL, json={"parameters": small})
    assert measured.values(REFUSALS, reason="queue_full") == [1]


async def test_a_retry_needs_room_too(serve):
    service = serve(quota_bytes=300_000)
    small = {"n_samples": 1, "n_steps": 3, "output_format": "zarr"}
    failed = await service.submit(**small)
    service.conductor.start()
    service.conductor.end(failed, Status.FAILED, "the model died")
    await service.submit(**small)
    answer = await service.client.post(f"{URL}/{failed}/retry")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


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


# Workflows of users' own.

STORMS = "/v1/infer/storms"
DEFAULTS = {
    "start_time": ["2024-01-01T00:00:00"],
    "nsteps": 4,
    "grid": "tiny",
    "seed": 0,
}


class StormParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    start_time: list[datetime] = [datetime(2024, 1, 1)]
    nsteps: int = Field(4, ge=1, le=1000)
    grid: Literal["tiny", "full"] = "tiny"
    seed: int = 0


class RainParameters(StormParameters):
    output_format: Literal["zarr", "netcdf4"] = "netcdf4"


def description(**changes):
    return {
        "description": "tracks of storms",
        "parameters_schema": StormParameters.model_json_schema(),
        "own_validation": False,
        **changes,
    }


class Storms(Service):
    """A service of one class, which describes itself when it is told to."""

    def describe(self, name="storms", **changes):
        self.store.set_description(self.conductor.fence, name, description(**changes))

    async def post(self, headers=None, **parameters):
        return await self.client.post(STORMS, json={"parameters": parameters}, headers=headers)

    def queued(self):
        return self.store.list_executions("storms")


@pytest.fixture
async def serve_storms(store, tmp_path):
    made = []

    def make(validator=None, **changes):
        options = IngressOptions(
            **{
                "store_url": "sqlite://",
                "results_dir": tmp_path / "results",
                "exposed": (WORKFLOW, "storms"),
                "custom": {"storms": "zarr"},
                "max_output_bytes": 10**9,
                "components": {"storms": ("storms",)},
                **changes,
            }
        )
        validators = {} if validator is None else {"storms": validator}
        app = create_app(options, store, validators=validators)
        made.append(Storms(app, options, store))
        return made[-1]

    yield make
    for service in made:
        await service.app.state.context.changes.close()
        await service.client.aclose()


@pytest.fixture
def storms(serve_storms):
    service = serve_storms()
    service.describe()
    return service


async def test_a_class_is_listed_and_shown_as_it_describes_itself(storms):
    answer = await storms.client.get("/v1/infer/workflows")
    listed = WorkflowsBody.model_validate(answer.json()).workflows
    assert set(listed) == {WORKFLOW, "storms"}
    assert listed["storms"] == "tracks of storms"
    answer = await storms.client.get("/v1/infer/workflows/storms/schema")
    assert answer.json() == StormParameters.model_json_schema()


@pytest.mark.parametrize("body", [{}, {"parameters": {}}])
async def test_without_parameters_a_class_gets_its_defaults(storms, body):
    answer = await storms.client.post(STORMS, json=body)
    submitted = SubmitBody.model_validate(answer.json())
    assert (submitted.workflow_name, submitted.status) == ("storms", Status.QUEUED)
    status = await storms.client.get(f"{STORMS}/{submitted.execution_id}/status")
    told = StatusBody.model_validate(status.json())
    assert told.metadata["parameters"] == DEFAULTS
    assert storms.queued()[0].plan == {
        "kind": "custom",
        "workflow": "storms",
        "parameters": {},
        "output_format": "zarr",
        "delivery": None,
    }


async def test_what_a_request_gives_reaches_the_plan_as_the_class_wants_it(storms):
    answer = await storms.post(
        start_time=["2025-01-01T02:00:00+02:00", "2025-01-01T06:00:00Z"], nsteps="3"
    )
    assert answer.status_code == 200, answer.text
    given = {"start_time": ["2025-01-01T00:00:00", "2025-01-01T06:00:00"], "nsteps": 3}
    (execution,) = storms.queued()
    assert CustomPlan.model_validate(execution.plan).parameters == given
    status = await storms.client.get(f"{STORMS}/{execution.execution_id}/status")
    assert status.json()["metadata"]["parameters"] == DEFAULTS | given


@pytest.mark.parametrize(
    ("given", "chosen"), [({}, "netcdf4"), ({"output_format": "zarr"}, "zarr")]
)
async def test_a_class_with_a_say_on_the_format_has_it(serve_storms, given, chosen):
    service = serve_storms()
    service.describe(parameters_schema=RainParameters.model_json_schema())
    assert (await service.post(**given)).status_code == 200
    assert service.queued()[0].plan["output_format"] == chosen


async def test_the_only_workflow_may_be_a_users(serve_storms):
    service = serve_storms(exposed=("storms",))
    service.describe()
    answer = await service.client.post("/v1/infer", json={})
    assert answer.json()["workflow_name"] == "storms"


@pytest.mark.parametrize(
    ("parameters", "field", "message"),
    [
        ({"nsteps": 0}, ["nsteps"], "greater than or equal to 1"),
        ({"nsteps": True}, ["nsteps"], "not true or false"),
        ({"grid": "huge"}, ["grid"], "'tiny' or 'full'"),
        ({"start_time": ["2025-01-01"]}, ["start_time", 0], "must have a date and a time"),
        ({"start_time": "2025-01-01T00:00:00"}, ["start_time"], "valid list"),
        ({"sed": 1}, ["sed"], "unknown; there are start_time, nsteps, grid, seed"),
    ],
)
async def test_wrong_parameters_of_a_class_are_named_and_nothing_is_queued(
    storms, parameters, field, message
):
    answer = await storms.post(**parameters)
    assert locations(answer) == [["body", "parameters", *field]]
    assert message in answer.json()["detail"][0]["msg"]
    assert storms.queued() == []


async def test_a_format_that_there_is_not_is_refused_whatever_the_class_would_take(serve_storms):
    service = serve_storms()
    schema = {"properties": {"output_format": {"type": "string", "default": "zarr"}}}
    service.describe(parameters_schema=schema)
    answer = await service.post(output_format="grib")
    assert locations(answer) == [["body", "parameters", "output_format"]]


async def test_a_class_of_which_nothing_is_known_yet(serve_storms):
    service = serve_storms()
    for method, url in [("POST", STORMS), ("GET", "/v1/infer/workflows/storms/schema")]:
        answer = await service.client.request(method, url, json={})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "storms is not ready: its class is not imported yet" in answer.json()["detail"]
    listed = (await service.client.get("/v1/infer/workflows")).json()["workflows"]
    assert listed["storms"] == ""
    assert listed[WORKFLOW] != ""

    # Executions can be looked for all the same.
    assert (await service.client.get(STORMS)).json() == {"executions": [], "next": None}
    for url in ("status", "results", "results/a"):
        answer = await service.client.get(f"{STORMS}/exec_1_00000000/{url}")
        assert (answer.status_code, answer.json()["detail"]) == (
            404,
            "execution not found: exec_1_00000000",
        )

    service.describe()
    assert (await service.post()).status_code == 200


async def test_executions_of_a_class_are_told_whatever_is_known_of_it(serve_storms):
    service = serve_storms()
    waiting = Execution(
        execution_id="exec_1_00000000",
        workflow="storms",
        status=Status.QUEUED,
        parameters=DEFAULTS,
        plan={"kind": "custom"},
        created_at=datetime.now(UTC),
    )
    service.store.submit(waiting, max_queued=1)
    listed = ListBody.model_validate((await service.client.get(STORMS)).json())
    assert [each.execution_id for each in listed.executions] == [waiting.execution_id]
    status = await service.client.get(f"{STORMS}/{waiting.execution_id}/status")
    assert StatusBody.model_validate(status.json()).metadata["parameters"] == DEFAULTS
    answer = await service.client.delete(f"{STORMS}/{waiting.execution_id}")
    assert answer.json()["status"] == Status.CANCELLED


async def test_a_hidden_class_does_not_exist(serve_storms):
    service = serve_storms(exposed=(WORKFLOW,), custom={})
    service.describe()
    for method, url in [
        ("POST", STORMS),
        ("GET", STORMS),
        ("GET", "/v1/infer/workflows/storms/schema"),
        ("GET", f"{STORMS}/exec_1_00000000/status"),
        ("GET", f"{STORMS}/exec_1_00000000/results"),
        ("GET", f"{STORMS}/exec_1_00000000/results/a"),
        ("DELETE", f"{STORMS}/exec_1_00000000"),
    ]:
        answer = await service.client.request(method, url, json={})
        assert (answer.status_code, answer.json()["detail"]) == (404, "workflow not found: storms")
    answer = await service.client.get("/v1/infer/workflows")
    assert set(answer.json()["workflows"]) == {WORKFLOW}


async def test_a_class_for_warm_up_is_callable_but_not_listed(serve_storms):
    service = serve_storms(exposed=(WORKFLOW,), warmup=("storms",))
    service.describe()
    assert (await service.post()).status_code == 200
    answer = await service.client.get("/v1/infer/workflows")
    assert set(answer.json()["workflows"]) == {WORKFLOW}


async def test_a_class_that_was_replaced_is_known_soon(storms):
    assert (await storms.post(threshold=1)).status_code == 422
    changed = {"properties": {"threshold": {"type": "number"}}, "required": ["threshold"]}
    storms.describe(parameters_schema=changed, description="tracks of strong storms")
    for _ in range(200):
        if (answer := await storms.post(threshold=1)).status_code == 200:
            break
        await asyncio.sleep(0.05)
    assert answer.status_code == 200, answer.text
    schema = await storms.client.get("/v1/infer/workflows/storms/schema")
    assert schema.json() == changed
    listed = (await storms.client.get("/v1/infer/workflows")).json()["workflows"]
    assert listed["storms"] == "tracks of strong storms"
    assert locations(await storms.post()) == [["body", "parameters", "threshold"]]


# Classes with checks of their own.


class Checks:
    """Stands in for the replica of a class with checks of its own."""

    def __init__(self):
        self.asked = []
        self.error = None

    async def __call__(self, values):
        self.asked.append(values)
        if self.error is not None:
            raise self.error
        if values.get("nsteps") == 13:
            return [
                Problem("parameters.nsteps", "13 brings bad luck"),
                Problem("parameters", "nothing fits"),
            ]
        return []


@pytest.fixture
def checks():
    return Checks()


@pytest.fixture
def strict(serve_storms, checks):
    service = serve_storms(checks)
    service.describe(own_validation=True)
    return service


async def test_a_class_checks_what_its_schema_has_let_pass(strict, checks):
    answer = await strict.post(nsteps="13", start_time=["2025-01-01T02:00:00+02:00"])
    assert locations(answer) == [["body", "parameters", "nsteps"], ["body", "parameters"]]
    assert answer.json()["detail"][0]["msg"] == "13 brings bad luck"
    assert strict.queued() == []
    assert (await strict.post(seed=1)).status_code == 200
    # As it will be called: normalised, and without the defaults, which are its own.
    assert checks.asked == [{"nsteps": 13, "start_time": ["2025-01-01T00:00:00"]}, {"seed": 1}]


async def test_a_class_is_not_asked_about_what_its_schema_refuses(strict, checks):
    assert locations(await strict.post(nsteps=0)) == [["body", "parameters", "nsteps"]]
    assert checks.asked == []


async def test_a_class_without_checks_of_its_own_is_not_asked(serve_storms, checks):
    service = serve_storms(checks)
    service.describe()
    assert (await service.post(nsteps=13)).status_code == 200
    assert checks.asked == []


async def test_a_class_that_does_not_answer_in_time(serve_storms):
    async def hang(_values):
        await asyncio.sleep(60)

    service = serve_storms(hang, validation_limit_s=0.05)
    service.describe(own_validation=True)
    answer = await asyncio.wait_for(service.post(), 10)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["detail"] == ("workflow storms did not check the parameters within 0.05 s")
    assert service.queued() == []


async def test_a_class_that_cannot_be_asked(strict, checks):
    checks.error = ModelUnavailable(Stage.INFERENCE, "ImportError: no torch")
    answer = await strict.post()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["detail"] == (
        "workflow storms cannot check the parameters now: ImportError: no torch"
    )
    assert strict.queued() == []


async def test_a_repeated_request_is_answered_even_if_the_class_cannot_be_asked(strict, checks):
    headers = {"Idempotency-Key": "run 1"}
    first = await strict.post(headers, nsteps=2)
    assert "idempotency-replayed" not in first.headers
    checks.error = ModelUnavailable(Stage.INFERENCE, "gone")
    again = await strict.post(headers, nsteps=2)
    assert again.status_code == 200, again.text
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["execution_id"] == first.json()["execution_id"]
    assert len(checks.asked) == len(strict.queued()) == 1


async def test_a_refused_request_may_be_repeated_with_its_key(strict, checks):
    headers = {"Idempotency-Key": "run 1"}
    assert locations(await strict.post(headers, nsteps=13))
    assert locations(await strict.post(headers, nsteps=13))
    assert len(checks.asked) == 2
    assert (await strict.post(headers, nsteps=2)).status_code == 200
    answer = await strict.post(headers, nsteps=3)
    assert locations(answer) == [["header", "Idempotency-Key"]]
