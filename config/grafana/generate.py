"""The Grafana dashboard: what its panels ask and how they show it.

`earth2serve.json` beside this file is what it gives; after an edit here run
`python config/grafana/generate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("earth2serve.json")

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
OURS = 'application=~"$application"'
"""On every metric of ours and of Serve; those of nodes know no application."""
RATE = "$__rate_interval"
WIDTH = 24
"""Columns of Grafana's grid."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Parameters
    ----------
    title : str
        In plain words, with the unit.
    meaning : str
        What to read from it; shown at the panel's corner.
    unit : str
        Grafana's name of the unit.
    queries : sequence of tuple
        PromQL and legend of each.
    kind : str
        ``timeseries`` or ``stat``.
    stacked : bool
        Whether values add up to something.
    """

    title: str
    meaning: str
    unit: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    maximum: float | None = None
    decimals: int | None = None


def _quantile(share: float, metric: str, by: str, window: str = RATE) -> str:
    return (
        f"histogram_quantile({share}, sum by ({by}, le) "
        f"(rate({metric}_bucket{{{OURS}}}[{window}])))"
    )


def _increase(metric: str, by: str, window: str = "1h") -> str:
    """Give what was counted in a while, the first value of what began to count within it, too."""
    selected = f"{metric}{{{OURS}}}"
    grown = f"sum by ({by}) (increase({selected}[{window}]))"
    began = f"min_over_time({selected}[{window}]) unless {selected} offset {window}"
    return f"{grown} + (sum by ({by}) ({began}) or 0 * {grown})"


def _model_seconds(by: str, state: str = "") -> str:
    chosen = f"{OURS}, {state}" if state else OURS
    return f"sum by ({by}) (rate(ray_earth2serve_model_seconds_total{{{chosen}}}[{RATE}]))"


OVERVIEW = [
    Panel(
        "Executions that wait",
        "Accepted, not begun yet. The server refuses more than queue.max_size.",
        "short",
        [(f"sum(ray_earth2serve_queue_depth{{{OURS}}})", "waiting")],
        kind="stat",
        width=4,
    ),
    Panel(
        "Longest wait (time)",
        "How long the execution that has waited longest has waited.",
        "s",
        [(f"max(ray_earth2serve_queue_oldest_wait_seconds{{{OURS}}})", "longest wait")],
        kind="stat",
        width=4,
        decimals=0,
    ),
    Panel(
        "Executions under way",
        "Begun and not ended, whatever their stage.",
        "short",
        [(f"sum(ray_earth2serve_executions_running{{{OURS}}})", "under way")],
        kind="stat",
        width=4,
    ),
    Panel(
        "Models that compute (share of time)",
        "Busy seconds of all models' replicas, of all their seconds.",
        "percentunit",
        [
            (
                f"sum(rate(ray_earth2serve_model_seconds_total{{{OURS}, "
                f'state="busy"}}[{RATE}])) / '
                f"sum(rate(ray_earth2serve_model_seconds_total{{{OURS}}}[{RATE}]))",
                "busy",
            )
        ],
        kind="stat",
        width=4,
        maximum=1,
        decimals=0,
    ),
    Panel(
        "Conductor's heartbeats (per second)",
        "1 is right. Without beats nothing begins and nothing ends.",
        "short",
        [(f"sum(rate(ray_earth2serve_conductor_beats_total{{{OURS}}}[{RATE}]))", "beats")],
        kind="stat",
        width=4,
        decimals=1,
    ),
    Panel(
        "Requests that the server failed (share)",
        "Statuses 500 to 599 of all; 503 also says that something is full or not ready.",
        "percentunit",
        [
            (
                f"(sum(rate(ray_serve_num_http_requests_total{{{OURS}, "
                f'status_code=~"5.."}}[{RATE}])) or vector(0)) / '
                f"sum(rate(ray_serve_num_http_requests_total{{{OURS}}}[{RATE}]))",
                "5xx",
            )
        ],
        kind="stat",
        width=4,
        decimals=1,
    ),
]

EXECUTIONS = [
    Panel(
        "Executions under way, by stage",
        "By their present stage; none is the moment before the first.",
        "short",
        [
            (
                f"sum by (workflow, stage) (ray_earth2serve_executions_running{{{OURS}}})",
                "{{workflow}}: {{stage}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Executions that wait, by workflow",
        "",
        "short",
        [(f"sum by (workflow) (ray_earth2serve_queue_depth{{{OURS}}})", "{{workflow}}")],
        stacked=True,
    ),
    Panel(
        "Executions that ended in the last hour, by state",
        "completed, failed or cancelled.",
        "short",
        [
            (
                _increase("ray_earth2serve_executions_ended_total", "workflow, status"),
                "{{workflow}}: {{status}}",
            )
        ],
    ),
    Panel(
        "Wait before the beginning (time)",
        "What half and nine of ten executions that began in the last hour had waited at most; "
        "and how long the oldest of those that still wait has waited.",
        "s",
        [
            (_quantile(0.5, "ray_earth2serve_queue_wait_seconds", "workflow", "1h"), "half"),
            (_quantile(0.9, "ray_earth2serve_queue_wait_seconds", "workflow", "1h"), "9 of 10"),
            (
                f"max by (workflow) (ray_earth2serve_queue_oldest_wait_seconds{{{OURS}}})",
                "{{workflow}}: still waiting",
            ),
        ],
    ),
    Panel(
        "Length of executions, 9 of 10 within (time)",
        "From the beginning to the end, of those that completed in the last hour.",
        "s",
        [
            (
                _quantile(0.9, "ray_earth2serve_execution_seconds", "workflow", "1h"),
                "{{workflow}}",
            )
        ],
    ),
    Panel(
        "Length of stages, 9 of 10 within (time)",
        "Of stages that ended well in the last hour.",
        "s",
        [
            (
                _quantile(0.9, "ray_earth2serve_stage_seconds", "workflow, stage", "1h"),
                "{{workflow}}: {{stage}}",
            )
        ],
    ),
]

FAILURES = [
    Panel(
        "Failures in the last hour, by stage and reason",
        "The reason is the kind of error; `python -m serve_app.logs ID` has the words.",
        "short",
        [
            (
                _increase("ray_earth2serve_failures_total", "workflow, stage, reason"),
                "{{workflow}}: {{reason}} at {{stage}}",
            )
        ],
    ),
    Panel(
        "Steps tried again in the last hour, by stage",
        "After a process died or something was out of reach. Each step has a few tries.",
        "short",
        [(_increase("ray_earth2serve_stage_retries_total", "stage"), "{{stage}}")],
    ),
    Panel(
        "Requests refused for want of room in the last hour",
        "queue_full is 429, disk_full 503; disk_too_small asked for more than there is at all.",
        "short",
        [(_increase("ray_earth2serve_refusals_total", "reason"), "{{reason}}")],
    ),
]

MODELS = [
    Panel(
        "Where each model's time goes (share)",
        "busy computes; writing waits for steps to be written; conditioning for another model's "
        "fields; turn for a shared GPU; idle has nothing to do. Together they are all of the time.",
        "percentunit",
        [
            (
                f"{_model_seconds('model, state')} / on (model) group_left () "
                f"{_model_seconds('model')}",
                "{{model}}: {{state}}",
            )
        ],
        stacked=True,
        width=12,
    ),
    Panel(
        "Model busy, by replica (share of time)",
        "Time in which the model's thread computes. A kernel that uses a tenth of the GPU counts "
        "as busy; what the GPU says is on the right of this.",
        "percentunit",
        [(_model_seconds("model, replica", 'state="busy"'), "{{model}} {{replica}}")],
        width=6,
        maximum=1,
    ),
    Panel(
        "GPU utilisation, as the driver tells (percent)",
        "Per GPU and node, whatever program uses it. Empty on nodes without a GPU.",
        "percent",
        [("avg by (instance, GpuIndex) (ray_node_gpus_utilization)", "{{instance}} {{GpuIndex}}")],
        width=6,
        maximum=100,
    ),
    Panel(
        "Mean step, busy (time)",
        "Busy seconds of a model for each time step that it handed over.",
        "s",
        [
            (
                _model_seconds("model", 'state="busy"')
                + f" / sum by (model) (rate(ray_earth2serve_model_step_seconds_count{{{OURS}}}"
                f"[{RATE}]))",
                "{{model}}",
            )
        ],
    ),
    Panel(
        "Step, 19 of 20 within, busy (time)",
        "conditioning is FCN3's hourly fields for StormScope.",
        "s",
        [
            (
                _quantile(0.95, "ray_earth2serve_model_step_seconds", "model, work"),
                "{{model}} {{work}}",
            )
        ],
    ),
    Panel(
        "Time steps written (per second)",
        "",
        "short",
        [
            (
                "sum by (workflow) (rate(ray_earth2serve_time_steps_written_total"
                f"{{{OURS}}}[{RATE}]))",
                "{{workflow}}",
            )
        ],
    ),
]

BYTES = [
    Panel(
        "Written by the Packager (bytes per second)",
        "step: fields, uncompressed; conditioning: for another model; file: what lies beside them.",
        "Bps",
        [
            (
                "sum by (kind) (rate(ray_earth2serve_packager_written_bytes_total"
                f"{{{OURS}}}[{RATE}]))",
                "{{kind}}",
            )
        ],
    ),
    Panel(
        "Uploaded to Blob Storage and downloaded by clients (bytes per second)",
        "Uploads: of blocks that are there. Downloads: what the ingress handed on.",
        "Bps",
        [
            (f"sum(rate(ray_earth2serve_uploaded_bytes_total{{{OURS}}}[{RATE}]))", "uploaded"),
            (f"sum(rate(ray_earth2serve_downloaded_bytes_total{{{OURS}}}[{RATE}]))", "downloaded"),
        ],
    ),
    Panel(
        "Delivered in the last hour: blobs and catalogue items",
        "Items created or replaced in a GeoCatalog.",
        "short",
        [
            (_increase("ray_earth2serve_uploaded_objects_total", "workflow"), "{{workflow}} blobs"),
            (_increase("ray_earth2serve_registrations_total", "workflow"), "{{workflow}} items"),
        ],
    ),
]

API = [
    Panel(
        "Requests, by status (per second)",
        "As Serve's proxy counts them.",
        "reqps",
        [
            (
                "sum by (method, status_code) (rate(ray_serve_num_http_requests_total"
                f"{{{OURS}}}[{RATE}]))",
                "{{method}} {{status_code}}",
            )
        ],
    ),
    Panel(
        "API latency, 19 of 20 within, by method (milliseconds)",
        "To the end of the answer, long polls and downloads included.",
        "ms",
        [(_quantile(0.95, "ray_serve_http_request_latency_ms", "method"), "{{method}}")],
    ),
    Panel(
        "API latency, 19 of 20 within, by route (milliseconds)",
        "As the replica of the Ingress sees it.",
        "ms",
        [
            (
                "histogram_quantile(0.95, sum by (route, le) "
                "(rate(ray_serve_deployment_processing_latency_ms_bucket"
                f'{{{OURS}, deployment="Ingress"}}[{RATE}])))',
                "{{route}}",
            )
        ],
    ),
    Panel(
        "Healthy replicas, by deployment",
        "",
        "short",
        [
            (
                f"sum by (deployment) (ray_serve_deployment_replica_healthy{{{OURS}}})",
                "{{deployment}}",
            )
        ],
    ),
    Panel(
        "Replicas started in the last hour, by deployment",
        "Also by a deployment, an upgrade or autoscaling; otherwise a process died.",
        "short",
        [
            (
                "count by (deployment) "
                f"(ray_serve_deployment_replica_starts_total{{{OURS}}} unless "
                f"ray_serve_deployment_replica_starts_total{{{OURS}}} offset 1h)",
                "{{deployment}}",
            )
        ],
    ),
    Panel(
        "Memory of the nodes in use (bytes)",
        "And what lies in Ray's object store.",
        "bytes",
        [
            ("sum by (instance) (ray_node_mem_used)", "{{instance}} memory"),
            ("sum by (instance) (ray_object_store_memory)", "{{instance}} objects"),
        ],
    ),
]

ROWS = {
    "At a glance": OVERVIEW,
    "Executions": EXECUTIONS,
    "Failures, retries, refusals": FAILURES,
    "Models and GPUs": MODELS,
    "Bytes": BYTES,
    "API and replicas": API,
}


def dashboard() -> dict[str, Any]:
    """Give the dashboard in Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y, x = y + 1, 0
        for panel in row:
            height = 4 if panel.kind == "stat" else 8
            if x + panel.width > WIDTH:
                y, x = y + height, 0
            position = {"x": x, "y": y, "w": panel.width, "h": height}
            panels.append(_panel(panel, len(panels) + 1, position))
            x += panel.width
        y += height
    return {
        "uid": "earth2serve",
        "title": "earth2serve",
        "description": "What the executions, the models, the deliveries and the API do.",
        "tags": ["earth2serve", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, position: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.kind == "stat":
        options: dict[str, Any] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
            "colorMode": "none",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "showPercentChange": False,
            "textMode": "value",
            "wideLayout": True,
        }
    else:
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
        options = {
            "legend": {
                "calcs": [],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "gridPos": position,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "range": True,
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


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
