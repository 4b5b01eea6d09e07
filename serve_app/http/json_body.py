"""Request bodies: strict JSON, with every refusal naming what is wrong.

`json.loads` alone takes NaN, keeps the last of two equal keys, lets half a surrogate pair pass and
turns 1e999 into infinity; none of these has a meaning that both sides would agree on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.http.errors import InvalidHeader, UnsupportedMediaType
from workflows.errors import InvalidParameters, Problem

MAX_KEY_LENGTH = 255
MAX_DIGITS = 1000
MAX_DEPTH = 100
_SURROGATE = re.compile("[\ud800-\udfff]")


class _DuplicateName(Exception):
    pass


@dataclass(frozen=True)
class RequestBody:
    """A submit's body, decoded."""

    parameters: dict[str, Any]
    digest: str
    """SHA-256 of its canonical JSON: the same for bodies that mean the same."""


def parse_submit(raw: bytes, content_type: str | None) -> RequestBody:
    """Decode the body of a submit, ``{"parameters": {…}}``.

    Parameters
    ----------
    raw : bytes
        The body, already bounded in size.
    content_type : str or None
        Its declared type; none is taken for JSON.

    Raises
    ------
    UnsupportedMediaType
        If it is declared to be something else than JSON.
    InvalidParameters
        If it is not strict JSON or has another shape.
    """
    if content_type is not None and not _is_json(content_type):
        raise UnsupportedMediaType("the body must be JSON, with Content-Type: application/json")
    body, canonical = _decode(raw)
    if not isinstance(body, dict):
        raise _refusal("", 'a JSON object is needed, as in {"parameters": {}}', "dict_type")
    unknown = [name for name in body if name != "parameters"]
    if unknown:
        raise InvalidParameters(
            [
                Problem(name, "unknown; only parameters is allowed", "extra_forbidden")
                for name in unknown
            ]
        )
    parameters = body.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _refusal("parameters", "a JSON object is needed", "dict_type")
    return RequestBody(parameters, hashlib.sha256(canonical).hexdigest())


def parse_idempotency_key(values: list[str]) -> str | None:
    """Check the values of the Idempotency-Key header; None if there are none.

    Raises
    ------
    InvalidHeader
        If there are several, or one is not 1 to 255 printable ASCII characters.
    """
    if not values:
        return None
    key = values[0]
    if len(values) > 1 or not 1 <= len(key) <= MAX_KEY_LENGTH or not _is_printable(key):
        raise InvalidHeader(
            "Idempotency-Key", f"one value of 1 to {MAX_KEY_LENGTH} printable ASCII characters"
        )
    return key


def _decode(raw: bytes) -> tuple[Any, bytes]:
    """Decode strict JSON; give it with its canonical form."""
    if not raw.strip():
        raise _refusal("", 'a JSON body is needed, as in {"parameters": {}}', "missing")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
        )
        canonical = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        encoded = canonical.encode("utf-8")
    except json.JSONDecodeError as error:
        raise _refusal("", f"not JSON: {error}", "json_invalid") from None
    except UnicodeDecodeError as error:
        raise _refusal("", f"not UTF-8 at byte {error.start}", "json_invalid") from None
    except RecursionError:
        raise _refusal("", "nested too deeply", "json_invalid") from None
    except _DuplicateName as error:
        raise _refusal("", f"{str(error)[:100]!r} is given twice", "json_invalid") from None
    except ValueError:  # what `dumps` and `encode` refuse
        raise InvalidParameters(list(_unusable(value, []))) from None
    if _too_deep(value):
        raise _refusal("", "nested too deeply", "json_invalid")
    return value, encoded


def _too_deep(value: Any) -> bool:
    """Say whether lists and objects lie deeper in each other than those can handle who follow."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            entry
            for each in level
            if isinstance(each, (dict, list))
            for entry in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DuplicateName(name)
            seen.add(name)
    return value


def _integer(text: str) -> float:
    # Python refuses to read longer integers, and nothing here needs them.
    return int(text) if len(text) <= MAX_DIGITS else math.inf


def _unusable(value: Any, path: list[str]) -> Iterator[Problem]:
    """Find numbers and strings that JSON cannot hold or UTF-8 cannot encode."""
    match value:
        case dict() | list() if len(path) > MAX_DEPTH:
            yield Problem("", "nested too deeply", "json_invalid")
        case dict():
            for name, entry in value.items():
                yield from _unusable(name, path)
                yield from _unusable(entry, [*path, name])
        case list():
            for index, entry in enumerate(value):
                yield from _unusable(entry, [*path, str(index)])
        case float() if not math.isfinite(value):
            yield Problem(".".join(path), "a finite number is needed", "finite_number")
        case str() if _SURROGATE.search(value):
            yield Problem(".".join(path), "half a surrogate pair", "string_unicode")


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _refusal(field: str, message: str, kind: str) -> InvalidParameters:
    return InvalidParameters([Problem(field, message, kind)])
