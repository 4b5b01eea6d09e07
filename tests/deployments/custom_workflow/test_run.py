"""A run of a user's class, from its call to the manifest: whichever way it writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from deployments.custom_workflow.messages import RunJob, RunResult
from deployments.custom_workflow.options import CustomWorkflowOptions
from deployments.custom_workflow.run import Run
from deployments.custom_workflow.user_class import UserClass
from deployments.results.options import StorageOptions
from deployments.runtime.worker_job import WorkerJob
from workflows.custom import CustomPlan
from workflows.errors import StageFailed

pytest.register_assert_rewrite("tests.deployments.custom_workflow.outputs")

from tests.deployments.custom_workflow.outputs import (  # noqa: E402
    FORECAST,
    LAT,
    LON,
    MAP,
    at,
    dataset,
    tensor,
)

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
]

ID = "exec_1_00000000"

Write = Callable[[Any, Any], None]
"""What a class does in a call; takes the instance and its io."""


class Workflow:
    """Behaves as the function that it was made with."""

    def __init__(self, write: Any = None, required: tuple[str, ...] = ()) -> None:
        self.write = write
        if required:
            self.required_variables = required

    def __call__(self, io: Any) -> Any:
        return self.write(self, io)


class Runner:
    """Runs a class in a folder of results."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.path = self.results / "storms" / ID
        self._options = CustomWorkflowOptions.model_validate(
            {
                "class": f"{__name__}:Workflow",
                "name": "storms",
                "name_is_given": True,
                "storage": StorageOptions(results_dir=self.results, work_dir=folder / "work"),
                "max_output_bytes": 10**8,
            }
        )
        self._class = UserClass(self._options.path, folder / "scratch")

    def run(self, write: Write, output_format: Any = "zarr", **options: Any) -> RunResult:
        plan = CustomPlan(workflow="storms", parameters={}, output_format=output_format)
        run = Run(RunJob(execution_id=ID, plan=plan, fence=1), self._options, WorkerJob(1))
        try:
            run.call(self._class, Workflow(write, **options))
            return run.deliver()
        finally:
            run.close()

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def labelled(part: Any = MAP) -> xr.Dataset:
    """Return values of a part of the map."""
    return xr.Dataset({"t2m": (("lat", "lon"), tensor(part).numpy())})


def by_region(workflow: Any, io: Any) -> None:
    io.add_array(MAP, "t2m")
    region = {"lat": slice(0, 5), "lon": slice(0, 8)}
    labelled().to_zarr(str(io.store.root), region=region, consolidated=False)


def by_halves_of_a_region(workflow: Any, io: Any) -> None:
    io.add_array(MAP, "t2m")
    for part in (slice(0, 2), slice(2, 5)):
        values = labelled().isel(lat=part)
        region = {"lat": part, "lon": slice(0, 8)}
        values.to_zarr(io.store, region=region, consolidated=False, safe_chunks=False)


def by_its_own_array(workflow: Any, io: Any) -> None:
    io.add_array({"lat": LAT, "lon": LON}, [])
    own = io.root.create_array("t2m", shape=(5, 8), dtype="f4", dimension_names=["lat", "lon"])
    own[...] = tensor(MAP).numpy()


def by_its_own_dataset(workflow: Any, io: Any) -> None:
    values = labelled().assign_coords(lat=LAT, lon=LON)
    values.to_zarr(str(io.store.root), mode="a", consolidated=False)


def by_replacing_the_store(workflow: Any, io: Any) -> None:
    labelled().assign_coords(lat=LAT, lon=LON).to_zarr(str(io.store.root), mode="w")


def by_methods_of_the_array(workflow: Any, io: Any) -> None:
    io.add_array(MAP, "t2m")
    io.root["t2m"].oindex[[0, 1], :] = tensor(MAP).numpy()[:2]
    io["t2m"].set_basic_selection(slice(2, 5), tensor(MAP).numpy()[2:])


