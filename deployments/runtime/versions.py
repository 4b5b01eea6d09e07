"""Versions of the software that makes a result."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("earth2serve", "earth2studio", "torch", "ray", "numpy", "zarr", "netCDF4")


@functools.cache
def software() -> dict[str, str]:
    """Give the versions of installed packages that decide or shape a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
