"""The Grafana dashboard is up to date, fits Grafana's own types, and is laid out well."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.config.queries import BUILT_IN, DASHBOARD, dashboard, panels
from tests.measured import METRICS, exported_series

SCHEMA = json.loads(Path(__file__).with_name("grafana.schema.json").read_text())
"""Types of @grafana/schema; the file says how it was made."""
WORDS = {"s": "time", "percentunit": "share", "percent": "percent", "Bps": "bytes per second"}
WORDS |= {"bytes": "bytes", "ms": "milliseconds", "reqps": "per second"}


def fits(value: Any, kind: str) -> None:
    jsonschema.Draft7Validator(SCHEMA[kind]).validate(value)


def test_the_dashboard_is_up_to_date() -> None:
    generated = runpy.run_path(str(DASHBOARD.with_name("generate.py")))["dashboard"]()
    assert generated == dashboard()


def test_grafana_accepts_the_dashboard() -> None:
    fits(dashboard(), "dashboard")


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_grafana_accepts_the_options_of_each_panel(panel: dict[str, Any]) -> None:
    fits(panel["options"], f"{panel['type']}_options")
    if panel["type"] == "timeseries":
        fits(panel["fieldConfig"]["defaults"]["custom"], "timeseries_custom")


def test_the_schema_rejects_misspelt_keys_and_values() -> None:
    broken = dashboard()
    broken["panels"][1]["fieldConfg"] = {}
    with pytest.raises(jsonschema.ValidationError):
        fits(broken, "dashboard")
    options = {**panels()[-1]["options"], "legend": {"displayMode": "lst"}}
    with pytest.raises(jsonschema.ValidationError):
        fits(options, "timeseries_options")


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    found = dashboard()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    cells: set[tuple[int, int]] = set()
    for panel in found:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        taken = set(
            itertools.product(
                range(position["x"], position["x"] + position["w"]),
                range(position["y"], position["y"] + position["h"]),
            )
        )
        assert not taken & cells, panel["title"]
        cells |= taken
    assert len({panel["title"] for panel in found}) == len(found)


def test_variables_are_defined_and_every_datasource_is_a_variable() -> None:
    whole = dashboard()
    defined = {variable["name"] for variable in whole["templating"]["list"]}
    assert defined == {"datasource", "application"}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert used - {"__all"} == defined | BUILT_IN
    for item in (
        *whole["templating"]["list"],
        *panels(),
        *(t for p in panels() for t in p["targets"]),
    ):
        if item.get("type") != "datasource":
            assert item["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_titles_name_the_unit() -> None:
    for panel in panels():
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit == "short" or WORDS[unit] in panel["title"], panel["title"]


def test_queries_select_the_chosen_application() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for name, selector in re.findall(r"(ray_\w+)(\{[^}]*\})?", target["expr"]):
                if name.startswith(("ray_earth2serve_", "ray_serve_")):
                    assert 'application=~"$application"' in selector, target["expr"]


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    text = DASHBOARD.read_text()
    for metric in METRICS:
        assert any(f"{series}{{" in text for series in exported_series(metric)), metric.name
