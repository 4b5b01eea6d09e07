"""Footprints and projections agree with the grids."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pyproj
import pystac
import pytest
import shapely

from tests.deployments.results.samples import (
    make_nowcast_plan,
    make_plan,
)
from tests.workflows.stac.items import ID, SYNTHETIC, make_item
from tests.workflows.stac.stac_validator import validator
from workflows.dataset import describe
from workflows.grids import Grid, LambertGrid


def shape_of(item: dict[str, Any]) -> shapely.Geometry:
    return shapely.from_geojson(json.dumps(item["geometry"]))


def test_a_global_footprint_covers_the_whole_earth() -> None:
    item = make_item(make_plan())
    assert item["bbox"] == [-180, -90, 180, 90]
    assert shape_of(item).bounds == (-180, -90, 180, 90)
    assert shapely.is_ccw(shape_of(item).exterior)


@pytest.mark.parametrize(
    "grid",
    [LambertGrid(), LambertGrid(n_y=3, n_x=4, spacing_m=600e3), LambertGrid(n_y=2, n_x=2)],
    ids=["default", "coarse", "four points"],
)
def test_a_footprint_follows_the_grid(grid: LambertGrid) -> None:
    item = make_item(make_nowcast_plan(grid=grid))
    latitudes, longitudes = grid.latitudes(), grid.longitudes()
    west, south, east, north = item["bbox"]
    assert [west, east] == pytest.approx([longitudes.min(), longitudes.max()], abs=1e-6)
    assert [south, north] == pytest.approx([latitudes.min(), latitudes.max()], abs=1e-6)
    ground = shape_of(item)
    assert ground.is_valid
    assert shapely.is_ccw(ground.exterior)
    assert ground.bounds == (west, south, east, north)
    vertices = np.array(ground.exterior.coords)
    for corner in itertools.product((0, -1), (0, -1)):
        place = longitudes[corner], latitudes[corner]
        assert np.abs(vertices - place).max(axis=1).min() < 1e-6
    assert all(
        shapely.distance(ground, shapely.points(longitudes[edge], latitudes[edge])).max() < 0.03
        for edge in ((0,), (-1,), (slice(None), 0), (slice(None), -1))
    )
    # Straight sides between a few corners would cut off the area north of them.
    assert len(vertices) > 64 or grid.n_x < 17


def test_a_footprint_is_cut_at_the_antimeridian() -> None:
    grid = LambertGrid(n_y=70, n_x=140, spacing_m=100e3, first_x_m=-7e6, first_y_m=-1e6)
    item = make_item(make_nowcast_plan(grid=grid))
    pystac.Item.from_dict(item).validate(validator())
    ground = shape_of(item)
    assert (ground.geom_type, len(ground.geoms), ground.is_valid) == ("MultiPolygon", 2, True)
    assert all(shapely.is_ccw(part.exterior) for part in ground.geoms)
    west, south, east, north = item["bbox"]
    assert west > east
    assert -180 <= ground.bounds[0] < ground.bounds[2] <= 180
    longitudes, latitudes = grid.longitudes().ravel(), grid.latitudes().ravel()
    assert ((longitudes >= west - 1e-6) | (longitudes <= east + 1e-6)).all()
    assert (latitudes >= south - 1e-6).all() and (latitudes <= north + 1e-6).all()
    assert shapely.distance(ground, shapely.points(longitudes, latitudes)).max() < 1


def test_the_projection_matches_the_grid() -> None:
    plan = make_nowcast_plan(grid=LambertGrid())
    properties = make_item(plan)["properties"]
    assert properties["proj:code"] is None
    crs = pyproj.CRS.from_json(json.dumps(properties["proj:projjson"]))
    *_, mapping = describe(plan, ID, SYNTHETIC).coordinates
    same = pyproj.CRS.from_cf(dict(mapping.attributes))
    onto_same = pyproj.Transformer.from_crs(crs, same, always_xy=True)
    back = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    rows, columns = plan.grid.shape
    width, _, left, _, height, top = properties["proj:transform"]
    assert properties["proj:shape"] == [rows, columns]
    latitudes, longitudes = plan.grid.latitudes(), plan.grid.longitudes()
    for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)):
        x, y = left + width * (column + 0.5), top + height * (row + 0.5)
        place = longitudes[row, column], latitudes[row, column]
        assert back.transform(x, y) == pytest.approx(place, abs=1e-9)
        assert onto_same.transform(x, y) == pytest.approx((x, y), abs=1e-3)


def test_global_grid_points_are_cell_centres() -> None:
    plan = make_plan(grid=Grid())
    properties = make_item(plan)["properties"]
    width, _, left, _, height, top = properties["proj:transform"]
    rows, columns = properties["proj:shape"]
    assert pyproj.CRS.from_user_input(properties["proj:code"]).is_geographic
    assert left + width * (np.arange(columns) + 0.5) == pytest.approx(plan.grid.output_longitudes())
    assert top + height * (np.arange(rows) + 0.5) == pytest.approx(plan.grid.latitudes())
