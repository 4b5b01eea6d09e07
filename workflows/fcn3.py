"""FCN3 ensemble forecasts from ECMWF IFS initial conditions.

References
----------
Bonev et al., FourCastNet 3, arXiv:2507.12144.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from workflows.base import Plan, TimeLayout, Workflow, draw_seeds
from workflows.grids import Grid, LambertGrid
from workflows.parameters import (
    ForecastParameters,
    NotBool,
    Seed,
    SixHourlyTime,
    check_variables,
    seed_count_mismatches,
)

LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
VARIABLES: tuple[str, ...] = (
    *("u10m", "v10m", "u100m", "v100m", "t2m", "msl", "tcwv"),
    *(f"{name}{level}" for name in "uvztq" for level in LEVELS),
)
"""The 72 variables of FCN3, in the order of its channels."""

STEP_HOURS = 6
MAX_STEPS = 400
MAX_MEMBERS = 32
DEFAULT_VARIABLES = ("t2m", "u10m", "v10m")


class FCN3Parameters(ForecastParameters):
    """Parameters of `FCN3Workflow`."""

    start_time: SixHourlyTime = Field(
        datetime(2025, 1, 1, tzinfo=UTC),
        description="Time of the initial conditions: 00, 06, 12 or 18 UTC. ISO 8601; without a "
        "zone it is UTC.",
    )
    n_steps: Annotated[int, NotBool] = Field(
        12,
        ge=1,
        le=MAX_STEPS,
        description="Number of steps of 6 hours; the result has n_steps + 1 times.",
    )
    n_samples: Annotated[int, NotBool] = Field(
        4, ge=1, le=MAX_MEMBERS, description="Number of ensemble members."
    )
    seeds: list[Seed] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MEMBERS,
        description="One seed per member, drawn at random if omitted. The same seed gives the same "
        "member.",
    )
    variables: list[str] | None = Field(
        list(DEFAULT_VARIABLES),
        min_length=1,
        max_length=len(VARIABLES),
        description="Variables of the result, by their names in Earth2Studio; null keeps all.",
    )
    time_layout: TimeLayout = Field(
        "time",
        description="Time dimensions of the result: 'time' has valid times; 'lead_time' has the "
        "time of the initial conditions and offsets from it, as Earth2Studio's data sources need.",
    )

    @field_validator("variables")
    @classmethod
    def _check_variables(cls, value: list[str] | None) -> list[str] | None:
        return check_variables(value, VARIABLES)

    @model_validator(mode="after")
    def _agree(self) -> FCN3Parameters:
        for problem in seed_count_mismatches(self, "n_samples", "seeds"):
            raise ValueError(problem)
        return self


class FCN3Workflow(Workflow):
    """FCN3 ensemble forecast, 6-hourly, global 0.25 degrees.

    The regional grid is unused: every built-in workflow is constructed with both grids.
    """

    name = "foundry_fcn3_workflow"
    description = (
        "FCN3 ensemble forecast from ECMWF IFS initial conditions, 6-hourly, global 0.25 degrees"
    )
    parameters = FCN3Parameters
    models = ("fcn3",)
    data_sources = ("ifs",)

    def __init__(self, grid: Grid | None = None, regional_grid: LambertGrid | None = None) -> None:
        self._grid = grid or Grid()

    def plan(self, parameters: FCN3Parameters) -> Plan:
        """Resolve parameters; seeds that a request omits are drawn here."""
        seeds = parameters.seeds
        return Plan(
            workflow=self.name,
            model="fcn3",
            data_source="ifs",
            start_time=parameters.start_time,
            step_hours=STEP_HOURS,
            n_steps=parameters.n_steps,
            seeds=tuple(seeds) if seeds is not None else draw_seeds(parameters.n_samples),
            input_variables=VARIABLES,
            variables=tuple(parameters.variables or VARIABLES),
            grid=self._grid,
            output_format=parameters.output_format,
            time_layout=parameters.time_layout,
        )

    def drawn_parameters(self, plan: Plan) -> dict[str, Any]:
        """Return the seeds and their number."""
        return {"seeds": list(plan.seeds), "n_samples": len(plan.seeds)}
