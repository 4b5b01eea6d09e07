"""Expiry and the sweep of leftovers, with a real store, DBOS, Packager and folders."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOS

from deployments.conductor.options import RetentionOptions
from deployments.packager.deployment import Packager
from deployments.results.messages import CompletedMembers, StoredExecution
from deployments.results.options import StorageOptions
from deployments.store.conductor_view import ConductorStore
from deployments.store.disk_usage import Demand
from deployments.store.retention_view import RetentionView
from deployments.store.schema import deleted_executions, executions
from tests.deployments.conductor.harness import (
    conductor_loop,
    eventually,
    exists,
    finished,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns
from tests.deployments.store.records import on_both_databases_slowly
from workflows import Execution, Status
from workflows.errors import DiskFull, StageFailed

WORKFLOW = "foundry_fcn3_workflow"
EXPIRING = RetentionOptions(keep_s=0.3, look_s=0.05, sweep_s=3600)
SWEEPING = RetentionOptions(look_s=0.05, sweep_s=0.1, grace_s=0, keep_failed_s=0, settle_s=0)


class WithFolders(StandIns):
    """Stand-ins with folders, which a real Packager removes."""

    def __init__(self, journal: Journal, root: Path, **options: Any) -> None:
        super().__init__(journal, **options)
        self.results_dir, self.work_dir = root / "results", root / "work"
        self.sweeps = 0
        """Sweeps that have begun."""
        self._packager = Packager.func_or_class(  # type: ignore[attr-defined]
            StorageOptions(results_dir=self.results_dir, work_dir=self.work_dir)
        )

    async def create(self, plan: Any, execution_id: str, *arguments: Any) -> CompletedMembers:
        completed = await super().create(plan, execution_id, *arguments)
        self.plant(self.result(execution_id) / "results.zarr")
        self.plant(self.work_dir / execution_id / "steps")
        return completed

    async def clean(self, execution_id: str) -> None:
        await super().clean(execution_id)
        await self._packager.clean(execution_id)

    async def purge(self, workflow: str, execution_id: str) -> None:
        await super().purge(workflow, execution_id)
        await self._packager.purge(workflow, execution_id)

    async def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        self.sweeps += not after
        found: list[StoredExecution] = await self._packager.stored_executions(after, limit)
        return found

    def result(self, execution_id: str) -> Path:
        return self.results_dir / WORKFLOW / execution_id

    def plant(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "planted").write_bytes(b"planted")

    def plant_all(self, execution_id: str) -> None:
        """Create every kind of file that a crash can leave behind."""
        self.plant(self.work_dir / execution_id / "fences")
        self.plant(self.results_dir / ".partial" / execution_id)
        self.plant(self.results_dir / ".partial" / f"{execution_id}.purged")
        self.plant(self.result(execution_id) / "results.zarr")

    def files_of(self, execution_id: str) -> set[str]:
        # Unlike Path.glob, os.walk accepts that folders are removed meanwhile.
        root = self.results_dir.parent
        return {
            os.path.relpath(f"{folder}/planted", root)
            for folder, _, files in os.walk(root)
            if "planted" in files and execution_id in folder
        }


@pytest.fixture
def folders(journal: Journal, tmp_path: Path) -> WithFolders:
    return WithFolders(journal, tmp_path)


def is_removed(store: ConductorStore, execution_id: str) -> bool:
    with store.engine.connect() as connection:
        return bool(
            connection.scalar(
                sa.select(executions.c.removed_at.is_not(None)).where(
                    executions.c.execution_id == execution_id
                )
            )
        )


def disk_bytes(store: ConductorStore, execution_id: str) -> int:
    with store.engine.connect() as connection:
        found: int = connection.execute(
            sa.select(executions.c.disk_bytes).where(executions.c.execution_id == execution_id)
        ).scalar_one()
        return found


async def run_executions(
    store_url: str, folders: WithFolders, store: ConductorStore, *execution_ids: str
) -> list[Execution]:
    """Run executions to their end and stop; call with `asyncio.run`, since DBOS keeps its loop."""
    async with conductor_loop(store_url, folders):
        return [await until(store, each, finished) for each in execution_ids]


# Expiry


@on_both_databases_slowly
def test_expired_execution_keeps_only_its_row(
    store: ConductorStore, store_url: str, folders: WithFolders
) -> None:
    execution_id = submit(store)
    completed = asyncio.run(run_executions(store_url, folders, store, execution_id))[0]
    assert folders.files_of(execution_id)
    assert disk_bytes(store, execution_id) > 0

    async def expire() -> None:
        async with conductor_loop(store_url, folders, retention=EXPIRING):
            await eventually(lambda: is_removed(store, execution_id))
            assert await DBOS.get_workflow_status_async(execution_id) is None

    asyncio.run(expire())
    expired = store.read(execution_id)
    assert expired.status == Status.EXPIRED
    assert (expired.results, expired.progress) == (None, None)
    assert (expired.ended_at, expired.parameters) == (completed.ended_at, completed.parameters)
    assert expired.revision > completed.revision
    assert not folders.files_of(execution_id)
    assert not folders.result(execution_id).exists()
    assert disk_bytes(store, execution_id) == 0


@on_both_databases_slowly
async def test_failed_and_cancelled_executions_expire_too(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def refuse(_: str) -> None:
        raise StageFailed("package", "the disk is full")

    folders = WithFolders(journal, tmp_path, before={"describe_result": refuse})
    failed, cancelled = submit(store), submit(store)
    store.request_cancel(WORKFLOW, cancelled)
    async with conductor_loop(store_url, folders, retention=EXPIRING):
        await until(store, failed, finished)
        await eventually(lambda: is_removed(store, failed) and is_removed(store, cancelled))
        assert await DBOS.get_workflow_status_async(failed) is None
    assert store.read(failed).status == store.read(cancelled).status == Status.EXPIRED
    assert store.read(failed).error_message == "the disk is full"


@pytest.mark.parametrize("keep_s", [None, 3600.0])
async def test_nothing_expires_early_or_without_a_limit(
    store: ConductorStore, store_url: str, folders: WithFolders, keep_s: float | None
) -> None:
    execution_id = submit(store)
    options = RetentionOptions(keep_s=keep_s, keep_record_s=0, look_s=0.05)
    async with conductor_loop(store_url, folders, retention=options):
        await until(store, execution_id, finished)
        await asyncio.sleep(0.5)
    assert store.read(execution_id).status == Status.COMPLETED
    assert folders.files_of(execution_id)


def test_successor_finishes_an_expiry(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    first, second = submit(store), submit(store)
    folders = WithFolders(journal, tmp_path)
    asyncio.run(run_executions(store_url, folders, store, first, second))

    async def begin() -> None:
        removing = asyncio.Event()

        async def hang(_: str) -> None:
            removing.set()
            await asyncio.Event().wait()

        hanging = WithFolders(journal, tmp_path, before={"purge": hang})
        async with conductor_loop(store_url, hanging, retention=EXPIRING):
            await removing.wait()
            assert store.read(first).status == store.read(second).status == Status.EXPIRED
            # Other executions run meanwhile.
            assert (await until(store, submit(store), finished)).status == Status.COMPLETED

    asyncio.run(begin())
    assert folders.files_of(first) and folders.files_of(second)

    async def go_on() -> None:
        # Even if results no longer expire.
        options = RetentionOptions(look_s=0.05)
        async with conductor_loop(store_url, folders, retention=options):
            await eventually(lambda: is_removed(store, first) and is_removed(store, second))

    asyncio.run(go_on())
    assert not folders.files_of(first) and not folders.files_of(second)


async def test_execution_that_cannot_be_removed_delays_no_other(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    stuck = submit(store)

    async def refuse(execution_id: str) -> None:
        if execution_id == stuck:
            raise OSError("Read-only file system")

    folders = WithFolders(journal, tmp_path, before={"purge": refuse})
    async with conductor_loop(store_url, folders, retention=EXPIRING):
        await until(store, stuck, finished)
        other = submit(store)
        await eventually(lambda: is_removed(store, other))
    assert folders.files_of(stuck)
    assert store.read(stuck).status == Status.EXPIRED
    assert not is_removed(store, stuck)


async def test_row_is_deleted_once_its_idempotency_key_is_invalid(
    store: ConductorStore, store_url: str, folders: WithFolders
) -> None:
    old, recent = submit(store), submit(store)
    options = EXPIRING.model_copy(update={"keep_record_s": 0.2})
    async with conductor_loop(store_url, folders, retention=options):
        await eventually(lambda: is_removed(store, old) and is_removed(store, recent))
        with store.engine.begin() as connection:
            created_at = store.read(old).created_at.replace(year=2020)
            connection.execute(
                sa.update(executions)
                .where(executions.c.execution_id == old)
                .values(created_at=created_at)
            )
        await eventually(lambda: not exists(store, old))
    assert exists(store, recent)


# Leftovers


@on_both_databases_slowly
def test_sweep_removes_leftovers_and_nothing_else(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def fail_one(execution_id: str) -> None:
        if execution_id == failed:
            raise StageFailed("package", "the disk is full")

    failed, completed, removed = submit(store), submit(store), submit(store)
    folders = WithFolders(journal, tmp_path, step_s=0.05, before={"describe_result": fail_one})
    asyncio.run(run_executions(store_url, folders, store, failed, completed, removed))
    # As by a purge that left DBOS's records.
    store.delete(store.issue_fence(), removed)
    running, queued = submit(store, n_steps=400), submit(store, n_steps=400)
    unknown = "exec_1700000000_0123abcd"
    for execution_id in (failed, completed, removed, running, queued, unknown):
        folders.plant_all(execution_id)
    others = [
        folders.work_dir / "turns" / "0.lock",
        folders.work_dir / "scratch" / "exec_1",
        folders.results_dir / ".partial" / "0123456789abcdef",
    ]
    for other in others:
        folders.plant(other)

    async def only_one_attempt() -> bool:
        listed = await DBOS.list_workflows_async(load_input=False, load_output=False)
        return {each.workflow_id for each in listed} == {running}

    async def sweep() -> None:
        one = {WORKFLOW: 1}
        async with conductor_loop(store_url, folders, retention=SWEEPING, max_running=one):
            await until(store, running, lambda e: e.progress is not None)
            await eventually(lambda: not folders.files_of(failed) and not folders.files_of(removed))
            await eventually(only_one_attempt)
            assert store.read(running).status == Status.RUNNING
            assert store.read(queued).status == Status.QUEUED

    asyncio.run(sweep())
    assert folders.files_of(completed) == {f"results/{WORKFLOW}/{completed}/results.zarr/planted"}
    for execution_id in (running, queued, unknown):
        assert len(folders.files_of(execution_id)) >= 4
    assert all((other / "planted").exists() for other in others)
    assert store.read(completed).status == Status.COMPLETED


@pytest.mark.parametrize(
    ("failure", "keep_failed_s", "kept"),
    [
        (StageFailed("package", "the catalogue is incomplete"), 600.0, True),
        (StageFailed("package", "the catalogue is incomplete"), 0.0, False),
        (DiskFull("package", "OSError: No space left on device"), 600.0, False),
    ],
)
async def test_completed_members_of_a_failed_execution_are_kept_for_a_retry(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    tmp_path: Path,
    failure: StageFailed,
    keep_failed_s: float,
    kept: bool,
) -> None:
    async def fail(_: str) -> None:
        raise failure

    execution_id, other = submit(store), submit(store)
    with store.engine.begin() as connection:
        connection.execute(sa.update(executions).values(disk_bytes=80, unwritten_bytes=80))
    folders = WithFolders(journal, tmp_path, before={"describe_result": fail})
    options = SWEEPING.model_copy(update={"keep_failed_s": keep_failed_s})
    async with conductor_loop(store_url, folders, retention=options):
        assert (await until(store, execution_id, finished)).status == Status.FAILED
        if kept:
            folders.plant_all(other)
            await until(store, other, finished)
            await asyncio.sleep(0.5)
            assert folders.files_of(execution_id)
            assert disk_bytes(store, execution_id) == 80
        else:
            await eventually(lambda: disk_bytes(store, execution_id) == 0)
            assert not folders.files_of(execution_id)


@pytest.mark.parametrize(("settle_s", "kept"), [(0.0, False), (3600.0, True)])
async def test_completed_members_are_kept_until_the_clock_is_known_to_be_right(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    tmp_path: Path,
    settle_s: float,
    kept: bool,
) -> None:
    async def fail(_: str) -> None:
        raise StageFailed("package", "the catalogue is incomplete")

    execution_id = submit(store)
    folders = WithFolders(journal, tmp_path, before={"describe_result": fail})
    options = SWEEPING.model_copy(update={"keep_failed_s": 86_400.0, "settle_s": settle_s})
    async with conductor_loop(store_url, folders, retention=options):
        await until(store, execution_id, finished)
        with store.engine.begin() as connection:
            # By a clock that is ahead, it failed long ago.
            connection.execute(
                sa.update(executions).values(ended_at=datetime(2020, 1, 1, tzinfo=UTC))
            )
        if kept:
            seen = folders.sweeps
            await eventually(lambda: folders.sweeps > seen + 2)
            assert folders.files_of(execution_id)
        else:
            await eventually(lambda: not folders.files_of(execution_id))


async def test_execution_that_has_just_ended_is_not_swept(
    store: ConductorStore, store_url: str, folders: WithFolders
) -> None:
    execution_id = submit(store)
    options = SWEEPING.model_copy(update={"grace_s": 600})
    async with conductor_loop(store_url, folders, retention=options) as loop:
        await until(store, execution_id, finished)
        # After the record of its end, the execution removes its own working files.
        await eventually(lambda: execution_id not in loop.context.active)
        folders.plant_all(execution_id)
        # The current sweep may have listed folders before; the one after it has not.
        seen = folders.sweeps
        await eventually(lambda: folders.sweeps > seen + 2)
        assert len(folders.files_of(execution_id)) == 4
        assert await DBOS.get_workflow_status_async(execution_id) is not None


def test_retry_begins_after_the_sweep_of_its_leftovers(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def fail(_: str) -> None:
        raise StageFailed("package", "the disk is full")

    execution_id = submit(store)
    failing = WithFolders(journal, tmp_path, before={"describe_result": fail})
    asyncio.run(run_executions(store_url, failing, store, execution_id))
    failing.plant_all(execution_id)
    folders = WithFolders(journal, tmp_path)

    async def try_again() -> None:
        removing, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(_: str) -> None:
            removing.set()
            await go_on.wait()

        slow = WithFolders(journal, tmp_path, before={"purge": slowly})
        async with conductor_loop(store_url, slow, retention=SWEEPING) as loop:
            await removing.wait()
            before = journal.lines()
            store.request_retry(WORKFLOW, execution_id, max_queued=9)
            loop.nudge()
            await until(store, execution_id, lambda e: e.status == Status.RUNNING)
            await asyncio.sleep(0.3)
            assert journal.lines() == before
            # Other executions do not wait for it.
            other = submit(store)
            loop.nudge()
            await until(store, other, finished)
            go_on.set()
            assert (await until(store, execution_id, finished)).status == Status.COMPLETED

    asyncio.run(try_again())
    assert folders.files_of(execution_id) == {
        f"results/{WORKFLOW}/{execution_id}/results.zarr/planted"
    }


def test_cancel_of_a_retry_that_waits_removes_its_files_at_once(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def fail(_: str) -> None:
        raise StageFailed("package", "the catalogue is incomplete")

    execution_id = submit(store)
    folders = WithFolders(journal, tmp_path, before={"describe_result": fail})
    asyncio.run(run_executions(store_url, folders, store, execution_id))
    store.request_retry(WORKFLOW, execution_id, max_queued=9, demand=Demand(needed=80, free=None))
    store.request_cancel(WORKFLOW, execution_id)
    # Counted as long as they exist.
    assert folders.files_of(execution_id) and disk_bytes(store, execution_id) == 80

    async def cancel() -> None:
        async with conductor_loop(store_url, folders):
            await until(store, execution_id, finished)
            assert not folders.files_of(execution_id)

    asyncio.run(cancel())
    assert store.read(execution_id).status == Status.CANCELLED
    assert disk_bytes(store, execution_id) == 0


async def test_ids_of_deleted_executions_are_deleted_later(
    store: ConductorStore, store_url: str, folders: WithFolders
) -> None:
    fence = store.issue_fence()
    old, recent = submit(store), submit(store)
    for execution_id in (old, recent):
        store.delete(fence, execution_id)
    with store.engine.begin() as connection:
        connection.execute(
            sa.update(deleted_executions)
            .where(deleted_executions.c.execution_id == old)
            .values(deleted_at=datetime(2020, 1, 1, tzinfo=UTC))
        )
    async with conductor_loop(store_url, folders, retention=SWEEPING):
        await eventually(lambda: RetentionView(store).known([old, recent]) == {recent})
