"""Loaders of real models and data sources, for the settings: ``loader: deployments.loaders:…``."""

from __future__ import annotations

import functools
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workflows.fcn3 import LEVELS


def fcn3(device: str, *, package: str | None = None) -> Any:
    """Return FCN3 on a device.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cpu``.
    package : str, optional
        Folder with the weights, or a URL that Earth2Studio's `Package` accepts (``hf://``,
        ``ngc://``, ``s3://``). By default NVIDIA's weights on Hugging Face, pinned to the
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
    return _prepare(model, device, source)


def hourly(
    device: str, *, px_model: Any, package: str | None = None, orography: str | None = None
) -> Any:
    """Return the interpolation of FCN3 to hours: derived surface pressure and InterpModAFNO.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cpu``.
    px_model : FCN3
        Model whose steps are interpolated, as `fcn3` returns it.
    package : str, optional
        Folder or URL with InterpModAFNO's weights, as in `fcn3`. By default NVIDIA's on NGC.
    orography : str, optional
        NetCDF file with the surface geopotential in ``Z``. By default that of FCN3's package.

    Raises
    ------
    FileNotFoundError
        If `package` is a local folder that does not exist.
    ValueError
        If another loader loaded FCN3, and `orography` is missing.
    """
    _check_folder(package, "InterpModAFNO")
    if orography is None and not hasattr(px_model, "package"):
        raise ValueError("set orography: the package of this FCN3 is unknown")
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
    return _prepare(model, device, source)


def stormscope(
    device: str,
    *,
    package: str | None = None,
    model_name: str = "6km_60min_natten_cos_zenith_input_eoe_v2",
    **options: Any,
) -> Any:
    """Return StormScope-GOES on a device.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cpu``.
    package : str, optional
        Folder or URL with the weights, as in `fcn3`. By default NVIDIA's on Hugging Face.
    model_name : str
        Variant in the package. It must step by hours from a single image.
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
    # Each call brings its conditioning: a source set on the model is shared by all members.
    model = StormScopeGOES.load_model(
        source, model_name=model_name, conditioning_data_source=None, **options
    )
    return _prepare(model, device, source)


def ifs(**options: Any) -> Any:
    """Return a source of ECMWF's IFS analyses on the Planetary Computer.

    Parameters
    ----------
    **options
        For Earth2Studio's ``PlanetaryComputerECMWFOpenDataIFS``. By default nothing is cached:
        initial conditions are kept with the execution.
    """
    from earth2studio.data import PlanetaryComputerECMWFOpenDataIFS

    return source_per_call(PlanetaryComputerECMWFOpenDataIFS, options)


def goes(*, satellite: str, **options: Any) -> Any:
    """Return a source of GOES images of the contiguous United States on the Planetary Computer.

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
    """Return a data source that creates a new instance, with a folder of its own, for each call.

    All of Earth2Studio's sources on the Planetary Computer download into one folder, and remove it
    after each call unless they cache: two concurrent calls remove each other's files.

    Parameters
    ----------
    kind : type
        Class of the source.
    options : mapping
        Keyword arguments for its constructor.
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

    WithOwnFolder(**options)  # raises if the options are invalid

    def fetch(time: Any, variable: Any) -> Any:
        return WithOwnFolder(**options)(time, variable)

    return fetch


def _check_folder(package: str | None, model: str) -> None:
    if package is not None and "://" not in package and not Path(package).is_dir():
        raise FileNotFoundError(f"the folder {package} with {model}'s weights does not exist")


def _package(package: str | None, model: Any) -> Any:
    from earth2studio.models.auto import Package

    return model.load_default_package() if package is None else Package(package)


def _prepare(model: Any, device: str, source: Any) -> Any:
    model.to(device)
    model.eval()
    model.weights = str(source.root)
    return model
