"""Loaders of real models and data sources: ``loader: "deployments.loaders:…"`` in the settings."""

from __future__ import annotations

import functools
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workflows.fcn3 import LEVELS


def fcn3(device: str, *, package: str | None = None) -> Any:
    """Load FCN3.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cpu``.
    package : str, optional
        Folder with the weights, or a URL that Earth2Studio's `Package` takes (``hf://``,
        ``ngc://``, ``s3://``); NVIDIA's weights on Hugging Face by default, pinned to the
        revision that Earth2Studio names.

    Raises
    ------
    FileNotFoundError
        If `package` is a local folder that does not exist.
    """
    _check_folder(package, "FCN3")
    from earth2studio.models.px import FCN3

    source = _package(package, FCN3)
    model = FCN3.load_model(source)
    model.package = source
    return _ready(model, device, source)


def hourly(
    device: str, *, px_model: Any, package: str | None = None, orography: str | None = None
) -> Any:
    """Load what makes FCN3's steps hourly: surface pressure and InterpModAFNO.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cpu``.
    px_model : FCN3
        The model whose steps it interpolates, as `fcn3` gives it.
    package : str, optional
        Folder or URL with InterpModAFNO's weights, as in `fcn3`; NVIDIA's on NGC by default.
    orography : str, optional
        NetCDF file with the surface geopotential in ``Z``; the one in FCN3's package by default.

    Raises
    ------
    FileNotFoundError
        If `package` is a local folder that does not exist.
    ValueError
        If FCN3 was loaded by another loader and no `orography` is given.
    """
    _check_folder(package, "InterpModAFNO")
    if orography is None and not hasattr(px_model, "package"):
        raise ValueError("give orography: this FCN3 does not tell where its package is")
    import torch
    import xarray as xr
    from earth2studio.models.dx import DerivedSurfacePressure
    from earth2studio.models.px import DiagnosticWrapper, InterpModAFNO

    with xr.open_dataset(orography or px_model.package.resolve("orography.nc")) as dataset:
        surface = torch.as_tensor(dataset["Z"][0].values)
    coords = px_model.input_coords()
    pressure = DerivedSurfacePressure(
        p_levels=list(LEVELS),
        surface_geopotential=surface,
        surface_geopotential_coords=OrderedDict((name, coords[name]) for name in ("lat", "lon")),
    )
    source = _package(package, InterpModAFNO)
    model = InterpModAFNO.load_model(
        source, px_model=DiagnosticWrapper(px_model=px_model, dx_model=pressure)
    )
    return _ready(model, device, source)


def stormscope(
    device: str,
    *,
    package: str | None = None,
    model_name: str = "6km_60min_natten_cos_zenith_input_eoe_v2",
    **options: Any,
) -> Any:
    """Load StormScope-GOES.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cpu``.
    package : str, optional
        Folder or URL with the weights, as in `fcn3`; NVIDIA's on Hugging Face by default.
    model_name : str
        Variant in the package; one that steps by hours from a single image.
    **options
        For ``StormScopeGOES.load_model``, such as ``compile``.

    Raises
    ------
    FileNotFoundError
        If `package` is a local folder that does not exist.
    """
    _check_folder(package, "StormScope")
    from earth2studio.models.px.stormscope import StormScopeBase, StormScopeGOES

    source = _package(package, StormScopeBase)
    # Conditioning is given at each call: a source that is set on the model is everybody's.
    model = StormScopeGOES.load_model(
        source, model_name=model_name, conditioning_data_source=None, **options
    )
    return _ready(model, device, source)


def ifs(**options: Any) -> Any:
    """Open ECMWF's IFS analyses on the Planetary Computer.

    Parameters
    ----------
    **options
        For Earth2Studio's ``PlanetaryComputerECMWFOpenDataIFS``. By default nothing stays cached:
        initial conditions are kept with the execution.
    """
    from earth2studio.data import PlanetaryComputerECMWFOpenDataIFS

    return source_per_call(PlanetaryComputerECMWFOpenDataIFS, options)


def goes(*, satellite: str, **options: Any) -> Any:
    """Open images of a GOES satellite on the Planetary Computer, of the contiguous United States.

    Parameters
    ----------
    satellite : {'goes16', 'goes19'}
    **options
        For Earth2Studio's ``PlanetaryComputerGOES``, as in `ifs`.
    """
    from earth2studio.data import PlanetaryComputerGOES

    return source_per_call(
        PlanetaryComputerGOES, {"satellite": satellite, "scan_mode": "C", **options}
    )


def source_per_call(kind: type, options: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """Give a data source that is made anew for each call, with a folder of its own.

    Earth2Studio's sources on the Planetary Computer download into one folder, whichever of them it
    is, and remove that after each call unless they keep it: two at once remove each other's.

    Parameters
    ----------
    kind : type
        One of those sources.
    options : mapping
        For its constructor.
    """
    options = {"cache": False, "verbose": False, **options}

    class WithOwnFolder(kind):  # type: ignore[misc]
        @functools.cached_property
        def cache(self) -> str:
            shared = Path(super().cache)
            if options["cache"]:
                return str(shared)
            shared.parent.mkdir(parents=True, exist_ok=True)
            return tempfile.mkdtemp(prefix="fetch-", dir=shared.parent)

    WithOwnFolder(**options)  # what is wrong with the options shall show now

    def fetch(time: Any, variable: Any) -> Any:
        return WithOwnFolder(**options)(time, variable)

    return fetch


def _check_folder(package: str | None, model: str) -> None:
    if package is not None and "://" not in package and not Path(package).is_dir():
        raise FileNotFoundError(f"there is no folder {package} with {model}'s weights")


def _package(package: str | None, model: Any) -> Any:
    from earth2studio.models.auto import Package

    return model.load_default_package() if package is None else Package(package)


def _ready(model: Any, device: str, source: Any) -> Any:
    model.to(device)
    model.eval()
    model.weights = str(source.root)
    return model
