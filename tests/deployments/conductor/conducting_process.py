"""A process that conducts with stand-in deployments and writes down what it calls.

``python -m tests.deployments.conductor.conducting_process STORE JOURNAL [STEP_S [WORKFLOW]]``

The journal gets one line per call, so that a test can kill the process and look at what its
successor does again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from dbos import DBOS

import deployments.conductor.deployment as conductor
from deployments.blob_uploader.messages import Uploaded, UploadProgress
from deployments.conductor.loop import ConductorLoop, conduct_here
from deployments.geocatalog.messages import Registered
from deployments.models.messages import MemberProgress
from deployments.results.protocols import CompletedMembers, StoredExecution
from workflows.dataset import Origin, Provenance
from workflows.manifest import Manifest, OutputFile
from workflows.readiness import Ready

DEPLOYMENTS = ("packager", "initial_conditions", "fcn3", "blob_uploader", "geocatalog")


class Response:
    """Stands in for a handle's response: awaitable, iterable, can be cancelled."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self._task: asyncio.Task[Any] | None = None

    def __await__(self) -> Any:
        self._task = asyncio.ensure_future(self._made)
        return self._task.__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._made.__aiter__()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *args: Any) -> Response:
        return Response(self._call(*args))


class Handle:
    """Stands in for a deployment's handle: ``handle.method.remote(…)`` calls the object's."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._deployment, name))


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line + "\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


class StandIns:
    """All deployments in one: they do nothing but write down that they were called.

    Parameters
    ----------
    before : mapping of str to callable
        Called with the arguments before a method notes that it is done: may wait or raise.
    """

    def __init__(
        self,
        journal: Journal,
        step_s: float = 0.0,
        before: dict[str, Callable[..., Awaitable[None]]] | None = None,
    ) -> None:
        self._journal = journal
        self._step_s = step_s
        self._before = before or {}
        self.begun = CompletedMembers()
        """What `create` finds of an earlier attempt."""
        self.firsts: dict[int, int] = {}
        """Time index at which a member goes on."""

    async def _call(self, line: str, *args: Any) -> None:
        method = line.split()[0]
        if method in self._before:
            await self._before[method](*args)
        self._journal.note(line)

    async def check_readiness(self, *_: Any) -> Ready:
        return Ready(origin=Origin(name="stand-in", synthetic=True))

    async def create(self, plan: Any, execution_id: str, *_: Any) -> CompletedMembers:
        await self._call("create", execution_id)
        return self.begun

    async def fetch(self, plan: Any, execution_id: str) -> str:
        await self._call("fetch", execution_id)
        return "initial_conditions.npy"

    async def forecast_member(self, job: Any) -> AsyncIterator[MemberProgress]:
        self._journal.note(f"begin {job.member}")
        try:
            first = self.firsts.get(job.member, 0)
            for written in range(first + 1, job.plan.n_times + 1):
                await asyncio.sleep(self._step_s)
                if "step" in self._before:
                    await self._before["step"](job, written)
                yield MemberProgress(written=written, first=first)
            await self._call(f"member {job.member}", job)
        except (asyncio.CancelledError, GeneratorExit):
            self._journal.note(f"stopped {job.member}")
            raise

    async def export_netcdf(self, execution_id: str, fence: int) -> None:
        await self._call("export", execution_id)

    async def describe_result(self, execution_id: str, fence: int) -> Manifest:
        await self._call("describe_result", execution_id)
        return Manifest(
            output_files=(OutputFile(path=f"{execution_id}/results.zarr/zarr.json", size=1),),
            assets={"results.zarr": (1, None)},
            provenance=Provenance(model=Origin(name="fcn3"), data_source=Origin(name="ifs")),
        )

    async def upload(self, job: Any) -> AsyncIterator[UploadProgress | Uploaded]:
        for sent in (10, 20):
            yield UploadProgress(bytes=sent, total_bytes=20, files=sent // 10, total_files=2)
            await asyncio.sleep(self._step_s)
        await self._call("upload", job)
        url = f"{job.container.url}/{job.workflow}/{job.execution_id}"
        yield Uploaded(
            url=url, container=job.container, files=2, bytes=20, uploaded_files=2, uploaded_bytes=20
        )

    async def upload_ahead(self, job: Any, fence: int) -> None:
        if "ahead" in self._before:
            await self._before["ahead"](job)

    async def withdraw(self, job: Any) -> None:
        await self._call("withdraw", job)

    async def register(self, registration: Any) -> Registered:
        await self._call("register", registration)
        return Registered(
            geo_catalog_url=registration.geo_catalog_url,
            collection_id=registration.collection_id or "collection",
            item_id=f"item-{registration.execution_id}",
            item_url=f"{registration.geo_catalog_url}/item",
        )

    async def clean(self, execution_id: str) -> None:
        await self._call("clean", execution_id)

    async def purge(self, workflow: str, execution_id: str) -> None:
        await self._call("purge", execution_id)

    async def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        return []


def conducting(store_url: str, stand_ins: StandIns, **settings: Any) -> ConductorLoop:
    """Conduct in this process; the caller runs and stops it."""
    handle = Handle(stand_ins)
    made = ConductorLoop(
        conductor.execute,
        dict.fromkeys(DEPLOYMENTS, handle),  # type: ignore[arg-type]
        settings.pop("components", {"fcn3": "fcn3", "ifs": "initial_conditions"}),
        store_url=store_url,
        **{
            "max_running": {"foundry_fcn3_workflow": 2},
            "drain_s": 0.1,
            "replicas": {"fcn3": 4},
            **settings,
        },
    )
    conduct_here(made)
    return made


async def _main(store_url: str, journal: Journal, step_s: float) -> None:
    made = conducting(store_url, StandIns(journal, step_s))
    journal.note("launched")
    await made.run()


if __name__ == "__main__":
    if len(sys.argv) > 4:
        # An edit of the code, as far as DBOS can tell: its hash covers registered workflows.
        @DBOS.workflow(name=sys.argv[4])
        async def another() -> None:
            """Do nothing."""

    asyncio.run(_main(sys.argv[1], Journal(Path(sys.argv[2])), float(sys.argv[3])))
