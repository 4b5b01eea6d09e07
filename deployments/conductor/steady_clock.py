"""The clock by which things are removed for good."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

logger = logging.getLogger("ray.serve")

TOLERANCE_S = 5.0
"""A larger step against the monotonic clock is not a correction of the drift of a clock."""


class SteadyClock:
    """The wall clock, as long as it runs at the pace of the monotonic clock.

    A wall clock that is wrong for a while, such as after a restart without a time server, would
    make everything old at once. Its steps are seen by comparison; one that was there when the
    process started is not, so a new process waits as well.

    Parameters
    ----------
    settle_s : float
        How long it must have run steadily before it is trusted.
    """

    def __init__(
        self,
        settle_s: float,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settle_s = settle_s
        self._wall = wall
        self._monotonic = monotonic
        self._steady_since = monotonic()
        self._offset = wall() - self._steady_since

    def ago(self, seconds: float) -> datetime | None:
        """Return the time so many seconds ago, or None while the clock may be wrong.

        That is as long as it has not run steadily for as many seconds, `settle_s` at most.
        """
        now, elapsed = self._wall(), self._monotonic()
        step, self._offset = now - elapsed - self._offset, now - elapsed
        if abs(step) > TOLERANCE_S:
            logger.warning("the clock was set by %+.0f s: nothing expires for a while", step)
            self._steady_since = elapsed
        if elapsed - self._steady_since < min(seconds, self._settle_s):
            return None
        return datetime.fromtimestamp(now, UTC) - timedelta(seconds=seconds)
