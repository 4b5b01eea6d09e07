"""InitialConditions outside of Serve: fetched once, checked, and written atomically."""

from __future__ import annotations

import asyncio
import builtins
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import xarray as xr

from deployments.initial_conditions.client import source_grid
from deployments.initial_conditions.deployment import InitialConditions, is_network_error
from deployments.initial_conditions.options import SourceOptions
from deployments.runtime.failures import is_transient
from tests.deployments.results.samples import make_nowcast_plan, make_plan
from workflows.base import Plan
from workflows.errors import ModelUnavailable, StageFailed
from workflows.grids import Grid, LambertGrid, LatLonGrid
from workflows.readiness import NotReady, Ready

INPUT = ("t2m", "z500", "q50")
GRID = Grid(n_lat=5, n_lon=8)
PLAN = make_plan(grid=GRID).model_copy(update={"input_variables": INPUT})
EXECUTION = "exec_1"


class Source:
    """Returns fields with a different value at every point.

    Parameters
    ----------
    spoil : mapping of str to float
        Variables, and the value of one of their points.
    error : str, optional
        Text of the error of every call.
    """

    instances: list[Source] = []

    def __init__(
        self,
        spoil: dict[str, float] | None = None,
        error: str | None = None,
        kind: str = "OSError",
        **coords: Any,
    ) -> None:
        self._spoil = spoil or {}
        self._error = error
        self._kind: type[Exception] = getattr(builtins, kind)
        self._lat = np.asarray(coords.get("lat", GRID.latitudes()))
        self._lon = np.asarray(coords.get("lon", GRID.longitudes()))
        self._dims = coords.get("dims", ("time", "variable", "lat", "lon"))
        self.calls: list[tuple[Any, Any]] = []
        Source.instances.append(self)

    def __call__(self, time: Any, variable: Any) -> xr.DataArray:
        self.calls.append((time, variable))
        if self._error is not None:
            raise self._kind(self._error)
        shape = (len(time), len(variable), self._lat.size, self._lon.size)
        fields = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        for name, value in self._spoil.items():
            fields[0, variable.index(name), 1, 2] = value
        array = xr.DataArray(
            fields,
            dims=("time", "variable", "lat", "lon"),
            coords={"time": time, "variable": variable, "lat": self._lat, "lon": self._lon},
        )
        if "lead_time" in self._dims:
            array = array.expand_dims(lead_time=[np.timedelta64(0, "h")])
        return array.transpose(*self._dims)


@pytest.fixture(autouse=True)
def no_sources() -> None:
    Source.instances.clear()


async def deployed(
    folder: Path,
    loader: str = f"{__name__}:Source",
    timeout_s: float = 20,
    name: str = "ifs",
    keep: int | None = None,
    **options: Any,
) -> Any:
    deployment = InitialConditions.func_or_class  # type: ignore[attr-defined]
    replica = deployment.__new__(deployment)
    source = SourceOptions(name=name, loader=loader, options=options, timeout_s=timeout_s)
    await replica.__init__([source], folder, keep)
    return replica


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_writes_the_state_that_the_model_needs(tmp_path: Path) -> None:
    path = await (await deployed(tmp_path)).fetch(PLAN, EXECUTION)

    kept = np.load(path)
    assert kept.dtype == np.float32
    assert kept.shape == (3, 5, 8)
    assert np.array_equal(kept.ravel(), np.arange(3 * 5 * 8))
    ((time, variables),) = Source.instances[0].calls
    assert list(time) == [np.datetime64("2025-01-01T06")]
    assert variables == list(INPUT)
    assert files(tmp_path) == [f"{EXECUTION}/ifs.npy"]


@pytest.mark.parametrize(
    "dims",
    [("lon", "time", "lat", "variable"), ("time", "lead_time", "variable", "lat", "lon")],
)
async def test_accepts_dimensions_in_any_order(tmp_path: Path, dims: tuple[str, ...]) -> None:
    path = await (await deployed(tmp_path, dims=dims)).fetch(PLAN, EXECUTION)

    assert np.array_equal(np.load(path).ravel(), np.arange(3 * 5 * 8))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
