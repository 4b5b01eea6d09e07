"""Load models and data sources by import path."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict

from deployments.runtime.quick_import import speed_up_earth2studio_import
from workflows.dataset import Origin


class LoaderOptions(BaseModel):
    """How to load a model or data source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name in the settings, such as ``fcn3``."""
    loader: str
    """``module:callable``."""
    options: dict[str, Any] = {}


def load(options: LoaderOptions, **arguments: Any) -> Any:
    """Import and call a loader, with its options and further arguments such as ``device``."""
    speed_up_earth2studio_import()
    return import_from(options.loader)(**arguments, **options.options)


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
