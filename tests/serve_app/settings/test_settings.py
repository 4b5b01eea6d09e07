"""Settings: defaults, and the values that follow from others."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from serve_app.settings.preflight import check_nodes
from serve_app.settings.settings import Settings
from tests.serve_app.settings.helpers import FCN3, IN_BLOB, PASSWORD, SECRET_URL, STORMSCOPE, parse
from workflows import WORKFLOWS

EMULATOR = "https://127.0.0.1:10000/devstoreaccount1"


def test_defaults() -> None:
    settings = parse({})
    assert settings.data_dir == Path("/srv/var")
    assert settings.resolved_store_url == "sqlite:////srv/var/executions.sqlite"
    assert settings.results_dir == Path("/srv/var/results")
    assert settings.work_dir == Path("/srv/var/work")
    assert settings.callable_workflows == tuple(WORKFLOWS)
    assert settings.models.fcn3.resolved_num_gpus == 0
    assert (settings.models.fcn3.grid.n_lat, settings.models.fcn3.grid.n_lon) == (721, 1440)
    assert settings.models.stormscope.resolved_num_gpus == 0
    assert settings.models.stormscope.grid.shape == (512, 896)
    assert not settings.models.in_turn
    assert settings.max_running == {FCN3: 4, STORMSCOPE: 4}
    check_nodes(settings, 1)


def test_configured_paths_are_used() -> None:
    settings = parse(
        {
            "store_url": "sqlite:///db/e.sqlite",
            "results_url": "file:///data/my%20results",
            "auth": {"tokens_file": "tokens"},
        }
    )
    assert settings.resolved_store_url == "sqlite:////srv/db/e.sqlite"
    assert settings.results_dir == Path("/data/my results")
    assert settings.auth.tokens_file == Path("/srv/tokens")


@pytest.mark.parametrize(
    ("model", "num_gpus"),
    [
        ({"loader": "synthetic"}, 0),
        ({"loader": "my_models.fcn3:load"}, 1),
        ({"loader": "my_models.fcn3:load", "num_gpus": 0}, 0),
        ({"loader": "synthetic", "num_gpus": 0.5}, 0.5),
    ],
)
@pytest.mark.parametrize("name", ["fcn3", "stormscope"])
def test_num_gpus_defaults_to_one_for_real_models(
    name: str, model: dict[str, Any], num_gpus: float
) -> None:
    models = parse({"models": {name: model}}).models
    assert getattr(models, name).resolved_num_gpus == num_gpus


def test_max_running_defaults_to_three_more_than_replicas() -> None:
    assert parse({"models": {"fcn3": {"replicas": 3}}}).max_running == {FCN3: 6, STORMSCOPE: 6}
    assert parse({"queue": {"max_running": 7}}).max_running == {FCN3: 7, STORMSCOPE: 7}


def test_results_are_kept_by_default() -> None:
    results = parse({}).results
    assert (results.retention.keep_s, results.quota_bytes) == (None, None)
    results = parse({"results": {"keep_days": 0.5, "quota_gb": 2, "min_free_gb": 0}}).results
    assert (results.retention.keep_s, results.retention.keep_record_s) == (43_200, 30 * 86_400)
    assert results.quota_bytes == 2 * 10**9
    assert parse({"results": {"keep_record_days": None}}).results.retention.keep_record_s is None


def test_warmup_workflows_are_callable_but_not_listed() -> None:
    settings = parse({"workflows": {"warmup": [FCN3]}})
    assert FCN3 not in settings.listed_workflows
    assert FCN3 in settings.callable_workflows
    both = parse({"workflows": {"exposed": [FCN3], "warmup": [FCN3]}})
    assert both.listed_workflows == both.callable_workflows == (FCN3,)


@pytest.mark.parametrize(
    ("url", "emulator", "place"),
    [
        (IN_BLOB, None, "https://contosoweather.blob.core.windows.net/forecasts/nightly"),
        (
            "az://contosoweather/forecasts/",
            None,
            "https://contosoweather.blob.core.windows.net/forecasts",
        ),
        (
            "https://contoso.blob.core.usgovcloudapi.net/data",
            None,
            "https://contoso.blob.core.usgovcloudapi.net/data",
        ),
        ("az://devstoreaccount1/data/a", EMULATOR, f"{EMULATOR}/data/a"),
        (IN_BLOB, EMULATOR, "https://contosoweather.blob.core.windows.net/forecasts/nightly"),
    ],
)
def test_results_in_a_container(url: str, emulator: str | None, place: str) -> None:
    settings = parse({"results_url": url, "azure": {"blob": {"emulator": emulator}}})
    container = settings.results_container
    assert container is not None and container.url == place
    assert settings.summary()["results_url"] == place
    assert settings.delivery_rules.results_in_blob
    assert not parse({}).delivery_rules.results_in_blob


def test_a_password_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    settings = parse(
        {
            "store_url": SECRET_URL,
            "data_sources": {"ifs": {"loader": "a.b:c", "options": {"key": PASSWORD}}},
        }
    )
    assert settings.resolved_store_url == SECRET_URL
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("%s", settings.summary())
    assert "user:***@db.example" in caplog.text
    assert PASSWORD not in caplog.text
    assert PASSWORD not in repr(settings.store_url)


def test_the_summary_shows_resolved_defaults() -> None:
    summary = parse({"models": {"fcn3": {"loader": "a:b", "replicas": 3}}}).summary()
    assert summary["queue"]["max_running"] == {FCN3: 6, STORMSCOPE: 6}
    assert summary["models"]["fcn3"]["num_gpus"] == 1
    assert summary["models"]["stormscope"]["num_gpus"] == 0
    assert summary["models"]["in_turn"] is False
    assert summary["store_url"] == "sqlite:////srv/var/executions.sqlite"
    assert summary["results_url"] == "file:///srv/var/results"


def test_settings_reach_other_processes_unchanged() -> None:
    settings = parse({"store_url": SECRET_URL, "queue": {"max_size": 3}})
    assert pickle.loads(pickle.dumps(settings)) == settings
    # A resolved SQLite URL is one that SQLAlchemy opens.
    assert sa.make_url(parse({}).resolved_store_url).database == "/srv/var/executions.sqlite"


def test_every_setting_is_described() -> None:
    def undescribed(model: type[BaseModel], path: str) -> list[str]:
        paths = []
        for name, field in model.model_fields.items():
            section = field.annotation
            if isinstance(section, type) and issubclass(section, BaseModel):
                if section.__module__.startswith(("serve_app", "deployments")):
                    assert section.__doc__
                    paths += undescribed(section, f"{path}.{name}")
            elif not field.description:
                paths.append(f"{path}.{name}")
        return paths

    assert undescribed(Settings, "args") == []