async def test_missing_values_are_refused(tmp_path: Path, value: float) -> None:
    source = await deployed(tmp_path, spoil={"z500": value, "q50": value})
    with pytest.raises(StageFailed, match="ifs has missing values in z500, q50 at 2025-01-01T06"):
        await source.fetch(PLAN, EXECUTION)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "coords",
    [
        {"lat": np.linspace(90, -90, 9)},
        {"lat": np.linspace(-90, 90, 5)},
        {"lon": np.arange(-180, 180, 45)},
        {"lon": np.linspace(0, 360, 16, endpoint=False)},
    ],
)
async def test_a_source_that_has_the_models_points_is_not_interpolated(
    tmp_path: Path, coords: Any
) -> None:
    source = await deployed(tmp_path, **coords)
    fields = np.load(await source.fetch(PLAN, EXECUTION))
    whole = Source.instances[-1](np.array([PLAN.start()]), list(INPUT))
    whole = whole.assign_coords(lon=whole["lon"] % 360)
    expected = whole.sel(lat=GRID.latitudes(), lon=GRID.longitudes())
    assert np.array_equal(fields, expected.values[0].astype(np.float32))


async def test_another_grid_is_interpolated_linearly(tmp_path: Path) -> None:
    source = await deployed(
        tmp_path, lat=np.linspace(90, -90, 4), lon=np.linspace(0, 360, 6, endpoint=False)
    )
    [field, *_] = np.load(await source.fetch(PLAN, EXECUTION))
    # Values grow by 1 from each of the 6 longitudes to the next, by 6 from each latitude.
    rows = np.interp(-GRID.latitudes(), [-90, -30, 30, 90], [0, 6, 12, 18])
    columns = np.interp(GRID.longitudes(), np.linspace(0, 360, 7), [0, 1, 2, 3, 4, 5, 0])
    assert np.allclose(field, rows[:, None] + columns, atol=1e-5)


async def test_a_source_that_does_not_cover_the_grid_is_refused(tmp_path: Path) -> None:
    source = await deployed(tmp_path, lat=np.linspace(60, 20, 9), lon=np.linspace(230, 300, 8))
    with pytest.raises(StageFailed, match="ifs has missing values in t2m, z500, q50 .* the grid"):
        await source.fetch(PLAN, EXECUTION)
    assert files(tmp_path) == []


async def test_single_precision_coordinates_are_the_same_grid(tmp_path: Path) -> None:
    grid = Grid(n_lat=5, n_lon=14)
    single = {"lat": np.float32(grid.latitudes()), "lon": np.float32(grid.longitudes())}
    plan = PLAN.model_copy(update={"grid": grid})

    assert await (await deployed(tmp_path, **single)).fetch(plan, EXECUTION)


async def test_an_error_of_the_source_fails_the_stage(tmp_path: Path) -> None:
    source = await deployed(tmp_path, error="503 Slow down")
    with pytest.raises(StageFailed, match="ifs returned no data for 2025.*503 Slow down") as e:
        await source.fetch(PLAN, EXECUTION)
    assert e.value.stage == "initial_conditions"
    assert not isinstance(e.value, ModelUnavailable)


@pytest.mark.parametrize(
    ("kind", "is_retried"),
    [("OSError", True), ("TimeoutError", True), ("FileNotFoundError", False), ("KeyError", False)],
)
async def test_network_errors_are_transient(tmp_path: Path, kind: str, is_retried: bool) -> None:
    source = await deployed(tmp_path, error="not now", kind=kind)
    with pytest.raises(StageFailed, match="not now") as e:
        await source.fetch(PLAN, EXECUTION)
    assert is_transient(e.value) is is_retried


class ClientError(Exception):
    """Stands in for an error of an object store's client."""


ClientError.__module__ = "obstore.exceptions"


def wrapped(cause: Exception) -> Exception:
    error = RuntimeError("Failed to download asset")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ClientError(), True),
        (wrapped(ClientError()), True),
        (wrapped(ConnectionResetError()), True),
        (wrapped(FileNotFoundError()), False),
        (wrapped(ValueError()), False),
    ],
    ids=repr,
)
def test_the_cause_of_an_error_tells_whether_the_network_failed(
    error: Exception, expected: bool
) -> None:
    assert is_network_error(error) is expected


