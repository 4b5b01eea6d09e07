"""Metrics of executions in Prometheus' text format, read from the execution store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from serve_app.http.context import Context
from workflows.execution import Status

Sample = tuple[dict[str, str], float]
"""Labels and value."""


def exposition(context: Context) -> str:
    """Return the current metrics in Prometheus' text format."""
    counts = context.store.count_by_status()
    heartbeat = context.store.conductor_heartbeat()
    # Every status from the start: a series that appears with its first execution breaks alerts.
    executions: dict[tuple[str, str], float] = {
        (name, status): 0 for name in context.options.callable for status in Status
    }
    executions.update(counts)
    queued = sum(n for (_, status), n in counts.items() if status == Status.QUEUED)
    families: list[tuple[str, str, Iterable[Sample]]] = [
        (
            "earth2serve_executions",
            "Executions on record, by workflow and status.",
            [({"workflow": w, "status": str(s)}, n) for (w, s), n in sorted(executions.items())],
        ),
        ("earth2serve_queue_depth", "Queued executions.", [({}, queued)]),
        (
            "earth2serve_queue_limit",
            "Queued executions above which requests are refused.",
            [({}, context.options.queue.max_size)],
        ),
        (
            "earth2serve_component_ready",
            "Whether a model or data source is ready.",
            [
                ({"component": name}, float(state.ready))
                for name, state in sorted(context.store.readiness().items())
            ],
        ),
        (
            "earth2serve_conductor_heartbeat_age_seconds",
            "Time since the last heartbeat of the Conductor.",
            [] if heartbeat is None else [({}, (datetime.now(UTC) - heartbeat).total_seconds())],
        ),
    ]
    return "".join(line + "\n" for line in _lines(families))


def _lines(families: Iterable[tuple[str, str, Iterable[Sample]]]) -> Iterator[str]:
    for name, description, samples in families:
        yield f"# HELP {name} {description}"
        yield f"# TYPE {name} gauge"
        for labels, value in samples:
            pairs = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
            yield f"{name}{{{pairs}}} {value:g}" if pairs else f"{name} {value:g}"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
