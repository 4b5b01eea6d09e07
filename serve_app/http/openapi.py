"""The OpenAPI description, freed of what FastAPI assumes and this server does not do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi


def describe(app: FastAPI, *, with_tokens: bool) -> dict[str, Any]:
    """Describe an application.

    Parameters
    ----------
    with_tokens : bool
        Whether bearer tokens are asked for.
    """
    description = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    components = description["components"]
    for path, operations in description["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            # FastAPI adds one wherever there are parameters, even if no text can be wrong.
            if "HTTPValidationError" in str(answers.get("422")):
                del answers["422"]
            if not with_tokens or path == "/liveness":
                del answers["401"]
            else:
                operation["security"] = [{"bearer": []}]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    if with_tokens:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return description
