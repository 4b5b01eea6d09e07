"""The conformance suite of the results store, on disk and on Blob Storage."""

import hashlib
import json
import posixpath
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from deployments.results.messages import CompletedMembers, StoredExecution
from deployments.results.store import ResultsStore
from deployments.results.work import encode_plan
from deployments.results.zarr import SEPARATOR, chunk_key
from tests.deployments.results.backends import Backend, DiskBackend
from tests.deployments.results.samples import (
    ID,
    PROVENANCE,
    assert_complete,
    complete,
    expected,
    fields,
    make_nowcast_plan,
    make_plan,
    open_result,
    write_steps,
)
from workflows.base import Plan
from workflows.dataset import Origin, field_index
from workflows.errors import StageFailed, StaleConductor
from workflows.grids import Grid
from workflows.manifest import Totals

# Content.


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("time_layout", ["time", "lead_time"])
def test_xarray_reads_the_result(
    backend: Backend, store: ResultsStore, output_format: str, time_layout: str
) -> None:
    plan = make_plan(output_format=output_format, time_layout=time_layout)
    complete(store, plan)
    with open_result(backend.folder(plan.workflow, ID)) as dataset:
        assert set(dataset.data_vars) == {"t2m", "z500"}
        for variable in plan.variables:
            values = dataset[variable]
            if time_layout == "lead_time":
                assert values.dims == ("ensemble", "time", "lead_time", "lat", "lon")
                values = values.isel(time=0)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected(plan, variable))
        start = np.datetime64("2025-01-01T06:00")
        if time_layout == "lead_time":
            assert dataset.time.values.tolist() == [start.astype("M8[ns]").astype(int)]
            np.testing.assert_array_equal(dataset.lead_time, plan.lead_times())
        else:
            np.testing.assert_array_equal(dataset.time, start + plan.lead_times())
        assert {"seed", "crs"} < set(dataset.coords)
        assert [int(seed) for seed in dataset.seed] == list(plan.seeds)
        assert dataset.crs.attrs["inverse_flattening"] == 298.257223563
        assert dataset.lon[0] == -180 and dataset.lat[0] == 90
        assert dataset.t2m.attrs["units"] == "K"
        assert dataset.attrs["execution_id"] == ID
        assert dataset.attrs["synthetic"] == "true"


def test_both_formats_have_identical_content(backend: Backend, store: ResultsStore) -> None:
    opened = []
    for output_format in ("zarr", "netcdf4"):
        plan = make_plan(output_format=output_format)
        complete(store, plan)
        opened.append(open_result(backend.folder(plan.workflow, ID)).load())
        store.purge(plan.workflow, ID)
    xr.testing.assert_identical(*opened)


def test_zarr_reads_the_same_with_and_without_consolidated_metadata(
    backend: Backend, store: ResultsStore
) -> None:
    plan = make_plan()
    complete(store, plan)
    path = backend.folder(plan.workflow, ID) / "results.zarr"
    consolidated = zarr.open_consolidated(path)
    plain = zarr.open_group(path, mode="r", use_consolidated=False)
    assert plain.attrs.asdict() == consolidated.attrs.asdict()
    names = set(plain.array_keys())
    assert names == set(consolidated.array_keys())
    assert names == {"ensemble", "time", "lat", "lon", "seed", "crs", "t2m", "z500"}
    for name in names:
        array = plain[name]
        assert isinstance(array, zarr.Array)
        # Compared as text: NaN does not equal itself.
        assert str(array.metadata) == str(consolidated[name].metadata)
        assert array.nchunks_initialized == array.nchunks
        if name not in plan.variables:
            assert not (array[...] == array.fill_value).any()
    assert plain["t2m"].chunks == (1, 1, 5, 8)
    np.testing.assert_array_equal(plain["z500"][:], expected(plan, "z500"))


