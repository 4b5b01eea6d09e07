"""Routes of health, readiness, liveness and metrics."""

import re
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from deployments.store.schema import conductors
from serve_app.http.schemas import HealthBody, ReadinessBody
from tests.serve_app.conftest import WORKFLOW
from workflows.dataset import Origin
from workflows.execution import Status
from workflows.readiness import NotReady, Ready

READY = Ready(origin=Origin(name="fcn3"))


def record(service, component, status):
    conductor = service.conductor
    conductor.store.set_readiness(conductor.fence, component, status)


def set_heartbeat_age(service, age_s):
    heartbeat = datetime.now(UTC) - timedelta(seconds=age_s)
    with service.store.engine.begin() as connection:
        connection.execute(sa.update(conductors).values(heartbeat_at=heartbeat))


async def test_liveness(service):
    response = await service.client.get("/liveness")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_health_depends_on_the_heartbeat(service):
    response = await service.client.get("/health")
    assert response.status_code == 200
    assert HealthBody.model_validate(response.json()).timestamp.utcoffset() == timedelta(0)
    set_heartbeat_age(service, 14)
    assert (await service.client.get("/health")).status_code == 200
    set_heartbeat_age(service, 16)
    response = await service.client.get("/health")
    assert response.status_code == 503
    assert response.json()["detail"]["status"] == "unhealthy"
    assert "silent for 16 s" in response.json()["detail"]["reason"]


async def test_health_without_a_store(service):
    with service.store.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE conductors"))
    response = await service.client.get("/health")
    assert response.status_code == 503
    assert response.json()["detail"]["status"] == "unhealthy"
    assert "conductors" not in response.text


async def test_readiness_of_workflows(service):
    response = await service.client.get("/readiness")
    assert response.status_code == 503
    reason = response.json()["detail"]["workflows"][WORKFLOW]["reason"]
    assert reason == "fcn3: not checked yet; ifs: not checked yet"

    record(service, "fcn3", READY)
    record(service, "ifs", NotReady(reason="no route to host"))
    detail = (await service.client.get("/readiness")).json()["detail"]
    assert detail["status"] == "unhealthy"
    assert detail["workflows"] == {WORKFLOW: {"ready": False, "reason": "ifs: no route to host"}}

    record(service, "ifs", READY)
    response = await service.client.get("/readiness")
    assert response.status_code == 200
    body = ReadinessBody.model_validate(response.json())
    assert body.workflows[WORKFLOW].ready

    set_heartbeat_age(service, 100)
    detail = (await service.client.get("/readiness")).json()["detail"]
    assert "Conductor" in detail["workflows"][WORKFLOW]["reason"]


async def test_a_warmup_workflow_does_not_affect_readiness(serve):
    service = serve(exposed=(), warmup=(WORKFLOW,))
    response = await service.client.get("/readiness")
    assert (response.status_code, response.json()["workflows"]) == (200, {})


async def test_metrics_are_prometheus_text(service):
    await service.submit()
    await service.submit()
    service.conductor.start()
    record(service, 'odd"name\\\n', NotReady(reason="odd"))
    response = await service.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = response.text.splitlines()
    for status, count in {Status.QUEUED: 1, Status.RUNNING: 1, Status.FAILED: 0}.items():
        sample = f'earth2serve_executions{{workflow="{WORKFLOW}",status="{status}"}} {count}'
        assert sample in lines
    assert "earth2serve_queue_depth 1" in lines
    assert "earth2serve_queue_limit 20" in lines
    assert r'earth2serve_component_ready{component="odd\"name\\\n"} 0' in lines
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    for line in lines:
        if not line.startswith("#"):
            assert re.fullmatch(r'(\w+)(\{(\w+="([^"\\]|\\.)*",?)+\})? [0-9.e+-]+', line), line
            assert re.match(r"\w+", line)[0] in names
