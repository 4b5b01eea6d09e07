"""Settings: what is refused and with which words, and what follows from what was set."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from serve_app.settings import Settings, SettingsError, parse_settings
from workflows import WORKFLOWS

FCN3 = "foundry_fcn3_workflow"


def parse(args: dict[str, Any], **environ: str) -> Settings:
    return parse_settings(args, environ, Path("/srv"))


def refused(args: dict[str, Any], **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        parse(args, **environ)
    return str(error.value).splitlines()


def test_every_default_is_usable() -> None:
    settings = parse({})
    assert settings.data_dir == Path("/srv/var")
    assert settings.resolved_store_url == "sqlite:////srv/var/executions.sqlite"
    assert settings.results_dir == Path("/srv/var/results")
    assert settings.work_dir == Path("/srv/var/work")
    assert settings.callable_workflows == tuple(WORKFLOWS)
    assert settings.models.fcn3.resolved_num_gpus == 0
    assert (settings.models.fcn3.grid.n_lat, settings.models.fcn3.grid.n_lon) == (721, 1440)
    assert settings.max_running == {FCN3: 2}
    settings.check_nodes(1)


def test_relative_paths_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse_settings({"data_dir": "./here/../there"}, {})
    monkeypatch.chdir("/")
    assert settings.results_dir == tmp_path / "there" / "results"


def test_named_places_are_taken() -> None:
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
def test_a_real_model_gets_a_gpu(model: dict[str, Any], num_gpus: float) -> None:
    assert parse({"models": {"fcn3": model}}).models.fcn3.resolved_num_gpus == num_gpus


def test_one_execution_more_than_replicas_runs_unless_said_otherwise() -> None:
    assert parse({"models": {"fcn3": {"replicas": 3}}}).max_running == {FCN3: 4}
    assert parse({"queue": {"max_running": 7}}).max_running == {FCN3: 7}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"queue": {"max_size": 0}},
            "args.queue.max_size: Input should be greater than or equal to 1",
        ),
        ({"queue": {"max_size": True}}, "args.queue.max_size: Input should be a valid integer"),
        (
            {"models": {"fcn3": {"grid": {"n_lat": 5, "n_lon": 7}}}},
            "args.models.fcn3.grid.n_lon: Input should be a multiple of 2",
        ),
        ({"queue": {"max_sise": 3}}, "args.queue.max_sise: unknown key; did you mean max_size?"),
        ({"max_size": 3}, "args.max_size: unknown key; it belongs in applications[].args.queue"),
        (
            {"queue": {"num_replicas": 3}},
            "args.queue.num_replicas: unknown key; it belongs in applications[].deployments[]",
        ),
        ({"queue": None}, "args.queue: Input should be a valid dictionary or instance of "),
        ({"models": {"fnc3": {}}}, "args.models.fnc3: unknown key; did you mean fcn3?"),
        ({"models": {"fcn3": {"loader": "no colon"}}}, 'args.models.fcn3.loader: give "synthetic"'),
        ({"models": {"fcn3": {"grid": {"n_lat": 1}}}}, "args.models.fcn3.grid.n_lat: "),
        ({"limits": {"max_output_gb": float("nan")}}, "args.limits.max_output_gb: "),
        (
            {"workflows": {"exposed": ["nope"]}},
            f"args.workflows.exposed[0]: unknown workflow 'nope'; known are {FCN3}",
        ),
        ({"workflows": {"warmup": [FCN3, "nope"]}}, "args.workflows.warmup[1]: unknown workflow"),
        ({"results_url": "az://account/c"}, "args.results_url: az:// is not available yet"),
        ({"results_url": "file://host/c"}, "args.results_url: file:///path is needed"),
        ({"store_url": "sqlite://"}, "args.store_url: it names no database"),
        ({"store_url": "mysql://h/d"}, "args.store_url: sqlite:///path or postgresql+psycopg"),
        (
            {"cors": {"allow_origins": ["example.org"]}},
            "args.cors.allow_origins[0]: give an origin",
        ),
        ({"shared_filesystem": "no"}, "args.shared_filesystem: Input should be a valid boolean"),
    ],
)
def test_what_is_wrong_is_named(args: dict[str, Any], message: str) -> None:
    (line,) = refused(args)
    assert line.startswith(message)


def test_everything_that_is_wrong_is_named_at_once() -> None:
    lines = refused({"queue": {"max_size": 0, "x": 1}}, EXPOSED_WORKFLOWS="nope")
    assert [line.split(":")[0] for line in lines] == [
        "args.queue.x",
        "args.queue.max_size",
        "EXPOSED_WORKFLOWS",
    ]


def test_the_environment_overrides_the_exposed_workflows() -> None:
    args = {"workflows": {"warmup": [FCN3]}}
    assert parse(args).listed_workflows == ()
    assert parse(args, EXPOSED_WORKFLOWS=f" {FCN3} ,").listed_workflows == (FCN3,)
    # Set but empty widens nothing.
    assert parse(args, EXPOSED_WORKFLOWS="").listed_workflows == ()


def test_an_unknown_name_in_the_environment_is_an_error() -> None:
    (line,) = refused({}, EXPOSED_WORKFLOWS=f"{FCN3},nope")
    assert line == f"EXPOSED_WORKFLOWS: unknown workflow 'nope'; known are {FCN3}"


def test_warmup_workflows_are_callable_but_not_listed() -> None:
    settings = parse({"workflows": {"warmup": [FCN3]}})
    assert FCN3 not in settings.listed_workflows
    assert FCN3 in settings.callable_workflows
    both = parse({"workflows": {"exposed": [FCN3], "warmup": [FCN3]}})
    assert both.listed_workflows == both.callable_workflows == (FCN3,)


def test_a_disk_of_one_machine_is_refused_on_several() -> None:
    with pytest.raises(SettingsError) as error:
        parse({}).check_nodes(3)
    first, second = str(error.value).splitlines()
    assert first.startswith("args.store_url: SQLite") and "3 nodes" in first
    assert second.startswith("args.results_url: ")
    parse({"shared_filesystem": True}).check_nodes(3)
    with pytest.raises(SettingsError, match=r"^args\.results_url: [^\n]*$"):
        parse({"store_url": "postgresql+psycopg://u@h/d"}).check_nodes(2)


PASSWORD = "hunter2"
SECRET_URL = f"postgresql+psycopg://user:{PASSWORD}@db.example/earth2"


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


@pytest.mark.parametrize("url", [SECRET_URL.replace("+psycopg", ""), f"{PASSWORD}", [SECRET_URL]])
def test_a_password_is_not_shown_in_errors(url: object) -> None:
    (line,) = refused({"store_url": url})
    assert line.startswith("args.store_url: ")
    assert PASSWORD not in line


def test_the_summary_shows_what_defaults_became() -> None:
    summary = parse({"models": {"fcn3": {"loader": "a:b", "replicas": 3}}}).summary()
    assert summary["queue"]["max_running"] == {FCN3: 4}
    assert summary["models"]["fcn3"]["num_gpus"] == 1
    assert summary["store_url"] == "sqlite:////srv/var/executions.sqlite"
    assert summary["results_url"] == "file:///srv/var/results"


def test_settings_reach_other_processes_unchanged() -> None:
    settings = parse({"store_url": SECRET_URL, "queue": {"max_size": 3}})
    assert pickle.loads(pickle.dumps(settings)) == settings
    # A resolved SQLite URL is one that SQLAlchemy opens.
    assert sa.make_url(parse({}).resolved_store_url).database == "/srv/var/executions.sqlite"


def test_every_setting_is_described() -> None:
    def undescribed(model: type[BaseModel], path: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            section = field.annotation
            if isinstance(section, type) and issubclass(section, BaseModel):
                if section.__module__.startswith("serve_app"):
                    assert section.__doc__
                    found += undescribed(section, f"{path}.{name}")
            elif not field.description:
                found.append(f"{path}.{name}")
        return found

    assert undescribed(Settings, "args") == []
