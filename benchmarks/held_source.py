"""A data source that can be held, so that the queue does not move while it is measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from deployments.synthetic.fcn3 import SyntheticIFS

POLL_S = 0.05


class HeldIFS(SyntheticIFS):
    """`SyntheticIFS` that waits while a file exists.

    Parameters
    ----------
    hold : str
        Path of that file.
    """

    def __init__(self, hold: str, n_lat: int, n_lon: int) -> None:
        super().__init__(n_lat, n_lon)
        self._hold = Path(hold)

    def __call__(self, time_: Any, variable: Any) -> Any:
        """Return fields once the file is removed."""
        while self._hold.exists():
            time.sleep(POLL_S)
        return super().__call__(time_, variable)


def load_ifs(*, hold: str, n_lat: int, n_lon: int) -> HeldIFS:
    """Return the source, for ``data_sources.ifs.loader``."""
    return HeldIFS(hold, n_lat, n_lon)
