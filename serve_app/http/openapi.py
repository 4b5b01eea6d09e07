"""The OpenAPI description, without what FastAPI assumes and this server does not do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi


def describe(app: FastAPI, *, with_tokens: bool) -> dict[str, Any]:
    """Return the OpenAPI description of an application, which may require bearer tokens."""
    description = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    components = description["components"]
    for path, operations in description["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            # FastAPI adds one to every operation with parameters, even if any text is valid.
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]
            if not with_tokens or path == "/liveness":
                del responses["401"]
            else:
                operation["security"] = [{"bearer": []}]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    if with_tokens:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return description
