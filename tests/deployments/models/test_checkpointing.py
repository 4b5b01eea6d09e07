"""Checkpoints of members that are interrupted and resumed."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.exceptions import ActorDiedError

from deployments.runtime.failures import TransientFailure
from deployments.runtime.import_path import LoaderOptions
from deployments.synthetic.fcn3 import SyntheticFCN3
from tests.deployments.models.fcn3_replicas import (
    GRID,
    Packager,
    make_replica,
    member_job,
    outcome,
    plain_loop,
)
from workflows.errors import StageFailed


class WithoutState(SyntheticFCN3):
    """Has another interface to its state, as another makani might."""

    def internal_state(self) -> dict[str, NDArray[Any]]:
        raise AttributeError("another makani")


def load_without_state(device: str, **grid: int) -> WithoutState:
    return WithoutState(device, **grid)


async def interrupt(packager: Packager, analysis: Path) -> None:
    """Compute member 1 until it has a checkpoint, and stop it."""
    replica = await make_replica(packager, checkpoint_steps=2)
    updates = replica.forecast_member(member_job(analysis, member=1, n_steps=3000))
    async with aclosing(updates):
        async for _ in updates:
            if packager.checkpoints:
                break
    assert packager.checkpoints[1].step % 2 == 0


async def test_an_interrupted_member_resumes_in_another_replica(
    packager: Packager, analysis: Path
) -> None:
    await interrupt(packager, analysis)
    step = packager.checkpoints[1].step
    packager.steps.clear()
    job = member_job(analysis, member=1, n_steps=step + 5)
    another = await make_replica(packager, checkpoint_steps=2)
    assert (await outcome(another.forecast_member(job)))[-1] == step + 6
    assert packager.steps.keys() == {(1, time) for time in range(step + 1, step + 6)}
    steps = [packager.steps[1, time] for time in range(step + 1, step + 6)]
    assert np.array_equal(steps, plain_loop(job)[step + 1 :])
    assert not packager.checkpoints


@pytest.mark.parametrize(("member", "changes"), [(1, {"origin": "another model"}), (2, {})])
async def test_a_checkpoint_of_another_model_or_member_is_not_used(
    packager: Packager,
    analysis: Path,
    caplog: pytest.LogCaptureFixture,
    member: int,
    changes: dict[str, Any],
) -> None:
    await interrupt(packager, analysis)
    packager.checkpoints[member] = replace(packager.checkpoints.pop(1), **changes)
    packager.steps.clear()
    another = await make_replica(packager, checkpoint_steps=2)
    job = member_job(analysis, member=member)
    assert (await outcome(another.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[member, step] for step in range(5)], plain_loop(job))
    assert "restarts: its checkpoint has another origin" in caplog.text


async def test_a_checkpoint_that_cannot_be_written_does_not_fail_the_member(
    packager: Packager, analysis: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packager.write_failure = StageFailed("package", "no space left on the disk")
    replica = await make_replica(packager, checkpoint_steps=2)
    job = member_job(analysis)
    assert (await outcome(replica.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[0, step] for step in range(5)], plain_loop(job))
    assert "no checkpoint at step 2" in caplog.text


async def test_reading_a_checkpoint_is_retried_when_the_packager_dies(
    packager: Packager, analysis: Path
) -> None:
    await interrupt(packager, analysis)
    step = packager.checkpoints[1].step
    packager.steps.clear()
    packager.read_failures = [ActorDiedError()]
    another = await make_replica(packager, checkpoint_steps=2)
    job = member_job(analysis, member=1, n_steps=step + 5)
    assert (await outcome(another.forecast_member(job)))[-1] == step + 6
    assert packager.steps.keys() == {(1, time) for time in range(step + 1, step + 6)}


async def test_a_checkpoint_that_cannot_be_read_or_removed_does_not_fail_the_member(
    packager: Packager, analysis: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await interrupt(packager, analysis)
    packager.steps.clear()
    packager.read_failures = [OSError(5, "Input/output error")]
    packager.remove_failure = ActorDiedError()
    another = await make_replica(packager, checkpoint_steps=2)
    job = member_job(analysis, member=1)
    assert (await outcome(another.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[1, step] for step in range(5)], plain_loop(job))
    assert "restarts: its checkpoint could not be read" in caplog.text
    assert "checkpoints of member 1 could not be removed yet" in caplog.text


async def test_a_checkpoint_that_the_model_cannot_use_is_removed(
    packager: Packager, analysis: Path
) -> None:
    """Otherwise every further attempt would fail the same way."""
    await interrupt(packager, analysis)
    packager.steps.clear()
    packager.checkpoints[1] = replace(packager.checkpoints[1], internal={})
    another = await make_replica(packager, checkpoint_steps=2)
    job = member_job(analysis, member=1)
    with pytest.raises(TransientFailure, match="member 1 restarts"):
        await outcome(another.forecast_member(job))
    assert not packager.checkpoints
    assert (await outcome(another.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[1, step] for step in range(5)], plain_loop(job))


async def test_a_state_that_cannot_be_read_does_not_fail_the_member(
    packager: Packager,
    analysis: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loader = LoaderOptions(
        name="fcn3", loader=f"{__name__}:load_without_state", options=GRID.model_dump()
    )
    replica = await make_replica(packager, checkpoint_steps=2, loader=loader)
    job = member_job(analysis)
    assert (await outcome(replica.forecast_member(job)))[-1] == 5
    assert "no checkpoint at step 2" in caplog.text
