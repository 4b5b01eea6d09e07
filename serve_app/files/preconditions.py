"""Validators of a file and the conditions that a request sets on them (RFC 9110, section 13)."""

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
    """What tells one state of a file from another."""

    etag: str
    """Strong, quotes included."""
    modified: int
    """Seconds since 1970."""

    @classmethod
    def of(cls, status: os.stat_result) -> Validators:
        """Take them from an open file's status."""
        return cls(
            etag=f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"',
            # Section 8.8.2.1: never later than the answer itself.
            modified=min(status.st_mtime_ns // _NS, int(time.time())),
        )

    @property
    def last_modified(self) -> str:
        """The time as an HTTP date."""
        return formatdate(self.modified, usegmt=True)


def failed_precondition(headers: Headers, validators: Validators) -> Literal[304, 412] | None:
    """Give the status that answers a conditional GET or HEAD; None if it is to be carried out.

    The order is that of section 13.2.2: each date counts only where its entity tag is absent.
    """
    tags = _entity_tags(headers, "if-match")
    if tags is not None:
        # Compared strongly: a weak tag starts with W/ and equals none of ours.
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
    """Say whether If-Range, if there is one, holds."""
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
    """Read a date, in any of the three forms of section 5.6.7; None if it is none."""
    values = headers.getlist(name)
    if len(values) != 1 or len(values[0]) > 64:
        return None
    try:
        date = parsedate_to_datetime(values[0])
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
