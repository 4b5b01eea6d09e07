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
# Strict, because YAML has its own truth values: `true` is no distance.
Metres = Annotated[float, Strict(), Field(allow_inf_nan=False)]

FARTHEST_M = 7.5e6
"""Below the distance to the tip of the projection's cone, behind which the map folds."""


class Grid(BaseModel):
    """A regular latitude-longitude grid, from the north pole southwards.

    The default is the 0.25 degree grid of ECMWF's open data and FCN3.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dims: ClassVar[tuple[str, str]] = ("lat", "lon")

    n_lat: int = Field(default=721, ge=2)
    n_lon: int = Field(default=1440, ge=2, multiple_of=2)
    """Even, or none would lie at -180 degrees once they are rolled."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of points along each dimension."""
        return self.n_lat, self.n_lon

    def latitudes(self) -> Floats:
        """Give latitudes in degrees north, shape (lat,), 90 to -90."""
        return np.linspace(90.0, -90.0, self.n_lat)

    def longitudes(self) -> Floats:
        """Give longitudes in degrees east, shape (lon,), 0 to 360 exclusive, as models use them."""
        return np.linspace(0.0, 360.0, self.n_lon, endpoint=False)

    def output_longitudes(self) -> Floats:
        """Give longitudes as they are stored, shape (lon,), -180 to 180 exclusive."""
        return np.linspace(-180.0, 180.0, self.n_lon, endpoint=False)


class LambertGrid(BaseModel):
    """A grid on HRRR's Lambert conformal map of the contiguous United States, from the south-west.

    The default is every second point of HRRR, 6 km apart, of the 1024 x 1792 in its middle.
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
    """Of the row that lies furthest south."""
    first_x_m: Metres = -2688520.1425219304
    """Of the column that lies furthest west."""

    @model_validator(mode="after")
    def _is_on_the_map(self) -> LambertGrid:
        if not (-FARTHEST_M <= self.first_y_m <= self.y()[-1] <= FARTHEST_M):
            raise ValueError(f"all of y must lie within {FARTHEST_M:g} m of the map's middle")
        if not (-FARTHEST_M <= self.first_x_m <= self.x()[-1] <= FARTHEST_M):
            raise ValueError(f"all of x must lie within {FARTHEST_M:g} m of the map's middle")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Number of points along each dimension."""
        return self.n_y, self.n_x

    def y(self) -> Floats:
        """Give distances from the origin in metres, northwards, shape (y,)."""
        return self.first_y_m + self.spacing_m * np.arange(self.n_y, dtype=np.float64)

    def x(self) -> Floats:
        """Give distances from the origin in metres, eastwards, shape (x,)."""
        return self.first_x_m + self.spacing_m * np.arange(self.n_x, dtype=np.float64)

    def latitudes(self) -> Floats:
        """Give latitudes in degrees north, shape (y, x)."""
        return self._inverse()[0]

    def longitudes(self) -> Floats:
        """Give longitudes in degrees east, shape (y, x), -180 to 180."""
        return self._inverse()[1]

    def project(self, latitudes: Floats, longitudes: Floats) -> tuple[Floats, Floats]:
        """Give y and x of places, in metres from the origin."""
        cone, tip, scale = self._cone()
        parallel = np.radians(latitudes)
        distance = tip * (np.tan(np.pi / 4 - parallel / 2) * scale) ** cone
        east = (longitudes - self.central_meridian + 180.0) % 360.0 - 180.0
        angle = cone * np.radians(east)
        return tip - distance * np.cos(angle), distance * np.sin(angle)

    def _inverse(self) -> tuple[Floats, Floats]:
        y, x = np.meshgrid(self.y(), self.x(), indexing="ij")
        cone, tip, scale = self._cone()
        latitude = 2 * np.arctan(scale * (tip / np.hypot(x, tip - y)) ** (1 / cone)) - np.pi / 2
        longitude = self.central_meridian + np.degrees(np.arctan2(x, tip - y)) / cone
        return np.degrees(latitude), (longitude + 180.0) % 360.0 - 180.0

    def _cone(self) -> tuple[float, float, float]:
        """Give the cone's constant, the origin's distance to its tip, and the parallel's scale."""
        # One parallel, that of the origin.
        parallel = np.radians(self.standard_parallel)
        tip = self.radius_m / np.tan(parallel)
        return float(np.sin(parallel)), float(tip), float(np.tan(np.pi / 4 + parallel / 2))
