"""One job in the thread of a model: its progress, and how to stop it from another thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from deployments.runtime.busy_clock import Activity
from workflows.errors import ExecutionCancelled

R = TypeVar("R")

STOP_INTERVAL_S = 0.1


class WorkerJob:
    """One job of a `ModelWorker`."""

    def __init__(self, fence: int) -> None:
        self.fence = fence
        """Fencing token of the Conductor that asked for the job."""
        self.during: Callable[[Activity], AbstractContextManager[None]] = lambda _: nullcontext()
        """Counts the time of a block as another activity than the surrounding one."""
        self.progress: Callable[[], Any] = lambda: None
        """Returns the current progress."""
        self.done = False
        """True when the thread has returned and everything is written."""
        self._stop = threading.Event()
        self._stopped_at: float | None = None

    def stop(self) -> None:
        """Ask the thread to stop before its next step."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
        self._stop.set()

    @property
    def overdue_s(self) -> float:
        """Seconds since `stop` was first called; 0 if it was not."""
        return 0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at

    def check(self) -> None:
        """Raise if the job must stop; called between two steps.

        Raises
        ------
        ExecutionCancelled
            If `stop` was called.
        """
        if self._stop.is_set():
            raise ExecutionCancelled("stopped between two steps")

    def wait_for(self, future: Future[R], activity: Activity) -> R:
        """Wait in the model's thread for a result of the event loop; count the time as `activity`.

        Raises
        ------
        ExecutionCancelled
            If `stop` was called; the future is cancelled.
        """
        with self.during(activity):
            while not wait({future}, timeout=STOP_INTERVAL_S).done:
                if self._stop.is_set():
                    future.cancel()
        self.check()
        return future.result()
