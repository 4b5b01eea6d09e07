"""The FCN3 deployment outside of Serve, with a tiny synthetic model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.deployments.models.fcn3_replicas import (
    GRID,
    SEEDS,
    Packager,
    make_replica,
    member_job,
    outcome,
    plain_loop,
)
from workflows.dataset import Origin
from workflows.errors import ModelUnavailable, StageFailed, StaleConductor
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid
from workflows.readiness import NotReady


@pytest.fixture
async def replica(packager: Packager) -> Any:
    return await make_replica(packager)


async def test_concurrent_jobs_do_not_affect_each_other(
    replica: Any, packager: Packager, analysis: Path
) -> None:
    jobs = [member_job(analysis, member) for member in range(len(SEEDS))]
    updates = await asyncio.gather(*(outcome(replica.forecast_member(job)) for job in jobs))

    assert [written[-1] for written in updates] == [5, 5, 5]
    for job in jobs:
        steps = [packager.steps[job.member, time] for time in range(5)]
        assert np.array_equal(steps, plain_loop(job))


async def test_reports_the_origin_and_the_description_of_its_model(replica: Any) -> None:
    status = await replica.check_readiness()
    assert status.origin == Origin(
        name="fcn3",
        loader="deployments.synthetic.fcn3:load_fcn3",
        synthetic=True,
        weights="none (synthetic)",
    )
    described = status.description
    assert described.input_variables == described.output_variables == VARIABLES
    assert (described.history_hours, described.step_hours, described.grid) == ((0,), 6, GRID)
    assert described.is_stochastic


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_caller_that_goes_away_releases_the_model_while_writes_are_stuck(
    replica: Any, packager: Packager, analysis: Path, how: str
) -> None:
    packager.gate.clear()
    updates = replica.forecast_member(member_job(analysis, n_steps=300))
    if how == "cancelled":
        waiting = asyncio.create_task(outcome(updates))
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert (await anext(updates)).written == 0
        await updates.aclose()
    # None of its steps is written after that, and the model is free.
    packager.gate.set()
    assert (await outcome(replica.forecast_member(member_job(analysis, member=1))))[-1] == 5
    assert {member for member, _ in packager.steps} == {1}


async def test_a_step_that_cannot_be_written_fails_the_member(
    replica: Any, packager: Packager, analysis: Path
) -> None:
    packager.step_failure = StageFailed("package", "no space left on the disk")
    with pytest.raises(StageFailed, match="no space left on the disk"):
        await outcome(replica.forecast_member(member_job(analysis, n_steps=300)))
    packager.step_failure = None
    assert (await outcome(replica.forecast_member(member_job(analysis))))[-1] == 5


async def test_an_older_conductor_is_refused(replica: Any, analysis: Path) -> None:
    await outcome(replica.forecast_member(member_job(analysis, fence=2)))
    with pytest.raises(StaleConductor):
        await outcome(replica.forecast_member(member_job(analysis, fence=1)))


async def test_a_model_that_does_not_fit_is_unavailable(packager: Packager, analysis: Path) -> None:
    replica = await make_replica(packager, grid=Grid(n_lat=7, n_lon=8))

    status = await replica.check_readiness()
    assert isinstance(status, NotReady)
    assert "6 values of lat" in status.reason
    with pytest.raises(ModelUnavailable, match="6 values of lat"):
        await outcome(replica.forecast_member(member_job(analysis)))


async def test_initial_conditions_of_another_machine_are_read_by_handle(
    packager: Packager, analysis: Path, tmp_path: Path
) -> None:
    class Source:
        async def read(self, plan: Any, execution_id: str) -> Any:
            state = np.load(analysis)
            # As arrays from Ray's object store are.
            state.flags.writeable = False
            return state, None

    replica = await make_replica(packager, Source())
    job = member_job(tmp_path / "elsewhere" / "ifs.npy")
    assert (await outcome(replica.forecast_member(job)))[-1] == 5
    steps = [packager.steps[0, time] for time in range(5)]
    assert np.array_equal(steps, plain_loop(member_job(analysis)))
