"""What a model's thread does with its time: the measure of how busy a GPU is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TypeVar

from deployments.runtime.metrics import MODEL_SECONDS, MODEL_STEP_SECONDS, RAY, Recorder

T = TypeVar("T")


class Doing(StrEnum):
    """What a model's thread does; each moment counts for one of them."""

    IDLE = "idle"
    """It has no job: nothing is asked of it, or initial conditions are not there yet."""
    LOADING = "loading"
    """The model is being loaded."""
    BUSY = "busy"
    """It computes: in the model's step, with what brings fields to the GPU and from it."""
    WRITING = "writing"
    """It waits until earlier steps are written: the window is full."""
    CONDITIONING = "conditioning"
    """It waits for a field that another model computes."""
    TURN = "turn"
    """It waits until another model gives the GPU away, or for weights on their way to it."""


class BusyClock:
    """Counts a model's seconds by what it does; may be used by any thread.

    Parameters
    ----------
    model : str
        Its name in the settings.
    device : str
        Where it computes: ``cuda`` or ``cpu``.
    recorder : Recorder
    now : callable
        Gives seconds.
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
        self._doing = Doing.IDLE
        self._since = now()
        self._busy_s = 0.0

    @contextmanager
    def during(self, doing: Doing) -> Iterator[None]:
        """Count what the block takes as that, and what follows as what was before."""
        before = self._turn_to(doing)
        try:
            yield
        finally:
            self._turn_to(before)

    def tick(self) -> None:
        """Count up to now what is still being done: it may last for minutes."""
        self._turn_to(None)

    def steps(self, given: Iterable[T], work: str) -> Iterator[T]:
        """Pass steps on, and note what each took.

        Parameters
        ----------
        work : str
            What they are made for, as a label.
        """
        began = self._busy()
        for step in given:
            took = self._busy() - began
            self._recorder.observe(MODEL_STEP_SECONDS, took, work=work, **self._labels)
            yield step
            began = self._busy()

    def _busy(self) -> float:
        self.tick()
        return self._busy_s

    def _turn_to(self, doing: Doing | None) -> Doing:
        with self._lock:
            now = self._now()
            before, took = self._doing, now - self._since
            self._since = now
            self._doing = doing or before
            if before is Doing.BUSY:
                self._busy_s += took
        self._recorder.add(MODEL_SECONDS, took, state=before, **self._labels)
        return before
