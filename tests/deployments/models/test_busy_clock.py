"""Where a model's time goes: each moment counts once, while it passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.models.busy_clock import BusyClock, Doing
from deployments.models.worker import Job, ModelWorker, written_steps
from deployments.models.write_window import WriteWindow
from deployments.runtime.metrics import MODEL_SECONDS, MODEL_STEP_SECONDS
from tests.measured import Measured

STEP_S = 0.05


class Time:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def at() -> Time:
    return Time()


@pytest.fixture
def clock(measured: Measured, at: Time) -> BusyClock:
    return BusyClock("fcn3", "cuda", measured, at)


def spent(measured: Measured) -> dict[Doing, float]:
    totals = {doing: measured.total(MODEL_SECONDS, model="fcn3", state=doing) for doing in Doing}
    return {doing: seconds for doing, seconds in totals.items() if seconds}


def test_each_second_counts_for_what_is_done(
    clock: BusyClock, measured: Measured, at: Time
) -> None:
    at.now += 1
    with clock.during(Doing.TURN):
        at.now += 2
        with clock.during(Doing.BUSY):
            at.now += 4
            with clock.during(Doing.WRITING):
                at.now += 8
            at.now += 16
        at.now += 32
    at.now += 64
    clock.tick()
    assert spent(measured) == {
        Doing.IDLE: 1 + 64,
        Doing.TURN: 2 + 32,
        Doing.BUSY: 4 + 16,
        Doing.WRITING: 8,
    }
    assert measured.values(MODEL_SECONDS, device="cuda") == measured.values(MODEL_SECONDS)


def test_what_lasts_is_counted_while_it_lasts(
    clock: BusyClock, measured: Measured, at: Time
) -> None:
    with clock.during(Doing.BUSY):
        at.now += 3
        clock.tick()
        assert spent(measured) == {Doing.BUSY: 3}
        at.now += 1
    assert spent(measured) == {Doing.BUSY: 4}


def test_a_step_that_raises_gives_the_time_back(
    clock: BusyClock, measured: Measured, at: Time
) -> None:
    with pytest.raises(OSError), clock.during(Doing.BUSY):
        at.now += 1
        raise OSError
    at.now += 1
    clock.tick()
    assert spent(measured) == {Doing.BUSY: 1, Doing.IDLE: 1}


def test_a_step_takes_what_it_was_busy(clock: BusyClock, measured: Measured, at: Time) -> None:
    def steps() -> Iterator[int]:
        for step in range(3):
            with clock.during(Doing.CONDITIONING):
                at.now += 10
            at.now += 1 + step
            yield step

    with clock.during(Doing.BUSY):
        for _ in clock.steps(steps(), "forecast"):
            with clock.during(Doing.WRITING):
                at.now += 100
    assert measured.values(MODEL_STEP_SECONDS, work="forecast") == [1, 2, 3]


async def test_a_replica_waits_for_the_disk_and_is_not_busy_then(measured: Measured) -> None:
    def steps(model: Any, job: Job) -> Generator[NDArray[np.float32]]:
        for _ in range(4):
            time.sleep(STEP_S)
            yield np.zeros(1, np.float32)

    async def slowly(index: int, fields: NDArray[np.float32]) -> None:
        await asyncio.sleep(4 * STEP_S)

    replica = ModelWorker("fcn3", object, clock=BusyClock("fcn3", "cpu", measured))
    await replica.start()
    began = time.monotonic()
    told = [p async for p in written_steps(replica, Job(1), steps, WriteWindow(slowly, 1))]
    took = time.monotonic() - began
    assert told[-1].written == 4
    replica.clock.tick()
    seconds = spent(measured)
    assert 4 * STEP_S <= seconds[Doing.BUSY]
    # Three steps wait for room; when the last one is written the model is free already.
    assert seconds[Doing.WRITING] > 0
    assert seconds[Doing.BUSY] + seconds[Doing.WRITING] <= took
    each = measured.values(MODEL_STEP_SECONDS)
    assert len(each) == 4
    assert min(each) >= STEP_S


async def test_loading_counts_as_such_while_it_lasts(measured: Measured) -> None:
    def load() -> object:
        time.sleep(1.5)
        # By the replica's own tick.
        assert measured.total(MODEL_SECONDS, state=Doing.LOADING) > 0.9
        return object()

    replica = ModelWorker("fcn3", load, clock=BusyClock("fcn3", "cpu", measured))
    await replica.start()
    assert replica.failure is None
    assert 1.5 <= measured.total(MODEL_SECONDS, state=Doing.LOADING)