def test_zarr_store_can_be_read_while_it_is_written(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    assert open_result(backend.folder(plan.workflow, ID)).t2m.isnull().all()
    store.write_step(ID, 1, 1, 2, fields(plan, 1, 2))
    t2m = open_result(backend.folder(plan.workflow, ID)).t2m
    np.testing.assert_array_equal(t2m[1, 2], expected(plan, "t2m")[1, 2])
    assert int(t2m.isnull().sum()) == t2m.size - t2m[1, 2].size
    assert backend.written_steps(ID) == {(1, 2)}
    field = store.read_field(ID, "t2m", 1, 2)
    np.testing.assert_array_equal(field, t2m[1, 2])
    assert store.read_field(ID, "t2m", 0, 0) is None


def test_fields_without_values_are_written(store: ResultsStore) -> None:
    plan = make_plan(seeds=(1,), n_steps=0)
    store.create(plan, ID, PROVENANCE, 1)
    store.write_step(ID, 1, 0, 0, np.full((2, 5, 8), np.nan, np.float32))
    totals = store.describe(ID, 1).totals
    # Metadata of 8 arrays and the group, coordinates, fields, checksums.
    assert totals.files == 9 + 6 + 2 + 1


def test_other_precision_and_strides_are_converted(store: ResultsStore) -> None:
    plan = make_plan(seeds=(1,), n_steps=0)
    store.create(plan, ID, PROVENANCE, 1)
    values = fields(plan, 0, 0)
    store.write_step(ID, 1, 0, 0, np.asfortranarray(values.astype(np.float64)))
    field = store.read_field(ID, "z500", 0, 0)
    np.testing.assert_array_equal(field, expected(plan, "z500")[0, 0])


def test_large_fields_are_written_by_several_threads(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan(grid=Grid(n_lat=181, n_lon=360), variables=("t2m", "u10m", "v10m", "z500"))
    complete(store, plan)
    assert_complete(backend.folder(plan.workflow, ID), plan)


@pytest.mark.parametrize(
    ("member", "time_index", "shape"),
    [
        (0, 0, (2, 5, 7)),
        (0, 0, (1, 5, 8)),
        (2, 0, (2, 5, 8)),
        (0, 3, (2, 5, 8)),
        (-1, 0, (2, 5, 8)),
    ],
)
def test_fields_outside_of_the_plan_are_refused(
    backend: Backend, store: ResultsStore, member: int, time_index: int, shape: tuple[int, ...]
) -> None:
    store.create(make_plan(), ID, PROVENANCE, 1)
    with pytest.raises(ValueError, match="have shape|has no"):
        store.write_step(ID, 1, member, time_index, np.zeros(shape, np.float32))
    assert backend.written_steps(ID) == set()


# Several attempts.


@pytest.mark.parametrize("nowcast", [False, True])
def test_later_attempt_learns_which_members_are_complete(
    backend: Backend, store: ResultsStore, nowcast: bool
) -> None:
    plan = make_nowcast_plan() if nowcast else make_plan(seeds=(1, 2, 3))
    assert store.create(plan, ID, PROVENANCE, 1) == CompletedMembers()
    for member, n_times in ((0, plan.n_times), (1, plan.n_times - 1), (2, plan.n_times)):
        for time_index in range(n_times):
            store.write_step(ID, 1, member, time_index, fields(plan, member, time_index))
    if nowcast:
        field = np.zeros((4, 8), np.float32)
        for step in range(plan.n_steps):
            backend.intermediate().write_conditioning(ID, 1, 1, step, field)
        backend.intermediate().write_conditioning(ID, 1, 0, 0, field)
    keys = backend.keys(ID)
    assert backend.store().create(plan, ID, PROVENANCE, 1) == CompletedMembers(
        members=(0, 2), conditioning=(1,) if nowcast else ()
    )
    assert backend.keys(ID) == keys


@pytest.mark.parametrize("changed", ["model", "data_source"])
def test_members_of_another_model_or_source_are_removed(
    backend: Backend, store: ResultsStore, changed: str
) -> None:
    plan = make_plan(output_format="netcdf4")
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    origin = Origin(name="another", synthetic=True)
    provenance = PROVENANCE.model_copy(update={changed: origin})
    other = backend.store()
    assert other.create(plan, ID, provenance, 1) == CompletedMembers()
    assert not backend.written_steps(ID)
    write_steps(other, plan)
    # The first replica has the old result in memory, and must describe the new one.
    store.export_netcdf(ID, 1)
    store.describe(ID, 1)
    assert getattr(store.origin(ID)[1], changed).name == "another"
    with open_result(backend.folder(plan.workflow, ID)) as dataset:
        assert "another" in str(dataset.attrs)


def test_every_call_may_be_repeated(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan()
    complete(store, plan)
    chunk = f"results/{plan.workflow}/{ID}/results.zarr/t2m/c/0/0/0/0"
    before = backend.version(chunk)
    first = store.describe(ID, 1)
    store.create(plan, ID, PROVENANCE, 1)
    store.write_step(ID, 1, 0, 0, np.zeros((2, 5, 8), np.float32))
    assert backend.version(chunk) == before
    assert store.describe(ID, 1) == first


def test_step_without_record_is_written_again(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan()
    complete(store, plan)
    backend.remove(f"work/{ID}/steps/1-1")
    backend.write(f"results/{plan.workflow}/{ID}/results.zarr/z500/c/1/1/0/0", b"torn")
    assert (1, 1) not in backend.written_steps(ID)
    with pytest.raises(StageFailed, match="1 steps"):
        store.describe(ID, 1)
    store.write_step(ID, 1, 1, 1, fields(plan, 1, 1))
    store.describe(ID, 1)
    assert_complete(backend.folder(plan.workflow, ID), plan)


def begin_with_dots(backend: Backend, plan: Plan) -> ResultsStore:
    """Create a result as earlier releases did, whose chunks have dots in their names."""
    work = backend.storage().work(ID)
    work.create(plan, PROVENANCE, 1)
    record = json.loads(encode_plan(plan, PROVENANCE))
    del record["chunk_separator"]
    work._write(work.plan_record, json.dumps(record).encode())
    store = backend.store()
    store.create(plan, ID, PROVENANCE, 1)
    return store


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_result_of_an_earlier_release_keeps_the_names_of_its_chunks(
    backend: Backend, output_format: str
) -> None:
    plan = make_plan(output_format=output_format)
    store = begin_with_dots(backend, plan)
    write_steps(store, plan)
    zarr_keys = {key for key in backend.keys(ID) if "results.zarr/" in key}
    assert {key.rpartition("/")[2] for key in zarr_keys if "/t2m/c" in key} == {
        f"c.{member}.{time_index}.0.0" for member in plan.members for time_index in range(3)
    }
    if output_format == "netcdf4":
        store.export_netcdf(ID, 1)
    store.describe(ID, 1)
    assert_complete(backend.folder(plan.workflow, ID), plan)


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_result_that_an_earlier_release_began_is_completed(
    backend: Backend, output_format: str
) -> None:
    """Its metadata are others; a new attempt, which begins with `create`, replaces them."""
    plan = make_plan(output_format=output_format)
    earlier = begin_with_dots(backend, plan)
    zarr = backend.folder(plan.workflow, ID) / "results.zarr"
    root = json.loads((zarr / "zarr.json").read_text())
    arrays = root["consolidated_metadata"]["metadata"]
    for name in ("lat", "lon", "crs", "time"):
        arrays[name]["fill_value"] = 0
        arrays[name]["attributes"].pop("crs_wkt", None)
    folder = f"results/{plan.workflow}/{ID}/results.zarr"
    for name, document in [*arrays.items(), (".", root)]:
        backend.write(
            posixpath.normpath(f"{folder}/{name}/zarr.json"), json.dumps(document).encode()
        )
    for time_index in range(plan.n_times):
        earlier.write_step(ID, 1, 0, time_index, fields(plan, 0, time_index))
    store = backend.store()
    assert store.create(plan, ID, PROVENANCE, 2).members == (0,)
    write_steps(store, plan, fence=2)
    if output_format == "netcdf4":
        store.export_netcdf(ID, 2)
    store.describe(ID, 2)
    assert_complete(backend.folder(plan.workflow, ID), plan)


def test_different_plan_is_refused(store: ResultsStore) -> None:
    store.create(make_plan(), ID, PROVENANCE, 1)
    with pytest.raises(StageFailed, match="different plan"):
        store.create(make_plan(seeds=(1, 2)), ID, PROVENANCE, 2)


def test_first_provenance_is_kept(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    updated = PROVENANCE.model_copy(update={"software": {"earth2serve": "9"}})
    store.create(plan, ID, updated, 2)
    attributes = open_result(backend.folder(plan.workflow, ID)).attrs
    assert attributes["earth2serve_version"] == "0.1.0"


# Fences and removal.

CALLS: dict[str, Callable[[ResultsStore, Plan], object]] = {
    "create": lambda store, plan: store.create(plan, ID, PROVENANCE, 1),
    "write_step": lambda store, plan: store.write_step(ID, 1, 0, 0, fields(plan, 0, 0)),
    "export_netcdf": lambda store, plan: store.export_netcdf(ID, 1),
    "add_file": lambda store, plan: store.add_file(ID, 1, "preview.png", b"a map"),
    "describe": lambda store, plan: store.describe(ID, 1),
}


@pytest.mark.parametrize("call", CALLS)
def test_older_fence_is_refused(backend: Backend, store: ResultsStore, call: str) -> None:
    plan = make_plan(output_format="netcdf4")
    store.create(plan, ID, PROVENANCE, 1)
    # The newer Conductor calls another replica; one write is enough to announce it.
    backend.store().write_step(ID, 12, 1, 1, fields(plan, 1, 1))
    with pytest.raises(StaleConductor, match="1 was superseded by 12"):
        CALLS[call](store, plan)
    assert backend.written_steps(ID) == {(1, 1)}


@pytest.mark.parametrize("call", list(CALLS)[1:])
@pytest.mark.parametrize("before", ["never created", "cleaned", "purged"])
def test_execution_that_is_not_being_written_is_refused(
    backend: Backend, store: ResultsStore, call: str, before: str
) -> None:
    plan = make_plan()
    if before != "never created":
        store.create(plan, ID, PROVENANCE, 1)
        if before == "cleaned":
            store.clean(ID)
        else:
            # By another replica: this one has the result in memory.
            backend.store().purge(plan.workflow, ID)
    with pytest.raises(StageFailed, match="not being written"):
        CALLS[call](store, plan)
    assert backend.is_delivered(plan.workflow, ID) == (before == "cleaned")


def test_purge_removes_everything_and_may_be_repeated(
    backend: Backend, store: ResultsStore
) -> None:
    plan = make_plan()
    complete(store, plan)
    store.purge(plan.workflow, ID)
    store.purge(plan.workflow, ID)
    assert backend.keys(ID) == set()


def test_purge_stops_concurrent_writers(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan(n_steps=200)
    store.create(plan, ID, PROVENANCE, 1)
    outcomes: list[BaseException | None] = []

    def write(member: int) -> None:
        try:
            for time_index in range(plan.n_times):
                store.write_step(ID, 1, member, time_index, fields(plan, member, time_index))
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    writers = [threading.Thread(target=write, args=(member,)) for member in plan.members]
    for writer in writers:
        writer.start()
    while len(backend.written_steps(ID)) < 10:
        pass
    store.purge(plan.workflow, ID)
    for writer in writers:
        writer.join()
    assert [type(outcome) for outcome in outcomes] == [StageFailed, StageFailed]
    assert backend.keys(ID) == set()


def test_clean_keeps_the_result(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan()
    complete(store, plan)
    store.clean(ID)
    store.clean(ID)
    assert not any(key.startswith("work/") for key in backend.keys(ID))
    assert_complete(backend.folder(plan.workflow, ID), plan)


@pytest.mark.parametrize("name", ["..", "", "a/b", "../x", ".hidden", "x\0", "/etc"])
def test_names_that_are_paths_are_refused(store: ResultsStore, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        store.create(make_plan(), name, PROVENANCE, 1)
    with pytest.raises(ValueError, match="not a name"):
        store.purge("workflow", name)
    with pytest.raises(ValueError, match="not a name"):
        store.purge(name, ID)


def test_stored_executions_are_listed_in_pages(backend: Backend, store: ResultsStore) -> None:
    ids = [f"exec_{number}_00000000" for number in (3, 1, 2)]
    other = make_plan(workflow="another_workflow")
    for execution_id, plan in zip(ids, (make_plan(), other, make_plan()), strict=True):
        store.create(plan, execution_id, PROVENANCE, 1)
    store.clean(ids[2])
    listed = [
        StoredExecution(execution_id=execution_id, workflows=(workflow,), is_working=is_working)
        for execution_id, workflow, is_working in (
            ("exec_1_00000000", "another_workflow", True),
            ("exec_2_00000000", "foundry_fcn3_workflow", False),
            ("exec_3_00000000", "foundry_fcn3_workflow", True),
        )
    ]
    assert store.stored_executions("", 9) == listed
    assert store.stored_executions("", 2) == listed[:2]
    assert store.stored_executions("exec_2_00000000", 2) == listed[2:]
    store.purge(other.workflow, "exec_1_00000000")
    assert backend.store().stored_executions("", 9) == listed[1:]


# The list of files.


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_listing_names_every_file(
    backend: Backend, store: ResultsStore, output_format: str
) -> None:
    plan = make_plan(output_format=output_format)
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    if output_format == "netcdf4":
        store.export_netcdf(ID, 1)
    store.add_file(ID, 1, "preview.png", b"half a map")
    store.add_file(ID, 1, "preview.png", b"a map")
    listing = store.describe(ID, 1, extra=["preview.png"])
    folder = backend.folder(plan.workflow, ID)
    assert (folder / "preview.png").read_bytes() == b"a map"
    listed = {file.path: file for file in listing.output_files}
    delivered = {
        f"{ID}/{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()
    }
    assert set(listed) == set(delivered)
    for name, path in delivered.items():
        content = path.read_bytes()
        assert listed[name].size == len(content)
        assert listed[name].sha256 == hashlib.sha256(content).hexdigest()
    first = "results.zarr/zarr.json" if output_format == "zarr" else "results.nc"
    assert listing.output_files[0].path == f"{ID}/{first}"
    assert listing.totals == Totals(
        files=len(delivered),
        bytes=sum(path.stat().st_size for path in delivered.values()),
        listed=len(delivered),
        truncated=False,
    )
    check = subprocess.run(
        ["sha256sum", "--strict", "-c", "checksums.sha256"], cwd=folder, capture_output=True
    )
    assert check.returncode == 0, check.stderr
    assert len(check.stdout.splitlines()) == len(delivered) - 1


def test_listing_of_many_files_is_bounded(backend: Backend) -> None:
    store = backend.store(max_listed=20)
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    listing = store.describe(ID, 1)
    paths = [file.path for file in listing.output_files]
    assert f"{ID}/results.zarr/t2m/zarr.json" in paths
    assert f"{ID}/checksums.sha256" in paths
    assert not any("/t2m/c/" in path for path in paths)
    folder = backend.folder(plan.workflow, ID)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert listing.totals == Totals(
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        listed=len(paths),
        truncated=True,
    )
    checksums = (folder / "checksums.sha256").read_text().splitlines()
    assert len(checksums) == len(files) - 1


# Damage, such as by a power failure: the next attempt writes again what was lost, no more.


def chunk(plan: Plan, variable: str, member: int, time_index: int) -> str:
    key = chunk_key(variable, field_index(plan, member, time_index), SEPARATOR)
    return f"results/{plan.workflow}/{ID}/results.zarr/{key}"


def damage(backend: Backend, key: str, how: str) -> None:
    if how == "lost":
        backend.remove(key)
        return
    content = (backend.folder(key.split("/")[1], ID) / key.split("/", 3)[3]).read_bytes()
    backend.write(key, content[: len(content) // 2] if how == "cut" else bytes(len(content)))


def attempt_again(backend: Backend, plan: Plan, completed: tuple[int, ...] = ()) -> None:
    """Complete a result in another process."""
    store = backend.store()
    assert store.create(plan, ID, PROVENANCE, 2).members == completed
    write_steps(store, plan, 2)
    if plan.output_format == "netcdf4":
        store.export_netcdf(ID, 2)
    listing = store.describe(ID, 2)
    folder = backend.folder(plan.workflow, ID)
    assert_complete(folder, plan)
    check = ["sha256sum", "--strict", "--quiet", "-c", "checksums.sha256"]
    assert subprocess.run(check, cwd=folder).returncode == 0
    # A map that an earlier attempt has drawn is not among the files to describe.
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "preview.png"]
    assert listing.totals.files == len(files)


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("how", ["lost", "cut", "other bytes"])
def test_damaged_chunks_are_written_again(
    backend: Backend, store: ResultsStore, output_format: str, how: str
) -> None:
    plan = make_plan(output_format=output_format, seeds=(7, 8, 9))
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    intact = chunk(plan, "t2m", 1, 1)
    before = backend.version(intact)
    for member, time_index in ((0, 1), (2, 2)):
        damage(backend, chunk(plan, "z500", member, time_index), how)
    with pytest.raises(StageFailed, match="z500.* in all 2 of 9 time steps") as failed:
        if output_format == "netcdf4":
            store.export_netcdf(ID, 1)
        store.describe(ID, 1)
    assert failed.value.stage == "package"
    assert backend.version(intact) == before
    attempt_again(backend, plan, completed=(1,))


def test_map_of_a_damaged_chunk_is_not_returned(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    damage(backend, chunk(plan, "t2m", 0, 2), "other bytes")
    with pytest.raises(StageFailed, match="t2m"):
        store.read_field(ID, "t2m", 0, 2)
    attempt_again(backend, plan, completed=(1,))


@pytest.mark.parametrize("how", ["lost", "cut", "other bytes"])
def test_damaged_export_is_written_again(backend: Backend, store: ResultsStore, how: str) -> None:
    plan = make_plan(output_format="netcdf4")
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    store.export_netcdf(ID, 1)
    damage(backend, f"results/{plan.workflow}/{ID}/results.nc", how)
    with pytest.raises(StageFailed, match=r"results\.nc|NetCDF"):
        store.describe(ID, 1)
    attempt_again(backend, plan, completed=(0, 1))


def test_damaged_export_without_its_chunks_is_computed_again(
    backend: Backend, store: ResultsStore
) -> None:
    plan = make_plan(output_format="netcdf4")
    complete(store, plan)
    damage(backend, f"results/{plan.workflow}/{ID}/results.nc", "other bytes")
    with pytest.raises(StageFailed, match=r"results\.nc|NetCDF"):
        store.describe(ID, 1)
    attempt_again(backend, plan)


@pytest.mark.parametrize("how", ["lost", "cut", "other bytes"])
@pytest.mark.parametrize("name", ["zarr.json", "t2m/zarr.json", "lat/zarr.json"])
def test_damaged_metadata_are_written_again(
    backend: Backend, store: ResultsStore, name: str, how: str
) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    damage(backend, f"results/{plan.workflow}/{ID}/results.zarr/{name}", how)
    with pytest.raises(StageFailed, match=name):
        store.describe(ID, 1)
    # A container has no store without its root: then everything is written again.
    is_gone = name == "zarr.json" and how == "lost" and not isinstance(backend, DiskBackend)
    attempt_again(backend, plan, completed=() if is_gone else (0, 1))


def test_lost_store_is_written_again(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    if isinstance(backend, DiskBackend):
        shutil.rmtree(backend.folder(plan.workflow, ID) / "results.zarr")
    else:
        for key in backend.keys(ID):
            if "/results.zarr/" in key:
                backend.remove(key)
    with pytest.raises(StageFailed, match="missing"):
        store.describe(ID, 1)
    attempt_again(backend, plan)


@pytest.mark.parametrize("content", [b"", b'[["results.zarr/t2m', b"\0" * 40])
@pytest.mark.parametrize("is_described", [False, True])
def test_cut_record_counts_as_none(
    backend: Backend, store: ResultsStore, content: bytes, is_described: bool
) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    backend.write(f"work/{ID}/steps/0-1", content)
    if is_described:
        with pytest.raises(StageFailed, match="1 of 6 time steps"):
            store.describe(ID, 1)
    else:
        assert store.read_field(ID, "t2m", 0, 1) is None
    if isinstance(backend, DiskBackend) or is_described:
        attempt_again(backend, plan, completed=(1,))


def test_records_of_earlier_releases_are_read(backend: Backend, store: ResultsStore) -> None:
    plan = make_plan(output_format="netcdf4", seeds=(1,), n_steps=0)
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    keys = [chunk(plan, variable, 0, 0).split("/", 3)[3] for variable in plan.variables]
    record = [[key, plan.field_bytes, None] for key in keys]
    backend.write(f"work/{ID}/steps/0-0", json.dumps(record).encode())
    attempt_again(backend, plan, completed=(0,))


@pytest.mark.parametrize(
    ("name", "content"),
    [("t2m/c/1/2/0/0", b""), ("t2m/c/1/2/0/0", None), ("lat/zarr.json", None)],
)
def test_damaged_result_is_not_described(
    backend: Backend, store: ResultsStore, tmp_path: Path, name: str, content: bytes | None
) -> None:
    plan = make_plan()
    complete(store, plan)
    key = f"results/{plan.workflow}/{ID}/results.zarr/{name}"
    if content is None:
        backend.remove(key)
    else:
        backend.write(key, content)
    with pytest.raises(StageFailed, match=name) as failed:
        store.describe(ID, 1)
    assert failed.value.stage == "package"
    assert str(tmp_path) not in str(failed.value)
