"""The contract of all outputs, and the calls that compare them with Earth2Studio's backends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from deployments.custom_workflow.backend import Output, OutputTooLarge
from deployments.custom_workflow.netcdf_backend import NetCDFOutput
from deployments.custom_workflow.run_output import as_backend
from deployments.custom_workflow.write_behind import WriteBehind
from deployments.custom_workflow.zarr_backend import ZarrOutput
from workflows.base import OutputFormat

Coordinates = Mapping[str, NDArray[Any]]
Give = Callable[[Any], Any]
"""Converts a tensor into what a class passes."""
Calls = Callable[[Any, Give], None]
NewOutput = Callable[..., Output]

TIME = np.array(["2025-01-01T06:00"], "datetime64[ns]")
LEAD_TIME = np.arange(3) * np.timedelta64(6, "h")
LAT = np.linspace(90.0, -90.0, 5)
LON = np.linspace(0.0, 360.0, 8, endpoint=False)
MAP = {"lat": LAT, "lon": LON}
FORECAST = {"time": TIME, "lead_time": LEAD_TIME, **MAP}
ENSEMBLE = {"ensemble": np.arange(2), "time": TIME + LEAD_TIME, **MAP}
VARIABLES = np.array(["t2m", "z500"])


class LateWriter:
    """Stands in for `WriteBehind`: writes nothing before it is flushed."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], object]] = []

    def put(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        fill: Callable[[NDArray[Any]], object],
        write: Callable[[NDArray[Any]], object],
    ) -> None:
        copy: NDArray[Any] = np.empty(shape, dtype)
        fill(copy)
        self.pending.append(lambda: write(copy))

    def flush(self) -> None:
        while self.pending:
            self.pending.pop(0)()

    def close(self) -> None:
        self.pending.clear()


def new_output(
    folder: Path,
    output_format: OutputFormat,
    writer: Any = None,
    *,
    max_bytes: int = 1 << 30,
    check: Callable[[], None] = lambda: None,
) -> Any:
    from earth2studio.io import NetCDF4Backend, ZarrBackend

    if output_format == "netcdf4":
        netcdf = as_backend(NetCDFOutput, NetCDF4Backend)
        return netcdf(folder / "results.nc", max_bytes, check)
    zarr: Any = as_backend(ZarrOutput, ZarrBackend)
    return zarr(folder / "results.zarr", max_bytes, check, writer=writer or LateWriter())


def new_backend(path: Path, output_format: OutputFormat) -> Any:
    """Return the backend of Earth2Studio that an output replaces."""
    from earth2studio.io import NetCDF4Backend, ZarrBackend

    if output_format == "zarr":
        return ZarrBackend(str(path))
    return NetCDF4Backend(str(path), {"mode": "w", "diskless": False})


def dataset(path: Path) -> xr.Dataset:
    """Return the content of a closed output."""
    if path.is_dir():
        consolidated = '"consolidated_metadata"' in (path / "zarr.json").read_text()
        opened = xr.open_zarr(path, consolidated=consolidated)
    else:
        opened = xr.open_dataset(path, engine="netcdf4")
    with opened:
        return opened.load()


def described(opened: xr.Dataset) -> dict[Any, tuple[Any, Any]]:
    return {name: (each.dims, each.dtype) for name, each in opened.variables.items()}


def tensor(coords: Coordinates, seed: int = 0) -> Any:
    """Return values that depend on the seed and are exact in every floating-point type."""
    import torch
    from earth2studio.utils.coords import convert_multidim_to_singledim

    shape = tuple(map(len, convert_multidim_to_singledim(coords)[0].values()))
    quarters = np.random.default_rng(seed).integers(-128, 128, shape)
    return torch.from_numpy(np.asarray(quarters / 4, np.float32))


def at(coords: Coordinates, **indices: Any) -> dict[str, NDArray[Any]]:
    """Return a part of coordinates, by positions."""
    return {
        dim: values[indices[dim]] if dim in indices else values for dim, values in coords.items()
    }


def set_up_like_earth2studio(io: Any) -> None:
    """Do what `FoundryFCN3Workflow.setup_io` of Earth2Studio does."""
    import torch
    import zarr
    from cftime import date2num
    from earth2studio.io import NetCDF4Backend, ZarrBackend
    from earth2studio.utils.time import timearray_to_datetime

    io.add_array(ENSEMBLE, VARIABLES)
    io.add_array({"ensemble": np.arange(2)}, "seed", data=torch.tensor([7, 2**32 - 1]))
    io.add_array({}, "crs")
    io.root["crs"].grid_mapping_name = "latitude_longitude"
    io.root["crs"].longitude_of_prime_meridian = 0.0
    io.root["crs"].semi_major_axis = 6378137.0
    for name in VARIABLES:
        io.root[name].grid_mapping = "crs"
    io.root["ensemble"].standard_name = "realization"
    io.root["time"].standard_name = "time"
    io.root["time"].axis = "T"
    io.root["lat"].standard_name = "latitude"
    io.root["lat"].units = "degrees_north"

    backend = io if isinstance(io, (NetCDF4Backend, ZarrBackend)) else getattr(io, "io", None)
    if isinstance(backend, ZarrBackend):
        zarr.consolidate_metadata(backend.store)
    if isinstance(backend, NetCDF4Backend):
        reference = np.datetime_as_string(ENSEMBLE["time"][0], unit="s")
        units = f"hours since {reference.replace('T', ' ')}"
        variable = backend.root["time"]
        variable.units = units
        variable[:] = date2num(
            timearray_to_datetime(ENSEMBLE["time"]), units=units, calendar=variable.calendar
        )
        backend.root.sync()


