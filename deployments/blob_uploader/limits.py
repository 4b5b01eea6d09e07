"""Limits of requests to Blob Storage: concurrency, sizes, retries and timeouts."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.log_context import ContextThreadPool
from deployments.runtime.retries import RetryPolicy


class BlobLimits(BaseModel):
    """Limits of one process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    small_in_flight: int = Field(default=32, ge=1)
    """Small files that are sent concurrently, each held in memory."""
    small_bytes: int = Field(default=8 << 20, ge=0, le=64 << 20)
    """Largest file that is sent in one request. The chunk of a field at 0.25 degrees has 4 MiB."""
    blocks_in_flight: int = Field(default=4, ge=1)
    """Blocks of large files that are sent concurrently, each held in memory."""
    block_bytes: int = Field(default=16 << 20, ge=1 << 16, le=1 << 30)
    """Azurite is faster than with blocks of 8 MiB, and no faster with larger ones."""
    retries: RetryPolicy = RetryPolicy(attempts=6, initial_delay_s=0.3, jitter=0.5)
    request_timeout_s: float = Field(default=60.0, gt=0)
    """Limit for connecting, for sending a part and for waiting for the response, each."""


class SharedLimits:
    """The limits that all uploads of a process share."""

    def __init__(self, limits: BlobLimits) -> None:
        self.limits = limits
        # Four more threads than blocks, so that listings do not wait for blocks.
        self.threads = ContextThreadPool(limits.blocks_in_flight + 4, "blob")
        """For blocking calls."""
        self.small = asyncio.Semaphore(limits.small_in_flight)
        self.blocks = asyncio.Semaphore(limits.blocks_in_flight)
