"""The HTTP API on a real execution store, with a stand-in for the Conductor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from deployments.runtime.metrics import RAY, Recorder
from deployments.store.conductor_view import ConductorStore
from serve_app.files.buffers import Buffers
from serve_app.http.create_app import create_app
from serve_app.http.options import IngressOptions
from workflows.execution import Execution, Progress, Stage, Status
from workflows.manifest import Manifest

WORKFLOW = "foundry_fcn3_workflow"
URL = f"/v1/infer/{WORKFLOW}"
MANIFEST = {
    "output_files": [{"path": "ID/results.zarr/zarr.json", "size": 12, "sha256": "f" * 64}],
    "storage_type": "server",
    "device": "cpu",
}


class Conductor:
    """Writes to the store as the Conductor does."""

    def __init__(self, store: ConductorStore) -> None:
        self.store = store
        self.fence = store.issue_fence()

    def start(self) -> Execution:
        execution = self.store.claim_next(self.fence)
        assert execution is not None
        return execution

    def advance(self, execution_id: str, step: int) -> None:
        self.store.update(
            self.fence,
            execution_id,
            stage=Stage.INFERENCE,
            progress=Progress(
                message="inference",
                current_step=step,
                total_steps=8,
                members=(step, 0),
                steps_per_member=4,
            ),
        )

    def package(self, execution_id: str) -> None:
        self.store.update(
            self.fence,
            execution_id,
            status=Status.PENDING_RESULTS,
            results=Manifest.model_validate(MANIFEST),
        )

    def complete(self, execution_id: str) -> None:
        self.package(execution_id)
        self.store.update(self.fence, execution_id, status=Status.COMPLETED, stage=Stage.FINISH)

    def end(self, execution_id: str, status: Status, reason: str | None = None) -> None:
        self.store.update(self.fence, execution_id, status=status, error_message=reason)


class Service:
    """An application with its client, store and Conductor."""

    def __init__(self, app: FastAPI, options: IngressOptions, store: ConductorStore) -> None:
        self.app = app
        self.options = options
        self.store = store
        self.conductor = Conductor(store)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server", timeout=20
        )

    async def submit(self, **parameters: Any) -> str:
        response = await self.client.post(URL, json={"parameters": parameters})
        assert response.status_code == 200, response.text
        execution_id: str = response.json()["execution_id"]
        return execution_id

    async def completed(self, files: dict[str, bytes] | None = None) -> str:
        execution_id = await self.submit()
        self.conductor.start()
        self.conductor.complete(execution_id)
        folder = self.options.storage.results_dir / WORKFLOW / execution_id
        for name, content in (files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return execution_id


Serve = Callable[..., Service]


async def no_nudge() -> None:
    """Do nothing, like a Conductor that looks at the queue only when it polls."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConductorStore]:
    store = ConductorStore(f"sqlite:///{tmp_path}/store.db")
    yield store
    store.close()


@pytest.fixture
async def serve(store: ConductorStore, tmp_path: Path) -> AsyncIterator[Serve]:
    """Return a function that creates services; keyword arguments change their options."""
    made: list[Service] = []

    def make(
        nudge: Callable[[], Awaitable[None]] = no_nudge,
        catalogue: dict[str, Any] | None = None,
        metrics: Recorder = RAY,
        buffers: Buffers | None = None,
        **changes: Any,
    ) -> Service:
        options = IngressOptions(
            **{
                "store_url": "sqlite://",
                "storage": {"results_dir": tmp_path / "results", "work_dir": tmp_path / "work"},
                "exposed": (WORKFLOW,),
                "limits": {"max_output_gb": 1.0},
                "grid": {"n_lat": 19, "n_lon": 36},
                "components": {WORKFLOW: ("fcn3", "ifs")},
                **changes,
            }
        )
        more = {} if catalogue is None else {"catalogue": catalogue}
        app = create_app(options, store, nudge, metrics=metrics, buffers=buffers, **more)
        service = Service(app, options, store)
        made.append(service)
        return service

    yield make
    for service in made:
        await service.app.state.context.changes.close()
        await service.client.aclose()


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve()
