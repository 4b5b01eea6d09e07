"""Blocking calls to Blob Storage from an event loop, retried together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

from deployments.azure.errors import BlobUnavailable
from deployments.runtime.retries import RetryPolicy, retry

P = ParamSpec("P")
T = TypeVar("T")


class RetriedCalls:
    """Run calls in threads and retry them while Blob Storage is unavailable.

    azure-storage-blob's own retries are off: they take 429 for a refusal and ignore Retry-After.
    When the service asks for a delay, all calls wait.

    Parameters
    ----------
    threads : Executor
    policy : RetryPolicy
    """

    def __init__(self, threads: Executor, policy: RetryPolicy) -> None:
        self._threads = threads
        self._policy = policy
        self._not_before = 0.0

    async def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a blocking call.

        Raises
        ------
        StageFailed
            BlobUnavailable if the service was busy or unreachable at each attempt.
        """
        loop = asyncio.get_running_loop()
        bound = partial(call, *args, **kwargs)

        async def attempt() -> T:
            await self.wait_if_throttled()
            return await loop.run_in_executor(self._threads, bound)

        return await retry(
            attempt,
            self._policy,
            retry_if=lambda error: isinstance(error, BlobUnavailable),
            requested_delay_s=_requested_delay_s,
            on_retry=self._throttle,
        )

    async def wait_if_throttled(self) -> None:
        """Wait until the delay that the service asked any of the calls for has passed."""
        # It may be extended meanwhile.
        while (wait_s := self._not_before - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait_s)

    def _throttle(self, error: Exception, delay_s: float) -> None:
        if isinstance(error, BlobUnavailable) and error.retry_after_s is not None:
            now = asyncio.get_running_loop().time()
            self._not_before = max(self._not_before, now + delay_s)


def _requested_delay_s(error: Exception) -> float | None:
    return isinstance(error, BlobUnavailable) and error.retry_after_s or None
