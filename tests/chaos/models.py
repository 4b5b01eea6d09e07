"""The model whose processes are killed: it is slow, and keeps a journal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployments.synthetic.fcn3 import SyntheticFCN3
from deployments.synthetic.perturbation import STEP


class JournaledFCN3(SyntheticFCN3):
    """The synthetic model with a pause before every step and a journal line after it.

    Parameters
    ----------
    step_s : float or str
        Seconds, or a file that contains them, which is read again during a pause.
    journal : str
        Receives lines ``<seed> <pid> <step> <Unix time at which the step started>``. Steps count
        from the start of the forecast, also after a checkpoint.
    """

    def __init__(self, step_s: float | str, journal: str, **options: Any) -> None:
        super().__init__(**options)
        self._step_s = step_s
        self._journal = Path(journal)

    def _pause(self) -> None:
        if not isinstance(self._step_s, str):
            time.sleep(self._step_s)
            return
        started = time.monotonic()
        while time.monotonic() - started < float(Path(self._step_s).read_text()):
            time.sleep(0.02)

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        steps, seed = super().create_iterator(x, coords), self._seed
        first = int(coords["lead_time"][0] / STEP)

        def paused() -> Iterator[Any]:
            started = time.time()
            for number, step in enumerate(steps, first):
                self._pause()
                with self._journal.open("a") as file:
                    file.write(f"{seed} {os.getpid()} {number} {started}\n")
                yield step
                started = time.time()

        return paused()


def load_fcn3(device: str, **options: Any) -> JournaledFCN3:
    """Return the model, for ``models.fcn3.loader``."""
    return JournaledFCN3(**options)
