"""Whether the server is alive, works and can be used, and how busy it is."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.http import readiness, schemas
from serve_app.http.context import context_of
from serve_app.http.errors import Unhealthy, json_response
from serve_app.http.routes import documented, get

router = APIRouter(tags=["health"])


@get(router, "/health", responses=documented(schemas.HealthBody, 503))
async def health(request: Request) -> Response:
    """Tell whether the execution store answers and the Conductor works."""
    context = context_of(request)
    reason = await context.read(readiness.problem, context.store)
    if reason:
        raise Unhealthy({"status": "unhealthy", "timestamp": schemas.now(), "reason": reason})
    return json_response({"status": "healthy", "timestamp": schemas.now()})


@get(router, "/readiness", responses=documented(schemas.ReadinessBody, 503))
async def ready(request: Request) -> Response:
    """Tell whether every exposed workflow can run, and if not why."""
    context = context_of(request)
    report = await context.read(readiness.of_workflows, context)
    if not all(entry["ready"] for entry in report.values()):
        raise Unhealthy({"status": "unhealthy", "timestamp": schemas.now(), "workflows": report})
    return json_response({"status": "healthy", "timestamp": schemas.now(), "workflows": report})


@get(router, "/liveness", responses=documented(schemas.LivenessBody))
async def liveness(_request: Request) -> Response:
    """Tell that this process answers; needs no token."""
    return json_response({"status": "alive"})


@get(
    router,
    "/metrics",
    responses=documented(None, 503) | {200: {"content": {"text/plain": {}}, "description": "Text"}},
)
async def metrics(request: Request) -> Response:
    """Tell counts of executions, in Prometheus' text format."""
    context = context_of(request)
    text = await context.read(readiness.metrics, context)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
