"""What the dashboard and the alerts ask for stands in the tables of docs/metrics.md."""

from __future__ import annotations

import re

from tests.config.queries import CONFIG, DASHBOARD, alerts

DOCUMENTED = set(
    re.findall(
        r"^\| `(ray_\w+)` \|", (CONFIG.parent / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
)


def metrics(expression: str) -> set[str]:
    """Give the metrics that an expression asks for, a histogram's by its own name."""
    names = re.findall(r"\bray_\w+", expression)
    return {name if name in DOCUMENTED else re.sub("_(bucket|count)$", "", name) for name in names}


def test_every_metric_that_the_dashboard_asks_for_is_documented() -> None:
    asked = metrics(DASHBOARD.read_text())  # by its variables, too
    assert "ray_node_mem_used" in asked
    assert asked - DOCUMENTED == set()


def test_every_metric_that_an_alert_asks_for_is_documented() -> None:
    asked = {name for rule in alerts() for name in metrics(rule["expr"])}
    assert "ray_serve_deployment_replica_starts_total" in asked
    assert asked - DOCUMENTED == set()