# How classes call a backend: the same calls go to ours and to Earth2Studio's.


def step_by_step(io: Any, give: Give) -> None:
    """As `earth2studio.run.deterministic` does."""
    io.add_array(FORECAST, VARIABLES)
    for step in range(3):
        part = at(FORECAST, lead_time=[step])
        io.write([give(tensor(part, seed)) for seed in (step, 10 + step)], part, VARIABLES)


def several_steps_at_once(io: Any, give: Give) -> None:
    io.add_array(FORECAST, "t2m")
    io.write(give(tensor(at(FORECAST, lead_time=[0, 1]), 1)), at(FORECAST, lead_time=[0, 1]), "t2m")
    io.write(give(tensor(at(FORECAST, lead_time=[2]), 2)), at(FORECAST, lead_time=[2]), "t2m")


def steps_that_do_not_adjoin(io: Any, give: Give) -> None:
    io.add_array(FORECAST, "t2m")
    io.write(give(tensor(at(FORECAST, lead_time=[0, 2]), 1)), at(FORECAST, lead_time=[0, 2]), "t2m")
    io.write(give(tensor(at(FORECAST, lead_time=[1]), 2)), at(FORECAST, lead_time=[1]), "t2m")


def member_by_member(io: Any, give: Give) -> None:
    """As Earth2Studio's ensemble workflows do: the last member first, each value twice."""
    io.add_array(ENSEMBLE, VARIABLES)
    for seed, (member, step) in enumerate([(m, s) for m in (1, 0) for s in (2, 0, 1)] * 2):
        part = at(ENSEMBLE, ensemble=[member], time=[step])
        io.write([give(tensor(part, seed)), give(tensor(part, -seed % 50))], part, list(VARIABLES))


def in_bands(io: Any, give: Give) -> None:
    io.add_array(FORECAST, "t2m")
    for seed, band in enumerate((slice(0, 2), slice(2, 5))):
        part = at(FORECAST, lat=band)
        io.write(give(tensor(part, seed)), part, "t2m")


def here_and_there(io: Any, give: Give) -> None:
    io.add_array(FORECAST, "t2m")
    io.write(give(tensor(FORECAST)), FORECAST, "t2m")
    part = at(FORECAST, lead_time=[0, 2], lat=[0, 3], lon=[1, 2, 7])
    io.write(give(tensor(part, 1)), part, "t2m")
    part = at(FORECAST, lead_time=[1])
    io.write(give(tensor(part, 2)), part, "t2m")


def unordered(io: Any, give: Give) -> None:
    coords = at(FORECAST, lead_time=[2, 0, 1], lat=[4, 1, 3, 0, 2], lon=[*range(4, 8), *range(4)])
    io.add_array(coords, "t2m")
    for seed in (1, 2, 0):
        part = at(coords, lead_time=[seed])
        io.write(give(tensor(part, seed)), part, "t2m")
    part = at(coords, lat=[1, 2], lon=[0, 3, 4])
    io.write(give(tensor(part, 9)), part, "t2m")


def on_a_curved_grid(io: Any, give: Give) -> None:
    """Latitude and longitude have two dimensions each, which Earth2Studio names ilat and ilon."""
    coords = {"time": TIME, "lead_time": LEAD_TIME, **curved(LAT)}
    io.add_array(coords, VARIABLES)
    for step in range(3):
        part = at(coords, lead_time=[step])
        io.write([give(tensor(part, seed)) for seed in (step, 10 + step)], part, VARIABLES)


def with_data(io: Any, give: Give) -> None:
    io.add_array(MAP, "orography", data=give(tensor(MAP)))
    io.add_array(MAP, ["a", "b"], data=[give(tensor(MAP, 1)), give(tensor(MAP, 2))])


def with_seeds(io: Any, give: Give) -> None:
    import torch

    io.add_array(ENSEMBLE, "t2m")
    io.add_array(at(ENSEMBLE, ensemble=[0, 1]), "t2m")  # exists already
    io.write(give(tensor(ENSEMBLE)), ENSEMBLE, "t2m")
    io.add_array({"ensemble": np.arange(2)}, "seed", data=torch.tensor([7, 2**32 - 1]))


