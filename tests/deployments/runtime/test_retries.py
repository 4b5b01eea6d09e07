"""Retry policies and the retry loop, with a clock that only sleeping moves."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from sqlite3 import OperationalError as Locked

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from deployments.runtime.retries import (
    Backoff,
    RetryPolicy,
    parse_retry_after,
    retry,
    retry_on_db_outage,
)

POLICY = RetryPolicy(attempts=5, initial_delay_s=1.0, max_delay_s=5.0)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def delays(policy: RetryPolicy, clock: Clock, *, at_most: int = 20) -> list[float]:
    """Return the delays of a policy when the attempts themselves take no time."""
    backoff, found = Backoff(policy, clock=clock), []
    while len(found) < at_most and (delay_s := backoff.next_delay_s()) is not None:
        found.append(delay_s)
        clock.now += delay_s
    return found


def test_delays_grow_up_to_the_limit(clock: Clock) -> None:
    assert delays(POLICY, clock) == [1, 2, 4, 5]


def test_one_attempt_has_no_delay(clock: Clock) -> None:
    assert delays(replace(POLICY, attempts=1), clock) == []


def test_a_factor_of_one_keeps_the_delay(clock: Clock) -> None:
    assert delays(replace(POLICY, factor=1.0), clock) == [1, 1, 1, 1]


def test_no_attempt_starts_after_the_deadline(clock: Clock) -> None:
    unlimited = replace(POLICY, attempts=None, deadline_s=12.0)
    assert delays(unlimited, clock) == [1, 2, 4, 5]
    assert clock.now == 12


def test_delays_without_a_limit_do_not_overflow(clock: Clock) -> None:
    unlimited = replace(POLICY, attempts=None, max_delay_s=math.inf)
    assert delays(unlimited, clock, at_most=2000)[-1] == math.inf


def test_jitter_only_lengthens_delays(clock: Clock) -> None:
    jittered = replace(POLICY, attempts=None, factor=1.0, jitter=0.5)
    found = delays(jittered, clock, at_most=1000)
    assert 1.0 <= min(found) < 1.1 and 1.4 < max(found) <= 1.5


def test_a_requested_delay_replaces_the_policys(clock: Clock) -> None:
    backoff = Backoff(replace(POLICY, max_requested_delay_s=30.0), clock=clock)
    delays = [backoff.next_delay_s(requested_s) for requested_s in (3.0, None, 0.0, 100.0, 1.0)]
    assert delays == [3.0, 2.0, 0.0, 30.0, None]


async def test_retry_returns_the_first_success(clock: Clock) -> None:
    errors = [ConnectionError("first"), ConnectionError("second")]
    retried: list[tuple[str, float]] = []

    async def call() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert "done" == await retry(
        call,
        POLICY,
        retry_if=lambda error: isinstance(error, ConnectionError),
        requested_delay_s=lambda error: 0.5 if str(error) == "second" else None,
        on_retry=lambda error, delay_s: retried.append((str(error), delay_s)),
        sleep=clock.sleep,
        clock=clock,
    )
    assert retried == [("first", 1.0), ("second", 0.5)]
    assert clock.slept == [1.0, 0.5]


async def test_retry_raises_other_errors_at_once(clock: Clock) -> None:
    async def call() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await retry(call, POLICY, retry_if=lambda _: False, sleep=clock.sleep, clock=clock)
    assert clock.slept == []


async def test_retry_raises_the_last_error(clock: Clock) -> None:
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        raise ConnectionError(made)

    with pytest.raises(ConnectionError, match="5"):
        await retry(call, POLICY, retry_if=lambda _: True, sleep=clock.sleep, clock=clock)
    assert clock.slept == [1, 2, 4, 5]


async def test_a_database_gets_a_minute_to_return(clock: Clock) -> None:
    async def call() -> float:
        if clock.now < 59:
            raise OperationalError("SELECT 1", {}, Locked("away"))
        return clock.now

    assert await retry_on_db_outage(call, sleep=clock.sleep, clock=clock) == 59


async def test_a_longer_database_outage_is_an_error(clock: Clock) -> None:
    async def call() -> None:
        raise OperationalError("SELECT 1", {}, Locked("away"))

    with pytest.raises(OperationalError):
        await retry_on_db_outage(call, sleep=clock.sleep, clock=clock)
    assert 59 < clock.now <= 60


async def test_other_database_errors_are_not_retried(clock: Clock) -> None:
    async def call() -> None:
        raise IntegrityError("INSERT", {}, Exception())

    with pytest.raises(IntegrityError):
        await retry_on_db_outage(call, sleep=clock.sleep, clock=clock)
    assert clock.slept == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("9" * 400, math.inf),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("0.5", None),
        ("nan", None),
        ("٣", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
    ],
)
def test_parse_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000"])
def test_parse_retry_after_as_a_date(zone: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 18 < (parse_retry_after(date.replace("GMT", zone)) or 0) <= 20
