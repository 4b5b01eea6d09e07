"""The global grids on which the real wrappers are tested."""

from __future__ import annotations

import pytest

from workflows.grids import Grid

SMALL = Grid(n_lat=73, n_lon=144)
"""A state takes 3 MB; on the wrappers' own grid it takes 300 MB."""

own_grid_too = pytest.mark.parametrize(
    "grid",
    [pytest.param(SMALL, id="small"), pytest.param(Grid(), id="own", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)
