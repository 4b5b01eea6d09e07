"""Stand-ins for the modules makani, torch-harmonics, earth2grid, natten and PhysicsNeMo.

PyPI has no usable form of the first four, and PhysicsNeMo depends on a torchvision that does not
work with a CPU build of torch. Earth2Studio looks for them once, when `earth2studio.models.px` is
first imported.
"""

from __future__ import annotations

import importlib.util
import sys
from datetime import UTC, datetime
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from deployments.runtime.quick_import import speed_up_earth2studio_import
from workflows.grids import Grid


def register() -> None:
    """Make stand-ins importable for missing modules, and speed up Earth2Studio's import."""
    speed_up_earth2studio_import()
    if importlib.util.find_spec("makani") is None:
        _add("torch_harmonics", __version__="0.8.1")
        _add("torch_harmonics.disco", cuda_kernels_is_available=lambda: False)
        _add("makani")
        _add("makani.models")
        _add("makani.models.model_package", load_model_package=_load_model_package)
    if importlib.util.find_spec("earth2grid") is None:
        _add("earth2grid")
        _add("earth2grid.spatial", ang2vec=_ang2vec, haversine_distance=_haversine_distance)
    if importlib.util.find_spec("physicsnemo") is None:
        _add("physicsnemo", Module=_PhysicsNeMoModule)
        _add("physicsnemo.utils")
        _add("physicsnemo.utils.zenith_angle", cos_zenith_angle=_cos_zenith_angle)
    if importlib.util.find_spec("natten") is None:
        _add("natten", HAS_LIBNATTEN=True)


def _add(name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(attributes)
    sys.modules[name] = module


def _load_model_package(package: Any) -> Any:
    """Load a package from its configuration as makani does, but with random weights."""
    package.get("config.json")
    from tests.models.standin_core import Core

    return Core(Grid())


def _ang2vec(lon: Any, lat: Any) -> tuple[Any, Any, Any]:
    """Return the unit vector of a point; angles in radians."""
    return lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()


def _haversine_distance(lon1: Any, lat1: Any, lon2: Any, lat2: Any) -> Any:
    """Return the arc between points, radians."""
    half = ((lat2 - lat1) / 2).sin() ** 2 + lat1.cos() * lat2.cos() * ((lon2 - lon1) / 2).sin() ** 2
    return 2 * half.clamp(0, 1).sqrt().asin()


def _cos_zenith_angle(time: datetime, lon: Any, lat: Any) -> Any:
    """Return an approximate cosine of the solar zenith angle; longitude and latitude in degrees."""
    days = (time.replace(tzinfo=UTC) - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() / 86400
    declination = np.radians(-23.44 * np.cos(2 * np.pi * (days + 10) / 365.25))
    hour = np.radians(lon + 360 * (days % 1) - 180)
    latitude = np.radians(lat)
    return np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(
        hour
    )


class _PhysicsNeMoModule:
    """Only `from_checkpoint` is called; no test has a real checkpoint."""

    @classmethod
    def from_checkpoint(cls, path: str) -> Any:
        from tests.models.standin_stormscope import network_of

        return network_of(path)
