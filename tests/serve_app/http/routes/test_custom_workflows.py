"""Routes of custom workflows, before and after their classes have described themselves."""

import asyncio
from datetime import UTC, datetime
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from serve_app.http.create_app import create_app
from serve_app.http.options import IngressOptions
from serve_app.http.schemas import ListBody, StatusBody, SubmitBody, WorkflowsBody
from tests.serve_app.conftest import WORKFLOW, Service, no_nudge
from tests.serve_app.http.routes.test_workflows import locations
from workflows.custom import CustomPlan
from workflows.errors import ModelUnavailable, Problem
from workflows.execution import Execution, Stage, Status

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
        **changes,
    }


class Storms(Service):
    """A service with one custom workflow, whose class is described by `describe`."""

    def describe(self, name="storms", **changes):
        self.store.set_description(self.conductor.fence, name, description(**changes))

    async def post(self, headers=None, **parameters):
        return await self.client.post(STORMS, json={"parameters": parameters}, headers=headers)

    def queued(self):
        return self.store.list_executions("storms")


@pytest.fixture
async def serve_storms(store, tmp_path):
    made = []

    async def accept(_values):
        return []

    def make(validator=accept, **changes):
        options = IngressOptions(
            **{
                "store_url": "sqlite://",
                "storage": {"results_dir": tmp_path / "results", "work_dir": tmp_path / "work"},
                "exposed": (WORKFLOW, "storms"),
                "custom": {"storms": "zarr"},
                "limits": {"max_output_gb": 1.0},
                "components": {"storms": ("storms",)},
                **changes,
            }
        )
        app = create_app(options, store, no_nudge, validators={"storms": validator})
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


async def test_a_class_is_listed_with_its_own_description_and_schema(storms):
    response = await storms.client.get("/v1/infer/workflows")
    listed = WorkflowsBody.model_validate(response.json()).workflows
    assert set(listed) == {WORKFLOW, "storms"}
    assert listed["storms"] == "tracks of storms"
    response = await storms.client.get("/v1/infer/workflows/storms/schema")
    assert response.json() == StormParameters.model_json_schema()


@pytest.mark.parametrize("body", [{}, {"parameters": {}}])
async def test_parameters_default_to_those_of_the_class(storms, body):
    response = await storms.client.post(STORMS, json=body)
    submitted = SubmitBody.model_validate(response.json())
    assert (submitted.workflow_name, submitted.status) == ("storms", Status.QUEUED)
    status = await storms.client.get(f"{STORMS}/{submitted.execution_id}/status")
    body = StatusBody.model_validate(status.json())
    assert body.metadata["parameters"] == DEFAULTS
    assert storms.queued()[0].plan == {
        "kind": "custom",
        "workflow": "storms",
        "parameters": {},
        "output_format": "zarr",
        "delivery": None,
    }


async def test_parameters_are_converted_to_the_types_of_the_class(storms):
    response = await storms.post(
        start_time=["2025-01-01T02:00:00+02:00", "2025-01-01T06:00:00Z"], nsteps="3"
    )
    assert response.status_code == 200, response.text
    converted = {"start_time": ["2025-01-01T00:00:00", "2025-01-01T06:00:00"], "nsteps": 3}
    (execution,) = storms.queued()
    assert CustomPlan.model_validate(execution.plan).parameters == converted
    status = await storms.client.get(f"{STORMS}/{execution.execution_id}/status")
    assert status.json()["metadata"]["parameters"] == DEFAULTS | converted


@pytest.mark.parametrize(
    ("parameters", "output_format"), [({}, "netcdf4"), ({"output_format": "zarr"}, "zarr")]
)
async def test_a_class_with_a_parameter_for_the_format_chooses_it(
    serve_storms, parameters, output_format
):
    service = serve_storms()
    service.describe(parameters_schema=RainParameters.model_json_schema())
    assert (await service.post(**parameters)).status_code == 200
    assert service.queued()[0].plan["output_format"] == output_format


async def test_the_only_exposed_workflow_may_be_a_custom_one(serve_storms):
    service = serve_storms(exposed=("storms",))
    service.describe()
    response = await service.client.post("/v1/infer", json={})
    assert response.json()["workflow_name"] == "storms"


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
async def test_invalid_parameters_are_reported_and_nothing_is_queued(
    storms, parameters, field, message
):
    response = await storms.post(**parameters)
    assert locations(response) == [["body", "parameters", *field]]
    assert message in response.json()["detail"][0]["msg"]
    assert storms.queued() == []


async def test_an_unknown_format_is_refused_even_if_the_class_would_accept_it(serve_storms):
    service = serve_storms()
    schema = {"properties": {"output_format": {"type": "string", "default": "zarr"}}}
    service.describe(parameters_schema=schema)
    response = await service.post(output_format="grib")
    assert locations(response) == [["body", "parameters", "output_format"]]


async def test_a_class_that_has_not_described_itself_is_unavailable(serve_storms):
    service = serve_storms()
    for method, url in [("POST", STORMS), ("GET", "/v1/infer/workflows/storms/schema")]:
        response = await service.client.request(method, url, json={})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert "storms is not ready: its class is not imported yet" in response.json()["detail"]
    listed = (await service.client.get("/v1/infer/workflows")).json()["workflows"]
    assert listed["storms"] == ""
    assert listed[WORKFLOW] != ""

    # Its executions can be listed and queried.
    assert (await service.client.get(STORMS)).json() == {"executions": [], "next": None}
    for url in ("status", "results", "results/a"):
        response = await service.client.get(f"{STORMS}/exec_1_00000000/{url}")
        assert (response.status_code, response.json()["detail"]) == (
            404,
            "execution not found: exec_1_00000000",
        )

    service.describe()
    assert (await service.post()).status_code == 200


