"""Parsing of the settings: every problem is reported, with its place."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.settings.parsing import parse_settings
from tests.serve_app.settings.helpers import (
    FCN3,
    IN_BLOB,
    PASSWORD,
    SECRET_URL,
    STORMSCOPE,
    parse,
    refused,
)


def test_relative_paths_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse_settings({"data_dir": "./here/../there"}, {})
    monkeypatch.chdir("/")
    assert settings.results_dir == tmp_path / "there" / "results"


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
        (
            {"models": {"fcn3": {"loader": "no colon"}}},
            'args.models.fcn3.loader: must be "synthetic"',
        ),
        ({"models": {"fcn3": {"grid": {"n_lat": 1}}}}, "args.models.fcn3.grid.n_lat: "),
        (
            {"models": {"interpolation": {"loader": "a.b"}}},
            'args.models.interpolation.loader: must be "synthetic"',
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
            "args.models: with in_turn, fcn3 and stormscope share one GPU, but their num_gpus add "
            "up to 1.5; set num_gpus: 0.5 for each",
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
        ({"results_url": "file://host/c"}, "args.results_url: must be file:///path or az://"),
        ({"store_url": "sqlite://"}, "args.store_url: names no database"),
        (
            {"store_url": "mysql://h/d"},
            "args.store_url: must be sqlite:///path or postgresql+psycopg",
        ),
        (
            {"cors": {"allow_origins": ["example.org"]}},
            "args.cors.allow_origins[0]: must be an origin",
        ),
        ({"shared_filesystem": "no"}, "args.shared_filesystem: Input should be a valid boolean"),
    ],
)
def test_invalid_settings_are_reported(args: dict[str, Any], message: str) -> None:
    (line,) = refused(args)
    assert line.startswith(message)


def test_all_problems_are_reported_at_once() -> None:
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


def test_an_unknown_workflow_in_the_environment_is_an_error() -> None:
    (line,) = refused({}, EXPOSED_WORKFLOWS=f"{FCN3},nope")
    assert line == f"EXPOSED_WORKFLOWS: unknown workflow 'nope'; known are {FCN3}, {STORMSCOPE}"


@pytest.mark.parametrize(
    ("args", "place", "message"),
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
            "writes its results to a disk",
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
def test_invalid_results_urls_are_reported(args: dict[str, Any], place: str, message: str) -> None:
    (line,) = refused({"results_url": IN_BLOB, **args})
    assert line.startswith(f"args.{place}: ") and message in line


@pytest.mark.parametrize("url", [SECRET_URL.replace("+psycopg", ""), f"{PASSWORD}", [SECRET_URL]])
def test_a_password_is_not_shown_in_errors(url: object) -> None:
    (line,) = refused({"store_url": url})
    assert line.startswith("args.store_url: ")
    assert PASSWORD not in line
