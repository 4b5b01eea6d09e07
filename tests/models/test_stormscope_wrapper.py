"""Earth2Studio's real wrappers of FCN3, its interpolation and StormScope, around small cores.

By themselves and through the graph, results must equal those of the peer's loop bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from deployments.initial_conditions.client import open_analysis, source_grid
from deployments.models.fcn3_rollout import check_interpolation, conditioning_fields
from deployments.models.messages import ConditioningJob, NowcastJob
from deployments.models.stormscope_rollout import Nowcaster, nowcast, prepare
from tests.integration.serving import Server, deploy, served, steps_written
from tests.models.grids import SMALL, own_grid_too
from workflows.base import Plan
from workflows.errors import ModelUnavailable, StageFailed
from workflows.grids import Grid, LambertGrid
from workflows.stormscope import VARIABLES, StormScopeWorkflow

pytestmark = pytest.mark.models

Floats = NDArray[np.float32]
HourlyLoop = Callable[[int], list[Floats]]
NowcastLoop = Callable[[int, int], Floats]

FCN3_START = datetime(2025, 4, 6, 18, tzinfo=UTC)
START = datetime(2025, 4, 6, 20, tzinfo=UTC)
KEPT = ("abi13c", "abi02c")  # not in the model's order
N_STEPS = 3
AHEAD = 2
FCN3_SEEDS = (11, 12)
SEEDS = (7, 2**32 - 1, 7, 8)
PARAMETERS = {
    "start_time_fcn3": FCN3_START.isoformat(),
    "start_time_stormscope": START.isoformat(),
    "n_steps": N_STEPS,
    "seeds_fcn3": list(FCN3_SEEDS),
    "seeds_stormscope": list(SEEDS),
    "variables": list(KEPT),
    "output_format": "zarr",
}


@pytest.fixture(scope="module")
def grid(request: pytest.FixtureRequest) -> Grid:
    """Grid of the global model."""
    return getattr(request, "param", SMALL)


@pytest.fixture(scope="module")
def plan(grid: Grid) -> Plan:
    from tests.models.standin_stormscope import GRID

    workflow = StormScopeWorkflow(grid, GRID)
    return workflow.plan(workflow.validate(PARAMETERS))


@pytest.fixture(scope="module")
def folder(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as InitialConditions writes them: the analysis at FCN3_START, the image at START."""
    from tests.models.standin_core import load_source
    from tests.models.standin_stormscope import load_goes
    from workflows.fcn3 import VARIABLES as FCN3_VARIABLES

    folder = tmp_path_factory.mktemp("analysis")
    source = load_source(**grid.model_dump())
    np.save(folder / "ifs.npy", source(times(FCN3_START), FCN3_VARIABLES).values[0])
    goes = load_goes("goes16")
    np.save(folder / "goes16.npy", goes(times(START), VARIABLES).values[0].astype(np.float32))
    np.save(source_grid(folder / "goes16.npy"), np.stack([goes.lat, goes.lon]))
    return folder


def times(moment: datetime) -> NDArray[np.datetime64]:
    return np.array([moment.replace(tzinfo=None)], "datetime64[ns]")


@pytest.fixture(scope="module")
def hourly_loop(grid: Grid, folder: Path) -> HourlyLoop:
    """The hourly z500 of one seed from a loop over wrappers of its own."""

    @cache
    def loop(seed: int) -> list[Floats]:
        import torch

        from tests.models.standin_core import load
        from tests.models.standin_stormscope import load_interpolation
        from workflows.fcn3 import VARIABLES as FCN3_VARIABLES

        hourly = load_interpolation("cpu", load("cpu", **grid.model_dump()))
        coords = OrderedDict(
            time=times(FCN3_START),
            lead_time=np.array([np.timedelta64(0, "h")]),
            variable=np.array(FCN3_VARIABLES),
            lat=grid.latitudes(),
            lon=grid.longitudes(),
        )
        hourly.px_model.px_model.set_rng(seed=seed)
        x = torch.from_numpy(np.load(folder / "ifs.npy")[None, None])
        fields = []
        hours = hourly.create_iterator(x, coords)
        for _ in range(AHEAD + N_STEPS):
            state, state_coords = next(hours)
            z500 = list(state_coords["variable"]).index("z500")
            fields.append(state[0, 0, z500].numpy().copy())
        return fields

    return loop


