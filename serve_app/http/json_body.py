"""Request bodies: strict JSON, with errors that name what is wrong.

`json.loads` alone accepts NaN, keeps the last of two equal keys, accepts a lone surrogate and turns
1e999 into infinity. Client and server could read each of these differently.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.http.errors import InvalidHeader, UnsupportedEncoding, UnsupportedMediaType
from workflows.errors import InvalidParameters, Problem

MAX_KEY_LENGTH = 255
MAX_DIGITS = 1000
MAX_DEPTH = 100
_SURROGATE = re.compile("[\ud800-\udfff]")


class _DuplicateKey(Exception):
    pass


@dataclass(frozen=True)
class RequestBody:
    """Decoded body of a submit."""

    parameters: dict[str, Any]
    digest: str
    """SHA-256 of its canonical JSON, equal for equivalent bodies."""


def parse_submit(
    raw: bytes, content_type: str | None, content_encoding: str | None = None
) -> RequestBody:
    """Decode the body of a submit, ``{"parameters": {…}}``; without a declared type it is JSON.

    Raises
    ------
    UnsupportedMediaType
        If it is declared to be something other than JSON.
    UnsupportedEncoding
        If it is declared to be compressed.
    InvalidParameters
        If it is not strict JSON or has another structure.
    """
    if content_type is not None and not _is_json(content_type):
        raise UnsupportedMediaType("the body must be JSON, with Content-Type: application/json")
    if content_encoding is not None and content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedEncoding(
            f"Content-Encoding {content_encoding[:50]!r} is not supported; send plain JSON"
        )
    body, canonical = _decode(raw)
    if not isinstance(body, dict):
        raise _refusal("", 'must be a JSON object, as in {"parameters": {}}', "dict_type")
    advice = "unknown key; only parameters is allowed"
    unknown = [Problem(key, advice, "extra_forbidden") for key in body if key != "parameters"]
    if unknown:
        raise InvalidParameters(unknown)
    parameters = body.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _refusal("parameters", "must be a JSON object", "dict_type")
    return RequestBody(parameters, hashlib.sha256(canonical).hexdigest())


def parse_idempotency_key(values: list[str]) -> str | None:
    """Return the value of the Idempotency-Key header; None if it is absent.

    Raises
    ------
    InvalidHeader
        If there are several values, or the value is not 1 to 255 printable ASCII characters.
    """
    if not values:
        return None
    key = values[0]
    is_valid = 1 <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()
    if len(values) > 1 or not is_valid:
        limit = f"must be 1 to {MAX_KEY_LENGTH} printable ASCII characters"
        raise InvalidHeader("Idempotency-Key", limit)
    return key


def _decode(raw: bytes) -> tuple[Any, bytes]:
    """Return the value of a strict JSON text, and its canonical form."""
    # UTF-8, -16 or -32, with or without a byte order mark: Windows PowerShell writes UTF-16.
    encoding = json.detect_encoding(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise _refusal("", f"invalid {name} at byte {error.start}", "json_invalid") from None
    if not text.strip():
        raise _refusal("", 'a JSON body is required, as in {"parameters": {}}', "missing")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
        canonical = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        encoded = canonical.encode("utf-8")
    except json.JSONDecodeError as error:
        raise _refusal("", f"invalid JSON: {error}", "json_invalid") from None
    except RecursionError:
        raise _refusal("", "nested too deeply", "json_invalid") from None
    except _DuplicateKey as error:
        raise _refusal("", f"duplicate key {str(error)[:100]!r}", "json_invalid") from None
    except ValueError:  # from `dumps` or `encode`
        raise InvalidParameters(list(_unencodable(value, []))) from None
    if _too_deep(value):
        raise _refusal("", "nested too deeply", "json_invalid")
    return value, encoded


def _too_deep(value: Any) -> bool:
    """Return whether nesting exceeds what validation can handle, which recurses."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
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
                raise _DuplicateKey(name)
            seen.add(name)
    return value


def _integer(text: str) -> float:
    # Python refuses to parse integers of more than 4300 digits.
    return int(text) if len(text) <= MAX_DIGITS else math.inf


def _unencodable(value: Any, path: list[str]) -> Iterator[Problem]:
    """Yield the numbers that JSON cannot express and the strings that UTF-8 cannot encode."""
    match value:
        case dict() | list() if len(path) > MAX_DEPTH:
            yield Problem("", "nested too deeply", "json_invalid")
        case dict():
            for name, entry in value.items():
                yield from _unencodable(name, path)
                yield from _unencodable(entry, [*path, name])
        case list():
            for index, entry in enumerate(value):
                yield from _unencodable(entry, [*path, str(index)])
        case float() if not math.isfinite(value):
            yield Problem(".".join(path), "must be a finite number", "finite_number")
        case str() if _SURROGATE.search(value):
            yield Problem(".".join(path), "contains a lone surrogate", "string_unicode")


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def _refusal(field: str, message: str, kind: str) -> InvalidParameters:
    return InvalidParameters([Problem(field, message, kind)])
