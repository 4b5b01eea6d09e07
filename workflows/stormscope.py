"""StormScope nowcasts over the contiguous United States, conditioned on FCN3.

References
----------
StormScope: https://huggingface.co/nvidia/stormscope-goes-mrms. FCN3: arXiv:2507.12144. GOES-19
took over as GOES-East on 7 April 2025 (NOAA).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from workflows.base import Conditioning, Plan, Workflow, draw_seeds
from workflows.fcn3 import VARIABLES as FCN3_VARIABLES
from workflows.grids import Grid, LambertGrid
from workflows.parameters import (
    ForecastParameters,
    HourlyTime,
    NotBool,
    Seed,
    SixHourlyTime,
    check_variables,
    seed_count_mismatches,
)

VARIABLES: tuple[str, ...] = (
    *("abi01c", "abi02c", "abi03c", "abi07c"),
    *("abi08c", "abi09c", "abi10c", "abi13c"),
)
"""The 8 channels of GOES that StormScope forecasts, in its order."""
CONDITIONING_VARIABLE = "z500"
DEFAULT_VARIABLES = ("abi01c", "abi02c", "abi03c")

MAX_STEPS = 32
MAX_MEMBERS = 32
MAX_HOURS_AHEAD = 12
"""Hours by which FCN3 may start before StormScope; it computes them before the nowcast starts."""
GOES_19_SINCE = datetime(2025, 4, 7, tzinfo=UTC)


class StormScopeParameters(ForecastParameters):
    """Parameters of `StormScopeWorkflow`."""

    start_time_fcn3: SixHourlyTime = Field(
        datetime(2025, 1, 1, 18, tzinfo=UTC),
        description="Time of FCN3's initial conditions: 00, 06, 12 or 18 UTC. ISO 8601; without a "
        "zone it is UTC.",
    )
    start_time_stormscope: HourlyTime = Field(
        datetime(2025, 1, 1, 18, tzinfo=UTC),
        description="Time of the satellite image from which the nowcast starts: a full hour, not "
        f"before start_time_fcn3 and at most {MAX_HOURS_AHEAD} hours after it.",
    )
    n_steps: Annotated[int, NotBool] = Field(
        12,
        ge=1,
        le=MAX_STEPS,
        description="Number of steps of 1 hour; the result has n_steps + 1 times.",
    )
    n_samples_fcn3: Annotated[int, NotBool] = Field(
        1, ge=1, le=MAX_MEMBERS, description="Number of members of FCN3."
    )
    n_samples_stormscope: Annotated[int, NotBool] | None = Field(
        None,
        ge=1,
        le=MAX_MEMBERS,
        description="Number of members of the nowcast, a multiple of n_samples_fcn3, which is the "
        "default.",
    )
    seeds_fcn3: list[Seed] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MEMBERS,
        description="One seed per member of FCN3, drawn at random if omitted.",
    )
    seeds_stormscope: list[Seed] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MEMBERS,
        description="One seed per member of the nowcast, drawn at random if omitted. Members that "
        "FCN3's first member conditions come first.",
    )
    variables: list[str] | None = Field(
        list(DEFAULT_VARIABLES),
        min_length=1,
        max_length=len(VARIABLES),
        description="Channels of the result, by their names in Earth2Studio; null keeps all.",
    )

    @property
    def members_fcn3(self) -> int:
        """Number of members of FCN3."""
        return self.n_samples_fcn3 if self.seeds_fcn3 is None else len(self.seeds_fcn3)

    @property
    def members_stormscope(self) -> int:
        """Number of members of the nowcast."""
        if self.seeds_stormscope is not None:
            return len(self.seeds_stormscope)
        return self.n_samples_stormscope or self.members_fcn3

    @field_validator("variables")
    @classmethod
    def _check_variables(cls, value: list[str] | None) -> list[str] | None:
        return check_variables(value, VARIABLES)

    @model_validator(mode="after")
    def _agree(self) -> StormScopeParameters:
        problems = [*self._wrong_starts(), *self._wrong_members()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _wrong_starts(self) -> Iterator[str]:
        ahead = self.start_time_stormscope - self.start_time_fcn3
        if not timedelta(0) <= ahead <= timedelta(hours=MAX_HOURS_AHEAD):
            hours = ahead.total_seconds() / 3600
            yield (
                "start_time_stormscope must be between start_time_fcn3 and "
                f"{MAX_HOURS_AHEAD} h after it; it is {abs(hours):g} h "
                f"{'after' if hours > 0 else 'before'} it"
            )

    def _wrong_members(self) -> Iterator[str]:
        yield from seed_count_mismatches(self, "n_samples_fcn3", "seeds_fcn3")
        yield from seed_count_mismatches(self, "n_samples_stormscope", "seeds_stormscope")
        fcn3, stormscope = self.members_fcn3, self.members_stormscope
        if stormscope % fcn3:
            yield (
                f"StormScope's {stormscope} members cannot be distributed evenly among FCN3's "
                f"{fcn3}: n_samples_stormscope (or the number of seeds_stormscope) must be a "
                "multiple of n_samples_fcn3 (or the number of seeds_fcn3)"
            )


class StormScopeWorkflow(Workflow):
    """StormScope ensemble nowcast of GOES images, hourly, conditioned on an FCN3 ensemble.

    The grids are those of the served FCN3 and StormScope.
    """

    name = "foundry_fcn3_stormscope_goes_workflow"
    description = (
        "StormScope ensemble nowcast of GOES images over the contiguous United States, hourly, "
        "conditioned on an FCN3 ensemble from ECMWF IFS initial conditions"
    )
    parameters = StormScopeParameters
    models = ("fcn3", "interpolation", "stormscope")
    data_sources = ("ifs", "goes16", "goes19")

    def __init__(self, grid: Grid | None = None, regional_grid: LambertGrid | None = None) -> None:
        self._conditioning_grid = grid or Grid()
        self._grid = regional_grid or LambertGrid()

    def plan(self, parameters: StormScopeParameters) -> Plan:
        """Resolve parameters; seeds that a request omits are drawn here."""
        start = parameters.start_time_stormscope
        return Plan(
            workflow=self.name,
            model="stormscope",
            data_source="goes16" if start < GOES_19_SINCE else "goes19",
            start_time=start,
            step_hours=1,
            n_steps=parameters.n_steps,
            seeds=_seeds(parameters.seeds_stormscope, parameters.members_stormscope),
            input_variables=VARIABLES,
            variables=tuple(parameters.variables or VARIABLES),
            grid=self._grid,
            output_format=parameters.output_format,
            conditioning=Conditioning(
                model="fcn3",
                interpolation="interpolation",
                data_source="ifs",
                start_time=parameters.start_time_fcn3,
                seeds=_seeds(parameters.seeds_fcn3, parameters.members_fcn3),
                input_variables=FCN3_VARIABLES,
                variable=CONDITIONING_VARIABLE,
                grid=self._conditioning_grid,
            ),
        )

    def drawn_parameters(self, plan: Plan) -> dict[str, Any]:
        """Return the seeds of both ensembles and their numbers."""
        assert plan.conditioning is not None  # noqa: S101 - `plan` always sets it
        return {
            "seeds_fcn3": list(plan.conditioning.seeds),
            "n_samples_fcn3": len(plan.conditioning.seeds),
            "seeds_stormscope": list(plan.seeds),
            "n_samples_stormscope": len(plan.seeds),
        }


def _seeds(given: list[int] | None, count: int) -> tuple[int, ...]:
    return tuple(given) if given is not None else draw_seeds(count)
