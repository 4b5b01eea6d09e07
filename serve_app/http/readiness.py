"""Health of the server and readiness of its workflows, as one ingress replica sees them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from deployments.store.executions import ExecutionStore
from serve_app.http.context import Context
from serve_app.http.schemas import WorkflowReadiness

HEARTBEAT_LIMIT = timedelta(seconds=15)
"""Age of the last heartbeat from which the Conductor counts as dead."""


def unhealthy_reason(store: ExecutionStore) -> str | None:
    """Return why no execution can make progress at the moment; None if the server is healthy."""
    try:
        heartbeat = store.conductor_heartbeat()
    except sa.exc.SQLAlchemyError:
        return "the execution store is not available"
    if heartbeat is None:
        return "the Conductor has not started yet"
    silence = datetime.now(UTC) - heartbeat
    if silence > HEARTBEAT_LIMIT:
        return f"the Conductor has been silent for {silence.total_seconds():.0f} s"
    return None


def workflow_readiness(context: Context) -> dict[str, WorkflowReadiness]:
    """Return the readiness of each exposed workflow, by name."""
    store, options = context.store, context.options
    if reason := unhealthy_reason(store):
        return {name: WorkflowReadiness(ready=False, reason=reason) for name in options.exposed}
    components = store.readiness()
    report = {}
    for name in options.exposed:
        reasons = []
        for component in options.components.get(name, ()):
            state = components.get(component)
            if state is None:
                reasons.append(f"{component}: not checked yet")
            elif not state.ready:
                reasons.append(f"{component}: {state.reason or 'not ready'}")
        report[name] = WorkflowReadiness(ready=not reasons, reason="; ".join(reasons) or None)
    return report