async def test_executions_of_an_undescribed_class_have_a_status(serve_storms):
    service = serve_storms()
    queued = Execution(
        execution_id="exec_1_00000000",
        workflow="storms",
        status=Status.QUEUED,
        parameters=DEFAULTS,
        plan={"kind": "custom"},
        created_at=datetime.now(UTC),
    )
    service.store.submit(queued, max_queued=1)
    listed = ListBody.model_validate((await service.client.get(STORMS)).json())
    assert [each.execution_id for each in listed.executions] == [queued.execution_id]
    status = await service.client.get(f"{STORMS}/{queued.execution_id}/status")
    assert StatusBody.model_validate(status.json()).metadata["parameters"] == DEFAULTS
    response = await service.client.delete(f"{STORMS}/{queued.execution_id}")
    assert response.json()["status"] == Status.CANCELLED


async def test_a_class_that_is_not_exposed_is_not_found(serve_storms):
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
        response = await service.client.request(method, url, json={})
        assert (response.status_code, response.json()["detail"]) == (
            404,
            "workflow not found: storms",
        )
    response = await service.client.get("/v1/infer/workflows")
    assert set(response.json()["workflows"]) == {WORKFLOW}


async def test_a_warmup_class_is_callable_but_not_listed(serve_storms):
    service = serve_storms(exposed=(WORKFLOW,), warmup=("storms",))
    service.describe()
    assert (await service.post()).status_code == 200
    response = await service.client.get("/v1/infer/workflows")
    assert set(response.json()["workflows"]) == {WORKFLOW}


async def test_a_new_description_of_a_class_takes_effect_soon(storms):
    assert (await storms.post(threshold=1)).status_code == 422
    changed = {"properties": {"threshold": {"type": "number"}}, "required": ["threshold"]}
    storms.describe(parameters_schema=changed, description="tracks of strong storms")
    for _ in range(200):
        if (response := await storms.post(threshold=1)).status_code == 200:
            break
        await asyncio.sleep(0.05)
    assert response.status_code == 200, response.text
    schema = await storms.client.get("/v1/infer/workflows/storms/schema")
    assert schema.json() == changed
    listed = (await storms.client.get("/v1/infer/workflows")).json()["workflows"]
    assert listed["storms"] == "tracks of strong storms"
    assert locations(await storms.post()) == [["body", "parameters", "threshold"]]


# Validation by the class.


class Validator:
    """Stands in for the replica of a class."""

    def __init__(self):
        self.calls = []
        self.error = None

    async def __call__(self, values):
        self.calls.append(values)
        if self.error is not None:
            raise self.error
        if values.get("nsteps") == 13:
            return [
                Problem("parameters.nsteps", "must not be 13"),
                Problem("parameters", "do not match"),
            ]
        return []


@pytest.fixture
def validator():
    return Validator()


@pytest.fixture
def validated(serve_storms, validator):
    service = serve_storms(validator)
    service.describe()
    return service


async def test_a_class_validates_what_its_schema_accepts(validated, validator):
    response = await validated.post(nsteps="13", start_time=["2025-01-01T02:00:00+02:00"])
    assert locations(response) == [["body", "parameters", "nsteps"], ["body", "parameters"]]
    assert response.json()["detail"][0]["msg"] == "must not be 13"
    assert validated.queued() == []
    assert (await validated.post(seed=1)).status_code == 200
    # The parameters as they will be passed: converted, and without defaults.
    assert validator.calls == [{"nsteps": 13, "start_time": ["2025-01-01T00:00:00"]}, {"seed": 1}]


async def test_a_class_does_not_validate_what_its_schema_refuses(validated, validator):
    assert locations(await validated.post(nsteps=0)) == [["body", "parameters", "nsteps"]]
    assert validator.calls == []


async def test_validation_that_takes_too_long(serve_storms):
    async def hang(_values):
        await asyncio.sleep(60)

    service = serve_storms(hang, validation_limit_s=0.05)
    service.describe()
    response = await asyncio.wait_for(service.post(), 10)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["detail"] == (
        "workflow storms did not check the parameters within 0.05 s"
    )
    assert service.queued() == []


async def test_validation_that_is_unavailable(validated, validator):
    validator.error = ModelUnavailable(Stage.INFERENCE, "ImportError: no torch")
    response = await validated.post()
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["detail"] == (
        "workflow storms cannot check the parameters now: ImportError: no torch"
    )
    assert validated.queued() == []


async def test_a_replay_needs_no_validation(validated, validator):
    headers = {"Idempotency-Key": "run 1"}
    first = await validated.post(headers, nsteps=2)
    assert "idempotency-replayed" not in first.headers
    validator.error = ModelUnavailable(Stage.INFERENCE, "the replica died")
    again = await validated.post(headers, nsteps=2)
    assert again.status_code == 200, again.text
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["execution_id"] == first.json()["execution_id"]
    assert len(validator.calls) == len(validated.queued()) == 1


async def test_the_key_of_a_refused_request_can_be_used_again(validated, validator):
    headers = {"Idempotency-Key": "run 1"}
    assert locations(await validated.post(headers, nsteps=13))
    assert locations(await validated.post(headers, nsteps=13))
    assert len(validator.calls) == 2
    assert (await validated.post(headers, nsteps=2)).status_code == 200
    response = await validated.post(headers, nsteps=3)
    assert locations(response) == [["header", "Idempotency-Key"]]
