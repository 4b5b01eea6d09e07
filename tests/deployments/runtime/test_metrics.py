"""Metrics: their declaration, their documentation, and recording without a Ray cluster."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.runtime import metrics
from deployments.runtime.metrics import RAY, Histogram, Metric, RayRecorder
from tests.measured import EXPORT_PREFIX, METRICS, exported_name, exported_series

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "metrics.md").read_text()
SERVE_LABELS = ("application", "deployment", "replica")
"""Labels that Serve adds to each metric."""
QUERIES = re.findall(r"```promql\n(.*?)\n```", DOCS, re.DOTALL)


def unit(metric: Metric) -> str:
    words = metric.name.split("_")
    return "s" if "seconds" in words else "bytes" if "bytes" in words else "1"


def test_names_are_unique() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS) > 10


def test_the_documentation_lists_every_metric() -> None:
    rows = re.findall(
        rf"^\| `({EXPORT_PREFIX}\w+)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", DOCS, re.MULTILINE
    )
    assert rows == [
        (
            exported_name(metric),
            type(metric).__name__.lower(),
            unit(metric),
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.description,
        )
        for metric in METRICS
    ]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
    # Ray appends it to every counter.
    assert not metric.name.endswith("_total")
    assert metric.description.endswith(".")
    assert not set(metric.labels) & {*SERVE_LABELS, "execution_id", "le", "route"}
    if isinstance(metric, Histogram):
        assert metric.name.endswith("_seconds")
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize("query", QUERIES)
def test_documented_queries_use_existing_metrics_and_labels(query: str) -> None:
    exported = {series: metric for metric in METRICS for series in exported_series(metric)}
    names = re.findall(r"\bray_\w+", query)
    assert names
    for name in names:
        if name.startswith(EXPORT_PREFIX):
            known = {*exported[name].labels, *SERVE_LABELS, "le"}
            asked = re.findall(r"by \(([^)]*)\)", query)
            assert {label.strip() for by in asked for label in by.split(",")} <= known
            filters = re.findall(rf"{name}{{(\w+)", query)
            assert set(filters) <= known
        else:
            assert f"`{re.sub('_(bucket|count)$', '', name)}" in DOCS


def test_the_documentation_has_queries() -> None:
    assert len(QUERIES) > 10


def test_recording_without_ray_has_no_effect() -> None:
    program = (
        "import ray, resource\n"
        "from deployments.runtime.metrics import RAY, Counter, Gauge\n"
        "from tests.measured import METRICS\n"
        "def record():\n"
        "    for metric in METRICS:\n"
        "        labels = dict.fromkeys(metric.labels, 'x')\n"
        "        if isinstance(metric, Counter): RAY.add(metric, 1.5, **labels)\n"
        "        elif isinstance(metric, Gauge): RAY.set(metric, 0.0, **labels)\n"
        "        else: RAY.observe(metric, 0.1, **labels)\n"
        "for _ in range(100): record()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for _ in range(5000): record()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, ray.is_initialized())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown_kb, initialized = done.stdout.split()
    assert initialized == "False"
    assert int(grown_kb) < 2000
    assert done.stderr == ""


def test_adding_zero_is_allowed() -> None:
    # Ray's own counters raise.
    RayRecorder().add(metrics.RETRIES, 0, stage="package")


def test_pickling_yields_the_recorder_of_the_process() -> None:
    assert pickle.loads(pickle.dumps(RAY)) is RAY
