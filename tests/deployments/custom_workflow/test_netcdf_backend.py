"""NetCDF4 output: the contract of all outputs, units of times, and HDF5's lock."""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from xarray.backends.locks import HDF5_LOCK

from deployments.custom_workflow.backend import Output

pytest.register_assert_rewrite("tests.deployments.custom_workflow.outputs")

from tests.deployments.custom_workflow.outputs import (  # noqa: E402
    FORECAST,
    LAT,
    LEAD_TIME,
    MAP,
    TIME,
    VARIABLES,
    OutputContract,
    at,
    dataset,
    held_open,
    new_output,
    tensor,
)

pytestmark = pytest.mark.models


class TestContract(OutputContract):
    output_format = "netcdf4"


@pytest.fixture
def io(tmp_path: Path) -> Iterator[Output]:
    io = new_output(tmp_path, "netcdf4")
    yield io
    io.discard()


def test_chunks_are_maps_and_fill_is_nan(io: Output) -> None:
    io.add_array(FORECAST, "t2m")
    io.add_array(FORECAST, "z500", zlib=True, fill_value=-1.0, chunksizes=(1, 3, 5, 8))
    io.finish()
    with netCDF4.Dataset(io.path) as file:
        assert file.data_model == "NETCDF4"
        assert file["t2m"].chunking() == [1, 1, 5, 8]
        assert np.isnan(file["t2m"]._FillValue)
        assert not any(file["t2m"].filters().values())
        assert file["z500"].chunking() == [1, 3, 5, 8]
        assert file["z500"].filters()["zlib"]
        assert file["z500"]._FillValue == -1.0
        assert "_FillValue" not in file["lat"].ncattrs()


@pytest.mark.parametrize(
    ("time", "lead_time", "units"),
    [
        (TIME, LEAD_TIME, ("hours since 2025-01-01 06:00:00", "hours")),
        (
            TIME + np.timedelta64(90, "s"),
            LEAD_TIME[1:],
            ("hours since 2025-01-01 06:01:30", "hours"),
        ),
        (
            TIME + np.arange(3) * np.timedelta64(10, "m"),
            np.arange(3) * np.timedelta64(10, "m"),
            ("seconds since 2025-01-01 06:00:00", "seconds"),
        ),
    ],
)
def test_times_are_numbers_with_cf_units(
    io: Output, time: Any, lead_time: Any, units: tuple[str, str]
) -> None:
    io.add_array({"time": time, "lead_time": lead_time}, "t2m")
    io.finish()
    with netCDF4.Dataset(io.path) as file:
        assert (file["time"].units, file["lead_time"].units) == units
        assert file["time"].calendar == "proleptic_gregorian"
        # A class may change the units, which may require fractions.
        assert file["time"].dtype == np.float64


def test_a_class_may_close_the_output(io: Output) -> None:
    io.add_array(FORECAST, VARIABLES)
    step = at(FORECAST, lead_time=[1])
    io.write(tensor(step), step, "t2m")
    io.close()
    io.close()
    assert io.finish() == {}

    got = dataset(io.path)
    np.testing.assert_array_equal(got.t2m[:, [1]], tensor(step))
    assert np.isnan(got.t2m[:, [0, 2]]).all()
    assert np.isnan(got.z500).all()
    with pytest.raises(RuntimeError):
        io.add_array(FORECAST, "late")


def test_root_and_variables_are_those_of_netcdf4(io: Output) -> None:
    io.add_array(FORECAST, "t2m")
    io.write(tensor(FORECAST), FORECAST, "t2m")
    root, variable = io.root, io.root["t2m"]
    assert isinstance(root, netCDF4.Dataset)
    assert isinstance(variable, netCDF4.Variable)
    assert isinstance(root.dimensions["lat"], netCDF4.Dimension)
    assert len(root.dimensions["lat"]) == 5
    assert set(root.variables) == {*FORECAST, "t2m"}
    assert variable.dimensions == tuple(FORECAST)
    assert variable.shape == (1, 3, 5, 8)
    assert len(variable) == 1
    assert "float32 t2m" in repr(variable)
    np.testing.assert_array_equal(np.asarray(variable), tensor(FORECAST))
    assert not np.ma.isMaskedArray(variable[...])
    np.testing.assert_array_equal(list(root["lat"]), LAT)

    variable.setncatts({"units": "K", "long_name": "temperature"})
    del variable.long_name
    assert variable.ncattrs() == ["_FillValue", "units"]
    other = root.createVariable("other", "f8", ("lat",))
    other[:] = root["lat"][:]
    other.units = "degrees_north"
    root.sync()
    io.finish()
    got = dataset(io.path)
    np.testing.assert_array_equal(got.other, LAT)
    assert got.other.units == "degrees_north"
    assert got.t2m.attrs == {"units": "K"}


def test_a_variable_created_by_the_class_has_netcdf4s_fill_values(io: Output) -> None:
    io.add_array(MAP, "t2m")
    own = io.root.createVariable("own", "f4", ("lat", "lon"))
    own[1] = 5.0
    io.finish()
    with netCDF4.Dataset(io.path) as file:
        assert file["own"][:].mask.tolist() == [[row != 1] * 8 for row in range(5)]


@pytest.mark.parametrize(
    "options", [{"zlib": True}, {"endian": "big"}, {"chunksizes": [1, 1, 2, 2]}]
)
def test_options_are_passed_on_to_netcdf4(tmp_path: Path, options: dict[str, Any]) -> None:
    io = new_output(tmp_path, "netcdf4")
    io.add_array(FORECAST, "t2m", **options)
    io.write(tensor(FORECAST), FORECAST, "t2m")
    io.finish()
    np.testing.assert_array_equal(dataset(io.path).t2m, tensor(FORECAST))


