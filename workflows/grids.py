"""Grids of results: regular in latitude and longitude, or regular on a Lambert conformal map.

References
----------
Snyder, Map Projections: A Working Manual, USGS Professional Paper 1395 (1987), p. 104 to 110, for
the projection of a sphere; Benjamin et al., A North American Hourly Assimilation and Model
Forecast Cycle, Mon. Wea. Rev. 144 (2016), for HRRR's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

Floats = NDArray[np.float64]
FARTHEST_M = 7.5e6
"""Less than the distance to the apex of the projection's cone, beyond which the map folds."""
# Strict, since pydantic reads `true` as 1.
Metres = Annotated[float, Strict(), Field(ge=-FARTHEST_M, le=FARTHEST_M, allow_inf_nan=False)]


class Grid(BaseModel):
    """A regular latitude-longitude grid, from the north pole southwards.

    The default is the 0.25 degree grid of ECMWF's open data and FCN3.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dims: ClassVar[tuple[str, str]] = ("lat", "lon")

    n_lat: int = Field(default=721, ge=2, le=1_000_000)
    n_lon: int = Field(default=1440, ge=2, le=2_000_000, multiple_of=2)
    """Even, so that a point lies at -180 degrees when longitudes are rolled."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of points along each dimension."""
        return self.n_lat, self.n_lon

    def latitudes(self) -> Floats:
        """Return latitudes in degrees north, shape (lat,), 90 to -90."""
        return np.linspace(90.0, -90.0, self.n_lat)

    def longitudes(self) -> Floats:
        """Return longitudes in degrees east, shape (lon,), 0 to 360 exclusive, for models."""
        return np.linspace(0.0, 360.0, self.n_lon, endpoint=False)

    def output_longitudes(self) -> Floats:
        """Return longitudes as they are stored, shape (lon,), -180 to 180 exclusive."""
        return np.linspace(-180.0, 180.0, self.n_lon, endpoint=False)


class LambertGrid(BaseModel):
    """A grid on HRRR's Lambert conformal map of the contiguous United States, from the south-west.

    The default is every second point, 6 km apart, of the central 1024 x 1792 points of HRRR.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dims: ClassVar[tuple[str, str]] = ("y", "x")
    radius_m: ClassVar[float] = 6371229.0
    """Radius of the sphere that stands for the Earth."""
    standard_parallel: ClassVar[float] = 38.5
    """Degrees north; also the latitude of the projection's origin."""
    central_meridian: ClassVar[float] = 262.5
    """Degrees east."""

    n_y: int = Field(default=512, ge=2, le=10_000)
    n_x: int = Field(default=896, ge=2, le=10_000)
    spacing_m: Metres = Field(default=6000.0, gt=0)
    first_y_m: Metres = -1536306.1525566636
    """Southernmost row."""
    first_x_m: Metres = -2688520.1425219304
    """Westernmost column."""

    @model_validator(mode="after")
    def _check_extent(self) -> LambertGrid:
        if not (-FARTHEST_M <= self.first_y_m <= self.y()[-1] <= FARTHEST_M):
            raise ValueError(f"all y must be within {FARTHEST_M:g} m of the projection's origin")
        if not (-FARTHEST_M <= self.first_x_m <= self.x()[-1] <= FARTHEST_M):
            raise ValueError(f"all x must be within {FARTHEST_M:g} m of the projection's origin")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Number of points along each dimension."""
        return self.n_y, self.n_x

    def y(self) -> Floats:
        """Return distances from the origin in metres, northwards, shape (y,)."""
        return self.first_y_m + self.spacing_m * np.arange(self.n_y, dtype=np.float64)

    def x(self) -> Floats:
        """Return distances from the origin in metres, eastwards, shape (x,)."""
        return self.first_x_m + self.spacing_m * np.arange(self.n_x, dtype=np.float64)

    def latitudes(self) -> Floats:
        """Return latitudes in degrees north, shape (y, x)."""
        return self._inverse()[0]

    def longitudes(self) -> Floats:
        """Return longitudes in degrees east, shape (y, x), -180 to 180."""
        return self._inverse()[1]

    def project(self, latitudes: Floats, longitudes: Floats) -> tuple[Floats, Floats]:
        """Return y and x of points, in metres from the origin."""
        cone, apex, scale = self._cone()
        parallel = np.radians(latitudes)
        distance = apex * (np.tan(np.pi / 4 - parallel / 2) * scale) ** cone
        east = (longitudes - self.central_meridian + 180.0) % 360.0 - 180.0
        angle = cone * np.radians(east)
        return apex - distance * np.cos(angle), distance * np.sin(angle)

    def _inverse(self) -> tuple[Floats, Floats]:
        y, x = np.meshgrid(self.y(), self.x(), indexing="ij")
        cone, apex, scale = self._cone()
        latitude = 2 * np.arctan(scale * (apex / np.hypot(x, apex - y)) ** (1 / cone)) - np.pi / 2
        longitude = self.central_meridian + np.degrees(np.arctan2(x, apex - y)) / cone
        return np.degrees(latitude), (longitude + 180.0) % 360.0 - 180.0

    def _cone(self) -> tuple[float, float, float]:
        """Return the cone's constant, its apex's distance from the origin, and the scale factor."""
        # The single standard parallel is that of the origin.
        parallel = np.radians(self.standard_parallel)
        apex = self.radius_m / np.tan(parallel)
        return float(np.sin(parallel)), float(apex), float(np.tan(np.pi / 4 + parallel / 2))
