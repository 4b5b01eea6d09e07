"""Parse the responses of a GeoCatalog, and quote them without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deployments.runtime.failures import redact
from workflows.errors import IngestionFailed
from workflows.execution import Stage

# Imported where it is used: without deliveries to a GeoCatalog it is not installed.
if TYPE_CHECKING:
    import httpx

MAX_QUOTE = 500  # characters


def read_json(response: httpx.Response, kind: type) -> Any:
    """Return the body of a response; IngestionFailed if it is not JSON of that kind."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, kind):
        raise IngestionFailed(
            Stage.REGISTER,
            f"{response.request.method} {response.request.url.path} was answered "
            f"{response.status_code} with a body that is no JSON {kind.__name__}",
        )
    return document


def quote_text(text: str) -> str:
    """Return text of the service in the form in which errors quote it."""
    return redact(text, MAX_QUOTE)


def describe_response(response: httpx.Response) -> str:
    """Return the status of a response that is an error, and the service's code and message."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    try:
        text = error_text(response.json())
    except ValueError:
        text = response.text
    code = response.headers.get("x-ms-error-code", "")
    if code and code not in text:
        text = f"{code}: {text}" if text else code
    return f"{status}: {quote_text(text)}" if text.strip() else status


def describe_operation(operation: Mapping[str, Any]) -> str:
    """Return why an operation failed: its error, or else the last entry of its history."""
    text = error_text(operation["error"]) if operation.get("error") else ""
    history = operation.get("statusHistory")
    if not text and isinstance(history, list) and history and isinstance(history[-1], dict):
        parts = (history[-1].get(name) for name in ("errorCode", "errorMessage"))
        text = ": ".join(str(part) for part in parts if part)
    details = operation.get("additionalInformation")
    if isinstance(details, dict) and details:
        listed = ", ".join(f"{key} {value}" for key, value in details.items())
        text = f"{text} ({listed})" if text else listed
    return quote_text(text) or "no reason was given"


def failed_items(operation: Mapping[str, Any]) -> int:
    """Return how many items a successful operation could not ingest."""
    details = operation.get("additionalInformation")
    for name, value in details.items() if isinstance(details, dict) else ():
        if name.casefold() == "totalfaileditems" and str(value).isdigit():
            return int(value)
    return 0


def error_text(document: Any) -> str:
    """Return code and message of an error document of the service."""
    while isinstance(document, dict) and isinstance(document.get("error"), dict):
        document = document["error"]
    if not isinstance(document, dict):
        return "" if document is None else str(document)
    message = next(
        (document[name] for name in ("message", "description", "detail") if document.get(name)),
        None,
    )
    text = ": ".join(str(part) for part in (document.get("code"), message) if part)
    return text or json.dumps(document)
