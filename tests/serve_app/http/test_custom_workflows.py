"""Users' workflows as an ingress replica sees them, and how descriptions get into the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.store.conductor_view import ConductorStore
from deployments.store.executions import ExecutionStore
from serve_app.http.custom_workflows import CustomChecks, Validate
from serve_app.http.described_workflows import (
    CACHE_S,
    DescribedWorkflows,
    custom_workflow,
    declared_forecast,
)
from workflows.custom import CustomWorkflow
from workflows.errors import InvalidParameters, ModelUnavailable, Problem, WorkflowUnavailable
from workflows.execution import Stage
from workflows.forecast import ForecastDeclaration
from workflows.grids import Grid
from workflows.model_description import ModelDescription


class Parameters(BaseModel):
    n_steps: int = 4


def description(text: str = "tracks of storms", **changes: Any) -> dict[str, Any]:
    return {
        "description": text,
        "parameters_schema": Parameters.model_json_schema(),
        **changes,
    }


class CountingStore(ConductorStore):
    """Records reads of descriptions."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads: list[str] = []

    def description(self, workflow: str) -> dict[str, Any] | None:
        self.reads.append(workflow)
        return super().description(workflow)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = CountingStore(f"sqlite:///{tmp_path}/store.db")
    yield store
    store.close()


def workflows(store: ExecutionStore) -> DescribedWorkflows:
    return DescribedWorkflows(store, {"storms": custom_workflow("storms", "netcdf4")})


# Descriptions.


def test_only_workflows_in_the_settings_are_known(store: CountingStore) -> None:
    store.set_description(store.issue_fence(), "rain", description())
    assert "storms" in workflows(store)
    assert "rain" not in workflows(store)


def test_a_workflow_is_unavailable_until_its_class_was_described(store: CountingStore) -> None:
    known = workflows(store)
    for _ in range(2):  # a missing description is not cached
        with pytest.raises(WorkflowUnavailable, match="storms is not ready.*/readiness says why"):
            known.look_up("storms")
    store.set_description(store.issue_fence(), "storms", description())
    found = known.look_up("storms")
    assert (found.name, found.description) == ("storms", "tracks of storms")
    assert found.plan(found.validate({})).output_format == "netcdf4"


def test_a_description_is_cached_for_a_while(store: CountingStore) -> None:
    fence = store.issue_fence()
    store.set_description(fence, "storms", description())
    known = workflows(store)
    first = known.look_up("storms")
    assert all(known.look_up("storms") is first for _ in range(50))
    assert store.reads == ["storms"]

    # The description has not changed, so the workflow is the same object.
    time.sleep(CACHE_S)
    assert known.look_up("storms") is first
    assert store.reads == ["storms", "storms"]

    store.set_description(fence, "storms", description("tracks of strong storms"))
    time.sleep(CACHE_S)
    assert known.look_up("storms").description == "tracks of strong storms"


def test_a_forecast_is_known_by_the_description_of_its_model(store: CountingStore) -> None:
    declaration = ForecastDeclaration(
        name="rain_forecast",
        description="Rain",
        model="rain",
        data_sources=("gfs",),
        max_steps=10,
        max_members=4,
    )
    known = DescribedWorkflows(store, {"rain_forecast": declared_forecast(declaration)})
    assert known.describe("rain_forecast") == "Rain"
    with pytest.raises(WorkflowUnavailable, match="its model rain was never loaded"):
        known.look_up("rain_forecast")
    grid = Grid(n_lat=5, n_lon=8)
    described = ModelDescription(
        input_variables=("tp",),
        output_variables=("tp",),
        step_hours=1,
        input_grid=grid,
        grid=grid,
        is_stochastic=False,
    )
    store.set_description(store.issue_fence(), "rain", described.model_dump(mode="json"))
    found = known.look_up("rain_forecast")
    assert found.plan(found.validate({"start_time": "2025-01-01T05:00:00"})).grid == grid


def test_a_description_of_another_component_is_none(store: CountingStore) -> None:
    known = workflows(store)
    store.set_description(store.issue_fence(), "storms", {"kind": "model", "step_hours": 6})
    with pytest.raises(WorkflowUnavailable, match="storms is not ready"):
        known.look_up("storms")


# Validation by the class.


async def check(store: CountingStore, validate: Validate, limit_s: float = 5) -> None:
    store.set_description(store.issue_fence(), "storms", description())
    found = workflows(store).look_up("storms")
    assert isinstance(found, CustomWorkflow)
    await CustomChecks({"storms": validate}, limit_s).check(found, {"n_steps": 3})


def answering(answer: Any) -> Callable[[Mapping[str, Any]], Awaitable[list[Problem]]]:
    async def validate(_values: Mapping[str, Any]) -> list[Problem]:
        if isinstance(answer, Exception):
            raise answer
        found: list[Problem] = answer
        return found

    return validate


async def test_every_class_is_asked(store: CountingStore) -> None:
    asked: list[Mapping[str, Any]] = []

    async def validate(values: Mapping[str, Any]) -> list[Problem]:
        asked.append(values)
        return []

    await check(store, validate)
    assert asked == [{"n_steps": 3}]


async def test_problems_found_by_a_class_are_reported(store: CountingStore) -> None:
    problems = [Problem("parameters.n_steps", "an even number is needed")]
    with pytest.raises(InvalidParameters) as refused:
        await check(store, answering(problems))
    assert refused.value.problems == problems


async def test_a_class_that_hangs_is_unavailable(store: CountingStore) -> None:
    cancelled = asyncio.Event()

    async def hang(_values: Mapping[str, Any]) -> list[Problem]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    start = time.monotonic()
    with pytest.raises(WorkflowUnavailable, match=r"did not check .* within 0\.1 s"):
        await check(store, hang, limit_s=0.1)
    assert time.monotonic() - start < 5
    assert cancelled.is_set()


def raised_in_a_replica(error: Exception) -> Exception:
    wrapped: Exception = RayTaskError("validate", "a traceback", error).as_instanceof_cause()
    return wrapped


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelUnavailable(Stage.INFERENCE, "ImportError: no torch"), "ImportError: no torch"),
        (
            raised_in_a_replica(ModelUnavailable(Stage.INFERENCE, "ImportError: no torch")),
            "now: ImportError: no torch$",
        ),
        (RayActorError(error_msg="the actor died"), "RayActorError: the actor died"),
        (DeploymentUnavailableError("storms"), "DeploymentUnavailableError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_class_that_cannot_be_asked_is_unavailable(
    store: CountingStore, error: Exception, reason: str
) -> None:
    with pytest.raises(WorkflowUnavailable, match=reason):
        await check(store, answering(error))


@pytest.mark.parametrize("error", [ZeroDivisionError(), raised_in_a_replica(ZeroDivisionError())])
async def test_a_programming_error_is_not_reported_as_unavailable(
    store: CountingStore, error: Exception
) -> None:
    with pytest.raises(ZeroDivisionError):
        await check(store, answering(error))
