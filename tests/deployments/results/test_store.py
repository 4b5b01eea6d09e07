"""The conformance suite of the results store: results on disk and in Blob pass the same tests."""

import hashlib
import io
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from deployments.results.checkpoint import Checkpoint
from deployments.results.protocols import CompletedMembers, StoredExecution
from deployments.results.store import ResultsStore
from tests.deployments.results.places import PLACES, Place, make_place
from tests.deployments.results.results import (
    PROVENANCE,
    expected,
    fields,
    make_nowcast_plan,
    make_plan,
)
from workflows.base import Plan
from workflows.errors import StageFailed, StaleConductor
from workflows.grids import Grid
from workflows.manifest import Totals

ID = "exec_1_00000000"


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from make_place(request.param, tmp_path, request)


@pytest.fixture
def store(place: Place) -> ResultsStore:
    return place.store()


def write_all(store: ResultsStore, plan: Plan, fence: int = 1) -> None:
    for member in plan.members:
        for time_index in range(plan.n_times):
            store.write_step(ID, fence, member, time_index, fields(plan, member, time_index))


def make(store: ResultsStore, plan: Plan) -> None:
    """Carry an execution through."""
    store.create(plan, ID, PROVENANCE, 1)
    write_all(store, plan)
    if plan.output_format == "netcdf4":
        store.export_netcdf(ID, 1)
    store.describe(ID, 1)


