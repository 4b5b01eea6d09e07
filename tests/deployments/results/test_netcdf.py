import hashlib
import resource
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import netCDF4
import numpy as np
import pytest

from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.results import PROVENANCE, expected, fields, make_plan
from workflows.base import Plan
from workflows.errors import ExecutionCancelled, StageFailed, StaleConductor

ID = "exec_1_00000000"
PLAN = make_plan(output_format="netcdf4")


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    store = ResultsStore(DiskStorage(tmp_path / "results", tmp_path / "work"))
    store.create(PLAN, ID, PROVENANCE, 1)
    return store


@pytest.fixture
def folder(store: ResultsStore, tmp_path: Path) -> Path:
    return tmp_path / "results" / PLAN.workflow / ID


def write(store: ResultsStore, *steps: tuple[int, int]) -> None:
    for member, time_index in steps:
        store.write_step(ID, 1, member, time_index, fields(PLAN, member, time_index))


def all_steps(plan: Plan) -> list[tuple[int, int]]:
    return [(member, time_index) for member in plan.members for time_index in range(plan.n_times)]


def check(path: Path) -> None:
    with netCDF4.Dataset(path) as file:
        for variable in PLAN.variables:
            np.testing.assert_array_equal(file[variable][:], expected(PLAN, variable))


def test_it_follows_the_steps(store: ResultsStore, folder: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1, poll_s=0.001)
        for step in [(1, 2), (0, 1), (1, 0), (0, 0), (1, 1)]:
            write(store, step)
            time.sleep(0.01)
            assert not export.done()
            # Nothing that could be taken for a result before it is one.
            assert {path.name for path in folder.iterdir()} == {"results.zarr"}
        write(store, (0, 2))
        export.result(10)
    check(folder / "results.nc")
    store.describe(ID, 1)
    assert {path.name for path in folder.iterdir()} == {"results.nc", "checksums.sha256"}


@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_told_of_the_file_is_true_whatever_comes_first(
    store: ResultsStore, folder: Path, backwards: bool
) -> None:
    steps = all_steps(PLAN)
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1, poll_s=0.001)
        for step in reversed(steps) if backwards else steps:
            write(store, step)
        export.result(10)
    content = (folder / "results.nc").read_bytes()
    told = store.assets(ID, [])["results.nc"]
    assert (told.size, told.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_chunks_are_maps_and_fill_is_nan(store: ResultsStore, folder: Path) -> None:
    write(store, *all_steps(PLAN))
    store.export_netcdf(ID, 1)
    with netCDF4.Dataset(folder / "results.nc") as file:
        assert file.data_model == "NETCDF4"
        assert file["t2m"].chunking() == [1, 1, 5, 8]
        assert np.isnan(file["t2m"]._FillValue)
        assert "_FillValue" not in file["lat"].ncattrs()
        assert not any(file["t2m"].filters().values())


def test_it_stops_when_told(store: ResultsStore, folder: Path) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1, should_stop=stop.is_set, poll_s=0.001)
        write(store, (0, 0))
        stop.set()
        with pytest.raises(ExecutionCancelled):
            export.result(10)
    write(store, *all_steps(PLAN))
    store.export_netcdf(ID, 1)
    check(folder / "results.nc")


@pytest.mark.parametrize(
    ("what", "error"), [("superseded", StaleConductor), ("purged", StageFailed)]
)
def test_it_ends_when_it_is_not_wanted_any_more(
    store: ResultsStore, what: str, error: type[Exception]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1, poll_s=0.001)
        write(store, (0, 0))
        if what == "superseded":
            store.create(PLAN, ID, PROVENANCE, 2)
        else:
            store.purge(PLAN.workflow, ID)
        with pytest.raises(error):
            export.result(10)


@pytest.mark.parametrize("purged", [False, True])
def test_a_disk_that_is_full_gets_its_space_back(
    store: ResultsStore, folder: Path, tmp_path: Path, purged: bool
) -> None:
    def go_away() -> bool:
        if purged and len(store._storage.work(ID).written_steps()) == len(all_steps(PLAN)):
            store.purge(PLAN.workflow, ID)
        return False

    write(store, *all_steps(PLAN))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # HDF5 meets the same wall as on a full disk: not even its close succeeds.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, unlimited[1]))
    try:
        with pytest.raises(StageFailed, match="MB of the disk are free"):
            store.export_netcdf(ID, 1, should_stop=go_away)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert held(tmp_path) == 0
    if not purged:
        store.export_netcdf(ID, 2)
        check(folder / "results.nc")


def held(folder: Path) -> int:
    """Count the bytes on disk of files below a folder that this process has open."""
    size = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith(str(folder)):
                size += descriptor.stat().st_blocks * 512
    return size


def test_one_exports_and_the_others_wait(store: ResultsStore, folder: Path) -> None:
    stop = threading.Event()

    def export(should_stop: bool = False) -> None:
        store.export_netcdf(ID, 1, poll_s=0.001, should_stop=lambda: should_stop and stop.is_set())

    with ThreadPoolExecutor(3) as pool:
        exports: list[Future[None]] = [pool.submit(export), pool.submit(export)]
        write(store, (0, 0))
        stop.set()
        time.sleep(0.05)
        # One that waits can be told to stop as well.
        with pytest.raises(ExecutionCancelled):
            pool.submit(export, True).result(10)
        write(store, *all_steps(PLAN))
        for running in exports:
            running.result(10)
    check(folder / "results.nc")


def test_a_torn_file_of_a_killed_export_is_begun_anew(
    store: ResultsStore, folder: Path, tmp_path: Path
) -> None:
    write(store, *all_steps(PLAN))
    torn = tmp_path / "results" / ".partial" / ID / "1.nc"
    torn.write_bytes(b"\x89HDF\r\n\x1a\n torn")
    store.export_netcdf(ID, 1)
    check(folder / "results.nc")


def test_a_whole_file_without_its_record_is_kept(
    store: ResultsStore, folder: Path, tmp_path: Path
) -> None:
    write(store, *all_steps(PLAN))
    store.export_netcdf(ID, 1)
    before = (folder / "results.nc").stat()
    (tmp_path / "work" / ID / "export.json").unlink()
    store.export_netcdf(ID, 1)
    after = (folder / "results.nc").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    store.describe(ID, 1)


def test_finish_needs_the_export(store: ResultsStore, folder: Path) -> None:
    write(store, *all_steps(PLAN))
    with pytest.raises(StageFailed, match="NetCDF file was not written"):
        store.describe(ID, 1)
    assert (folder / "results.zarr" / "t2m" / "zarr.json").exists()
    assert not (folder / "checksums.sha256").exists()


def test_all_may_be_done_again_after_finish(store: ResultsStore, folder: Path) -> None:
    write(store, *all_steps(PLAN))
    store.export_netcdf(ID, 1)
    first = store.describe(ID, 1)
    store.create(PLAN, ID, PROVENANCE, 2)
    store.write_step(ID, 2, 0, 0, fields(PLAN, 0, 0))
    store.export_netcdf(ID, 2)
    assert store.describe(ID, 2) == first
    assert {path.name for path in folder.iterdir()} == {"results.nc", "checksums.sha256"}
    check(folder / "results.nc")
