"""Parameters that the built-in workflows share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from workflows.base import SEED_BOUND, OutputFormat, Parameters, reject_bool
from workflows.times import parse_time

FIRST_YEAR, LAST_YEAR = 1900, 2199


def _utc_time(value: Any) -> datetime:
    """Parse ISO 8601 text with a date and a time; without a zone it is UTC."""
    moment = parse_time(value)
    # Before and after the conversion, which fails at both ends of the calendar.
    _check_year(moment)
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    _check_year(utc)
    return utc


def _check_year(moment: datetime) -> None:
    if moment.year not in range(FIRST_YEAR, LAST_YEAR + 1):
        raise ValueError(f"the year must be between {FIRST_YEAR} and {LAST_YEAR}")


def _hourly(value: datetime) -> datetime:
    if value.minute or value.second or value.microsecond:
        raise ValueError("must be a full hour")
    return value


def _six_hourly(value: datetime) -> datetime:
    if value.hour % 6 or value.minute or value.second or value.microsecond:
        raise ValueError("initial conditions exist at 00, 06, 12 and 18 UTC only")
    return value


UtcTime = Annotated[datetime, BeforeValidator(_utc_time)]
HourlyTime = Annotated[UtcTime, AfterValidator(_hourly)]
SixHourlyTime = Annotated[UtcTime, AfterValidator(_six_hourly)]
NotBool = BeforeValidator(reject_bool)
Seed = Annotated[int, Field(ge=0, lt=SEED_BOUND), NotBool]


class ForecastParameters(Parameters):
    """Format and delivery of every forecast; names are those of Earth2Studio's workflows."""

    output_format: OutputFormat = Field("netcdf4", description="Format of the result.")
    container_url: str | None = Field(
        None,
        max_length=2048,
        description="URL of an Azure Blob container, or of a folder in one, for the results.",
    )
    geo_catalog_url: str | None = Field(
        None, max_length=2048, description="URL of the GeoCatalog that registers the results."
    )
    collection_id: str | None = Field(
        None, max_length=255, description="STAC collection for the registered item."
    )


def check_variables(value: list[str] | None, allowed: Sequence[str]) -> list[str] | None:
    """Refuse unknown and repeated names of variables with a ValueError that lists them."""
    if value is None:
        return value
    unknown = [name[:40] for name in value if name not in allowed]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown[:5])}; allowed are {', '.join(allowed)}")
    if len(set(value)) < len(value):
        repeated = sorted({name for name in value if value.count(name) > 1})
        raise ValueError(f"repeated: {', '.join(repeated)}")
    return value


def seed_count_mismatches(parameters: Parameters, count: str, seeds: str) -> Iterator[str]:
    """Yield a message if a request sets a number of members that differs from that of its seeds.

    `count` and `seeds` are the names of the two parameters.
    """
    given, number = getattr(parameters, seeds), getattr(parameters, count)
    if given is None or number is None or count not in parameters.model_fields_set:
        return
    if len(given) != number:
        yield (
            f"{seeds} has {len(given)} entries but {count} is {number}; omit one of them, or make "
            "them agree"
        )
