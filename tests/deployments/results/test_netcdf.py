"""The NetCDF4 export, on disk and on Blob Storage; the end of the file only on disk."""

import hashlib
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest

from deployments.results.netcdf import export_steps
from deployments.results.store import ResultsStore
from tests.deployments.results.backends import Backend, DiskBackend
from tests.deployments.results.samples import (
    ID,
    PROVENANCE,
    assert_complete,
    fields,
    make_nowcast_plan,
    make_plan,
    write_steps,
)
from workflows.base import Plan
from workflows.errors import ExecutionCancelled, StageFailed, StaleConductor

PLAN = make_plan(output_format="netcdf4")
STEPS = [(member, time_index) for member in PLAN.members for time_index in range(PLAN.n_times)]

only_on_disk = pytest.mark.parametrize("backend", ["disk"], indirect=True)


@pytest.fixture
def store(backend: Backend) -> ResultsStore:
    store = backend.store()
    store.create(PLAN, ID, PROVENANCE, 1)
    return store


def write(store: ResultsStore, *steps: tuple[int, int]) -> None:
    for member, time_index in steps:
        store.write_step(ID, 1, member, time_index, fields(PLAN, member, time_index))


def files(backend: Backend) -> set[str]:
    return {path.name for path in backend.folder(PLAN.workflow, ID).iterdir()}


def test_export_follows_the_steps(backend: Backend, store: ResultsStore) -> None:
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1)
        for step in [(1, 2), (0, 1), (1, 0), (0, 0), (1, 1)]:
            write(store, step)
            time.sleep(0.01)
            assert not export.done()
            # A partial file must not appear among the results.
            assert files(backend) == {"results.zarr"}
        write(store, (0, 2))
        export.result(20)
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)
    store.describe(ID, 1)
    assert files(backend) == {"results.nc", "checksums.sha256"}


@pytest.mark.parametrize("backwards", [False, True])
def test_size_and_checksum_are_right_in_any_order_of_steps(
    backend: Backend, store: ResultsStore, backwards: bool
) -> None:
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1)
        for step in reversed(STEPS) if backwards else STEPS:
            write(store, step)
        export.result(20)
    content = (backend.folder(PLAN.workflow, ID) / "results.nc").read_bytes()
    asset = store.assets(ID, [])["results.nc"]
    assert (asset.size, asset.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@only_on_disk
@pytest.mark.parametrize("layout", ["time", "lead_time"])
@pytest.mark.parametrize("make", [make_plan, make_nowcast_plan], ids=["fcn3", "nowcast"])
def test_no_coordinate_has_the_fill_value(
    backend: Backend, make: Callable[..., Plan], layout: str
) -> None:
    """HDF5 stores one beside CF's attribute, and readers of its chunks take it for missing."""
    plan = make(output_format="netcdf4", time_layout=layout)
    store = backend.store()
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    store.export_netcdf(ID, 1)
    with h5py.File(backend.folder(plan.workflow, ID) / "results.nc") as file:
        coordinates = set(file) - set(plan.variables)
        assert {"ensemble", "time", "crs"} < coordinates
        for name in coordinates:
            assert "_FillValue" not in file[name].attrs
            assert not (file[name][()] == file[name].fillvalue).any(), name


@only_on_disk
def test_chunks_are_maps_and_fill_value_is_nan(backend: Backend, store: ResultsStore) -> None:
    write_steps(store, PLAN)
    store.export_netcdf(ID, 1)
    with netCDF4.Dataset(backend.folder(PLAN.workflow, ID) / "results.nc") as file:
        assert file.data_model == "NETCDF4"
        assert file["t2m"].chunking() == [1, 1, 5, 8]
        assert np.isnan(file["t2m"]._FillValue)
        assert "_FillValue" not in file["lat"].ncattrs()
        assert not any(file["t2m"].filters().values())


def test_stopped_export_can_be_repeated(backend: Backend, store: ResultsStore) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1, should_stop=stop.is_set)
        write(store, (0, 0))
        stop.set()
        with pytest.raises(ExecutionCancelled):
            export.result(20)
    write_steps(store, PLAN)
    store.export_netcdf(ID, 1)
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)


@pytest.mark.parametrize(
    ("event", "error"), [("superseded", StaleConductor), ("purged", StageFailed)]
)
def test_export_ends_when_the_execution_is_superseded_or_purged(
    backend: Backend, store: ResultsStore, event: str, error: type[Exception]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1)
        write(store, (0, 0))
        if event == "superseded":
            store.create(PLAN, ID, PROVENANCE, 2)
        else:
            store.purge(PLAN.workflow, ID)
        with pytest.raises(error):
            export.result(20)


