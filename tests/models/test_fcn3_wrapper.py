"""Earth2Studio's real FCN3 wrapper around a small core, by itself and through the graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from deployments.models.messages import MemberJob
from deployments.models.random_numbers import RandomNumbers
from deployments.models.state import internal_state
from deployments.results.checkpoint import Checkpoint
from tests.deployments.models.fcn3_replicas import rollout
from tests.integration.serving import WORKFLOW, Server, deploy, served
from tests.models.grids import SMALL, own_grid_too
from workflows.fcn3 import VARIABLES, FCN3Workflow
from workflows.grids import Grid

pytestmark = pytest.mark.models

Floats = NDArray[np.float32]
PlainLoop = Callable[[int], Floats]

START = datetime(2025, 1, 1, 6, tzinfo=UTC)
KEPT = ("z500", "t2m")  # not in the model's order
N_STEPS = 2
ENSEMBLE = (7, 2**32 - 1, 7)
OTHERS = (8, 9)


@pytest.fixture(scope="module")
def grid(request: pytest.FixtureRequest) -> Grid:
    return getattr(request, "param", SMALL)


@pytest.fixture(scope="module")
def analysis(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state at START, as InitialConditions leaves it."""
    from tests.models.standin_core import load_source

    path = tmp_path_factory.mktemp("analysis") / "initial_conditions.npy"
    time = np.array([START.replace(tzinfo=None)], "datetime64[ns]")
    np.save(path, load_source(**grid.model_dump())(time, VARIABLES).values[0])
    return path


@pytest.fixture(scope="module")
def model(grid: Grid) -> Any:
    """One model, as a replica holds it."""
    from tests.models.standin_core import load

    return load("cpu", **grid.model_dump())


