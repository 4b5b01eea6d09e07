"""From a request over HTTP to an item of a catalogue whose asset opens from the blob."""

from __future__ import annotations

import os
import re
import signal
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
from tests.integration.azure_places import (
    ASKED,
    FORECAST,
    GRID,
    NOWCAST,
    SECRET,
    Azure,
    check_render_options,
    completed,
    manifest,
)
from tests.integration.serving import Server, served
from tests.workflows.stac.stac_validator import validator

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def azure(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
        yield Azure(azurite, catalog, tmp_path_factory.mktemp("azure"))


@pytest.fixture(scope="module")
def server(http_port: int, azure: Azure) -> Iterator[Server]:
    with served(azure.args, "azure", http_port) as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults_are_left(azure: Azure) -> Iterator[None]:
    yield
    azure.catalog.forget_faults()


def retry(server: Server, execution_id: str) -> None:
    answer = server.http.post(f"/v1/infer/{server.workflow}/{execution_id}/retry")
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("workflow", [FORECAST, NOWCAST])
def test_a_request_becomes_an_item_whose_asset_opens_from_the_blob(
    server: Server, azure: Azure, workflow: str, output_format: str
) -> None:
    execution_id, found = completed(
        server, workflow, **azure.delivery, output_format=output_format, collection_id="mine"
    )
    folder = f"{azure.container.url}/forecasts/{workflow}/{execution_id}"
    name = {"zarr": "results.zarr", "netcdf4": "results.nc"}[output_format]
    assert found["blob_url"] == f"{folder}/{name}"
    assert found["remote_path"].endswith(f"/forecasts/{workflow}/{execution_id}")
    assert found["azure_account_name"] == "devstoreaccount1"
    assert found["geo_catalog_url"] == azure.catalog.url

    # Every file that the manifest names is there, with its checksum.
    prefix = f"forecasts/{workflow}/{execution_id}/"
    blobs = {
        blob.name.removeprefix(prefix): blob
        for blob in azure.blobs().list_blobs(name_starts_with=prefix, include=["metadata"])
    }
    listed = {
        file["path"].partition("/")[2]: (file["size"], file["sha256"])
        for file in found["output_files"]
    }
    assert {name: (b.size, b.metadata["sha256"]) for name, b in blobs.items()} == listed

    stored = azure.catalog.items["mine", found["geocatalog_stac_feature_id"]]
    item = pystac.Item.from_dict(stored)
    item.validate(validator())
    assert item.collection_id == found["geocatalog_collection_id"] == "mine"
    assert item.assets["data"].href == found["blob_url"]
    assert ("data-kerchunk" in item.assets) == (output_format == "netcdf4")

    from_blob = azure.open_dataset(item.assets["data"].href)
    here = azure.data_dir / "results" / workflow / execution_id / name
    opened = xr.open_zarr(here) if output_format == "zarr" else xr.open_dataset(here)
    xr.testing.assert_equal(from_blob, opened.load())
    opened.close()
    check_render_options(azure, item, from_blob, ASKED[workflow]["variables"], output_format)


def test_a_signed_link_reads_this_execution_and_no_other(server: Server, azure: Azure) -> None:
    execution_id = server.submit(**ASKED[FORECAST], container_url=azure.container.url)
    assert server.finished(execution_id)["status"] == "completed"
    url = manifest(server, execution_id)["signed_url"]
    path, _, query = url.partition("?")
    assert path == f"{azure.container.url}/{FORECAST}/{execution_id}"
    # Azurite knows no signatures of folders: what was signed is all that can be looked at.
    signed = {name: value for name, (value,) in parse_qs(query).items()}
    assert (signed["sr"], signed["sdd"], signed["sp"], signed["spr"]) == ("d", "2", "r", "https")
    assert signed["sig"]
    left = datetime.fromisoformat(signed["se"]) - datetime.now(UTC)
    assert timedelta(minutes=9) < left < timedelta(minutes=11)


def test_other_places_are_forbidden(server: Server, azure: Azure) -> None:
    for name, value in (
        ("container_url", "https://attacker.blob.core.windows.net/data"),
        ("geo_catalog_url", "https://attacker.example"),
    ):
        parameters = {**ASKED[FORECAST], **azure.delivery, name: value}
        answer = server.http.post(f"/v1/infer/{FORECAST}", json={"parameters": parameters})
        assert answer.status_code == 403, answer.text
        assert answer.json()["detail"][0]["loc"] == ["body", "parameters", name]


def test_a_registration_that_fails_leaves_results_and_is_finished_by_a_retry(
    server: Server, azure: Azure
) -> None:
    refusal = {"error": {"code": "Forbidden", "message": "no role here"}}
    azure.catalog.fail_next("POST", r"/items$", times=1, status=403, body=refusal)
    execution_id = server.submit(**ASKED[FORECAST], **azure.delivery)
    failed = server.finished(execution_id)
    assert (failed["status"], failed["stage"]) == ("failed", "register")
    assert "403" in failed["error_message"] and "no role here" in failed["error_message"]
    found = manifest(server, execution_id)
    assert found["status"] == "failed" and found["blob_url"]
    for file in found["output_files"]:
        path = f"/v1/infer/{FORECAST}/{execution_id}/results/{file['path']}"
        assert server.http.get(path).status_code == 200

    blobs = {b.name: b.last_modified for b in azure.blobs().list_blobs(f"forecasts/{FORECAST}/")}
    retry(server, execution_id)
    ended = server.finished(execution_id)
    assert ended["status"] == "completed", ended["error_message"]
    after = {b.name: b.last_modified for b in azure.blobs().list_blobs(f"forecasts/{FORECAST}/")}
    assert after == blobs
    assert manifest(server, execution_id)["geocatalog_stac_feature_id"]


@pytest.mark.parametrize("deployment", ["BlobUploader", "GeoCatalog"])
def test_a_replica_that_is_killed_while_it_delivers(
    server: Server, azure: Azure, deployment: str
) -> None:
    if deployment == "GeoCatalog":
        azure.catalog.fail_next("POST", r"/items$", times=1, delay_s=3.0)
        steps = ASKED[FORECAST]["n_steps"]
        variables = ASKED[FORECAST]["variables"]
    else:
        steps, variables = 40, ["t2m", "z500", "u10m", "v10m"]
    asked = {**ASKED[FORECAST], "n_steps": steps, "variables": variables}
    execution_id = server.submit(**asked, **azure.delivery, output_format="zarr")
    stage = {"BlobUploader": "upload", "GeoCatalog": "register"}[deployment]
    server.until(execution_id, lambda s: s["stage"] == stage)
    time.sleep(0.3)
    assert server.status(execution_id)["stage"] == stage
    for pid in server.pids(deployment):
        os.kill(pid, signal.SIGKILL)
    ended = server.finished(execution_id)
    assert ended["status"] == "completed", ended["error_message"]
    (item,) = [item for item in azure.catalog.items.values() if execution_id in item["id"]]
    from_blob = azure.open_dataset(item["assets"]["data"]["href"])
    here = azure.data_dir / "results" / FORECAST / execution_id / "results.zarr"
    xr.testing.assert_equal(from_blob, xr.open_zarr(here).load())


def test_chunks_are_in_the_container_before_all_are_computed_and_go_with_a_cancel(
    server: Server, azure: Azure
) -> None:
    asked = {**ASKED[FORECAST], "n_steps": 400, "seeds": [1, 2, 3, 4], "output_format": "zarr"}
    execution_id = server.submit(**asked, **azure.delivery)

    def uploaded() -> list[str]:
        with azure.blobs() as client:
            return [each for each in client.list_blob_names() if execution_id in each]

    status = server.until(execution_id, lambda _: bool(uploaded()))
    assert status["stage"] == "inference"
    assert all("/c." in each for each in uploaded())
    answer = server.http.delete(f"/v1/infer/{FORECAST}/{execution_id}")
    assert answer.status_code in (200, 202), answer.text
    assert server.finished(execution_id)["status"] == "cancelled"
    deadline = time.monotonic() + 20
    while uploaded():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_secrets_are_nowhere(server: Server, azure: Azure) -> None:
    """After all of the above: the planted secret is in every token, and in nothing that stays."""
    needle = SECRET.encode()
    answers = [
        server.http.get(f"/v1/infer/{workflow}?limit=200").content
        for workflow in (FORECAST, NOWCAST)
    ]
    answers += [server.http.get(path).content for path in ("/metrics", "/openapi.json")]
    assert not [answer for answer in answers if needle in answer]
    stored = [path for path in azure.data_dir.rglob("*") if path.is_file()]
    assert [path.name for path in stored if path.name.startswith("executions.sqlite")]
    assert not [path for path in stored if needle in path.read_bytes()]
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")  # type: ignore[attr-defined]
    read = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    assert any(b"BlobUploader" in path.name.encode() for path in read)
    assert not [path for path, content in read.items() if needle in content]
    # The environment of every process of this machine, but those that tests started for that.
    environments = {path: _read(path) for path in Path("/proc").glob("[0-9]*/environ")}
    assert not [path for path, content in environments.items() if needle in content]
    signatures = re.compile(rb"[?&]sig=[A-Za-z0-9%+/]{20}|eyJ[A-Za-z0-9_-]{20,}\.eyJ")
    assert not [path for path in stored if signatures.search(path.read_bytes())]
    assert not [path for path, content in read.items() if signatures.search(content)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def test_what_is_not_configured_is_not_there(http_port: int, tmp_path: Path) -> None:
    args = {"data_dir": str(tmp_path / "var"), "models": {"fcn3": {"grid": GRID}}}
    with served(args, "without-azure", http_port) as server:
        assert server.replicas("BlobUploader") == server.replicas("GeoCatalog") == []

        # Not of this module, which brings them: what lies in a function travels as it is.
        def _azure_modules() -> list[str]:
            import sys

            return sorted({name.split(".")[0] for name in sys.modules} & {"azure", "obstore"})

        modules = server.ask("Conductor", _azure_modules) + server.ask("Ingress", _azure_modules)
        modules += server.ask("Packager", _azure_modules)
        assert modules == [[]] * len(modules)
        refused = server.http.post(
            f"/v1/infer/{FORECAST}",
            json={"parameters": {"container_url": "https://a.blob.core.windows.net/data"}},
        )
        assert refused.status_code == 422
