"""Parameters that the built-in workflows share, with the words that refuse wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from workflows.base import SEED_BOUND, OutputFormat, Parameters, number_not_bool
from workflows.times import moment_of

FIRST_YEAR, LAST_YEAR = 1900, 2199


def _utc_time(value: Any) -> datetime:
    """Take ISO 8601 text with a time part; a zone is converted, none means UTC."""
    moment = moment_of(value)
    # Before and after the conversion, which fails at the ends of the calendar.
    _check_year(moment)
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    _check_year(utc)
    return utc


def _check_year(moment: datetime) -> None:
    if moment.year not in range(FIRST_YEAR, LAST_YEAR + 1):
        raise ValueError(f"the year must lie between {FIRST_YEAR} and {LAST_YEAR}")


def _hourly(value: datetime) -> datetime:
    if value.minute or value.second or value.microsecond:
        raise ValueError("a full hour is needed")
    return value


def _six_hourly(value: datetime) -> datetime:
    if value.hour % 6 or value.minute or value.second or value.microsecond:
        raise ValueError("initial conditions exist at 00, 06, 12 and 18 UTC only")
    return value


UtcTime = Annotated[datetime, BeforeValidator(_utc_time)]
HourlyTime = Annotated[UtcTime, AfterValidator(_hourly)]
SixHourlyTime = Annotated[UtcTime, AfterValidator(_six_hourly)]
Count = BeforeValidator(number_not_bool)
Seed = Annotated[int, Count, Field(ge=0, lt=SEED_BOUND)]


class ForecastParameters(Parameters):
    """What every forecast takes: format and delivery, as the peer's Foundry workflows name them."""

    output_format: OutputFormat = Field("netcdf4", description="Format of the result.")
    container_url: str | None = Field(
        None,
        max_length=2048,
        description="Azure Blob container, or a folder in one, for the results.",
    )
    geo_catalog_url: str | None = Field(
        None, max_length=2048, description="GeoCatalog that registers the results."
    )
    collection_id: str | None = Field(
        None, max_length=255, description="STAC collection of the registered item."
    )


def known_and_unique(value: list[str] | None, allowed: Sequence[str]) -> list[str] | None:
    """Refuse names of variables that are unknown or come twice.

    Raises
    ------
    ValueError
        Naming them, and what is allowed.
    """
    if value is None:
        return value
    unknown = [name[:40] for name in value if name not in allowed]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown[:5])}; allowed are {', '.join(allowed)}")
    if len(set(value)) < len(value):
        repeated = sorted({name for name in value if value.count(name) > 1})
        raise ValueError(f"repeated: {', '.join(repeated)}")
    return value


def disagreements(parameters: Parameters, count: str, seeds: str) -> Iterator[str]:
    """Tell of a count of members that is given beside another number of seeds, naming both."""
    given, number = getattr(parameters, seeds), getattr(parameters, count)
    if given is None or number is None or count not in parameters.model_fields_set:
        return
    if len(given) != number:
        yield (
            f"{seeds} has {len(given)} entries but {count} is {number}; give one of them, or let "
            "them agree"
        )
