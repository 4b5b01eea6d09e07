"""The Zarr group that a class uses: it takes attributes as netCDF4 does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import zarr

ArrayOptions = Callable[[str, Any, dict[str, Any]], dict[str, Any]]


class _NetCDFAttributes:
    """Keeps attributes as netCDF4 does: ``array.units = "K"``."""

    def __getattr__(self: Any, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.attrs[name]
        except KeyError:
            where = self.path or "the group"
            raise AttributeError(f"{where} has neither a member nor an attribute {name}") from None

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
            return
        self.attrs[name] = _plain(value)


class _Array(_NetCDFAttributes, zarr.Array[Any]):
    """An array with such attributes."""


class RootGroup(_NetCDFAttributes, zarr.Group):
    """A group of such arrays.

    Parameters
    ----------
    array_options : callable, optional
        Returns the options of a new array, from its path, data type and options.
    """

    def __init__(self, node: Any, array_options: ArrayOptions | None = None) -> None:
        super().__init__(node)
        object.__setattr__(self, "_array_options", array_options)
        object.__setattr__(self, "_known", {})

    def __getitem__(self, path: str) -> Any:
        # One object per array: each caches the metadata that it read first, so a second object
        # would overwrite attributes set through the first.
        if path not in self._known:
            self._known[path] = self._opened(path)
        return self._known[path]

    def create_array(self, name: str, **options: Any) -> Any:
        """Create an array, filled with NaN if its data type has it."""
        if self._array_options is not None and options.get("dtype") is not None:
            path = f"{self.path}/{name}".strip("/")
            options = self._array_options(path, options["dtype"], options)
        return self.adopt(name, super().create_array(name, **options))

    def create_group(self, name: str, **options: Any) -> Any:
        """Create a group of such arrays."""
        created = super().create_group(name, **options)
        group = self._known[name] = RootGroup(created._async_group, self._array_options)
        return group

    def adopt(self, path: str, created: zarr.Array[Any]) -> zarr.Array[Any]:
        """Return the object that represents a newly created array from now on."""
        array = self._known[path] = _Array(created._async_array)
        return array

    def forget(self, below: str) -> None:
        """Forget the objects of a folder that was removed."""
        for path in [path for path in self._known if f"{path}/".startswith(below)]:
            del self._known[path]

    def _opened(self, path: str) -> Any:
        found = super().__getitem__(path)
        if isinstance(found, zarr.Array):
            return _Array(found._async_array)
        return RootGroup(found._async_group, self._array_options)


def _plain(value: Any) -> Any:
    """Return NumPy values as JSON values; netCDF4 accepts them as attributes, too."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
