"""docs/configuration.md and docs/custom-workflows.md name every setting with its default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from serve_app.haproxy.launch import MAX_CONNECTIONS, TIMEOUTS, timeout_variable
from serve_app.settings.models import OwnModelSettings
from serve_app.settings.settings import Settings
from serve_app.settings.workflows import CustomWorkflowSettings, ForecastSettings
from tests.docs.pages import DOCS


def settings(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_written(value: Any) -> str:
    """Return a default as the tables show it: JSON, text without quotes."""
    plain = json.loads(json.dumps(value, default=str))
    return plain if isinstance(plain, str) else json.dumps(plain)


def test_every_setting_is_listed_with_its_default() -> None:
    page = (DOCS / "configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z][\w.]*)` \| `([^`]*)` \|", page, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == {name: as_written(value) for name, value in settings(Settings())}


def test_the_limits_of_haproxy_are_those_of_the_code() -> None:
    page = (DOCS / "configuration.md").read_text()
    rows = re.findall(r"^\| .* \| (\d+) \| `(RAY_SERVE_HAPROXY_\w+)` \|$", page, re.MULTILINE)
    assert {variable: int(value) for value, variable in rows} == {
        **{timeout_variable(name): seconds for name, seconds in TIMEOUTS.items()},
        "RAY_SERVE_HAPROXY_MAXCONN": MAX_CONNECTIONS,
    }


@pytest.mark.parametrize(
    ("title", "model"), [("Models", OwnModelSettings), ("Forecasts", ForecastSettings)]
)
def test_every_setting_of_any_other_model_is_listed_with_its_default(
    title: str, model: type[BaseModel]
) -> None:
    page = (DOCS / "models.md").read_text().partition("\n## Any other model\n")[2]
    table = page.partition(f"\n{title}:\n\n")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?)\|", table, re.MULTILINE))
    assert {name: default.strip() for name, default in rows.items()} == {
        name: ""
        if field.is_required() or field.default == ""
        else f"`{as_written(field.get_default(call_default_factory=True))}`"
        for name, field in model.model_fields.items()
    }


def test_every_setting_of_a_custom_workflow_is_listed_with_its_default() -> None:
    page = (DOCS / "custom-workflows.md").read_text()
    section = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    fields = CustomWorkflowSettings.model_fields.items()
    assert set(rows) == {field.alias or name for name, field in fields}
    for name, field in fields:
        default = field.get_default(call_default_factory=True)
        if not field.is_required() and default is not None:
            assert rows[name] == f"`{as_written(default)}`"