async def test_a_missing_variable_fails_the_stage(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"input_variables": ("t2m", "u10m")})
    source = await deployed(tmp_path, loader=f"{__name__}:only_t2m")
    with pytest.raises(StageFailed, match="ifs returned no u10m at 2025-01-01T06"):
        await source.fetch(plan, EXECUTION)


def only_t2m() -> Any:
    source = Source()
    return lambda time, variable: source(time, ["t2m"])


async def test_variables_are_written_in_the_order_of_the_model(tmp_path: Path) -> None:
    path = await (await deployed(tmp_path, loader=f"{__name__}:backwards")).fetch(PLAN, EXECUTION)

    assert np.array_equal(np.load(path).ravel(), np.arange(3 * 5 * 8))


def backwards() -> Any:
    source = Source()
    return lambda time, variable: source(time, variable).isel(variable=slice(None, None, -1))


async def test_a_fetch_that_hangs_times_out(tmp_path: Path) -> None:
    source = await deployed(tmp_path, loader=f"{__name__}:hanging", timeout_s=0.1)
    with pytest.raises(StageFailed, match=r"ifs returned no data for 2025.* within 0\.1 s"):
        await source.fetch(PLAN, EXECUTION)
    # Its late result is dropped: the execution has failed, and its folder was removed.
    (tmp_path / EXECUTION).rmdir()
    await asyncio.sleep(0.8)
    assert not (tmp_path / EXECUTION).exists()


