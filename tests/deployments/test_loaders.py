"""Loading by import path, and models from package folders with the real wrappers."""

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
from deployments.runtime.import_path import LoaderOptions, describe_origin, load
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid, LambertGrid
from workflows.stormscope import VARIABLES as CHANNELS


class Thing:
    def __init__(self, **options: Any) -> None:
        self.options = options

    @classmethod
    def opened(cls, **options: Any) -> Thing:
        return cls(opened=True, **options)


def what(loader: str, **options: Any) -> LoaderOptions:
    return LoaderOptions(name="thing", loader=loader, options=options)


def test_calls_what_the_path_names_with_its_options() -> None:
    made = load(what(f"{__name__}:Thing", a=1), device="cpu")
    assert made.options == {"a": 1, "device": "cpu"}


def test_a_path_may_go_through_a_class() -> None:
    assert load(what(f"{__name__}:Thing.opened", a=1)).options == {"opened": True, "a": 1}


@pytest.mark.parametrize(
    ("loader", "error"),
    [("no_such_module:load", ModuleNotFoundError), (f"{__name__}:missing", AttributeError)],
)
def test_a_path_that_leads_nowhere_says_so(loader: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="no_such_module|missing"):
        load(what(loader))


def test_what_is_not_said_to_be_synthetic_is_real() -> None:
    described = describe_origin(Thing(), what("a:b", package="/weights/fcn3"))
    assert described["synthetic"] is False
    assert described["weights"] == "/weights/fcn3"


def test_a_folder_without_weights_is_named_before_anything_is_imported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/none with FCN3's weights"):
        loaders.fcn3("cpu", package=f"{tmp_path}/none")


@pytest.mark.models
def test_fcn3_is_loaded_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"channel_names": VARIABLES}))
    model = loaders.fcn3("cpu", package=str(tmp_path))

    assert tuple(model.input_coords()["variable"]) == VARIABLES
    assert not model.training
    assert {str(parameter.device) for parameter in model.parameters()} == {"cpu"}
    assert describe_origin(model, what("deployments.loaders:fcn3"))["weights"] == str(tmp_path)


@pytest.mark.models
def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json"):
        loaders.fcn3("cpu", package=str(tmp_path))


@pytest.mark.parametrize(
    ("loader", "model"),
    [
        (loaders.stormscope, "StormScope"),
        (partial(loaders.hourly, px_model=None), "InterpModAFNO"),
    ],
)
def test_other_folders_without_weights_are_named_as_well(
    tmp_path: Path, loader: Any, model: str
) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/none with {model}'s"):
        loader("cpu", package=f"{tmp_path}/none")


def test_an_fcn3_that_does_not_tell_its_package_needs_an_orography() -> None:
    with pytest.raises(ValueError, match="give orography"):
        loaders.hourly("cpu", px_model=Thing())


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
    # The whole of HRRR, as the package has it.
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

    # The grid of the settings by default is what Earth2Studio cuts out.
    prepared = prepare(model, LambertGrid(), Grid(n_lat=19, n_lon=36), CHANNELS)
    assert prepared.model.conditioning_data_source is None
    assert not model.training
    assert float(model.conditioning_means.flatten()[0]) == 1.0
    assert describe_origin(model, what("deployments.loaders:stormscope"))["weights"] == str(
        tmp_path
    )


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
    weights = describe_origin(model, what("deployments.loaders:hourly"))["weights"]
    assert weights == str(interpolation)


@pytest.mark.models
def test_two_fetches_at_once_keep_out_of_each_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from earth2studio.data.planetary_computer import _PlanetaryComputerData

    # Read by Earth2Studio, which has no other way to be told.
    monkeypatch.setenv("EARTH2STUDIO_DATA_CACHE", str(tmp_path))
    both = threading.Barrier(2)

    class Downloads(_PlanetaryComputerData):
        """The real class but for what comes over the network."""

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
