"""How often the steps of an execution are retried."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from dbos import DBOS

from deployments.runtime.failures import TransientFailure
from deployments.runtime.retries import Backoff, RetryPolicy

logger = logging.getLogger("ray.serve")

P = ParamSpec("P")
R = TypeVar("R")
AsyncFunction: TypeAlias = Callable[P, Coroutine[Any, Any, R]]

STEP = RetryPolicy(attempts=6, initial_delay_s=1.0)


def is_retryable(error: BaseException) -> bool:
    """Return whether another attempt at a step may succeed."""
    return isinstance(error, TransientFailure)


def _recorded(policy: RetryPolicy) -> Callable[[AsyncFunction[P, R]], AsyncFunction[P, R]]:
    def decorate(function: AsyncFunction[P, R]) -> AsyncFunction[P, R]:
        return DBOS.step(
            # By default DBOS records the qualified name, which would change with the class.
            name=function.__name__,
            retries_allowed=True,
            max_attempts=cast(int, policy.attempts),
            interval_seconds=policy.initial_delay_s,
            backoff_rate=policy.factor,
            should_retry=is_retryable,
            preemptible=True,
        )(function)

    return decorate


recorded_step = _recorded(STEP)
"""Make a function a step whose outcome is recorded: once it has ended it is not run again.

Six attempts take over half a minute. With four, one of 38 executions failed on a machine where a
hundred processes were killed (tests/chaos). A step that kills its replica fails after six, too.
"""
recorded_delivery = _recorded(replace(STEP, attempts=5))
"""The same for deliveries: within each attempt, the client already retries on its own."""
recorded_user_code = _recorded(replace(STEP, attempts=3))
"""The same for users' code: a run that crashed three times will crash again."""


async def retry_while_progressing(
    attempt: Callable[[Callable[[], None]], Awaitable[None]], what: str, policy: RetryPolicy = STEP
) -> None:
    """Retry a call, and restart the count of attempts whenever one has progressed.

    Parameters
    ----------
    attempt : callable
        Called with a function that it calls when it begins further on than all attempts before.
    what : str
        Name of the call in the log.

    Raises
    ------
    TransientFailure
        At once if no attempt has progressed: the caller is a step that has retries of its own.
        Otherwise when the policy ends.
    """
    backoff: Backoff | None = None

    def progressed() -> None:
        nonlocal backoff
        backoff = Backoff(policy)

    while True:
        try:
            await attempt(progressed)
            return
        except TransientFailure as error:
            delay_s = None if backoff is None else backoff.next_delay_s()
            if delay_s is None:
                raise
            logger.warning("%s resumes from its last checkpoint: %s", what, error)
            await asyncio.sleep(delay_s)