@pytest.fixture(scope="module")
def nowcast_loop(grid: Grid, folder: Path, hourly_loop: HourlyLoop) -> NowcastLoop:
    """The result of the peer's loop for two seeds, shape (time, variable, y, x)."""

    @cache
    def loop(fcn3_seed: int, seed: int) -> Floats:
        import torch

        from tests.models.standin_stormscope import Recorded, load_goes, load_stormscope

        model = load_stormscope("cpu")
        goes = load_goes("goes16")
        model.build_input_interpolator(goes.lat, goes.lon)
        model.build_conditioning_interpolator(grid.latitudes()[:-1], grid.longitudes())
        recorded = Recorded(times(FCN3_START)[0], hourly_loop(fcn3_seed), grid)
        model.conditioning_data_source = recorded
        image = torch.from_numpy(np.load(folder / "goes16.npy"))[None, None, None]
        coords = OrderedDict(
            batch=np.arange(1),
            time=times(START),
            lead_time=np.array([np.timedelta64(0, "h")]),
            variable=np.array(VARIABLES),
            y=np.arange(goes.lat.shape[0]),
            x=np.arange(goes.lat.shape[1]),
        )
        y, coords = model.prep_input(image, coords)
        y = torch.where(model.valid_mask, y, torch.nan)
        kept = [VARIABLES.index(name) for name in KEPT]
        images = [y[0, 0, 0, kept].numpy().copy()]
        torch.manual_seed(seed)
        for _ in range(N_STEPS):
            predicted, coords_predicted = model(y, coords)
            images.append(predicted[0, 0, 0, kept].numpy().copy())
            y, coords = model.next_input(predicted, coords_predicted, y, coords)
        return np.stack(images)

    return loop


@pytest.fixture(scope="module")
def nowcaster(grid: Grid) -> Nowcaster:
    """One model, as a replica holds it."""
    from tests.models.standin_stormscope import GRID, load_stormscope

    return prepare(load_stormscope("cpu"), GRID, grid, VARIABLES)


def nowcast_job(folder: Path, plan: Plan, member: int) -> NowcastJob:
    return NowcastJob(
        execution_id="exec_1",
        plan=plan,
        member=member,
        initial_conditions=str(folder / "goes16.npy"),
        fence=1,
    )


def rollout(
    nowcaster: Nowcaster, job: NowcastJob, conditioning: Callable[[int], Floats]
) -> Generator[Floats]:
    image = open_analysis(Path(job.initial_conditions))
    return nowcast(nowcaster, job, image, conditioning)


def test_conditioning_fields_equal_the_peers_loop(
    folder: Path, grid: Grid, plan: Plan, hourly_loop: HourlyLoop
) -> None:
    from tests.models.standin_core import load
    from tests.models.standin_stormscope import load_interpolation

    model = load("cpu", **grid.model_dump())
    hourly = load_interpolation("cpu", model)
    check_interpolation(hourly, grid)
    for member, seed in enumerate(FCN3_SEEDS):
        job = ConditioningJob(
            execution_id="exec_1",
            plan=plan,
            member=member,
            initial_conditions=str(folder / "ifs.npy"),
            fence=1,
        )
        # All are collected first: a field that is not copied would be overwritten by the next.
        state = np.load(job.initial_conditions)
        fields = list(conditioning_fields(model, hourly, job, state, lambda: None))
        assert len(fields) == N_STEPS
        np.testing.assert_array_equal(fields, hourly_loop(seed)[AHEAD : AHEAD + N_STEPS])
    assert not np.array_equal(hourly_loop(11)[AHEAD], hourly_loop(12)[AHEAD])
    assert not np.array_equal(hourly_loop(11)[AHEAD], hourly_loop(11)[AHEAD + 1])


