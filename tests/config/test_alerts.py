"""Alert rules are valid, say what to do, and fire exactly when they should (by promtool)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.config.queries import RULES, alerts
from tests.measured import METRICS, exported_series

CASES = Path(__file__).with_name("alerts.test.yml")


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on the PATH; Debian's package prometheus contains it")
    return program


def test_the_rules_are_valid(promtool: str) -> None:
    checked = subprocess.run(
        [promtool, "check", "rules", "--lint-fatal", RULES], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout


def test_alerts_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    # Without annotations, which promtool would compare as well.
    bare = [{k: v for k, v in rule.items() if k != "annotations"} for rule in alerts()]
    (tmp_path / RULES.name).write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": bare}]}))
    (tmp_path / CASES.name).write_text(CASES.read_text())
    tested = subprocess.run(
        [promtool, "test", "rules", tmp_path / CASES.name], capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_has_cases_where_it_fires_and_where_it_does_not() -> None:
    cases = CASES.read_text()
    for rule in alerts():
        for expected in (r"exp_alerts: \[\]", r"exp_alerts:\n"):
            assert re.search(rf"alertname: {rule['alert']}\n +{expected}", cases), rule["alert"]


def test_each_alert_says_why_it_matters_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "reason", "action"}
        assert min(map(len, rule["annotations"].values())) > 20, rule["alert"]


def test_alerts_use_metrics_that_exist() -> None:
    exported = {series for metric in METRICS for series in exported_series(metric)}
    for rule in alerts():
        used = set(re.findall(r"\bray_earth2serve_\w+", rule["expr"]))
        assert used <= exported, used - exported
