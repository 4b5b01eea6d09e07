"""Versions of the software that computes a result."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("earth2serve", "earth2studio", "torch", "ray", "numpy", "zarr", "netCDF4")


@functools.cache
def software() -> dict[str, str]:
    """Return the versions of the installed packages that affect a result, by name."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
