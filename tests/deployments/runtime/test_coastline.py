"""The coastline and the land mask that is derived from it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from deployments.runtime.coastline import coastline, land_mask

ROOT = Path(__file__).parents[3]


def test_rings_are_closed_and_in_range() -> None:
    rings = coastline()
    assert len(rings) > 30
    for ring in rings:
        assert ring.shape[0] >= 4 and ring.shape[1] == 2
        assert np.array_equal(ring[0], ring[-1])
        assert (np.abs(ring) <= (180.0, 90.0)).all()


@pytest.mark.parametrize(
    ("north", "east", "is_land"),
    [
        (50.0, 10.0, True),  # Germany
        (-25.0, 135.0, True),  # Australia
        (-10.0, 305.0, True),  # Brazil, east of 180
        (72.0, -40.0, True),  # Greenland
        (0.0, -30.0, False),  # Atlantic
        (0.0, 190.0, False),  # Pacific, east of 180
        (42.0, 51.0, False),  # Caspian Sea
    ],
)
def test_the_land_mask_knows_continents_and_oceans(
    north: float, east: float, is_land: bool
) -> None:
    assert land_mask(np.array([north]), np.array([east])) == [[is_land]]


def test_an_installed_package_has_every_data_file() -> None:
    """Setuptools installs only Python files unless `package-data` names others."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    data = {
        path
        for package in ("serve_app", "deployments", "workflows")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert data
    assert data == packaged
