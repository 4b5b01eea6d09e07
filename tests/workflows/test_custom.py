"""A user's workflow by its description: name, schema, and the plan of a request."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import pytest
from pydantic import BaseModel, create_model

from workflows.custom import (
    CustomPlan,
    CustomWorkflow,
    WorkflowDescription,
    check_name,
    is_custom,
)
from workflows.errors import InvalidParameters

TIMES: Any = (list[datetime], [datetime(2024, 1, 1)])


def workflow(**fields: Any) -> CustomWorkflow:
    """Return the workflow of a class with these parameters; NetCDF4 by default."""
    model: type[BaseModel] = create_model("Theirs", **fields)
    described = WorkflowDescription(
        description="what it does",
        parameters_schema=model.model_json_schema(),
    )
    return CustomWorkflow("storms", described, "netcdf4")


def plan(made: CustomWorkflow, **values: Any) -> CustomPlan:
    return made.plan(made.validate(values))


@pytest.mark.parametrize("name", ["a", "storms", "_x", "9", "Storms-2.1_b", "a" * 100])
def test_valid_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a\n", "é", "a" * 101, "a\0", "%2e"]
)
def test_names_that_cannot_be_a_path_segment_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot name a workflow: .* are allowed") as refused:
        check_name(name)
    assert len(str(refused.value)) < 300


def test_the_name_of_a_route_is_refused() -> None:
    with pytest.raises(ValueError, match="'workflows': that is a route"):
        check_name("workflows")
    assert check_name("Workflows") == "Workflows"


def test_a_workflow_has_the_description_of_its_class() -> None:
    made = workflow(n_steps=(int, 4))
    assert (made.name, made.description) == ("storms", "what it does")
    assert made.schema["properties"]["n_steps"]["default"] == 4
    assert (made.models, made.data_sources) == ((), ())


def test_the_plan_keeps_the_parameters_of_the_request_without_defaults() -> None:
    # A class may have defaults that its own types refuse, so they cannot be sent to it.
    made = workflow(start_time=TIMES, n_steps=(int, 4), region=(str, None), seed=(int, ...))
    planned = plan(made, n_steps="3", seed=7)
    assert planned == CustomPlan(
        workflow="storms", parameters={"n_steps": 3, "seed": 7}, output_format="netcdf4"
    )


def test_times_become_naive_utc() -> None:
    made = workflow(start_time=TIMES)
    planned = plan(made, start_time=["2025-01-01T02:00:00+02:00", "2025-01-02T00:00:00Z"])
    assert planned.parameters == {"start_time": ["2025-01-01T00:00:00", "2025-01-02T00:00:00"]}


def test_a_description_of_another_version_can_be_read() -> None:
    stored = {"description": "", "parameters_schema": {}, "own_validation": False}
    assert WorkflowDescription.model_validate(stored).model_dump() == {
        "description": "",
        "parameters_schema": {},
    }


def test_a_plan_survives_storage() -> None:
    made = workflow(start_time=TIMES, grid=(Literal["tiny", "full"], "tiny"))
    planned = plan(made, start_time=["2025-01-01T00:00:00"], grid="full")
    stored = planned.model_dump(mode="json")
    assert CustomPlan.model_validate(stored) == planned
    assert is_custom(stored)


@pytest.mark.parametrize("stored", [{}, {"workflow": "foundry_fcn3_workflow", "model": "fcn3"}])
def test_plans_of_built_in_workflows_are_not_custom(stored: dict[str, Any]) -> None:
    assert not is_custom(stored)


FORMATS: Any = Literal["zarr", "netcdf4"]


@pytest.mark.parametrize(
    ("field", "given", "chosen"),
    [
        (None, {}, "netcdf4"),
        ((FORMATS, "zarr"), {}, "zarr"),
        ((FORMATS, "zarr"), {"output_format": "netcdf4"}, "netcdf4"),
        ((FORMATS, ...), {"output_format": "zarr"}, "zarr"),
        ((FORMATS | None, None), {}, "netcdf4"),
        ((str, "zarr"), {}, "zarr"),
        ((str, "png"), {}, "netcdf4"),
    ],
)
def test_the_class_selects_the_format_if_it_has_the_parameter(
    field: Any, given: dict[str, str], chosen: str
) -> None:
    made = workflow(**({} if field is None else {"output_format": field}))
    assert plan(made, **given).output_format == chosen


def test_unknown_formats_are_refused() -> None:
    # As in Earth2Studio's server, although the class would accept any text.
    made = workflow(output_format=(str, "zarr"))
    with pytest.raises(InvalidParameters, match="output_format: .*'zarr' or 'netcdf4'"):
        plan(made, output_format="grib")


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"n_steps": "many", "seed": 1}, "parameters.n_steps", "valid integer"),
        ({"seed": 1, "sed": 1}, "parameters.sed", "unknown; there are n_steps, seed, grid"),
        ({}, "parameters.seed", "Field required"),
        ({"seed": 1, "grid": "huge"}, "parameters.grid", "'tiny' or 'full'"),
        ({"seed": True}, "parameters.seed", "not true or false"),
    ],
)
def test_parameters_that_the_schema_forbids_are_refused(
    values: dict[str, Any], field: str, message: str
) -> None:
    made = workflow(n_steps=(int, 4), seed=(int, ...), grid=(Literal["tiny", "full"], "tiny"))
    with pytest.raises(InvalidParameters) as refused:
        made.validate(values)
    (problem,) = refused.value.problems
    assert problem.field == field
    assert message in problem.message
