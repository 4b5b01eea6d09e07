"""Metrics are declared once, documented as they are, and harmless where Ray does not run."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.runtime import metrics
from deployments.runtime.metrics import (
    METRICS,
    PREFIX,
    RAY,
    RAY_PREFIX,
    SERVE_LABELS,
    Histogram,
    Metric,
    RayRecorder,
)

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "metrics.md").read_text()
QUERIES = re.findall(r"```promql\n(.*?)\n```", DOCS, re.DOTALL)
OURS = f"{RAY_PREFIX}{PREFIX}"


def unit(metric: Metric) -> str:
    words = metric.name.split("_")
    return "s" if "seconds" in words else "bytes" if "bytes" in words else "1"


def test_every_metric_of_the_module_is_in_its_list() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert declared == list(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_the_table_lists_what_is_declared() -> None:
    rows = re.findall(rf"^\| `({OURS}\w+)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", DOCS, re.MULTILINE)
    assert rows == [
        (
            metric.exported,
            metric.kind,
            unit(metric),
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.meaning,
        )
        for metric in METRICS
    ]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
    # Ray appends it to counters, also to one that has it.
    assert not metric.name.endswith("_total")
    assert metric.meaning.endswith(".")
    assert not set(metric.labels) & {*SERVE_LABELS, "execution_id", "le", "route"}
    if isinstance(metric, Histogram):
        assert metric.name.endswith("_seconds")
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize("query", QUERIES)
def test_queries_ask_for_what_there_is(query: str) -> None:
    exported = {}
    for metric in METRICS:
        endings = ("_bucket", "_count") if isinstance(metric, Histogram) else ("",)
        exported |= {f"{metric.exported}{ending}": metric for ending in endings}
    names = re.findall(r"\bray_\w+", query)
    assert names
    for name in names:
        if name.startswith(OURS):
            known = {*exported[name].labels, *SERVE_LABELS, "le"}
            asked = re.findall(r"by \(([^)]*)\)", query)
            assert {label.strip() for by in asked for label in by.split(",")} <= known
            filters = re.findall(rf"{name}{{(\w+)", query)
            assert set(filters) <= known
        else:
            assert f"`{re.sub('_(bucket|count)$', '', name)}" in DOCS


def test_the_docs_have_queries() -> None:
    assert len(QUERIES) > 10


def test_nothing_happens_where_ray_does_not_run() -> None:
    program = (
        "import ray, resource\n"
        "from deployments.runtime.metrics import *\n"
        "from deployments.runtime.metrics import METRICS, RAY, Counter, Gauge\n"
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


def test_counting_nothing_is_allowed() -> None:
    # Ray's counters raise for it.
    RayRecorder().add(metrics.RETRIES, 0, stage="package")


def test_the_recorder_of_a_process_is_not_copied() -> None:
    assert pickle.loads(pickle.dumps(RAY)) is RAY
