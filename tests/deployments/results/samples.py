"""Small plans, their fields, and executions that write them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deployments.results.manifest import Listing
from deployments.results.store import ResultsStore
from workflows.base import Conditioning, Plan
from workflows.dataset import Origin, Provenance
from workflows.grids import Grid, LambertGrid

ID = "exec_1_00000000"
PROVENANCE = Provenance(
    model=Origin(name="fcn3", loader="synthetic", synthetic=True),
    data_source=Origin(name="ifs", loader="some.module:Source", synthetic=False),
    software={"earth2serve": "0.1.0", "numpy": "2.0.0"},
)


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "workflow": "foundry_fcn3_workflow",
        "model": "fcn3",
        "data_source": "ifs",
        "start_time": datetime(2025, 1, 1, 6, tzinfo=UTC),
        "step_hours": 6,
        "n_steps": 2,
        "seeds": (7, 2**32 - 1),
        "variables": ("t2m", "z500"),
        "grid": Grid(n_lat=5, n_lon=8),
        "output_format": "zarr",
        **changes,
    }
    return Plan(input_variables=values["variables"], **values)


def make_nowcast_plan(**changes: Any) -> Plan:
    """Return a plan with four members on a Lambert grid, two for each conditioning member."""
    conditioning = Conditioning(
        model="fcn3",
        interpolation="interpolation",
        data_source="ifs",
        start_time=datetime(2025, 1, 1, 6, tzinfo=UTC),
        seeds=(7, 2**32 - 1),
        input_variables=("z500",),
        variable="z500",
        grid=Grid(n_lat=5, n_lon=8),
    )
    values: dict[str, Any] = {
        "workflow": "foundry_fcn3_stormscope_goes_workflow",
        "model": "stormscope",
        "data_source": "goes16",
        "start_time": datetime(2025, 1, 1, 8, tzinfo=UTC),
        "step_hours": 1,
        "seeds": (1, 2, 3, 4),
        "variables": ("abi01c", "abi13c"),
        "grid": LambertGrid(n_y=3, n_x=4, spacing_m=600e3),
        "conditioning": conditioning,
    }
    return make_plan(**{**values, **changes})


def fields(plan: Plan, member: int, time_index: int) -> NDArray[np.float32]:
    """Return fields as a model would: all values different, longitudes 0 to 360."""
    shape = (len(plan.variables), *plan.grid.shape)
    return np.random.default_rng([member, time_index]).standard_normal(shape, dtype=np.float32)


def expected(plan: Plan, variable: str) -> NDArray[np.float32]:
    """Return the result's values, shape (ensemble, time, lat, lon), longitudes from -180."""
    index = plan.variables.index(variable)
    values = np.array(
        [[fields(plan, m, t)[index] for t in range(plan.n_times)] for m in plan.members]
    )
    return np.roll(values, plan.grid.n_lon // 2, axis=-1)


def write_steps(store: ResultsStore, plan: Plan, fence: int = 1) -> None:
    """Write all time steps of all members."""
    for member in plan.members:
        for time_index in range(plan.n_times):
            store.write_step(ID, fence, member, time_index, fields(plan, member, time_index))


def complete(store: ResultsStore, plan: Plan, fence: int = 1) -> Listing:
    """Create, write, export and describe a result with a preview."""
    store.create(plan, ID, PROVENANCE, fence)
    write_steps(store, plan, fence)
    if plan.output_format == "netcdf4":
        store.export_netcdf(ID, fence)
    store.add_file(ID, fence, "preview.png", b"a map")
    return store.describe(ID, fence, extra=["preview.png"])


def open_result(folder: Path) -> xr.Dataset:
    """Open the dataset of a result."""
    if (folder / "results.nc").exists():
        return xr.open_dataset(folder / "results.nc", engine="netcdf4")
    return xr.open_zarr(folder / "results.zarr", consolidated=True)


def assert_complete(folder: Path, plan: Plan) -> None:
    """Check all values of a result."""
    with open_result(folder) as dataset:
        for variable in plan.variables:
            np.testing.assert_array_equal(dataset[variable], expected(plan, variable))
