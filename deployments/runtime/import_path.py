"""Load models and data sources by import path."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deployments.runtime.quick_import import speed_up_earth2studio_import
from workflows.base import Component
from workflows.dataset import Origin


class LoaderOptions(BaseModel):
    """How to load a model or data source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name in the settings, such as ``fcn3``."""
    loader: str
    """``module:callable``."""
    options: dict[str, Any] = {}


def load(options: LoaderOptions, device: str | None = None, **arguments: Any) -> Any:
    """Return what a loader loads.

    A class of Earth2Studio with weights is loaded by its own ``load_model``, from its default
    package or from the folder or URL that the option ``package`` names, and moved to the device.
    Anything else is called with its options and further arguments; with the device, too, if it
    has such a parameter, and otherwise what it returns is moved there if it can be.
    """
    speed_up_earth2studio_import()
    loader, own = import_from(options.loader), dict(options.options)
    if hasattr(loader, "load_model") and hasattr(loader, "load_default_package"):
        package = _package(loader, own.pop("package", None))
        loaded = _moved(loader.load_model(package, **arguments, **own), device)
        loaded.weights = str(package.root)
        return loaded
    if device is not None and _accepts(loader, "device", in_keywords=True):
        return loader(device=device, **arguments, **own)
    return _moved(loader(**arguments, **own), device)


def load_component(component: Component, **offered: Any) -> Any:
    """Create a part of a forecast, with those of the offered arguments that it has."""
    loader = import_from(component.loader)
    named = {name: value for name, value in offered.items() if _accepts(loader, name)}
    return loader(**named, **component.options)


def _package(model: Any, location: str | None) -> Any:
    if location is None:
        return model.load_default_package()
    if "://" not in location and not Path(location).is_dir():
        raise FileNotFoundError(f"the folder {location} with the weights does not exist")
    from earth2studio.models.auto import Package

    return Package(location)


def _accepts(loader: Any, name: str, *, in_keywords: bool = False) -> bool:
    try:
        parameters = inspect.signature(loader).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = {inspect.Parameter.VAR_KEYWORD} if in_keywords else set()
    return any(each.name == name or each.kind in kinds for each in parameters)


def _moved(loaded: Any, device: str | None) -> Any:
    if device is None:
        return loaded
    if hasattr(loaded, "to"):
        loaded = loaded.to(device)
    if hasattr(loaded, "eval"):
        loaded.eval()
    return loaded


def import_from(path: str) -> Any:
    """Return the object that ``module:name`` names."""
    module, _, attribute = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def origin_of(loaded: Any, options: LoaderOptions) -> Origin:
    """Return where a loaded model or data source comes from, for the provenance of results."""
    return Origin(
        name=options.name,
        loader=options.loader,
        weights=str(getattr(loaded, "weights", options.options.get("package") or "")),
        synthetic=bool(getattr(loaded, "synthetic", False)),
    )
