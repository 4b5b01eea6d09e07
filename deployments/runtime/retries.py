"""Retry policies, and the one loop that applies them.

tenacity was considered. Its clock cannot be replaced, and multiplicative jitter, Retry-After hints
and a deadline that spans several calls would all be our callbacks. Polling loops and recorded
steps need the delays without its loop. tenacity would replace only the ten lines of `retry`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

logger = logging.getLogger("ray.serve")

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a call is tried, and how long to wait between two attempts."""

    attempts: int | None = None
    """Total number of calls; None for no limit."""
    initial_delay_s: float
    """Delay before the second attempt."""
    factor: float = 2.0
    """Ratio of each delay to the one before it."""
    max_delay_s: float = math.inf
    """Upper limit of a delay; jitter is added to it."""
    max_requested_delay_s: float = 60.0
    """Upper limit of a delay that a server requests."""
    deadline_s: float = math.inf
    """No attempt starts later than this after the first one."""
    jitter: float = 0.0
    """Maximum random share added to each delay, so that callers that failed together do not retry
    together."""


DATABASE_OUTAGE = RetryPolicy(initial_delay_s=0.5, factor=1.0, deadline_s=60.0)


class Backoff:
    """The delays between the attempts of one call, the first of which starts now."""

    def __init__(self, policy: RetryPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._give_up_at = clock() + policy.deadline_s
        self._delay_s = policy.initial_delay_s
        self.attempts = 1
        """Number of attempts that have started."""

    def next_delay_s(self, requested_s: float | None = None) -> float | None:
        """Return how long to wait before the next attempt, or None if there must not be one.

        A delay that the server requested replaces the policy's.
        """
        policy = self._policy
        if policy.attempts is not None and self.attempts >= policy.attempts:
            return None
        delay_s = self._delay_s
        if requested_s is not None:
            delay_s = min(requested_s, policy.max_requested_delay_s)
        # Spreads load; not relevant to security.
        delay_s *= random.uniform(1.0, 1.0 + policy.jitter)  # noqa: S311
        if self._clock() + delay_s > self._give_up_at:
            return None
        self.attempts += 1
        self._delay_s = min(self._delay_s * policy.factor, policy.max_delay_s)
        return delay_s


async def retry(
    call: Callable[[], Awaitable[R]],
    policy: RetryPolicy,
    *,
    retry_if: Callable[[Exception], bool],
    requested_delay_s: Callable[[Exception], float | None] = lambda _: None,
    on_retry: Callable[[Exception, float], None] = lambda *_: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> R:
    """Repeat a call until it succeeds, fails permanently or the policy ends.

    Parameters
    ----------
    call : callable
        Returns a new awaitable for each attempt.
    retry_if : callable
        Returns whether another attempt may succeed after an error.
    requested_delay_s : callable, optional
        Returns the delay that an error requests, if any.
    on_retry : callable, optional
        Called with the error and the delay before each wait.

    Raises
    ------
    Exception
        The error of the last attempt.
    """
    backoff = Backoff(policy, clock=clock)
    while True:
        try:
            return await call()
        except Exception as error:
            if not retry_if(error):
                raise
            delay_s = backoff.next_delay_s(requested_delay_s(error))
            if delay_s is None:
                raise
            on_retry(error, delay_s)
        await sleep(delay_s)


async def retry_on_db_outage(
    call: Callable[[], Awaitable[R]],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> R:
    """Repeat a call while the database does not answer, as DBOS does.

    A failure would be recorded, so a forecast of hours would be lost to a restart of the database.
    If the outage lasts, the Conductor's own queries fail as well and it stops all executions.
    """
    # Model replicas also use this module, and need no SQL.
    from sqlalchemy.exc import OperationalError

    return await retry(
        call,
        DATABASE_OUTAGE,
        retry_if=lambda error: isinstance(error, OperationalError),
        on_retry=lambda error, _: logger.warning(
            "the execution store does not answer, retrying: %s", getattr(error, "orig", error)
        ),
        sleep=sleep,
        clock=clock,
    )


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header requests, or None if it is invalid.

    References
    ----------
    RFC 9110, section 10.2.3.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is in UTC.
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)
