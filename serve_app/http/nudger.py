"""Background notification of the Conductor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("ray.serve")

Nudge = Callable[[], Awaitable[None]]
"""Asks the Conductor to look at the queue now."""


class Nudger:
    """Nudges the Conductor in the background, one call at a time.

    Nudges requested during a call are merged into a single call after it: the Conductor only has
    to look once after the last of them.
    """

    def __init__(self, nudge: Nudge) -> None:
        self._nudge = nudge
        self._task: asyncio.Task[None] | None = None
        self._requested = False

    def __call__(self) -> None:
        """Request a nudge; return at once."""
        self._requested = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="nudge")

    async def _send(self) -> None:
        while self._requested:
            self._requested = False
            try:
                await self._nudge()
            except Exception as error:
                # The Conductor also polls the queue, so a lost nudge only causes a delay.
                logger.warning("could not nudge the Conductor: %r", error)
