"""Results that are written to a container directly: `results_url: az://…`, and no shared disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pystac
import pytest
import xarray as xr

from tests.emulators.azurite import Azurite
from tests.emulators.geocatalog import GeoCatalogEmulator
from tests.integration.azure_setup import (
    FORECAST,
    NOWCAST,
    PARAMETERS,
    AzureSetup,
    check_render_options,
    run,
)
from tests.integration.serving import LIMIT_S, Server, served, steps_written
from tests.workflows.stac.stac_validator import validator
from workflows.stac.collection import default_collection_id

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FOLDER = "results/of=tests"


@pytest.fixture(scope="module")
def azure(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureSetup]:
    with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
        azure = AzureSetup(azurite, catalog, tmp_path_factory.mktemp("azure-results"))
        azure.args["results_url"] = (
            f"az://{azure.container.account}/{azure.container.name}/{FOLDER}"
        )
        del azure.args["azure"]["blob"]["allowed_containers"]
        yield azure


@pytest.fixture(scope="module")
def server(http_port: int, azure: AzureSetup) -> Iterator[Server]:
    with served(azure.args, "azure-results", http_port) as server:
        yield server


def blob_names(azure: AzureSetup, containing: str) -> set[str]:
    return {blob.name for blob in azure.blobs().list_blobs() if containing in blob.name}


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("workflow", [FORECAST, NOWCAST])
def test_a_request_becomes_an_item_whose_asset_is_the_result_itself(
    server: Server, azure: AzureSetup, workflow: str, output_format: str
) -> None:
    execution_id, manifest = run(
        server, workflow, output_format=output_format, geo_catalog_url=azure.catalog.url
    )
    folder = f"{FOLDER}/{workflow}/{execution_id}"
    name = {"zarr": "results.zarr", "netcdf4": "results.nc"}[output_format]
    assert manifest["blob_url"] == f"{azure.container.url}/{folder}/{name}"
    assert manifest["blob_folder_url"] == f"{azure.container.url}/{folder}"
    assert manifest["remote_path"] == f"azure://{azure.container.name}/{folder}"
    assert manifest["azure_account_name"] == "devstoreaccount1"

    # The container holds the files of the manifest and nothing else of the execution.
    files = {file["path"].partition("/")[2]: file for file in manifest["output_files"]}
    assert blob_names(azure, execution_id) == {f"{folder}/{key}" for key in files}
    # The server sends every file, whole and in ranges.
    for file in files.values():
        path = f"/v1/infer/{workflow}/{execution_id}/results/{file['path']}"
        response = server.http.get(path)
        assert response.status_code == 200, response.text
        assert hashlib.sha256(response.content).hexdigest() == file["sha256"]
        part = server.http.get(path, headers={"Range": "bytes=1-2"})
        assert (part.status_code, part.content) == (206, response.content[1:3])

    collection = default_collection_id(workflow)
    stored = azure.catalog.items[collection, manifest["geocatalog_stac_feature_id"]]
    item = pystac.Item.from_dict(stored)
    item.validate(validator())
    assert item.assets["data"].href == manifest["blob_url"]
    dataset = azure.open_dataset(item.assets["data"].href)
    for variable in PARAMETERS[workflow]["variables"]:
        # A nowcast has no values beyond the satellite's horizon.
        assert dataset[variable].notnull().any(dim=dataset[variable].dims[-2:]).all()
    check_render_options(azure, item, dataset, PARAMETERS[workflow]["variables"], output_format)


def test_both_formats_contain_the_same_arrays(server: Server, azure: AzureSetup) -> None:
    datasets = []
    for output_format in ("zarr", "netcdf4"):
        execution_id = server.submit(**PARAMETERS[FORECAST], output_format=output_format)
        server.completed(execution_id)
        datasets.append(azure.open_dataset(server.manifest(execution_id)["blob_url"]))
    xr.testing.assert_equal(*datasets)


def test_no_result_is_written_to_the_disk(server: Server, azure: AzureSetup) -> None:
    server.completed(server.submit(**PARAMETERS[FORECAST], output_format="netcdf4"))
    folders = {
        path.relative_to(azure.data_dir).parts[:2]
        for path in azure.data_dir.rglob("*")
        if path.is_file() and not path.name.startswith("executions.sqlite")
    }
    assert folders <= {("work", "initial_conditions")}


def test_a_signed_link_is_for_the_folder_of_the_result(server: Server, azure: AzureSetup) -> None:
    execution_id = server.submit(**PARAMETERS[FORECAST])
    server.completed(execution_id)
    manifest = server.manifest(execution_id)
    path, _, query = manifest["signed_url"].partition("?")
    assert path == manifest["blob_folder_url"]
    signed = {name: value for name, (value,) in parse_qs(query).items()}
    depth = len(f"{FOLDER}/{FORECAST}/{execution_id}".split("/"))
    assert (signed["sr"], signed["sdd"], signed["sp"]) == ("d", str(depth), "r")


@pytest.mark.parametrize(
    ("deployment", "output_format"),
    [("Packager", "zarr"), ("Packager", "netcdf4"), ("FCN3", "zarr"), ("Conductor", "netcdf4")],
)
def test_an_execution_survives_the_kill_of_a_deployment(
    server: Server, azure: AzureSetup, deployment: str, output_format: str
) -> None:
    parameters: dict[str, Any] = {**PARAMETERS[FORECAST], "n_steps": 12}
    parameters["output_format"] = output_format
    undisturbed = server.submit(**parameters)
    server.completed(undisturbed)
    execution_id = server.submit(**parameters)
    server.until(execution_id, lambda s: steps_written(s) >= 3)
    server.kill(deployment)
    server.completed(execution_id)
    datasets = [
        azure.open_dataset(server.manifest(each)["blob_url"])
        for each in (undisturbed, execution_id)
    ]
    xr.testing.assert_equal(*datasets)
    assert not {name for name in blob_names(azure, execution_id) if ".work" in name}


def test_a_cancelled_or_purged_execution_leaves_no_blob(server: Server, azure: AzureSetup) -> None:
    cancelled = server.submit(**{**PARAMETERS[FORECAST], "n_steps": 40})
    server.until(cancelled, lambda s: steps_written(s) >= 1)
    purged = server.submit(**PARAMETERS[FORECAST])
    server.cancel(cancelled)
    assert server.finished(cancelled)["status"] == "cancelled"
    server.completed(purged)
    server.purge(purged)
    assert not blob_names(azure, cancelled) | blob_names(azure, purged)


def test_a_copy_into_another_container_is_refused(server: Server, azure: AzureSetup) -> None:
    response = server.http.post(
        f"/v1/infer/{FORECAST}",
        json={"parameters": {**PARAMETERS[FORECAST], "container_url": azure.container.url}},
    )
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "parameters", "container_url"]


def test_readiness_reports_a_missing_container(
    http_port: int, azure: AzureSetup, tmp_path: Path
) -> None:
    account = azure.container.account
    args = {
        **azure.args,
        "data_dir": str(tmp_path / "var"),
        "workflows": {"exposed": [FORECAST]},
        "results_url": f"az://{account}/no-such-container",
    }
    with served(args, "azure-without-container", http_port, wait=False) as server:
        deadline = time.monotonic() + LIMIT_S
        while "create the container first" not in (readiness := server.http.get("/readiness").text):
            assert time.monotonic() < deadline, readiness
            time.sleep(0.2)
        assert server.http.get("/readiness").status_code == 503
