"""Every metric of ours: its name, labels and meaning. `docs/metrics.md` is the table of them.

Replicas record them through a `Recorder`; Ray gathers them from its processes and exports them on
each node, for Prometheus, as ``ray_earth2serve_…``. Labels have few values: never an id.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

from ray.serve import metrics as serve_metrics

PREFIX = "earth2serve_"
RAY_PREFIX = "ray_"
SERVE_LABELS = ("application", "deployment", "replica")
"""What Serve adds to each metric: who recorded it."""

_STEP_BUCKETS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_LIFE_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Parameters
    ----------
    name : str
        Without a prefix; ends in its unit if it has one.
    meaning : str
        One sentence; Prometheus shows it, too.
    labels : tuple of str
        Those that the recording code gives; Serve and Ray add theirs.
    """

    name: str
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Its name as Prometheus sees it; histograms' end in ``_bucket``, ``_count``, ``_sum``."""
        return f"{RAY_PREFIX}{PREFIX}{self.name}"

    @property
    def kind(self) -> str:
        """What Prometheus calls it: counter, gauge or histogram."""
        return type(self).__name__.lower()


class Counter(Metric):
    """What only grows, in each process from 0."""

    @property
    def exported(self) -> str:
        """Its name as Prometheus sees it: Ray appends the ending."""
        return f"{super().exported}_total"


class Gauge(Metric):
    """What goes up and down; gone soon after the process that set it."""


@dataclass(frozen=True)
class Histogram(Metric):
    """How often what took how long.

    Ray exports how many fell into each bucket, and makes the sum up from the buckets' middles:
    do not compute means from it.
    """

    buckets: tuple[float, ...] = _LIFE_BUCKETS


MODEL_SECONDS = Counter(
    "model_seconds",
    "Seconds of a model's thread by what it did; all states of a live replica add up to the time.",
    ("model", "device", "state"),
)
MODEL_STEP_SECONDS = Histogram(
    "model_step_seconds",
    "Busy seconds of a model for one time step that it handed over.",
    ("model", "device", "work"),
    buckets=_STEP_BUCKETS,
)
STEPS_WRITTEN = Counter(
    "time_steps_written", "Time steps of members that a Packager has written.", ("workflow",)
)
PACKAGER_BYTES = Counter(
    "packager_written_bytes",
    "Bytes that a Packager has written: steps, fields that condition, checkpoints, and files "
    "beside them.",
    ("kind",),
)
QUEUE_DEPTH = Gauge("queue_depth", "Executions that wait.", ("workflow",))
QUEUE_OLDEST = Gauge(
    "queue_oldest_wait_seconds",
    "How long the execution that waits longest has waited; 0 if none waits.",
    ("workflow",),
)
QUEUE_WAIT = Histogram(
    "queue_wait_seconds", "How long an execution had waited when it was begun.", ("workflow",)
)
RUNNING = Gauge(
    "executions_running", "Executions under way by their present stage.", ("workflow", "stage")
)
STAGE_SECONDS = Histogram(
    "stage_seconds", "Duration of a stage that ended well.", ("workflow", "stage")
)
EXECUTION_SECONDS = Histogram(
    "execution_seconds",
    "Time from the beginning of an execution to its end, for those that completed.",
    ("workflow",),
)
ENDED = Counter("executions_ended", "Executions by final status.", ("workflow", "status"))
FAILURES = Counter(
    "failures",
    "Executions that failed, by the stage that they had come to and the kind of error.",
    ("workflow", "stage", "reason"),
)
RETRIES = Counter(
    "stage_retries",
    "Steps of executions tried again after a process died or something was out of reach.",
    ("stage",),
)
BEATS = Counter(
    "conductor_beats",
    "Heartbeats of the Conductor: one a second while it holds the lease and reaches its store.",
)
REFUSALS = Counter(
    "refusals", "Requests for executions that were refused for want of room.", ("reason",)
)
UPLOADED_BYTES = Counter(
    "uploaded_bytes", "Bytes of results sent to Blob Storage, of finished blocks.", ("workflow",)
)
UPLOADED_OBJECTS = Counter("uploaded_objects", "Blobs of results written.", ("workflow",))
REGISTRATIONS = Counter(
    "registrations", "Items of a GeoCatalog created or replaced.", ("workflow",)
)
DOWNLOADED_BYTES = Counter(
    "downloaded_bytes", "Bytes of result files handed to HTTP clients.", ("workflow",)
)

METRICS: tuple[Metric, ...] = (
    MODEL_SECONDS,
    MODEL_STEP_SECONDS,
    STEPS_WRITTEN,
    PACKAGER_BYTES,
    QUEUE_DEPTH,
    QUEUE_OLDEST,
    QUEUE_WAIT,
    RUNNING,
    STAGE_SECONDS,
    EXECUTION_SECONDS,
    ENDED,
    FAILURES,
    RETRIES,
    BEATS,
    REFUSALS,
    UPLOADED_BYTES,
    UPLOADED_OBJECTS,
    REGISTRATIONS,
    DOWNLOADED_BYTES,
)


class Recorder(Protocol):
    """Takes what is measured; from any thread, in microseconds, and never raises for a value."""

    def add(self, metric: Counter, value: float = 1.0, /, **labels: str) -> None:
        """Count; nothing happens for 0."""

    def set(self, metric: Gauge, value: float, /, **labels: str) -> None:
        """Say how much it is now."""

    def observe(self, metric: Histogram, value: float, /, **labels: str) -> None:
        """Note one duration, in seconds."""


class RayRecorder:
    """Hands what is measured to Ray; where Ray does not run nobody ever reads it.

    Ray's own objects are made with the first value, in the replica: Serve labels them by it.
    """

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._making = threading.Lock()

    def add(self, metric: Counter, value: float = 1.0, /, **labels: str) -> None:
        """Count; nothing happens for 0."""
        if value > 0:
            (self._made.get(metric.name) or self._make(metric)).inc(value, labels)

    def set(self, metric: Gauge, value: float, /, **labels: str) -> None:
        """Say how much it is now."""
        (self._made.get(metric.name) or self._make(metric)).set(value, labels)

    def observe(self, metric: Histogram, value: float, /, **labels: str) -> None:
        """Note one duration, in seconds."""
        (self._made.get(metric.name) or self._make(metric)).observe(value, labels)

    def __reduce__(self) -> str:
        # Serve pickles deployments' classes by value, with the defaults of their arguments.
        return "RAY"

    def _make(self, metric: Metric) -> Any:
        given: dict[str, Any] = {
            "name": f"{PREFIX}{metric.name}",
            "description": metric.meaning,
            "tag_keys": metric.labels,
        }
        with self._making:
            if metric.name not in self._made:
                made: Any
                if isinstance(metric, Histogram):
                    made = serve_metrics.Histogram(boundaries=list(metric.buckets), **given)
                elif isinstance(metric, Gauge):
                    made = serve_metrics.Gauge(**given)
                else:
                    made = serve_metrics.Counter(**given)
                self._made[metric.name] = made
            return self._made[metric.name]


RAY = RayRecorder()
"""Of this process."""
