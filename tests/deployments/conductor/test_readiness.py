"""The watch over components: what it records in the store, and what it remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from deployments.conductor.origins import Origins
from deployments.conductor.readiness import ReadinessWatch
from deployments.store.conductor_view import ConductorStore
from workflows.custom import WorkflowDescription
from workflows.dataset import Origin
from workflows.readiness import ComponentStatus, NotReady, Ready

ORIGIN = Origin(name="storms", loader="users:Storms")


class CountingStore(ConductorStore):
    """Counts what is written."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.descriptions: list[tuple[str, Any]] = []
        self.readiness_writes = 0

    def set_description(self, fence: int, workflow: str, description: Mapping[str, Any]) -> None:
        super().set_description(fence, workflow, description)
        self.descriptions.append((workflow, description["description"]))

    def set_readiness(self, fence: int, component: str, status: ComponentStatus) -> None:
        super().set_readiness(fence, component, status)
        self.readiness_writes += 1


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(f"sqlite:///{tmp_path}/executions.sqlite")


class Replica:
    """Stands in for the handle of a deployment; answers in turn, and repeats the last answer."""

    def __init__(self, *answers: ComponentStatus | Exception) -> None:
        self._answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []

    @property
    def check_readiness(self) -> Replica:
        return self

    def remote(self, *arguments: Any) -> Awaitable[ComponentStatus]:
        self.calls.append(arguments)
        return self._answer()

    async def _answer(self) -> ComponentStatus:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def described(text: str = "tracks of storms") -> WorkflowDescription:
    return WorkflowDescription(description=text, parameters_schema={})


def ready(text: str | None = None) -> Ready:
    return Ready(origin=ORIGIN, description=described(text) if text else None)


@asynccontextmanager
async def watched(
    store: CountingStore, replica: Replica, checks: int = 2
) -> AsyncIterator[Origins]:
    """Watch one component, and yield the origins after a number of checks."""
    fence, origins = store.issue_fence(), Origins(["storms"])

    async def write(method: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(partial(method, fence, *arguments))

    watch = ReadinessWatch({"storms": "storms"}, {"storms": replica}, store, write, origins)  # type: ignore[dict-item]
    task = asyncio.create_task(watch.run())
    try:
        for _ in range(500):
            if store.readiness_writes >= checks or task.done():
                break
            await asyncio.sleep(0.01)
        assert store.readiness_writes == checks
        yield origins
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_description_is_recorded_once(store: CountingStore) -> None:
    replica = Replica(ready("tracks of storms"))
    async with watched(store, replica) as origins:
        assert store.descriptions == [("storms", "tracks of storms")]
        assert store.readiness()["storms"].ready
        assert await origins.wait("storms") == ORIGIN
    assert replica.calls == [(), ()]
    assert store.description("storms") == described().model_dump()


async def test_a_changed_description_is_recorded(store: CountingStore) -> None:
    replica = Replica(ready("tracks of storms"), ready("tracks of strong storms"))
    async with watched(store, replica):
        pass
    assert [text for _, text in store.descriptions] == [
        "tracks of storms",
        "tracks of strong storms",
    ]


async def test_a_workflow_can_be_described_before_it_is_ready(store: CountingStore) -> None:
    status = NotReady(reason="FileNotFoundError: no weights", description=described())
    async with watched(store, Replica(status), checks=1) as origins:
        state = store.readiness()["storms"]
        assert (state.ready, state.reason) == (False, "FileNotFoundError: no weights")
        assert await origins.wait("storms") == Origin(name="storms")
    assert store.description("storms") == described().model_dump()


async def test_the_reason_of_a_component_that_is_not_ready_is_recorded(
    store: CountingStore,
) -> None:
    status = NotReady(reason="ModuleNotFoundError: No module named 'users'")
    async with watched(store, Replica(status), checks=1):
        state = store.readiness()["storms"]
        assert (state.ready, state.reason) == (
            False,
            "ModuleNotFoundError: No module named 'users'",
        )
    assert store.description("storms") is None


async def test_a_description_survives_the_replica(store: CountingStore) -> None:
    replica = Replica(ready("tracks of storms"), RayActorError(error_msg="the actor died"))
    async with watched(store, replica) as origins:
        state = store.readiness()["storms"]
        assert not state.ready
        assert state.reason is not None and "the actor died" in state.reason
        # Its next replica may have another model.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(origins.wait("storms"), 0.05)
    assert store.description("storms") == described().model_dump()
