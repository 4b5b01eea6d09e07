"""Components of workflows by import path, and stand-ins that need no weights."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from typing import Any

import numpy as np


def load_component(path: str, **options: Any) -> Any:
    """Create the object that an import path names: ``module:Class`` or ``module:callable``.

    Parameters
    ----------
    path : str
        An Earth2Studio model is loaded with its published weights, or with those in the folder or
        URL of the option ``package``. Anything else is called with the options.
    """
    module, _, name = path.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not hasattr(found, "load_model"):
        return found(**options)
    package = options.pop("package", None)
    if package is None:
        return found.load_model(found.load_default_package(), **options)
    from earth2studio.models.auto import Package

    return found.load_model(Package(package), **options)


def persistence(
    variables: list[str],
    n_lat: int = 181,
    n_lon: int = 360,
    history: int = 1,
    step_hours: int = 6,
) -> Any:
    """Return a model that forecasts no change, to try a workflow without weights."""
    from earth2studio.models.px import Persistence

    step = np.timedelta64(step_hours, "h")
    return Persistence(variables, _grid(n_lat, n_lon), history, step)


def noise(n_lat: int = 181, n_lon: int = 360) -> Any:
    """Return a data source of random numbers on the grid of `persistence`."""
    from earth2studio.data import Random

    return Random(_grid(n_lat, n_lon))


def _grid(n_lat: int, n_lon: int) -> OrderedDict[str, Any]:
    return OrderedDict(
        lat=np.linspace(90.0, -90.0, n_lat), lon=np.linspace(0.0, 360.0, n_lon, endpoint=False)
    )
