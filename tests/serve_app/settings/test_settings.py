"""Settings: what is refused and with which words, and what follows from what was set."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from serve_app.settings.preflight import (
    check_certificates,
    check_installed,
    check_nodes,
    is_installed,
)
from serve_app.settings.settings import Settings, SettingsError, parse_settings
from workflows import WORKFLOWS

EMULATOR = "https://127.0.0.1:10000/devstoreaccount1"
FCN3 = "foundry_fcn3_workflow"
STORMSCOPE = "foundry_fcn3_stormscope_goes_workflow"


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
    assert settings.models.stormscope.resolved_num_gpus == 0
    assert settings.models.stormscope.grid.shape == (512, 896)
    assert not settings.models.in_turn
    assert settings.max_running == {FCN3: 4, STORMSCOPE: 4}
    check_nodes(settings, 1)


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
@pytest.mark.parametrize("name", ["fcn3", "stormscope"])
def test_a_real_model_gets_a_gpu(name: str, model: dict[str, Any], num_gpus: float) -> None:
    models = parse({"models": {name: model}}).models
    assert getattr(models, name).resolved_num_gpus == num_gpus


def test_three_executions_more_than_replicas_run_unless_said_otherwise() -> None:
    assert parse({"models": {"fcn3": {"replicas": 3}}}).max_running == {FCN3: 6, STORMSCOPE: 6}
    assert parse({"queue": {"max_running": 7}}).max_running == {FCN3: 7, STORMSCOPE: 7}


def test_results_are_kept_for_ever_unless_said_otherwise() -> None:
    results = parse({}).results
    assert (results.keep_s, results.quota_bytes) == (None, None)
    results = parse({"results": {"keep_days": 0.5, "quota_gb": 2, "min_free_gb": 0}}).results
    assert (results.keep_s, results.keep_record_s) == (43_200, 30 * 86_400)
    assert results.quota_bytes == 2 * 10**9
    assert parse({"results": {"keep_record_days": None}}).results.keep_record_s is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"queue": {"max_size": 0}},
            "args.queue.max_size: Input should be greater than or equal to 1",
        ),
        ({"queue": {"max_size": True}}, "args.queue.max_size: Input should be a valid integer"),
        (
            {"results": {"keep_days": 0}},
            "args.results.keep_days: Input should be greater than 0",
        ),
        (
            {"results": {"keep_record_days": -1.0}},
            "args.results.keep_record_days: Input should be greater than 0",
        ),
        (
            {"results": {"quota_gb": "1 TB"}},
            "args.results.quota_gb: Input should be a valid number",
        ),
        (
            {"results": {"min_free_gb": -0.5}},
            "args.results.min_free_gb: Input should be greater than or equal to 0",
        ),
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
        (
            {"models": {"interpolation": {"loader": "a.b"}}},
            'args.models.interpolation.loader: give "synthetic"',
        ),
        (
            {"models": {"interpolation": {"replicas": 2}}},
            "args.models.interpolation.replicas: unknown key; it belongs in ",
        ),
        (
            {"models": {"stormscope": {"grid": {"n_lat": 5}}}},
            "args.models.stormscope.grid.n_lat: unknown key; it belongs in "
            "applications[].args.models.fcn3.grid",
        ),
        (
            {"models": {"stormscope": {"grid": {"spacing_m": 0}}}},
            "args.models.stormscope.grid.spacing_m: Input should be greater than 0",
        ),
        ({"models": {"in_turn": 1}}, "args.models.in_turn: Input should be a valid boolean"),
        (
            {
                "models": {
                    "in_turn": True,
                    "fcn3": {"loader": "a:b"},
                    "stormscope": {"num_gpus": 0.5},
                }
            },
            "args.models: with in_turn fcn3 and stormscope share one GPU, but their num_gpus are "
            "1.5 together; set num_gpus: 0.5 for each",
        ),
        ({"in_turn": True}, "args.in_turn: unknown key; it belongs in applications[].args.models"),
        (
            {"data_sources": {"goes16": {}}},
            "args.data_sources.goes16: unknown key; did you mean goes?",
        ),
        ({"limits": {"max_output_gb": float("nan")}}, "args.limits.max_output_gb: "),
        (
            {"workflows": {"exposed": ["nope"]}},
            f"args.workflows.exposed[0]: unknown workflow 'nope'; known are {FCN3}, {STORMSCOPE}",
        ),
        ({"workflows": {"warmup": [FCN3, "nope"]}}, "args.workflows.warmup[1]: unknown workflow"),
        ({"results_url": "az://account/c"}, "args.results_url: must be az://ACCOUNT/CONTAINER"),
        ({"results_url": "file://host/c"}, "args.results_url: file:///path or az://"),
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
    assert parse(args).listed_workflows == (STORMSCOPE,)
    assert parse(args, EXPOSED_WORKFLOWS=f" {FCN3} ,").listed_workflows == (FCN3,)
    # Set but empty widens nothing.
    assert parse(args, EXPOSED_WORKFLOWS="").listed_workflows == (STORMSCOPE,)


def test_an_unknown_name_in_the_environment_is_an_error() -> None:
    (line,) = refused({}, EXPOSED_WORKFLOWS=f"{FCN3},nope")
    assert line == f"EXPOSED_WORKFLOWS: unknown workflow 'nope'; known are {FCN3}, {STORMSCOPE}"


def test_warmup_workflows_are_callable_but_not_listed() -> None:
    settings = parse({"workflows": {"warmup": [FCN3]}})
    assert FCN3 not in settings.listed_workflows
    assert FCN3 in settings.callable_workflows
    both = parse({"workflows": {"exposed": [FCN3], "warmup": [FCN3]}})
    assert both.listed_workflows == both.callable_workflows == (FCN3,)


@pytest.mark.parametrize(
    "args",
    [
        {"results_url": "az://contosoweather/forecasts"},
        {"azure": {"blob": {"allowed_containers": ["https://contoso.blob.core.windows.net/data"]}}},
        {"azure": {"geocatalog": {"allowed": ["https://earth.example"]}}},
    ],
)
def test_what_azure_needs_has_to_be_installed(args: dict[str, Any]) -> None:
    settings = parse(args)
    check_installed(settings)
    with pytest.raises(SettingsError, match=r"obstore cannot be imported .* '\.\[azure\]'"):
        check_installed(settings, lambda name: name != "obstore")
    check_installed(parse({}), lambda _: False)
    assert not is_installed("azure.no_such_package") and not is_installed("no_such_package.azure")


def test_certificates_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    check_certificates(parse({}))
    empty = tmp_path / "ca.pem"
    empty.write_text("no certificate")
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(SettingsError, match=r"^args\.azure\.ca_file: .*holds no certificates"):
            check_certificates(parse({"azure": {"ca_file": str(path)}}))


def test_a_disk_of_one_machine_is_refused_on_several() -> None:
    with pytest.raises(SettingsError) as error:
        check_nodes(parse({}), 3)
    first, second = str(error.value).splitlines()
    assert first.startswith("args.store_url: SQLite") and "3 nodes" in first
    assert second.startswith("args.results_url: ")
    check_nodes(parse({"shared_filesystem": True}), 3)
    with pytest.raises(SettingsError, match=r"^args\.results_url: [^\n]*$"):
        check_nodes(parse({"store_url": "postgresql+psycopg://u@h/d"}), 2)
    with pytest.raises(SettingsError, match=r"^args\.store_url: [^\n]*$"):
        check_nodes(parse({"results_url": IN_BLOB}), 2)
    on_several = {"results_url": IN_BLOB, "store_url": "postgresql+psycopg://u@h/d"}
    check_nodes(parse(on_several), 2)


IN_BLOB = "az://contosoweather/forecasts/nightly"


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
def test_results_may_lie_in_a_container(url: str, emulator: str | None, place: str) -> None:
    settings = parse({"results_url": url, "azure": {"blob": {"emulator": emulator}}})
    container = settings.results_container
    assert container is not None and container.url == place
    assert settings.summary()["results_url"] == place
    assert settings.delivery_rules.results_in_blob
    assert not parse({}).delivery_rules.results_in_blob


@pytest.mark.parametrize(
    ("args", "place", "words"),
    [
        ({"results_url": "az://contosoweather"}, "results_url", "must be az://ACCOUNT/CONTAINER"),
        ({"results_url": "az://Contoso/data"}, "results_url", "an account has 3 to 24"),
        ({"results_url": "az://contoso/data/../x"}, "results_url", "a folder has letters"),
        ({"results_url": "s3://bucket/data"}, "results_url", "file:///path or az://"),
        ({"results_url": "FILE:///tmp/x"}, "results_url", "file:///path or az://"),
        ({"results_url": "file:tmp"}, "results_url", "file:///path or az://"),
        ({"results_url": f"az://contoso/data/{'a' * 255}/{'b' * 255}"}, "results_url", "at most"),
        (
            {"results_url": "https://contoso.example/data"},
            "results_url",
            "must be https://ACCOUNT.blob",
        ),
        (
            {"workflows": {"custom": [{"class": "a.b:C"}]}},
            "workflows",
            "leaves its results on a disk",
        ),
        (
            {
                "azure": {
                    "blob": {"allowed_containers": ["https://contoso.blob.core.windows.net/data"]}
                }
            },
            "azure",
            "are not copied to others",
        ),
    ],
)
def test_what_cannot_lie_in_a_container_is_named(
    args: dict[str, Any], place: str, words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        parse({"results_url": IN_BLOB, **args})
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"args.{place}: ") and words in line


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


# Workflows of users' own.

MINE = {"class": "no_such_module.workflows:Storms"}


def custom(*each: Any, **workflows: Any) -> dict[str, Any]:
    return {"workflows": {"custom": list(each), **workflows}}


def test_a_class_is_all_that_a_workflow_of_ones_own_needs() -> None:
    settings = parse(custom(MINE))
    (mine,) = settings.custom_workflows
    assert (mine.name, mine.resolved_name, mine.config) == (None, "Storms", {})
    assert (mine.replicas, mine.num_gpus, mine.output_format) == (1, 1.0, "zarr")
    assert mine.deployment == "CustomWorkflow-Storms"
    assert settings.callable_workflows == settings.listed_workflows == (*WORKFLOWS, "Storms")


def test_everything_about_a_workflow_of_ones_own_can_be_set() -> None:
    given = {
        **MINE,
        "name": "storms-2.1",
        "config": {"model_type": "dlwp", "levels": [500]},
        "replicas": 3,
        "num_gpus": 0.5,
        "output_format": "netcdf4",
        "window_mb": 64,
        "cancel_grace_s": 2,
    }
    (mine,) = parse(custom(given)).custom_workflows
    assert mine.model_dump(by_alias=True) == given


def test_the_name_is_the_one_in_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "raise RuntimeError('imported')\nclass Mine:\n    name = 'storms'\n"
    (tmp_path / "users_settings.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = {"class": "users_settings:Mine"}
    assert parse(custom(mine, exposed=["storms"])).callable_workflows == ("storms",)
    given = custom({**mine, "name": "other"}, exposed=["other"])
    assert parse(given).callable_workflows == ("other",)


def test_as_many_run_at_once_as_there_are_replicas_of_a_class() -> None:
    several = custom({**MINE, "replicas": 3}, {**MINE, "name": "b"})
    assert parse(several).max_running == {FCN3: 4, STORMSCOPE: 4, "Storms": 3, "b": 1}
    limited = parse({**several, "queue": {"max_running": 7}})
    assert limited.max_running == dict.fromkeys((FCN3, STORMSCOPE, "Storms", "b"), 7)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (custom({}), "args.workflows.custom[0].class: Field required"),
        (custom({"path": "a:B"}), "args.workflows.custom[0].path: unknown key; known are class, "),
        (custom({"class": "a.b"}), 'args.workflows.custom[0].class: give "module:Class"'),
        (
            custom(MINE, {**MINE, "name": "b", "replica": 2}),
            "args.workflows.custom[1].replica: unknown key; did you mean replicas?",
        ),
        (
            custom({**MINE, "max_size": 2}),
            "args.workflows.custom[0].max_size: unknown key; it belongs in applications[].args.que",
        ),
        (custom({**MINE, "num_gpus": True}), "args.workflows.custom[0].num_gpus: Input should be"),
        (custom({**MINE, "config": ["a"]}), "args.workflows.custom[0].config: Input should be a "),
        (custom({**MINE, "output_format": "grib"}), "args.workflows.custom[0].output_format: "),
        (
            custom({**MINE, "name": "a/b"}),
            "args.workflows.custom[0].name: 'a/b' cannot name a workflow: up to 100 letters",
        ),
        (custom({**MINE, "name": "workflows"}), "args.workflows.custom[0].name: a workflow cannot"),
        (
            custom({"class": "no_such_module:workflows"}),
            "args.workflows.custom: no_such_module:workflows: a workflow cannot be called "
            "'workflows': that is a route of its own; set another `name`",
        ),
        (
            custom(MINE, MINE),
            f"args.workflows.custom: {MINE['class']}: there is a workflow 'Storms' already; "
            "set another `name`",
        ),
        (
            custom({**MINE, "name": FCN3}),
            f"args.workflows.custom: {MINE['class']}: there is a workflow '{FCN3}' already; ",
        ),
        # Hidden, it is there all the same.
        (
            custom({**MINE, "name": FCN3}, exposed=[FCN3]),
            f"args.workflows.custom: {MINE['class']}: there is a workflow '{FCN3}' already; ",
        ),
        ({"workflows": {"custom": MINE}}, "args.workflows.custom: Input should be a valid "),
        (
            custom(MINE, exposed=["Storms", "storms"]),
            "args.workflows.exposed[1]: unknown workflow 'storms'; known are "
            f"{FCN3}, {STORMSCOPE}, Storms",
        ),
        (custom(MINE, warmup=["storms"]), "args.workflows.warmup[0]: unknown workflow 'storms'"),
    ],
)
def test_what_is_wrong_with_a_workflow_of_ones_own_is_named(
    args: dict[str, Any], message: str
) -> None:
    (line,) = refused(args)
    assert line.startswith(message)


@pytest.mark.parametrize(
    "name",
    [
        *("packager", "initial_conditions", "fcn3", "ifs"),
        *("interpolation", "stormscope", "goes16", "goes19"),
    ],
)
def test_a_workflow_cannot_take_the_place_of_a_part_of_the_server(name: str) -> None:
    (line,) = refused(custom({**MINE, "name": name}))
    assert line.endswith(f"'{name}' is a part of the server; set another `name`")


def test_names_are_not_called_unknown_while_the_classes_are_wrong() -> None:
    args = custom({**MINE, "replicas": 0}, exposed=["Storms"], warmup=[FCN3])
    (line,) = refused(args, EXPOSED_WORKFLOWS="Storms")
    assert line.startswith("args.workflows.custom[0].replicas: ")


def test_a_workflow_of_ones_own_can_be_exposed_or_only_called() -> None:
    settings = parse(custom(MINE, {**MINE, "name": "b"}, exposed=["Storms"], warmup=["b"]))
    assert settings.listed_workflows == ("Storms",)
    assert settings.callable_workflows == ("Storms", "b")
    hidden = parse(custom(MINE, {**MINE, "name": "b"}, exposed=["b"]))
    assert [each.resolved_name for each in hidden.custom_workflows] == ["b"]
    assert hidden.max_running == {"b": 1}


def test_the_environment_may_expose_a_workflow_of_ones_own() -> None:
    settings = parse(custom(MINE), EXPOSED_WORKFLOWS="Storms")
    assert settings.callable_workflows == ("Storms",)
    (line,) = refused(custom(MINE), EXPOSED_WORKFLOWS="Storms,b")
    known = f"{FCN3}, {STORMSCOPE}, Storms"
    assert line == f"EXPOSED_WORKFLOWS: unknown workflow 'b'; known are {known}"


@pytest.mark.parametrize("args", [{}, {"workflows": {}}, custom()])
def test_the_environment_cannot_expose_what_is_not_there(args: dict[str, Any]) -> None:
    (line,) = refused(args, EXPOSED_WORKFLOWS="Storms")
    known = f"{FCN3}, {STORMSCOPE}"
    assert line == f"EXPOSED_WORKFLOWS: unknown workflow 'Storms'; known are {known}"


def test_the_summary_names_what_a_class_gets_but_not_the_values() -> None:
    args = custom({**MINE, "config": {"token": PASSWORD, "device": {"key": PASSWORD}}})
    summary = parse(args).summary()
    (mine,) = summary["workflows"]["custom"]
    assert (mine["name"], mine["config"]) == ("Storms", ["device", "token"])
    assert PASSWORD not in str(summary)
    assert PASSWORD not in "".join(refused(custom({**args["workflows"]["custom"][0], "x": 1})))
