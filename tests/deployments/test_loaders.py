"""Real models and data sources, with small packages instead of NVIDIA's weights."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from deployments import loaders
from deployments.models.fcn3_rollout import check_interpolation
from deployments.models.stormscope_rollout import prepare
from deployments.runtime.import_path import LoaderOptions, origin_of
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid, LambertGrid
from workflows.stormscope import VARIABLES as CHANNELS


def options(loader: str) -> LoaderOptions:
    return LoaderOptions(name="model", loader=loader)


def test_a_missing_folder_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path}/none with FCN3's weights does not exist"
    ):
        loaders.fcn3("cpu", package=f"{tmp_path}/none")


@pytest.mark.models
def test_fcn3_is_loaded_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"channel_names": VARIABLES}))
    model = loaders.fcn3("cpu", package=str(tmp_path))

    assert tuple(model.input_coords()["variable"]) == VARIABLES
    assert not model.training
    assert {str(parameter.device) for parameter in model.parameters()} == {"cpu"}
    assert origin_of(model, options("deployments.loaders:fcn3")).weights == str(tmp_path)


@pytest.mark.models
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json"):
        loaders.fcn3("cpu", package=str(tmp_path))


@pytest.mark.parametrize(
    ("loader", "model"),
    [
        (loaders.stormscope, "StormScope"),
        (partial(loaders.hourly, px_model=None), "InterpModAFNO"),
    ],
)
def test_missing_folders_of_other_models_are_refused(
    tmp_path: Path, loader: Any, model: str
) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none with {model}'s weights"):
        loader("cpu", package=f"{tmp_path}/none")


def test_an_fcn3_of_unknown_package_needs_an_orography() -> None:
    with pytest.raises(ValueError, match="set orography"):
        loaders.hourly("cpu", px_model=object())


@pytest.mark.models
def test_stormscope_is_loaded_from_a_folder(tmp_path: Path) -> None:
    entry = {
        "image_size": [1024, 1792],
        "spatial_downsample": 2,
        "sliding_window": False,
        "step_interval": 60,
        "variables": CHANNELS,
        "conditioning_vars": ["z500"],
        "checkpoints": [{"path": "expert.mdlus", "sigma_min": 0.1, "sigma_max": 80.0}],
    }
    registry = {
        "normalization": {
            "goes": {"file_prefix": "goes", "order": CHANNELS},
            "era5": {"file_prefix": "era5", "order": ["t850", "z500"]},
        },
        "goes": {
            "models": {"6km_1hr": entry},
            "aliases": {"6km_60min_natten_cos_zenith_input_eoe_v2": "6km_1hr"},
        },
    }
    (tmp_path / "registry.json").write_text(json.dumps(registry))
    (tmp_path / "expert.mdlus").touch()
    for prefix, size in (("goes", len(CHANNELS)), ("era5", 2)):
        np.save(tmp_path / f"{prefix}_means.npy", np.arange(size, dtype=np.float32))
        np.save(tmp_path / f"{prefix}_stds.npy", np.ones(size, np.float32))
    # All of HRRR's grid, as in the package.
    hrrr = LambertGrid(
        n_y=1059,
        n_x=1799,
        spacing_m=3000.0,
        first_y_m=-1587306.1525566636,
        first_x_m=-2697520.1425219304,
    )
    np.save(tmp_path / "lat.npy", hrrr.latitudes())
    np.save(tmp_path / "lon.npy", hrrr.longitudes())
    model = loaders.stormscope("cpu", package=str(tmp_path))

    # The default grid of the settings is the part that Earth2Studio selects.
    prepared = prepare(model, LambertGrid(), Grid(n_lat=19, n_lon=36), CHANNELS)
    assert prepared.model.conditioning_data_source is None
    assert not model.training
    assert float(model.conditioning_means.flatten()[0]) == 1.0
    assert origin_of(model, options("deployments.loaders:stormscope")).weights == str(tmp_path)


@pytest.mark.models
def test_the_interpolation_is_loaded_around_fcn3_from_folders(tmp_path: Path) -> None:
    fcn3, interpolation = tmp_path / "fcn3", tmp_path / "interpolation"
    for folder in (fcn3, interpolation):
        folder.mkdir()
        height = np.linspace(-100, 50_000, 721 * 1440, dtype=np.float32).reshape(1, 721, 1440)
        xr.Dataset({"Z": (("t", "y", "x"), height)}).to_netcdf(folder / "orography.nc")
    (fcn3 / "config.json").write_text(json.dumps({"channel_names": VARIABLES}))
    (interpolation / "fcinterp-modafno-2x2.mdlus").touch()
    sea = np.zeros((1, 721, 1440), np.float32)
    xr.Dataset({"LSM": (("t", "y", "x"), sea)}).to_netcdf(interpolation / "land_sea_mask.nc")
    for name in ("means", "stds"):
        np.save(interpolation / f"global_{name}.npy", np.ones((1, 77, 1, 1), np.float32))
    base = loaders.fcn3("cpu", package=str(fcn3))
    model = loaders.hourly("cpu", px_model=base, package=str(interpolation))

    check_interpolation(model, Grid())
    assert model.px_model.px_model is base
    (pressure,) = model.px_model.dx_model
    assert float(pressure.surface_geopotential[-1, -1]) == 50_000
    assert not model.training
    weights = origin_of(model, options("deployments.loaders:hourly")).weights
    assert weights == str(interpolation)


@pytest.mark.models
def test_concurrent_fetches_do_not_remove_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from earth2studio.data.planetary_computer import _PlanetaryComputerData

    # Earth2Studio has no other setting for the folder.
    monkeypatch.setenv("EARTH2STUDIO_DATA_CACHE", str(tmp_path))
    both = threading.Barrier(2)

    class Downloads(_PlanetaryComputerData):
        """The real class without its downloads."""

        def __init__(self, cache: bool, verbose: bool) -> None:
            self._cache, self._async_timeout = cache, 60

        async def fetch(self, time_: Any, variable: Any) -> str:
            return await asyncio.to_thread(self._download, variable)

        def _download(self, variable: str) -> str:
            file = Path(self.cache, "asset")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(variable)
            both.wait(30)
            if variable == "slow":
                time.sleep(0.3)
            return file.read_text()

    source = loaders.source_per_call(Downloads, {})
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(source, [None, None], ["quick", "slow"])) == ["quick", "slow"]
    assert not list(tmp_path.rglob("asset"))
