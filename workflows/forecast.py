"""Forecasts by any model: what an operator declares, and what follows from the model."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from workflows.base import Component, Plan, TimeLayout, Workflow, draw_seeds
from workflows.errors import InvalidParameters, Problem
from workflows.model_description import ModelDescription
from workflows.parameters import (
    ForecastParameters,
    HourlyTime,
    NotBool,
    Seed,
    check_variables,
    seed_count_mismatches,
)

DEFAULT_STEPS, DEFAULT_MEMBERS = 12, 4
DEFAULT_VARIABLES = ("t2m", "u10m", "v10m")
"""Those of a result if a request names none, as far as a model has them; else its first three."""
CYCLE_HOURS = 6
"""Hours between initial conditions, unless the model has shorter steps."""


class ForecastDeclaration(BaseModel):
    """A forecast workflow as an operator declares it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    model: str
    """Name of the model in the settings."""
    data_sources: tuple[str, ...] = Field(min_length=1)
    """Names of the data sources that a request may choose from; the first is the default."""
    perturbation: Component | None = None
    diagnostics: tuple[Component, ...] = ()
    cycle_hours: int | None = None
    max_steps: int
    max_members: int


class ForecastWorkflow(Workflow):
    """A declared forecast by a model that has described itself."""

    def __init__(self, declaration: ForecastDeclaration, model: ModelDescription) -> None:
        self.name = declaration.name
        self.description = declaration.description
        self._declaration = declaration
        self._model = model
        self.parameters = _parameters(declaration, model)

    def plan(self, parameters: Any) -> Plan:
        """Resolve parameters; seeds that a request omits are drawn here.

        Raises InvalidParameters if several members would be the same.
        """
        declaration, model = self._declaration, self._model
        seeds, count = parameters.seeds, parameters.n_samples
        if len(seeds or range(count)) > 1 and not _has_spread(declaration, model):
            field = "n_samples" if seeds is None else "seeds"
            raise InvalidParameters(
                [
                    Problem(
                        f"parameters.{field}",
                        f"must be 1: {declaration.model} is deterministic and this workflow does "
                        "not perturb its initial conditions, so all members would be the same",
                        "deterministic",
                    )
                ]
            )
        return Plan(
            workflow=self.name,
            model=declaration.model,
            data_source=parameters.data_source,
            start_time=parameters.start_time,
            step_hours=model.step_hours,
            n_steps=parameters.n_steps,
            seeds=tuple(seeds) if seeds is not None else draw_seeds(count),
            input_variables=model.input_variables,
            variables=tuple(parameters.variables or model.variables(self.name)),
            grid=model.grid,
            input_grid=None if model.input_grid == model.grid else model.input_grid,
            history_hours=model.history_hours,
            perturbation=declaration.perturbation,
            output_format=parameters.output_format,
            time_layout=parameters.time_layout,
        )

    def drawn_parameters(self, plan: Plan) -> dict[str, Any]:
        """Return the seeds and their number."""
        return {"seeds": list(plan.seeds), "n_samples": len(plan.seeds)}


def _has_spread(declaration: ForecastDeclaration, model: ModelDescription) -> bool:
    return model.is_stochastic or declaration.perturbation is not None


def _parameters(
    declaration: ForecastDeclaration, model: ModelDescription
) -> type[ForecastParameters]:
    variables = model.variables(declaration.name)
    default = [name for name in DEFAULT_VARIABLES if name in variables] or list(variables[:3])
    cycle = declaration.cycle_hours or min(model.step_hours, CYCLE_HOURS)
    sources, step = declaration.data_sources, model.step_hours
    max_members = declaration.max_members if _has_spread(declaration, model) else 1
    fields: dict[str, Any] = {
        "start_time": (
            Annotated[HourlyTime, AfterValidator(lambda value: _on_cycle(value, cycle))],
            Field(
                description=f"Time of the initial conditions: {_hours_of(cycle)} UTC. ISO 8601; "
                "without a zone it is UTC."
            ),
        ),
        "n_steps": (
            Annotated[int, NotBool],
            Field(
                min(DEFAULT_STEPS, declaration.max_steps),
                ge=1,
                le=declaration.max_steps,
                description=f"Number of steps of {step} hour{'s' * (step > 1)}; the result has "
                "n_steps + 1 times.",
            ),
        ),
        "n_samples": (
            Annotated[int, NotBool],
            Field(
                min(DEFAULT_MEMBERS, max_members),
                ge=1,
                le=declaration.max_members,
                description="Number of ensemble members.",
            ),
        ),
        "seeds": (
            list[Seed] | None,
            Field(
                None,
                min_length=1,
                max_length=declaration.max_members,
                description="One seed per member, drawn at random if omitted. The same seed gives "
                "the same member.",
            ),
        ),
        "variables": (
            Annotated[
                list[str] | None, AfterValidator(lambda value: check_variables(value, variables))
            ],
            Field(
                default,
                min_length=1,
                max_length=len(variables),
                description="Variables of the result, by their names in Earth2Studio; null keeps "
                "all.",
                json_schema_extra=lambda schema: _list_variables(schema, variables),
            ),
        ),
        "data_source": (
            Annotated[str, AfterValidator(lambda value: _one_of(value, sources))],
            Field(
                sources[0],
                description="Source of the initial conditions.",
                json_schema_extra={"enum": list(sources)},
            ),
        ),
        "time_layout": (
            TimeLayout,
            Field(
                "time",
                description="Time dimensions of the result: 'time' has valid times; 'lead_time' "
                "has the time of the initial conditions and offsets from it, as Earth2Studio's "
                "data sources need.",
            ),
        ),
    }
    return cast(
        "type[ForecastParameters]",
        create_model("ForecastParameters", __base__=_AgreeingParameters, **fields),
    )


class _AgreeingParameters(ForecastParameters):
    def model_post_init(self, _context: Any) -> None:
        for problem in seed_count_mismatches(self, "n_samples", "seeds"):
            raise ValueError(problem)


def _on_cycle(value: datetime, hours: int) -> datetime:
    if value.hour % hours:
        raise ValueError(f"initial conditions exist at {_hours_of(hours)} UTC only")
    return value


def _hours_of(cycle: int) -> str:
    if cycle == 1:
        return "every full hour"
    *hours, last = (f"{hour:02d}" for hour in range(0, 24, cycle))
    return f"{', '.join(hours)} and {last}" if hours else last


def _one_of(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"unknown: {value[:40]}; allowed are {', '.join(allowed)}")
    return value


def _list_variables(schema: dict[str, Any], variables: tuple[str, ...]) -> None:
    for option in schema["anyOf"]:
        if option.get("type") == "array":
            option["items"]["enum"] = list(variables)
