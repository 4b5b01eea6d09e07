"""Stand-in models and data sources that replicas load by import path."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS
from deployments.synthetic.stormscope import SyntheticGOES, SyntheticInterpolation
from workflows.grids import LambertGrid


class SlowFCN3(SyntheticFCN3):
    """The synthetic model, with a pause before every step and a line in a journal for each.

    Parameters
    ----------
    step_s : float
    journal : path
        Gets ``begin <pid> <time>``, ``step <pid> <time>`` and, as the model's thread lets go of
        the iterator, ``end <pid> <time>``.
    at_once : path, optional
        Tells how many steps the journal may have before there are pauses.
    refused : path, optional
        While this file is there, the member with the seed that it holds fails in its next step.
    """

    def __init__(
        self,
        step_s: float,
        journal: str,
        at_once: str | None = None,
        refused: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._step_s = step_s
        self._journal = Path(journal)
        self._at_once = None if at_once is None else Path(at_once)
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
            and int(refused.read_text()) == (self._member_seed)
        )

    def _note(self, word: str) -> None:
        with self._journal.open("a") as file:
            file.write(f"{word} {os.getpid()} {time.time()}\n")

    def _pause(self) -> None:
        if self._at_once is not None:
            steps = self._journal.read_text().count("step")
            if steps < int(self._at_once.read_text()):
                return
        time.sleep(self._step_s)

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        steps = super().create_iterator(x, coords)

        def slowly() -> Iterator[Any]:
            self._note("begin")
            try:
                for step in steps:
                    self._pause()
                    if self._is_refused():
                        raise ValueError("the core returned NaN")
                    self._note("step")
                    yield step
            finally:
                self._note("end")

        return slowly()


def slow_fcn3(device: str, **options: Any) -> SlowFCN3:
    return SlowFCN3(**options)


def telling_ifs(**options: Any) -> SyntheticIFS:
    """Load the synthetic source; its provenance tells which GPUs its process can see."""
    source = SyntheticIFS(**options)
    source.weights = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}"
    return source


def hourly_once_allowed(device: str, *, px_model: Any, allowed: str) -> SyntheticInterpolation:
    """Load the synthetic interpolation, if a file is there."""
    if not Path(allowed).exists():
        raise FileNotFoundError(f"no weights at {allowed}")
    return SyntheticInterpolation(px_model)


class GappyGOES(SyntheticGOES):
    """The synthetic satellite, with pixels missing in the middle of its view."""

    def __call__(self, time: Any, variable: Any) -> Any:
        images = super().__call__(time, variable)
        images[:, 2, 4:6, 8:10] = float("nan")
        return images


def gappy_goes(*, satellite: str, **grid: Any) -> GappyGOES:
    return GappyGOES(satellite, LambertGrid(**grid))
