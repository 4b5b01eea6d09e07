"""Stand-ins for the deployments that the Conductor calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from deployments.blob_uploader.messages import Uploaded, UploadProgress
from deployments.geocatalog.messages import Registered
from deployments.models.messages import MemberProgress
from deployments.results.messages import CompletedMembers, StoredExecution
from workflows.dataset import Origin, Provenance
from workflows.manifest import Manifest, OutputFile
from workflows.readiness import Ready


class Response:
    """A handle's response: awaitable, iterable and cancellable."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._task: asyncio.Task[Any] | None = None

    def __await__(self) -> Any:
        self._task = asyncio.ensure_future(self._answer)
        return self._task.__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._answer.__aiter__()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *args: Any) -> Response:
        return Response(self._call(*args))


class Handle:
    """A deployment's handle: ``handle.method.remote(…)`` calls the method of an object."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._deployment, name))


class Journal:
    """A file with one line per call, which survives the process that wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line + "\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


class StandIns:
    """All deployments in one object, which only notes its calls in a journal.

    Parameters
    ----------
    step_s : float
        Seconds that each time step of a member takes.
    before : mapping of str to callable
        Hooks by method: called with its arguments before it notes the call, to wait or raise.
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
        self.completed = CompletedMembers()
        """The members that `create` finds completed."""
        self.firsts: dict[int, int] = {}
        """Time index from which a member resumes."""

    async def _call(self, line: str, *args: Any) -> None:
        method = line.split()[0]
        if method in self._before:
            await self._before[method](*args)
        self._journal.note(line)

    async def check_readiness(self, *_: Any) -> Ready:
        return Ready(origin=Origin(name="stand-in", synthetic=True))

    async def create(self, plan: Any, execution_id: str, *_: Any) -> CompletedMembers:
        await self._call("create", execution_id)
        return self.completed

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


def failing(times: int, error: Exception) -> Callable[..., Awaitable[None]]:
    """Return a hook that raises an error a number of times."""
    remaining = times

    async def hook(*_: Any) -> None:
        nonlocal remaining
        if remaining:
            remaining -= 1
            raise error

    return hook
