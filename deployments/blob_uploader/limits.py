"""How much goes to Blob Storage at once, how often and for how long."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.log_context import ContextThreadPool


class BlobLimits(BaseModel):
    """Bounds of one process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    small_in_flight: int = Field(default=32, ge=1)
    """Small files on their way at once, each held in memory."""
    small_bytes: int = Field(default=8 << 20, ge=0)
    """Up to which a file is small. A map of 0.25 degrees, the chunk of a Zarr store, has 4 MiB."""
    blocks_in_flight: int = Field(default=4, ge=1)
    """Blocks of larger files on their way at once, each held in memory."""
    block_bytes: int = Field(default=16 << 20, ge=1 << 16, le=1 << 30)
    """Azurite takes a file faster in these than in blocks of 8 MiB, no faster in larger ones."""
    attempts: int = Field(default=6, ge=1)
    """Tries of one call."""
    pause_s: float = Field(default=0.5, gt=0)
    """After the first try; doubles with each."""
    longest_pause_s: float = Field(default=60.0, gt=0)
    """Also where the service asks for a longer one."""
    request_timeout_s: float = Field(default=60.0, gt=0)
    """For connecting, for sending a part and for waiting for the answer, each."""


@dataclass(frozen=True)
class SharedLimits:
    """What all uploads of a process share, so that they are bounded together."""

    threads: ThreadPoolExecutor
    """For calls that block."""
    small: asyncio.Semaphore
    blocks: asyncio.Semaphore

    @classmethod
    def of(cls, limits: BlobLimits) -> SharedLimits:
        """Make one."""
        # As many threads as blocks, and some so that listings do not wait for those.
        return cls(
            ContextThreadPool(limits.blocks_in_flight + 4, "blob"),
            asyncio.Semaphore(limits.small_in_flight),
            asyncio.Semaphore(limits.blocks_in_flight),
        )
