"""titiler.xarray, with which GeoCatalog draws tiles, puts values where they belong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import morecantile
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.samples import ID, PROVENANCE, make_nowcast_plan, make_plan
from workflows.base import Plan
from workflows.grids import Grid, LambertGrid

pytestmark = [
    pytest.mark.models,  # the dependencies take seconds to import
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # of the dependencies
]

DENVER, MIAMI = (-104.99, 39.74), (-80.19, 25.76)
ZOOM = 6
MERCATOR = morecantile.tms.get("WebMercatorQuad")
PLANS = {
    "fcn3": make_plan(variables=("t2m", "z500"), n_steps=1, grid=Grid(n_lat=181, n_lon=360)),
    "stormscope": make_nowcast_plan(
        variables=("abi13c", "abi02c"), n_steps=1, seeds=(1, 2), grid=LambertGrid()
    ),
}
"""The first variable holds latitudes and the second longitudes."""
TOLERANCE = {"fcn3": 1.0, "stormscope": 0.1}
"""Spacing of the grid, degrees."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiles")


def written(folder: Path, name: str, output_format: str) -> Path:
    plan = PLANS[name].model_copy(update={"output_format": output_format})
    store = ResultsStore(
        DiskStorage(folder / output_format, folder / "work" / output_format / name)
    )
    result = folder / output_format / plan.workflow / ID
    if not result.exists():
        store.create(plan, ID, PROVENANCE, 1)
        for member in plan.members:
            for time_index in range(plan.n_times):
                # Exposes a wrong member or time.
                offset = 1000.0 * member + 100.0 * time_index
                store.write_step(ID, 1, member, time_index, coordinates(plan) + np.float32(offset))
        if output_format == "netcdf4":
            store.export_netcdf(ID, 1)
            store.describe(ID, 1)
    return result / ("results.nc" if output_format == "netcdf4" else "results.zarr")


def coordinates(plan: Plan) -> NDArray[np.float32]:
    """Return latitudes and longitudes in a model's layout, shape (2, y, x)."""
    latitudes, longitudes = plan.grid.latitudes(), plan.grid.longitudes()
    if latitudes.ndim == 1:
        latitudes, longitudes = np.meshgrid(latitudes, longitudes, indexing="ij")
        longitudes = (longitudes + 180) % 360 - 180
    return np.stack([latitudes, longitudes]).astype(np.float32)


def tile_value(path: Path, variable: str, time: str, location: tuple[float, float]) -> float:
    """Draw the tile around a location, degrees east and north, and return its value there."""
    from titiler.xarray.factory import TilerFactory
    from titiler.xarray.io import FsReader, Reader

    reader: Any = Reader if path.suffix == ".zarr" else FsReader
    app = FastAPI()
    app.include_router(TilerFactory(reader=reader).router)
    tile = MERCATOR.tile(*location, ZOOM)
    answer = TestClient(app).get(
        f"/tiles/WebMercatorQuad/{ZOOM}/{tile.x}/{tile.y}.npy",
        params={
            "url": str(path),
            "variable": variable,
            "sel": ["ensemble=1", f"time=nearest::{time}"],
        },
    )
    assert answer.status_code == 200, answer.text
    values, mask = np.load(io.BytesIO(answer.content))
    left, bottom, right, top = MERCATOR.xy_bounds(tile)
    x, y = MERCATOR.xy(*location)
    row = int((top - y) / (top - bottom) * values.shape[0])
    column = int((x - left) / (right - left) * values.shape[1])
    assert mask[row, column]
    return float(values[row, column])


@pytest.mark.parametrize("location", [DENVER, MIAMI], ids=["Denver", "Miami"])
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("name", PLANS)
def test_tile_has_the_values_of_its_location(
    results: Path, name: str, output_format: str, location: tuple[float, float]
) -> None:
    plan, path = PLANS[name], written(results, name, output_format)
    last = f"{plan.end_time():%Y-%m-%dT%H:%M:%S}"
    for variable, degrees in zip(plan.variables, location[::-1], strict=True):
        found = tile_value(path, variable, last, location) - 1000 - 100
        assert found == pytest.approx(degrees, abs=TOLERANCE[name])
