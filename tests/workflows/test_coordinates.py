"""Coordinates of a result on a Lambert grid; `test_dataset` covers regular grids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyproj
import pytest

from tests.deployments.results.samples import make_nowcast_plan, make_plan
from workflows.coordinates import (
    Variable,
    ensemble_coordinates,
    map_coordinates,
    output_longitudes,
    time_coordinates,
)
from workflows.grids import Grid, LambertGrid

GRID = LambertGrid(n_y=3, n_x=4, spacing_m=600e3)


def by_name(variables: Iterable[Variable]) -> dict[str, Variable]:
    return {variable.name: variable for variable in variables}


def values(variable: Variable) -> list[float]:
    assert variable.values is not None
    return list(variable.values.tolist())


def test_each_member_has_both_of_its_seeds() -> None:
    found = by_name(ensemble_coordinates(make_nowcast_plan(seeds=(1, 2**31, 2**32 - 1, 0))))
    assert list(found) == ["ensemble", "seed_fcn3", "seed_stormscope"]
    assert all(variable.dims == ("ensemble",) for variable in found.values())
    assert values(found["ensemble"]) == [0, 1, 2, 3]
    assert values(found["seed_fcn3"]) == [7, 7, 2**32 - 1, 2**32 - 1]
    assert values(found["seed_stormscope"]) == [1, 2**31, 2**32 - 1, 0]


def test_members_of_an_unconditioned_forecast_have_one_seed() -> None:
    found = by_name(ensemble_coordinates(make_plan(seeds=(5, 3))))
    assert list(found) == ["ensemble", "seed"]
    assert values(found["seed"]) == [5, 3]


def test_times_are_hours() -> None:
    (time,) = time_coordinates(make_nowcast_plan(n_steps=3))
    assert values(time) == [0, 1, 2, 3]
    assert time.attributes["units"] == "hours since 2025-01-01 08:00:00"


def test_a_lambert_grid_has_metres_and_degrees() -> None:
    found = by_name(map_coordinates(GRID))
    assert list(found) == ["y", "x", "latitude", "longitude", "crs"]
    for name, dims, standard_name, units in (
        ("y", ("y",), "projection_y_coordinate", "m"),
        ("x", ("x",), "projection_x_coordinate", "m"),
        ("latitude", ("y", "x"), "latitude", "degrees_north"),
        ("longitude", ("y", "x"), "longitude", "degrees_east"),
    ):
        variable = found[name]
        assert variable.dims == dims
        assert variable.attributes["standard_name"] == standard_name
        assert variable.attributes["units"] == units
    np.testing.assert_array_equal(found["y"].values, GRID.y())
    np.testing.assert_array_equal(found["x"].values, GRID.x())
    np.testing.assert_array_equal(found["latitude"].values, GRID.latitudes())
    np.testing.assert_array_equal(found["longitude"].values, GRID.longitudes())


def test_only_dimensions_are_axes() -> None:
    found = by_name(map_coordinates(GRID))
    axes = {name: v.attributes["axis"] for name, v in found.items() if "axis" in v.attributes}
    assert axes == {"y": "Y", "x": "X"}


def test_the_grid_mapping_is_that_of_hrrr() -> None:
    crs = by_name(map_coordinates(GRID))["crs"]
    assert crs.dims == ()
    attributes = dict(crs.attributes)
    assert attributes.pop("crs_wkt") == attributes.pop("spatial_ref")
    assert attributes == {
        "long_name": "Coordinate reference system",
        "grid_mapping_name": "lambert_conformal_conic",
        "standard_parallel": 38.5,
        "longitude_of_central_meridian": -97.5,
        "latitude_of_projection_origin": 38.5,
        "false_easting": 0.0,
        "false_northing": 0.0,
        "earth_radius": 6371229.0,
        "semi_major_axis": 6371229.0,
        "semi_minor_axis": 6371229.0,
    }


@pytest.mark.parametrize("without", [(), ("crs_wkt", "spatial_ref")], ids=["wkt", "attributes"])
def test_the_grid_mapping_leads_to_the_same_points(without: tuple[str, ...]) -> None:
    attributes = dict(by_name(map_coordinates(GRID))["crs"].attributes)
    for name in without:
        del attributes[name]
    crs = pyproj.CRS.from_cf(attributes)
    assert crs.geodetic_crs is not None
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    longitudes, latitudes = to_degrees.transform(*np.meshgrid(GRID.x(), GRID.y()))
    np.testing.assert_allclose(latitudes, GRID.latitudes(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(longitudes, GRID.longitudes(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [Grid(n_lat=5, n_lon=8), GRID])
def test_longitudes_are_stored_from_minus_180(grid: Grid | LambertGrid) -> None:
    longitudes = output_longitudes(grid)
    assert longitudes.min() < 0
    assert (np.abs(longitudes) <= 180).all()