def test_concurrent_exports_write_one_file(backend: Backend, store: ResultsStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        exports = [pool.submit(store.export_netcdf, ID, 1) for _ in range(2)]
        write_steps(store, PLAN)
        for export in exports:
            export.result(20)
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)
    key = f"results/{PLAN.workflow}/{ID}/results.nc"
    before = backend.version(key)
    store.export_netcdf(ID, 2)
    assert backend.version(key) == before


@only_on_disk
def test_waiting_export_can_be_stopped(backend: Backend, store: ResultsStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        writing: Future[None] = pool.submit(store.export_netcdf, ID, 1)
        lock = backend.storage().work(ID).path / "export.lock"  # type: ignore[attr-defined]
        while not lock.exists():
            time.sleep(0.01)
        with pytest.raises(ExecutionCancelled):
            pool.submit(store.export_netcdf, ID, 1, should_stop=lambda: True).result(20)
        write_steps(store, PLAN)
        writing.result(20)
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)


def test_result_without_export_is_not_described(backend: Backend, store: ResultsStore) -> None:
    write_steps(store, PLAN)
    with pytest.raises(StageFailed, match="NetCDF file was not written"):
        store.describe(ID, 1)
    folder = backend.folder(PLAN.workflow, ID)
    assert (folder / "results.zarr" / "t2m" / "zarr.json").exists()
    assert not (folder / "checksums.sha256").exists()


def test_every_call_may_be_repeated_after_the_zarr_store_is_removed(
    backend: Backend, store: ResultsStore
) -> None:
    write_steps(store, PLAN)
    store.export_netcdf(ID, 1)
    first = store.describe(ID, 1)
    store.create(PLAN, ID, PROVENANCE, 2)
    store.write_step(ID, 2, 0, 0, fields(PLAN, 0, 0))
    store.export_netcdf(ID, 2)
    assert store.describe(ID, 2) == first
    assert files(backend) == {"results.nc", "checksums.sha256"}
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)


@only_on_disk
@pytest.mark.parametrize("purged", [False, True])
def test_full_disk_gets_its_space_back(
    backend: DiskBackend, store: ResultsStore, purged: bool
) -> None:
    def purge() -> bool:
        if purged and len(backend.written_steps(ID)) == len(STEPS):
            store.purge(PLAN.workflow, ID)
        return False

    write_steps(store, PLAN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk, not even HDF5's close succeeds.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(StageFailed, match="MB of the disk are free"):
            store.export_netcdf(ID, 1, should_stop=purge)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_bytes(backend.root) == 0
    if not purged:
        store.export_netcdf(ID, 2)
        assert_complete(backend.folder(PLAN.workflow, ID), PLAN)


def open_bytes(folder: Path) -> int:
    """Return the bytes on disk of all files below a folder that this process has open."""
    size = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith(str(folder)):
                size += descriptor.stat().st_blocks * 512
    return size


@only_on_disk
def test_partial_file_of_a_killed_export_is_replaced(backend: Backend, store: ResultsStore) -> None:
    write_steps(store, PLAN)
    backend.write(f"results/.partial/{ID}/1.nc", b"\x89HDF\r\n\x1a\n torn")
    store.export_netcdf(ID, 1)
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)


@only_on_disk
def test_file_without_record_is_not_taken_for_what_was_written(
    backend: Backend, store: ResultsStore
) -> None:
    write_steps(store, PLAN)
    store.export_netcdf(ID, 1)
    backend.write(f"results/{PLAN.workflow}/{ID}/results.nc", b"damaged")
    backend.remove(f"work/{ID}/export.json")
    store.export_netcdf(ID, 1)
    store.describe(ID, 1)
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)


@only_on_disk
def test_record_without_file_is_damage_that_a_retry_mends(
    backend: Backend, store: ResultsStore
) -> None:
    write_steps(store, PLAN)
    store.export_netcdf(ID, 1)
    backend.remove(f"results/{PLAN.workflow}/{ID}/results.nc")
    with pytest.raises(StageFailed, match=r"results\.nc of the result is missing or damaged"):
        store.describe(ID, 1)
    store.export_netcdf(ID, 1)
    store.describe(ID, 1)
    assert_complete(backend.folder(PLAN.workflow, ID), PLAN)


def test_file_that_cannot_be_created_tells_of_the_purge(
    backend: Backend, store: ResultsStore, tmp_path: Path
) -> None:
    """A purge may remove the folder just before netCDF4 creates the file."""
    result = backend.storage().result(ID, PLAN, PROVENANCE)
    path = tmp_path / "removed" / "1.nc"
    with pytest.raises(PermissionError):
        export_steps(path, result, 1, lambda: False, backend.poll_s)
    store.purge(PLAN.workflow, ID)
    with pytest.raises(StageFailed, match="not being written"):
        export_steps(path, result, 1, lambda: False, backend.poll_s)
