"""What the Conductor removes by itself, with a real store, DBOS, Packager and folders."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOS

from deployments.conductor.options import RetentionOptions
from deployments.packager.deployment import Packager
from deployments.results.protocols import CompletedMembers, StoredExecution
from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import executions, forgotten
from tests.deployments.conductor.conducting import (
    comes_true,
    conducts,
    finished,
    is_there,
    on_both_databases,
    until,
)
from tests.deployments.conductor.conducting_process import Journal, StandIns
from tests.deployments.conductor.test_deployment import submit
from workflows import Execution, Status
from workflows.errors import DiskFull, StageFailed

WORKFLOW = "foundry_fcn3_workflow"
EXPIRING = RetentionOptions(keep_s=0.3, look_s=0.05, sweep_s=3600)
SWEEPING = RetentionOptions(look_s=0.05, sweep_s=0.1, grace_s=0, keep_failed_s=0)


class Keeping(StandIns):
    """Stand-ins, but for a real Packager where files are removed."""

    def __init__(self, journal: Journal, root: Path, **options: Any) -> None:
        super().__init__(journal, **options)
        self.results_dir, self.work_dir = root / "results", root / "work"
        self.sweeps = 0
        """How many have begun."""
        self._packager = Packager.func_or_class(  # type: ignore[attr-defined]
            self.results_dir, self.work_dir
        )

    async def create(self, plan: Any, execution_id: str, *arguments: Any) -> CompletedMembers:
        begun = await super().create(plan, execution_id, *arguments)
        self.plant(self.result(execution_id) / "results.zarr")
        self.plant(self.work_dir / execution_id / "steps")
        return begun

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
        """Leave everything behind that a crash can leave."""
        self.plant(self.work_dir / execution_id / "fences")
        self.plant(self.results_dir / ".partial" / execution_id)
        self.plant(self.results_dir / ".partial" / f"{execution_id}.purged")
        self.plant(self.result(execution_id) / "results.zarr")

    def left(self, execution_id: str) -> set[str]:
        root = self.results_dir.parent
        return {
            str(path.relative_to(root))
            for path in root.glob("**/planted")
            if execution_id in str(path)
        }


@pytest.fixture
def keeping(journal: Journal, tmp_path: Path) -> Keeping:
    return Keeping(journal, tmp_path)


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


async def carry(
    store_url: str, keeping: Keeping, store: ConductorStore, *execution_ids: str
) -> list[Execution]:
    """Carry executions to their end and stop; for `asyncio.run`, since DBOS takes a loop along."""
    async with conducts(store_url, keeping):
        return [await until(store, each, finished) for each in execution_ids]


# Expiry


@on_both_databases
def test_results_expire_with_all_that_is_heavy(
    store: ConductorStore, store_url: str, keeping: Keeping
) -> None:
    execution_id = submit(store)
    completed = asyncio.run(carry(store_url, keeping, store, execution_id))[0]
    assert keeping.left(execution_id)
    assert disk_bytes(store, execution_id) > 0

    async def expire() -> None:
        async with conducts(store_url, keeping, housekeeping=EXPIRING):
            await comes_true(lambda: is_removed(store, execution_id))
            assert await DBOS.get_workflow_status_async(execution_id) is None

    asyncio.run(expire())
    expired = store.read(execution_id)
    assert expired.status == Status.EXPIRED
    assert (expired.results, expired.progress) == (None, None)
    assert (expired.ended_at, expired.parameters) == (completed.ended_at, completed.parameters)
    assert expired.revision > completed.revision
    assert not keeping.left(execution_id)
    assert not keeping.result(execution_id).exists()
    assert disk_bytes(store, execution_id) == 0


@on_both_databases
async def test_what_failed_or_was_cancelled_expires_too(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def refuse(_: str) -> None:
        raise StageFailed("package", "the disk is full")

    keeping = Keeping(journal, tmp_path, before={"describe_result": refuse})
    failed, cancelled = submit(store), submit(store)
    store.request_cancel(WORKFLOW, cancelled)
    async with conducts(store_url, keeping, housekeeping=EXPIRING):
        await until(store, failed, finished)
        await comes_true(lambda: is_removed(store, failed) and is_removed(store, cancelled))
        assert await DBOS.get_workflow_status_async(failed) is None
    assert store.read(failed).status == store.read(cancelled).status == Status.EXPIRED
    assert store.read(failed).error_message == "the disk is full"


@pytest.mark.parametrize("keep_s", [None, 3600.0])
async def test_nothing_expires_before_its_time_or_without_one(
    store: ConductorStore, store_url: str, keeping: Keeping, keep_s: float | None
) -> None:
    execution_id = submit(store)
    options = RetentionOptions(keep_s=keep_s, keep_record_s=0, look_s=0.05)
    async with conducts(store_url, keeping, housekeeping=options):
        await until(store, execution_id, finished)
        await asyncio.sleep(0.5)
    assert store.read(execution_id).status == Status.COMPLETED
    assert keeping.left(execution_id)


def test_whoever_comes_next_finishes_what_was_begun(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    first, second = submit(store), submit(store)
    keeping = Keeping(journal, tmp_path)
    asyncio.run(carry(store_url, keeping, store, first, second))

    async def begin() -> None:
        removing = asyncio.Event()

        async def hang(_: str) -> None:
            removing.set()
            await asyncio.Event().wait()

        hanging = Keeping(journal, tmp_path, before={"purge": hang})
        async with conducts(store_url, hanging, housekeeping=EXPIRING):
            await removing.wait()
            assert store.read(first).status == store.read(second).status == Status.EXPIRED
            # Others go on meanwhile.
            assert (await until(store, submit(store), finished)).status == Status.COMPLETED

    asyncio.run(begin())
    assert keeping.left(first) and keeping.left(second)

    async def go_on() -> None:
        # Also where results do not expire any more.
        options = RetentionOptions(look_s=0.05)
        async with conducts(store_url, keeping, housekeeping=options):
            await comes_true(lambda: is_removed(store, first) and is_removed(store, second))

    asyncio.run(go_on())
    assert not keeping.left(first) and not keeping.left(second)


async def test_one_that_cannot_be_removed_holds_no_other_up(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    stuck = submit(store)

    async def refuse(execution_id: str) -> None:
        if execution_id == stuck:
            raise OSError("Read-only file system")

    keeping = Keeping(journal, tmp_path, before={"purge": refuse})
    async with conducts(store_url, keeping, housekeeping=EXPIRING):
        await until(store, stuck, finished)
        other = submit(store)
        await comes_true(lambda: is_removed(store, other))
    assert keeping.left(stuck)
    assert store.read(stuck).status == Status.EXPIRED
    assert not is_removed(store, stuck)


async def test_the_record_goes_when_its_key_means_nothing_any_more(
    store: ConductorStore, store_url: str, keeping: Keeping
) -> None:
    old, recent = submit(store), submit(store)
    options = EXPIRING.model_copy(update={"keep_record_s": 0.2})
    async with conducts(store_url, keeping, housekeeping=options):
        await comes_true(lambda: is_removed(store, old) and is_removed(store, recent))
        with store.engine.begin() as connection:
            created_at = store.read(old).created_at.replace(year=2020)
            connection.execute(
                sa.update(executions)
                .where(executions.c.execution_id == old)
                .values(created_at=created_at)
            )
        await comes_true(lambda: not is_there(store, old))
    assert is_there(store, recent)


# What crashes leave


@on_both_databases
def test_what_crashes_have_left_is_removed_and_nothing_else(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def fail_one(execution_id: str) -> None:
        if execution_id == failed:
            raise StageFailed("package", "the disk is full")

    failed, completed, removed = submit(store), submit(store), submit(store)
    keeping = Keeping(journal, tmp_path, step_s=0.05, before={"describe_result": fail_one})
    asyncio.run(carry(store_url, keeping, store, failed, completed, removed))
    # As a purge does, but for DBOS's record.
    store.remove(store.issue_fence(), removed)
    running, queued = submit(store, n_steps=400), submit(store, n_steps=400)
    stranger = "exec_1700000000_0123abcd"
    for execution_id in (failed, completed, removed, running, queued, stranger):
        keeping.plant_all(execution_id)
    others = [
        keeping.work_dir / "turns" / "0.lock",
        keeping.work_dir / "scratch" / "exec_1",
        keeping.results_dir / ".partial" / "0123456789abcdef",
    ]
    for other in others:
        keeping.plant(other)

    async def only_one_attempt() -> bool:
        listed = await DBOS.list_workflows_async(load_input=False, load_output=False)
        return {each.workflow_id for each in listed} == {running}

    async def sweep() -> None:
        one = {WORKFLOW: 1}
        async with conducts(store_url, keeping, housekeeping=SWEEPING, max_running=one):
            await until(store, running, lambda e: e.progress is not None)
            await comes_true(lambda: not keeping.left(failed) and not keeping.left(removed))
            await comes_true(only_one_attempt)
            assert store.read(running).status == Status.RUNNING
            assert store.read(queued).status == Status.QUEUED

    asyncio.run(sweep())
    assert keeping.left(completed) == {f"results/{WORKFLOW}/{completed}/results.zarr/planted"}
    for execution_id in (running, queued, stranger):
        assert len(keeping.left(execution_id)) >= 4
    assert all((other / "planted").exists() for other in others)
    assert store.read(completed).status == Status.COMPLETED


@pytest.mark.parametrize(
    ("failure", "keep_failed_s", "kept"),
    [
        (StageFailed("package", "the catalogue is not whole"), 600.0, True),
        (StageFailed("package", "the catalogue is not whole"), 0.0, False),
        (DiskFull("package", "OSError: No space left on device"), 600.0, False),
    ],
)
async def test_whole_members_of_a_failed_one_stay_for_a_retry(
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
    keeping = Keeping(journal, tmp_path, before={"describe_result": fail})
    options = SWEEPING.model_copy(update={"keep_failed_s": keep_failed_s})
    async with conducts(store_url, keeping, housekeeping=options):
        assert (await until(store, execution_id, finished)).status == Status.FAILED
        if kept:
            keeping.plant_all(other)
            await until(store, other, finished)
            await asyncio.sleep(0.5)
            assert keeping.left(execution_id)
            assert disk_bytes(store, execution_id) == 80
        else:
            await comes_true(lambda: disk_bytes(store, execution_id) == 0)
            assert not keeping.left(execution_id)


async def test_what_has_just_ended_is_left_alone(
    store: ConductorStore, store_url: str, keeping: Keeping
) -> None:
    execution_id = submit(store)
    options = SWEEPING.model_copy(update={"grace_s": 600})
    async with conducts(store_url, keeping, housekeeping=options) as made:
        await until(store, execution_id, finished)
        # Its life goes on behind its record, and removes what it has worked with itself.
        await comes_true(lambda: execution_id not in made.lives.running)
        keeping.plant_all(execution_id)
        # That under way may have looked before; the one that follows it has not.
        seen = keeping.sweeps
        await comes_true(lambda: keeping.sweeps > seen + 2)
        assert len(keeping.left(execution_id)) == 4
        assert await DBOS.get_workflow_status_async(execution_id) is not None


def test_a_retry_waits_until_what_was_left_is_removed(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def fail(_: str) -> None:
        raise StageFailed("package", "the disk is full")

    execution_id = submit(store)
    failing = Keeping(journal, tmp_path, before={"describe_result": fail})
    asyncio.run(carry(store_url, failing, store, execution_id))
    failing.plant_all(execution_id)
    keeping = Keeping(journal, tmp_path)

    async def try_again() -> None:
        removing, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(_: str) -> None:
            removing.set()
            await go_on.wait()

        slow = Keeping(journal, tmp_path, before={"purge": slowly})
        async with conducts(store_url, slow, housekeeping=SWEEPING) as made:
            await removing.wait()
            before = journal.lines()
            store.request_retry(WORKFLOW, execution_id, max_queued=9)
            made.nudge()
            await until(store, execution_id, lambda e: e.status == Status.RUNNING)
            await asyncio.sleep(0.3)
            assert journal.lines() == before
            # The claims of others do not wait for it.
            other = submit(store)
            made.nudge()
            await until(store, other, finished)
            go_on.set()
            assert (await until(store, execution_id, finished)).status == Status.COMPLETED

    asyncio.run(try_again())
    assert keeping.left(execution_id) == {f"results/{WORKFLOW}/{execution_id}/results.zarr/planted"}


async def test_ids_are_forgotten_for_good_in_the_end(
    store: ConductorStore, store_url: str, keeping: Keeping
) -> None:
    fence = store.issue_fence()
    old, recent = submit(store), submit(store)
    for execution_id in (old, recent):
        store.remove(fence, execution_id)
    with store.engine.begin() as connection:
        connection.execute(
            sa.update(forgotten)
            .where(forgotten.c.execution_id == old)
            .values(forgotten_at=datetime(2020, 1, 1, tzinfo=UTC))
        )
    async with conducts(store_url, keeping, housekeeping=SWEEPING):
        await comes_true(lambda: store.known([old, recent]) == {recent})