def into_what_was_not_added(io: Any, give: Give) -> None:
    io.add_array(FORECAST, "t2m")
    io.write([give(tensor(FORECAST, 1)), give(tensor(FORECAST, 2))], FORECAST, ["t2m", "z500"])


def series(io: Any, give: Give) -> None:
    coords = {"time": TIME + LEAD_TIME}
    io.add_array(coords, "mean")
    for step in (1, 2, 0):
        io.write(give(tensor(at(coords, time=[step]), step)), at(coords, time=[step]), "mean")


def odd_dimensions(io: Any, give: Give) -> None:
    zonal = {"lat": LAT, "valid_time": TIME + LEAD_TIME}
    named = {"time": TIME, "variable": VARIABLES, "lat": LAT}
    io.add_array(zonal, "zonal")
    io.add_array(named, "all")
    for step in range(3):
        part = at(zonal, valid_time=[step])
        io.write(give(tensor(part, step)), part, "zonal")
    io.write(give(tensor(named)), named, "all")


CALLS: list[Calls] = [
    step_by_step,
    several_steps_at_once,
    steps_that_do_not_adjoin,
    member_by_member,
    in_bands,
    here_and_there,
    unordered,
    on_a_curved_grid,
    with_data,
    with_seeds,
    into_what_was_not_added,
    series,
    odd_dimensions,
]


def _scattered(values: Any) -> Any:
    """Return a tensor whose memory is interleaved with another's."""
    import torch

    return torch.stack([values, values + 1], dim=-1)[..., 0]


def _unchanged(values: Any) -> Any:
    return values


GIVEN: dict[str, tuple[Give, Give]] = {
    "torch": (_unchanged, _unchanged),
    "scattered": (_scattered, _scattered),
    "float64": (lambda values: values.double(), lambda values: values.double()),
    # Earth2Studio's own backends do not accept these.
    "numpy": (lambda values: values.numpy(), _unchanged),
    "of a graph": (lambda values: values.clone().requires_grad_() * 1, _unchanged),
    "bfloat16": (lambda values: values.bfloat16(), _unchanged),
}
"""What classes pass to ours and to Earth2Studio's."""


LOOKS: list[Callable[[Output], Any]] = [
    lambda io: io["t2m"][...],
    lambda io: io.root["t2m"][...],
    lambda io: io.io["t2m"][:],
    lambda io: np.asarray(io["t2m"]),
    lambda io: io.read(FORECAST, "t2m")[0],
]
"""How a class reads the output."""


def member_by_member_after_set_up(io: Any) -> None:
    values = [tensor(ENSEMBLE, 1), tensor(ENSEMBLE, 2)]
    for member in range(2):
        for step in range(3):
            part = at(ENSEMBLE, ensemble=[member], time=[step])
            io.write([each[[member]][:, [step]] for each in values], part, VARIABLES)