def test_an_array_of_integers(io: Output) -> None:
    import torch

    io.add_array({"lat": LAT}, "numbers", data=torch.arange(5))
    io.root["numbers"][2] = 7
    io.finish()
    assert dataset(io.path).numbers.values.tolist() == [0, 1, 7, 3, 4]


@pytest.mark.parametrize(
    "use",
    [
        lambda io: io.add_array(FORECAST, "z500"),
        lambda io: io.write(tensor(MAP), MAP, "orography"),
        lambda io: io.write(tensor(at(FORECAST, lat=[0])), at(FORECAST, lat=[0]), "t2m"),
        lambda io: io.read(FORECAST, "t2m"),
        lambda io: io.close(),
        lambda io: io.finish(),
        lambda io: io.discard(),
    ],
)
def test_the_backend_waits_while_xarray_uses_hdf5(
    io: Output, use: Callable[[Output], None]
) -> None:
    io.add_array(FORECAST, "t2m")
    io.write(tensor(FORECAST), FORECAST, "t2m")
    with ThreadPoolExecutor(1) as pool:
        with HDF5_LOCK:
            using = pool.submit(use, io)
            with pytest.raises(TimeoutError):
                using.result(0.1)
        using.result(60)


@pytest.mark.parametrize("options", [{}, {"zlib": True}], ids=["plain", "compressed"])
def test_discarding_frees_a_full_disk(tmp_path: Path, options: dict[str, Any]) -> None:
    io = new_output(tmp_path, "netcdf4")
    large = {"lat": np.arange(640), "lon": np.arange(640)}
    io.add_array(large, "t2m", **options)
    io.write(tensor(large), large, "t2m")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # This limit acts like a full disk: HDF5 cannot even close the file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, unlimited[1]))
    try:
        with pytest.raises((OSError, RuntimeError), match="File too large|HDF error"):
            io.finish()
        io.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []
    assert sum(file.st_blocks for file in held_open(tmp_path)) == 0


def test_a_thread_may_read_another_file_through_xarray(tmp_path: Path) -> None:
    assert exit_code(read_and_write, tmp_path) == 0


@pytest.mark.slow
def test_a_class_may_open_files_between_its_steps(tmp_path: Path) -> None:
    # xarray opens files without a lock: a thread of ours inside HDF5 would crash the process.
    assert exit_code(open_between_steps, tmp_path) == 0


def exit_code(work: Callable[[Path], None], folder: Path) -> int | None:
    """Return how a process ended that may crash.

    It is forked: a new interpreter would import torch and Earth2Studio again, which takes most of
    the time.
    """
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    process.start()
    process.join(300)
    process.kill()
    return process.exitcode


def open_between_steps(folder: Path) -> None:
    """Write many arrays, and open another file after each step."""
    other = folder / "other.nc"
    field = (("t", "y", "x"), np.ones((2, 60, 80), np.float32), {"units": "K"})
    xr.Dataset({name: field for name in NAMES[:5]}).to_netcdf(other)
    coords = {
        "lead_time": np.arange(200) * np.timedelta64(1, "h"),
        "lat": np.arange(121.0),
        "lon": np.arange(240.0),
    }
    io = new_output(folder, "netcdf4")
    io.add_array(coords, NAMES)
    values = np.ones((1, 121, 240), np.float32)
    for step in range(200):
        here = {**coords, "lead_time": coords["lead_time"][step : step + 1]}
        io.write([values] * len(NAMES), here, NAMES)
        with xr.open_dataset(other, engine="netcdf4") as opened:
            opened.load()
    io.finish()


def read_and_write(folder: Path) -> None:
    """Read one file through xarray in a thread while another is written."""
    with reading(another_file(folder)) as read:
        path, written = write_steps(folder, seconds=1.5)
    assert read
    got = dataset(path)
    for step, values in written.items():
        np.testing.assert_array_equal(got[NAMES[-1]][[step]], values)


NAMES = [f"v{n}" for n in range(20)]


def another_file(folder: Path) -> Path:
    values = np.random.default_rng(1).random((20, 60, 80), np.float32)
    another = xr.Dataset({name: (("t", "y", "x"), values) for name in NAMES})
    compressed = {"zlib": True, "chunksizes": (1, 60, 80)}
    another.to_netcdf(folder / "another.nc", encoding=dict.fromkeys(NAMES, compressed))
    return folder / "another.nc"


@contextmanager
def reading(path: Path) -> Iterator[list[str]]:
    """Read a file in a thread; yield the names of what was read."""

    def read() -> None:
        while not stop.is_set():
            for name in NAMES:
                np.testing.assert_array_equal(opened[name], expected)
                done.append(name)

    done: list[str] = []
    stop = threading.Event()
    expected = dataset(path)[NAMES[0]].values
    with (
        xr.open_dataset(path, engine="netcdf4", cache=False) as opened,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(read)
        try:
            yield done
        finally:
            stop.set()
        running.result(60)


def write_steps(folder: Path, seconds: float) -> tuple[Path, dict[int, Any]]:
    """Write all steps repeatedly for some time; return the path and the last values of each."""
    hours = np.arange(20)
    coords = {"lead_time": hours * np.timedelta64(1, "h"), **MAP, "lon": np.arange(4000.0)}
    io = new_output(folder, "netcdf4")
    io.add_array(coords, NAMES)
    first = tensor(at(coords, lead_time=[0]))
    written: dict[int, Any] = {}
    end = time.monotonic() + seconds
    for count in itertools.count():
        step = count % len(hours)
        written[step] = first + count
        io.write([written[step]] * len(NAMES), at(coords, lead_time=[step]), NAMES)
        if time.monotonic() > end:
            break
    io.finish()
    return io.path, written
