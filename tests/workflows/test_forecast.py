"""Declared forecasts: what a request may ask for follows from declaration and model."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from workflows.base import Component, Plan
from workflows.errors import InvalidParameters
from workflows.forecast import ForecastDeclaration, ForecastWorkflow
from workflows.grids import Grid, LatLonGrid
from workflows.model_description import ModelDescription

GRID = Grid(n_lat=19, n_lon=36)
MODEL = ModelDescription(
    input_variables=("t2m", "z500", "u500"),
    output_variables=("t2m", "z500"),
    history_hours=(-6, 0),
    step_hours=6,
    input_grid=GRID,
    grid=GRID,
    is_stochastic=True,
    diagnostics={"windy": ("ws500",)},
)
START = "2025-01-01T00:00:00"


def workflow(model: dict[str, Any] | None = None, **declared: Any) -> ForecastWorkflow:
    declaration = {
        "name": "windy",
        "description": "A forecast",
        "model": "mine",
        "data_sources": ("gfs", "ifs"),
        "max_steps": 20,
        "max_members": 8,
    }
    return ForecastWorkflow(
        ForecastDeclaration(**declaration | declared), MODEL.model_copy(update=model or {})
    )


def plan(built: ForecastWorkflow, **parameters: Any) -> Plan:
    return built.plan(built.validate({"start_time": START, **parameters}))


def problems(built: ForecastWorkflow, **parameters: Any) -> str:
    with pytest.raises(InvalidParameters) as caught:
        plan(built, **parameters)
    return str(caught.value)


def test_a_plan_holds_what_the_model_needs() -> None:
    perturbation = Component(loader="earth2studio.perturbation:Gaussian")
    found = plan(workflow(perturbation=perturbation), seeds=[4, 5], variables=["ws500"])
    assert found.input_variables == MODEL.input_variables
    assert found.history_hours == (-6, 0)
    assert (found.model, found.data_source, found.step_hours) == ("mine", "gfs", 6)
    assert found.perturbation == perturbation
    assert found.input_grid is None
    assert found.seeds == (4, 5)
    assert found.variables == ("ws500",)
    assert Plan.model_validate_json(found.model_dump_json()) == found


def test_null_keeps_all_variables_diagnosed_ones_included() -> None:
    assert plan(workflow(), variables=None).variables == ("t2m", "z500", "ws500")
    assert plan(workflow()).variables == ("t2m",)


def test_an_input_on_another_grid_is_planned() -> None:
    source = LatLonGrid(n_lat=18, n_lon=36, first_lat=90.0, last_lat=-80.0, first_lon=0.0)
    found = plan(workflow({"input_grid": source}))
    assert (found.grid, found.input_grid) == (GRID, source)
    assert found.working_bytes == 2 * 3 * 18 * 36 * 4


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"start_time": "2025-01-01T03:00"}, "start_time: initial conditions exist at 00, 06, 12"),
        ({"variables": ["q500"]}, "unknown: q500; allowed are t2m, z500, ws500"),
        ({"data_source": "era5"}, "data_source: unknown: era5; allowed are gfs, ifs"),
        ({"n_steps": 21}, "n_steps: Input should be less than or equal to 20"),
        ({"n_samples": 9}, "n_samples: Input should be less than or equal to 8"),
        ({"seeds": [1, 2], "n_samples": 3}, "seeds has 2 entries but n_samples is 3"),
        ({"seeds": []}, "seeds: List should have at least 1 item"),
        ({"members": 3}, "members: unknown; there are"),
    ],
)
def test_what_the_model_cannot_do_is_refused(parameters: dict[str, Any], reason: str) -> None:
    assert reason in problems(workflow(), **parameters)


@pytest.mark.parametrize("parameters", [{"n_samples": 2}, {"seeds": [1, 2]}])
def test_a_deterministic_model_takes_one_member(parameters: dict[str, Any]) -> None:
    built = workflow({"is_stochastic": False})
    assert "mine is deterministic and this workflow does not perturb" in problems(
        built, **parameters
    )
    assert len(plan(built).seeds) == 1
    perturbed = workflow({"is_stochastic": False}, perturbation=Component(loader="a:b"))
    assert len(plan(perturbed, **parameters).seeds) == 2


@pytest.mark.parametrize(
    ("step_hours", "cycle_hours", "hours"),
    [(6, None, 6), (24, None, 6), (1, None, 1), (3, None, 3), (24, 24, 24)],
)
def test_the_cycle_follows_from_the_step_unless_it_is_declared(
    step_hours: int, cycle_hours: int | None, hours: int
) -> None:
    built = workflow({"step_hours": step_hours}, cycle_hours=cycle_hours)
    for hour in range(24):
        start = f"2025-01-01T{hour:02d}:00:00Z"
        if hour % hours:
            assert "initial conditions exist at" in problems(built, start_time=start)
        else:
            assert plan(built, start_time=start).start_time.hour == hour


def test_the_schema_lists_what_is_allowed() -> None:
    schema = workflow().schema
    jsonschema.Draft202012Validator.check_schema(schema)
    properties = schema["properties"]
    assert properties["data_source"]["enum"] == ["gfs", "ifs"]
    assert properties["n_steps"]["maximum"] == 20
    assert properties["seeds"]["anyOf"][0]["items"]["exclusiveMaximum"] == 2**32
    assert properties["variables"]["anyOf"][0]["items"]["enum"] == ["t2m", "z500", "ws500"]
    assert schema["required"] == ["start_time"]
