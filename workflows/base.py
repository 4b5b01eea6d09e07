"""Base classes of workflows: validated parameters in, a frozen plan out."""

from __future__ import annotations

import functools
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from workflows.delivery import Delivery
from workflows.errors import InvalidParameters, Problem
from workflows.grids import AnyGrid, Grid

OutputFormat = Literal["zarr", "netcdf4"]
TimeLayout = Literal["time", "lead_time"]

SEED_BOUND = 2**32
"""Seeds are in [0, 2**32), which every random number generator involved accepts."""


MAX_UNKNOWN = 100
"""Unknown parameters of one request that are reported."""


class Parameters(BaseModel):
    """Base of all request parameters: unknown names are refused, numeric strings are accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component(BaseModel):
    """A part of a forecast that a replica of its model loads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: str
    """``module:callable``."""
    options: dict[str, Any] = {}
    """Keyword arguments of the callable."""


class Conditioning(BaseModel):
    """The global forecast on which a regional one is conditioned, hour by hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Name of the model's deployment in the settings."""
    interpolation: str
    """Name of the model that interpolates the steps to hours, in the settings."""
    data_source: str
    start_time: datetime
    """Time of its initial conditions, UTC; not after the start of the regional forecast."""
    seeds: tuple[int, ...]
    """One per member; each member conditions an equal number of regional members."""
    input_variables: tuple[str, ...]
    variable: str
    grid: Grid

    @property
    def members(self) -> range:
        """Indices of the members."""
        return range(len(self.seeds))

    def start(self) -> np.datetime64:
        """Return the start as ``datetime64[s]``, UTC."""
        return as_datetime64(self.start_time)


class Plan(BaseModel):
    """The resolved, frozen work of one execution.

    It holds everything that determines the result, so that another process that resumes the
    execution computes the same arrays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workflow: str
    model: str
    """Name of the model's deployment in the settings, such as ``fcn3``."""
    data_source: str
    start_time: datetime
    """Time of the initial conditions, UTC."""
    step_hours: int
    n_steps: int
    """Steps after the initial conditions; the result has ``n_steps + 1`` times."""
    seeds: tuple[int, ...]
    """One per ensemble member."""
    input_variables: tuple[str, ...]
    """Variables of the initial conditions, in the order of the model."""
    variables: tuple[str, ...]
    """Variables of the result."""
    grid: AnyGrid
    output_format: OutputFormat
    time_layout: TimeLayout = "time"
    """Time dimensions of the result: valid ``time``, or a single ``time`` and ``lead_time``."""
    history_hours: tuple[int, ...] = (0,)
    """Times of the initial conditions relative to the start, ascending; the last is 0."""
    input_grid: AnyGrid | None = None
    """Grid of the initial conditions; None if it is that of the result."""
    perturbation: Component | None = None
    """Perturbs the initial conditions of each member, seeded by its seed."""
    conditioning: Conditioning | None = None
    """The forecast on which this one is conditioned, if any."""
    delivery: Delivery | None = None
    """Further destinations of the result."""

    @property
    def members(self) -> range:
        """Indices of the ensemble members."""
        return range(len(self.seeds))

    @property
    def n_times(self) -> int:
        """Number of times in the result, initial conditions included."""
        return self.n_steps + 1

    def lead_times(self) -> NDArray[np.timedelta64]:
        """Return offsets from the start, shape (time,), hours."""
        return np.arange(self.n_times) * np.timedelta64(self.step_hours, "h")

    def start(self) -> np.datetime64:
        """Return the start as ``datetime64[s]``, UTC."""
        return as_datetime64(self.start_time)

    def end_time(self) -> datetime:
        """Return the valid time of the last step, UTC."""
        return self.start_time + timedelta(hours=self.step_hours * self.n_steps)

    @property
    def field_bytes(self) -> int:
        """Size of one variable at one time of one member, bytes (float32)."""
        return 4 * math.prod(self.grid.shape)

    @property
    def output_bytes(self) -> int:
        """Size of the result, bytes, uncompressed."""
        return len(self.seeds) * self.n_times * len(self.variables) * self.field_bytes

    @property
    def working_bytes(self) -> int:
        """Size of intermediate data, bytes: the global initial state and conditioning fields."""
        conditioning = self.conditioning
        if conditioning is None:
            n_fields = len(self.input_variables) * len(self.history_hours)
            return n_fields * 4 * math.prod((self.input_grid or self.grid).shape)
        n_fields = len(conditioning.input_variables) + len(conditioning.seeds) * self.n_steps
        return n_fields * 4 * math.prod(conditioning.grid.shape)

    @property
    def disk_bytes(self) -> int:
        """Upper bound on the disk space used while it runs, bytes."""
        # NetCDF4 is exported from the Zarr store, which is removed afterwards.
        copies = 2 if self.output_format == "netcdf4" else 1
        return self.output_bytes * copies + self.working_bytes

    @property
    def conditioning_hours(self) -> range:
        """Hours after the conditioning forecast's start, one for each step."""
        if self.conditioning is None:
            return range(0)
        ahead = int((self.start() - self.conditioning.start()) / np.timedelta64(1, "h"))
        return range(ahead, ahead + self.n_steps)

    def conditioned_by(self, member: int) -> int:
        """Return the member of the conditioning forecast that conditions a member of this one.

        Raises ValueError if this forecast is not conditioned.
        """
        if self.conditioning is None:
            raise ValueError(f"{self.workflow} is not conditioned")
        return member // (len(self.seeds) // len(self.conditioning.seeds))


