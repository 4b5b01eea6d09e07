"""The results of the example workflow classes, and the effect of an ensemble's seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

from deployments.custom_workflow.run_output import open_output
from deployments.custom_workflow.user_class import UserClass

pytestmark = pytest.mark.models

CONFIG = Path(__file__).parents[2] / "config" / "custom.yaml"
SMALL = {"n_lat": 9, "n_lon": 18}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[UserClass, Any]]:
    """The classes of config/custom.yaml, on a small grid."""
    scratch = tmp_path_factory.mktemp("scratch")
    application = yaml.safe_load(CONFIG.read_text())["applications"][0]
    found = {}
    for entry in application["args"]["workflows"]["custom"]:
        workflow = UserClass(entry["class"], scratch)
        config = entry["config"]
        config["model_options"] |= SMALL
        found[workflow.name] = workflow, workflow.create(config | {"data_options": SMALL})
    return found


def run(made: Any, name: str, folder: Path, **parameters: Any) -> xr.Dataset:
    workflow, instance = made[name]
    folder.mkdir()
    output = open_output(
        folder,
        parameters.get("output_format", "zarr"),
        window_bytes=10**8,
        max_bytes=10**9,
        check=lambda: None,
    )
    instance(io=output, **workflow.validated(parameters))
    output.finish()
    assert set(output.coverage.fractions.values()) == {1.0}
    [path] = folder.iterdir()
    opened = xr.open_zarr(path) if path.suffix == ".zarr" else xr.open_dataset(path)
    with opened as dataset:
        loaded = dataset.load()
    output.discard()
    return loaded


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_deterministic(made: Any, tmp_path: Path, output_format: str) -> None:
    start = ["2024-01-01T00:00:00", "2024-01-02T00:00:00"]
    dataset = run(
        made,
        "deterministic_earth2_workflow",
        tmp_path / "out",
        start_time=start,
        num_steps=2,
        variables=["z500", "t2m"],
        output_format=output_format,
    )
    assert set(dataset.data_vars) == {"z500", "t2m"}
    assert dict(dataset.sizes) == {"time": 2, "lead_time": 3, "lat": 9, "lon": 18}
    assert list(dataset["time"].values) == list(np.array(start, "datetime64[ns]"))
    assert np.array_equal(dataset["t2m"][:, 0], dataset["t2m"][:, 2])  # persistence
    assert np.isfinite(dataset["t2m"]).all()


def test_the_same_seed_produces_the_same_ensemble(made: Any, tmp_path: Path) -> None:
    def ensemble(name: str, seed: int) -> xr.Dataset:
        np.random.seed(1)  # of the data source
        return run(
            made, "ensemble_earth2_workflow", tmp_path / name, num_steps=1, n_members=3, seed=seed
        )

    first, again, other = ensemble("a", 1), ensemble("b", 1), ensemble("c", 2)
    assert dict(first.sizes) == {"ensemble": 3, "time": 1, "lead_time": 2, "lat": 9, "lon": 18}
    xr.testing.assert_identical(first, again)
    assert not first.equals(other)
    assert not np.array_equal(first["t2m"][0], first["t2m"][1])


def test_bounds_are_in_the_schema(made: Any) -> None:
    workflow, _ = made["ensemble_earth2_workflow"]
    properties = workflow.describe().parameters_schema["properties"]
    assert (properties["n_members"]["minimum"], properties["n_members"]["maximum"]) == (1, 64)
    assert properties["num_steps"]["maximum"] == 1000
