"""A model and a data source that hold or fail where a file says so; see README.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS


class HeldFCN3(SyntheticFCN3):
    """The synthetic model; holds or fails behind the third step of a member if ``{seed}`` exists.

    Parameters
    ----------
    folder : str
        Holds files ``hold-SEED`` and ``fail-SEED``.
    """

    def __init__(self, folder: str, **grid: int) -> None:
        super().__init__(**grid)
        self._folder = Path(folder)

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        """Step through time."""
        steps, seed = super().create_iterator(x, coords), self._seed

        def held() -> Iterator[Any]:
            for number, step in enumerate(steps):
                if number > 3:
                    while (self._folder / f"hold-{seed}").exists():
                        time.sleep(0.05)
                    if (self._folder / f"fail-{seed}").exists():
                        raise RuntimeError("the model has diverged")
                yield step

        return held()


class FailingIFS(SyntheticIFS):
    """The synthetic data source; fails if the file ``no-analysis`` exists in a folder."""

    def __init__(self, folder: str, **grid: int) -> None:
        super().__init__(**grid)
        self._folder = Path(folder)

    def __call__(self, time_: Any, variable: Any) -> Any:
        """Return fields, dims (time, variable, lat, lon)."""
        if (self._folder / "no-analysis").exists():
            raise ValueError("no analysis for this time")
        return super().__call__(time_, variable)


def load_fcn3(device: str, **options: Any) -> HeldFCN3:
    """Load the model."""
    return HeldFCN3(**options)


def load_ifs(**options: Any) -> FailingIFS:
    """Open the data source."""
    return FailingIFS(**options)
