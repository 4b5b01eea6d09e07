"""Earth2Studio's real FCN3 wrapper, around a small core, by itself and through the graph.

Its grid is fixed: a state is 300 MB, so members and steps are few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from deployments.models.fcn3_rollout import forecast
from deployments.models.messages import MemberJob
from deployments.models.state import internal_state
from deployments.results.checkpoint import Checkpoint
from tests.integration.serving import WORKFLOW, Server, deploy, served
from workflows.base import Plan
from workflows.fcn3 import VARIABLES, FCN3Workflow
from workflows.grids import Grid

pytestmark = pytest.mark.models

Floats = NDArray[np.float32]

START = datetime(2025, 1, 1, 6, tzinfo=UTC)
KEPT = ("z500", "t2m")  # not in the model's order
N_STEPS = 2
ENSEMBLE = (7, 2**32 - 1, 7)
OTHERS = (8, 9)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state at START, as InitialConditions leaves it."""
    from tests.models.standin_core import load_source

    path = tmp_path_factory.mktemp("analysis") / "initial_conditions.npy"
    time = np.array([START.replace(tzinfo=None)], "datetime64[ns]")
    np.save(path, load_source()(time, VARIABLES).values[0])
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    """One model, as a replica holds it."""
    from tests.models.standin_core import load

    return load("cpu")


@pytest.fixture(scope="module")
def plain_loop(analysis: Path) -> Any:
    """What a loop over a wrapper of its own gives for a seed, longitudes from -180."""

    @cache
    def loop(seed: int) -> Floats:
        from tests.models.standin_core import load

        given = [fields.numpy().copy() for fields, _ in steps_of(load("cpu"), analysis, seed)]
        return np.roll(given, 720, axis=-1)

    return loop


def steps_of(model: Any, analysis: Path, seed: int) -> Iterator[Any]:
    """Run a model by hand; gives the variables that are kept, still the model's memory."""
    import torch

    grid = Grid()
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
        x, given = next(iterator)
        yield x[0, 0, kept], given


def plan_for(seeds: tuple[int, ...]) -> Plan:
    workflow = FCN3Workflow()
    return workflow.plan(workflow.validate(parameters_for(seeds)))


def parameters_for(seeds: tuple[int, ...]) -> dict[str, Any]:
    return {
        "start_time": START.isoformat(),
        "n_steps": N_STEPS,
        "seeds": list(seeds),
        "variables": list(KEPT),
        "output_format": "zarr",
    }


def test_two_iterators_on_one_model_do_disturb_each_other(
    model: Any, analysis: Path, plain_loop: Any
) -> None:
    """The core can tell: the tests below would fail if the deployment interleaved members."""
    first = steps_of(model, analysis, 7)
    given = [next(first)[0].numpy().copy()]
    second = steps_of(model, analysis, 8)
    next(second)
    for fields, _ in first:
        given.append(fields.numpy().copy())
        next(second)

    assert np.array_equal(np.roll(given[0], 720, axis=-1), plain_loop(7)[0])
    assert not np.array_equal(np.roll(given[1], 720, axis=-1), plain_loop(7)[1])


def test_members_on_one_model_are_what_a_plain_loop_gives(
    model: Any, analysis: Path, plain_loop: Any
) -> None:
    for member, seed in enumerate(ENSEMBLE):
        job = MemberJob(
            execution_id="exec_1",
            plan=plan_for(ENSEMBLE),
            member=member,
            initial_conditions=str(analysis),
            fence=1,
        )
        kept = list(forecast(model, job))
        assert np.array_equal(np.roll(kept, 720, axis=-1), plain_loop(seed))
    assert not np.array_equal(plain_loop(ENSEMBLE[0]), plain_loop(ENSEMBLE[1]))


def test_goes_on_from_a_checkpoint_bit_for_bit(
    model: Any, analysis: Path, plain_loop: Any, tmp_path: Path
) -> None:
    """As another process does, whose model has run others before; through a file."""
    job = MemberJob(
        execution_id="exec_1",
        plan=plan_for(ENSEMBLE),
        member=0,
        initial_conditions=str(analysis),
        fence=1,
    )
    path = tmp_path / "checkpoint.npz"

    def save(step: int, fields: Any) -> None:
        internal = internal_state(model)
        assert internal is not None and internal.keys() == {"noise", "cpu"}
        if step == 1:
            with path.open("wb") as file:
                Checkpoint(step, "", fields.numpy().copy(), internal).write(file)

    list(forecast(model, job, save=save))
    next(steps_of(model, analysis, 8))
    with path.open("rb") as file:
        checkpoint = Checkpoint.read(1, file)

    def rest(checkpoint: Checkpoint) -> Floats:
        return np.roll(list(forecast(model, job, checkpoint=checkpoint)), 720, axis=-1)

    assert np.array_equal(rest(checkpoint), plain_loop(ENSEMBLE[0])[2:])
    # Without either the noise or its generator it would be another member.
    for name in ("noise", "cpu"):
        internal = {key: kept for key, kept in checkpoint.internal.items() if key != name}
        given = rest(replace(checkpoint, internal=internal))
        assert not np.array_equal(given, plain_loop(ENSEMBLE[0])[2:])


def args_for(data_dir: Path, replicas: int) -> dict[str, Any]:
    return {
        "data_dir": str(data_dir),
        "models": {
            "fcn3": {
                "loader": "tests.models.standin_core:load",
                "num_gpus": 0,
                "replicas": replicas,
            }
        },
        "data_sources": {"ifs": {"loader": "tests.models.standin_core:load_source"}},
        "queue": {"max_running": 2},
    }


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wrapper")


@pytest.fixture(scope="module")
def server(http_port: int, data_dir: Path) -> Iterator[Server]:
    with served(args_for(data_dir, replicas=1), "wrapper", http_port) as server:
        yield server


def result_of(server: Server, data_dir: Path, execution_id: str) -> Floats:
    """Read what an execution left, shape (ensemble, time, variable, lat, lon)."""
    ended = server.finished(execution_id, seconds=300)
    assert ended["status"] == "completed", ended
    store = data_dir / "results" / WORKFLOW / execution_id / "results.zarr"
    with xr.open_zarr(store, mask_and_scale=False) as dataset:
        assert dataset["t2m"].dims == ("ensemble", "time", "lat", "lon")
        assert list(dataset["lon"].values[[0, 720]]) == [-180, 0]
        return np.stack([dataset[name].values for name in KEPT], axis=2)


@pytest.mark.ray
def test_through_the_graph_it_is_the_same_bit_for_bit(
    server: Server, data_dir: Path, plain_loop: Any
) -> None:
    def check(*executions: tuple[str, tuple[int, ...]]) -> None:
        for execution_id, seeds in executions:
            given = result_of(server, data_dir, execution_id)
            assert len(given) == len(seeds)
            for member, seed in zip(given, seeds, strict=True):
                assert np.array_equal(member, plain_loop(seed))

    def submit(seeds: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        return server.submit(**parameters_for(seeds)), seeds

    # On one replica, two executions at once.
    check(submit(ENSEMBLE), submit(OTHERS))

    deploy(args_for(data_dir, replicas=2), "wrapper")
    # On two replicas, one of which has run others before, again two at once, in another order.
    check(submit(OTHERS), submit(ENSEMBLE[::-1]))
    assert len(server.pids("FCN3")) == 2
