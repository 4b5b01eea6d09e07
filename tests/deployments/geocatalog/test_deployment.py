"""The GeoCatalog deployment against an emulator: what it registers and reports."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.azure.options import AzureOptions, CredentialOptions
from deployments.geocatalog.deployment import GeoCatalog
from deployments.geocatalog.messages import Registered, Registration
from deployments.geocatalog.options import GeoCatalogOptions
from deployments.runtime.failures import TransientFailure
from deployments.runtime.log_context import current_execution
from deployments.runtime.metrics import RAY, REGISTRATIONS, Recorder
from tests.deployments.results.samples import PROVENANCE, make_nowcast_plan, make_plan
from tests.emulators.certificates import make_certificate
from tests.emulators.geocatalog import Course, GeoCatalogEmulator
from tests.emulators.loopback import ForeignServer
from tests.measured import Measured
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import IngestionFailed
from workflows.stac.renders import render_options

SECRET = "PLANTED-5e0d"  # noqa: S105 - what must not leak
BASE = "https://account.blob.core.windows.net/results/foundry"


class Deployed(GeoCatalog.func_or_class):  # type: ignore[name-defined, misc]
    """The deployment without its asynchronous destructor, which only Serve awaits."""

    def __del__(self) -> None:
        pass


NewDeployment = Callable[..., Any]


@pytest.fixture
def emulator() -> Iterator[GeoCatalogEmulator]:
    with GeoCatalogEmulator(polls=0, creates_at_once=True) as emulator:
        yield emulator


@pytest.fixture
async def new_deployment(
    emulator: GeoCatalogEmulator, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[NewDeployment]:
    # The deployment hides GPUs; this restores the variable after the test.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = []

    def make(
        ca_file: Path | None = None,
        allowed: tuple[str, ...] | None = None,
        metrics: Recorder = RAY,
        **credential: Any,
    ) -> Any:
        azure = AzureOptions(
            credential=CredentialOptions(
                loader="tests.emulators.tokens:EmulatorCredential",
                options={"secret": SECRET} | credential,
            ),
            ca_file=ca_file,
        )
        if allowed is None:
            allowed = (emulator.url,)
        options = GeoCatalogOptions(azure=azure, allowed=allowed, time_limit_s=30)
        made.append(Deployed(options, metrics))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def registration(
    url: str, plan: Plan | None = None, execution_id: str = "abc", **changes: Any
) -> Registration:
    plan = plan or make_plan()
    result = "results.zarr" if plan.output_format == "zarr" else "results.nc"
    values: dict[str, Any] = {
        "execution_id": execution_id,
        "geo_catalog_url": url,
        "plan": plan,
        "provenance": PROVENANCE,
        "files": {
            result: (1000, None if result.endswith("zarr") else "a" * 64),
            "preview.png": (10, "b" * 64),
            "metadata.json": (10, "c" * 64),
        },
        "base_href": f"{BASE}/{execution_id}",
        **changes,
    }
    return Registration(**values)


async def test_a_forecast_is_registered_as_an_item(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    plan = make_plan()
    registered = await new_deployment().register(registration(emulator.url, plan))
    collection_id = "earth2serve-foundry-fcn3-workflow"
    collection_url = f"{emulator.url}/stac/collections/{collection_id}"
    assert registered == Registered(
        geo_catalog_url=emulator.url,
        collection_id=collection_id,
        item_id="fcn3-20250101T0600Z-abc",
        item_url=f"{collection_url}/items/fcn3-20250101T0600Z-abc",
    )
    assert set(emulator.collections) == {collection_id}
    item = emulator.items[collection_id, registered.item_id]
    assert item["assets"]["data"]["href"] == f"{BASE}/abc/results.zarr"
    assert {link["href"] for link in item["links"]} == {collection_url}
    assert item["properties"]["end_datetime"] == "2025-01-01T18:00:00Z"
    options = {option["id"]: option for option in render_options(plan)}
    assert options and emulator.render_options[collection_id] == options
    ours = [record for record in caplog.records if record.name == "ray.serve"]
    assert [record.getMessage() for record in ours] == [f"registered abc as {registered.item_url}"]
    about = current_execution()
    assert about is not None
    assert (about.execution_id, about.workflow, about.stage) == ("abc", plan.workflow, "register")
    assert SECRET not in caplog.text and "eyJ" not in caplog.text


async def test_a_nowcast_in_netcdf_gets_a_kerchunk_asset(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator
) -> None:
    plan = make_nowcast_plan(output_format="netcdf4")
    registered = await new_deployment().register(
        registration(emulator.url, plan, collection_id="goes")
    )
    assert registered.collection_id == "goes"
    item = emulator.items["goes", registered.item_id]
    assert "data-kerchunk" in item["assets"]
    for option in emulator.render_options["goes"].values():
        assert "data-kerchunk" in option["options"]


async def test_only_registered_items_are_counted(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator
) -> None:
    measured = Measured()
    with pytest.raises(IngestionFailed):
        await new_deployment(allowed=(), metrics=measured).register(registration(emulator.url))
    assert measured.values(REGISTRATIONS) == []
    await new_deployment(metrics=measured).register(registration(emulator.url))
    assert measured.values(REGISTRATIONS, workflow=make_plan().workflow) == [1]


async def test_a_catalogue_with_tls(new_deployment: NewDeployment, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with GeoCatalogEmulator(certificate, polls=0, creates_at_once=True) as emulator:
        deployment = new_deployment(certificate[0], allowed=(emulator.url,))
        await deployment.register(registration(emulator.url))
        assert len(emulator.items) == 1


async def test_a_catalogue_that_is_no_longer_allowed_is_not_called(
    emulator: GeoCatalogEmulator, new_deployment: NewDeployment
) -> None:
    deployment = new_deployment(allowed=("https://other.example",))
    with pytest.raises(IngestionFailed, match="not in args.azure.geocatalog.allowed any more"):
        await deployment.register(registration(emulator.url))
    assert emulator.requests == []


async def test_concurrent_registrations_share_a_new_collection(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator
) -> None:
    emulator.creates_at_once = False
    one, other = new_deployment(), new_deployment()
    await asyncio.gather(
        *(
            deployment.register(registration(emulator.url, execution_id=execution_id))
            for deployment in (one, other)
            for execution_id in ("a", "b", "c")
        )
    )
    assert len(emulator.collections) == 1
    assert len(emulator.items) == 3
    kinds = [operation.kind for operation in emulator.operations.values()]
    assert kinds.count("CollectionCreate") == 1


async def test_a_cancelled_registration_can_be_repeated(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator
) -> None:
    emulator.run_next(Course(polls=4))
    killed = asyncio.create_task(new_deployment().register(registration(emulator.url)))
    for _ in range(10_000):
        if emulator.calls("POST", "items$"):
            break
        await asyncio.sleep(0.001)
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    registered = await new_deployment().register(registration(emulator.url))
    assert [item_id for _, item_id in emulator.items] == [registered.item_id]
    kinds = [operation.kind for operation in emulator.operations.values()]
    assert kinds.count("ItemCreate") == 1


async def test_a_failure_is_raised_and_not_logged_as_success(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    emulator.run_next(Course(0, "Failed", "AssetNotFound", "no such blob"))
    with pytest.raises(IngestionFailed, match="AssetNotFound: no such blob"):
        await new_deployment().register(registration(emulator.url))
    assert "registered" not in caplog.text
    assert SECRET not in caplog.text


async def test_a_credential_that_refuses(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(IngestionFailed, match="got no token for") as failed:
        await new_deployment(refuse=True).register(registration(emulator.url))
    assert SECRET not in str(failed.value) and SECRET not in caplog.text
    assert emulator.requests == []


async def test_an_unavailable_catalogue(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator
) -> None:
    emulator.fail_next("GET", "", status=503, times=100, headers={"Retry-After": "0"})
    with pytest.raises(TransientFailure, match="503 Service Unavailable"):
        await new_deployment().register(registration(emulator.url))


async def test_tokens_are_sent_to_the_catalogue_only(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator
) -> None:
    with ForeignServer() as foreign:
        emulator.run_next(Course(0, location=f"{foreign.url}/inma/operations/{{id}}"))
        with pytest.raises(IngestionFailed, match="another host"):
            await new_deployment().register(registration(emulator.url))
        assert foreign.requests == []


async def test_messages_survive_pickling() -> None:
    sent = registration("https://catalog.example")
    assert isinstance(sent.provenance, Provenance)
    assert pickle.loads(pickle.dumps(sent)) == sent


async def test_shutdown_closes_credentials(
    new_deployment: NewDeployment, emulator: GeoCatalogEmulator
) -> None:
    deployment = new_deployment()
    await deployment.register(registration(emulator.url))
    await deployment.register(registration(emulator.url))
    (client,) = deployment._clients.values()
    await GeoCatalog.func_or_class.__del__(deployment)  # type: ignore[attr-defined]
    assert client._credential.closed
    # It does not fail after a constructor that failed, either.
    await GeoCatalog.func_or_class.__del__(Deployed.__new__(Deployed))  # type: ignore[attr-defined]
