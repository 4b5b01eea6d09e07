"""The model that is killed: it takes its time, and notes what it computes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployments.synthetic.fcn3 import SyntheticFCN3
from deployments.synthetic.perturbation import STEP


class JournaledFCN3(SyntheticFCN3):
    """The synthetic model with a pause before every step, and a line in a journal after it.

    Parameters
    ----------
    step_s : float or str
        Seconds, or a file that tells them, and is read again while a step waits.
    journal : str
        Gets ``<seed> <pid> <step> <unix time at which the step began>``; steps count from the
        start of the forecast, also where it goes on from a checkpoint.
    """

    def __init__(self, step_s: float | str, journal: str, **options: Any) -> None:
        super().__init__(**options)
        self._step_s = step_s
        self._journal = Path(journal)

    def _pause(self) -> None:
        if not isinstance(self._step_s, str):
            time.sleep(self._step_s)
            return
        began = time.monotonic()
        while time.monotonic() - began < float(Path(self._step_s).read_text()):
            time.sleep(0.02)

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        steps, seed = super().create_iterator(x, coords), self._seed
        first = int(coords["lead_time"][0] / STEP)

        def slowly() -> Iterator[Any]:
            began = time.time()
            for number, step in enumerate(steps, first):
                self._pause()
                with self._journal.open("a") as file:
                    file.write(f"{seed} {os.getpid()} {number} {began}\n")
                yield step
                began = time.time()

        return slowly()


def load_fcn3(device: str, **options: Any) -> JournaledFCN3:
    """Load it, for ``models.fcn3.loader``."""
    return JournaledFCN3(**options)
