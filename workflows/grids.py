"""Grids of results: regular in latitude and longitude, or regular on a Lambert conformal map.

References
----------
Snyder, Map Projections: A Working Manual, USGS Professional Paper 1395 (1987), p. 104 to 110, for
the projection of a sphere; Benjamin et al., A North American Hourly Assimilation and Model
Forecast Cycle, Mon. Wea. Rev. 144 (2016), for HRRR's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

Floats = NDArray[np.float64]
FARTHEST_M = 7.5e6
"""Less than the distance to the apex of the projection's cone, beyond which the map folds."""
METRE_DECIMALS = 2
MAX_SHIFT = 0.01
"""Distance of a model's point from that of a `LambertGrid`, in units of the spacing: models have
their coordinates in single precision."""
# Strict, since pydantic reads `true` as 1.
Metres = Annotated[float, Strict(), Field(ge=-FARTHEST_M, le=FARTHEST_M, allow_inf_nan=False)]


class RegularGrid(BaseModel):
    """Base of the regular latitude-longitude grids.

    Models have their fields on `latitudes` and `longitudes`. Results are stored southwards and,
    if they are global, from -180 degrees east: on `output_latitudes` and `output_longitudes`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dims: ClassVar[tuple[str, str]] = ("lat", "lon")
    if TYPE_CHECKING:  # fields of the one, constants of the other

        @property
        def n_lat(self) -> int:
            """Number of latitudes."""

        @property
        def n_lon(self) -> int:
            """Number of longitudes."""

        @property
        def first_lat(self) -> float:
            """Degrees north."""

        @property
        def last_lat(self) -> float:
            """Degrees north."""

        @property
        def first_lon(self) -> float:
            """Degrees east."""

        @property
        def last_lon(self) -> float | None:
            """Degrees east, of a regional grid; None for one around the globe."""

    @property
    def is_global(self) -> bool:
        """Whether the longitudes go around the globe."""
        return self.last_lon is None

    @property
    def is_northward(self) -> bool:
        """Whether the model's fields start in the south."""
        return self.first_lat < self.last_lat

    @property
    def west(self) -> int:
        """Index of the model's longitude that comes first in results."""
        return self.n_lon // 2 if self.is_global and self.first_lon == 0.0 else 0

    @property
    def shape(self) -> tuple[int, int]:
        """Number of points along each dimension."""
        return self.n_lat, self.n_lon

    def latitudes(self) -> Floats:
        """Return the model's latitudes in degrees north, shape (lat,)."""
        return np.linspace(self.first_lat, self.last_lat, self.n_lat)

    def longitudes(self) -> Floats:
        """Return the model's longitudes in degrees east, shape (lon,)."""
        if self.last_lon is None:
            return np.linspace(self.first_lon, self.first_lon + 360.0, self.n_lon, endpoint=False)
        return np.linspace(self.first_lon, self.last_lon, self.n_lon)

    def output_latitudes(self) -> Floats:
        """Return latitudes as they are stored, shape (lat,), southwards."""
        latitudes = self.latitudes()
        return latitudes[::-1] if self.is_northward else latitudes

    def output_longitudes(self) -> Floats:
        """Return longitudes as they are stored, shape (lon,), eastwards from at least -180.

        Those of a regional grid may exceed 180 across the antimeridian.
        """
        if self.is_global:
            return np.linspace(-180.0, 180.0, self.n_lon, endpoint=False)
        longitudes = self.longitudes()
        # Shifted as a whole, so that neighbours stay neighbours.
        turns: float = np.floor((longitudes[0] + 180.0) / 360.0)
        return longitudes - 360.0 * turns


class Grid(RegularGrid):
    """A global grid from the north pole to the south pole and from 0 degrees east.

    The default is the 0.25 degree grid of ECMWF's open data and FCN3.
    """

    first_lat: ClassVar[float] = 90.0
    last_lat: ClassVar[float] = -90.0
    first_lon: ClassVar[float] = 0.0
    last_lon: ClassVar[float | None] = None

    n_lat: int = Field(default=721, ge=2, le=1_000_000)
    n_lon: int = Field(default=1440, ge=2, le=2_000_000, multiple_of=2)
    """Even, so that a point lies at -180 degrees when longitudes are rolled."""