def curved(lat: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return coordinates of two dimensions each, as Earth2Studio has them for curved grids."""
    north, east = np.meshgrid(lat, LON, indexing="ij")
    return {"lat": north + east / 100, "lon": east}


def own_array(io: Any, name: str) -> Any:
    """Create an array of one map as a class does that knows the format's library."""
    if hasattr(io.root, "createVariable"):
        return io.root.createVariable(name, "f4", ("lat", "lon"))
    return io.root.create_array(name, shape=(5, 8), dtype="f4", dimension_names=["lat", "lon"])


def close(backend: Any) -> None:
    """Close a backend of Earth2Studio, if it can be closed."""
    if hasattr(backend, "close"):
        backend.close()


def held_open(folder: Path) -> list[os.stat_result]:
    """Return files below a folder that this process has open, including removed ones."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith(str(folder)):
                found.append(descriptor.stat())
    return found


class OutputContract:
    """Behaviour in every format; subclasses set the format."""

    output_format: OutputFormat

    @pytest.fixture
    def new(self, tmp_path: Path) -> Iterator[NewOutput]:
        """A function that creates outputs, which are discarded at the end."""
        made: list[Output] = []

        def new(*args: Any, **options: Any) -> Output:
            folder = tmp_path / f"run {len(made)}"
            folder.mkdir()
            made.append(new_output(folder, self.output_format, *args, **options))
            return made[-1]

        yield new
        for output in made:
            output.discard()

    @pytest.fixture
    def io(self, new: NewOutput) -> Output:
        """An output that writes as late as possible."""
        return new()

    # Comparison with Earth2Studio's backends.

    @pytest.mark.parametrize("given", GIVEN)
    @pytest.mark.parametrize("calls", CALLS)
    def test_its_content_is_that_of_earth2studios_backend(
        self, calls: Calls, given: str, new: NewOutput, tmp_path: Path
    ) -> None:
        give, give_theirs = GIVEN[given]
        theirs = new_backend(tmp_path / "theirs", self.output_format)
        calls(theirs, give_theirs)
        names = set(theirs)
        close(theirs)
        ours = new(WriteBehind(2, 1 << 20) if self.output_format == "zarr" else None)
        calls(ours, give)
        assert set(ours) == names
        assert len(ours) == len(names)
        ours.finish()

        got, expected = dataset(ours.path), dataset(tmp_path / "theirs")
        xr.testing.assert_equal(got, expected)
        assert described(got) == described(expected)

    def test_it_is_an_instance_of_earth2studios_backend(self, io: Output) -> None:
        from earth2studio.io import IOBackend, NetCDF4Backend, ZarrBackend

        assert isinstance(io, IOBackend)
        assert isinstance(io, ZarrBackend) == (self.output_format == "zarr")
        assert isinstance(io, NetCDF4Backend) == (self.output_format == "netcdf4")
        # Earth2Studio's server passes a wrapper, which classes unwrap.
        assert io.io is io

    @pytest.mark.parametrize(
        ("indices", "message"),
        [
            ({"lead_time": [2, 0]}, "coordinate lead_time must be in the order of the array's"),
            ({"lat": [4, 2, 3, 1, 0]}, "coordinate lat must be in the order of the array's"),
            ({"lon": [0, 1, 1]}, "coordinate lon has the value 45.0 more than once"),
        ],
    )
    def test_places_that_earth2studio_confuses_are_refused(
        self, io: Output, indices: dict[str, list[int]], message: str
    ) -> None:
        """Earth2Studio's backends sort the coordinates but not the values."""
        io.add_array(FORECAST, "t2m")
        part = at(FORECAST, **indices)
        with pytest.raises(ValueError, match=message):
            io.write(tensor(part), part, "t2m")
        with pytest.raises(ValueError, match=message):
            io.read(part, "t2m")

    def test_a_coordinate_with_equal_values_is_written_as_a_whole(self, io: Output) -> None:
        stations = {"station": np.array([10, 10, 20])}
        io.add_array(stations, "t2m")
        for indices in ([0, 1], [0]):
            part = at(stations, station=indices)
            with pytest.raises(ValueError, match="station has the value 10 more than once"):
                io.write(tensor(part), part, "t2m")
        io.write(tensor(stations), stations, "t2m")
        io.finish()
        np.testing.assert_array_equal(dataset(io.path).t2m, tensor(stations))

    @pytest.mark.parametrize(
        ("time", "lead_time"),
        [
            (TIME, LEAD_TIME),
            (TIME.astype("datetime64[s]"), LEAD_TIME.astype("timedelta64[ns]")),
            (TIME.astype("datetime64[h]"), LEAD_TIME.astype("timedelta64[s]")),
            (np.array(["1959-02-28", "2028-02-29"], "datetime64[ns]"), -LEAD_TIME),
            (TIME, np.arange(200) * np.timedelta64(10, "m")),
            (TIME, (np.arange(200) * np.timedelta64(10, "m")).astype("timedelta64[ns]")),
            (TIME, np.arange(3) * np.timedelta64(1, "D")),
            (TIME, np.arange(3) * np.timedelta64(500, "ms")),
            (TIME + np.arange(200) * np.timedelta64(10, "m"), LEAD_TIME),
            (TIME + np.timedelta64(754, "s"), LEAD_TIME),
            (TIME + np.arange(300) * np.timedelta64(7, "s"), LEAD_TIME),
            (TIME - np.arange(3) * np.timedelta64(250, "ms"), LEAD_TIME),
        ],
    )
    def test_times_survive_storage(
        self, io: Output, time: NDArray[Any], lead_time: NDArray[Any], tmp_path: Path
    ) -> None:
        coords = {"time": time, "lead_time": lead_time}
        io.add_array(coords, "t2m")
        io.finish()
        got = dataset(io.path)
        np.testing.assert_array_equal(got.time, time)
        np.testing.assert_array_equal(got.lead_time, lead_time)

        unit, _ = np.datetime_data(lead_time.dtype)
        if self.output_format == "netcdf4" and unit in ("ns", "ms"):
            # Earth2Studio does not support these units.
            return
        theirs = new_backend(tmp_path / "theirs", self.output_format)
        theirs.add_array(coords, "t2m")
        close(theirs)
        expected = dataset(tmp_path / "theirs")
        np.testing.assert_array_equal(got.lead_time, expected.lead_time)
        # Earth2Studio's hours since the year 1, as float64, lose microseconds.
        assert abs(got.time.values - expected.time.values).max() < np.timedelta64(10, "us")

    # Reading while writing.

    @pytest.mark.parametrize(
        "look",
        LOOKS,
    )
    def test_written_values_are_read_at_once(
        self, io: Output, look: Callable[[Output], Any]
    ) -> None:
        io.add_array(FORECAST, "t2m")
        io.write(tensor(FORECAST), FORECAST, "t2m")
        np.testing.assert_array_equal(look(io), tensor(FORECAST))

    @pytest.mark.parametrize("look", LOOKS)
    def test_unwritten_values_are_read_as_nan(
        self, io: Output, look: Callable[[Output], Any]
    ) -> None:
        io.add_array(FORECAST, "t2m")
        expected = np.full((1, 3, 5, 8), np.nan)
        for hour in (1, 0):
            step = at(FORECAST, lead_time=[hour])
            io.write(tensor(step, hour), step, "t2m")
            expected[:, [hour]] = tensor(step, hour)
            np.testing.assert_array_equal(look(io), expected)
        io.finish()
        np.testing.assert_array_equal(dataset(io.path).t2m, expected)

    def test_an_array_object_shows_later_writes(self, io: Output) -> None:
        io.add_array(FORECAST, "t2m")
        held = io["t2m"]
        for seed in (1, 2):
            io.write(tensor(FORECAST, seed), FORECAST, "t2m")
            np.testing.assert_array_equal(held[...], tensor(FORECAST, seed))

    def test_it_is_a_mapping_of_names_to_arrays(self, io: Output) -> None:
        io.add_array(FORECAST, VARIABLES)
        assert list(io) == [*FORECAST, *VARIABLES]
        assert len(io) == 6
        assert "t2m" in io
        assert "time" in io
        assert "absent" not in io
        with pytest.raises(KeyError):
            io["absent"]
        assert io["t2m"].shape == (1, 3, 5, 8)
        np.testing.assert_array_equal(io["lat"][...], LAT)
        assert io.root

    def test_a_part_is_read(self, io: Output) -> None:
        io.add_array(FORECAST, "t2m")
        io.write(tensor(FORECAST), FORECAST, "t2m")
        part = at(FORECAST, lead_time=[1], lat=[0, 3], lon=[2, 3, 7])
        values, coords = io.read(part, "t2m")
        expected = tensor(FORECAST)[:, 1:2][:, :, [0, 3]][..., [2, 3, 7]]
        np.testing.assert_array_equal(values, expected)
        assert coords is part

    # Attributes.

    @pytest.mark.parametrize(
        ("value", "kept"),
        [
            ("K", "K"),
            (np.str_("K"), "K"),
            (5, 5),
            (0.5, 0.5),
            (np.int64(5), 5),
            (np.float32(0.5), 0.5),
            (np.array([0.5, 1.5]), [0.5, 1.5]),
            ([1, 2, 3], [1, 2, 3]),
            ((np.float32(0.5), np.float64(1.5)), [0.5, 1.5]),
        ],
    )
    def test_attributes_are_kept(self, io: Output, value: Any, kept: Any) -> None:
        io.add_array(FORECAST, VARIABLES)
        for node in (io.root, io.root["t2m"], io.root["lat"]):
            node.given = value
            np.testing.assert_array_equal(node.given, kept)
        io.finish()

        got = dataset(io.path)
        for attributes in (got.attrs, got.t2m.attrs, got.lat.attrs):
            np.testing.assert_array_equal(attributes["given"], kept)
        assert "given" not in got.z500.attrs

    def test_attributes_set_through_any_reference_are_kept(self, io: Output) -> None:
        io.add_array(FORECAST, "t2m")
        first, second = io.root["t2m"], io["t2m"]
        first.units = "K"
        io.write(tensor(FORECAST), FORECAST, "t2m")
        second.long_name = "temperature"
        first.standard_name = "air_temperature"
        io.root.title = "a forecast"
        io.add_array(FORECAST, "z500")
        io.root.history = "made"
        io.root["t2m"].long_name = "temperature at 2 m"
        assert first.long_name == second.long_name == "temperature at 2 m"
        assert not hasattr(first, "absent")
        assert not hasattr(io.root, "absent")
        io.finish()

        got = dataset(io.path)
        assert got.t2m.attrs == {
            "units": "K",
            "long_name": "temperature at 2 m",
            "standard_name": "air_temperature",
        }
        assert got.attrs == {"title": "a forecast", "history": "made"}
        np.testing.assert_array_equal(got.t2m, tensor(FORECAST))

    def test_earth2studios_foundry_workflow_can_write(self, io: Output) -> None:
        set_up_like_earth2studio(io)
        member_by_member_after_set_up(io)
        io.finish()
        assert io.coverage.fractions == {"t2m": 1.0, "z500": 1.0, "seed": 1.0}

        got = dataset(io.path)
        np.testing.assert_array_equal(got.time, TIME + LEAD_TIME)
        assert got.time.attrs == {"standard_name": "time", "axis": "T"}
        assert got.ensemble.attrs == {"standard_name": "realization"}
        assert got.lat.attrs == {"standard_name": "latitude", "units": "degrees_north"}
        assert got.seed.values.tolist() == [7, 2**32 - 1]
        assert got.seed.dtype == np.int64
        assert got.crs.shape == ()
        assert got.crs.attrs == {
            "grid_mapping_name": "latitude_longitude",
            "longitude_of_prime_meridian": 0.0,
            "semi_major_axis": 6378137.0,
        }
        for name in VARIABLES:
            assert (got[name].attrs | got[name].encoding)["grid_mapping"] == "crs"
        np.testing.assert_array_equal(got.t2m, tensor(ENSEMBLE, 1))
        np.testing.assert_array_equal(got.z500, tensor(ENSEMBLE, 2))

    # Unwritten values.

    def test_unwritten_values_are_nan(self, io: Output) -> None:
        io.add_array(FORECAST, VARIABLES)
        io.add_array({}, "crs")
        step = at(FORECAST, lead_time=[1])
        io.write(tensor(step), step, "t2m")
        io.finish()

        got = dataset(io.path)
        expected = np.full((1, 3, 5, 8), np.nan)
        assert np.isnan(got.crs)
        np.testing.assert_array_equal(got.z500, expected)
        expected[:, [1]] = tensor(step)
        np.testing.assert_array_equal(got.t2m, expected)

    def test_the_rest_of_a_map_is_nan(self, io: Output) -> None:
        io.add_array(FORECAST, "t2m")
        expected = np.full((1, 3, 5, 8), np.nan)
        for seed, lon in enumerate(([5], [1, 3])):
            part = at(FORECAST, lead_time=[1], lat=[1, 2], lon=lon)
            io.write(tensor(part, seed), part, "t2m")
            expected[:, 1, 1:3, lon] = np.moveaxis(tensor(part, seed)[:, 0].numpy(), -1, 0)
        io.finish()
        np.testing.assert_array_equal(dataset(io.path).t2m, expected)

    def test_the_rest_is_nan_when_a_class_writes_past_the_backend(self, io: Output) -> None:
        io.add_array(FORECAST, "t2m")
        first, last = at(FORECAST, lead_time=[0]), at(FORECAST, lead_time=[2], lat=[4])
        expected = np.full((1, 3, 5, 8), np.nan)
        io.write(tensor(first), first, "t2m")
        expected[:, [0]] = tensor(first)
        held = io.root["t2m"]
        held[0, 0, 0] = 1.0
        held[0, 2, 1:3] = 2.0
        io.write(tensor(last), last, "t2m")
        expected[0, 0, 0] = 1.0
        expected[0, 2, 1:3] = 2.0
        expected[:, [2], [4]] = tensor(last)[:, :, 0]
        io.finish()
        assert io.coverage.fractions == {"t2m": (5 + 3) / 15}
        np.testing.assert_array_equal(dataset(io.path).t2m, expected)

    # Coverage: what is written of each variable, element by element, however it was written.

    def test_coverage_counts_elements(self, io: Output) -> None:
        io.add_array({}, "crs")
        io.add_array(FORECAST, ["whole", "half a map", "nothing", "own hands"])
        io.write(tensor(FORECAST), FORECAST, "whole")
        west = at(FORECAST, lead_time=[0], lon=slice(0, 4))
        io.write(tensor(west), west, "half a map")
        io.root["own hands"][0, 1, 2:4] = 5.0
        io.finish()
        assert io.coverage.fractions == {
            "whole": 1.0,
            "half a map": 1 / 6,
            "nothing": 0.0,
            "own hands": 2 / 15,
        }
        assert io.coverage.warnings() == [
            "half a map: 83.3 % of its values were not written",
            "nothing: 100 % of its values were not written",
            "own hands: 86.7 % of its values were not written",
        ]

    def test_nan_that_was_written_is_written(self, io: Output) -> None:
        """Sea surface temperature is NaN on land."""
        masked = tensor(MAP).numpy()
        masked[:3] = np.nan
        io.add_array(MAP, ["whole", "in parts", "own hands", "half"])
        io.write(masked, MAP, "whole")
        for part in (slice(0, 2), slice(2, 5)):
            io.write(masked[part], at(MAP, lat=part), "in parts")
        io.root["own hands"][...] = masked
        io.write(masked[:2], at(MAP, lat=slice(0, 2)), "half")
        io.finish()
        expected = {"whole": 1.0, "in parts": 1.0, "own hands": 1.0, "half": 0.4}
        assert io.coverage.fractions == expected

    def test_an_array_of_the_class_counts(self, io: Output) -> None:
        io.add_array(MAP, "t2m", data=tensor(MAP))
        own_array(io, "own")[:2] = tensor(at(MAP, lat=[0, 1])).numpy()
        io.write(tensor(at(MAP, lat=[3])), at(MAP, lat=[3]), "own")
        assert "own" in io
        assert list(io) == ["lat", "lon", "t2m", "own"]
        io.finish()
        assert io.coverage.fractions == {"t2m": 1.0, "own": 0.6}
        got = dataset(io.path).own.values
        np.testing.assert_array_equal(got[3], tensor(at(MAP, lat=[3])).numpy()[0])
        missing = np.nan if self.output_format == "zarr" else netCDF4.default_fillvals["f4"]
        np.testing.assert_array_equal(got[[2, 4]], np.float32(missing))

    def test_an_empty_array_is_complete(self, io: Output) -> None:
        """A tracker that found no storm."""
        coords = {"storm": np.empty(0, int), "step": np.arange(3)}
        io.add_array(coords, "track_lat", data=tensor(coords))
        io.finish()
        assert io.coverage.fractions == {"track_lat": 1.0}
        assert io.coverage.warnings() == []
        assert dataset(io.path).track_lat.shape == (0, 3)

    def test_what_a_class_requires_must_be_complete(self, io: Output) -> None:
        io.add_array(MAP, VARIABLES)
        io.write(tensor(MAP), MAP, "t2m")
        north = at(MAP, lat=slice(0, 2))
        io.write(tensor(north), north, "z500")
        io.finish()
        assert io.coverage.shortcoming([]) is None
        assert io.coverage.shortcoming(["t2m"]) is None
        assert io.coverage.shortcoming(["t2m", "z500", "absent"]) == (
            "the workflow ended without what it requires: z500: 60 % of its values were not "
            "written; absent: 100 % of its values were not written"
        )

    def test_progress_counts_chunks_of_the_first_array(self, io: Output) -> None:
        assert io.coverage.progress == (0, 0)
        io.add_array({}, "crs")
        assert io.coverage.progress == (0, 0)
        io.add_array(ENSEMBLE, VARIABLES)
        assert io.coverage.progress == (0, 6)
        io.write(tensor(ENSEMBLE), ENSEMBLE, "z500")
        io.flush()
        assert io.coverage.progress == (0, 6)
        part = at(ENSEMBLE, ensemble=[1], time=[0, 2])
        for _ in range(2):
            io.write(tensor(part), part, "t2m")
            io.flush()
            assert io.coverage.progress == (2, 6)
        part = at(ENSEMBLE, ensemble=[0], time=[1], lat=[2])
        io.write(tensor(part), part, "t2m")
        assert io.coverage.progress == (3, 6)

    def test_variables_without_values_are_named(self, io: Output) -> None:
        import torch

        nothing = torch.full((1, 3, 5, 8), torch.nan)
        one = nothing.clone()
        one[0, 1, 2, 3] = 1.0
        io.add_array(FORECAST, ["nothing", "band", "one", "by hand"])
        io.write([nothing, one, nothing], FORECAST, ["nothing", "one", "by hand"])
        io.write(nothing[:, :, :1], at(FORECAST, lat=[1]), "band")
        io.root["by hand"][0, 1] = 5.0
        io.flush()
        assert io.coverage.progress == (3, 3)
        io.finish()
        assert io.coverage.warnings() == [
            "band: 80 % of its values were not written",
            "nothing: everything written is NaN",
            "band: everything written is NaN",
        ]

    def test_initial_data_are_written(self, io: Output) -> None:
        import torch

        io.add_array(MAP, ["a", "b"], data=[tensor(MAP), torch.full((5, 8), torch.nan)])
        assert io.coverage.progress == (1, 1)
        io.finish()
        assert io.coverage.fractions == {"a": 1.0, "b": 1.0}
        assert io.coverage.warnings() == ["b: everything written is NaN"]

    # Refusals.

    def test_more_than_the_server_accepts_is_refused(self, new: NewOutput) -> None:
        coordinates = sum(values.nbytes for values in FORECAST.values())
        io = new(max_bytes=coordinates + 2 * 3 * 5 * 8 * 4)
        io.add_array(FORECAST, VARIABLES)
        with pytest.raises(
            OutputTooLarge, match=r"with more, shape \(1, 3, 5, 8\), the result would"
        ):
            io.add_array(FORECAST, "more")
        with pytest.raises(
            OutputTooLarge, match=r"with level, shape \(13,\), the result would take"
        ):
            io.add_array({"level": np.arange(13)}, "even more")
        # Existing arrays are not counted twice.
        io.add_array(FORECAST, VARIABLES)

    def test_more_than_the_disk_holds_is_refused(self, new: NewOutput) -> None:
        io = new(max_bytes=1 << 62)
        with pytest.raises(OutputTooLarge, match=r"takes 8.8e\+03 GB; the disk has .* GB left"):
            io.add_array(
                {"a": np.arange(1 << 13), "b": np.arange(1 << 14), "c": np.arange(1 << 14)}, "t2m"
            )

    @pytest.mark.parametrize(
        ("calls", "message"),
        [
            (
                lambda io: io.write(tensor(MAP), FORECAST, "t2m"),
                r"t2m have shape \(1, 3, 5, 8\), its values \(5, 8\)",
            ),
            (
                lambda io: io.write(tensor(FORECAST), at(FORECAST, lat=[0]), "t2m"),
                r"t2m have shape \(1, 3, 1, 8\), its values \(1, 3, 5, 8\)",
            ),
            (
                lambda io: io.write(tensor(FORECAST), FORECAST | {"lon": LON + 1}, "t2m"),
                "lon has no value 1.0",
            ),
            (
                lambda io: io.write(tensor(FORECAST), FORECAST | {"time": TIME + 1}, "t2m"),
                "time has no value 2025-01-01T06:00:00.000000001",
            ),
            (
                lambda io: io.read(FORECAST | {"lead_time": LEAD_TIME * 2}, "t2m"),
                "lead_time has no value 24 hours",
            ),
            (
                lambda io: io.write(tensor(ENSEMBLE), ENSEMBLE, "t2m"),
                "ensemble was not added; there are time, lead_time, lat, lon",
            ),
            (
                lambda io: io.write(tensor(MAP), MAP, "t2m"),
                r"t2m has dimensions \('time', 'lead_time', 'lat', 'lon'\), not \('lat', 'lon'\)",
            ),
            (
                lambda io: io.write([tensor(FORECAST)], FORECAST, VARIABLES),
                "2 array names but 1 tensors",
            ),
            (
                lambda io: io.add_array(MAP, ["a", "b"], data=[tensor(MAP)]),
                "2 array names but 1 tensors",
            ),
            (
                lambda io: io.add_array(MAP, "a", data=tensor(FORECAST)),
                r"a have shape \(5, 8\), its data \(1, 3, 5, 8\)",
            ),
            (
                lambda io: io.add_array({"lat": LAT + 1}, "a", data=tensor({"lat": LAT})),
                "coordinate lat exists with other values",
            ),
            (
                lambda io: io.write(tensor(FORECAST), FORECAST | curved(LAT), "t2m"),
                "coordinate lat must be given whole, as it was added",
            ),
        ],
    )
    def test_mismatched_arguments_are_refused(
        self, io: Output, calls: Callable[[Output], None], message: str
    ) -> None:
        io.add_array(FORECAST, "t2m")
        with pytest.raises(ValueError, match=message):
            calls(io)

    def test_a_part_of_a_curved_grid_is_refused(self, io: Output) -> None:
        coords = {"time": TIME, **curved(LAT)}
        io.add_array(coords, "t2m")
        io.write(tensor(coords), coords, "t2m")
        part = {"time": TIME, **curved(LAT[:2])}
        with pytest.raises(ValueError, match="coordinate lat must be given whole"):
            io.write(tensor(part), part, "t2m")

    def test_a_dimension_without_length_has_no_values(self, io: Output) -> None:
        """Earth2Studio's models have such a batch dimension."""
        io.add_array({"batch": np.empty(0), **MAP}, "t2m")
        coords = {"batch": np.zeros(1), **MAP}
        with pytest.raises(ValueError, match="batch has no value 0.0"):
            io.write(tensor(coords), coords, "t2m")
        io.finish()
        assert dataset(io.path).t2m.shape == (0, 5, 8)

    def test_every_call_can_stop_the_class(self, new: NewOutput) -> None:
        def check() -> None:
            if stopped:
                raise InterruptedError("cancelled")

        stopped: list[bool] = []
        io = new(check=check)
        io.add_array(FORECAST, "t2m")
        stopped.append(True)
        with pytest.raises(InterruptedError):
            io.add_array(FORECAST, "z500")
        with pytest.raises(InterruptedError):
            io.write(tensor(FORECAST), FORECAST, "t2m")
        stopped.clear()
        io.flush()
        assert io.coverage.progress == (0, 3)

    # Finishing and discarding.

    def test_an_empty_output_leaves_no_files(self, io: Output) -> None:
        assert io.finish() == {}
        assert list(io.path.parent.iterdir()) == []

    def test_an_empty_output_is_kept_on_request(self, io: Output) -> None:
        assert io.finish(keep_empty=True) == {}
        assert dict(dataset(io.path)) == {}
        assert io.coverage.fractions == {}

    @pytest.mark.parametrize("finished", [False, True])
    def test_discarding_leaves_no_files(self, io: Output, finished: bool) -> None:
        io.add_array(FORECAST, "t2m")
        io.write(tensor(FORECAST), FORECAST, "t2m")
        if finished:
            io.finish()
        io.discard()
        io.discard()
        assert list(io.path.parent.iterdir()) == []
        assert held_open(io.path.parent) == []
