"""Health, readiness, liveness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.http import schemas
from serve_app.http.context import context_of
from serve_app.http.errors import Unhealthy
from serve_app.http.metrics import exposition
from serve_app.http.readiness import unhealthy_reason, workflow_readiness
from serve_app.http.responses import json_response
from serve_app.http.routes import documented, get

router = APIRouter(tags=["health"])


@get(router, "/health", responses=documented(schemas.HealthBody, 503))
async def health(request: Request) -> Response:
    """Check that the execution store is available and the Conductor works."""
    context = context_of(request)
    reason = await context.read(unhealthy_reason, context.store)
    if reason:
        raise Unhealthy({"status": "unhealthy", "timestamp": schemas.now(), "reason": reason})
    return json_response({"status": "healthy", "timestamp": schemas.now()})


@get(router, "/readiness", responses=documented(schemas.ReadinessBody, 503))
async def readiness(request: Request) -> Response:
    """Check that every exposed workflow can run; the reasons say what prevents it."""
    context = context_of(request)
    report = await context.read(workflow_readiness, context)
    body = {
        "status": "healthy",
        "timestamp": schemas.now(),
        "workflows": {name: state.model_dump() for name, state in report.items()},
    }
    if not all(state.ready for state in report.values()):
        raise Unhealthy({**body, "status": "unhealthy"})
    return json_response(body)


@get(router, "/liveness", responses=documented(schemas.LivenessBody))
async def liveness(_request: Request) -> Response:
    """Check that this process is alive; needs no token."""
    return json_response({"status": "alive"})


@get(
    router,
    "/metrics",
    responses=documented(None, 503) | {200: {"content": {"text/plain": {}}, "description": "Text"}},
)
async def metrics(request: Request) -> Response:
    """Return metrics of executions, in Prometheus' text format."""
    context = context_of(request)
    text = await context.read(exposition, context)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
