"""Models and data sources, loaded by import path."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class LoaderOptions(BaseModel):
    """What loads a model or data source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Its name in the settings, such as ``fcn3``."""
    loader: str
    """``module:callable``."""
    options: dict[str, Any] = {}
    """Keyword arguments for the callable."""


def load(what: LoaderOptions, **more: Any) -> Any:
    """Import the callable and call it.

    Parameters
    ----------
    **more
        Further keyword arguments, such as ``device`` for models.
    """
    return import_from(what.loader)(**more, **what.options)


def import_from(path: str) -> Any:
    """Import what ``module:name`` names."""
    module, _, attribute = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def describe_origin(thing: Any, what: LoaderOptions) -> Mapping[str, Any]:
    """Say where a loaded model or data source comes from, for the provenance of results."""
    return {
        "name": what.name,
        "loader": what.loader,
        "synthetic": bool(getattr(thing, "synthetic", False)),
        "weights": str(getattr(thing, "weights", what.options.get("package") or "")),
    }
