"""Measures how the thread of a model spends its time, and so how busy its GPU is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TypeVar

from deployments.runtime.metrics import MODEL_SECONDS, MODEL_STEP_SECONDS, RAY, Recorder

T = TypeVar("T")


class Activity(StrEnum):
    """What the thread of a model does; the label ``state`` of `MODEL_SECONDS`."""

    IDLE = "idle"
    """It has no job, or waits for initial conditions."""
    LOADING = "loading"
    """It loads the model."""
    BUSY = "busy"
    """It computes, including copies to and from the GPU."""
    WRITING = "writing"
    """It waits until earlier steps are written: the window is full."""
    CONDITIONING = "conditioning"
    """It waits for a field that another model computes."""
    GPU_LOCK = "turn"
    """It waits for the lock on the GPU, or for weights on their way to the GPU."""


class BusyClock:
    """Counts a model's seconds by activity; thread-safe.

    Parameters
    ----------
    model : str
        Name of the model in the settings.
    device : {'cuda', 'cpu'}
    now : callable
        Returns the time in seconds.
    """

    def __init__(
        self,
        model: str,
        device: str,
        recorder: Recorder = RAY,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._labels = {"model": model, "device": device}
        self._recorder = recorder
        self._now = now
        self._lock = threading.Lock()
        self._activity = Activity.IDLE
        self._since = now()
        self._busy_s = 0.0

    @contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Count the time of the block as `activity`, then return to the previous activity."""
        previous = self._switch(activity)
        try:
            yield
        finally:
            self._switch(previous)

    def tick(self) -> None:
        """Count the current activity up to now, since it may last for minutes."""
        self._switch(None)

    def steps(self, steps: Iterable[T], work: str) -> Iterator[T]:
        """Pass time steps on, and record the busy seconds of each with the label `work`."""
        start = self._busy_seconds()
        for step in steps:
            busy = self._busy_seconds() - start
            self._recorder.observe(MODEL_STEP_SECONDS, busy, work=work, **self._labels)
            yield step
            start = self._busy_seconds()

    def _busy_seconds(self) -> float:
        self.tick()
        return self._busy_s

    def _switch(self, activity: Activity | None) -> Activity:
        with self._lock:
            now = self._now()
            previous, elapsed = self._activity, now - self._since
            self._since = now
            self._activity = activity or previous
            if previous is Activity.BUSY:
                self._busy_s += elapsed
        self._recorder.add(MODEL_SECONDS, elapsed, state=previous, **self._labels)
        return previous
