"""The dashboard and the alert rules, and the queries in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"
DASHBOARD = CONFIG / "grafana" / "earth2serve.json"
RULES = CONFIG / "prometheus" / "alerts.yml"
BUILT_IN = {"__rate_interval"}
"""Variables that Grafana defines."""


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    """Return the panels that have queries."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries(application: str, window: str) -> list[tuple[str, str]]:
    """Return title and query of each target of each panel, with Grafana's variables replaced."""
    return [
        (
            panel["title"],
            target["expr"].replace("$__rate_interval", window).replace("$application", application),
        )
        for panel in panels()
        for target in panel["targets"]
    ]


def alerts() -> list[dict[str, Any]]:
    loaded: dict[str, Any] = yaml.safe_load(RULES.read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]
