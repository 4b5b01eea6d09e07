"""The life of an execution, with stand-in deployments and a real store and DBOS."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from deployments.conductor.context import Lives
from deployments.conductor.dbos_log import capture_dbos_log
from deployments.conductor.progress import Life, ProgressTracker
from deployments.conductor.steps import STEP, retry_while_progressing
from deployments.results.protocols import CompletedMembers
from deployments.runtime.failures import TransientFailure
from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import conductors, executions
from tests.deployments.conductor.conducting import (
    LIMIT_S,
    comes_true,
    conducts,
    finished,
    is_there,
    on_both_databases,
    until,
)
from tests.deployments.conductor.conducting_process import Journal, StandIns, conducting
from workflows import Execution, FCN3Workflow, Status
from workflows.errors import DiskFull, StageFailed
from workflows.execution import new_execution_id

WORKFLOW = FCN3Workflow()


def submit(store: ConductorStore, **parameters: Any) -> str:
    validated = WORKFLOW.validate({"n_steps": 2, "n_samples": 3, **parameters})
    execution = Execution(
        execution_id=new_execution_id(),
        workflow=WORKFLOW.name,
        status=Status.QUEUED,
        parameters=validated.model_dump(mode="json"),
        plan=WORKFLOW.plan(validated).model_dump(mode="json"),
        created_at=datetime.now(UTC),
    )
    store.submit(execution, max_queued=100)
    return execution.execution_id


@on_both_databases
async def test_a_life_goes_through_its_stages_in_order(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    execution_id = submit(store, output_format="netcdf4")
    async with conducts(store_url, StandIns(journal)):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED
    assert done.results is not None
    assert done.results.status == "completed"
    assert done.results.completion_time is not None
    assert done.progress is not None
    assert done.progress.members == (3, 3, 3)
    assert done.progress.current_step == done.progress.total_steps == 9
    lines = journal.lines()
    assert sorted(lines) == sorted(
        ["create", "fetch", "export", "describe_result", "clean"]
        + [f"{word} {m}" for word in ("begin", "member") for m in range(3)]
    )
    assert lines.index("describe_result") > max(lines.index(f"member {m}") for m in range(3))
    assert lines.index("begin 0") > max(lines.index("create"), lines.index("fetch"))


async def test_a_stage_that_fails_stops_the_others_and_says_why(
    store: ConductorStore, store_url: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(job: Any, written: int) -> None:
        if job.member == 1:
            raise StageFailed("inference", "the core returned NaN")

    execution_id = submit(store)
    stand_ins = StandIns(journal, step_s=0.05, before={"step": refuse})
    async with conducts(store_url, stand_ins):
        failed = await until(store, execution_id, finished)
        assert failed.status == Status.FAILED
        assert failed.stage == "inference"
        assert failed.error_message == "the core returned NaN"
        # What DBOS says of the same failure is dropped.
        records = caplog.records
        told = [record.getMessage() for record in records if record.levelname == "ERROR"]
        assert told == [f"{execution_id} failed at inference: the core returned NaN"]
        assert not any(record.exc_info for record in records)
        next_one = submit(store, n_samples=1)
        assert (await until(store, next_one, finished)).status == Status.COMPLETED
    assert journal.lines().count("begin 1") == 1
    # What it had made is of no use; the next one's files stay.
    assert [line for line in journal.lines() if line in ("purge", "clean")] == ["purge", "clean"]


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (StageFailed("inference", "the core returned NaN"), True),
        (DiskFull("inference", "OSError: No space left on device"), False),
    ],
)
async def test_a_retry_computes_only_members_that_are_not_whole(
    store: ConductorStore, store_url: str, journal: Journal, failure: StageFailed, kept: bool
) -> None:
    has_failed = False

    async def fail_once(job: Any, written: int) -> None:
        nonlocal has_failed
        if job.member == 1 and not has_failed:
            has_failed = True
            # When the others are whole.
            await until(
                store, execution_id, lambda e: bool(e.progress) and e.progress.members == (3, 0, 3)
            )
            stand_ins.begun = CompletedMembers(members=(0, 2) if kept else ())
            raise failure

    execution_id = submit(store)
    stand_ins = StandIns(journal, before={"step": fail_once})
    async with conducts(store_url, stand_ins) as made:
        await until(store, execution_id, finished)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
        made.nudge()
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    # The retry began behind the end of the attempt that failed.
    assert ("purge" in journal.lines()) is not kept
    assert done.progress is not None and done.progress.members == (3, 3, 3)
    begun = [line for line in journal.lines() if line.startswith("begin")]
    assert sorted(begun[3:]) == (["begin 1"] if kept else ["begin 0", "begin 1", "begin 2"])


async def test_a_failure_names_no_file_of_the_server(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def refuse(_: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    execution_id = submit(store)
    async with conducts(store_url, StandIns(journal, before={"create": refuse})):
        failed = await until(store, execution_id, finished)
    assert failed.error_message == "OSError: Read-only file system"


@pytest.mark.usefixtures("as_json")
async def test_a_death_on_the_way_is_tried_again_and_leaves_one_line(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    records: list[logging.LogRecord],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    deaths = 0

    async def die_once(job: Any) -> None:
        nonlocal deaths
        deaths += 1
        if deaths == 1:
            raise TransientFailure("inference", "ActorDiedError: it died")

    execution_id = submit(store, n_samples=1)
    async with conducts(store_url, StandIns(journal, before={"member": die_once})):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert journal.lines().count("begin 0") == 2
    told = f"{execution_id} is tried again at inference, attempt 2 of 6: ActorDiedError: it died"
    [warning] = [record for record in records if record.levelname == "WARNING"]
    assert (warning.getMessage(), warning.exc_info) == (told, None)
    # And in a file of JSON.
    lines = map(json.loads, (tmp_path / "replica.log").read_text().splitlines())
    [line] = [line for line in lines if line["levelname"] == "WARNING"]
    assert line["message"] == told and "exc_text" not in line
    assert (line["execution_id"], line["workflow"]) == (execution_id, WORKFLOW.name)
    assert line["stage"] == "inference"
    # DBOS's own handler would write to stderr.
    assert "automatically retried" not in capfd.readouterr().err


async def test_a_member_that_comes_on_is_not_given_up(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    """Attempts count that begin where one began before; the others are one after another."""
    steps = 8
    stand_ins = StandIns(journal)

    async def die_behind_a_checkpoint(job: Any) -> None:
        if (first := stand_ins.firsts.get(job.member, 0)) < steps - 1:
            stand_ins.firsts[job.member] = first + 1
            raise TransientFailure("inference", "ActorDiedError: it died")

    stand_ins = StandIns(journal, before={"member": die_behind_a_checkpoint})
    execution_id = submit(store, n_samples=1, n_steps=steps)
    async with conducts(store_url, stand_ins):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert journal.lines().count("begin 0") == steps > 6


async def test_attempts_are_counted_anew_where_one_came_on() -> None:
    """Each place is begun from so often; the last attempt of all succeeds."""

    async def attempts(*each: int) -> int:
        came = [new for count in each for new in [True, *[False] * (count - 1)]]
        made = 0

        async def attempt(progressed: Callable[[], None]) -> None:
            nonlocal made
            made += 1
            if came[made - 1]:
                progressed()
            if made < len(came):
                raise TransientFailure("inference", "ActorDiedError: it died")

        with suppress(TransientFailure):
            await retry_while_progressing(attempt, "it", replace(STEP, initial_delay_s=0.0))
        return made

    assert await attempts(*[5] * 20, 1) == 101
    assert await attempts(5, 7, 1) == 11


def test_an_attempt_counts_that_begins_where_one_began_before() -> None:
    life = Life(None)  # type: ignore[arg-type]
    progress = ProgressTracker({"exec_1": life}, None, None, in_turn=False)  # type: ignore[arg-type]
    told = [progress.resumed_further("exec_1", 0, first) for first in (0, 0, 5, 5, 0, 5, 9, 9)]
    assert told == [False, False, True, False, False, False, True, False]
    assert progress.resumed_further("exec_1", 1, 5)


async def test_what_else_dbos_says_is_in_our_log(caplog: pytest.LogCaptureFixture) -> None:
    capture_dbos_log()
    capture_dbos_log()
    logging.getLogger("dbos").warning("the database is %s", "away")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("ray.serve", "DBOS: the database is away")
    ]


@on_both_databases
async def test_a_cancel_stops_running_members_and_frees_the_place(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    execution_id = submit(store, n_steps=400)
    async with conducts(
        store_url, StandIns(journal, step_s=0.05), max_running={"foundry_fcn3_workflow": 1}
    ) as made:
        await until(store, execution_id, lambda e: e.progress is not None)
        waiting = submit(store, n_steps=1, n_samples=1)
        store.request_cancel(WORKFLOW.name, execution_id)
        made.nudge()
        cancelled = await until(store, execution_id, finished)
        assert cancelled.status == Status.CANCELLED
        assert (await until(store, waiting, finished)).status == Status.COMPLETED
    assert {f"stopped {m}" for m in range(3)} <= set(journal.lines())
    assert not any(line.startswith("member 1") for line in journal.lines())


async def test_a_cancel_that_comes_too_late_takes_nothing_away(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    async def cancel(execution_id: str) -> None:
        # As a DELETE does that was read as a request just before the results were recorded.
        with store.engine.begin() as connection:
            connection.execute(sa.update(executions).values(cancel_requested=True))
        made.lives.running[execution_id].task.cancel()
        await asyncio.sleep(0.1)

    execution_id = submit(store)
    async with conducts(store_url, StandIns(journal, before={"clean": cancel})) as made:
        await until(store, execution_id, finished)
        await comes_true(lambda: execution_id not in made.lives.running)
        await made.lives.end_cancelled(execution_id)
    assert store.read(execution_id).status == Status.COMPLETED
    assert "clean" in journal.lines()
    assert "purge" not in journal.lines()


async def test_a_second_cancel_leaves_no_files_behind(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    async def cancel_again(execution_id: str) -> None:
        made.lives.running[execution_id].task.cancel()
        await asyncio.sleep(0.1)

    execution_id = submit(store, n_steps=400)
    stand_ins = StandIns(journal, step_s=0.05, before={"purge": cancel_again})
    async with conducts(store_url, stand_ins) as made:
        await until(store, execution_id, lambda e: e.progress is not None)
        store.request_cancel(WORKFLOW.name, execution_id)
        made.nudge()
        assert (await until(store, execution_id, finished)).status == Status.CANCELLED
    assert journal.lines()[-1] == "purge"


async def test_a_cancel_waits_for_what_is_being_created_and_removes_it(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    creating, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_: str) -> None:
        creating.set()
        await go_on.wait()

    execution_id = submit(store)
    async with conducts(store_url, StandIns(journal, before={"create": slowly})) as made:
        await creating.wait()
        store.request_cancel(WORKFLOW.name, execution_id)
        made.nudge()
        life = made.lives.running[execution_id]
        await comes_true(lambda: life.task.cancelling() > 0)
        assert "purge" not in journal.lines()
        go_on.set()
        assert (await until(store, execution_id, finished)).status == Status.CANCELLED
    assert [line for line in journal.lines() if line != "fetch"] == ["create", "purge"]


async def test_a_purge_that_hangs_or_fails_holds_nobody_up(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    purging, removed = asyncio.Event(), asyncio.Event()

    async def fail_in_the_end(_: str) -> None:
        purging.set()
        await asyncio.wait_for(removed.wait(), LIMIT_S)
        raise OSError("Read-only file system")

    execution_id = submit(store)
    async with conducts(store_url, StandIns(journal, before={"purge": fail_in_the_end})) as made:
        await until(store, execution_id, finished)
        store.request_purge(WORKFLOW.name, execution_id)
        made.nudge()
        await purging.wait()
        during = submit(store)
        assert (await until(store, during, finished)).status == Status.COMPLETED
        removed.set()
        await asyncio.sleep(0.1)
        after = submit(store)
        assert (await until(store, after, finished)).status == Status.COMPLETED
    assert store.read(execution_id).purge_requested


async def test_a_purge_forgets_the_execution(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    execution_id = submit(store)
    async with conducts(store_url, StandIns(journal)) as made:
        await until(store, execution_id, finished)
        store.request_purge(WORKFLOW.name, execution_id)
        made.nudge()
        await comes_true(lambda: not is_there(store, execution_id))
    assert "purge" in journal.lines()


class Away(ConductorStore):
    """A store that does not answer the first few times, as while its database restarts."""

    def __init__(self, url: str, times: int) -> None:
        super().__init__(url)
        self.left = times

    def _answer(self) -> None:
        if self.left:
            self.left -= 1
            raise sa.exc.OperationalError("…", {}, Exception("the database is starting up"))

    def read(self, execution_id: str) -> Execution:
        self._answer()
        return super().read(execution_id)

    def update(self, *args: Any, **values: Any) -> Execution:
        self._answer()
        return super().update(*args, **values)


def lives_of(store: ConductorStore, fence: int) -> Lives:
    lives = Lives(store, {}, lambda _: None)
    lives.fence = fence
    return lives


@pytest.fixture
def claimed(store: ConductorStore) -> tuple[str, int]:
    """An execution that runs, and the fencing token of who runs it."""
    execution_id, fence = submit(store), store.issue_fence()
    store.claim_next(fence)
    return execution_id, fence


async def test_a_database_that_is_away_for_a_moment_fails_nothing(
    store: ConductorStore, store_url: str, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    away = Away(store_url, 1)
    lives = lives_of(away, fence)
    async with lives.life_of(execution_id, 0) as plan:
        away.left = 2
        await lives.progress.note_written(execution_id, plan, 0, 1)
    told = store.read(execution_id)
    assert told.status == Status.RUNNING
    assert told.progress is not None
    assert told.progress.members == (1, 0, 0)


async def test_a_life_that_is_stopped_without_a_database_stays_pending(
    store: ConductorStore, store_url: str, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    away = Away(store_url, 0)
    # An error instead would be recorded by DBOS, and no successor would go on.
    with pytest.raises(asyncio.CancelledError):
        async with lives_of(away, fence).life_of(execution_id, 0):
            away.left = 1
            raise asyncio.CancelledError
    assert store.read(execution_id).status == Status.RUNNING


async def test_no_life_begins_once_the_conductor_ends(
    store: ConductorStore, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    lives = lives_of(store, fence)
    lives.closed = True
    with pytest.raises(asyncio.CancelledError):
        async with lives.life_of(execution_id, 0):
            pytest.fail("it began")
    assert store.read(execution_id).stage is None


async def test_a_successor_knows_of_every_whole_member(
    store: ConductorStore, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    first = lives_of(store, fence)
    async with first.life_of(execution_id, 0) as plan:
        await first.progress.note_written(execution_id, plan, 0, 1)
        await first.progress.note_written(execution_id, plan, 0, plan.n_times)
        await first.progress.note_written(execution_id, plan, 1, 1)
    second = lives_of(store, store.issue_fence())
    async with second.life_of(execution_id, 0):
        assert second.running[execution_id].written == [plan.n_times, 0, 0]


@on_both_databases
async def test_one_conducts_while_another_waits_and_then_goes_on(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    # By itself it would take longer than a test waits.
    execution_id = submit(store, n_steps=400, n_samples=2)
    with spawned(store_url, journal, step_s=1.0) as first:
        await until(store, execution_id, lambda e: e.progress is not None)
        with spawned(store_url, journal, step_s=0.0):
            await comes_true(lambda: journal.lines().count("launched") == 2)
            # A few of its attempts at the lease.
            await asyncio.sleep(1)
            assert newest_fence(store) == 1
            first.kill()
            assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert newest_fence(store) == 2


@on_both_databases
@pytest.mark.parametrize("edited", [False, True], ids=["same code", "edited code"])
async def test_after_kill_9_recorded_members_are_not_computed_again(
    store: ConductorStore, store_url: str, journal: Journal, edited: bool
) -> None:
    execution_id = submit(store, n_steps=2, n_samples=1)
    longer = submit(store, n_steps=400, n_samples=2)
    with spawned(store_url, journal, step_s=0.3):
        await until(store, execution_id, finished)
        await until(store, longer, lambda e: e.progress is not None)
    before = journal.lines()
    with spawned(store_url, journal, step_s=0.0, extra="edited" if edited else None):
        assert (await until(store, longer, finished)).status == Status.COMPLETED
    again = journal.lines()[len(before) :]
    assert "create" not in again
    assert "fetch" not in again
    assert sorted(line for line in again if line.startswith("member")) == ["member 0", "member 1"]
    assert store.read(execution_id).status == Status.COMPLETED


def newest_fence(store: ConductorStore) -> int:
    with store.engine.connect() as connection:
        return connection.execute(sa.select(sa.func.max(conductors.c.fence))).scalar_one()


@contextmanager
def spawned(
    store_url: str, journal: Journal, step_s: float, extra: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Conduct in a process of its own, which is killed at the end."""
    command = [sys.executable, "-m", "tests.deployments.conductor.conducting_process", store_url]
    command += [str(journal.path), str(step_s), *([extra] if extra else [])]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_watch_that_ends_ends_the_conductor(store_url: str, journal: Journal) -> None:
    """Left alone, readiness would stay as it was for ever; whoever comes next watches again."""
    made = conducting(store_url, StandIns(journal), components={"fcn3": "nobody"})
    with pytest.raises(KeyError, match="nobody"):
        await asyncio.wait_for(made.run(), LIMIT_S)