def test_members_on_one_model_equal_the_peers_loop(
    folder: Path,
    plan: Plan,
    nowcaster: Nowcaster,
    hourly_loop: HourlyLoop,
    nowcast_loop: NowcastLoop,
) -> None:
    import torch

    for member, seed in enumerate(SEEDS):
        fcn3_seed = FCN3_SEEDS[plan.conditioned_by(member)]
        fields = hourly_loop(fcn3_seed)
        images = []
        job = nowcast_job(folder, plan, member)
        for image in rollout(nowcaster, job, lambda s, fields=fields: fields[AHEAD + s]):
            images.append(image)
            torch.rand(3)  # draws of others between two steps must not matter
        np.testing.assert_array_equal(np.stack(images), nowcast_loop(fcn3_seed, seed))
    # The same seed conditioned by another member, and another seed.
    assert not np.array_equal(nowcast_loop(11, 7), nowcast_loop(12, 7), equal_nan=True)
    assert not np.array_equal(nowcast_loop(11, 7), nowcast_loop(11, 2**32 - 1), equal_nan=True)


def test_members_on_one_model_do_not_disturb_each_other(
    folder: Path,
    plan: Plan,
    nowcaster: Nowcaster,
    hourly_loop: HourlyLoop,
    nowcast_loop: NowcastLoop,
) -> None:
    def member(number: int) -> Any:
        fields = hourly_loop(FCN3_SEEDS[plan.conditioned_by(number)])
        return rollout(nowcaster, nowcast_job(folder, plan, number), lambda s: fields[AHEAD + s])

    # Interleaved step by step: the model may keep neither conditioning nor random numbers.
    images = list(zip(member(1), member(2), strict=True))
    np.testing.assert_array_equal([each[0] for each in images], nowcast_loop(11, SEEDS[1]))
    np.testing.assert_array_equal([each[1] for each in images], nowcast_loop(12, SEEDS[2]))


def test_a_nowcast_leaves_the_global_random_generator_alone(
    folder: Path, plan: Plan, nowcaster: Nowcaster, hourly_loop: HourlyLoop
) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(8)
    torch.manual_seed(5)
    fields = hourly_loop(11)
    for _ in rollout(nowcaster, nowcast_job(folder, plan, 0), lambda s: fields[AHEAD + s]):
        pass
    assert torch.equal(torch.rand(8), expected)


def test_points_that_the_satellite_does_not_see_are_nan(
    folder: Path, grid: Grid, plan: Plan, nowcaster: Nowcaster
) -> None:
    first = next(rollout(nowcaster, nowcast_job(folder, plan, 0), lambda _: zeros(grid)))
    unseen = ~nowcaster.model.valid_mask.numpy()
    assert 0 < unseen.mean() < 0.5
    assert (np.isnan(first) == unseen).all()


def test_gaps_in_the_image_are_named(
    tmp_path: Path, grid: Grid, plan: Plan, nowcaster: Nowcaster
) -> None:
    from tests.models.standin_stormscope import load_broken_goes

    goes = load_broken_goes("goes16")
    np.save(tmp_path / "goes16.npy", goes(times(START), VARIABLES).values[0].astype(np.float32))
    np.save(source_grid(tmp_path / "goes16.npy"), np.stack([goes.lat, goes.lon]))
    with pytest.raises(StageFailed, match=r"goes16 has gaps at .*: abi02c at \d+ of \d+ points"):
        next(rollout(nowcaster, nowcast_job(tmp_path, plan, 0), lambda _: zeros(grid)))


def zeros(grid: Grid) -> Floats:
    """Return a conditioning field, which has no south pole."""
    return np.zeros((grid.n_lat - 1, grid.n_lon), np.float32)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"grid": LambertGrid(n_y=20, n_x=30, spacing_m=140_000)}, "values of [yx] from"),
        ({"variables": VARIABLES[::-1]}, "the model's channels are abi01c"),
        ({"input_times": np.arange(2) * np.timedelta64(1, "h")}, "starts from 2 images"),
        ({"output_times": np.array([np.timedelta64(10, "m")])}, "steps of 10 minutes"),
        ({"conditioning_variables": np.array(["t850"])}, "conditioned on t850"),
        ({"latitudes": None}, "points lie up to .* degrees from"),
    ],
)
def test_a_model_other_than_the_configured_one_is_refused(
    change: dict[str, Any], match: str
) -> None:
    from tests.models.standin_stormscope import GRID, load_stormscope

    model = load_stormscope("cpu")
    if "latitudes" in change:
        model.latitudes += 0.1
    for name in ("input_times", "output_times", "conditioning_variables"):
        if name in change:
            setattr(model, name, change[name])
    with pytest.raises(ModelUnavailable, match=match):
        prepare(model, change.get("grid", GRID), SMALL, change.get("variables", VARIABLES))


