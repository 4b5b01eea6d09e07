"""What a workflow is: validated parameters in, a frozen plan out."""

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
from workflows.grids import Grid, LambertGrid

OutputFormat = Literal["zarr", "netcdf4"]
TimeLayout = Literal["time", "lead_time"]

SEED_BOUND = 2**32
"""Seeds are drawn from, and must lie in, [0, 2**32): what every generator involved accepts."""


class Parameters(BaseModel):
    """Base of all request parameters: unknown names are refused, numeric strings are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Conditioning(BaseModel):
    """The global forecast that a regional one is conditioned on, hour by hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Name of the model's deployment in the settings."""
    interpolation: str
    """Name of what makes the model's steps hourly."""
    data_source: str
    start_time: datetime
    """Time of its initial conditions, UTC; not after the start of what it conditions."""
    seeds: tuple[int, ...]
    """One per member; each conditions as many members of the regional forecast."""
    input_variables: tuple[str, ...]
    variable: str
    """What conditions."""
    grid: Grid

    @property
    def members(self) -> range:
        """Indices of the members."""
        return range(len(self.seeds))

    def start(self) -> np.datetime64:
        """Give the start as ``datetime64[s]``, UTC."""
        return as_datetime64(self.start_time)


class Plan(BaseModel):
    """The resolved, frozen work of one execution.

    It names everything that decides the result, so that an execution resumed by another process
    computes the same arrays.
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
    """Steps after the initial conditions: the result has ``n_steps + 1`` times."""
    seeds: tuple[int, ...]
    """One per ensemble member."""
    input_variables: tuple[str, ...]
    """What the model needs of the initial conditions, in its order."""
    variables: tuple[str, ...]
    """What the result keeps."""
    grid: Grid | LambertGrid
    output_format: OutputFormat
    time_layout: TimeLayout = "time"
    """Dimensions of the result: valid ``time`` alone, or one ``time`` and ``lead_time``."""
    conditioning: Conditioning | None = None
    """The forecast that this one is conditioned on, if any."""
    delivery: Delivery | None = None
    """Where the result goes besides this server."""

    @property
    def members(self) -> range:
        """Indices of the ensemble members."""
        return range(len(self.seeds))

    @property
    def n_times(self) -> int:
        """Number of times in the result, initial conditions included."""
        return self.n_steps + 1

    def lead_times(self) -> NDArray[np.timedelta64]:
        """Give offsets from the start, shape (time,), hours."""
        return np.arange(self.n_times) * np.timedelta64(self.step_hours, "h")

    def start(self) -> np.datetime64:
        """Give the start as ``datetime64[s]``, UTC."""
        return as_datetime64(self.start_time)

    def end_time(self) -> datetime:
        """Give the valid time of the last step, UTC."""
        return self.start_time + timedelta(hours=self.step_hours * self.n_steps)

    @property
    def field_bytes(self) -> int:
        """Size of one variable at one time of one member, float32."""
        return 4 * math.prod(self.grid.shape)

    @property
    def output_bytes(self) -> int:
        """Size of the result, uncompressed."""
        return len(self.seeds) * self.n_times * len(self.variables) * self.field_bytes

    @property
    def working_bytes(self) -> int:
        """Size of what is kept while it runs: the global state and the fields that condition."""
        conditions = self.conditioning
        if conditions is None:
            return len(self.input_variables) * self.field_bytes
        fields = len(conditions.input_variables) + len(conditions.seeds) * self.n_steps
        return fields * 4 * math.prod(conditions.grid.shape)

    @property
    def disk_bytes(self) -> int:
        """Size of what lies on the disk at most, while it runs: the result and what it needs."""
        # NetCDF4 is exported from the Zarr store, which is removed only afterwards.
        copies = 2 if self.output_format == "netcdf4" else 1
        return self.output_bytes * copies + self.working_bytes

    @property
    def conditioning_hours(self) -> range:
        """Hours after the conditioning forecast's start whose fields are needed, one a step."""
        if self.conditioning is None:
            return range(0)
        ahead = int((self.start() - self.conditioning.start()) / np.timedelta64(1, "h"))
        return range(ahead, ahead + self.n_steps)

    def conditioned_by(self, member: int) -> int:
        """Give the member of the conditioning forecast that conditions a member of this one.

        Raises
        ------
        ValueError
            If nothing conditions this one.
        """
        if self.conditioning is None:
            raise ValueError(f"{self.workflow} is not conditioned")
        return member // (len(self.seeds) // len(self.conditioning.seeds))


def as_datetime64(moment: datetime) -> np.datetime64:
    """Give a time with a zone as ``datetime64[s]``, UTC."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "s")


def draw_seeds(count: int) -> tuple[int, ...]:
    """Draw distinct seeds from the system's entropy, so that no request can disturb another's."""
    seeds: set[int] = set()
    while len(seeds) < count:
        seeds.add(secrets.randbelow(SEED_BOUND))
    return tuple(seeds)


def number_not_bool(value: Any) -> Any:
    """Refuse true and false, which pydantic takes for 1 and 0; to be used before validation."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


class Workflow(ABC):
    """A named recipe: what can be asked for, and the plan that follows from it."""

    name: str
    description: str
    parameters: type[Parameters]
    models: ClassVar[Sequence[str]]
    """Names of the models that it needs, as in the settings."""
    data_sources: ClassVar[Sequence[str]]

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the parameters."""
        return self.parameters.model_json_schema()

    def drawn(self, plan: Any) -> dict[str, Any]:
        """Give parameters whose values the plan has drawn, as the execution's record shall have."""
        return {}

    @abstractmethod
    def plan(self, parameters: Any) -> BaseModel:
        """Resolve validated parameters into a plan; draws what was left to chance.

        Raises
        ------
        InvalidParameters
            If the parameters name something that this server cannot do.
        """

    def validate(self, values: Mapping[str, Any]) -> Parameters:
        """Check a request's parameters.

        Parameters
        ----------
        values : mapping
            As decoded from JSON.

        Raises
        ------
        InvalidParameters
            Naming every field that is wrong.
        """
        try:
            return self.parameters.model_validate(dict(values))
        except ValidationError as error:
            problems = problems_of(error, "parameters", list(self.parameters.model_fields))
            raise InvalidParameters(problems) from None


def problems_of(error: ValidationError, prefix: str, names: Sequence[str]) -> list[Problem]:
    """Turn pydantic's findings into ours, field names dotted below `prefix`.

    Parameters
    ----------
    names : sequence of str
        The fields that there are, for those that do not exist.
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
