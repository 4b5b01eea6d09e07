"""Validators of a file, and conditional requests (RFC 9110, section 13)."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from typing import Literal

from starlette.datastructures import Headers

_ENTITY_TAG = re.compile(r'(?:W/)?"[^"]*"')
_NS = 10**9


@dataclass(frozen=True)
class Validators:
    """What distinguishes two states of a file."""

    etag: str
    """Strong entity tag, quotes included."""
    modified: int
    """Seconds since 1970."""

    @classmethod
    def of(cls, status: os.stat_result) -> Validators:
        """Return the validators of a file on disk."""
        return cls(
            etag=f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"',
            # Section 8.8.2.1: never later than the response itself.
            modified=min(status.st_mtime_ns // _NS, int(time.time())),
        )

    @property
    def last_modified(self) -> str:
        """Time of the last modification as an HTTP date."""
        return formatdate(self.modified, usegmt=True)


def failed_precondition(headers: Headers, validators: Validators) -> Literal[304, 412] | None:
    """Return the status of a conditional GET or HEAD whose condition fails; None if it holds.

    Conditions are evaluated in the order of section 13.2.2: a date is ignored if the entity tag of
    its kind is present.
    """
    tags = _entity_tags(headers, "if-match")
    if tags is not None:
        # Strong comparison: a weak tag starts with W/ and equals none of these.
        if "*" not in tags and validators.etag not in tags:
            return 412
    else:
        unmodified_since = _date(headers, "if-unmodified-since")
        if unmodified_since is not None and validators.modified > unmodified_since:
            return 412

    tags = _entity_tags(headers, "if-none-match")
    if tags is not None:
        if "*" in tags or validators.etag in {tag.removeprefix("W/") for tag in tags}:
            return 304
    else:
        modified_since = _date(headers, "if-modified-since")
        if modified_since is not None and validators.modified <= modified_since:
            return 304
    return None


def range_applies(headers: Headers, validators: Validators) -> bool:
    """Return whether If-Range holds or is absent."""
    values = headers.getlist("if-range")
    if not values:
        return True
    if '"' in values[0]:
        return values == [validators.etag]
    return _date(headers, "if-range") == validators.modified


def _entity_tags(headers: Headers, name: str) -> list[str] | None:
    values = headers.getlist(name)
    if not values:
        return None
    return ["*"] if values == ["*"] else _ENTITY_TAG.findall(",".join(values))


def _date(headers: Headers, name: str) -> float | None:
    """Return a date, in any of the three formats of section 5.6.7; None if it is invalid."""
    values = headers.getlist(name)
    if len(values) != 1 or len(values[0]) > 64:
        return None
    try:
        date = parsedate_to_datetime(values[0])
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