@pytest.fixture(scope="module")
def plain_loop(grid: Grid, analysis: Path) -> PlainLoop:
    """The fields of one seed from a loop over a wrapper of its own; longitudes from -180."""

    @cache
    def loop(seed: int) -> Floats:
        from tests.models.standin_core import load

        model = load("cpu", **grid.model_dump())
        fields = [each.numpy().copy() for each in time_steps(model, grid, analysis, seed)]
        return np.roll(fields, grid.n_lon // 2, axis=-1)

    return loop


def time_steps(model: Any, grid: Grid, analysis: Path, seed: int) -> Iterator[Any]:
    """Run a model by hand; yields the kept variables as views of the model's memory."""
    import torch

    coords = OrderedDict(
        time=np.array([START.replace(tzinfo=None)], "datetime64[ns]"),
        lead_time=np.array([np.timedelta64(0, "h")]),
        variable=np.array(VARIABLES),
        lat=grid.latitudes(),
        lon=grid.longitudes(),
    )
    model.set_rng(seed=seed, reset=True)
    iterator = model.create_iterator(torch.from_numpy(np.load(analysis)[None, None]), coords)
    kept = [VARIABLES.index(name) for name in KEPT]
    for _ in range(N_STEPS + 1):
        x, _ = next(iterator)
        yield x[0, 0, kept]


def member_job(grid: Grid, analysis: Path, member: int) -> MemberJob:
    workflow = FCN3Workflow(grid)
    return MemberJob(
        execution_id="exec_1",
        plan=workflow.plan(workflow.validate(parameters_for(ENSEMBLE))),
        member=member,
        initial_conditions=str(analysis),
        fence=1,
    )


def parameters_for(seeds: tuple[int, ...]) -> dict[str, Any]:
    return {
        "start_time": START.isoformat(),
        "n_steps": N_STEPS,
        "seeds": list(seeds),
        "variables": list(KEPT),
        "output_format": "zarr",
    }


def test_two_iterators_on_one_model_disturb_each_other(
    model: Any, grid: Grid, analysis: Path, plain_loop: PlainLoop
) -> None:
    """The tests below would fail if the deployment interleaved members."""
    first = time_steps(model, grid, analysis, 7)
    fields = [next(first).numpy().copy()]
    second = time_steps(model, grid, analysis, 8)
    next(second)
    for each in first:
        fields.append(each.numpy().copy())
        next(second)
    rolled = np.roll(fields, grid.n_lon // 2, axis=-1)
    assert np.array_equal(rolled[0], plain_loop(7)[0])
    assert not np.array_equal(rolled[1], plain_loop(7)[1])


@own_grid_too
def test_members_on_one_model_equal_a_plain_loop(
    model: Any, grid: Grid, analysis: Path, plain_loop: PlainLoop
) -> None:
    for member, seed in enumerate(ENSEMBLE):
        fields = list(rollout(model, member_job(grid, analysis, member)))
        assert np.array_equal(np.roll(fields, grid.n_lon // 2, axis=-1), plain_loop(seed))
    assert not np.array_equal(plain_loop(ENSEMBLE[0]), plain_loop(ENSEMBLE[1]))


def test_a_member_continues_from_a_checkpoint_bit_for_bit(
    model: Any, grid: Grid, analysis: Path, plain_loop: PlainLoop, tmp_path: Path
) -> None:
    """As in another process, whose model has run other members before; through a file."""
    job = member_job(grid, analysis, 0)
    path = tmp_path / "checkpoint.npz"

    def save(step: int, fields: Any, numbers: RandomNumbers) -> None:
        internal = internal_state(model, numbers)
        assert internal is not None and internal.keys() == {"noise", "cpu"}
        if step == 1:
            with path.open("wb") as file:
                Checkpoint(step, "", fields.numpy().copy(), internal).write(file)

    list(rollout(model, job, save=save))
    next(time_steps(model, grid, analysis, 8))
    with path.open("rb") as file:
        checkpoint = Checkpoint.read(1, file)

    def remaining_steps(checkpoint: Checkpoint) -> Floats:
        fields = list(rollout(model, job, checkpoint))
        return np.roll(fields, grid.n_lon // 2, axis=-1)

    assert np.array_equal(remaining_steps(checkpoint), plain_loop(ENSEMBLE[0])[2:])
    # Without the noise or its generator, it would be another member.
    for name in ("noise", "cpu"):
        internal = {key: value for key, value in checkpoint.internal.items() if key != name}
        fields = remaining_steps(replace(checkpoint, internal=internal))
        assert not np.array_equal(fields, plain_loop(ENSEMBLE[0])[2:])


def args_for(data_dir: Path, grid: Grid, replicas: int) -> dict[str, Any]:
    return {
        "data_dir": str(data_dir),
        "models": {
            "fcn3": {
                "loader": "tests.models.standin_core:load",
                "options": grid.model_dump(),
                "grid": grid.model_dump(),
                "num_gpus": 0,
                "replicas": replicas,
            }
        },
        "data_sources": {
            "ifs": {
                "loader": "tests.models.standin_core:load_source",
                "options": grid.model_dump(),
            }
        },
        "queue": {"max_running": 2},
    }


def name_for(grid: Grid) -> str:
    """Return an application's name; two applications of one name cannot overlap."""
    return f"wrapper-{grid.n_lat}"


@pytest.fixture(scope="module")
def data_dir(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wrapper")


@pytest.fixture(scope="module")
def server(http_port: int, data_dir: Path, grid: Grid) -> Iterator[Server]:
    args = args_for(data_dir, grid, replicas=1)
    with served(args, name_for(grid), http_port) as server:
        yield server


def result_of(server: Server, data_dir: Path, grid: Grid, execution_id: str) -> Floats:
    """Read the result of an execution, shape (ensemble, time, variable, lat, lon)."""
    server.completed(execution_id)
    store = data_dir / "results" / WORKFLOW / execution_id / "results.zarr"
    with xr.open_zarr(store, mask_and_scale=False) as dataset:
        assert dataset["t2m"].dims == ("ensemble", "time", "lat", "lon")
        assert list(dataset["lon"].values[[0, grid.n_lon // 2]]) == [-180, 0]
        return np.stack([dataset[name].values for name in KEPT], axis=2)


@pytest.mark.ray
@pytest.mark.slow
@own_grid_too
def test_through_the_graph_members_equal_a_plain_loop(
    server: Server, data_dir: Path, grid: Grid, plain_loop: PlainLoop
) -> None:
    def check(*executions: tuple[str, tuple[int, ...]]) -> None:
        for execution_id, seeds in executions:
            result = result_of(server, data_dir, grid, execution_id)
            assert len(result) == len(seeds)
            for member, seed in zip(result, seeds, strict=True):
                assert np.array_equal(member, plain_loop(seed))

    def submit(seeds: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        return server.submit(**parameters_for(seeds)), seeds

    # Two executions at once on one replica.
    check(submit(ENSEMBLE), submit(OTHERS))

    deploy(args_for(data_dir, grid, replicas=2), name_for(grid))
    # Again two at once, in another order, on two replicas, one of which has run others before.
    check(submit(OTHERS), submit(ENSEMBLE[::-1]))
    assert len(server.pids("FCN3")) == 2
