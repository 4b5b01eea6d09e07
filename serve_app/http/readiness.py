"""Whether this server can do its work, as seen from one ingress replica."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from deployments.store.executions import ExecutionStore
from serve_app.http.context import Context
from workflows.execution import Status

HEARTBEAT_LIMIT = timedelta(seconds=15)
"""Age from which on a Conductor that says nothing counts as gone."""

Sample = tuple[dict[str, str], float]


def problem(store: ExecutionStore) -> str | None:
    """Say why no execution can advance at the moment; None if nothing is in the way."""
    try:
        beat = store.conductor_heartbeat()
    except sa.exc.SQLAlchemyError:
        return "the execution store does not answer"
    if beat is None:
        return "the Conductor has not started yet"
    silence = datetime.now(UTC) - beat
    if silence > HEARTBEAT_LIMIT:
        return f"the Conductor has been silent for {silence.total_seconds():.0f} s"
    return None


def of_workflows(context: Context) -> dict[str, dict[str, Any]]:
    """Say for each exposed workflow whether it can run, and if not why."""
    store, options = context.store, context.options
    general = problem(store)
    found = {} if general else store.readiness()
    report = {}
    for name in options.exposed:
        reasons = [general] if general else []
        for component in () if general else options.components.get(name, ()):
            state = found.get(component)
            if state is None:
                reasons.append(f"{component}: not looked at yet")
            elif not state.ready:
                reasons.append(f"{component}: {state.reason or 'not ready'}")
        report[name] = {"ready": not reasons, "reason": "; ".join(reasons) or None}
    return report


def metrics(context: Context) -> str:
    """Tell counts in Prometheus' text format."""
    counts = context.store.count_by_status()
    beat = context.store.conductor_heartbeat()
    # A gauge that is absent until its first execution breaks alerts, so every status is there.
    states: dict[tuple[str, str], float] = {
        (name, status): 0 for name in context.options.callable for status in Status
    }
    states.update(counts)
    queued = sum(n for (_, status), n in counts.items() if status == Status.QUEUED)
    families: list[tuple[str, str, Iterable[Sample]]] = [
        (
            "earth2serve_executions",
            "Executions on record, by workflow and status.",
            [({"workflow": w, "status": str(s)}, n) for (w, s), n in sorted(states.items())],
        ),
        ("earth2serve_queue_depth", "Executions that wait.", [({}, queued)]),
        (
            "earth2serve_queue_limit",
            "Executions that may wait before requests are refused.",
            [({}, context.options.max_queued)],
        ),
        (
            "earth2serve_component_ready",
            "Whether a model or data source can be used.",
            [
                ({"component": name}, float(state.ready))
                for name, state in sorted(context.store.readiness().items())
            ],
        ),
        (
            "earth2serve_conductor_heartbeat_age_seconds",
            "Time since the Conductor last said that it works.",
            [] if beat is None else [({}, (datetime.now(UTC) - beat).total_seconds())],
        ),
    ]
    return "".join(line + "\n" for line in _exposition(families))


def _exposition(families: Iterable[tuple[str, str, Iterable[Sample]]]) -> Iterator[str]:
    for name, text, samples in families:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} gauge"
        for labels, value in samples:
            inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
            yield f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
