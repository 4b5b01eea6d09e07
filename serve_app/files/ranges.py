"""The Range header of a request (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_RANGES = 100
"""Parts of one answer; whoever asks for more gets the whole file."""
MAX_HEADER_LENGTH = 16 * 1024

_RANGE_SPEC = re.compile(r"([0-9]*)-([0-9]*)")


def requested_ranges(header: str, size: int) -> list[range] | None:
    """Give the byte ranges that a Range header asks of a file.

    Parameters
    ----------
    header : str
        Value of the header.
    size : int
        Bytes in the file.

    Returns
    -------
    list of range or None
        Ranges in the order asked for, clamped to the file, those that overlap or touch joined
        into one. Empty if the file has none of them (416). None if the header is to be ignored:
        another unit, malformed, or too many ranges to be meant well.
    """
    unit, _, specs = header.partition("=")
    if unit.lower() != "bytes" or len(header) > MAX_HEADER_LENGTH:
        return None
    found: list[range] = []
    valid = False
    for spec in specs.split(","):
        spec = spec.strip(" \t")
        if not spec:  # a list may have empty elements (section 5.6.1.2)
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
                # Satisfiable by section 14.1.2, but Content-Range cannot say so.
                return None
        else:
            return None
        valid = True
        if start < size:
            found.append(range(start, stop))
    if not valid:
        return None
    joined = _coalesce(found)
    return joined if len(joined) <= MAX_RANGES else None


def _magnitude(digits: str) -> tuple[int, str]:
    """Give a key that orders numbers of any length; `int` refuses those over 4300 digits."""
    significant = digits.lstrip("0")
    return len(significant), significant


def _clamp(digits: str, limit: int) -> int:
    significant = digits.lstrip("0")
    return min(int(significant or "0"), limit) if len(significant) < 20 else limit


def _coalesce(ranges: Sequence[range]) -> list[range]:
    """Join ranges that overlap or touch; each stands where its first part was asked for."""
    joined: list[tuple[int, range]] = []
    for position, wanted in sorted(enumerate(ranges), key=lambda item: item[1].start):
        if joined and wanted.start <= joined[-1][1].stop:
            first, before = joined[-1]
            joined[-1] = (
                min(first, position),
                range(before.start, max(before.stop, wanted.stop)),
            )
        else:
            joined.append((position, wanted))
    return [wanted for _, wanted in sorted(joined, key=lambda item: item[0])]
