"""A model's seconds by activity: each moment counts once, while it passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deployments.runtime.busy_clock import Activity, BusyClock
from deployments.runtime.metrics import MODEL_SECONDS, MODEL_STEP_SECONDS
from tests.measured import Measured


class Time:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(measured: Measured, time: Time) -> BusyClock:
    return BusyClock("fcn3", "cuda", measured, time)


def seconds_by_activity(measured: Measured) -> dict[Activity, float]:
    totals = {
        activity: measured.total(MODEL_SECONDS, model="fcn3", state=activity)
        for activity in Activity
    }
    return {activity: seconds for activity, seconds in totals.items() if seconds}


def test_each_second_counts_for_the_innermost_activity(
    clock: BusyClock, measured: Measured, time: Time
) -> None:
    time.now += 1
    with clock.during(Activity.GPU_LOCK):
        time.now += 2
        with clock.during(Activity.BUSY):
            time.now += 4
            with clock.during(Activity.WRITING):
                time.now += 8
            time.now += 16
        time.now += 32
    time.now += 64
    clock.tick()
    assert seconds_by_activity(measured) == {
        Activity.IDLE: 1 + 64,
        Activity.GPU_LOCK: 2 + 32,
        Activity.BUSY: 4 + 16,
        Activity.WRITING: 8,
    }
    assert measured.values(MODEL_SECONDS, device="cuda") == measured.values(MODEL_SECONDS)


def test_a_tick_counts_an_activity_that_still_lasts(
    clock: BusyClock, measured: Measured, time: Time
) -> None:
    with clock.during(Activity.BUSY):
        time.now += 3
        clock.tick()
        assert seconds_by_activity(measured) == {Activity.BUSY: 3}
        time.now += 1
    assert seconds_by_activity(measured) == {Activity.BUSY: 4}


def test_an_error_ends_the_activity(clock: BusyClock, measured: Measured, time: Time) -> None:
    with pytest.raises(OSError), clock.during(Activity.BUSY):
        time.now += 1
        raise OSError
    time.now += 1
    clock.tick()
    assert seconds_by_activity(measured) == {Activity.BUSY: 1, Activity.IDLE: 1}


def test_a_step_counts_only_busy_seconds(clock: BusyClock, measured: Measured, time: Time) -> None:
    def steps() -> Iterator[int]:
        for step in range(3):
            with clock.during(Activity.CONDITIONING):
                time.now += 10
            time.now += 1 + step
            yield step

    with clock.during(Activity.BUSY):
        for _ in clock.steps(steps(), "forecast"):
            with clock.during(Activity.WRITING):
                time.now += 100
    assert measured.values(MODEL_STEP_SECONDS, work="forecast") == [1, 2, 3]