def by_the_path_of_the_result(workflow: Any, io: Any) -> None:
    import zarr

    io.add_array(MAP, "t2m")
    path = workflow.get_output_path(workflow.execution_id) / "results.zarr"
    zarr.open_group(path, mode="r+")["t2m"][...] = tensor(MAP).numpy()


def by_another_process(workflow: Any, io: Any) -> None:
    io.add_array(MAP, "t2m")
    values = tensor(MAP).numpy().tolist()
    code = f"import sys, zarr; zarr.open_group(sys.argv[1], mode='r+')['t2m'][...] = {values}"
    subprocess.run([sys.executable, "-c", code, str(io.store.root)], check=True, timeout=60)


def by_the_backend_and_past_it(workflow: Any, io: Any) -> None:
    io.add_array(MAP, "t2m")
    path = str(io.store.root)
    io.write(tensor(MAP) - 1, MAP, "t2m")
    labelled().to_zarr(path, region={"lat": slice(0, 5), "lon": slice(0, 8)}, consolidated=False)


WAYS: list[Write] = [
    by_region,
    by_halves_of_a_region,
    by_its_own_array,
    by_its_own_dataset,
    by_replacing_the_store,
    by_methods_of_the_array,
    by_the_path_of_the_result,
    by_another_process,
    by_the_backend_and_past_it,
]


@pytest.mark.parametrize("write", WAYS)
def test_a_result_counts_however_it_was_written(write: Write, runner: Runner) -> None:
    result = runner.run(write)
    assert result.shortcoming is None
    assert result.results.coverage == {"t2m": 1.0}
    assert result.results.warnings == ()
    got = dataset(runner.path / "results.zarr")
    np.testing.assert_array_equal(got.t2m, tensor(MAP))
    np.testing.assert_array_equal(got.lat, LAT)


def test_a_class_reads_what_it_has_written_by_its_path(runner: Runner) -> None:
    found: list[float] = []

    def write(workflow: Any, io: Any) -> None:
        io.add_array(FORECAST, "t2m")
        path = workflow.get_output_path(workflow.execution_id) / "results.zarr"
        for seed in range(20):
            io.write(tensor(FORECAST, seed), FORECAST, "t2m")
            found.append(np.array_equal(dataset(path).t2m, tensor(FORECAST, seed)))

    runner.run(write)
    assert found == [True] * 20


