"""Times as clients write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def format_utc(moment: datetime) -> str:
    """Return a time with a zone as ISO 8601 text in UTC, such as ``2025-01-01T06:00:00Z``."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_time(value: Any) -> datetime:
    """Parse ISO 8601 text with a date and a time; without a zone, the result is naive.

    Parameters
    ----------
    value : str or datetime
        A datetime is returned unchanged. Numbers are refused, since their unit is ambiguous.

    Raises
    ------
    ValueError
        With a message for the client.
    """
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError("must be ISO 8601 text, such as 2025-01-01T00:00:00")
    if "T" not in value and " " not in value:
        raise ValueError(
            "must have a date and a time, such as 2025-01-01T00:00:00 or 2025-01-01T00:00:00Z"
        )
    try:
        if "\0" in value:  # Python 3.11 accepts one at the end
            raise ValueError
        return datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"not an ISO 8601 time: {value[:40]!r}") from None


def parse_naive_utc(value: Any) -> datetime:
    """Parse a time like `parse_time` and convert it to naive UTC, as Earth2Studio expects it."""
    moment = parse_time(value)
    if moment.tzinfo is None:
        return moment
    try:
        return moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ValueError("the year in UTC must be between 1 and 9999") from None


def check_time_text(text: str) -> str:
    """Refuse text that `parse_time` cannot parse; return it unchanged."""
    parse_time(text)
    return text
