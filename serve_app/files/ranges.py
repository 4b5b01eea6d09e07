"""The Range header of a request (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_RANGES = 100
"""Ranges in one response; a request for more is answered with the whole file."""
MAX_HEADER_LENGTH = 16 * 1024

_RANGE_SPEC = re.compile(r"([0-9]*)-([0-9]*)")


def requested_ranges(header: str, size: int) -> list[range] | None:
    """Return the ranges that a Range header requests of a file of `size` bytes.

    Returns
    -------
    list of range or None
        Ranges in the requested order, clamped to the file; overlapping or adjacent ones are merged.
        Empty if the file contains none of them (416). None if the header must be ignored: it has
        another unit, is malformed, or requests too many ranges.
    """
    unit, _, specs = header.partition("=")
    if unit.lower() != "bytes" or len(header) > MAX_HEADER_LENGTH:
        return None
    ranges: list[range] = []
    valid = False
    for spec in specs.split(","):
        spec = spec.strip(" \t")
        if not spec:  # lists may contain empty elements (section 5.6.1.2)
            continue
        match = _RANGE_SPEC.fullmatch(spec)
        if match is None:
            return None
        first, last = match.groups()
        if first:
            if last and _magnitude(last) < _magnitude(first):
                return None
            start = _clamp(first, size)
            stop = _clamp(last, size - 1) + 1 if last else size
        elif last:
            start, stop = size - _clamp(last, size), size
            if size == 0 and last.strip("0"):
                # Satisfiable by section 14.1.2, but Content-Range cannot express it.
                return None
        else:
            return None
        valid = True
        if start < size:
            ranges.append(range(start, stop))
    if not valid:
        return None
    merged = _merge(ranges)
    return merged if len(merged) <= MAX_RANGES else None


def _magnitude(digits: str) -> tuple[int, str]:
    """Return a sort key for numbers of any length; `int` refuses more than 4300 digits."""
    significant = digits.lstrip("0")
    return len(significant), significant


def _clamp(digits: str, limit: int) -> int:
    significant = digits.lstrip("0")
    return min(int(significant or "0"), limit) if len(significant) < 20 else limit


def _merge(ranges: Sequence[range]) -> list[range]:
    """Merge overlapping or adjacent ranges; each takes the position of its first part."""
    merged: list[tuple[int, range]] = []
    for position, current in sorted(enumerate(ranges), key=lambda item: item[1].start):
        if merged and current.start <= merged[-1][1].stop:
            first, previous = merged[-1]
            merged[-1] = (
                min(first, position),
                range(previous.start, max(previous.stop, current.stop)),
            )
        else:
            merged.append((position, current))
    return [merged_range for _, merged_range in sorted(merged, key=lambda item: item[0])]