WORKFLOW = StormScopeWorkflow.name
FCN3_STEP_S, PAUSE_S = 2.0, 0.03
"""While FCN3 computes its second member, the nowcasts that the first one conditions run."""


def args_for(data_dir: Path, grid: Grid, replicas: int) -> dict[str, Any]:
    from tests.models.standin_stormscope import GRID

    core, stormscope = "tests.models.standin_core", "tests.models.standin_stormscope"
    on_cpu = {"num_gpus": 0, "replicas": replicas}
    points = grid.model_dump()
    return {
        "data_dir": str(data_dir),
        "workflows": {"exposed": [WORKFLOW]},
        "models": {
            "fcn3": {
                "loader": f"{core}:load",
                "options": {"step_s": FCN3_STEP_S, **points},
                "grid": points,
                **on_cpu,
            },
            "interpolation": {"loader": f"{stormscope}:load_interpolation"},
            "stormscope": {
                "loader": f"{stormscope}:load_stormscope",
                "options": {"pause_s": PAUSE_S},
                "grid": GRID.model_dump(),
                **on_cpu,
            },
        },
        "data_sources": {
            "ifs": {"loader": f"{core}:load_source", "options": points},
            "goes": {"loader": f"{stormscope}:load_goes"},
        },
    }


def name_for(grid: Grid) -> str:
    """Return an application's name; two applications of one name cannot overlap."""
    return f"chain-{grid.n_lat}"


@pytest.fixture(scope="module")
def data_dir(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def server(http_port: int, data_dir: Path, grid: Grid) -> Iterator[Server]:
    args = args_for(data_dir, grid, replicas=1)
    with served(args, name_for(grid), http_port) as server:
        yield server.client_of(WORKFLOW)


def result_of(server: Server, data_dir: Path, execution_id: str) -> Floats:
    """Read the result of an execution, shape (ensemble, time, variable, y, x)."""
    server.completed(execution_id)
    store = data_dir / "results" / WORKFLOW / execution_id / "results.zarr"
    with xr.open_zarr(store, mask_and_scale=False) as dataset:
        assert dataset["abi13c"].dims == ("ensemble", "time", "y", "x")
        np.testing.assert_array_equal(dataset["seed_fcn3"], np.repeat(FCN3_SEEDS, 2))
        np.testing.assert_array_equal(dataset["seed_stormscope"], SEEDS)
        return np.stack([dataset[name].values for name in KEPT], axis=2)


@pytest.fixture(scope="module")
def expected(nowcast_loop: NowcastLoop) -> Floats:
    pairs = zip(np.repeat(FCN3_SEEDS, 2).tolist(), SEEDS, strict=True)
    return np.stack([nowcast_loop(fcn3_seed, seed) for fcn3_seed, seed in pairs])


@pytest.mark.ray
@pytest.mark.slow
@own_grid_too
def test_through_the_graph_members_equal_the_peers_loop(
    server: Server, data_dir: Path, expected: Floats
) -> None:
    execution_id = server.submit(**PARAMETERS)
    np.testing.assert_array_equal(result_of(server, data_dir, execution_id), expected)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("victims", [("Conductor",), ("FCN3", "StormScope")], ids=str)
def test_an_execution_interrupted_by_kills_gives_the_same_result(
    server: Server, data_dir: Path, expected: Floats, victims: tuple[str, ...]
) -> None:
    execution_id = server.submit(**PARAMETERS)
    # The first member of FCN3 has conditioned some steps; the second has not.
    status = server.until(execution_id, lambda s: steps_written(s) >= 5)
    assert steps_written(status) < 2 * (N_STEPS + 1), "too late to interrupt it"
    for victim in victims:
        server.kill(victim)
    np.testing.assert_array_equal(result_of(server, data_dir, execution_id), expected)


@pytest.mark.ray
@pytest.mark.slow
def test_more_replicas_give_the_same_result(
    server: Server, data_dir: Path, grid: Grid, expected: Floats
) -> None:
    deploy(args_for(data_dir, grid, replicas=2), name_for(grid))
    execution_id = server.submit(**PARAMETERS)
    np.testing.assert_array_equal(result_of(server, data_dir, execution_id), expected)
    assert len(server.pids("StormScope")) == 2
