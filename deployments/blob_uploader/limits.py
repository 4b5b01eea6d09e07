"""Limits of what is sent to Blob Storage at once, how often and for how long."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.log_context import ContextThreadPool
from deployments.runtime.retries import RetryPolicy


class BlobLimits(BaseModel):
    """Limits of one process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    small_in_flight: int = Field(default=32, ge=1)
    """Small files that are sent at once, each held in memory."""
    small_bytes: int = Field(default=8 << 20, ge=0, le=64 << 20)
    """Largest small file. The chunk of a field at 0.25 degrees has 4 MiB; azure-storage-blob
    splits what is over 64 MiB."""
    blocks_in_flight: int = Field(default=4, ge=1)
    """Blocks of large files that are sent at once, each held in memory."""
    block_bytes: int = Field(default=16 << 20, ge=1 << 16, le=1 << 30)
    """Azurite is faster with these than with blocks of 8 MiB, and no faster with larger ones."""
    retries: RetryPolicy = RetryPolicy(attempts=6, initial_delay_s=0.3, jitter=0.5)
    """Retries of one call."""
    request_timeout_s: float = Field(default=60.0, gt=0)
    """Limit for connecting, for sending a part and for waiting for the answer, each."""


@dataclass(frozen=True)
class SharedLimits:
    """What all uploads of a process share, so that they are limited together."""

    threads: ThreadPoolExecutor
    """For blocking calls."""
    small: asyncio.Semaphore
    blocks: asyncio.Semaphore

    @classmethod
    def of(cls, limits: BlobLimits) -> SharedLimits:
        """Return new ones."""
        # Four threads more than blocks, so that listings do not wait for those.
        return cls(
            ContextThreadPool(limits.blocks_in_flight + 4, "blob"),
            asyncio.Semaphore(limits.small_in_flight),
            asyncio.Semaphore(limits.blocks_in_flight),
        )