def open_result(folder: Path) -> xr.Dataset:
    if (folder / "results.nc").exists():
        return xr.open_dataset(folder / "results.nc", engine="netcdf4")
    return xr.open_zarr(folder / "results.zarr", consolidated=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("time_layout", ["time", "lead_time"])
def test_xarray_reads_what_was_written(
    place: Place, store: ResultsStore, output_format: str, time_layout: str
) -> None:
    plan = make_plan(output_format=output_format, time_layout=time_layout)
    make(store, plan)
    with open_result(place.folder(plan.workflow, ID)) as dataset:
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


def test_both_formats_say_the_same(place: Place, store: ResultsStore) -> None:
    opened = []
    for output_format in ("zarr", "netcdf4"):
        provenance = {**PROVENANCE, "created": "2025-01-01T00:00:00Z"}
        plan = make_plan(output_format=output_format)
        store.create(plan, ID, provenance, 1)
        make(store, plan)
        opened.append(open_result(place.folder(plan.workflow, ID)).load())
        store.purge(plan.workflow, ID)
    xr.testing.assert_identical(*opened)


@pytest.mark.parametrize("nowcast", [False, True])
def test_a_later_attempt_is_told_what_is_whole(
    place: Place, store: ResultsStore, nowcast: bool
) -> None:
    plan = make_nowcast_plan() if nowcast else make_plan(seeds=(1, 2, 3))
    assert store.create(plan, ID, PROVENANCE, 1) == CompletedMembers()
    for member, n_times in ((0, plan.n_times), (1, plan.n_times - 1), (2, plan.n_times)):
        for time_index in range(n_times):
            store.write_step(ID, 1, member, time_index, fields(plan, member, time_index))
    if nowcast:
        field = np.zeros((4, 8), np.float32)
        for step in range(plan.n_steps):
            place.intermediate().write_conditioning(ID, 1, 1, step, field)
        place.intermediate().write_conditioning(ID, 1, 0, 0, field)
    known = place.keys(ID)
    again = place.store()
    assert again.create(plan, ID, PROVENANCE, 1) == CompletedMembers(
        members=(0, 2), conditioning=(1,) if nowcast else ()
    )
    assert place.keys(ID) == known


def checkpoint_at(step: int) -> Checkpoint:
    state = np.full((2, 3, 4), step, np.float32)
    return Checkpoint(step, "model", state, {"noise": np.arange(5, dtype=np.uint8)})


def test_a_checkpoint_is_found_when_all_steps_up_to_it_are_written(
    place: Place, store: ResultsStore
) -> None:
    plan = make_plan(seeds=(1, 2), n_steps=5)
    store.create(plan, ID, PROVENANCE, 1)
    place.intermediate().write_checkpoint(ID, 1, 1, checkpoint_at(2))
    for time_index in (2, 0):
        store.write_step(ID, 1, 1, time_index, fields(plan, 1, time_index))
        assert place.intermediate().read_checkpoint(ID, 1) is None
    store.write_step(ID, 1, 1, 1, fields(plan, 1, 1))
    found = place.intermediate().read_checkpoint(ID, 1)
    assert found is not None
    assert (found.step, found.origin) == (2, "model")
    np.testing.assert_array_equal(found.state, checkpoint_at(2).state)
    np.testing.assert_array_equal(found.internal["noise"], np.arange(5, dtype=np.uint8))
    assert place.intermediate().read_checkpoint(ID, 0) is None


def test_of_a_member_the_last_checkpoint_is_kept(place: Place, store: ResultsStore) -> None:
    plan = make_plan(seeds=(1, 2), n_steps=5)
    store.create(plan, ID, PROVENANCE, 1)
    for member, step in ((0, 1), (1, 1), (1, 3)):
        place.intermediate().write_checkpoint(ID, 1, member, checkpoint_at(step))
    # One that a dead process had under way counts for nothing.
    place.intermediate().write_checkpoint(ID, 1, 1, checkpoint_at(2))
    for time_index in range(5):
        store.write_step(ID, 1, 1, time_index, fields(plan, 1, time_index))
    found = place.intermediate().read_checkpoint(ID, 1)
    assert found is not None and found.step == 3
    place.intermediate().remove_checkpoints(ID, 1, 1)
    assert [key for key in place.keys(ID) if "checkpoints/" in key] == [
        f"work/{ID}/checkpoints/0-1.npz"
    ]
    store.write_step(ID, 2, 0, 0, fields(plan, 0, 0))
    with pytest.raises(StaleConductor):
        place.intermediate().write_checkpoint(ID, 1, 0, checkpoint_at(4))
    store.clean(ID)
    assert not [key for key in place.keys(ID) if "checkpoints" in key]
    with pytest.raises(StageFailed, match="not being written"):
        place.intermediate().write_checkpoint(ID, 2, 0, checkpoint_at(4))


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_checkpoint_is_none(place: Place, store: ResultsStore, damage: str) -> None:
    plan = make_plan(seeds=(1,))
    store.create(plan, ID, PROVENANCE, 1)
    store.write_step(ID, 1, 0, 0, fields(plan, 0, 0))
    place.intermediate().write_checkpoint(ID, 1, 0, checkpoint_at(0))
    file = io.BytesIO()
    checkpoint_at(0).write(file)
    content = bytearray(file.getvalue())
    if damage == "changed":
        content[content.index(checkpoint_at(0).state.tobytes()) + 7] ^= 1
    elif damage == "cut":
        content = content[: len(content) // 2]
    else:
        content.clear()
    place.write(f"work/{ID}/checkpoints/0-0.npz", bytes(content))
    assert place.intermediate().read_checkpoint(ID, 0) is None


@pytest.mark.parametrize("changed", ["model", "data_source"])
def test_members_of_another_model_are_not_mixed(
    place: Place, store: ResultsStore, changed: str
) -> None:
    plan = make_plan(output_format="netcdf4")
    store.create(plan, ID, PROVENANCE, 1)
    write_all(store, plan)
    another = {**PROVENANCE, changed: {"name": "another", "synthetic": True}}
    beside = place.store()
    assert beside.create(plan, ID, another, 1) == CompletedMembers()
    assert not place.written_steps(ID)
    write_all(beside, plan)
    # The replica that had opened what there was before tells of the new one.
    store.export_netcdf(ID, 1)
    store.describe(ID, 1)
    assert getattr(store.origin(ID)[1], changed).name == "another"
    with open_result(place.folder(plan.workflow, ID)) as dataset:
        assert "another" in str(dataset.attrs)


def test_zarr_itself_finds_the_same_with_and_without_consolidated_metadata(
    place: Place, store: ResultsStore
) -> None:
    plan = make_plan()
    make(store, plan)
    path = place.folder(plan.workflow, ID) / "results.zarr"
    consolidated = zarr.open_consolidated(path)
    plain = zarr.open_group(path, mode="r", use_consolidated=False)
    assert plain.attrs.asdict() == consolidated.attrs.asdict()
    names = set(plain.array_keys())
    assert names == set(consolidated.array_keys())
    assert names == {"ensemble", "time", "lat", "lon", "seed", "crs", "t2m", "z500"}
    for name in names:
        array = plain[name]
        assert isinstance(array, zarr.Array)
        # As text: NaN does not equal itself.
        assert str(array.metadata) == str(consolidated[name].metadata)
        # No chunk but the last ones: everything that exists must have been written.
        assert array.nchunks_initialized == array.nchunks
    assert plain["t2m"].chunks == (1, 1, 5, 8)
    np.testing.assert_array_equal(plain["z500"][:], expected(plan, "z500"))


def test_a_store_can_be_read_while_it_grows(place: Place, store: ResultsStore) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    assert open_result(place.folder(plan.workflow, ID)).t2m.isnull().all()
    store.write_step(ID, 1, 1, 2, fields(plan, 1, 2))
    growing = open_result(place.folder(plan.workflow, ID)).t2m
    np.testing.assert_array_equal(growing[1, 2], expected(plan, "t2m")[1, 2])
    assert int(growing.isnull().sum()) == growing.size - growing[1, 2].size
    assert place.written_steps(ID) == {(1, 2)}
    field = store.read_field(ID, "t2m", 1, 2)
    np.testing.assert_array_equal(field, growing[1, 2])
    assert store.read_field(ID, "t2m", 0, 0) is None


def test_fields_that_are_all_missing_are_written(store: ResultsStore) -> None:
    plan = make_plan(seeds=(1,), n_steps=0)
    store.create(plan, ID, PROVENANCE, 1)
    store.write_step(ID, 1, 0, 0, np.full((2, 5, 8), np.nan, np.float32))
    totals = store.describe(ID, 1).totals
    # Of 8 arrays and the group; coordinates; fields; checksums.
    assert totals.files == 9 + 6 + 2 + 1


def test_other_precision_and_strides_are_converted(store: ResultsStore) -> None:
    plan = make_plan(seeds=(1,), n_steps=0)
    store.create(plan, ID, PROVENANCE, 1)
    values = fields(plan, 0, 0)
    store.write_step(ID, 1, 0, 0, np.asfortranarray(values.astype(np.float64)))
    field = store.read_field(ID, "z500", 0, 0)
    np.testing.assert_array_equal(field, expected(plan, "z500")[0, 0])


def test_large_fields_are_written_by_several_threads(place: Place, store: ResultsStore) -> None:
    plan = make_plan(grid=Grid(n_lat=181, n_lon=360), variables=("t2m", "u10m", "v10m", "z500"))
    make(store, plan)
    with open_result(place.folder(plan.workflow, ID)) as dataset:
        for variable in plan.variables:
            np.testing.assert_array_equal(dataset[variable], expected(plan, variable))


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
def test_what_the_plan_does_not_have_is_refused(
    place: Place, store: ResultsStore, member: int, time_index: int, shape: tuple[int, ...]
) -> None:
    store.create(make_plan(), ID, PROVENANCE, 1)
    with pytest.raises(ValueError, match="have shape|has no"):
        store.write_step(ID, 1, member, time_index, np.zeros(shape, np.float32))
    assert place.written_steps(ID) == set()


def test_all_may_be_done_twice(place: Place, store: ResultsStore) -> None:
    plan = make_plan()
    make(store, plan)
    chunk = f"results/{plan.workflow}/{ID}/results.zarr/t2m/c.0.0.0.0"
    before = place.state(chunk)
    first = store.describe(ID, 1)
    store.create(plan, ID, PROVENANCE, 1)
    store.write_step(ID, 1, 0, 0, np.zeros((2, 5, 8), np.float32))
    assert place.state(chunk) == before
    assert store.describe(ID, 1) == first


def test_a_step_without_its_record_is_written_again(place: Place, store: ResultsStore) -> None:
    plan = make_plan()
    make(store, plan)
    place.remove(f"work/{ID}/steps/1-1")
    place.write(f"results/{plan.workflow}/{ID}/results.zarr/z500/c.1.1.0.0", b"torn")
    assert (1, 1) not in place.written_steps(ID)
    with pytest.raises(StageFailed, match="1 steps"):
        store.describe(ID, 1)
    store.write_step(ID, 1, 1, 1, fields(plan, 1, 1))
    store.describe(ID, 1)
    folder = place.folder(plan.workflow, ID)
    np.testing.assert_array_equal(open_result(folder).z500, expected(plan, "z500"))


def test_another_plan_is_refused(store: ResultsStore) -> None:
    store.create(make_plan(), ID, PROVENANCE, 1)
    with pytest.raises(StageFailed, match="different plan"):
        store.create(make_plan(seeds=(1, 2)), ID, PROVENANCE, 2)


def test_the_first_provenance_stays(place: Place, store: ResultsStore) -> None:
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    store.create(plan, ID, {**PROVENANCE, "software": {"earth2serve": "9"}}, 2)
    attributes = open_result(place.folder(plan.workflow, ID)).attrs
    assert attributes["earth2serve_version"] == "0.1.0"


OLD_CALLS: dict[str, Callable[[ResultsStore, Plan], object]] = {
    "create": lambda store, plan: store.create(plan, ID, PROVENANCE, 1),
    "write_step": lambda store, plan: store.write_step(ID, 1, 0, 0, fields(plan, 0, 0)),
    "export_netcdf": lambda store, plan: store.export_netcdf(ID, 1),
    "add_file": lambda store, plan: store.add_file(ID, 1, "preview.png", b"a map"),
    "describe": lambda store, plan: store.describe(ID, 1),
}


@pytest.mark.parametrize("call", OLD_CALLS)
def test_an_older_fence_is_refused(place: Place, store: ResultsStore, call: str) -> None:
    plan = make_plan(output_format="netcdf4")
    store.create(plan, ID, PROVENANCE, 1)
    # The newer Conductor comes to another replica; a write alone tells of it.
    other = place.store()
    other.write_step(ID, 12, 1, 1, fields(plan, 1, 1))
    with pytest.raises(StaleConductor, match="1 was superseded by 12"):
        OLD_CALLS[call](store, plan)
    assert place.written_steps(ID) == {(1, 1)}


@pytest.mark.parametrize("call", list(OLD_CALLS)[1:])
@pytest.mark.parametrize("before", ["never created", "cleaned", "purged"])
def test_what_is_not_being_written_cannot_be_written(
    place: Place, store: ResultsStore, call: str, before: str
) -> None:
    plan = make_plan()
    if before != "never created":
        store.create(plan, ID, PROVENANCE, 1)
        if before == "cleaned":
            store.clean(ID)
        else:
            # Another replica removes it: this one still has it in memory.
            place.store().purge(plan.workflow, ID)
    with pytest.raises(StageFailed, match="not being written"):
        OLD_CALLS[call](store, plan)
    assert place.is_delivered(plan.workflow, ID) == (before == "cleaned")


def test_purge_leaves_nothing_and_may_be_repeated(place: Place, store: ResultsStore) -> None:
    plan = make_plan()
    make(store, plan)
    store.purge(plan.workflow, ID)
    store.purge(plan.workflow, ID)
    assert place.keys(ID) == set()


def test_purge_wins_against_writers(place: Place, store: ResultsStore) -> None:
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
    while len(place.written_steps(ID)) < 10:
        pass
    store.purge(plan.workflow, ID)
    for writer in writers:
        writer.join()
    assert [type(outcome) for outcome in outcomes] == [StageFailed, StageFailed]
    assert place.keys(ID) == set()


def test_clean_keeps_the_result(place: Place, store: ResultsStore) -> None:
    plan = make_plan()
    make(store, plan)
    store.clean(ID)
    store.clean(ID)
    assert not any(key.startswith("work/") for key in place.keys(ID))
    folder = place.folder(plan.workflow, ID)
    np.testing.assert_array_equal(open_result(folder).t2m, expected(plan, "t2m"))


@pytest.mark.parametrize("name", ["..", "", "a/b", "../x", ".hidden", "x\0", "/etc"])
def test_names_cannot_lead_elsewhere(store: ResultsStore, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        store.create(make_plan(), name, PROVENANCE, 1)
    with pytest.raises(ValueError, match="not a name"):
        store.purge("workflow", name)
    with pytest.raises(ValueError, match="not a name"):
        store.purge(name, ID)


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_the_manifest_names_every_file(
    place: Place, store: ResultsStore, output_format: str
) -> None:
    plan = make_plan(output_format=output_format)
    store.create(plan, ID, PROVENANCE, 1)
    write_all(store, plan)
    if output_format == "netcdf4":
        store.export_netcdf(ID, 1)
    store.add_file(ID, 1, "preview.png", b"half a map")
    store.add_file(ID, 1, "preview.png", b"a map")
    description = store.describe(ID, 1, extra=["preview.png"])
    folder = place.folder(plan.workflow, ID)
    assert (folder / "preview.png").read_bytes() == b"a map"
    listed = {file.path: file for file in description.output_files}
    on_disk = {
        f"{ID}/{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()
    }
    assert set(listed) == set(on_disk)
    for name, path in on_disk.items():
        content = path.read_bytes()
        assert listed[name].size == len(content)
        assert listed[name].sha256 == hashlib.sha256(content).hexdigest()
    first = "results.zarr/zarr.json" if output_format == "zarr" else "results.nc"
    assert description.output_files[0].path == f"{ID}/{first}"
    assert description.totals == Totals(
        files=len(on_disk),
        bytes=sum(path.stat().st_size for path in on_disk.values()),
        listed=len(on_disk),
        truncated=False,
    )
    check = subprocess.run(
        ["sha256sum", "--strict", "-c", "checksums.sha256"], cwd=folder, capture_output=True
    )
    assert check.returncode == 0, check.stderr
    assert len(check.stdout.splitlines()) == len(on_disk) - 1


def test_the_manifest_of_many_files_is_bounded(place: Place) -> None:
    store = place.store(max_listed=20)
    plan = make_plan()
    store.create(plan, ID, PROVENANCE, 1)
    write_all(store, plan)
    description = store.describe(ID, 1)
    paths = [file.path for file in description.output_files]
    assert f"{ID}/results.zarr/t2m/zarr.json" in paths
    assert f"{ID}/checksums.sha256" in paths
    assert not any("/t2m/c." in path for path in paths)
    folder = place.folder(plan.workflow, ID)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert description.totals == Totals(
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        listed=len(paths),
        truncated=True,
    )
    checksums = (folder / "checksums.sha256").read_text().splitlines()
    assert len(checksums) == len(files) - 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("t2m/c.1.2.0.0", b""), ("t2m/c.1.2.0.0", None), ("lat/zarr.json", None)],
)
def test_a_damaged_result_is_not_called_whole(
    place: Place, store: ResultsStore, tmp_path: Path, name: str, content: bytes | None
) -> None:
    plan = make_plan()
    make(store, plan)
    key = f"results/{plan.workflow}/{ID}/results.zarr/{name}"
    if content is None:
        place.remove(key)
    else:
        place.write(key, content)
    with pytest.raises(StageFailed, match=name) as failed:
        store.describe(ID, 1)
    assert failed.value.stage == "package"
    assert str(tmp_path) not in str(failed.value)


def test_it_lists_of_which_executions_something_is_there(place: Place, store: ResultsStore) -> None:
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
    assert place.store().stored_executions("", 9) == listed[1:]
