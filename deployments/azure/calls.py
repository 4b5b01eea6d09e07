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

    When the service requests a delay, all calls wait. azure-storage-blob's retries do not do that:
    they treat 429 as final and ignore Retry-After.
    """

    def __init__(self, threads: Executor, policy: RetryPolicy) -> None:
        self._threads = threads
        self._policy = policy
        self._not_before = 0.0

    async def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a call; BlobUnavailable if the service was unavailable each time."""
        loop = asyncio.get_running_loop()
        bound = partial(call, *args, **kwargs)

        async def attempt() -> T:
            await self.wait_if_throttled()
            return await loop.run_in_executor(self._threads, bound)

        return await retry(
            attempt,
            self._policy,
            retry_if=lambda error: isinstance(error, BlobUnavailable),
            requested_delay_s=lambda error: getattr(error, "retry_after_s", None) or None,
            on_retry=self._throttle,
        )

    async def wait_if_throttled(self) -> None:
        """Wait for the end of the delay that the service requested of any of the calls."""
        # The delay may be extended during the wait.
        while (wait_s := self._not_before - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait_s)

    def _throttle(self, error: Exception, delay_s: float) -> None:
        if isinstance(error, BlobUnavailable) and error.retry_after_s is not None:
            now = asyncio.get_running_loop().time()
            self._not_before = max(self._not_before, now + delay_s)
