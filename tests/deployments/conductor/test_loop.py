"""Leading, standing by, and succeeding a Conductor that was killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from deployments.conductor.loop import COPIED_AT_ONCE
from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import conductors, executions, manifests
from tests.deployments.conductor.conductor_process import make_loop
from tests.deployments.conductor.harness import (
    TIMEOUT_S,
    conductor_loop,
    eventually,
    finished,
    has_progress,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns
from tests.deployments.store.records import MANIFEST, on_both_databases_slowly
from workflows import Status


@on_both_databases_slowly
async def test_standby_takes_over_when_the_leader_is_killed(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    # Undisturbed, it would take longer than the test waits.
    execution_id = submit(store, n_steps=400, n_samples=2)
    with spawned(store_url, journal, step_s=1.0) as first:
        await until(store, execution_id, has_progress)
        with spawned(store_url, journal, step_s=0.0):
            await eventually(lambda: journal.lines().count("launched") == 2)
            # Long enough for several attempts at the lease.
            await asyncio.sleep(1)
            assert newest_fence(store) == 1
            first.kill()
            assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert newest_fence(store) == 2


@on_both_databases_slowly
@pytest.mark.parametrize(
    "edited",
    [
        pytest.param(False, id="same code"),
        pytest.param(True, id="edited code", marks=pytest.mark.slow),
    ],
)
async def test_successor_of_a_killed_conductor_repeats_no_recorded_step(
    store: ConductorStore, store_url: str, journal: Journal, edited: bool
) -> None:
    execution_id = submit(store, n_steps=2, n_samples=1)
    longer = submit(store, n_steps=400, n_samples=2)
    with spawned(store_url, journal, step_s=0.3):
        await until(store, execution_id, finished)
        await until(store, longer, has_progress)
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
    """Run a Conductor in a process of its own, which is killed at the end."""
    command = [sys.executable, "-m", "tests.deployments.conductor.conductor_process", store_url]
    command += [str(journal.path), str(step_s), *([extra] if extra else [])]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_leader_copies_the_manifests_of_an_earlier_release(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    ids = {submit(store) for _ in range(COPIED_AT_ONCE + 1)}
    row = {"status": Status.COMPLETED, "former_results": MANIFEST.model_dump(mode="json")}
    with store.writing() as connection:
        connection.execute(sa.update(executions).values(row))
    async with conductor_loop(store_url, StandIns(journal)):
        await eventually(lambda: store.with_former_manifests() == [])
    with store.engine.connect() as connection:
        assert set(connection.scalars(sa.select(manifests.c.execution_id))) == ids
    assert all(store.manifest(execution_id) == MANIFEST for execution_id in ids)


async def test_loop_ends_when_a_background_task_fails(store_url: str, journal: Journal) -> None:
    """Without its watch, readiness would never change again; a successor has a new one."""
    loop = make_loop(store_url, StandIns(journal), components={"fcn3": "nobody"})
    with pytest.raises(KeyError, match="nobody"):
        await asyncio.wait_for(loop.run(), TIMEOUT_S)
