"""The deployment for Azure ML agrees with the image and the configuration that it serves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from serve_app.check import check_file
from serve_app.settings.parsing import parse_settings
from workflows import WORKFLOWS

AZUREML = Path(__file__).parents[2] / "config" / "azureml"
CONFIG = AZUREML / "model" / "serve.yaml"


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def test_the_configuration_passes_the_check() -> None:
    assert check_file(str(CONFIG)) == []


def test_the_configuration_is_where_the_model_is_mounted() -> None:
    deployment = read(AZUREML / "deployment.yaml")
    model = deployment["model"]
    # Its base would differ, and Microsoft's documents disagree about it.
    assert "model_mount_path" not in deployment
    mounted = Path("/var/azureml-app/azureml-models", model["name"], str(model["version"]))
    assert AZUREML / model["path"] == CONFIG.parent
    paths = deployment["environment_variables"]["EARTH2SERVE_CONFIG"].split()
    # The model's folder should be below the version; if it is not, the second path is right.
    assert paths == [str(mounted / CONFIG.parent.name / CONFIG.name), str(mounted / CONFIG.name)]
    weights = re.findall(r"/var/azureml-app/\S+/", CONFIG.read_text())
    assert weights == [f"{mounted / CONFIG.parent.name}/"]


def test_its_routes_exist() -> None:
    routes = read(AZUREML / "deployment.yaml")["environment"]["inference_config"]
    config = read(CONFIG)
    assert {route["port"] for route in routes.values()} == {config["http_options"]["port"]}
    assert routes["liveness_route"]["path"] == routes["readiness_route"]["path"] == "/liveness"
    settings = parse_settings(config["applications"][0]["args"], {})
    workflow = routes["scoring_route"]["path"].removeprefix("/v1/infer/")
    assert workflow in WORKFLOWS
    assert workflow in settings.listed_workflows
    # The endpoint itself uses `Authorization`.
    assert settings.auth.tokens_file is None


def test_it_has_one_instance() -> None:
    deployment = read(AZUREML / "deployment.yaml")
    assert deployment["instance_count"] == 1
    assert deployment["endpoint_name"] == read(AZUREML / "endpoint.yaml")["name"]
    # A long poll takes up to 60 s.
    assert deployment["request_settings"]["request_timeout_ms"] > 60_000
