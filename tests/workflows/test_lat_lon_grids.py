"""Any regular grid: as a model has it, as results store it, and where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from deployments.packager.preview import basemap_of
from deployments.results.zarr import chunk_content
from tests.deployments.results.samples import make_plan
from workflows.coordinates import map_coordinates
from workflows.grid_points import grid_through
from workflows.grids import AnyGrid, Grid, LambertGrid, LatLonGrid
from workflows.stac.footprint import footprint_of, projection_of

WITHOUT_POLE = LatLonGrid(n_lat=720, n_lon=1440, first_lat=90, last_lat=-89.75, first_lon=0)
NORTHWARD = LatLonGrid(n_lat=5, n_lon=8, first_lat=-90, last_lat=90, first_lon=-180)
REGION = LatLonGrid(n_lat=4, n_lon=6, first_lat=60, last_lat=30, first_lon=230, last_lon=280)
PACIFIC = LatLonGrid(n_lat=3, n_lon=5, first_lat=10, last_lat=-10, first_lon=160, last_lon=200)
GRIDS = [Grid(n_lat=5, n_lon=8), WITHOUT_POLE, NORTHWARD, REGION, PACIFIC]
KINDS = ["global", "without_pole", "northward", "region", "pacific"]


@pytest.mark.parametrize("grid", [*GRIDS, LambertGrid(n_y=5, n_x=7)], ids=[*KINDS, "lambert"])
def test_a_grid_is_recognized_by_its_points(grid: AnyGrid) -> None:
    single = [values.astype(np.float32) for values in (grid.latitudes(), grid.longitudes())]
    found = grid_through(*single)
    assert type(found) is type(grid)
    assert np.allclose(found.latitudes(), grid.latitudes(), atol=1e-5)
    assert np.allclose(found.longitudes(), grid.longitudes(), atol=1e-5)
    adapter: TypeAdapter[AnyGrid] = TypeAdapter(AnyGrid)
    assert adapter.validate_json(adapter.dump_json(found)) == found


@pytest.mark.parametrize(
    ("latitudes", "longitudes", "reason"),
    [
        (np.array([90.0, 0.0, -80.0]), np.arange(0.0, 360.0, 10), "latitudes are not evenly"),
        (np.linspace(90, -90, 5), np.array([0.0, 10.0, 30.0]), "longitudes are not evenly"),
        (np.linspace(90, -90, 5), np.array([0.0]), "5 x 1 points is too small"),
        (np.linspace(90, -90, 5), np.arange(0.0, 360.0, 24), "an even number of longitudes"),
        (np.linspace(90, -90, 5), np.arange(5.0, 365.0, 10), "from 0 or -180"),
        (np.full((3, 4), np.nan), np.full((3, 4), np.nan), "HRRR's Lambert map"),
        (*np.meshgrid(np.linspace(30, 40, 5), np.linspace(250, 260, 6), indexing="ij"), "HRRR's"),
    ],
)
def test_other_points_are_refused(latitudes: Any, longitudes: Any, reason: str) -> None:
    with pytest.raises((ValueError, ValidationError), match=reason):
        grid_through(latitudes, longitudes)


@pytest.mark.parametrize("grid", GRIDS, ids=KINDS)
def test_values_are_stored_where_the_coordinates_say(grid: Grid | LatLonGrid) -> None:
    latitudes, longitudes = np.meshgrid(grid.latitudes(), grid.longitudes(), indexing="ij")
    lat, lon = (variable.values for variable in map_coordinates(grid)[:2])
    assert lat is not None and lon is not None
    assert (np.diff(lat) < 0).all() and (np.diff(lon) > 0).all()
    for field, coordinate, period in (
        (latitudes, np.broadcast_to(lat[:, None], grid.shape), np.inf),
        (longitudes, np.broadcast_to(lon, grid.shape), 360.0),
    ):
        stored = chunk_content(make_plan(grid=grid), field.astype(np.float32))
        assert stored.flags.c_contiguous and stored.dtype == np.float32
        difference = stored - coordinate
        if np.isfinite(period):
            difference = (difference + 180.0) % period - 180.0
        assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize(
    ("grid", "bbox", "kind"),
    [
        (WITHOUT_POLE, [-180.0, -89.75, 180.0, 90.0], "Polygon"),
        (NORTHWARD, [-180.0, -90.0, 180.0, 90.0], "Polygon"),
        (REGION, [-130.0, 30.0, -80.0, 60.0], "Polygon"),
        (PACIFIC, [160.0, -10.0, -160.0, 10.0], "MultiPolygon"),
    ],
    ids=KINDS[1:],
)
def test_the_footprint_covers_the_points(grid: LatLonGrid, bbox: list[float], kind: str) -> None:
    footprint = footprint_of(grid)
    assert footprint.bbox == bbox
    assert footprint.geometry["type"] == kind


def test_the_transform_has_points_as_centres() -> None:
    projection = projection_of(REGION)
    width, _, west, _, height, north = projection["proj:transform"]
    assert (width, height) == (10.0, -10.0)
    assert (west + width / 2, north + height / 2) == (-130.0, 60.0)
    assert projection["proj:shape"] == [4, 6]


@pytest.mark.parametrize("grid", GRIDS[1:], ids=KINDS[1:])
def test_maps_show_every_edge_of_the_grid(grid: LatLonGrid) -> None:
    basemap = basemap_of(grid)
    assert (basemap.rows[0], basemap.rows[-1]) == (0, grid.n_lat - 1)
    assert basemap.columns[0] == 0
    assert set(basemap.columns) >= {0, grid.n_lon - 1} or grid.n_lon > 720
    assert basemap.lines.any()
    assert {label.is_below for label in basemap.labels} == {True, False}