class LatLonGrid(RegularGrid):
    """Any other regular grid: without a pole, northwards, from -180 degrees, or regional."""

    n_lat: int = Field(ge=2, le=1_000_000)
    n_lon: int = Field(ge=2, le=2_000_000)
    first_lat: float = Field(ge=-90, le=90)
    last_lat: float = Field(ge=-90, le=90)
    first_lon: float = Field(ge=-360, le=360)
    last_lon: float | None = Field(default=None, ge=-360, le=720)

    @model_validator(mode="after")
    def _check_longitudes(self) -> LatLonGrid:
        if self.first_lat == self.last_lat:
            raise ValueError("first_lat and last_lat must differ")
        if self.last_lon is not None and not 0 < self.last_lon - self.first_lon < 360:
            raise ValueError("last_lon must be east of first_lon, by less than 360 degrees")
        if self.is_global and (self.n_lon % 2 or self.first_lon not in (0.0, -180.0)):
            raise ValueError(
                "a grid around the globe must have an even number of longitudes, from 0 or -180"
            )
        return self


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

    @classmethod
    def project(cls, latitudes: Floats, longitudes: Floats) -> tuple[Floats, Floats]:
        """Return y and x of points, in metres from the origin."""
        cone, apex, scale = cls._cone()
        parallel = np.radians(latitudes)
        distance = apex * (np.tan(np.pi / 4 - parallel / 2) * scale) ** cone
        east = (longitudes - cls.central_meridian + 180.0) % 360.0 - 180.0
        angle = cone * np.radians(east)
        return apex - distance * np.cos(angle), distance * np.sin(angle)

    @classmethod
    def through(cls, latitudes: Floats, longitudes: Floats) -> Self:
        """Return the grid that has given points.

        Parameters
        ----------
        latitudes, longitudes : ndarray, shape (y, x)
            Degrees, rows northwards and columns eastwards.

        Raises
        ------
        ValueError
            If there is none.
        """
        y, x = cls.project(latitudes, longitudes)
        n_y, n_x = latitudes.shape
        spacing = float((x[:, -1] - x[:, 0]).mean() / (n_x - 1))
        first_y, first_x = float(y[0].mean()), float(x[:, 0].mean())
        rows = first_y + spacing * np.arange(n_y)[:, None]
        columns = first_x + spacing * np.arange(n_x)
        distance = np.maximum(np.abs(y - rows), np.abs(x - columns)).max()
        # Also refuses NaN.
        if not distance <= MAX_SHIFT * spacing:
            raise ValueError(
                "the points are not evenly spaced on HRRR's Lambert map, rows northwards and "
                "columns eastwards"
            )
        return cls(
            n_y=n_y,
            n_x=n_x,
            spacing_m=round(spacing, METRE_DECIMALS),
            first_y_m=round(first_y, METRE_DECIMALS),
            first_x_m=round(first_x, METRE_DECIMALS),
        )

    def _inverse(self) -> tuple[Floats, Floats]:
        y, x = np.meshgrid(self.y(), self.x(), indexing="ij")
        cone, apex, scale = self._cone()
        latitude = 2 * np.arctan(scale * (apex / np.hypot(x, apex - y)) ** (1 / cone)) - np.pi / 2
        longitude = self.central_meridian + np.degrees(np.arctan2(x, apex - y)) / cone
        return np.degrees(latitude), (longitude + 180.0) % 360.0 - 180.0

    @classmethod
    def _cone(cls) -> tuple[float, float, float]:
        """Return the cone's constant, its apex's distance from the origin, and the scale factor."""
        # The single standard parallel is that of the origin.
        parallel = np.radians(cls.standard_parallel)
        apex = cls.radius_m / np.tan(parallel)
        return float(np.sin(parallel)), float(apex), float(np.tan(np.pi / 4 + parallel / 2))


AnyGrid = Grid | LatLonGrid | LambertGrid
