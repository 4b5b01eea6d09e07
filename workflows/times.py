"""Times as clients write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def moment_of(value: Any) -> datetime:
    """Read ISO 8601 text with a date and a time; its zone, or none, is kept.

    Parameters
    ----------
    value : str or datetime
        A datetime is given back as it is. Numbers are refused: their unit would be a guess.

    Raises
    ------
    ValueError
        Saying what is wrong, in words for the client.
    """
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError("ISO 8601 text is needed, as in 2025-01-01T00:00:00")
    if "T" not in value and " " not in value:
        raise ValueError(
            "a date and a time are needed, as in 2025-01-01T00:00:00 or 2025-01-01T00:00:00Z"
        )
    try:
        if "\0" in value:  # Python 3.11 lets one pass at the end
            raise ValueError
        return datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"not an ISO 8601 time: {value[:40]!r}") from None


def naive_utc(value: Any) -> datetime:
    """Read a time as `moment_of` does, in UTC and without a zone, as Earth2Studio wants it."""
    moment = moment_of(value)
    if moment.tzinfo is None:
        return moment
    try:
        return moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ValueError("in UTC the year must lie between 1 and 9999") from None


def time_text(text: str) -> str:
    """Check what `moment_of` can read; it stays as the client wrote it."""
    moment_of(text)
    return text
