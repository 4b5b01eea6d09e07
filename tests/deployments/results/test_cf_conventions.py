"""Results follow the CF conventions, according to the compliance checker."""

import json
from pathlib import Path

import pytest
import xarray as xr
from compliance_checker.runner import CheckSuite, ComplianceChecker

from tests.deployments.results.backends import DiskBackend
from tests.deployments.results.samples import (
    ID,
    PROVENANCE,
    make_nowcast_plan,
    make_plan,
    write_steps,
)
from workflows.base import Plan
from workflows.dataset import Origin, Provenance
from workflows.fcn3 import VARIABLES
from workflows.stormscope import VARIABLES as CHANNELS

SOME = ("t2m", "msl", "tcwv", "z500", "q50")


@pytest.fixture(scope="module", autouse=True)
def checkers() -> None:
    CheckSuite.load_all_available_checkers()


def findings(path: Path, version: str) -> dict[str, list[str]]:
    report = path.with_suffix(".json")
    ComplianceChecker.run_checker(
        str(path),
        [version],
        verbose=0,
        criteria="strict",
        output_filename=str(report),
        output_format="json",
    )
    found = json.loads(report.read_text())[version]
    return {
        severity: [
            message
            for check in found[f"{severity}_priorities"]
            for message in check["msgs"]
            if check["value"][0] < check["value"][1]
        ]
        for severity in ("high", "medium", "low")
    }


# All variables in one case only: their attributes are the same in every format and layout, and the
# checker is slow.
@pytest.mark.parametrize(
    ("time_layout", "output_format", "variables"),
    [
        pytest.param("time", "netcdf4", VARIABLES, marks=pytest.mark.slow),
        ("time", "netcdf4", SOME),
        ("time", "zarr", SOME),
        ("lead_time", "netcdf4", SOME),
        ("lead_time", "zarr", SOME),
    ],
    ids=["all", "netcdf4", "zarr", "lead_time", "lead_time-zarr"],
)
def test_results_follow_cf(
    tmp_path: Path, time_layout: str, output_format: str, variables: tuple[str, ...]
) -> None:
    plan = make_plan(
        variables=variables, output_format=output_format, time_layout=time_layout, n_steps=1
    )
    found = findings(written(tmp_path, plan, PROVENANCE), "cf:1.8")
    assert found["high"] == []
    if time_layout == "time":
        assert found["medium"] == found["low"] == []
    else:
        # The checker recommends lead_time before time; Earth2Studio has it after time.
        assert all("recommended order" in message for message in found["medium"])
        assert found["low"] == []


@pytest.mark.parametrize("output_format", ["netcdf4", "zarr"])
def test_nowcasts_follow_cf(tmp_path: Path, output_format: str) -> None:
    plan = make_nowcast_plan(variables=CHANNELS, output_format=output_format, n_steps=1)
    provenance = PROVENANCE.model_copy(
        update={
            "model": Origin(name="stormscope", loader="synthetic", synthetic=True),
            "conditioned_on": (Origin(name="fcn3", loader="some.module:load", synthetic=False),),
        }
    )
    found = findings(written(tmp_path, plan, provenance), "cf:1.8")
    assert found == {"high": [], "medium": [], "low": []}


def written(tmp_path: Path, plan: Plan, provenance: Provenance) -> Path:
    """Write a result and return it as NetCDF, which the checker reads; copy a Zarr store to it."""
    backend = DiskBackend(tmp_path)
    store = backend.store()
    store.create(plan, ID, provenance, 1)
    write_steps(store, plan)
    folder = backend.folder(plan.workflow, ID)
    path = folder / "results.nc"
    if plan.output_format == "netcdf4":
        store.export_netcdf(ID, 1)
    else:
        with xr.open_zarr(folder / "results.zarr") as dataset:
            # By default xarray adds a fill value to every float; CF forbids it for coordinates.
            names = set(dataset.coords) & {"lat", "lon", "y", "x", "latitude", "longitude"}
            dataset.to_netcdf(path, encoding={name: {"_FillValue": None} for name in names})
    return path
