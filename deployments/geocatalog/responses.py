"""What a GeoCatalog's answers say, in words that may be shown to whoever asked for the forecast."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from deployments.runtime.failures import sanitize
from workflows.errors import IngestionFailed
from workflows.execution import Stage

if TYPE_CHECKING:
    import httpx

LONGEST_PAUSE_S = 60.0
"""What a service that asks for more patience gets."""
QUOTED = 500
"""Characters of what the service says that a reason has."""

_SECRETS = re.compile(
    r"\bbearer\s+\S+|\beyJ[\w-]{8,}\.\S*|\bsig=[^&\s\"']+|\bclient_secret=[^&\s\"']+", re.IGNORECASE
)


def read_json(answer: httpx.Response, kind: type) -> Any:
    """Read an answer.

    Raises
    ------
    IngestionFailed
        If it is not JSON of that kind.
    """
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, kind):
        raise IngestionFailed(
            Stage.REGISTER,
            f"{answer.request.method} {answer.request.url.path} was answered "
            f"{answer.status_code} with what is no JSON {kind.__name__}",
        )
    return found


def retry_after_s(answer: httpx.Response) -> float | None:
    """Read how many seconds an answer asks to wait, within bounds; None if it does not say."""
    asked = answer.headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(min(int(asked[:9]), LONGEST_PAUSE_S))
    try:
        moment = parsedate_to_datetime(asked)
    except ValueError:
        return None
    # A date without a zone is UTC, says RFC 9110.
    left = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(left, 0.0), LONGEST_PAUSE_S)


def told(answer: httpx.Response) -> str:
    """Say what an answer without success tells: its status, the service's code and message."""
    status = f"{answer.status_code} {answer.reason_phrase}".strip()
    try:
        words = words_of_error(answer.json())
    except ValueError:
        words = answer.text
    code = answer.headers.get("x-ms-error-code", "")
    if code and code not in words:
        words = f"{code}: {words}" if words else code
    return f"{status}: {in_short(words)}" if words.strip() else status


def words_of_error(document: Any) -> str:
    """Find code and message in a service's account of an error."""
    found = document
    while isinstance(found, dict) and isinstance(found.get("error"), dict):
        found = found["error"]
    if not isinstance(found, dict):
        return "" if found is None else str(found)
    message = next(
        (found[name] for name in ("message", "description", "detail") if found.get(name)), None
    )
    words = ": ".join(str(part) for part in (found.get("code"), message) if part)
    return words or json.dumps(found)


def in_short(text: str) -> str:
    """Quote what a service says: one line, of bounded length, without what looks like a secret."""
    return sanitize(_SECRETS.sub("[removed]", " ".join(text.split()))[:QUOTED])
