"""Upload of chunks to a real Azurite while others are still computed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.blob_uploader.messages import UploadJob
from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from deployments.runtime.failures import TransientFailure
from deployments.runtime.metrics import UPLOADED_BYTES
from tests.deployments.blob_uploader.uploads import (
    EXECUTION,
    FOLDER,
    blobs,
    make_uploader,
    uploaded,
)
from tests.deployments.results.samples import PROVENANCE, fields, make_plan
from tests.emulators.azurite import Azurite
from tests.emulators.flaky_proxy import FlakyProxy
from tests.measured import Measured
from workflows.delivery import Container
from workflows.errors import UploadFailed

PLAN = make_plan(n_steps=2, seeds=(1, 2))
ALL = [(member, time_index) for member in PLAN.members for time_index in range(PLAN.n_times)]
LIMIT_S = 20.0


class Place:
    """An execution that is being computed, and its uploader."""

    def __init__(self, root: Path, azurite: Azurite, measured: Measured) -> None:
        self.results_dir, self.work_dir = root / "results", root / "work"
        self.store = ResultsStore(DiskStorage(self.results_dir, self.work_dir))
        self.measured = measured
        self._azurite = azurite
        self.uploader = self.another_uploader()
        self.store.create(PLAN, EXECUTION, PROVENANCE, 1)

    def another_uploader(self, **changes: Any) -> Any:
        return make_uploader(
            self.results_dir,
            self._azurite.ca_file,
            work_dir=self.work_dir,
            metrics=self.measured,
            **changes,
        )

    def write(self, *steps: tuple[int, int]) -> None:
        for member, time_index in steps:
            self.store.write_step(
                EXECUTION, 1, member, time_index, fields(PLAN, member, time_index)
            )

    def finish(self) -> None:
        self.store.add_file(EXECUTION, 1, "metadata.json", b"{}")
        self.store.describe(EXECUTION, 1, extra=["metadata.json"])

    def chunks(self) -> set[str]:
        folder = self.results_dir / FOLDER
        paths = (folder / "results.zarr").glob("*/c/*/*/0/0")
        names = {str(path.relative_to(folder)) for path in paths}
        return {name for name in names if name.split("/")[1] in PLAN.variables}


@pytest.fixture
def place(tmp_path: Path, azurite: Azurite) -> Place:
    return Place(tmp_path, azurite, Measured())


def job_for(container: Container) -> UploadJob:
    return UploadJob(workflow=PLAN.workflow, execution_id=EXECUTION, container=container)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def following(place: Place, container: Container, fence: int = 1) -> asyncio.Task[None]:
    ahead: Awaitable[None] = place.uploader.upload_ahead(job_for(container), fence)
    return asyncio.ensure_future(ahead)  # type: ignore[return-value]


async def test_chunks_are_uploaded_as_they_are_written_and_not_sent_again(
    place: Place, azurite: Azurite, container: Container
) -> None:
    place.write(*ALL[:2])
    task = following(place, container)
    await until(lambda: blobs(azurite, container).keys() == place.chunks())
    assert len(place.chunks()) == 2 * len(PLAN.variables)
    assert not task.done()
    place.write(*ALL[2:])
    await asyncio.wait_for(task, LIMIT_S)
    assert blobs(azurite, container).keys() == place.chunks()
    place.finish()
    done = await uploaded(place.uploader, container)
    chunks = len(ALL) * len(PLAN.variables)
    assert done.uploaded_files == done.files - chunks
    assert place.measured.total(UPLOADED_BYTES) == done.bytes
    for key, blob in blobs(azurite, container).items():
        assert blob.content_settings.content_md5 is not None, key
        assert blob.size == (place.results_dir / FOLDER / key).stat().st_size


async def test_a_second_call_sends_what_is_missing(
    place: Place, azurite: Azurite, proxied_container: Container, proxy: FlakyProxy
) -> None:
    place.write(*ALL[:3])
    task = following(place, proxied_container)
    await until(lambda: len(blobs(azurite, proxied_container)) == len(place.chunks()))
    await cancelled(task)
    before = len(proxy.asked("PUT "))
    place.write(*ALL[3:])
    place.uploader = place.another_uploader()
    await asyncio.wait_for(following(place, proxied_container), LIMIT_S)
    assert blobs(azurite, proxied_container).keys() == place.chunks()
    assert len(proxy.asked("PUT ")) - before == len(place.chunks()) - before


async def test_chunks_that_arrive_after_the_removal_of_the_execution_are_removed(
    place: Place, azurite: Azurite, proxied_container: Container, proxy: FlakyProxy
) -> None:
    proxy.delay(1.0, meant="PUT .*zarr", times=100)
    place.write(*ALL)
    task = following(place, proxied_container)
    await until(lambda: bool(proxy.asked("PUT ")))
    place.store.purge(PLAN.workflow, EXECUTION)
    await place.uploader.withdraw(job_for(proxied_container))
    assert not blobs(azurite, proxied_container)
    await cancelled(task)
    assert not blobs(azurite, proxied_container)


async def test_it_ends_when_the_execution_is_removed(place: Place, container: Container) -> None:
    place.write(*ALL[:1])
    task = following(place, container)
    place.store.purge(PLAN.workflow, EXECUTION)
    await asyncio.wait_for(task, LIMIT_S)


async def test_it_ends_when_another_conductor_takes_over(
    place: Place, container: Container
) -> None:
    """A dead Conductor cancels nothing, and its call would occupy the uploader."""
    place.write(*ALL[:1])
    of_the_dead, task = following(place, container), following(place, container, fence=2)
    place.store.write_step(EXECUTION, 2, *ALL[1], fields(PLAN, *ALL[1]))
    await asyncio.wait_for(of_the_dead, LIMIT_S)
    assert not task.done()
    place.store.purge(PLAN.workflow, EXECUTION)
    await asyncio.wait_for(task, LIMIT_S)


async def test_withdrawals_leave_no_threads(place: Place, container: Container) -> None:
    place.write(*ALL)
    await asyncio.wait_for(following(place, container), LIMIT_S)
    place.store.purge(PLAN.workflow, EXECUTION)
    before = threading.active_count()
    for _ in range(3):
        await place.uploader.withdraw(job_for(container))
    assert threading.active_count() <= before + 1


async def test_a_withdrawal_stops_with_its_caller(
    place: Place, azurite: Azurite, proxied_container: Container, proxy: FlakyProxy
) -> None:
    """Blobs that appear later may belong to the next attempt."""
    place.write(*ALL)
    await asyncio.wait_for(following(place, proxied_container), LIMIT_S)
    chunks = place.chunks()
    place.store.purge(PLAN.workflow, EXECUTION)
    proxy.delay(1.0, meant="HEAD ", times=1)
    task = asyncio.ensure_future(place.uploader.withdraw(job_for(proxied_container)))
    await until(lambda: bool(proxy.asked("HEAD ")))
    await cancelled(task)
    await asyncio.sleep(2.0)
    assert blobs(azurite, proxied_container).keys() == chunks


async def test_current_and_complete_results_are_not_withdrawn(
    place: Place, azurite: Azurite, container: Container
) -> None:
    place.write(*ALL)
    await asyncio.wait_for(following(place, container), LIMIT_S)
    # As a dead Conductor may have called it: a new attempt has started.
    await place.uploader.withdraw(job_for(container))
    assert blobs(azurite, container).keys() == place.chunks()
    place.finish()
    done = await uploaded(place.uploader, container)
    place.store.purge(PLAN.workflow, EXECUTION)
    await place.uploader.withdraw(job_for(container))
    assert len(blobs(azurite, container)) == done.files


async def test_blobs_removed_during_an_upload_are_noticed_before_the_checksums_are_sent(
    place: Place, azurite: Azurite, proxied_container: Container, proxy: FlakyProxy
) -> None:
    place.write(*ALL)
    await asyncio.wait_for(following(place, proxied_container), LIMIT_S)
    place.finish()
    proxy.delay(1.0, meant="PUT .*metadata.json", times=1)
    task = asyncio.create_task(uploaded(place.uploader, proxied_container))
    await until(lambda: bool(proxy.asked("PUT .*metadata.json")))
    key = min(place.chunks())
    with azurite.client(proxied_container) as client:
        client.delete_blob(f"{proxied_container.prefix}/{FOLDER}/{key}")
    with pytest.raises(TransientFailure, match="removed during the upload"):
        await task
    assert "checksums.sha256" not in blobs(azurite, proxied_container)
    done = await uploaded(place.uploader, proxied_container)
    assert len(blobs(azurite, proxied_container)) == done.files and key in blobs(
        azurite, proxied_container
    )


async def test_a_chunk_damaged_on_its_way_is_sent_again(
    place: Place, azurite: Azurite, proxied_container: Container, proxy: FlakyProxy
) -> None:
    # Azure's code for a body with another MD5; Azurite has another one.
    proxy.answer(400, "Md5Mismatch", meant="PUT .*c/0/0/0", times=1)
    place.write(*ALL)
    await asyncio.wait_for(following(place, proxied_container), LIMIT_S)
    place.finish()
    await uploaded(place.uploader, proxied_container)
    with azurite.client(proxied_container) as client:
        for key in place.chunks():
            found = client.download_blob(f"{proxied_container.prefix}/{FOLDER}/{key}").readall()
            assert found == (place.results_dir / FOLDER / key).read_bytes()


async def test_a_refusal_is_reported(place: Place, azurite: Azurite, container: Container) -> None:
    place.write(*ALL)
    missing = container.model_copy(update={"name": "nobody-made-this"})
    with pytest.raises(UploadFailed, match="create the container first"):
        await following(place, missing)


async def test_it_can_be_switched_off(place: Place, azurite: Azurite, container: Container) -> None:
    place.write(*ALL)
    place.uploader = place.another_uploader(upload_ahead=False)
    await following(place, container)
    assert not blobs(azurite, container)
