"""The assembled application: nudges, PostgreSQL, and its options."""

import asyncio

import pytest

from deployments.store.conductor_view import ConductorStore
from serve_app.http.create_app import create_app
from serve_app.http.options import IngressOptions
from tests.serve_app.conftest import URL, WORKFLOW, Service, no_nudge


async def test_submits_and_cancellations_nudge_the_conductor(serve):
    nudges = []

    async def nudge():
        nudges.append(1)

    service = serve(nudge=nudge)
    execution_id = await service.submit()
    await asyncio.sleep(0)
    assert len(nudges) == 1
    await service.client.delete(f"{URL}/{execution_id}")
    await asyncio.sleep(0)
    assert len(nudges) == 2
    await service.client.get(f"{URL}/{execution_id}/status")
    await asyncio.sleep(0)
    assert len(nudges) == 2


async def test_only_the_first_queued_execution_nudges(serve):
    nudges = []

    async def nudge():
        nudges.append(1)

    service = serve(nudge=nudge)
    for _ in range(3):
        await service.submit()
        await asyncio.sleep(0)
    assert len(nudges) == 1


async def test_requests_neither_wait_for_a_nudge_nor_fail_with_it(serve, caplog):
    release = asyncio.Event()
    nudges = []

    async def nudge():
        nudges.append(1)
        await release.wait()
        raise ConnectionError("no Conductor")

    service = serve(nudge=nudge)
    for execution_id in [await service.submit() for _ in range(5)]:
        await service.client.delete(f"{URL}/{execution_id}")
    await asyncio.sleep(0)
    assert len(nudges) == 1  # in progress; it is followed by one more, not by five
    release.set()
    await asyncio.sleep(0.05)
    assert len(nudges) == 2
    assert "no Conductor" in caplog.text
    await service.submit()
    await asyncio.sleep(0.05)
    assert len(nudges) == 3


async def test_postgresql_serves_the_same_api(postgres_database, tmp_path):
    store = ConductorStore(postgres_database)
    options = IngressOptions(
        store_url=postgres_database,
        storage={"results_dir": tmp_path, "work_dir": tmp_path},
        exposed=(WORKFLOW,),
        limits={"max_output_gb": 1000.0},
    )
    service = Service(create_app(options, store, no_nudge), options, store)
    execution_id = await service.submit(n_samples=1, n_steps=1)
    second = await service.submit(n_samples=1, n_steps=1)
    waiting = asyncio.create_task(service.client.get(f"{URL}/{second}/status?wait=10"))
    await asyncio.sleep(0.1)
    service.conductor.start()
    assert (await waiting).json()["position"] == 0
    response = (await service.client.get(f"{URL}/{execution_id}/status")).json()
    assert response["status"] == "running"
    assert len((await service.client.get(URL)).json()["executions"]) == 2
    # NUL is no text for PostgreSQL.
    for path, code in [("status", 404), ("results", 404), ("results/a", 404), ("results/c/0", 410)]:
        assert (await service.client.get(f"{URL}/a%00b/{path}")).status_code == code
    await service.app.state.context.changes.close()
    await service.client.aclose()
    store.close()


def test_the_store_password_is_not_in_the_repr_of_options():
    options = IngressOptions(
        store_url="postgresql+psycopg://u:hunter2@h/d",
        storage={"results_dir": "/tmp/r", "work_dir": "/tmp/w"},
        exposed=(),
    )
    assert "hunter2" not in repr(options)


def test_options_refuse_relative_paths_and_unknown_names():
    folders = {"results_dir": "/r", "work_dir": "/w"}
    for changes in ({"storage": {**folders, "results_dir": "results"}}, {"max_que": 3}):
        values = {"store_url": "sqlite://", "storage": folders, "exposed": ()}
        with pytest.raises(ValueError, match="absolute path|Extra inputs"):
            IngressOptions.model_validate({**values, **changes})


async def test_the_lifespan_passes_every_middleware(service):
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    await service.app({"type": "lifespan", "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
