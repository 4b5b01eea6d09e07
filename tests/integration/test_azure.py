"""From a request over HTTP to a catalogue item whose asset opens from Blob Storage."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pystac
import pytest
import ray
import xarray as xr

from tests.emulators.azurite import Azurite
from tests.emulators.geocatalog import GeoCatalogEmulator
from tests.integration.azure_setup import (
    FORECAST,
    NOWCAST,
    PARAMETERS,
    SECRET,
    AzureSetup,
    check_render_options,
    run,
)
from tests.integration.serving import LIMIT_S, Server, served
from tests.workflows.stac.stac_validator import validator

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def azure(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureSetup]:
    with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
        yield AzureSetup(azurite, catalog, tmp_path_factory.mktemp("azure"))


@pytest.fixture(scope="module")
def server(http_port: int, azure: AzureSetup) -> Iterator[Server]:
    with served(azure.args, "azure", http_port) as server:
        yield server


@pytest.fixture(autouse=True)
def no_remaining_faults(azure: AzureSetup) -> Iterator[None]:
    yield
    azure.catalog.forget_faults()


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("workflow", [FORECAST, NOWCAST])
def test_a_request_becomes_an_item_whose_asset_opens_from_the_blob(
    server: Server, azure: AzureSetup, workflow: str, output_format: str
) -> None:
    execution_id, manifest = run(
        server, workflow, **azure.delivery, output_format=output_format, collection_id="mine"
    )
    folder = f"{azure.container.url}/forecasts/{workflow}/{execution_id}"
    name = {"zarr": "results.zarr", "netcdf4": "results.nc"}[output_format]
    assert manifest["blob_url"] == f"{folder}/{name}"
    assert manifest["remote_path"].endswith(f"/forecasts/{workflow}/{execution_id}")
    assert manifest["azure_account_name"] == "devstoreaccount1"
    assert manifest["geo_catalog_url"] == azure.catalog.url

    # Every file of the manifest is in the container, with its checksum.
    prefix = f"forecasts/{workflow}/{execution_id}/"
    blobs = {
        blob.name.removeprefix(prefix): blob
        for blob in azure.blobs().list_blobs(name_starts_with=prefix, include=["metadata"])
    }
    files = {
        file["path"].partition("/")[2]: (file["size"], file["sha256"])
        for file in manifest["output_files"]
    }
    assert {name: (b.size, b.metadata["sha256"]) for name, b in blobs.items()} == files

    stored = azure.catalog.items["mine", manifest["geocatalog_stac_feature_id"]]
    item = pystac.Item.from_dict(stored)
    item.validate(validator())
    assert item.collection_id == manifest["geocatalog_collection_id"] == "mine"
    assert item.assets["data"].href == manifest["blob_url"]
    assert ("data-kerchunk" in item.assets) == (output_format == "netcdf4")

    from_blob = azure.open_dataset(item.assets["data"].href)
    path = azure.data_dir / "results" / workflow / execution_id / name
    from_disk = xr.open_zarr(path) if output_format == "zarr" else xr.open_dataset(path)
    xr.testing.assert_equal(from_blob, from_disk.load())
    from_disk.close()
    check_render_options(azure, item, from_blob, PARAMETERS[workflow]["variables"], output_format)


def test_a_signed_link_is_for_the_folder_of_the_execution(
    server: Server, azure: AzureSetup
) -> None:
    execution_id = server.submit(**PARAMETERS[FORECAST], container_url=azure.container.url)
    server.completed(execution_id)
    url = server.manifest(execution_id)["signed_url"]
    path, _, query = url.partition("?")
    assert path == f"{azure.container.url}/{FORECAST}/{execution_id}"
    # Azurite does not support signatures of folders, so the link cannot be used here.
    signed = {name: value for name, (value,) in parse_qs(query).items()}
    assert (signed["sr"], signed["sdd"], signed["sp"], signed["spr"]) == ("d", "2", "r", "https")
    assert signed["sig"]
    lifetime = datetime.fromisoformat(signed["se"]) - datetime.now(UTC)
    assert timedelta(minutes=9) < lifetime < timedelta(minutes=11)


def test_destinations_that_are_not_allowed_are_refused(server: Server, azure: AzureSetup) -> None:
    for name, value in (
        ("container_url", "https://attacker.blob.core.windows.net/data"),
        ("geo_catalog_url", "https://attacker.example"),
    ):
        parameters = {**PARAMETERS[FORECAST], **azure.delivery, name: value}
        response = server.http.post(f"/v1/infer/{FORECAST}", json={"parameters": parameters})
        assert response.status_code == 403, response.text
        assert response.json()["detail"][0]["loc"] == ["body", "parameters", name]


def test_a_failed_registration_keeps_results_and_is_completed_by_a_retry(
    server: Server, azure: AzureSetup
) -> None:
    refusal = {"error": {"code": "Forbidden", "message": "no role here"}}
    azure.catalog.fail_next("POST", r"/items$", times=1, status=403, body=refusal)
    execution_id = server.submit(**PARAMETERS[FORECAST], **azure.delivery)
    failed = server.finished(execution_id)
    assert (failed["status"], failed["stage"]) == ("failed", "register")
    assert "403" in failed["error_message"] and "no role here" in failed["error_message"]
    manifest = server.manifest(execution_id)
    assert manifest["status"] == "failed" and manifest["blob_url"]
    for file in manifest["output_files"]:
        path = f"/v1/infer/{FORECAST}/{execution_id}/results/{file['path']}"
        assert server.http.get(path).status_code == 200

    def uploads() -> dict[str, datetime]:
        prefix = f"forecasts/{FORECAST}/"
        return {blob.name: blob.last_modified for blob in azure.blobs().list_blobs(prefix)}

    before = uploads()
    server.retry(execution_id)
    server.completed(execution_id)
    assert uploads() == before
    assert server.manifest(execution_id)["geocatalog_stac_feature_id"]


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["BlobUploader", "GeoCatalog"])
def test_a_delivery_survives_a_kill_of_its_replica(
    server: Server, azure: AzureSetup, deployment: str
) -> None:
    parameters = {**PARAMETERS[FORECAST], "output_format": "zarr"}
    stage = {"BlobUploader": "upload", "GeoCatalog": "register"}[deployment]
    if deployment == "GeoCatalog":
        azure.catalog.fail_next("POST", r"/items$", times=1, delay_s=3.0)
    else:
        parameters |= {"n_steps": 40, "variables": ["t2m", "z500", "u10m", "v10m"]}
    execution_id = server.submit(**parameters, **azure.delivery)
    server.until(execution_id, lambda s: s["stage"] == stage)
    time.sleep(0.3)
    assert server.status(execution_id)["stage"] == stage
    server.kill(deployment)
    server.completed(execution_id)
    (item,) = [item for item in azure.catalog.items.values() if execution_id in item["id"]]
    from_blob = azure.open_dataset(item["assets"]["data"]["href"])
    path = azure.data_dir / "results" / FORECAST / execution_id / "results.zarr"
    xr.testing.assert_equal(from_blob, xr.open_zarr(path).load())


def test_chunks_are_uploaded_during_inference_and_withdrawn_by_a_cancel(
    server: Server, azure: AzureSetup
) -> None:
    parameters = {**PARAMETERS[FORECAST], "n_steps": 400, "seeds": [1, 2, 3, 4]}
    execution_id = server.submit(**parameters, output_format="zarr", **azure.delivery)

    def uploaded() -> list[str]:
        with azure.blobs() as client:
            return [each for each in client.list_blob_names() if execution_id in each]

    status = server.until(execution_id, lambda _: bool(uploaded()))
    assert status["stage"] == "inference"
    assert all("/c/" in each for each in uploaded())
    server.cancel(execution_id)
    assert server.finished(execution_id)["status"] == "cancelled"
    deadline = time.monotonic() + LIMIT_S
    while uploaded():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_secrets_are_neither_stored_nor_logged_nor_returned(
    server: Server, azure: AzureSetup
) -> None:
    """Every token of the tests above contains the planted secret."""
    run(server, FORECAST, **azure.delivery)
    needle = SECRET.encode()
    responses = [
        server.http.get(f"/v1/infer/{workflow}?limit=200").content
        for workflow in (FORECAST, NOWCAST)
    ]
    responses += [server.http.get(path).content for path in ("/metrics", "/openapi.json")]
    assert not [response for response in responses if needle in response]
    stored = [path for path in azure.data_dir.rglob("*") if path.is_file()]
    assert [path.name for path in stored if path.name.startswith("executions.sqlite")]
    assert not [path for path in stored if needle in path.read_bytes()]
    session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    logs = {path: path.read_bytes() for path in Path(session, "logs").rglob("*") if path.is_file()}
    assert any(b"BlobUploader" in path.name.encode() for path in logs)
    assert not [path for path, content in logs.items() if needle in content]
    # Environments of all processes of this machine.
    environments = {path: _read(path) for path in Path("/proc").glob("[0-9]*/environ")}
    assert not [path for path, content in environments.items() if needle in content]
    signatures = re.compile(rb"[?&]sig=[A-Za-z0-9%+/]{20}|eyJ[A-Za-z0-9_-]{20,}\.eyJ")
    assert not [path for path in stored if signatures.search(path.read_bytes())]
    assert not [path for path, content in logs.items() if signatures.search(content)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
