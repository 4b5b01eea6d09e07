"""Metrics that the dashboard and the alerts use are documented in docs/metrics.md."""

from __future__ import annotations

import re

from tests.config.queries import CONFIG, DASHBOARD, alerts

DOCUMENTED = set(
    re.findall(
        r"^\| `(ray_\w+)` \|", (CONFIG.parent / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
)


def metrics(expression: str) -> set[str]:
    """Return the metrics in an expression, histograms without their suffix."""
    names = re.findall(r"\bray_\w+", expression)
    return {name if name in DOCUMENTED else re.sub("_(bucket|count)$", "", name) for name in names}


def test_every_metric_of_the_dashboard_is_documented() -> None:
    used = metrics(DASHBOARD.read_text())  # including those of its variables
    assert "ray_node_mem_used" in used
    assert used - DOCUMENTED == set()


def test_every_metric_of_an_alert_is_documented() -> None:
    used = {name for rule in alerts() for name in metrics(rule["expr"])}
    assert "ray_serve_deployment_replica_starts_total" in used
    assert used - DOCUMENTED == set()


def test_the_table_of_alerts_lists_every_alert_with_its_severity() -> None:
    page = (CONFIG.parent / "docs" / "observability.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (warning|critical) \|", page, re.MULTILINE)
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]
