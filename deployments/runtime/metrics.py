"""The metrics of this project: name, labels and description. `docs/metrics.md` has their table.

Replicas record them through a `Recorder`. Ray collects them from its processes, and exports them
on each node for Prometheus as ``ray_earth2serve_…``. Labels have few values: never an id.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

from ray.serve import metrics as serve_metrics

PREFIX = "earth2serve_"

_STEP_BUCKETS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_EXECUTION_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Parameters
    ----------
    name : str
        Without prefix; ends in the unit, if there is one.
    description : str
        One sentence; Prometheus shows it.
    labels : tuple of str
        Labels that the recording code sets; Serve and Ray add theirs.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ()


class Counter(Metric):
    """A value that only grows, from 0 in each process; Ray appends ``_total`` to its name."""


class Gauge(Metric):
    """A value that goes up and down; it disappears soon after its process."""


@dataclass(frozen=True)
class Histogram(Metric):
    """A distribution of durations.

    Ray exports the count of each bucket, and estimates the sum from the centres of the buckets:
    do not compute means from it.
    """

    buckets: tuple[float, ...] = _EXECUTION_BUCKETS


MODEL_SECONDS = Counter(
    "model_seconds",
    "Seconds of a model's thread by activity; all states of a live replica add up to its uptime.",
    ("model", "device", "state"),
)
MODEL_STEP_SECONDS = Histogram(
    "model_step_seconds",
    "Busy seconds of a model per time step that it hands over.",
    ("model", "device", "work"),
    buckets=_STEP_BUCKETS,
)
STEPS_WRITTEN = Counter(
    "time_steps_written", "Time steps of members written by a Packager.", ("workflow",)
)
PACKAGER_BYTES = Counter(
    "packager_written_bytes",
    "Bytes written by a Packager: steps, conditioning fields, checkpoints and other files.",
    ("kind",),
)
QUEUE_DEPTH = Gauge("queue_depth", "Executions in the queue.", ("workflow",))
QUEUE_OLDEST = Gauge(
    "queue_oldest_wait_seconds",
    "Waiting time of the oldest execution in the queue; 0 if the queue is empty.",
    ("workflow",),
)
QUEUE_WAIT = Histogram(
    "queue_wait_seconds", "Time an execution spent in the queue before it started.", ("workflow",)
)
RUNNING = Gauge("executions_running", "Running executions by current stage.", ("workflow", "stage"))
STAGE_SECONDS = Histogram(
    "stage_seconds", "Duration of a stage that succeeded.", ("workflow", "stage")
)
EXECUTION_SECONDS = Histogram(
    "execution_seconds",
    "Time from the start of an execution to its end, for completed executions.",
    ("workflow",),
)
ENDED = Counter("executions_ended", "Executions by final status.", ("workflow", "status"))
FAILURES = Counter(
    "failures",
    "Failed executions by stage and kind of error.",
    ("workflow", "stage", "reason"),
)
RETRIES = Counter(
    "stage_retries",
    "Steps retried after a process died or could not be reached.",
    ("stage",),
)
BEATS = Counter(
    "conductor_beats",
    "Heartbeats of the Conductor: one per second while it holds the lease and reaches the store.",
)
REFUSALS = Counter(
    "refusals", "Requests refused because the queue or the storage was full.", ("reason",)
)
UPLOADED_BYTES = Counter(
    "uploaded_bytes",
    "Bytes of results uploaded to Blob Storage, counted by finished block.",
    ("workflow",),
)
UPLOADED_OBJECTS = Counter("uploaded_objects", "Blobs of results uploaded.", ("workflow",))
REGISTRATIONS = Counter("registrations", "GeoCatalog items created or replaced.", ("workflow",))
DOWNLOADED_BYTES = Counter(
    "downloaded_bytes", "Bytes of result files sent to HTTP clients.", ("workflow",)
)


class Recorder(Protocol):
    """Records values, from any thread, within microseconds; never raises for a value."""

    def add(self, metric: Counter, value: float = 1.0, /, **labels: str) -> None:
        """Add to a counter; adding 0 has no effect."""

    def set(self, metric: Gauge, value: float, /, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, metric: Histogram, value: float, /, **labels: str) -> None:
        """Record one duration, in seconds."""


class RayRecorder:
    """Passes values to Ray; without a Ray cluster they are never read.

    Ray's metric objects are created with the first value: in the replica, so that Serve labels
    them.
    """

    def __init__(self) -> None:
        self._created: dict[str, Any] = {}
        self._lock = threading.Lock()

    def add(self, metric: Counter, value: float = 1.0, /, **labels: str) -> None:
        """Add to a counter; adding 0 has no effect."""
        if value > 0:
            (self._created.get(metric.name) or self._create(metric)).inc(value, labels)

    def set(self, metric: Gauge, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        (self._created.get(metric.name) or self._create(metric)).set(value, labels)

    def observe(self, metric: Histogram, value: float, /, **labels: str) -> None:
        """Record one duration, in seconds."""
        (self._created.get(metric.name) or self._create(metric)).observe(value, labels)

    def __reduce__(self) -> str:
        # Serve pickles the classes of deployments by value, with their default arguments.
        return "RAY"

    def _create(self, metric: Metric) -> Any:
        options: dict[str, Any] = {
            "name": f"{PREFIX}{metric.name}",
            "description": metric.description,
            "tag_keys": metric.labels,
        }
        with self._lock:
            if metric.name not in self._created:
                created: Any
                if isinstance(metric, Histogram):
                    created = serve_metrics.Histogram(boundaries=list(metric.buckets), **options)
                elif isinstance(metric, Gauge):
                    created = serve_metrics.Gauge(**options)
                else:
                    created = serve_metrics.Counter(**options)
                self._created[metric.name] = created
            return self._created[metric.name]


RAY = RayRecorder()
