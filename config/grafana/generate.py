"""Write the Grafana dashboard `earth2serve.json` from `panels.yaml`.

Run `python config/grafana/generate.py` after an edit of either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
PANELS = FOLDER / "panels.yaml"
TARGET = FOLDER / "earth2serve.json"

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
APPLICATION = 'application=~"$application"'
"""Label of every metric of ours and of Serve; metrics of nodes have no application."""
RATE = "$__rate_interval"
COLUMNS = 24
"""Of Grafana's grid."""
DEFAULT_WIDTH = 8
HEIGHTS = {"stat": 4, "timeseries": 8}


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    rows: dict[str, list[dict[str, Any]]] = yaml.safe_load(PANELS.read_text("utf-8"))
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in rows.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append(_row(title, len(panels) + 1, place))
        y, x, height = y + 1, 0, 0
        for panel in row:
            width, height = panel.get("width", DEFAULT_WIDTH), HEIGHTS[_kind(panel)]
            if x + width > COLUMNS:
                y, x = y + height, 0
            place = {"x": x, "y": y, "w": width, "h": height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x += width
        y += height
    return {
        "uid": "earth2serve",
        "title": "earth2serve",
        "description": "Executions, models, deliveries and the HTTP API of earth2serve.",
        "tags": ["earth2serve", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": panels,
    }


def _kind(panel: dict[str, Any]) -> str:
    return str(panel.get("kind", "timeseries"))


def _row(title: str, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": place,
        "panels": [],
    }


def _panel(panel: dict[str, Any], number: int, place: dict[str, int]) -> dict[str, Any]:
    kind = _kind(panel)
    defaults: dict[str, Any] = {"unit": panel["unit"], "min": 0}
    defaults |= {key: panel[key] for key in ("max", "decimals") if key in panel}
    if kind == "timeseries":
        stacked = panel.get("stacked", False)
        defaults["custom"] = {
            "fillOpacity": 30 if stacked else 0,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        }
    return {
        "id": number,
        "type": kind,
        "title": panel["title"],
        "description": panel.get("description", ""),
        "gridPos": place,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": _promql(query),
                "legendFormat": query["legend"],
                "range": True,
            }
            for index, query in enumerate(panel["queries"])
        ],
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
        "colorMode": "none",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "showPercentChange": False,
        "textMode": "value",
        "wideLayout": True,
    },
    "timeseries": {
        "legend": {
            "calcs": [],
            "displayMode": "list",
            "placement": "bottom",
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}


def _promql(query: dict[str, Any]) -> str:
    if "quantile" in query:
        series = f"{query['of']}_bucket{{{APPLICATION}}}[{query.get('window', RATE)}]"
        return (
            f"histogram_quantile({query['quantile']}, sum by ({query['by']}, le) (rate({series})))"
        )
    if "increase" in query:
        return _increase(query["increase"], query["by"])
    return str(query["expr"]).replace("$APP", APPLICATION).replace("$RATE", RATE)


def _increase(metric: str, by: str, window: str = "1h") -> str:
    """Return a query for the growth of a counter, including the first value of new series."""
    series = f"{metric}{{{APPLICATION}}}"
    grown = f"sum by ({by}) (increase({series}[{window}]))"
    new = f"min_over_time({series}[{window}]) unless {series} offset {window}"
    return f"{grown} + (sum by ({by}) ({new}) or 0 * {grown})"


def _variables() -> list[dict[str, Any]]:
    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
        },
        {
            "name": "application",
            "label": "Application",
            "type": "query",
            "datasource": DATASOURCE,
            "query": "label_values(ray_earth2serve_model_seconds_total, application)",
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": ["All"], "value": ["$__all"]},
        },
    ]


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
