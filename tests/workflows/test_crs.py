"""The reference systems in files and STAC documents are the same, and PROJ recognizes them."""

from __future__ import annotations

from typing import Any

import pyproj
import pytest
import rasterio

from workflows.coordinates import map_coordinates
from workflows.crs import EPSG, projjson, well_known_text
from workflows.grids import Grid, LambertGrid

GLOBAL, LAMBERT = Grid(n_lat=5, n_lon=8), LambertGrid(n_y=3, n_x=4)


@pytest.mark.parametrize("library", [pyproj.CRS, rasterio.CRS], ids=["pyproj", "gdal"])
def test_a_regular_grid_is_known_by_its_code(library: Any) -> None:
    assert library.from_wkt(well_known_text(GLOBAL)).to_epsg() == EPSG


def test_the_grid_mapping_of_a_regular_grid_has_the_code() -> None:
    *_, mapping = map_coordinates(GLOBAL)
    assert pyproj.CRS.from_cf(dict(mapping.attributes)).to_epsg() == EPSG


def test_a_lambert_grid_is_the_same_in_files_and_in_stac() -> None:
    *_, mapping = map_coordinates(LAMBERT)
    crs = pyproj.CRS.from_cf(dict(mapping.attributes))
    assert crs == pyproj.CRS.from_json_dict(projjson(LAMBERT))
    found = crs.to_cf()
    for name in ("semi_major_axis", "semi_minor_axis", "longitude_of_central_meridian"):
        assert found[name] == mapping.attributes[name]