def as_datetime64(moment: datetime) -> np.datetime64:
    """Return a time with a zone as ``datetime64[s]``, UTC."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "s")


def draw_seeds(count: int) -> tuple[int, ...]:
    """Return distinct random seeds, from the system's entropy."""
    seeds: set[int] = set()
    while len(seeds) < count:
        seeds.add(secrets.randbelow(SEED_BOUND))
    return tuple(seeds)


def reject_bool(value: Any) -> Any:
    """Refuse true and false, which pydantic reads as 1 and 0; for use before validation."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


class Workflow(ABC):
    """A named recipe that turns a request's parameters into a plan."""

    name: str
    description: str
    parameters: type[Parameters]
    models: ClassVar[Sequence[str]]
    """Names of the models used, as in the settings."""
    data_sources: ClassVar[Sequence[str]]

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the parameters."""
        return self.parameters.model_json_schema()

    def drawn_parameters(self, plan: Any) -> dict[str, Any]:
        """Return the parameters that the plan has drawn, for the record of the execution."""
        return {}

    @abstractmethod
    def plan(self, parameters: Any) -> BaseModel:
        """Resolve validated parameters into a plan; random choices are made here.

        Raises InvalidParameters if this server cannot do what the parameters request.
        """

    def validate(self, values: Mapping[str, Any]) -> Parameters:
        """Validate a request's parameters, decoded from JSON.

        Raises InvalidParameters with a problem for every invalid field, and for up to `MAX_UNKNOWN`
        unknown ones.
        """
        try:
            return self.parameters.model_validate(_without_most_unknown(values, self.parameters))
        except ValidationError as error:
            problems = to_problems(error, "parameters", list(self.parameters.model_fields))
            raise InvalidParameters(problems) from None


def _without_most_unknown(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return values with at most `MAX_UNKNOWN` names that a model refuses.

    pydantic reports each of them. For the names that fit into a body of 1 MB that takes seconds,
    in which it holds the interpreter's lock.
    """
    if model.model_config.get("extra") != "forbid":
        return dict(values)
    known = {key for name, field in model.model_fields.items() for key in (name, field.alias)}
    unknown = [name for name in values if name not in known]
    left_out = set(unknown[MAX_UNKNOWN:])
    return {name: value for name, value in values.items() if name not in left_out}


def to_problems(error: ValidationError, prefix: str, names: Sequence[str]) -> list[Problem]:
    """Convert pydantic's errors into problems.

    Parameters
    ----------
    prefix : str
        Precedes the dotted field names.
    names : sequence of str
        Existing fields, listed in problems about unknown ones.
    """
    unknown = f"unknown; there are {', '.join(names)}"
    return [
        Problem(
            ".".join([prefix, *(str(part) for part in found["loc"])]),
            unknown
            if found["type"] == "extra_forbidden" and len(found["loc"]) == 1
            else found["msg"].removeprefix("Value error, "),
            found["type"],
        )
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]
