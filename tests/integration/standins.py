"""Stand-in models and data sources that replicas load by import path."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.sleeping_models import load_interpolation
from deployments.synthetic.fcn3 import SyntheticFCN3
from deployments.synthetic.stormscope import SyntheticGOES, SyntheticInterpolation
from workflows.grids import LambertGrid


class SlowFCN3(SyntheticFCN3):
    """The synthetic model with a pause before every time step and a journal of all of them.

    Parameters
    ----------
    step_s : float
        Length of the pause.
    journal : path
        Receives lines ``begin <pid> <time>``, ``step <pid> <time>`` and, when the model's thread
        closes the iterator, ``end <pid> <time>``.
    unpaused : path, optional
        File with the number of steps in the journal before which there are no pauses.
    refused : path, optional
        While this file exists, the member whose seed it contains fails in its next step.
    """

    def __init__(
        self,
        step_s: float,
        journal: str,
        unpaused: str | None = None,
        refused: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._step_s = step_s
        self._journal = Path(journal)
        self._unpaused = None if unpaused is None else Path(unpaused)
        self._refused = None if refused is None else Path(refused)
        self._member_seed = 0

    def set_rng(self, seed: int = 333, reset: bool = True) -> None:
        super().set_rng(seed, reset)
        self._member_seed = seed

    def _is_refused(self) -> bool:
        refused = self._refused
        return (
            refused is not None
            and refused.exists()
            and int(refused.read_text()) == self._member_seed
        )

    def _record(self, event: str) -> None:
        with self._journal.open("a") as file:
            file.write(f"{event} {os.getpid()} {time.time()}\n")

    def _pause(self) -> None:
        if self._unpaused is not None:
            steps = self._journal.read_text().count("step")
            if steps < int(self._unpaused.read_text()):
                return
        time.sleep(self._step_s)

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        steps = super().create_iterator(x, coords)

        def paused() -> Iterator[Any]:
            self._record("begin")
            try:
                for step in steps:
                    self._pause()
                    if self._is_refused():
                        raise ValueError("the core returned NaN")
                    self._record("step")
                    yield step
            finally:
                self._record("end")

        return paused()


def load_slow_fcn3(device: str, **options: Any) -> SlowFCN3:
    return SlowFCN3(**options)


def load_sleeping_interpolation_if_allowed(
    device: str, *, px_model: Any, allowed: str, **options: Any
) -> SyntheticInterpolation:
    """Load the interpolation that takes its time if a file exists."""
    if not Path(allowed).exists():
        raise FileNotFoundError(f"no weights at {allowed}")
    return load_interpolation(device, px_model=px_model, **options)


class GappyGOES(SyntheticGOES):
    """The synthetic satellite with pixels missing in the middle of its view until a file exists."""

    def __init__(self, satellite: str, grid: LambertGrid, complete: str) -> None:
        super().__init__(satellite, grid)
        self._complete = Path(complete)

    def __call__(self, time: Any, variable: Any) -> Any:
        images = super().__call__(time, variable)
        if not self._complete.exists():
            images[:, 2, 4:6, 8:10] = float("nan")
        return images


def load_gappy_goes(*, satellite: str, complete: str, **grid: Any) -> GappyGOES:
    return GappyGOES(satellite, LambertGrid(**grid), complete)
