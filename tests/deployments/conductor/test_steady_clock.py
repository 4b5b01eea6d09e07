"""What makes things old: time that has passed, not a clock that was set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from deployments.conductor.options import RetentionOptions
from deployments.conductor.retention import Retention
from deployments.conductor.steady_clock import SteadyClock
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import make_context
from tests.deployments.conductor.stand_ins import Handle, Journal, StandIns
from workflows.execution import Status

DAY_S = 86_400.0
HOUR_S = 3_600.0


@dataclass
class Clocks:
    """The clocks of a machine."""

    wall: float = datetime(2026, 7, 1, tzinfo=UTC).timestamp()
    monotonic: float = 0.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def new_process(self) -> SteadyClock:
        return SteadyClock(HOUR_S, lambda: self.wall, lambda: self.monotonic)


def test_age_is_trusted_after_an_hour_without_steps() -> None:
    clocks = Clocks()
    clock = clocks.new_process()
    assert clock.ago(DAY_S) is None
    clocks.pass_by(HOUR_S)
    assert clock.ago(DAY_S) == datetime.fromtimestamp(clocks.wall, UTC) - timedelta(days=1)
    # A correction of drift is no step.
    clocks.wall += 1
    assert clock.ago(DAY_S) is not None


@pytest.mark.parametrize("step_s", [31 * DAY_S, -31 * DAY_S, 60.0])
def test_no_age_is_trusted_after_a_step(step_s: float) -> None:
    clocks = Clocks()
    clock = clocks.new_process()
    clocks.pass_by(2 * HOUR_S)
    assert clock.ago(DAY_S) is not None
    clocks.wall += step_s
    clocks.pass_by(10)
    assert clock.ago(DAY_S) is None
    clocks.wall -= step_s
    clocks.pass_by(10)
    assert clock.ago(DAY_S) is None
    clocks.pass_by(HOUR_S)
    assert clock.ago(DAY_S) is not None


def test_what_is_kept_for_seconds_waits_for_seconds() -> None:
    clocks = Clocks()
    clock = clocks.new_process()
    assert clock.ago(0) is not None
    assert clock.ago(20) is None
    clocks.pass_by(20)
    assert clock.ago(20) is not None


async def test_clock_that_is_ahead_for_a_while_expires_nothing(
    store: ConductorStore, journal: Journal, claimed: tuple[str, int]
) -> None:
    execution_id, fence = claimed
    store.update(fence, execution_id, status=Status.COMPLETED)
    context, _ = make_context(store, fence, Handle(StandIns(journal)))
    clocks = Clocks(wall=datetime.now(UTC).timestamp())

    def started() -> Retention:
        options = RetentionOptions(keep_s=30 * DAY_S)
        clock = clocks.new_process()
        return Retention(context.records, context, context.packager, options, clock)

    running = started()
    clocks.pass_by(2 * HOUR_S)
    await running.expire()
    clocks.wall += 31 * DAY_S
    restarted = started()
    for retention in (running, restarted):
        await retention.expire()
        clocks.pass_by(15)
        await retention.expire()
    clocks.wall -= 31 * DAY_S
    for retention in (running, restarted):
        clocks.pass_by(2 * HOUR_S)
        await retention.expire()
        clocks.pass_by(2 * HOUR_S)
        await retention.expire()
    assert store.read(execution_id).status == Status.COMPLETED
    assert journal.lines() == []
    # Time that passes makes it old.
    clocks.pass_by(31 * DAY_S)
    await running.expire()
    assert store.read(execution_id).status == Status.EXPIRED
    assert journal.lines() == ["purge"]
