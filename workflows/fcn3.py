"""FCN3 ensemble forecasts from ECMWF IFS initial conditions.

References
----------
Bonev et al., FourCastNet 3, arXiv:2507.12144.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from workflows.base import (
    DELIVERY,
    SEED_BOUND,
    Grid,
    OutputFormat,
    Parameters,
    Plan,
    TimeLayout,
    Workflow,
    draw_seeds,
    number_not_bool,
    refuse_delivery,
)
from workflows.times import moment_of

LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
VARIABLES: tuple[str, ...] = (
    *("u10m", "v10m", "u100m", "v100m", "t2m", "msl", "tcwv"),
    *(f"{name}{level}" for name in "uvztq" for level in LEVELS),
)
"""The 72 variables of FCN3, in the order of its channels."""

STEP_HOURS = 6
MAX_STEPS = 400
MAX_MEMBERS = 32
FIRST_YEAR, LAST_YEAR = 1900, 2199
DEFAULT_VARIABLES = ("t2m", "u10m", "v10m")


def _utc_time(value: Any) -> datetime:
    """Take ISO 8601 text with a time part; a zone is converted, none means UTC."""
    moment = moment_of(value)
    if moment.year not in range(FIRST_YEAR, LAST_YEAR + 1):
        raise ValueError(f"the year must lie between {FIRST_YEAR} and {LAST_YEAR}")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _six_hourly(value: datetime) -> datetime:
    if value.hour % STEP_HOURS or value.minute or value.second or value.microsecond:
        raise ValueError("initial conditions exist at 00, 06, 12 and 18 UTC only")
    return value


UtcTime = Annotated[datetime, BeforeValidator(_utc_time)]
Count = BeforeValidator(number_not_bool)
Seed = Annotated[int, Count, Field(ge=0, lt=SEED_BOUND)]


class FCN3Parameters(Parameters):
    """Parameters of `FCN3Workflow`."""

    start_time: Annotated[UtcTime, AfterValidator(_six_hourly)] = Field(
        datetime(2025, 1, 1, tzinfo=UTC),
        description="Time of the initial conditions, ISO 8601; without a zone it is UTC. "
        "00, 06, 12 or 18 UTC.",
    )
    n_steps: Annotated[int, Count] = Field(
        12,
        ge=1,
        le=MAX_STEPS,
        description="Steps of 6 hours; the result has n_steps + 1 times.",
    )
    n_samples: Annotated[int, Count] = Field(
        4, ge=1, le=MAX_MEMBERS, description="Ensemble members."
    )
    seeds: list[Seed] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MEMBERS,
        description="One seed per member, drawn when left out. The same seed, the same member.",
    )
    variables: list[str] | None = Field(
        list(DEFAULT_VARIABLES),
        min_length=1,
        max_length=len(VARIABLES),
        description="Variables to keep, in Earth2Studio's names; null keeps all.",
    )
    output_format: OutputFormat = Field("netcdf4", description="Format of the result.")
    time_layout: TimeLayout = Field(
        "time",
        description="Dimensions of the result: time has valid times; lead_time has one time, that "
        "of the initial conditions, and offsets from it, as Earth2Studio's data sources need.",
    )
    container_url: str | None = Field(
        None, max_length=2048, description="Azure Blob container for the results."
    )
    geo_catalog_url: str | None = Field(
        None, max_length=2048, description="GeoCatalog that registers the results."
    )
    collection_id: str | None = Field(
        None, max_length=255, description="STAC collection of the registered item."
    )

    @field_validator("variables")
    @classmethod
    def _known_and_unique(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return value
        unknown = [name[:40] for name in value if name not in VARIABLES]
        if unknown:
            raise ValueError(
                f"unknown: {', '.join(unknown[:5])}; allowed are {', '.join(VARIABLES)}"
            )
        if len(set(value)) < len(value):
            repeated = sorted({name for name in value if value.count(name) > 1})
            raise ValueError(f"repeated: {', '.join(repeated)}")
        return value

    @field_validator("container_url", "geo_catalog_url")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https://[^\s/?#@]+(/[^\s?#]*)?", value):
            raise ValueError("an https:// URL without credentials or query is needed")
        return value

    @field_validator("collection_id")
    @classmethod
    def _collection_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("letters, digits, '.', '_' and '-' are allowed")
        return value

    @model_validator(mode="after")
    def _agree(self) -> FCN3Parameters:
        if (
            self.seeds is not None
            and "n_samples" in self.model_fields_set
            and len(self.seeds) != self.n_samples
        ):
            raise ValueError(
                f"seeds has {len(self.seeds)} entries but n_samples is {self.n_samples}; "
                "give one of them, or let them agree"
            )
        return self


class FCN3Workflow(Workflow):
    """FCN3 ensemble forecast, 6-hourly, global 0.25 degrees.

    Parameters
    ----------
    grid : Grid, optional
        Grid of the model that is served; FCN3's own by default.
    """

    name = "foundry_fcn3_workflow"
    description = (
        "FCN3 ensemble forecast from ECMWF IFS initial conditions, 6-hourly, global 0.25 degrees"
    )
    parameters = FCN3Parameters
    models = ("fcn3",)
    data_sources = ("ifs",)

    def __init__(self, grid: Grid | None = None) -> None:
        self._grid = grid or Grid()

    def plan(self, parameters: FCN3Parameters) -> Plan:
        """Resolve parameters; seeds that were not given are drawn here and stay with the plan."""
        refuse_delivery(parameters.model_dump(include=set(DELIVERY)))
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
