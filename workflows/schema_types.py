"""Types of the JSON values in requests to user classes, stricter than pydantic's own."""

from __future__ import annotations

import math
from collections.abc import Hashable
from datetime import date, datetime, time, timedelta
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from workflows.times import check_time_text, parse_naive_utc, parse_time


def reject_nul(text: str) -> str:
    """Refuse NUL characters, which PostgreSQL cannot store."""
    if "\0" in text:
        raise ValueError("NUL characters are not allowed")
    return text


def check_storable(value: Any) -> Any:
    """Refuse NUL in strings and infinite numbers, at any depth; schemas describe neither."""
    pending = [value]
    while pending:
        match pending.pop():
            case str() as text:
                reject_nul(text)
            case float() as number if not math.isfinite(number):
                raise ValueError("must be a finite number")
            case list() as entries:
                pending.extend(entries)
            case dict() as entries:
                pending.extend((*entries, *entries.values()))
    return value


def replace_bool(value: Any) -> Any:
    """Return an object that no Literal contains in place of true and false, which equal 1 and 0."""
    return object() if isinstance(value, bool) else value


def distinct(entries: list[Any]) -> list[Any]:
    """Remove repetitions like a set, but keep the order; the class refuses unhashable entries."""
    hashable = all(isinstance(entry, Hashable) for entry in entries)
    return list(dict.fromkeys(entries)) if hashable else entries


Text = Annotated[str, AfterValidator(reject_nul)]
Anything = Annotated[Any, AfterValidator(check_storable)]
TIMEZONE = "x-timezone"
"""A keyword of ours, beside the format of a time: whether it needs a zone, which it then keeps."""
AwareTime = Annotated[AwareDatetime, BeforeValidator(parse_time)]
TIME_TEXT = "time-text"
"""A format of this module: text that contains a time and stays text."""
FORMATS = {
    "date-time": Annotated[datetime, BeforeValidator(parse_naive_utc)],
    "date": date,
    "time": time,
    "duration": timedelta,
    "uuid": UUID,
    TIME_TEXT: Annotated[Text, AfterValidator(check_time_text)],
}
