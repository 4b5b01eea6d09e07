"""Executions from plan to results, with stand-in deployments and a real store and DBOS."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from deployments.results.messages import CompletedMembers
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import (
    TIMEOUT_S,
    WORKFLOW,
    conductor_loop,
    finished,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns
from tests.deployments.store.records import on_both_databases
from workflows import Status
from workflows.errors import DiskFull, StageFailed


@on_both_databases
async def test_stages_follow_in_order(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    execution_id = submit(store, output_format="netcdf4")
    async with conductor_loop(store_url, StandIns(journal)):
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED
    manifest = store.manifest(execution_id)
    assert manifest is not None and done.results == manifest.summary()
    assert manifest.status == "completed"
    assert manifest.completion_time is not None
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


async def test_failed_stage_stops_the_others_and_its_reason_is_logged_once(
    store: ConductorStore, store_url: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(job: Any, written: int) -> None:
        if job.member == 1:
            raise StageFailed("inference", "the core returned NaN")

    execution_id = submit(store)
    stand_ins = StandIns(journal, step_s=0.05, before={"step": refuse})
    async with conductor_loop(store_url, stand_ins):
        failed = await until(store, execution_id, finished)
        assert failed.status == Status.FAILED
        assert failed.stage == "inference"
        assert failed.error_message == "the core returned NaN"
        # DBOS's own message about the same failure is dropped.
        records = caplog.records
        errors = [record.getMessage() for record in records if record.levelname == "ERROR"]
        assert errors == [f"{execution_id} failed at inference: the core returned NaN"]
        assert not any(record.exc_info for record in records)
        next_one = submit(store, n_samples=1)
        assert (await until(store, next_one, finished)).status == Status.COMPLETED
    assert journal.lines().count("begin 1") == 1
    # The files of the failed execution are removed, those of the next one are kept.
    assert [line for line in journal.lines() if line in ("purge", "clean")] == ["purge", "clean"]


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (StageFailed("inference", "the core returned NaN"), True),
        (DiskFull("inference", "OSError: No space left on device"), False),
    ],
)
async def test_retry_computes_only_members_that_are_not_complete(
    store: ConductorStore, store_url: str, journal: Journal, failure: StageFailed, kept: bool
) -> None:
    has_failed = False

    async def fail_once(job: Any, written: int) -> None:
        nonlocal has_failed
        if job.member == 1 and not has_failed:
            has_failed = True
            # Once the others are complete.
            await until(
                store, execution_id, lambda e: bool(e.progress) and e.progress.members == (3, 0, 3)
            )
            stand_ins.completed = CompletedMembers(members=(0, 2) if kept else ())
            raise failure

    execution_id = submit(store)
    stand_ins = StandIns(journal, before={"step": fail_once})
    async with conductor_loop(store_url, stand_ins) as loop:
        await until(store, execution_id, finished)
        store.request_retry(WORKFLOW.name, execution_id, max_queued=9)
        loop.nudge()
        done = await until(store, execution_id, finished)
    assert done.status == Status.COMPLETED, done.error_message
    # The retry began after the cleanup of the failed attempt.
    assert ("purge" in journal.lines()) is not kept
    assert done.progress is not None and done.progress.members == (3, 3, 3)
    begun = [line for line in journal.lines() if line.startswith("begin")]
    assert sorted(begun[3:]) == (["begin 1"] if kept else ["begin 0", "begin 1", "begin 2"])


async def test_next_execution_computes_while_a_result_is_proved(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    first = submit(store, n_samples=1)
    second = submit(store, n_samples=1)
    begun = asyncio.Event()

    async def note(job: Any, written: int) -> None:
        if job.execution_id == second:
            begun.set()

    async def wait(execution_id: str) -> None:
        if execution_id == first:
            async with asyncio.timeout(TIMEOUT_S):
                await begun.wait()

    stand_ins = StandIns(journal, before={"step": note, "describe_result": wait})
    async with conductor_loop(store_url, stand_ins, max_running={WORKFLOW.name: 1}):
        for execution_id in (first, second):
            done = await until(store, execution_id, finished)
            assert done.status == Status.COMPLETED, done.error_message


async def test_failure_reveals_no_path_of_the_server(
    store: ConductorStore, store_url: str, journal: Journal, tmp_path: Path
) -> None:
    async def refuse(_: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    execution_id = submit(store)
    async with conductor_loop(store_url, StandIns(journal, before={"create": refuse})):
        failed = await until(store, execution_id, finished)
    assert failed.error_message == "OSError: Read-only file system"
