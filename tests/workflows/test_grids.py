"""Grid points, compared with PROJ and with HRRR."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pytest
from pydantic import ValidationError

from tests.deployments.results.samples import make_nowcast_plan, make_plan
from workflows.base import Plan
from workflows.grids import Grid, LambertGrid

HRRR_X = np.linspace(-2697520.1425219304, 2696479.8574780696, 1799)
HRRR_Y = np.linspace(-1587306.1525566636, 1586693.8474433364, 1059)
HRRR_MAP = pyproj.Proj("+proj=lcc +lat_1=38.5 +lat_0=38.5 +lon_0=262.5 +R=6371229")

SMALL = LambertGrid(n_y=5, n_x=7, spacing_m=500e3, first_y_m=-1000e3, first_x_m=-1500e3)
"""With the projection's origin in its middle."""
ARCTIC = LambertGrid(n_y=90, n_x=200, spacing_m=50e3, first_y_m=1000e3, first_x_m=-5000e3)
"""Over the 180th meridian."""


def test_the_default_grid_is_every_second_point_of_central_hrrr() -> None:
    grid = LambertGrid()
    assert grid.shape == (512, 896)
    np.testing.assert_allclose(grid.y(), HRRR_Y[17 : 17 + 1024 : 2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(grid.x(), HRRR_X[3 : 3 + 1792 : 2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [LambertGrid(), SMALL, ARCTIC], ids=["hrrr", "small", "arctic"])
def test_points_agree_with_proj(grid: LambertGrid) -> None:
    longitudes, latitudes = HRRR_MAP(*np.meshgrid(grid.x(), grid.y()), inverse=True)
    np.testing.assert_allclose(grid.latitudes(), latitudes, rtol=0, atol=1e-9)
    apart = (grid.longitudes() - longitudes + 180) % 360 - 180
    np.testing.assert_allclose(apart, 0, rtol=0, atol=1e-9)


def test_the_origin_is_that_of_the_projection() -> None:
    assert (SMALL.y()[2], SMALL.x()[3]) == (0, 0)
    assert SMALL.latitudes()[2, 3] == pytest.approx(38.5)
    assert SMALL.longitudes()[2, 3] == pytest.approx(262.5 - 360)


@pytest.mark.parametrize("grid", [LambertGrid(), SMALL], ids=["hrrr", "small"])
def test_rows_run_northwards_and_columns_eastwards(grid: LambertGrid) -> None:
    assert grid.dims == ("y", "x")
    assert grid.latitudes().shape == grid.longitudes().shape == grid.shape
    assert (np.diff(grid.y()) > 0).all()
    assert (np.diff(grid.x()) > 0).all()
    assert (np.diff(grid.latitudes(), axis=0) > 0).all()
    assert (np.diff(grid.longitudes(), axis=1) > 0).all()


def test_longitudes_are_within_180_degrees() -> None:
    longitudes = ARCTIC.longitudes()
    assert longitudes.min() < -179
    assert longitudes.max() > 179
    assert (np.abs(longitudes) <= 180).all()


def test_a_regular_grid_runs_southwards_from_the_north_pole() -> None:
    grid = Grid(n_lat=5, n_lon=8)
    assert grid.dims == ("lat", "lon")
    assert grid.shape == (5, 8)
    assert grid.latitudes().tolist() == [90, 45, 0, -45, -90]
    assert grid.longitudes().tolist() == [0, 45, 90, 135, 180, 225, 270, 315]
    assert grid.output_longitudes().tolist() == [-180, -135, -90, -45, 0, 45, 90, 135]


@pytest.mark.parametrize("grid", [Grid(), Grid(n_lat=5, n_lon=8), LambertGrid(), SMALL])
def test_a_grid_survives_json(grid: Grid | LambertGrid) -> None:
    made = make_plan(grid=grid)
    again = Plan.model_validate_json(made.model_dump_json())
    assert type(again.grid) is type(grid)
    assert again == made


def test_both_grids_of_a_plan_survive_json() -> None:
    made = make_nowcast_plan(grid=SMALL)
    assert made.conditioning is not None
    again = Plan.model_validate_json(made.model_dump_json())
    assert again.conditioning is not None
    assert (again.grid, again.conditioning.grid) == (SMALL, made.conditioning.grid)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Grid, {"n_lat": 1}),
        (Grid, {"n_lon": 7}),
        (Grid, {"n_y": 5}),
        (LambertGrid, {"n_y": 1}),
        (LambertGrid, {"n_x": 1}),
        (LambertGrid, {"n_lat": 5}),
        (LambertGrid, {"spacing_m": 0}),
        (LambertGrid, {"spacing_m": -6000}),
        (LambertGrid, {"spacing_m": float("nan")}),
        (LambertGrid, {"first_y_m": float("inf")}),
        (LambertGrid, {"first_x_m": float("nan")}),
    ],
)
def test_invalid_grids_are_refused(
    kind: type[Grid] | type[LambertGrid], changes: dict[str, Any]
) -> None:
    (name,) = changes
    with pytest.raises(ValidationError, match=name):
        kind.model_validate(changes)


def test_projecting_points_returns_their_coordinates() -> None:
    grid = LambertGrid()
    y, x = grid.project(grid.latitudes(), grid.longitudes())
    np.testing.assert_allclose(y, np.broadcast_to(grid.y()[:, None], grid.shape), atol=1e-6)
    np.testing.assert_allclose(x, np.broadcast_to(grid.x()[None], grid.shape), atol=1e-6)