@pytest.mark.parametrize("by_path", [False, True])
def test_a_region_of_a_chunk_counts_by_its_elements(by_path: bool, runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        io.add_array(MAP, "t2m")
        half = labelled().isel(lat=slice(0, 2))
        half.t2m[0] = np.nan  # on purpose, as over land
        half.to_zarr(
            str(io.store.root) if by_path else io.store,
            region={"lat": slice(0, 2), "lon": slice(0, 8)},
            consolidated=False,
            safe_chunks=False,
        )

    result = runner.run(write)
    assert result.results.coverage == {"t2m": 0.4}
    assert result.results.warnings == ("t2m: 60 % of its values were not written",)
    # Readers see a plain NaN as the fill value.
    metadata = (runner.path / "results.zarr" / "t2m" / "zarr.json").read_text()
    assert '"fill_value": "NaN"' in metadata


def test_a_chunk_of_nothing_but_nan_counts_if_it_was_written(runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        io.add_array(FORECAST, "t2m")
        nothing = np.full((1, 1, 5, 8), np.nan, np.float32)
        step = xr.Dataset({"t2m": (tuple(FORECAST), nothing)})
        region = {"time": slice(0, 1), "lead_time": slice(1, 2), "lat": slice(0, 5)}
        step.to_zarr(str(io.store.root), region=region, consolidated=False)

    assert runner.run(write).results.coverage == {"t2m": 1 / 3}


def test_a_process_that_writes_zeros_stores_them(runner: Runner) -> None:
    """No rain anywhere: chunks of nothing but the fill value."""

    def write(workflow: Any, io: Any) -> None:
        code = (
            "import sys, zarr\n"
            "group = zarr.open_group(sys.argv[1], mode='r+')\n"
            "group.create_array('rain', shape=(4,), chunks=(2,), dtype='f4')[...] = 0"
        )
        subprocess.run([sys.executable, "-c", code, str(io.store.root)], check=True, timeout=60)

    assert runner.run(write).results.coverage == {"rain": 1.0}


def test_an_array_of_a_group_counts(runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        group = io.root.create_group("levels")
        group.create_array("t", shape=(4,), dtype="f8")[:1] = 0.0
        io.root["levels/t"][1] = 2.0
        io.root["levels"].create_array("q", shape=(4,), dtype="f4")[...] = 1.0

    assert runner.run(write).results.coverage == {"levels/q": 1.0, "levels/t": 0.5}


def test_a_scalar_is_a_result(runner: Runner) -> None:
    result = runner.run(lambda workflow, io: io.add_array({}, "mean", data=tensor({})))
    assert (result.results.coverage, result.results.warnings) == ({}, ())


@pytest.mark.parametrize("mode", ["a", "w"])
def test_a_class_may_close_the_file_and_write_it_with_xarray(mode: Any, runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        io.add_array(MAP, "first", data=tensor(MAP))
        io.close()
        labelled().to_netcdf(workflow.get_output_path() / "results.nc", mode=mode)

    coverage = runner.run(write, "netcdf4").results.coverage
    assert coverage == ({"first": 1.0} if mode == "a" else {}) | {"t2m": 1.0}


def test_half_a_map_is_told(runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        io.add_array(MAP, "t2m")
        west = at(MAP, lon=slice(0, 4))
        io.write(tensor(west), west, "t2m")

    for output_format in ("zarr", "netcdf4"):
        result = runner.run(write, output_format)
        assert result.shortcoming is None
        assert result.results.coverage == {"t2m": 0.5}
        assert result.results.warnings == ("t2m: 50 % of its values were not written",)


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_what_a_class_requires_is_missed(output_format: str, runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        io.add_array(FORECAST, ["t2m", "z500"])
        io.write(tensor(FORECAST), FORECAST, "z500")

    result = runner.run(write, output_format, required=("t2m", "z500"))
    assert result.shortcoming == (
        "the workflow ended without what it requires: t2m: 100 % of its values were not written"
    )
    assert result.results.coverage == {"t2m": 0.0, "z500": 1.0}


@pytest.mark.parametrize(
    ("output_format", "name"), [("zarr", "results.zarr"), ("netcdf4", "results.nc")]
)
def test_a_class_that_writes_nothing_has_an_empty_result(
    output_format: str, name: str, runner: Runner
) -> None:
    result = runner.run(lambda workflow, io: None, output_format)
    assert result.results.coverage == {}
    assert result.results.warnings == ("the workflow wrote no variables",)
    assert runner.files == ["checksums.sha256", name]
    assert dict(dataset(runner.path / name)) == {}


def test_a_class_with_files_of_its_own_has_no_empty_dataset(runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        (workflow.get_output_path() / "tracks.txt").write_text("none found")

    result = runner.run(write)
    assert result.results.warnings == ()
    assert runner.files == ["checksums.sha256", "tracks.txt"]


def test_an_asynchronous_class_is_awaited(runner: Runner) -> None:
    async def write(workflow: Any, io: Any) -> None:
        io.add_array(MAP, "t2m", data=tensor(MAP))

    assert runner.run(write).results.coverage == {"t2m": 1.0}


def test_a_class_that_raises_leaves_nothing(runner: Runner) -> None:
    def write(workflow: Any, io: Any) -> None:
        by_region(workflow, io)
        raise OSError("no data")

    with pytest.raises(StageFailed, match="OSError: no data"):
        runner.run(write)
    assert not runner.path.exists()