async def test_hanging_sources_do_not_block_the_threads_of_the_event_loop(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        release = tmp_path / "release"
        hangs = await deployed(
            tmp_path / "hangs", loader=f"{__name__}:hanging", timeout_s=0.05, until=str(release)
        )
        works = await deployed(tmp_path / "works")
        try:
            with pytest.raises(StageFailed, match="within"):
                await hangs.fetch(PLAN, EXECUTION)
            assert await asyncio.wait_for(works.fetch(PLAN, EXECUTION), 60)
        finally:
            release.touch()


def hanging(until: str | None = None) -> Any:
    """Return a source that hangs for half a second, or until a file exists."""
    source = Source()

    def call(time: Any, variable: Any) -> xr.DataArray:
        sleep(0.5)
        while until is not None and not Path(until).exists():
            sleep(0.01)
        return source(time, variable)

    return call


async def test_loading_a_source_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = await deployed(tmp_path / "work", loader="a_source_to_come:load")
    status = await source.check_readiness("ifs")
    assert isinstance(status, NotReady)
    assert "No module named 'a_source_to_come'" in status.reason
    with pytest.raises(ModelUnavailable, match="ifs .*No module named 'a_source_to_come'"):
        await source.fetch(PLAN, EXECUTION)

    module = tmp_path / "a_source_to_come.py"
    module.write_text(f"from {__name__} import Source\n\ndef load():\n    return Source()\n")
    try:
        status = await source.check_readiness("ifs")
        assert isinstance(status, Ready)
        assert status.origin.loader == "a_source_to_come:load"
        assert await source.fetch(PLAN, EXECUTION)
    finally:
        sys.modules.pop("a_source_to_come", None)


async def test_replicas_share_a_fetched_state(tmp_path: Path) -> None:
    first, second = await deployed(tmp_path), await deployed(tmp_path, error="must not be called")
    path = await first.fetch(PLAN, EXECUTION)

    assert await first.fetch(PLAN, EXECUTION) == path
    assert await second.fetch(PLAN, EXECUTION) == path
    assert [len(source.calls) for source in Source.instances] == [1, 0]


async def test_concurrent_calls_leave_one_complete_file(tmp_path: Path) -> None:
    source = await deployed(tmp_path)
    paths = await asyncio.gather(*(source.fetch(PLAN, EXECUTION) for _ in range(8)))

    assert len(set(paths)) == 1
    assert np.array_equal(np.load(paths[0]).ravel(), np.arange(3 * 5 * 8))
    assert files(tmp_path) == [f"{EXECUTION}/ifs.npy"]


async def test_a_partial_file_is_ignored(tmp_path: Path) -> None:
    source = await deployed(tmp_path)
    folder = tmp_path / EXECUTION
    folder.mkdir()
    (folder / "ifs.npy.1.partial").write_bytes(b"half")

    path = await source.fetch(PLAN, EXECUTION)
    assert np.load(path).shape == (3, 5, 8)


async def test_executions_do_not_share_states(tmp_path: Path) -> None:
    source = await deployed(tmp_path)
    later: Plan = PLAN.model_copy(update={"start_time": PLAN.end_time()})

    assert await source.fetch(PLAN, EXECUTION) != await source.fetch(later, "exec_2")
    assert [call[0][0] for call in Source.instances[0].calls] == [PLAN.start(), later.start()]


# Regional models get fields on the source's grid.

REGIONAL = make_nowcast_plan(variables=("abi13c",))


class Satellite:
    """A square image with its northernmost row first, and dimensions in any order."""

    def __init__(self, dims: tuple[str, ...] = ("y", "x"), curved: bool = True) -> None:
        self._dims, self._curved = dims, curved

    def __call__(self, time: Any, variable: Any) -> Any:
        north, east = np.array([50.0, 40.0, 30.0]), np.array([-120.0, -100.0, -80.0])
        image = xr.DataArray(north[:, None] + east / 1000, dims=("y", "x"))
        if self._curved:
            lat, lon = np.meshgrid(north, east, indexing="ij")
            image = image.assign_coords(_lat=(("y", "x"), lat), _lon=(("y", "x"), lon))
        else:
            image = image.rename(y="lat", x="lon").assign_coords(lat=north, lon=east)
        image = image.transpose(*(self._dims if self._curved else ("lon", "lat")))
        return image.expand_dims(time=time, variable=list(variable))


def curved() -> Any:
    return Satellite()


def transposed() -> Any:
    return Satellite(dims=("x", "y"))


def regular_transposed() -> Any:
    return Satellite(curved=False)


def nowhere() -> Any:
    satellite = Satellite()
    return lambda time, variable: satellite(time, variable) * np.nan


def ends_the_process() -> Any:
    def fetch(time: Any, variable: Any) -> Any:
        raise SystemExit(3)

    return fetch


def nothing() -> Any:
    return lambda time, variable: None


@pytest.mark.parametrize("loader", ["curved", "transposed", "regular_transposed"])
async def test_an_image_keeps_the_coordinates_of_its_points(tmp_path: Path, loader: str) -> None:
    source = await deployed(tmp_path, loader=f"{__name__}:{loader}", name="goes16")
    path = Path(await source.fetch(REGIONAL, EXECUTION))
    (image,), (lat, lon) = np.load(path), np.load(source_grid(path))
    np.testing.assert_allclose(image, lat + lon / 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ("nowhere", "goes16 has no value in abi13c"),
        ("ends_the_process", "goes16 returned no data for .*: SystemExit: 3"),
        ("nothing", "the data of goes16 for .* cannot be used: AttributeError"),
    ],
)
async def test_an_unusable_image_fails_the_stage(tmp_path: Path, loader: str, reason: str) -> None:
    source = await deployed(tmp_path, loader=f"{__name__}:{loader}", name="goes16")
    with pytest.raises(StageFailed, match=reason):
        await source.fetch(REGIONAL, EXECUTION)


async def test_read_returns_the_state_and_fetches_it_again_if_it_was_removed(
    tmp_path: Path,
) -> None:
    source = await deployed(tmp_path)
    path = Path(await source.fetch(PLAN, EXECUTION))
    fields, points = await source.read(PLAN, EXECUTION)
    assert np.array_equal(fields, np.load(path))
    assert points is None
    assert len(Source.instances[0].calls) == 1
    await asyncio.to_thread(path.unlink)
    fields, _ = await source.read(PLAN, EXECUTION)
    assert np.array_equal(fields, np.load(path))
    assert len(Source.instances[0].calls) == 2


async def test_keeps_only_the_newest_states(tmp_path: Path) -> None:
    source = await deployed(tmp_path, keep=2)
    for execution_id in ("exec_1", "exec_2", "exec_3"):
        await source.fetch(PLAN, execution_id)
        await asyncio.sleep(0.01)
    assert files(tmp_path) == ["exec_2/ifs.npy", "exec_3/ifs.npy"]


