"""Deliveries that requests may ask for, retries, and links to uploaded results."""

from typing import Any

import pytest

from serve_app.http.create_app import create_app
from serve_app.http.schemas import StatusBody
from tests.serve_app.conftest import URL, WORKFLOW, Service, no_nudge
from workflows.delivery import DeliveryRules, parse_container
from workflows.execution import Stage, Status
from workflows.manifest import Manifest, UploadTotals

DATA = "https://weather.blob.core.windows.net/data"
CATALOG = "https://earth.geocatalog.example"
RULES = DeliveryRules(containers=(parse_container(DATA),), catalogs=(CATALOG,))


async def submit(service: Service, **parameters: Any) -> Any:
    return await service.client.post(URL, json={"parameters": parameters})


async def test_an_allowed_destination_is_planned(serve):
    service = serve(delivery=RULES)
    response = await submit(service, container_url=f"{DATA}/mine/", geo_catalog_url=CATALOG)
    assert response.status_code == 200, response.text
    execution = service.store.read(response.json()["execution_id"])
    assert execution.plan["delivery"] == {
        "container": parse_container(f"{DATA}/mine").model_dump(),
        "geo_catalog_url": CATALOG,
        "collection_id": None,
    }
    assert execution.parameters["container_url"] == f"{DATA}/mine/"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("container_url", "https://attacker.blob.core.windows.net/data"),
        ("container_url", f"{DATA}2"),
        ("geo_catalog_url", "https://attacker.example"),
    ],
)
async def test_another_destination_is_forbidden_and_nothing_is_queued(serve, name, value):
    service = serve(delivery=RULES)
    destinations = {"container_url": DATA, "geo_catalog_url": CATALOG, name: value}
    response = await submit(service, **destinations)
    assert response.status_code == 403, response.text
    [finding] = response.json()["detail"]
    assert finding["loc"] == ["body", "parameters", name]
    assert "does not deliver there" in finding["msg"]
    assert service.store.list_executions(WORKFLOW) == []


@pytest.mark.parametrize("name", ["container_url", "geo_catalog_url", "collection_id"])
async def test_a_server_without_azure_refuses_deliveries(service, name):
    response = await submit(service, **{name: "collection" if name == "collection_id" else DATA})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "parameters", name]
    assert "leave it out" in response.json()["detail"][0]["msg"]
    assert (await submit(service, **{name: None})).status_code == 200


async def fail(service: Service, stage: Stage, results: Manifest | None) -> str:
    execution_id = (await submit(service)).json()["execution_id"]
    service.conductor.start()
    service.store.update(
        service.conductor.fence,
        execution_id,
        status=Status.FAILED,
        stage=stage,
        error_message="no role",
        results=results,
    )
    return execution_id


async def test_a_retry_queues_a_failed_execution(serve):
    nudges = []

    async def nudge():
        nudges.append(1)

    service = serve(nudge)
    execution_id = await fail(service, Stage.REGISTER, Manifest(output_files=()))
    nudges.clear()
    response = await service.client.post(f"{URL}/{execution_id}/retry")
    assert response.status_code == 202
    body = StatusBody.model_validate(response.json())
    assert (body.status, body.stage, body.position) == (Status.QUEUED, Stage.REGISTER, 0)
    assert (body.error_message, body.end_time) == (None, None)
    again = await service.client.post(f"{URL}/{execution_id}/retry")
    assert again.status_code == 409
    assert "the execution is queued" in again.json()["detail"]
    assert nudges


async def test_a_retry_of_an_unknown_execution(service):
    for path in (f"{URL}/exec_1_00000000/retry", "/v1/infer/no/exec_1_00000000/retry"):
        assert (await service.client.post(path)).status_code == 404


async def test_a_retry_is_refused_while_the_queue_is_full(serve):
    service = serve(queue={"max_size": 1})
    execution_id = await fail(service, Stage.INFERENCE, None)
    assert (await submit(service)).status_code == 200
    response = await service.client.post(f"{URL}/{execution_id}/retry")
    assert response.status_code == 429
    assert response.headers["retry-after"]
    assert service.store.read(execution_id).status == Status.FAILED


async def test_files_are_available_during_their_delivery(service):
    execution_id = await service.completed({"results.nc": b"abc"})
    other = await fail(service, Stage.UPLOAD, Manifest(output_files=()))
    folder = service.options.storage.results_dir / WORKFLOW
    (folder / other).mkdir()
    (folder / other / "results.nc").write_bytes(b"abc")
    await service.client.post(f"{URL}/{other}/retry")
    for delivered in (execution_id, other):
        response = await service.client.get(f"{URL}/{delivered}/results/results.nc")
        assert (response.status_code, response.content) == (200, b"abc")
    assert (await service.client.get(f"{URL}/{other}/results")).status_code == 202


async def test_a_signed_link_is_in_the_response_but_not_in_the_store(serve, store):
    service = serve(delivery=RULES, signed_url_s=600.0)
    calls = []

    async def sign(*args):
        calls.append(args)
        if len(calls) > 1:
            raise RuntimeError("the BlobUploader is not available")
        return f"{DATA}/x?sig=secret"

    app = create_app(service.options, store, no_nudge, sign=sign)
    signing = Service(app, service.options, store)
    response = await submit(signing, container_url=DATA)
    execution_id = response.json()["execution_id"]
    signing.conductor.start()
    manifest = Manifest(output_files=(), uploaded=UploadTotals(files=1, bytes=1))
    store.update(signing.conductor.fence, execution_id, results=manifest, status=Status.COMPLETED)
    body = (await signing.client.get(f"{URL}/{execution_id}/results")).json()
    assert body["signed_url"] == f"{DATA}/x?sig=secret"
    assert calls == [(parse_container(DATA), WORKFLOW, execution_id, 600.0)]
    assert "secret" not in store.read(execution_id).model_dump_json()
    assert "secret" not in store.manifest(execution_id).model_dump_json()
    # A failure to sign does not fail the response.
    again = await signing.client.get(f"{URL}/{execution_id}/results")
    assert again.status_code == 200 and "signed_url" not in again.json()

    not_uploaded = await signing.completed()
    body = (await signing.client.get(f"{URL}/{not_uploaded}/results")).json()
    assert "signed_url" not in body and len(calls) == 2
    await signing.client.aclose()
