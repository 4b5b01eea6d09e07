"""Results that lie in a container from the start: `results_url: az://…`, and no shared disk."""

from __future__ import annotations

import hashlib
import os
import signal
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
from tests.integration.azure_places import (
    ASKED,
    FORECAST,
    NOWCAST,
    Azure,
    check_render_options,
    completed,
    manifest,
)
from tests.integration.serving import Server, served
from tests.workflows.stac.stac_validator import validator
from workflows.stac.collection import default_collection_id

pytestmark = pytest.mark.ray

FOLDER = "results/of=tests"


@pytest.fixture(scope="module")
def azure(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
        azure = Azure(azurite, catalog, tmp_path_factory.mktemp("azure-results"))
        azure.args["results_url"] = (
            f"az://{azure.container.account}/{azure.container.name}/{FOLDER}"
        )
        del azure.args["azure"]["blob"]["allowed_containers"]
        yield azure


@pytest.fixture(scope="module")
def server(http_port: int, azure: Azure) -> Iterator[Server]:
    with served(azure.args, "azure-results", http_port) as server:
        yield server


def names_of_blobs(azure: Azure, containing: str) -> set[str]:
    return {blob.name for blob in azure.blobs().list_blobs() if containing in blob.name}


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("workflow", [FORECAST, NOWCAST])
def test_a_request_becomes_an_item_whose_asset_is_the_result_itself(
    server: Server, azure: Azure, workflow: str, output_format: str
) -> None:
    execution_id, found = completed(
        server, workflow, output_format=output_format, geo_catalog_url=azure.catalog.url
    )
    inside = f"{FOLDER}/{workflow}/{execution_id}"
    name = {"zarr": "results.zarr", "netcdf4": "results.nc"}[output_format]
    assert found["blob_url"] == f"{azure.container.url}/{inside}/{name}"
    assert found["blob_folder_url"] == f"{azure.container.url}/{inside}"
    assert found["remote_path"] == f"azure://{azure.container.name}/{inside}"
    assert found["azure_account_name"] == "devstoreaccount1"

    # What the manifest names is what there is: nothing else is left of the execution.
    listed = {file["path"].partition("/")[2]: file for file in found["output_files"]}
    assert names_of_blobs(azure, execution_id) == {f"{inside}/{key}" for key in listed}
    # Every file can be had from here, whole and in ranges.
    for file in listed.values():
        path = f"/v1/infer/{workflow}/{execution_id}/results/{file['path']}"
        answer = server.http.get(path)
        assert answer.status_code == 200, answer.text
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        part = server.http.get(path, headers={"Range": "bytes=1-2"})
        assert (part.status_code, part.content) == (206, answer.content[1:3])

    collection = default_collection_id(workflow)
    stored = azure.catalog.items[collection, found["geocatalog_stac_feature_id"]]
    item = pystac.Item.from_dict(stored)
    item.validate(validator())
    assert item.assets["data"].href == found["blob_url"]
    dataset = azure.open_dataset(item.assets["data"].href)
    for variable in ASKED[workflow]["variables"]:
        # Beyond the satellite's horizon a nowcast has no values.
        assert dataset[variable].notnull().any(dim=dataset[variable].dims[-2:]).all()
    check_render_options(azure, item, dataset, ASKED[workflow]["variables"], output_format)


def test_the_arrays_are_those_that_a_disk_would_have(server: Server, azure: Azure) -> None:
    """One seed, two formats: the exported file holds what the Zarr store does."""
    opened = []
    for output_format in ("zarr", "netcdf4"):
        execution_id = server.submit(**ASKED[FORECAST], output_format=output_format)
        assert server.finished(execution_id)["status"] == "completed"
        opened.append(azure.open_dataset(manifest(server, execution_id)["blob_url"]))
    xr.testing.assert_equal(*opened)


def test_no_result_lies_on_the_disk(server: Server, azure: Azure) -> None:
    execution_id = server.submit(**ASKED[FORECAST], output_format="netcdf4")
    assert server.finished(execution_id)["status"] == "completed"
    left = {
        str(path.relative_to(azure.data_dir).parts[:2])
        for path in azure.data_dir.rglob("*")
        if path.is_file() and not path.name.startswith("executions.sqlite")
    }
    assert left <= {str(("work", "initial_conditions"))}


def test_a_signed_link_is_for_the_folder_of_the_result(server: Server, azure: Azure) -> None:
    execution_id = server.submit(**ASKED[FORECAST])
    assert server.finished(execution_id)["status"] == "completed"
    found = manifest(server, execution_id)
    path, _, query = found["signed_url"].partition("?")
    assert path == found["blob_folder_url"]
    signed = {name: value for name, (value,) in parse_qs(query).items()}
    depth = len(f"{FOLDER}/{FORECAST}/{execution_id}".split("/"))
    assert (signed["sr"], signed["sdd"], signed["sp"]) == ("d", str(depth), "r")


@pytest.mark.parametrize(
    ("deployment", "output_format"),
    [("Packager", "zarr"), ("Packager", "netcdf4"), ("FCN3", "zarr"), ("Conductor", "netcdf4")],
)
def test_a_process_that_is_killed_costs_nothing(
    server: Server, azure: Azure, deployment: str, output_format: str
) -> None:
    asked: dict[str, Any] = {**ASKED[FORECAST], "n_steps": 12, "output_format": output_format}
    undisturbed = server.submit(**asked)
    assert server.finished(undisturbed)["status"] == "completed"
    execution_id = server.submit(**asked)
    server.until(execution_id, lambda s: (s["progress"] or {}).get("current_step", 0) >= 3)
    for pid in server.pids(deployment):
        os.kill(pid, signal.SIGKILL)
    ended = server.finished(execution_id)
    assert ended["status"] == "completed", ended["error_message"]
    one, other = (
        azure.open_dataset(manifest(server, each)["blob_url"])
        for each in (undisturbed, execution_id)
    )
    xr.testing.assert_equal(one, other)
    leftover = {name for name in names_of_blobs(azure, execution_id) if ".work" in name}
    assert not leftover


def test_a_cancelled_or_purged_execution_leaves_no_blob(server: Server, azure: Azure) -> None:
    cancelled = server.submit(**{**ASKED[FORECAST], "n_steps": 40})
    server.until(cancelled, lambda s: (s["progress"] or {}).get("current_step", 0) >= 1)
    purged = server.submit(**ASKED[FORECAST])
    url = f"/v1/infer/{FORECAST}"
    assert server.http.delete(f"{url}/{cancelled}").status_code < 300
    assert server.finished(cancelled)["status"] == "cancelled"
    assert server.finished(purged)["status"] == "completed"
    assert server.http.delete(f"{url}/{purged}", params={"purge": True}).status_code < 300
    deadline = time.monotonic() + 30
    while server.http.get(f"{url}/{purged}/status").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not names_of_blobs(azure, cancelled) | names_of_blobs(azure, purged)


def test_a_copy_elsewhere_is_refused(server: Server, azure: Azure) -> None:
    answer = server.http.post(
        f"/v1/infer/{FORECAST}",
        json={"parameters": {**ASKED[FORECAST], "container_url": azure.container.url}},
    )
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "parameters", "container_url"]


def test_readiness_tells_of_a_container_that_is_missing(
    http_port: int, azure: Azure, tmp_path: Path
) -> None:
    account = azure.container.account
    args = {
        **azure.args,
        "data_dir": str(tmp_path / "var"),
        "workflows": {"exposed": [FORECAST]},
        "results_url": f"az://{account}/no-such-container",
    }
    with served(args, "azure-without-container", http_port, wait=False) as server:
        deadline = time.monotonic() + 60
        while "no such container" not in (told := server.http.get("/readiness").text):
            assert time.monotonic() < deadline, told
            time.sleep(0.2)
        answer = server.http.get("/readiness")
        assert answer.status_code == 503