def remove(*names: str, folder: Path) -> None:
    for name in names:
        (folder / name / "ifs.npy").unlink()


async def test_executions_that_start_from_one_state_share_a_fetch(tmp_path: Path) -> None:
    source = await deployed(tmp_path)
    names = [f"exec_{number}" for number in range(20)]
    paths = await asyncio.gather(*(source.fetch(PLAN, name) for name in names))
    assert len(Source.instances[-1].calls) == 1
    assert len(set(paths)) == 20
    assert len({np.load(path).tobytes() for path in paths}) == 1

    # The files of an execution that has ended are removed.
    remove(*names[:-1], folder=tmp_path)
    await source.fetch(PLAN, "exec_20")
    assert len(Source.instances[-1].calls) == 1
    remove(names[-1], "exec_20", folder=tmp_path)
    await source.fetch(PLAN, "exec_21")
    assert len(Source.instances[-1].calls) == 2
    other = PLAN.model_copy(update={"start_time": PLAN.start_time + timedelta(hours=6)})
    await source.fetch(other, "exec_22")
    assert len(Source.instances[-1].calls) == 3


async def test_a_model_with_a_history_receives_all_its_times(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"history_hours": (-6, 0)})
    source = await deployed(tmp_path)
    fields = np.load(await source.fetch(plan, EXECUTION))
    assert fields.shape == (2, 3, 5, 8)
    [(times, _)] = Source.instances[-1].calls
    assert times.astype("datetime64[h]").tolist() == [
        PLAN.start_time.replace(tzinfo=None) - timedelta(hours=6),
        PLAN.start_time.replace(tzinfo=None),
    ]
    assert (fields[1] > fields[0]).all()


async def test_a_region_across_greenwich_is_not_taken_for_the_globe(tmp_path: Path) -> None:
    west_to_east = np.concatenate([np.arange(0.0, 30.5, 2.5), np.arange(330.0, 360.0, 2.5)])
    source = await deployed(tmp_path, lat=np.linspace(90, -90, 9), lon=west_to_east)
    with pytest.raises(StageFailed, match="missing values"):
        await source.fetch(PLAN, EXECUTION)
    region = LatLonGrid(n_lat=5, n_lon=6, first_lat=90, last_lat=-90, first_lon=-24, last_lon=21)
    plan = PLAN.model_copy(update={"grid": region})
    fields = np.load(await source.fetch(plan, "exec_2"))
    assert np.isfinite(fields).all()


@pytest.mark.parametrize("names", [("_lat", "_lon"), ("lat", "lon")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
async def test_a_source_on_the_models_map_is_not_interpolated(
    tmp_path: Path, names: tuple[str, str], dtype: Any
) -> None:
    grid = LambertGrid(n_y=4, n_x=6, spacing_m=300e3)
    values = np.random.default_rng(1).standard_normal((len(INPUT), *grid.shape))

    def on_a_map(time: Any, variable: Any) -> xr.DataArray:
        points = (grid.latitudes().astype(dtype), grid.longitudes().astype(dtype))
        coords = {name: (("y", "x"), each) for name, each in zip(names, points, strict=True)}
        return xr.DataArray(
            values[None],
            dims=("time", "variable", "y", "x"),
            coords={"time": time, "variable": variable, **coords},
        )

    source = await deployed(tmp_path)
    source._sources["ifs"] = on_a_map
    plan = PLAN.model_copy(update={"grid": grid})
    fields = np.load(await source.fetch(plan, EXECUTION))
    assert np.array_equal(fields, values.astype(np.float32))


async def test_one_time_is_not_taken_for_another(tmp_path: Path) -> None:
    source = await deployed(tmp_path)
    only = Source.instances[-1]
    source._sources["ifs"] = lambda time, variable: only(time[-1:], variable)
    with pytest.raises(StageFailed, match="ifs returned no fields at"):
        await source.fetch(PLAN.model_copy(update={"history_hours": (-6, 0)}), EXECUTION)
